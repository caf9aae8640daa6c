"""What Prometheus fetches from a coordinator and a node in the middle of a run and after it."""

from __future__ import annotations

import json
import math
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from coordinator.observe import RunObserver
from coordinator.records import Recorder as RunRecorder
from federation.plan import Subgroup, Subgroups
from institution_node.observe import NodeObserver
from monitoring import metrics as m
from monitoring.exposition import MetricsServer
from security.audit import AuditLog
from tests.small_federation import EVALUATION, SmallFederation, small_plan

AT = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS = 4
SEX = Subgroup(name="sex", column="sex", categories=("female", "male"))
PLAN = small_plan(
    7, rounds=ROUNDS, evaluation={**EVALUATION, "subgroups": Subgroups(by=(SEX,), min_patients=1, min_institutions=3)}
)
THREE = "mrna+image+clinical"
COMBINATIONS = ("mrna", THREE, "all")
SUBSETS = ("mrna", "image", "clinical", THREE)
# What a coordinator's other parts set: the server its version, certificate and bytes, the live run its speeds.
ELSEWHERE = {
    *(m.CONNECTIONS, m.FREE_DISK),
    *(m.INFO, m.HANDSHAKES, m.CERTIFICATE_EXPIRY, m.RECEIVED_BYTES, m.SENT_BYTES, m.UNMASKED_WORDS, m.FOLD_SECONDS),
}

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def fetch(server: MetricsServer) -> Page:
    """Every sample of a page: (name, sorted labels) to value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


class Ran:
    """A run with its coordinator's page and those of one node, fetched after it and once in the middle."""

    def __init__(self, folder: Path) -> None:
        coordinator = m.CoordinatorMetrics(CollectorRegistry())
        name = PLAN.roster[0]
        shareable, local = m.NodeShareableMetrics(CollectorRegistry()), m.NodeLocalMetrics(CollectorRegistry())

        def observer(institution: str) -> NodeObserver | None:
            if institution != name:
                return None
            made = NodeObserver(name, shareable, local, AuditLog(folder / "node-audit", AT))
            made.accepted(PLAN, b"\0" * 32)
            return made

        self.federation = federation = SmallFederation(PLAN, also=observer)
        recorder = RunRecorder(federation.coordinator.store, AuditLog(folder / "audit", AT), lambda: AT)
        watch = RunObserver(federation.run.key, PLAN, coordinator, recorder, lambda record: None)
        federation.coordinator.observer = federation.run._observer = watch
        federation.enrol()
        self.middle: Page = {}
        self.before: dict[str, npt.NDArray[np.float32]] = {}
        with (
            MetricsServer(coordinator, "127.0.0.1", 0) as one,
            MetricsServer(shareable, "127.0.0.1", 0) as two,
            MetricsServer(local, "127.0.0.1", 0) as three,
        ):

            def after() -> None:
                if federation.run.round == 2 and not self.middle:
                    self.middle = fetch(one)
                if federation.run.round == ROUNDS and not self.before:
                    self.before = self.weights()

            assert federation.run_to_end(after=after) == "finished"
            self.coordinator, self.shareable, self.local = fetch(one), fetch(two), fetch(three)

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The global model as it stands, by component."""
        run, found = self.federation.run, {}
        for name, digests in run.state.components.items():
            reader = run.content.open(digests.weights)
            found[name] = np.empty(reader.length // 4, np.float32)
            reader.read_into(0, found[name].data)
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("metrics"))


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [(m.ACCURACY, 0, 1), (m.BALANCED_ACCURACY, 0, 1), (m.MACRO_F1, 0, 1), (m.AUROC, 0, 1), (m.CALIBRATION_ERROR, 0, 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_scores_of_every_combination_are_shown(ran: Ran, metric: m.Metric, low: float, high: float) -> None:
    for combination in COMBINATIONS:
        assert low <= ran.coordinator[metric.name, (("combination", combination),)] <= high


def test_what_is_shown_is_what_the_round_committed(ran: Ran) -> None:
    record = json.loads(ran.federation.run.records()[-1])
    for combination in COMBINATIONS:
        for name, metric in (("accuracy", m.ACCURACY), ("auroc", m.AUROC), ("macro_f1", m.MACRO_F1)):
            shown = ran.coordinator[metric.name, (("combination", combination),)]
            assert shown == pytest.approx(record["metrics"][combination][name])
    for group in ("female", "male"):
        for name, metric in (("balanced_accuracy", m.SUBGROUP_BALANCED_ACCURACY), ("auroc", m.SUBGROUP_AUROC)):
            shown = ran.coordinator[metric.name, (("subgroup", f"sex: {group}"),)]
            assert shown == pytest.approx(record["subgroups"]["sex"][group][name])
    for subset, p in record["proximity"].items():
        assert ran.coordinator[m.MEAN_PROXIMITY.name, (("subset", subset),)] == pytest.approx(p)


def test_blending_figures_are_shown_by_subset(ran: Ran) -> None:
    page = ran.coordinator
    for subset in SUBSETS:
        label = (("subset", subset),)
        assert page[m.DOGR.name, label] >= 0
        assert page[m.BLENDING_SCORE.name, label] >= 0
        assert 0 <= page[m.MEAN_PROXIMITY.name, label] <= 1
        for part in m.PARTS:
            assert 0 < page[m.LOSS.name, (("part", part), ("subset", subset))] <= 5
    weights = [page[m.BLENDING_WEIGHT.name, (("subset", subset),)] for subset in SUBSETS]
    assert math.fsum(weights) == pytest.approx(1.0)


def test_the_size_of_each_component_s_mean_trajectory_is_shown(ran: Ran) -> None:
    now = ran.weights()
    assert now.keys() == ran.before.keys()
    for component, before in ran.before.items():  # FedAvg adds the mean trajectory as it is
        shown = ran.coordinator[m.UPDATE_NORM.name, (("component", component),)]
        assert shown == pytest.approx(float(np.linalg.norm(now[component] - before)), rel=1e-3)
        assert shown > 0


def test_the_run_is_shown_while_it_goes_on_and_at_its_end(ran: Ran) -> None:
    status = m.RUN_STATUS.name
    assert ran.middle[status, (("status", "running"),)] == 1
    assert ran.middle[m.CURRENT_ROUND.name, ()] == 2
    assert ran.coordinator[status, (("status", "running"),)] == 0
    assert ran.coordinator[status, (("status", "finished"),)] == 1
    assert ran.coordinator[m.ROUNDS_COMMITTED.name, ()] == ROUNDS + 1  # round 0 agrees on the features
    assert ran.coordinator[m.PLANNED_ROUNDS.name, ()] == ROUNDS
    assert ran.coordinator[m.REQUIRED.name, ()] == PLAN.secure_sum.threshold
    assert ran.coordinator[m.WAITING_FOR_ROOM.name, ()] == 0
    assert ran.coordinator[m.LAST_COMMIT.name, ()] >= ran.middle[m.LAST_COMMIT.name, ()] > 1.7e9
    for sum_name in ("updates", "statistics"):
        assert ran.coordinator[m.PARTICIPANTS.name, (("sum", sum_name),)] == 7
    for institution in PLAN.roster:
        assert ran.coordinator[m.PARTICIPATING.name, (("institution", institution),)] == 1
    for phase in ("keys", "uploads", "signatures", "openings"):
        assert ran.coordinator[f"{m.PHASE_SECONDS.name}_count", (("phase", phase),)] > 0


def test_all_that_a_coordinator_declares_is_on_its_page(ran: Ran) -> None:
    shown = {name for name, _ in ran.coordinator}
    for metric in m.DECLARED:
        if metric.side is m.Side.COORDINATOR and metric not in ELSEWHERE | {m.DROPOUTS, m.REFUSALS}:
            assert {metric.name, f"{metric.name}_count"} & shown, metric.name
    assert not any(name.startswith("consilium_node") for name in shown)


def test_a_nodes_own_figures_are_on_its_local_page_only(ran: Ran) -> None:
    local = ran.local
    for component in ("encoder/mrna", "encoder/image", f"classifier/{THREE}"):
        label = (("component", component),)
        assert local[m.NODE_UPDATE_NORM.name, label] > 0
        assert 0 < local[m.NODE_AGGREGATION_WEIGHT.name, label] < 1
        assert local[m.NODE_CLIPPED.name, label] >= 0
    for subset in SUBSETS:
        assert local[m.NODE_PROXIMITY.name, (("subset", subset),)] > 0
        assert local[m.NODE_BLENDING_WEIGHT.name, (("subset", subset),)] > 0
        for part in m.PARTS:
            assert local[m.NODE_LOSS.name, (("part", part), ("subset", subset))] > 0
    shareable = {metric.name for metric in m.DECLARED if metric.side is m.Side.NODE and metric.shareable}
    pages = {name for name, _ in ran.shareable}
    assert ran.shareable[m.NODE_CURRENT_ROUND.name, ()] == ROUNDS
    assert {name for name in pages if name.startswith("consilium")} <= shareable | {
        f"{n[:-6]}_created" for n in shareable
    }
    assert not {name for name, _ in local} & shareable
