"""Certificates of every wrong kind, revoked and renewed under running processes: who sees what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceStub
from typer.testing import CliRunner

from deploy.cli import app
from deploy.pki_cli import CA_KEY
from institution_node.grpc_link import CODE_KEY
from security.pki import Role, create_authority, create_request, identity_of, sign_request
from security.signing import IdentityKey
from tests.processes.local import Bench, alive, records_of, say, until, user_error

pytestmark = pytest.mark.processes

CLONED = "node-9"


def pair(
    bench: Bench, role: Role, name: str, *, age: int = 0, authority: tuple[bytes, bytes] | None = None
) -> tuple[bytes, bytes]:
    """Key and certificate, PEM, of seven days' validity that began `age` days ago."""
    key, issued = IdentityKey.generate(), datetime.now(UTC) - timedelta(days=age)
    request = create_request(key, bench.local.name, role, name)
    folder = bench.local.folder("authority")
    signer = authority or ((folder / CA_KEY).read_bytes(), (folder / "ca.pem").read_bytes())
    return key.to_pem(), sign_request(*signer, request, issued, 7, role=role, name=name)


def node_folder(bench: Bench, to: Path, key: bytes, certificate: bytes) -> Path:
    """A node's folder like `CLONED`'s, with another certificate; returns its node.toml."""
    shutil.copytree(bench.local.folder(CLONED), to, ignore=shutil.ignore_patterns("state"))
    (to / "key.pem").write_bytes(key)
    (to / "certificate.pem").write_bytes(certificate)
    return to / "node.toml"


def called(bench: Bench, key: bytes, certificate: bytes) -> tuple[grpc.StatusCode, str]:
    """Status and our code for a peer that does not check itself and calls the coordinator with this certificate."""
    authority = (bench.local.folder("authority") / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.secure_channel(bench.local.address, credentials, options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        list(InstitutionServiceStub(channel).GetInvitation(pb.GetInvitationRequest(protocol_version=1), timeout=20))
    error: Any = caught.value
    return error.code(), dict(error.trailing_metadata() or ()).get(CODE_KEY, "")


def test_wrong_certificates_are_refused_and_the_run_does_not_notice(bench: Bench, tmp_path: Path) -> None:
    run = bench.begin(bench.plan(rounds=3))
    operator = pair(bench, Role.OPERATOR, "operator-2")
    authority = create_authority(bench.local.name, datetime.now(UTC) - timedelta(days=60), 365)
    foreign = pair(bench, Role.INSTITUTION, CLONED, authority=authority)
    expired = pair(bench, Role.INSTITUTION, CLONED, age=30)
    wrong = {"operator": operator, "foreign": foreign, "expired": expired}
    files = {kind: node_folder(bench, tmp_path / kind, *p) for kind, p in wrong.items()}
    with ThreadPoolExecutor(2) as pool:
        node = "institution_node.cli"
        ran = {kind: pool.submit(say, node, "run", "--config", str(file)) for kind, file in files.items()}
        # One of another federation of the same name, in which everything is in order but the coordinator.
        other = node_folder(bench, tmp_path / "other", *foreign)
        (other.parent / "ca.pem").write_bytes(authority[1])
        checked = [pool.submit(say, node, "check", "--config", str(f)) for f in (files["expired"], other)]
        # The node itself sees what is wrong with its own certificate, before it calls anybody.
        for kind, words in (("operator", "role operator"), ("foreign", "authority"), ("expired", "expired")):
            said = user_error(ran[kind].result())
            assert words in said
            assert str(tmp_path / kind / "certificate.pem") in said
        for check, line in zip(checked, ("certificate", "coordinator"), strict=True):
            assert check.result().returncode == 1
            assert f"WRONG      {line}: " in check.result().stdout
            assert check.result().stdout.count("WRONG") == 1
            assert "Traceback" not in check.result().stderr
    # Who does not look is refused by the coordinator, in the handshake or with a code.
    assert called(bench, *operator) == (grpc.StatusCode.PERMISSION_DENIED, "certificate-wrong-role")
    assert called(bench, *foreign) == (grpc.StatusCode.UNAVAILABLE, "")
    assert called(bench, *expired) == (grpc.StatusCode.UNAVAILABLE, "")
    until("the refusal is in the audit log", lambda: ("operator-2", "certificate-wrong-role") in refused(bench))
    assert bench.wait_ended(run).status == "finished"
    for record in records_of(bench.committed(run)).values():
        assert all(alive(record, s) == set(bench.names) for s in record["sums"])


def refused(bench: Bench) -> list[tuple[str, str]]:
    """(peer, reason) of the calls that the coordinator's audit log says were refused."""
    entries = [e["fields"] for e in bench.audit("coordinator") if e["event"] == "call-refused"]
    return [(e.get("peer", ""), e["reason"]) for e in entries]


@contextmanager
def revoked(bench: Bench, name: str) -> Iterator[None]:
    """Revokes a certificate at the running coordinator, as an engineer would; takes it back at the end."""
    folder = bench.local.folder("coordinator")
    listed, before = folder / "revoked.txt", (folder / "revoked.txt").read_text()
    certificate = bench.local.folder(name) / "certificate.pem"
    words = ["pki", "revoke", str(certificate), "--list", str(listed), "--reason", "test"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    yield
    put(listed, before.encode())


def put(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_bytes(content)
    os.replace(new, file)


def test_a_revocation_reaches_a_running_coordinator(bench: Bench) -> None:
    name = "node-5"
    with revoked(bench, name):
        until("node-5 is refused", lambda: (name, "certificate-revoked") in refused(bench))
        until("node-5 says so", lambda: "certificate-revoked" in bench.process(name).log.read_text())
        run = bench.begin(bench.plan(rounds=2, enrolment=5.0))
        assert bench.wait_ended(run).status == "finished"
        records = records_of(bench.committed(run))
        assert all(alive(r, s) == set(bench.names) - {name} for r in records.values() for s in r["sums"])
    run = bench.begin(bench.plan(rounds=1))
    assert bench.wait_ended(run).status == "finished"
    assert alive(records_of(bench.committed(run))[1], "updates") == set(bench.names)


def test_certificates_are_renewed_under_running_processes(bench: Bench) -> None:
    """A node's, with its key kept, as a plan's roster wants it; and the coordinator's, with another key."""
    name = "node-6"
    first = bench.begin(bench.plan(rounds=1))
    assert bench.wait_ended(first).status == "finished"
    pids = {party: bench.process(party).pid for party in (name, "coordinator")}

    folder = bench.local.folder(name)
    before = identity_of((folder / "certificate.pem").read_bytes())
    renew(bench, name, "institution", "--renew")
    renewed = identity_of((folder / "certificate.pem").read_bytes())
    assert renewed.fingerprint != before.fingerprint
    assert renewed.public == before.public
    at_coordinator = bench.local.folder("coordinator") / "certificate.pem"
    old = identity_of(at_coordinator.read_bytes())
    renew(bench, "coordinator", "coordinator", "--force", "--dns", "localhost", "--ip", "127.0.0.1")
    new = identity_of(at_coordinator.read_bytes())
    assert new.public != old.public

    run = bench.begin(bench.plan(rounds=2))
    assert bench.wait_ended(run).status == "finished"
    assert all(alive(r, s) == set(bench.names) for r in records_of(bench.committed(run)).values() for s in r["sums"])
    assert bench.enrolled_with(first)[name] == before.fingerprint
    assert bench.enrolled_with(run)[name] == renewed.fingerprint
    # Whoever connects now meets the new certificate.
    checked = say("institution_node.cli", "check", "--config", str(bench.local.folder("node-7") / "node.toml"))
    assert f"until {new.not_after:%Y-%m-%d}" in checked.stdout
    assert {party: bench.process(party).pid for party in pids} == pids


def renew(bench: Bench, party: str, role: str, *how: str) -> None:
    """New request, and with --force a new key; signed for another 100 days; put in place file by file."""
    folder, staging = bench.local.folder(party), bench.local.root / f"renewed-{party}"
    staging.mkdir(mode=0o700)
    if "--renew" in how:
        shutil.copy(folder / "key.pem", staging / "key.pem")
    named = ["--role", role, "--name", party]
    authority = str(bench.local.folder("authority"))
    for words in (
        ["pki", "issue", "--federation", bench.local.name, *named, "--out", str(staging), *how],
        ["pki", "sign", str(staging / "request.csr"), "--ca", authority, *named, "--days", "100", "--yes"],
    ):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    for file in ("key.pem", "certificate.pem"):
        put(folder / file, (staging / file).read_bytes())
