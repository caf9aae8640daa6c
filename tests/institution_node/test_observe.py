"""What a node shows of itself: everything heard has its place, and nothing of patients is in the wrong one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from federation.layout import layout
from federation.rounds import digest
from institution_node.data import NoPatientError
from institution_node.guard import WorkFailedError
from institution_node.link import CoordinatorRefusalError, CoordinatorUnreachableError, LinkWatcher
from institution_node.node import PHASES, NodeWatcher
from institution_node.observe import NodeObserver
from institution_node.policy import PolicyRefusal
from institution_node.recorder import Recorder
from monitoring.logging import configure_logging
from monitoring.metrics import NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog, verify
from security.secure_sum.errors import TranscriptError
from tests.plans import example_plan

CANARY = 0.4711081547
NOW = datetime(2026, 5, 1, tzinfo=UTC)
PLAN = example_plan()
RUN = digest(PLAN.to_bytes())


@dataclass
class Shown:
    observer: NodeObserver
    shareable: NodeShareableMetrics
    local: NodeLocalMetrics
    log: io.StringIO
    path: Path

    def pages(self) -> tuple[str, str]:
        return generate_latest(self.shareable.registry).decode(), generate_latest(self.local.registry).decode()

    def entries(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    log = io.StringIO()
    configure_logging(log, json=True)
    shareable, local = NodeShareableMetrics(CollectorRegistry()), NodeLocalMetrics(CollectorRegistry())
    seconds = iter(range(1000))
    with AuditLog(tmp_path / "audit", NOW) as audit:
        observer = NodeObserver("brca-1", shareable, local, audit, lambda: NOW, lambda: float(next(seconds)))
        yield Shown(observer, shareable, local, log, tmp_path / "audit")
    configure_logging()


def everything(observer: NodeObserver) -> None:
    """Each thing that can be heard, once; what a patient's value may be in is a canary."""
    observer.started("0.1.0", "0" * 64, NOW)
    observer.rejected(RUN, PolicyRefusal("k_min", "no.", remedy="Ask for another."))
    observer.rejected(RUN, NoPatientError(f"patient {CANARY}", remedy=f"{CANARY}", place="mrna.csv:3"))
    observer.accepted(PLAN, RUN)
    observer.data_changed(RUN, "1" * 64, "2" * 64, True)
    observer.enrolled(RUN)
    observer.sits_out(RUN, "No Weight? 12 é")
    for phase in dict.fromkeys(PHASES.values()):
        observer.phase(phase)
    observer.joined(3, 1)
    observer.similar_cohort(("encoder/mrna",))
    observer.signed("updates", 8, 1)
    observer.complained((TranscriptError(f"{CANARY}"),))
    observer.refused(TranscriptError(f"{CANARY}"))
    broken = WorkFailedError("it failed.")
    broken.__cause__ = ValueError(f"{CANARY}")
    observer.failed(broken)
    observer.withdrawn(3, 1, "work-failed")
    for name in layout(PLAN, {m.name: 1 for m in PLAN.modalities}).owned("brca-1"):
        observer.updated(name, CANARY, 2)
        observer.weighed(name, CANARY)
        observer.trained(3, CANARY, {name: CANARY})
    observer.evaluated("mrna+image", CANARY, CANARY)
    observer.evaluated("mrna", CANARY, None)
    observer.near("mrna", CANARY)
    observer.spent(CANARY, 8.0)
    observer.sent("uploads", 10)
    observer.received("downloads", 10)
    observer.unreachable(CoordinatorUnreachableError("away."), 1.0)
    observer.unreachable(CoordinatorUnreachableError("away."), 2.0)
    observer.answered()
    observer.masked("updates", 4_000_000, 0.5)
    observer.masked("statistics", 8, 0.5)
    observer.ended(RUN, "finished")
    observer.stopped()


def test_everything_that_can_be_heard_is_heard() -> None:
    for kind in (NodeWatcher, LinkWatcher, Recorder):
        for name in (n for n in dir(kind) if not n.startswith("_")):
            assert getattr(NodeObserver, name) is not getattr(kind, name), f"{kind.__name__}.{name}"


def test_values_stay_on_the_local_page(shown: Shown) -> None:
    everything(shown.observer)
    shareable, local = shown.pages()
    assert str(CANARY) in local
    for channel in (shareable, shown.log.getvalue(), shown.path.read_text()):
        assert str(CANARY) not in channel
    assert '"left_out"' not in shown.log.getvalue()  # every field of every line is an allowed one
    assert "consilium_node_masked_words_per_second 2e+06" in shareable
    assert 'consilium_node_refusals_total{reason="k-min"} 1.0' in shareable


def test_the_audit_log_tells_what_happened_in_order(shown: Shown) -> None:
    everything(shown.observer)
    entries = shown.entries()
    assert [e["event"] for e in entries] == [
        *("node-started", "plan-refused", "plan-refused", "plan-accepted", "data-changed", "enrolled", "sits-out"),
        *("joined", "similar-cohort", "signed", "bad-share", "refused", "withdrawn", "run-ended", "node-stopped"),
    ]
    assert verify(shown.path).entries == len(entries)
    by_event = {str(e["event"]): e["fields"] for e in entries}
    assert by_event["withdrawn"] == {
        "plan": RUN.hex(),
        "run": PLAN.run,
        "round": 3,
        "attempt": 1,
        "reason": "work-failed",
    }
    assert by_event["sits-out"]["reason"] == "no-weight--12"  # type: ignore[index] # fields are a table


def test_a_refusal_by_the_coordinator_is_logged_with_its_code(shown: Shown) -> None:
    shown.observer.failed(CoordinatorRefusalError("out-of-phase", f"{CANARY}"))
    (line,) = map(json.loads, shown.log.getvalue().splitlines())
    assert (line["code"], line["reason"]) == ("refused-by-coordinator", "out-of-phase")


def test_an_absence_is_told_once(shown: Shown) -> None:
    for _ in range(3):
        shown.observer.unreachable(CoordinatorUnreachableError("away."), 1.0)
    shown.observer.answered()
    shown.observer.answered()
    events = [json.loads(line)["event"] for line in shown.log.getvalue().splitlines()]
    assert events == ["the coordinator does not answer", "the coordinator answers again"]
