"""Whole federations: nothing private leaves an institution in a message, line or metric; every release is paid for."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import structlog
from consilium.v1 import service_pb2 as pb
from prometheus_client import CollectorRegistry, generate_latest

from coordinator.observe import RunObserver
from coordinator.records import Recorder as RunRecorder
from institution_node.observe import NodeObserver
from monitoring.logging import configure_logging
from monitoring.metrics import CoordinatorMetrics, NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.secure_sum.upload import Upload
from tests.coordinator.following import place
from tests.small_federation import SmallFederation, small_plan

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Every log line of the process, at the finest level."""
    stream = io.StringIO()
    configure_logging(stream, level=0, json=True)
    yield stream
    structlog.reset_defaults()


# -- canaries ------------------------------------------------------------------------------------------------------


def number_canaries(value: float) -> set[bytes]:
    """A private number as bytes and as text. The text of small whole numbers is everywhere: only their bytes count."""
    made = {struct.pack("<d", value), struct.pack(">d", value)}
    if value == int(value):
        made |= {struct.pack("<q", int(value)), struct.pack(">q", int(value))}
    else:
        text = repr(float(value)).encode()
        made |= {text, text[:10], f"{value:.6f}".encode(), f"{value:.6e}".encode()}
        for scale in (2**40, 2**45, 2**50, 10**6, 10**9):  # fixed point, unmasked
            made.add(struct.pack("<q", round(value * scale)))
    return {m for m in made if len(m) >= 8}


def vector_canaries(values: npt.NDArray[Any]) -> set[bytes]:
    """Three stretches of a private vector, in every width that it could travel in."""
    made: set[bytes] = set()
    for start in (0, len(values) // 2, max(0, len(values) - 4)):
        piece = values[start : start + 4]
        if len(piece) and np.any(piece):
            made |= {piece.astype(np.float32).tobytes(), piece.astype(np.float64).tobytes()}
            made.add(piece.astype(np.float16).tobytes())
    return {m for m in made if len(m) >= 8 and any(m)}


def canaries(federation: SmallFederation, name: str) -> dict[str, set[bytes]]:
    """Every private quantity of one institution, under what it is."""
    data, work, told = federation.data[name], federation.works[name], federation.told[name]
    found: dict[str, set[bytes]] = {
        "patient ids": {i.encode() for i in data.ids},
        "fingerprint": {data.fingerprint.encode()},
    }
    found["labels"] = {data.labels.tobytes()[:128], data.labels.astype(np.uint8).tobytes()}
    found["features"] = set()
    for table in data.tables.values():
        for values in table.numeric.values():
            found["features"] |= vector_canaries(values)
            for value in values[~np.isnan(values)][:10]:
                found["features"] |= number_canaries(float(value))
    found["n"] = number_canaries(len(data)) | number_canaries(len(work._train_rows))
    found["noised n"] = number_canaries(federation.memory(name).noised_patients)
    found["alpha"], found["updates"], found["words"] = set(), set(), set()
    for kept in federation.recorded[name].values():
        for alpha in kept.alphas.values():
            found["alpha"] |= number_canaries(alpha)
        for delta in kept.updates.values():
            found["updates"] |= vector_canaries(delta)
        for words in kept.words.values():
            if np.any(words) and words.nbytes >= 8:
                found["words"].add(words.tobytes()[:64])
    found["losses"], found["proximity"] = set(), set()
    for _, training, validation in told.evaluated:
        for loss in (training, validation):
            if loss is not None:
                found["losses"] |= number_canaries(loss)
    for mean in told.losses:
        found["losses"] |= number_canaries(mean)
    for _, p in told.near:
        if p not in (0.05, 1.0):  # the floor and the ceiling are the plan's
            found["proximity"] |= number_canaries(p)
    found["split key"] = {federation.memory(name).split_key}
    found["private"] = set()
    for weights in federation.memory(name).private.values():
        found["private"] |= vector_canaries(weights)
    return found


def leaks(federation: SmallFederation, channels: dict[str, bytes]) -> list[tuple[str, str, str]]:
    """(institution, quantity, channel) of every canary that is found in a channel."""
    found = []
    for name in federation.plan.roster:
        for quantity, wanted in canaries(federation, name).items():
            found += [(name, quantity, channel) for channel, data in channels.items() if any(c in data for c in wanted)]
    return found


def test_no_private_quantity_is_in_any_message_line_or_shareable_metric(tmp_path: Path, lines: io.StringIO) -> None:
    plan = small_plan(9, rounds=3)
    shareable: dict[str, CollectorRegistry] = {}
    local: dict[str, CollectorRegistry] = {}

    def observer(name: str) -> NodeObserver:
        if name not in shareable:
            shareable[name], local[name] = CollectorRegistry(), CollectorRegistry()
        (tmp_path / name).mkdir(exist_ok=True)
        audit = AuditLog(tmp_path / name / "audit", AT)
        made = NodeObserver(name, NodeShareableMetrics(shareable[name]), NodeLocalMetrics(local[name]), audit)
        made.accepted(plan, b"\0" * 32)
        return made

    metrics = CollectorRegistry()
    federation = SmallFederation(plan, folder=tmp_path / "nodes", also=observer)
    store = federation.coordinator.store
    recorder = RunRecorder(store, AuditLog(tmp_path / "audit", AT), lambda: AT)
    watch = RunObserver(federation.run.key, plan, CoordinatorMetrics(metrics), recorder, lambda record: None)
    federation.coordinator.observer = federation.run._observer = watch
    federation.enrol()
    crashed: list[str] = []

    def acts(name: str, directive: pb.Directive) -> bool:
        # One institution vanishes, one is lied to, so that refusals and dropouts are said as well.
        if name == plan.roster[8] and place(federation, directive) == (2, "updates", "contribute"):
            crashed.append(name)
            return False
        return True

    def lie(name: str, directive: pb.Directive) -> None:
        if name == plan.roster[4] and place(federation, directive) == (2, "statistics", "contribute"):
            directive.contribute.sum = "updates"

    federation.lie = lie
    assert federation.run_to_end(acts) == "finished"
    assert crashed
    assert federation.lies
    channels = {f"{m.institution} {m.round} {m.kind} {k}": m.data for k, m in enumerate(federation.sent)}
    channels["log"] = lines.getvalue().encode()
    channels["coordinator metrics"] = generate_latest(metrics)
    channels |= {f"shareable {name}": generate_latest(registry) for name, registry in shareable.items()}
    assert len(channels["log"]) > 1000
    assert b"consilium" in channels["coordinator metrics"]
    assert leaks(federation, channels) == []
    # The search does find what there is to find: the local metrics hold losses, and a plain vector would show.
    seen = {quantity for _, quantity, _ in leaks(federation, {n: generate_latest(r) for n, r in local.items()})}
    assert "losses" in seen
    plain = federation.recorded[plan.roster[0]][1, "updates"].words["encoder/mrna"].tobytes()
    assert (plan.roster[0], "words", "plain") in leaks(federation, {"plain": plain})


# -- differential privacy ------------------------------------------------------------------------------------------

PRIVATE: dict[str, Any] = {
    "differential_privacy": {
        "enabled": True,
        "epsilon": 1000.0,
        "noise_multiplier": 2.0,
        "feature_noise": 0.2,  # so few patients: more, and no column would reach the floors
        "statistics_noise": 20.0,
    },
    "training": {"local_steps": 2, "batch_size": 8, "learning_rate": 0.01, "class_weights": "none"},
}


def test_every_release_is_charged_before_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = SmallFederation(small_plan(7, rounds=2, **PRIVATE), folder=tmp_path)
    charged: list[tuple[str, int, str, set[str]]] = []
    for name in federation.plan.roster:
        link = federation.participants[name].link
        upload = link.upload

        def watched(run: bytes, masked: Upload, name: str = name, upload: object = upload) -> None:
            number, sum_name = federation.run.round, federation.run.attempt.machine.current.name
            paid = {c.purpose for c in federation.ledgers[name].charges if c.round == number}
            charged.append((name, number, sum_name, paid))
            upload(run, masked)  # type: ignore[operator]  # the link's own method

        monkeypatch.setattr(link, "upload", watched)
    federation.enrol()
    assert federation.run_to_end() == "finished"
    assert len(charged) == 7 * (5 + 2 * 2)
    for name, number, sum_name, paid in charged:
        parts = set(federation.recorded[name][number, sum_name].words)
        if sum_name == "holders":
            continue  # which columns a table has, whatever its patients
        if number == 0 and sum_name != "weights":
            assert {f"{sum_name}/{part}" for part in parts} <= paid
        elif number == 0:
            assert "patients" in paid
        elif sum_name == "updates":
            assert "updates" in paid
        else:
            assert {part for part in parts if not part.startswith("clipped/")} <= paid
    for name, ledger in federation.ledgers.items():
        once = [c.purpose for c in ledger.charges if c.round == 0]
        assert len(once) == len(set(once)), name  # nothing of round 0 is paid, or drawn, twice
        assert ledger.spent()[0] > 0


def test_what_is_released_under_privacy_is_noised(tmp_path: Path) -> None:
    """The same patients without noise give other words in every part that patients are in."""
    quiet = {**PRIVATE, "differential_privacy": {"enabled": False}}
    one = SmallFederation(small_plan(7, rounds=1, **PRIVATE), folder=tmp_path)
    two = SmallFederation(small_plan(7, rounds=1, **quiet))
    for federation in (one, two):
        federation.enrol()
        assert federation.run_to_end() == "finished"
    for name in one.plan.roster:
        for where, kept in one.recorded[name].items():
            for part, words in kept.words.items():
                if not part.startswith("clipped/") and where[1] not in ("holders", "weights"):
                    assert not np.array_equal(words, two.recorded[name][where].words[part]), (name, where, part)


def test_a_node_past_its_budget_leaves_and_the_run_goes_on(tmp_path: Path) -> None:
    plan = small_plan(7, rounds=3, **PRIVATE)
    probe = SmallFederation(plan, folder=tmp_path / "probe")
    probe.enrol()
    victim = plan.roster[6]
    spent: list[float] = []

    def after() -> None:
        if probe.run.round == 2 and not spent:
            spent.append(probe.ledgers[victim].spent()[0])

    assert probe.run_to_end(after=after) == "finished"
    federation = SmallFederation(plan, folder=tmp_path / "run", epsilon={victim: spent[0] * 1.0001})
    federation.enrol()
    assert federation.run_to_end() == "finished"
    assert {(n, c) for n, _, c in federation.withdrawals()} == {(victim, "privacy-budget")}
    assert {r for _, r, _ in federation.withdrawals()} == {2, 3}
    for message in federation.sent:
        if message.kind == "withdrawal":
            told = pb.SubmitRequest.FromString(message.data).withdrawal
            assert {f.name for f, _ in told.ListFields()} == {"round", "attempt", "code"}
    uploads = [m for m in federation.sent if m.institution == victim and m.kind == "upload"]
    assert {m.round for m in uploads} == {0, 1}
    assert federation.ledgers[victim].spent()[0] <= spent[0] * 1.0001


def test_the_ledger_and_the_drawn_count_survive_a_restart(tmp_path: Path) -> None:
    federation = SmallFederation(small_plan(7, rounds=2, **PRIVATE), folder=tmp_path)
    federation.enrol()
    name = federation.plan.roster[0]
    before: list[tuple[float, int]] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and not before and place(federation, directive) == (1, "updates", "sign_list"):
            before.append((federation.ledgers[name].spent()[0], federation.memory(name).noised_patients))
            federation.start(name)
            assert federation.ledgers[name].spent()[0] == before[0][0]
            return False
        return True

    assert federation.run_to_end(acts) == "finished"
    assert federation.memory(name).noised_patients == before[0][1]
    assert federation.ledgers[name].spent()[0] > before[0][0]
    updates = [c.round for c in federation.ledgers[name].charges if c.purpose == "updates"]
    assert updates == [1, 2]


def test_under_privacy_no_institution_steps_by_its_own_losses(tmp_path: Path) -> None:
    """The unreleased losses of a combination that is alone must not steer what is released."""
    plan = small_plan(9, rounds=4, blending={"kind": "local"}, **PRIVATE)
    federation = SmallFederation(plan, folder=tmp_path)
    federation.enrol()
    assert federation.run_to_end() == "finished"
    for told in federation.told.values():
        assert all(len(set(factors.values())) == 1 for factors in told.factors)


def test_a_private_plan_needs_a_ledger() -> None:
    from federation.rounds import RoundError
    from institution_node.local_run import LocalRun
    from security.privacy.randomness import SystemRandomness
    from studies.memory_coordinator import MemoryCoordinator, MemoryLink
    from tests.small_federation import DictMemory, LinkContent, patients

    plan = small_plan(7, **PRIVATE)
    name = plan.roster[0]
    coordinator = MemoryCoordinator(plan.to_bytes())
    content = LinkContent(MemoryLink(coordinator, name), coordinator.run.id)
    with pytest.raises(RoundError, match="ledger"):
        LocalRun(plan.to_bytes(), name, patients(plan, name), content, DictMemory(), SystemRandomness())
