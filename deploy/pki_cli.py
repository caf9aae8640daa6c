"""`consilium pki`: the federation's authority, and every party's key, request and certificate (DESIGN.md, "Identity").

Enrolment takes three steps on two machines. The party runs `issue`: its key is made there and never leaves. It sends
`request.csr` to the authority, who runs `sign` and sends the certificate back. Requests and certificates are public.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from security.errors import ConfigurationError
from security.pki import (
    Authority,
    CertificateError,
    CertificateIdentityError,
    ForeignAuthorityError,
    Identity,
    Role,
    authority_of,
    check_certificate,
    create_authority,
    create_request,
    identity_of,
    identity_uri,
    inspect_request,
    parse_revocations,
    sign_request,
)
from security.signing import IdentityKey, public_key_text
from security.tls import read_private_key
from security.user_errors import user_errors

CA_KEY: Final = "ca-key.pem"
CA_CERTIFICATE: Final = "ca.pem"
REVOCATIONS: Final = "revoked.txt"
KEY: Final = "key.pem"
REQUEST: Final = "request.csr"
CERTIFICATE: Final = "certificate.pem"

app = typer.Typer(
    name="pki",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # or the lines of a docstring break where they break here
    help="Keys and certificates: who belongs to the federation.\n\n"
    "Enrolment of a hospital: (1) at the hospital, `consilium pki issue` makes a private key, which stays there, and "
    "a request; (2) the federation's authority checks the request and signs it with `consilium pki sign`; (3) the "
    "hospital puts the certificate beside its key. `consilium pki show` prints the line for the plan.",
)

Federation = Annotated[str, typer.Option("--federation", "-f", help="Name of the federation, e.g. tcga.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist already.")]
AuthorityFolder = Annotated[
    Path, typer.Option("--ca", help=f"The authority's folder, with {CA_KEY} and {CA_CERTIFICATE}.")
]
RoleOption = Annotated[Role, typer.Option(help="What the certificate's holder is.")]
NameOption = Annotated[
    str, typer.Option(help="Name of the institution, coordinator or operator, as in the plan, e.g. brca-1.")
]


@app.command()
@user_errors()
def init(
    federation: Federation,
    out: Annotated[Path, typer.Option(help="Folder of the authority; keep it offline.")],
    days: Annotated[int, typer.Option(help="Days until the authority's certificate expires.")] = 3650,
    force: Force = False,
) -> None:
    """Make a new certificate authority for a federation.

    Writes ca-key.pem (secret: whoever has it decides who is a member), ca.pem (give it to every party) and an empty
    revocation list, revoked.txt (give it to every party, again after every change).
    """
    key, certificate = create_authority(federation, datetime.now(UTC), days)
    _write(
        out,
        {
            CA_KEY: key,
            CA_CERTIFICATE: certificate,
            REVOCATIONS: b"# Revoked certificates of the federation, one SHA-256 fingerprint a line.\n",
        },
        force=force,
    )
    typer.echo(f"authority of the federation {federation}, valid until {_day(authority_of(certificate).not_after)}")
    typer.echo(f"secret, keep it offline: {out / CA_KEY}")
    typer.echo(f"for every party:         {out / CA_CERTIFICATE}, {out / REVOCATIONS}")


@app.command()
@user_errors()
def issue(
    federation: Federation,
    role: RoleOption,
    name: NameOption,
    out: Annotated[Path, typer.Option(help="Folder of this party, e.g. /etc/consilium; the key stays there.")],
    dns: Annotated[
        list[str] | None, typer.Option(help="Host name of the coordinator (coordinator only; repeat for several).")
    ] = None,
    ip: Annotated[
        list[str] | None, typer.Option(help="IP address of the coordinator (coordinator only; repeat for several).")
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Keep the key that is there; make a new request.")] = False,
    force: Force = False,
) -> None:
    """Make this party's private key, and a request for the authority to sign.

    Run it on the machine of the hospital, coordinator or operator itself. Writes key.pem (secret, never leaves this
    folder) and request.csr (send it to the authority). To renew a certificate before it expires use --renew: plans
    name the key, so it must stay the same.
    """
    if renew:
        key = IdentityKey.from_pem(read_private_key(out / KEY))
    else:
        key = IdentityKey.generate()
        if (out / KEY).exists() and not force:
            raise ConfigurationError(
                "a private key is here already.",
                remedy="Use --renew to keep it and make a new request, or --force to replace it (plans that name "
                "the old key then no longer fit).",
                place=str(out / KEY),
            )
    request = create_request(key, federation, role, name, tuple(dns or ()), tuple(ip or ()))
    files = {REQUEST: request} if renew else {KEY: key.to_pem(), REQUEST: request}
    _write(out, files, force=force)
    typer.echo(f"request for {identity_uri(federation, role, name)}")
    typer.echo(f"key for the plan:        {public_key_text(key.public)}")
    typer.echo(f"secret, stays here:      {out / KEY}")
    typer.echo(f"send to the authority:   {out / REQUEST}")


@app.command()
@user_errors()
def sign(
    request: Annotated[Path, typer.Argument(help="The request.csr that the party sent.")],
    ca: AuthorityFolder,
    role: RoleOption,
    name: NameOption,
    days: Annotated[int, typer.Option(help="Days until the certificate expires.")] = 365,
    out: Annotated[
        Path | None, typer.Option(help="The certificate to write; by default certificate.pem beside the request.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Force = False,
) -> None:
    """Sign a party's request (the authority does this).

    Shows what would be signed and asks. --role and --name say whom you mean to admit: a request for anybody else is
    refused. Compare the key line with the one that the party reads to you from its own screen.
    """
    now = datetime.now(UTC)
    csr = request.read_bytes()
    certificate_file = out or request.with_name(CERTIFICATE)
    _refuse_existing([certificate_file], force=force)
    wanted = inspect_request(csr)
    authority = (ca / CA_CERTIFICATE).read_bytes()
    certificate = sign_request(read_private_key(ca / CA_KEY), authority, csr, now, days, role=role, name=name)
    typer.echo(f"federation:  {wanted.federation}")
    typer.echo(f"role:        {wanted.role.value}")
    typer.echo(f"name:        {wanted.name}")
    typer.echo(f"key:         {public_key_text(wanted.public)}")
    if wanted.dns_names or wanted.ip_addresses:
        typer.echo(f"addresses:   {', '.join(wanted.dns_names + wanted.ip_addresses)}")
    typer.echo(f"valid until: {_day(identity_of(certificate).not_after)} ({days} days)")
    if not yes and not typer.confirm("Sign this?"):
        typer.echo("no certificate was written.")
        raise typer.Exit(1)
    _write(certificate_file.parent, {certificate_file.name: certificate}, force=force)
    typer.echo(f"send back to the party, with {ca / CA_CERTIFICATE}: {certificate_file}")


@app.command()
@user_errors()
def show(
    certificate: Annotated[Path, typer.Argument(help="A certificate, the authority's ca.pem, or a request.csr.")],
    ca: Annotated[
        Path | None, typer.Option(help="Also check it against this authority's certificate (ca.pem).")
    ] = None,
    revocations: Annotated[
        Path | None, typer.Option(help="With --ca: also check it against this list (revoked.txt).")
    ] = None,
) -> None:
    """Show who a certificate names, its role, validity and fingerprint, and its key line for the plan.

    With --ca it also says whether that authority signed it and it is valid now; if not, the exit code is 2.
    """
    now = datetime.now(UTC)
    pem = certificate.read_bytes()
    if b"BEGIN CERTIFICATE REQUEST" in pem:
        wanted = inspect_request(pem)
        typer.echo(f"request for: {identity_uri(wanted.federation, wanted.role, wanted.name)}  (not signed yet)")
        typer.echo(f"key:         {public_key_text(wanted.public)}")
        return
    try:
        holder: Identity | Authority = identity_of(pem)
    except CertificateIdentityError as not_a_party:
        try:
            holder = authority_of(pem)
        except ForeignAuthorityError:
            raise not_a_party from None
    if isinstance(holder, Authority):
        typer.echo(f"authority of the federation {holder.federation}")
    else:
        typer.echo(f"identity:    {holder.uri}")
        typer.echo(f"role:        {holder.role.value}")
        if holder.dns_names or holder.ip_addresses:
            typer.echo(f"addresses:   {', '.join(holder.dns_names + holder.ip_addresses)}")
    typer.echo(f"valid from:  {_day(holder.not_before)}")
    typer.echo(f"valid until: {_day(holder.not_after)} ({_days_left(holder.not_after, now)})")
    typer.echo(f"fingerprint: {holder.fingerprint}")
    typer.echo(f"key:         {public_key_text(holder.public)}")
    if ca is not None:
        _check(certificate, pem, ca, revocations, now)
        listed = "not revoked" if revocations else "revocations not checked"
        typer.echo(f"check:       signed by {ca}, valid now, {listed}")


@app.command()
@user_errors()
def revoke(
    revocations: Annotated[Path, typer.Option("--list", help="The revocation list to add to (revoked.txt).")],
    certificate: Annotated[
        Path | None, typer.Argument(help="The certificate to revoke; without it, give --fingerprint.")
    ] = None,
    fingerprint: Annotated[
        str, typer.Option(help="Fingerprint of the certificate, where the file itself is lost.")
    ] = "",
    reason: Annotated[str, typer.Option(help="A few words for the list, e.g. 'laptop lost'.")] = "",
) -> None:
    """Put a certificate on the revocation list.

    Then give the list to the coordinator and to every node; running processes read it again by themselves.
    """
    who = ""
    if certificate is not None and not fingerprint:
        identity = identity_of(certificate.read_bytes())
        fingerprint, who = identity.fingerprint, identity.uri
    elif certificate is not None or not fingerprint:
        raise ConfigurationError(
            "which certificate to revoke is not clear.", remedy="Give either its file or its --fingerprint."
        )
    revoked = parse_revocations(fingerprint, "--fingerprint")
    if len(revoked) != 1:
        raise ConfigurationError("one certificate is revoked at a time.", remedy="Give one fingerprint.")
    (entry,) = revoked
    before = revocations.read_text(encoding="utf-8") if revocations.exists() else ""
    if entry in parse_revocations(before, str(revocations)):
        typer.echo(f"on the list already: {entry}")
        return
    comment = " ".join(f"{who} {datetime.now(UTC):%Y-%m-%d} {reason}".split())
    line = f"{entry}  # {comment}\n"
    with revocations.open("a", encoding="utf-8") as file:
        file.write(line if not before or before.endswith("\n") else f"\n{line}")
        file.flush()
        os.fsync(file.fileno())
    typer.echo(f"revoked: {who or entry}")
    typer.echo(f"now give {revocations} to the coordinator and to every node")


def _check(certificate: Path, pem: bytes, ca: Path, revocations: Path | None, now: datetime) -> None:
    """Raises a CertificateError that names the file, unless `ca` vouches for the certificate now."""
    authority = ca.read_bytes()
    revoked = frozenset[str]()
    if revocations is not None:
        revoked = parse_revocations(revocations.read_text(encoding="utf-8"), str(revocations))
    federation = authority_of(authority).federation
    try:
        check_certificate(pem, authority, now, revoked=revoked, expected_role=None, expected_federation=federation)
    except CertificateError as error:
        error.place = str(certificate)
        raise


def _write(folder: Path, files: dict[str, bytes], *, force: bool) -> None:
    """Writes all of the files or, where one exists and `force` is off, none of them. Keys get mode 0600."""
    _refuse_existing([folder / name for name in files], force=force)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        new = folder / f".{name}.new"
        new.unlink(missing_ok=True)
        mode = 0o600 if name in (KEY, CA_KEY) else 0o644
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / name)  # whole or not at all: a running process may be reading the old one


def _refuse_existing(paths: list[Path], *, force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ConfigurationError(
                "this file exists already, and nothing was written.",
                remedy="Choose another folder, or add --force to overwrite it.",
                place=str(path),
            )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _days_left(end: datetime, now: datetime) -> str:
    days = (end - now).days
    return f"{days} days left" if end > now else "EXPIRED"
