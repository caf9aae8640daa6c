"""What bad input gets at an institution: a code and no value to the coordinator, one more refusal in the metrics of
both sides, nothing kept; and once it is mended, or for everybody else, the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from coordinator.observe import RunObserver
from coordinator.records import Recorder as RunRecorder
from federation.plan import digest
from institution_node.data import load_institution_data
from institution_node.link import CoordinatorIdentityError
from institution_node.node import RECHECK_SECONDS, Assignment, Node
from institution_node.observe import NodeObserver
from institution_node.policy import NodeIdentity, Policy
from institution_node.session import RoundWork
from institution_node.trainer import Evaluation, Trainer, Trajectory, trainer_for
from monitoring.metrics import CoordinatorMetrics, NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.privacy.randomness import Randomness, SystemRandomness
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from tests.federation.plaintext_rounds import check_model
from tests.institution_node.scripted import TinyWork
from tests.institution_node.test_cli import write_tables
from tests.plans import example_identity
from tests.small_federation import DictMemory, SmallFederation, small_plan

AT = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = small_plan()
BYTES = PLAN.to_bytes()
RUN = digest(BYTES)
NAME = PLAN.roster[0]
ACCEPTING = Policy(accepted_plans=(RUN.hex(),), data_is_public=True)


class Impostor(MemoryLink):
    """The coordinator's address, where for a while somebody else answers."""

    foreign = False

    def invitation(self) -> bytes:
        if self.foreign:
            raise CoordinatorIdentityError("the certificate that answers is not the coordinator's.", remedy="Check it.")
        return super().invitation()


class Hospital:
    """A node with its tables as files, its metrics, and the coordinator's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tables(folder / "data", PLAN)
        self.coordinator = MemoryCoordinator(BYTES)
        self.metrics = CoordinatorMetrics(CollectorRegistry())
        recorder = RunRecorder(self.coordinator.store, AuditLog(folder / "coordinator-audit", AT), lambda: AT)
        self.coordinator.observer = self.coordinator.run._observer = RunObserver(
            RUN.hex(), PLAN, self.metrics, recorder, lambda record: None
        )
        self.shareable, local = NodeShareableMetrics(CollectorRegistry()), NodeLocalMetrics(CollectorRegistry())
        self.link, self.memory, self.now = Impostor(self.coordinator, NAME), DictMemory(), 0.0
        tables = {name: folder / "data" / f"{name}.csv" for name in PLAN.modality_order}
        entry = PLAN.institution(NAME)

        @contextmanager
        def work(assignment: Assignment) -> Iterator[RoundWork]:
            yield TinyWork()

        self.node = Node(
            self.link,
            NodeIdentity(PLAN.federation, NAME, entry.key, entry.modalities),
            example_identity(0),
            lambda: ACCEPTING,
            self.memory,
            SystemRandomness(),
            lambda plan: load_institution_data(plan, NAME, tables, folder / "data" / "labels.csv", "case_id"),
            work,
            watcher=NodeObserver(NAME, self.shareable, local, AuditLog(folder / "node-audit", AT)),
            clock=lambda: self.now,
        )

    def file(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.csv"

    def counted(self, code: str) -> tuple[float, float]:
        """Refusals with a code, on the pages of the node and of the coordinator."""
        told = {"reason": code}
        node = self.shareable.registry.get_sample_value("consilium_node_refusals_total", told)
        other = self.metrics.registry.get_sample_value("consilium_refusals_total", told)
        return node or 0.0, other or 0.0


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def first_label_of_everybody(text: str) -> str:
    head, *rows = text.splitlines()
    return "\n".join([head, *(f"{row.partition(',')[0]},1" for row in rows)]) + "\n"


Edit = Callable[[str], str]
BAD: dict[str, tuple[str, Edit, str]] = {
    "no ids": ("mrna", lambda t: t.replace("case_id", "number", 1), "data-column"),
    "a patient without an id": ("mrna", lambda t: t + ",1,2,3,4\n", "data-patient-id"),
    "a patient twice": ("image", lambda t: t + t.splitlines()[1] + "\n", "data-patient-id"),
    "a stage that the plan does not know": ("labels", lambda t: t.replace(",1", ",IVc", 1), "data-label"),
    "not a number": ("mrna", lambda t: t + "new,1,2,3,high\n", "data-value"),
    "one class": ("labels", first_label_of_everybody, "data-one-class"),
    "no patients": ("labels", lambda t: t.replace("brca-1-patient", "other"), "data-no-patient"),
    "no rows": ("clinical", lambda t: t.splitlines()[0] + "\n", "data-file"),
}


@pytest.mark.parametrize("case", BAD)
def test_tables_that_cannot_be_used_are_refused_counted_and_joined_once_mended(hospital: Hospital, case: str) -> None:
    name, edit, code = BAD[case]
    good = hospital.file(name).read_text()
    hospital.file(name).write_text(edit(good))
    hospital.node.step(0)
    assert hospital.counted(code) == (1, 1)
    assert hospital.node.run is None
    assert hospital.memory.kept == {}
    enrolled = {e.institution: e.reason for e in hospital.coordinator.store.enrolments(RUN.hex())}
    assert enrolled == {NAME: code}  # the code, and nothing of the table
    hospital.file(name).write_text(good)
    hospital.now += RECHECK_SECONDS
    hospital.node.step(0)
    assert hospital.node.run == RUN
    assert hospital.counted(code) == (1, 1)


def test_somebody_else_at_the_coordinators_address_is_counted_and_left_alone(hospital: Hospital) -> None:
    hospital.link.foreign = True
    for _ in range(2):
        assert not hospital.node.step(0)
    assert hospital.counted("coordinator-identity") == (2, 0)
    assert hospital.node.run is None
    hospital.link.foreign = False
    hospital.node.step(0)
    assert hospital.node.run == RUN


# -- an update that is no number -----------------------------------------------------------------------------------


Float32 = npt.NDArray[np.float32]
Damage = Callable[[dict[str, Float32]], None]


class Broken:
    """A trainer one of whose numbers comes out wrong in round `when`, as from a faulty device."""

    def __init__(self, inner: Trainer, damage: Damage, when: int) -> None:
        self._inner, self._damage, self._left = inner, damage, when

    @property
    def patients(self) -> int:
        return self._inner.patients

    def train(
        self,
        weights: Mapping[str, Float32],
        step_factors: Mapping[str, float],
        learning_rate: float,
        rng: Randomness,
        held: frozenset[str] = frozenset(),
    ) -> Trajectory[Any]:
        made = self._inner.train(weights, step_factors, learning_rate, rng, held)
        self._left -= 1
        if self._left != 0:
            return made
        updates: dict[str, Any] = dict(made.updates)
        self._damage(updates)
        return Trajectory(updates, made.mean_loss, made.steps)

    def evaluate(self, weights: Mapping[str, Float32]) -> Evaluation:
        return self._inner.evaluate(weights)


def with_value(value: float) -> Damage:
    def change(updates: dict[str, Float32]) -> None:
        updates["encoder/mrna"][3] = value

    return change


def shorter(updates: dict[str, Float32]) -> None:
    updates["encoder/mrna"] = updates["encoder/mrna"][:-1]


def another_component(updates: dict[str, Float32]) -> None:
    updates["encoder/genome"] = updates.pop("encoder/mrna")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        pytest.param(with_value(np.nan), "non-finite-update", id="nan"),
        pytest.param(with_value(np.inf), "non-finite-update", id="infinite"),
        pytest.param(shorter, "weights", id="wrong shape"),
        pytest.param(another_component, "weights", id="unknown component"),
    ],
)
def test_an_update_that_is_none_costs_its_institution_that_round_and_nobody_else(
    tmp_path: Path, damage: Damage, code: str
) -> None:
    plan = small_plan(7, rounds=3, secure_sum={"similar_statistics": "log"})
    federation = SmallFederation(plan)
    metrics = CoordinatorMetrics(CollectorRegistry())
    recorder = RunRecorder(federation.coordinator.store, AuditLog(tmp_path / "audit", AT), lambda: AT)
    watch = RunObserver(federation.run.key, plan, metrics, recorder, lambda record: None)
    federation.coordinator.observer = federation.run._observer = watch
    victim = plan.roster[1]

    def broken(*arguments: Any, **named: Any) -> Trainer:
        return Broken(trainer_for(*arguments, **named), damage, when=2)

    federation.works[victim]._make_trainer = broken
    federation.enrol()
    assert federation.run_to_end() == "finished"
    assert federation.withdrawals() == [(victim, 2, code)]
    assert metrics.registry.get_sample_value("consilium_refusals_total", {"reason": code}) == 1
    records = [json.loads(record) for record in federation.run.records()]
    assert [victim in r["sums"]["updates"]["alive"] for r in records[1:]] == [True, False, True]
    assert all(np.isfinite(federation.weights(name)).all() for name in federation.run.state.components)
    check_model(federation, 3)  # the plaintext sum of the others, bit for bit
