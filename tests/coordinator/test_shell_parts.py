"""The small parts of the coordinator's shell: callers, the status table, failpoints, export, the watcher's estimate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest

from coordinator.callers import LOOK_AGAIN, REMEMBER, Callers, roles_for
from coordinator.errors import ExportError, TlsVersionError
from coordinator.export import choose, export, hold
from coordinator.failpoints import POINTS, TESTING, VARIABLE, FailpointError, armed
from coordinator.grpc_status import STATUS, details_of, metadata_of, status_of
from coordinator.institution_service import code_of
from coordinator.selection import BestRound, Selection
from coordinator.state import RunState
from coordinator.status import remaining_seconds
from coordinator.store import CommittedRound, StoreError
from federation.in_memory import MemoryContentStore
from federation.layout import layout
from federation.model_archive import unpack
from federation.plan_problems import PlanError, Problem
from federation.rounds import ComponentDigests, Setup
from federation.tensor_file import whole
from federation.vectors import UploadOffsetError
from security.certificate_errors import CertificateExpiredError, CertificateRevokedError, ForeignAuthorityError
from security.certificates import Role
from security.errors import ConsiliumError
from security.tls import ReloadingTls, TlsFiles
from tests.coordinator.serving import AUTHORITY, FOREIGN, NOW, Pass, institution
from tests.federation.models import example_schema
from tests.plans import example_plan

# -- callers ------------------------------------------------------------------------------------------------------


class Door:
    """Callers behind a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        mine = Pass(Role.COORDINATOR, "coordinator", host="localhost")
        self.files = TlsFiles(folder / "c.pem", folder / "k.pem", folder / "ca.pem", folder / "revoked.txt")
        self.files.key.touch(0o600)
        self.files.key.write_bytes(mine.key.to_pem())
        self.files.certificate.write_bytes(mine.certificate)
        self.files.authority.write_bytes(AUTHORITY[1])
        self.revoke("")
        self.callers = Callers(ReloadingTls(self.files, NOW), lambda: self.now)

    def revoke(self, text: str) -> None:
        assert self.files.revocations is not None
        self.files.revocations.write_text(text)

    def identify(self, shown: Pass, version: bytes | None = b"TLSv1.3") -> str:
        context = {"x509_pem_cert": [shown.certificate]}
        return self.callers.identify(context if version is None else {**context, "ssl_tls_version": [version]}).name


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


@pytest.mark.parametrize("version", [None, b"", b"TLSv1.2", b"TLSv1"])
def test_a_connection_that_is_not_tls_1_3_or_does_not_say_so_is_refused(door: Door, version: bytes | None) -> None:
    shown = institution("brca-1", 0)
    assert door.identify(shown) == "brca-1"
    with pytest.raises(TlsVersionError):
        door.identify(shown, version)


def test_a_known_caller_is_checked_again_soon(door: Door) -> None:
    shown = institution("brca-1", 0, days=1)
    assert door.identify(shown) == "brca-1"
    door.now += timedelta(days=1, seconds=1)
    with pytest.raises(CertificateExpiredError):
        door.identify(shown)
    assert timedelta(seconds=3) > REMEMBER


def test_foreign_and_revoked(door: Door) -> None:
    shown = institution("brca-1", 0)
    door.identify(shown)
    door.revoke(shown.fingerprint)
    door.now += LOOK_AGAIN
    with pytest.raises(CertificateRevokedError):
        door.identify(shown)  # although it was known a moment ago
    with pytest.raises(ForeignAuthorityError):
        door.identify(institution("brca-1", 0, authority=FOREIGN))


def test_methods_that_nobody_named_are_nobodys() -> None:
    assert roles_for("/consilium.v1.InstitutionService/Submit") == {Role.INSTITUTION}
    assert roles_for("/consilium.v1.OperatorService/StopRun") == {Role.OPERATOR}
    assert roles_for("/consilium.v2.OperatorService/StopRun") == frozenset()
    assert roles_for("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo") == frozenset()


# -- errors -------------------------------------------------------------------------------------------------------


def every(kind: type[ConsiliumError]) -> Iterator[type[ConsiliumError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every(child)


def test_every_error_has_a_status_and_a_code_that_may_travel() -> None:
    for kind in every(ConsiliumError):
        if kind.__module__.split(".")[0] in ("coordinator", "federation", "security"):
            assert next(c for c in kind.__mro__ if c in STATUS)
            assert code_of(kind.code) == kind.code, kind


def test_messages_go_to_operators_only_and_only_about_their_own_mistakes() -> None:
    plan = PlanError.one("the patients of brca-1 are 12.", "Correct it.")
    assert details_of(plan, to_operator=False) == "plan"
    assert "brca-1 are 12" in details_of(plan, to_operator=True)
    assert details_of(UploadOffsetError(5, 7), to_operator=True) == "upload-offset"
    many = PlanError([Problem((), "é" * 300, "…") for _ in range(30)])
    assert len(details_of(many, to_operator=True)) <= 1500


def test_status_follows_the_nearest_base() -> None:
    class FullerError(StoreError):
        code = "fuller"

    assert status_of(FullerError("full.")) is grpc.StatusCode.UNAVAILABLE
    assert dict(metadata_of(UploadOffsetError(5, 7)))["consilium-upload-offset"] == "5"


@pytest.mark.parametrize("text", ["Stale", "a b", "x\ny", "n=3", "a" * 30, "a-1", "-a"])
def test_a_code_that_is_none_is_called_other(text: str) -> None:
    assert code_of(text) == "other"
    assert code_of("") == ""


# -- failpoints ---------------------------------------------------------------------------------------------------


def test_failpoints_need_the_word_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "after-keys/1")
    monkeypatch.delenv(TESTING, raising=False)
    assert armed() == ()
    monkeypatch.setenv(TESTING, "1")
    assert armed() == ("after-keys", "1")
    monkeypatch.setenv(VARIABLE, "after-lunch")
    with pytest.raises(FailpointError, match="after-lunch"):
        armed()


@pytest.mark.parametrize(("name", "dies"), [("after-keys/2", True), ("after-keys/1", False), ("after-keys", True)])
def test_a_hit_kills_at_once(name: str, dies: bool) -> None:
    script = "from coordinator.failpoints import hit; hit('before-commit', 2); hit('after-keys', 2); print('alive')"
    environment = {VARIABLE: name, TESTING: "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert (done.returncode == -9) is dies
    assert (done.stdout == b"alive\n") is not dies
    assert len(set(POINTS)) == len(POINTS)


# -- export -------------------------------------------------------------------------------------------------------

PLAN = example_plan(9)
SCHEMA = example_schema(PLAN)
MADE = layout(PLAN, SCHEMA.widths)
SHARED = [name for name, c in MADE.components.items() if c.shared]


def weights(content: MemoryContentStore, value: float) -> dict[str, ComponentDigests]:
    return {
        name: ComponentDigests(content.put(np.full(MADE.components[name].size, value, "<f4").tobytes()), {})
        for name in reversed(SHARED)
    }


def test_the_summed_components_and_no_others_are_exported() -> None:
    content = MemoryContentStore()
    setup = Setup(content.put(SCHEMA.to_bytes()), {}, frozenset(PLAN.roster))
    subset = next(n.removeprefix("classifier/") for n in SHARED if n.startswith("classifier/"))
    best = BestRound(1, 0.9, weights(content, 0.5), {subset: 2.0})
    state = RunState(setup=setup, components=weights(content, 0.25), selection=Selection(best=best))
    records = [json.dumps({"round": r, "metrics": {"all": {"accuracy": 0.1 * r}}}) for r in range(4)]
    choice = choose(PLAN, state, range(4))
    assert choice.round == 1  # the plan selects the best
    held = hold(content, state, choice)
    content.collect(set())  # the next round is committed meanwhile
    files = {name: whole(data) for name, data in export(PLAN, state, choice, held, records).items()}
    model = unpack(files)
    assert list(model.components) == SHARED
    assert all((vector == 0.5).all() for vector in model.components.values())
    assert model.temperatures[subset] == 2.0
    assert set(model.temperatures) == {n.removeprefix("classifier/") for n in SHARED if n.startswith("classifier/")}
    assert b"0.100" in files["MODEL_CARD.md"]
    assert choose(PLAN, state, range(4), 3).round == 3
    with pytest.raises(ExportError, match="round 2") as refused:
        choose(PLAN, state, range(4), 2)
    assert "1 or 3" in refused.value.remedy
    last = PLAN.model_copy(update={"evaluation": PLAN.evaluation.model_copy(update={"select": "last"})})
    assert choose(last, state, range(4)).round == 3
    with pytest.raises(ExportError, match="no model yet"):
        choose(PLAN, RunState(), [])


# -- estimates ----------------------------------------------------------------------------------------------------


def test_remaining_time_follows_the_pace_of_the_committed_rounds() -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    rounds = [CommittedRound(r, "", "", begun + timedelta(seconds=10 * r)) for r in range(3)]
    assert remaining_seconds(5, [], begun) == 0
    assert remaining_seconds(5, rounds[:1], begun) == 0
    assert remaining_seconds(5, rounds, begun + timedelta(seconds=24)) == pytest.approx(26)
    assert remaining_seconds(5, rounds, begun + timedelta(seconds=90)) == 0
