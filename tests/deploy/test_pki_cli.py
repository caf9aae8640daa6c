"""`consilium pki` as an engineer types it: enrolment end to end, and what mistakes get."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from deploy.pki_cli import app
from security.errors import ConfigurationError
from security.pki import Role, create_request, identity_of, parse_revocations
from security.signing import IdentityKey, parse_public_key_text
from security.tls import TlsFiles, load
from security.user_errors import user_errors

RUNNER = CliRunner()


def pki(*arguments: str | Path, typed: str = "") -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments], input=typed)


def good(*arguments: str | Path, typed: str = "") -> str:
    result = pki(*arguments, typed=typed)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """The error output of a command that must fail as a user's mistake does: two lines, code 2, no traceback."""
    result = pki(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert "\nremedy: " in result.stderr
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    good("init", "--federation", "tcga", "--out", folder)
    return folder


@pytest.fixture
def node(tmp_path: Path) -> Path:
    folder = tmp_path / "brca-1"
    good("issue", "--federation", "tcga", "--role", "institution", "--name", "brca-1", "--out", folder)
    return folder


def sign(ca: Path, node: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("sign", node / "request.csr", "--ca", ca, "--role", "institution", "--name", "brca-1", *more)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_enrolment_end_to_end(ca: Path, node: Path) -> None:
    assert sorted(path.name for path in ca.iterdir()) == ["ca-key.pem", "ca.pem", "revoked.txt"]
    assert sorted(path.name for path in node.iterdir()) == ["key.pem", "request.csr"]
    assert mode(ca / "ca-key.pem") == mode(node / "key.pem") == 0o600
    assert mode(ca / "ca.pem") == mode(node / "request.csr") == 0o644

    said = good(*sign(ca, node, "--yes", "--days", "30"))
    files = TlsFiles(node / "certificate.pem", node / "key.pem", ca / "ca.pem", ca / "revoked.txt")
    material = load(files, datetime.now(UTC), expected_role=Role.INSTITUTION)
    assert material.identity.uri == "consilium://tcga/institution/brca-1"
    assert timedelta(days=29) < material.identity.not_after - datetime.now(UTC) <= timedelta(days=30)
    assert "brca-1" in said

    shown = good("show", node / "certificate.pem", "--ca", ca / "ca.pem", "--revocations", ca / "revoked.txt")
    for text in (material.identity.uri, "institution", material.identity.fingerprint, "29 days left", "not revoked"):
        assert text in shown
    (line,) = [line for line in shown.splitlines() if "p256:" in line]
    assert parse_public_key_text(line.partition(":")[2]) == material.identity.public


def test_no_command_prints_a_private_key(ca: Path, node: Path) -> None:
    outputs = [good(*sign(ca, node, "--yes")), good("show", node / "certificate.pem"), good("show", ca / "ca.pem")]
    outputs.append(pki("show", node / "key.pem").output)
    for secret in ((ca / "ca-key.pem").read_text(), (node / "key.pem").read_text()):
        assert all(secret.splitlines()[1] not in output for output in outputs)


def test_the_authority_is_asked_and_can_say_no(ca: Path, node: Path) -> None:
    result = pki(*sign(ca, node), typed="n\n")
    assert result.exit_code == 1
    assert "no certificate was written" in result.stdout
    assert not (node / "certificate.pem").exists()
    assert pki(*sign(ca, node)).exit_code == 1  # nobody there to answer
    assert not (node / "certificate.pem").exists()
    said = good(*sign(ca, node), typed="y\n")
    for text in ("tcga", "institution", "brca-1", "p256:", "365 days"):
        assert text in said
    assert (node / "certificate.pem").exists()


def test_a_request_for_somebody_else_is_refused(ca: Path, node: Path) -> None:
    request = node / "request.csr"
    for role, name in (("operator", "brca-1"), ("institution", "brca-2")):
        said = refused("sign", request, "--ca", ca, "--role", role, "--name", name, "--yes")
        assert "consilium://tcga/institution/brca-1" in said
    request.write_bytes(create_request(IdentityKey.generate(), "other", Role.INSTITUTION, "brca-1"))
    assert "consilium://other/" in refused(*sign(ca, node, "--yes"))
    request.write_text("hello")
    assert "not a certificate request" in refused(*sign(ca, node, "--yes"))
    assert not (node / "certificate.pem").exists()


def test_files_are_never_overwritten_without_force(ca: Path, node: Path) -> None:
    good(*sign(ca, node, "--yes"))
    before = {path: path.read_bytes() for folder in (ca, node) for path in folder.iterdir()}
    issue = ("issue", "--federation", "tcga", "--role", "institution", "--name", "brca-1", "--out", node)
    for command in (("init", "--federation", "tcga", "--out", ca), issue, (*issue, "--renew"), sign(ca, node, "--yes")):
        assert "already" in refused(*command)
    assert "--renew" in refused(*issue)
    assert {path: path.read_bytes() for path in before} == before
    good(*issue, "--force")
    assert (node / "key.pem").read_bytes() != before[node / "key.pem"]
    assert mode(node / "key.pem") == 0o600


def test_one_existing_file_stops_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("mine")
    refused("init", "--federation", "tcga", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]


def test_renewal_keeps_the_key(ca: Path, node: Path) -> None:
    good(*sign(ca, node, "--yes"))
    old, key = identity_of((node / "certificate.pem").read_bytes()), (node / "key.pem").read_bytes()
    issue = ("issue", "--federation", "tcga", "--role", "institution", "--name", "brca-1", "--out", node)
    good(*issue, "--renew", "--force")
    good(*sign(ca, node, "--yes", "--force"))
    new = identity_of((node / "certificate.pem").read_bytes())
    assert (node / "key.pem").read_bytes() == key
    assert (new.uri, new.public) == (old.uri, old.public)
    assert new.fingerprint != old.fingerprint


def test_an_open_key_is_not_used(ca: Path, node: Path) -> None:
    (ca / "ca-key.pem").chmod(0o644)
    assert f"chmod 600 {ca / 'ca-key.pem'}" in refused(*sign(ca, node, "--yes"))
    (node / "key.pem").chmod(0o640)
    issue = ("issue", "--federation", "tcga", "--role", "institution", "--name", "brca-1", "--out", node)
    assert f"chmod 600 {node / 'key.pem'}" in refused(*issue, "--renew", "--force")


def test_the_coordinator_gets_its_addresses(ca: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    issue = ("issue", "--federation", "tcga", "--role", "coordinator", "--name", "hub", "--out", hub)
    assert "host name" in refused(*issue)
    assert not hub.exists()
    good(*issue, "--dns", "localhost", "--dns", "hub.example.org", "--ip", "127.0.0.1")
    said = good("sign", hub / "request.csr", "--ca", ca, "--role", "coordinator", "--name", "hub", "--yes")
    assert "localhost, hub.example.org, 127.0.0.1" in said
    assert "hub.example.org" in good("show", hub / "certificate.pem")


def test_show_takes_every_public_file(ca: Path, node: Path, tmp_path: Path) -> None:
    assert "authority of the federation tcga" in good("show", ca / "ca.pem")
    assert "not signed yet" in good("show", node / "request.csr")
    (tmp_path / "x.pem").write_text("hello")
    assert "PEM" in refused("show", tmp_path / "x.pem")
    assert "No such file" in refused("show", tmp_path / "missing.pem")


def test_show_says_when_it_is_not_the_authoritys(ca: Path, node: Path, tmp_path: Path) -> None:
    good(*sign(ca, node, "--yes"))
    good("init", "--federation", "tcga", "--out", tmp_path / "other")
    said = refused("show", node / "certificate.pem", "--ca", tmp_path / "other" / "ca.pem")
    assert str(node / "certificate.pem") in said
    assert "not signed by this federation's authority" in said


def test_revocation(ca: Path, node: Path) -> None:
    good(*sign(ca, node, "--yes"))
    certificate, revoked = node / "certificate.pem", ca / "revoked.txt"
    fingerprint = identity_of(certificate.read_bytes()).fingerprint
    said = good("revoke", certificate, "--list", revoked, "--reason", "laptop\nlost")
    assert "brca-1" in said
    assert parse_revocations(revoked.read_text()) == {fingerprint}
    assert "consilium://tcga/institution/brca-1" in revoked.read_text()
    assert "laptop lost" in revoked.read_text()
    once = revoked.read_bytes()
    assert "already" in good("revoke", certificate, "--list", revoked)
    assert revoked.read_bytes() == once
    assert "revoked" in refused("show", certificate, "--ca", ca / "ca.pem", "--revocations", revoked)
    assert "revocations not checked" in good("show", certificate, "--ca", ca / "ca.pem")


def test_revocation_by_fingerprint(tmp_path: Path) -> None:
    revoked = tmp_path / "revoked.txt"
    revoked.write_text("ab" * 32)  # a line without its end, as editors leave them
    good("revoke", "--fingerprint", ":".join(["CD"] * 32), "--list", revoked)
    assert parse_revocations(revoked.read_text()) == {"ab" * 32, "cd" * 32}
    refused("revoke", "--fingerprint", "brca-1", "--list", revoked)
    refused("revoke", "--list", revoked)
    revoked.write_text("# one\nbrca-1\n")
    assert "revoked.txt, line 2" in refused("revoke", "--fingerprint", "ef" * 32, "--list", revoked)
    assert revoked.read_text() == "# one\nbrca-1\n"


@pytest.mark.parametrize("name", ["BRCA", "a/b", "", "ä"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    refused("issue", "--federation", "tcga", "--role", "institution", "--name", name, "--out", tmp_path / "n")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("command", [(), ("init",), ("issue",), ("sign",), ("show",), ("revoke",)])
def test_help(command: tuple[str, ...]) -> None:
    assert "Usage" in good(*command, "--help")


class TestUserErrors:
    def test_place_message_and_remedy(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left, user_errors():
            raise ConfigurationError("wrong.", remedy="Mend it.", place="plan.toml, line 3")
        assert left.value.code == 2
        assert capsys.readouterr().err == "error: plan.toml, line 3: wrong.\nremedy: Mend it.\n"

    def test_faults_of_ours_keep_their_traceback(self) -> None:
        with pytest.raises(KeyError), user_errors():
            raise KeyError("x")
        with pytest.raises(OSError, match="ours"), user_errors():
            raise OSError("ours")

    def test_as_a_decorator_it_keeps_the_commands_options(self) -> None:
        app = typer.Typer()

        @app.command()
        @user_errors()
        def command(count: int = 3) -> None:
            raise ConfigurationError(f"{count} is wrong.")

        result = RUNNER.invoke(app, ["--count", "4"])
        assert (result.exit_code, result.stderr) == (2, "error: 4 is wrong.\n")
        assert RUNNER.invoke(app, ["--count", "5"]).stderr == "error: 5 is wrong.\n"
