"""Subgroups counted by secure sum in whole runs: equal to the pooled counts, never of too few, and paid for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from coordinator.export import _subgroups_at
from coordinator.observe import RunObserver
from coordinator.records import Recorder as RunRecorder
from coordinator.results import RoundStatistics
from coordinator.scalars import scalars
from federation import statistics, subgroups
from federation.blending import BlendingFigures, BlendingState
from federation.evaluation import confusion_counts
from federation.plan import Plan, Subgroup, Subgroups
from federation.rounds import Cohorts
from institution_node.statistics import encode_subgroups
from monitoring.metrics import SUBGROUP_AUROC, SUBGROUP_BALANCED_ACCURACY, CoordinatorMetrics
from security.audit import AuditLog
from security.secure_sum.errors import TranscriptError
from tests.institution_node.lied_to import edited, refusal, until
from tests.small_federation import SmallFederation, finished, small_plan

SEX = Subgroup(name="sex", column="sex", categories=("female", "male"))
AGE = Subgroup(name="age", column="age", cuts=(50.0, 65.0))
ROUNDS = 3
COUNTS = {"bins": 5}
FEMALE, MALE, OTHER = 0, 1, 2
AT = datetime(2026, 1, 1, tzinfo=UTC)


def plan_with(*by: Subgroup, institutions: int = 7, rounds: int = ROUNDS, **changes: Any) -> Plan:
    settings = {"every": 2, "min_patients": 2} | changes.pop("settings", {})
    counted = Subgroups(by=by, **settings)
    return small_plan(institutions, rounds=rounds, evaluation={**COUNTS, "subgroups": counted}, **changes)


def drawn(federation: SmallFederation, attribute: str, groups: dict[str, npt.NDArray[np.int64] | int]) -> None:
    """Gives institutions other groups, and restarts them."""
    for name, places in groups.items():
        data = federation.data[name]
        given = np.full(len(data), places) if isinstance(places, int) else places
        federation.data[name] = data.with_subgroups({**data.subgroups, attribute: given})
        federation.start(name)


def run(federation: SmallFederation) -> list[dict[str, Any]]:
    federation.enrol()
    assert federation.run_to_end() == "finished"
    return [json.loads(record) for record in federation.run.records()]


def counts(federation: SmallFederation, name: str, attribute: str) -> npt.NDArray[np.int64]:
    """An institution's validation patients by group."""
    rows = federation.works[name]._validation_rows
    size = len(subgroups.groups_of(subgroups.attribute_of(federation.plan, attribute)))
    return np.bincount(federation.data[name].subgroups[attribute][rows], minlength=size)


def words_of(federation: SmallFederation, name: str, round_: int, part: str) -> npt.NDArray[np.int64]:
    """What an institution put into the sum, as counts: one row a group, its confusion matrix first."""
    kept = federation.recorded[name][round_, "statistics"].words[part]
    how = subgroups.encoding(len(federation.plan.roster))
    return np.rint(statistics.decode(kept, how)).astype(np.int64).reshape(3, -1)


@pytest.fixture(scope="module")
def ran() -> SmallFederation:
    return finished(plan_with(SEX, AGE))


# -- what is told ----------------------------------------------------------------------------------------------------


def oracle(federation: SmallFederation, attribute: str) -> dict[int, npt.NDArray[np.int64]]:
    """Group to pooled confusion matrix, by who may count whom: floors of 2 patients and 3 institutions, in clear."""
    names = federation.plan.roster
    told: dict[str, list[int]] = {}
    for name in names:
        n = counts(federation, name, attribute).tolist()
        small = [k for k in range(len(n) - 1) if 0 < n[k] < 2]
        while 0 < n[-1] + sum(n[k] for k in small) < 2:
            rest = [k for k in range(len(n) - 1) if n[k] and k not in small]
            small.append(min(rest, key=lambda k: (n[k], -k)))
        told[name] = small
    size = len(subgroups.groups_of(subgroups.attribute_of(federation.plan, attribute)))
    holding = {
        k: [i for i in names if counts(federation, i, attribute)[k] and k not in told[i]] for k in range(size - 1)
    }
    assert all(len(holding[k]) >= 3 for k in range(size - 1))  # on these patients nothing closes
    pooled = {k: np.zeros((2, 2), np.int64) for k in range(size)}
    for name in names:
        work = federation.works[name]
        evaluation = work.statistics.trainer.evaluate(work.statistics.weights())
        places = federation.data[name].subgroups[attribute][work._validation_rows]
        for k in range(size):
            there = np.isin(places, [k, *(told[name] if k == size - 1 else [])])
            there &= (k == size - 1) | ~np.isin(places, told[name])
            pooled[k] += confusion_counts(evaluation.labels[there], evaluation.probabilities[there])
    return pooled


@pytest.mark.parametrize("attribute", ["sex", "age"])
def test_the_opened_counts_are_the_pooled_ones(ran: SmallFederation, attribute: str) -> None:
    record = json.loads(ran.run.records()[-1])
    found = record["subgroups"][attribute]
    groups = subgroups.groups_of(subgroups.attribute_of(ran.plan, attribute))
    assert list(found) == sorted(groups) or tuple(found) == groups
    for k, pooled in oracle(ran, attribute).items():
        told = found[groups[k]]
        if pooled.sum() < 6:
            assert told is None
            continue
        assert told["confusion"] == pooled.tolist()
        assert told["patients"] == pooled.sum()
        assert told["accuracy"] == pytest.approx(np.trace(pooled) / pooled.sum())
        assert 0 <= told["auroc"] <= 1


def test_they_are_counted_in_their_rounds_only(ran: SmallFederation) -> None:
    records = [json.loads(record) for record in ran.run.records()]
    assert [r["round"] for r in records if "subgroups" in r] == [1, 3]
    assert not any("subgroups/sex" in kept.words for (n, _), kept in ran.recorded["brca-1"].items() if n == 2)


def test_they_are_among_the_figures_that_go_to_files(ran: SmallFederation) -> None:
    record = json.loads(ran.run.records()[-1])
    found = scalars(record)
    told = record["subgroups"]["sex"]["female"]
    assert found["subgroups/sex/female/auroc"] == told["auroc"]
    assert found["subgroups/sex/female/patients"] == told["patients"]
    assert not any("confusion" in name for name in found)


def test_prometheus_shows_them_under_the_plans_names(ran: SmallFederation, tmp_path: Path) -> None:
    metrics = CoordinatorMetrics(CollectorRegistry())
    recorder = RunRecorder(ran.coordinator.store, AuditLog(tmp_path / "audit", AT), lambda: AT)
    observer = RunObserver(ran.run.key, ran.plan, metrics, recorder, lambda record: None)
    told = subgroups.figures(ran.plan, SEX, np.full(subgroups.length(ran.plan, SEX), 9.0))
    observer._statistics(
        RoundStatistics(BlendingState(), BlendingFigures({}, None), {}, {}, {}, {}, {}, subgroups={"sex": told})
    )
    page = generate_latest(metrics.registry).decode()
    assert f'{SUBGROUP_BALANCED_ACCURACY.name}{{subgroup="sex: female"}} 0.5' in page
    assert f'{SUBGROUP_AUROC.name}{{subgroup="sex: other"}} 0.5' in page


def test_the_model_card_has_those_of_the_last_count_before_its_round(ran: SmallFederation) -> None:
    records = ran.run.records()
    by_round = {json.loads(r)["round"]: json.loads(r).get("subgroups") for r in records}
    for wanted, counted in ((1, 1), (2, 1), (3, 3)):
        number, found = _subgroups_at(wanted, records)
        assert number == counted
        assert found == by_round[counted]
    assert _subgroups_at(0, records) == (0, {})


# -- attacks ---------------------------------------------------------------------------------------------------------


def test_all_less_the_groups_tells_nobody(ran: SmallFederation) -> None:
    """Every patient is in one group of what its institution sends: the metrics less the groups is nobody."""
    for name in ran.plan.roster:
        for round_ in (1, 3):
            kept = ran.recorded[name][round_, "statistics"].words
            row = next(part for part in kept if part.startswith("metrics/"))
            members = Cohorts(ran.plan).metric_rows[row.removeprefix("metrics/")]
            whole = np.rint(statistics.decode(kept[row], statistics.count_encoding(len(members))))[:4].astype(np.int64)
            groups = words_of(ran, name, round_, "subgroups/sex")[:, :4]
            assert groups.sum(axis=0).tolist() == whole.tolist()


def test_a_small_group_is_counted_in_other_at_its_own_institution() -> None:
    """Two men at one institution, of whom a plan of 3 must not hear: nor of anybody's less than three."""
    federation = SmallFederation(plan_with(SEX, rounds=1, settings={"min_patients": 3}))
    name = federation.plan.roster[0]
    rows = federation.works[name]._validation_rows
    places = np.zeros(len(federation.data[name]), np.int64)
    places[rows[:2]] = MALE
    drawn(federation, "sex", {name: places})
    run(federation)
    sent = words_of(federation, name, 1, "subgroups/sex")[:, :4].sum(axis=1)
    assert sent[MALE] == 0
    assert sent[FEMALE] == 0  # the only other group goes with them: two in `other` would be as few
    assert sent[OTHER] == len(rows)
    for each in federation.plan.roster:
        told = words_of(federation, each, 1, "subgroups/sex")[:, :4].sum(axis=1)
        assert all(n == 0 or n >= 3 for n in told), each


def test_a_group_that_two_institutions_have_is_told_to_nobody() -> None:
    """All men are at two of seven institutions: neither their figures open, nor the women's, since all less the women
    would be the men."""
    federation = SmallFederation(plan_with(SEX, rounds=1))
    roster = federation.plan.roster
    drawn(federation, "sex", {name: MALE if name in roster[:2] else FEMALE for name in roster})
    records = run(federation)
    setup = federation.run.state.setup
    assert setup.groups["sex"] == (5, 2, 0)
    assert "subgroups" not in records[-1]
    assert not any("subgroups/sex" in federation.recorded[n][1, "statistics"].words for n in roster)


def test_a_third_group_of_two_institutions_is_merged_into_one_that_more_have() -> None:
    federation = SmallFederation(plan_with(AGE, rounds=1))
    roster = federation.plan.roster
    rng = np.random.default_rng(1)
    draw = {n: rng.integers(2, size=len(federation.data[n])) for n in roster}
    draw[roster[0]][:] = draw[roster[1]][:] = 2  # 65 and over: nowhere else
    drawn(federation, "age", dict(draw))
    records = run(federation)
    found = records[-1]["subgroups"]["age"]
    assert [group for group, told in found.items() if told is not None] in (
        ["under 50", "other"],
        ["other", "under 50"],
    )
    assert found["65 and over"] is None
    assert found["50 to 65"] is None


def test_counts_over_another_cohort_never_open() -> None:
    """The same patients in every round: over all less one that dropped out, the difference would be that one's."""
    plan = plan_with(SEX, rounds=4, settings={"every": 1}, secure_sum={"similar_statistics": "log"})
    federation = SmallFederation(plan)
    federation.enrol()
    gone = plan.roster[0]  # of four with its combination: the others' rows would still be far enough apart
    status = federation.run_to_end(lambda name, directive: name != gone or federation.run.round < 2)
    assert status == "finished"
    told = {json.loads(r)["round"]: "subgroups" in json.loads(r) for r in federation.run.records()}
    assert told == {0: False, 1: True, 2: False, 3: False, 4: False}


def test_groups_that_there_cannot_be_are_refused() -> None:
    """A coordinator that says of a group what cannot be, whatever this institution's patients are."""
    for lie in ((7, 7), (8, 7, 7), (7, 7, 7, 7)):
        federation = SmallFederation(plan_with(SEX))
        federation.enrol()
        name = federation.plan.roster[2]
        directive = until(federation, 1, "make_keys", name)

        def told(start: round_pb2.RoundStart, lie: tuple[int, ...] = lie) -> None:
            del start.setup.groups["sex"].holders[:]
            start.setup.groups["sex"].holders.extend(lie)

        error = refusal(federation, name, edited(directive, told))
        assert isinstance(error, TranscriptError), lie


def test_other_groups_than_those_of_the_first_round_are_refused() -> None:
    """Closed in round 1 and open in round 2: who signed for the one is not told the other."""
    federation = SmallFederation(plan_with(SEX))
    federation.enrol()
    name = federation.plan.roster[2]
    directive: pb.Directive = until(federation, 2, "make_keys", name)

    def told(start: round_pb2.RoundStart) -> None:
        start.setup.groups["sex"].holders[0] -= 1

    assert isinstance(refusal(federation, name, edited(directive, told)), TranscriptError)


# -- differential privacy --------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(0, 2**32 - 1), st.sampled_from([0, 7]))
def test_a_patient_more_moves_the_counts_by_no_more_than_is_charged(n: int, seed: int, bins: int) -> None:
    plan = small_plan(7, evaluation={**COUNTS, "subgroups": Subgroups(by=(AGE,), bins=bins)})
    rng = np.random.default_rng(seed)
    chances = rng.random(n + 1)
    p, labels, places = np.stack([1 - chances, chances], 1), rng.integers(2, size=n + 1), rng.integers(4, size=n + 1)
    more = encode_subgroups(plan, "age", places, labels, p, 7)
    less = encode_subgroups(plan, "age", places[:-1], labels[:-1], p[:-1], 7)
    step = statistics.decode(more.words, more.encoding) - statistics.decode(less.words, less.encoding)
    assert np.linalg.norm(step) <= more.sensitivity + 1e-9
    assert more.sensitivity == less.sensitivity


def test_under_differential_privacy_they_are_noised_and_charged(tmp_path: Path) -> None:
    """No floor decides by one patient who is counted where; and nobody is asked in round 0."""
    plan = plan_with(
        SEX,
        rounds=2,
        settings={"every": 1, "min_patients": 30},
        differential_privacy={"enabled": True, "epsilon": 1000.0},
        training={"local_steps": 1, "batch_size": 8, "learning_rate": 0.01, "class_weights": "none"},
    )
    federation = finished(plan, folder=tmp_path)
    for name in plan.roster:
        kept = federation.recorded[name]
        assert not any(part.startswith("subgroups/") for part in kept[0, "weights"].words)
        how = subgroups.encoding(len(plan.roster))
        exact = counts(federation, name, "sex")
        sent = statistics.decode(kept[1, "statistics"].words["subgroups/sex"], how).reshape(3, -1)[:, :4].sum(axis=1)
        assert np.abs(sent - exact).max() > 0.01
        charged = [c.round for c in federation.ledgers[name].charges if c.purpose == "subgroups/sex"]
        assert charged == [1, 2]


# -- encrypted sums --------------------------------------------------------------------------------------------------


def test_encrypted_they_are_the_same_to_the_patient(ran: SmallFederation) -> None:
    encrypted = {"ckks": ("weights", "statistics"), "coordinator_colludes": False, "ckks_max_bytes": 20_000_000}
    other = finished(plan_with(SEX, AGE, secure_sum=encrypted))
    for masked, here in zip(ran.run.records(), other.run.records(), strict=True):
        assert json.loads(here).get("subgroups") == json.loads(masked).get("subgroups")
