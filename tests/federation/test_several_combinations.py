"""Whole runs whose institutions hold patients of several combinations: every opened sum is the plaintext one, a list of
one combination changes nothing, and what could single an institution's patients out stays shut."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consilium.v1 import service_pb2

from coordinator.status import institutions_of
from federation.names import modalities_of
from federation.plan import Plan, Subgroup, Subgroups
from federation.plan_subgroups import cohort_problems
from federation.statistics import count_encoding, decode
from institution_node.data import InstitutionData
from tests.coordinator.following import place
from tests.federation.plaintext_rounds import check_model
from tests.plans import with_combinations
from tests.small_federation import SmallFederation, finished, small_plan

FULL = "mrna+image+clinical"
LATTICE = ("mrna", "image", "clinical", "mrna+image", "mrna+clinical", "image+clinical", FULL)


def lacking(rounds: int = 2, several: int = 4, listed: tuple[str, ...] = LATTICE, **changes: Any) -> Plan:
    """Seven institutions: the first hold every combination that is listed, the last three mrna alone."""
    plan = small_plan(7, rounds=rounds, **changes)
    return with_combinations(plan, dict.fromkeys(plan.roster[:several], listed))


@cache
def ran() -> SmallFederation:
    return finished(lacking())


def patients_of(data: InstitutionData, rows: np.ndarray) -> Counter[str]:
    return Counter(data.combinations[k] if data.combinations else "mrna" for k in rows.tolist())


def test_the_published_model_is_the_plaintext_one() -> None:
    check_model(ran(), 2)
    assert set(ran().run.state.components) == {
        *(f"encoder/{m}" for m in modalities_of(FULL)),
        *(f"classifier/{s}" for s in LATTICE),
    }
    assert ran().withdrawals() == []


def test_every_component_is_weighted_by_the_patients_who_train_it() -> None:
    federation = ran()
    run, setup = federation.run, federation.run.state.setup
    made = run.cohorts.ownership
    noised: dict[str, dict[str, int]] = {}
    for name in federation.plan.roster:
        memory = federation.memory(name)
        noised[name] = dict(memory.noised_by_combination) or {"mrna": memory.noised_patients}
        assert sum(noised[name].values()) == memory.noised_patients
    totals: dict[str, int] = {}
    for component, c in run.cohorts.shared.items():
        totals[component] = sum(noised[i][k] for i in c.owners for k in made.trained_by(i, component))
        assert setup.patients[run.cohorts.name_of(component, c.owners)] == totals[component]
    for name in federation.plan.roster:
        for component, alpha in federation.recorded[name][2, "updates"].alphas.items():
            own = sum(noised[name][k] for k in made.trained_by(name, component))
            assert alpha == own / totals[component]


def test_the_features_are_of_those_who_have_them() -> None:
    """Without floors and noise: as many patients of a modality as there are, wherever they are."""
    federation = ran()
    sums = {s.name: s for s in federation.run.cohorts.setup_sums()}
    for part in sums["counts"].parts:
        total = np.zeros(part.length, np.uint64)
        expected = 0
        for name in part.contributors:
            total += federation.recorded[name][0, "counts"].words[part.name]
            rows = federation.works[name]._train_rows
            modality = part.name.removeprefix("features/")
            expected += sum(n for c, n in patients_of(federation.data[name], rows).items() if modality in c.split("+"))
        assert decode(total, count_encoding(len(part.contributors)))[0] == expected


def test_every_validation_patient_is_in_the_row_of_its_combination() -> None:
    federation = ran()
    record = json.loads(federation.run.records()[-1])
    held: Counter[str] = Counter()
    for name, work in federation.works.items():
        held += patients_of(federation.data[name], work._validation_rows)
    assert set(record["metrics"]) == {*LATTICE, "all"}
    assert {row: record["metrics"][row]["patients"] for row in LATTICE} == held
    assert record["metrics"]["all"]["patients"] == sum(held.values())


def test_rare_combinations_share_a_row() -> None:
    """Each patient once: those of combinations that fewer than k_min institutions list, and of no others."""
    roster = small_plan(7).roster
    listed: dict[str, tuple[str, ...]] = dict.fromkeys(roster[:4], ("mrna+image", FULL))
    listed[roster[0]] = listed[roster[1]] = ("mrna+image", "clinical", FULL)
    plan = with_combinations(small_plan(7, rounds=1, secure_sum={"k_min": 3}), listed)
    federation = SmallFederation(plan)  # its plan would not pass the check; what its rows are is another matter
    cohorts = federation.run.cohorts
    assert cohorts.metric_rows == {
        "mrna": frozenset(roster[4:]), "mrna+image": frozenset(roster[:4]), FULL: frozenset(roster[:4]),
    }  # fmt: skip
    assert cohorts.row_combinations("other", roster[0]) == ("clinical",)


def test_losses_are_the_mean_over_the_patients_who_have_the_subset() -> None:
    federation = ran()
    record = json.loads(federation.run.records()[-1])
    for subset, figures in record["blending"].items():
        told = {i: t for i, t in federation.told.items() if any(s == subset for s, _ in t.near)}
        assert len(told) == (7 if subset == "mrna" else 4)
        p = np.array([[x for s, x in t.near if s == subset][-1] for t in told.values()])
        v = np.array([[x for s, _, x in t.evaluated if s == subset][-1] for t in told.values()], float)
        assert figures["validation_loss"] == pytest.approx(float((p * v).sum() / p.sum()), abs=1e-9)


def test_a_list_of_one_combination_changes_no_byte() -> None:
    plain = small_plan(7, rounds=2)
    listed = with_combinations(plain, dict.fromkeys(plain.roster[:4], (FULL,)))
    one, other = finished(plain), finished(listed)
    assert {n: c.weights for n, c in one.run.state.components.items()} == {
        n: c.weights for n, c in other.run.state.components.items()
    }
    mine, theirs = (json.loads(f.run.records()[-1]) for f in (one, other))
    assert mine["blending"] == theirs["blending"]
    assert mine["confusion"] == theirs["confusion"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"heads": False}},
        {"proximity": {"kind": "size"}},
        {"proximity": {"kind": "inner"}},
        {"blending": {"kind": "local"}},
        {"blending": {"losses_from": "combination"}},
        {"secure_sum": {"half_words": True}},
        {"training": {"count_noise": 0.0}},
    ],
    ids=str,
)
def test_every_kind_of_run_takes_them(changes: dict[str, Any]) -> None:
    federation = finished(lacking(**changes))
    check_model(federation, 2)
    assert federation.withdrawals() == []


def test_a_step_is_the_mean_over_the_combinations_that_share_the_encoder() -> None:
    federation = finished(lacking(rounds=4))
    for name in federation.plan.roster[:4]:
        factors = federation.told[name].factors[-1]
        assert factors["classifier/mrna"] == 1.0  # of patients with mrna alone, as at an institution that has only them
        assert 0.0 < factors["encoder/mrna"] < 1.0
    assert federation.told[federation.plan.roster[6]].factors[-1] == {"encoder/mrna": 1.0, "classifier/mrna": 1.0}


# -- who would be singled out ---------------------------------------------------------------------------------------


def test_after_dropouts_numbers_that_would_be_one_institutions_stay_shut() -> None:
    """Four institutions list two combinations, three one. Two of the four vanish: Σ over those with mrna, less Σ over
    those with images, would be of two."""
    plan = lacking(1, 4, ("mrna+image+clinical", "mrna+clinical", "clinical"), secure_sum={"threshold": 5})
    federation = SmallFederation(plan)
    federation.enrol()
    gone = plan.roster[:2]

    def acts(name: str, directive: service_pb2.Directive) -> bool:
        return name not in gone

    federation.run_to_end(acts, patience=20)
    setup = federation.run.state.setup
    # Below the floor of three is everything but mrna, of whom seven less two are there.
    assert setup is None or set(setup.patients) == {"encoder/mrna"}


def test_a_part_whose_pieces_would_single_out_two_is_never_opened() -> None:
    """A plan that no check has seen, as a lying coordinator might hope for: institutions refuse the second sum."""
    plan = lacking(1, 2, ("mrna+image", FULL), secure_sum={"threshold": 5})
    federation = finished(plan)
    setup = federation.run.state.setup
    assert setup is not None
    # Of mrna, image and clinical at the four, two institutions make all the difference: one of the numbers is told.
    cohorts = federation.run.cohorts
    opened = [cohorts.counted[name] for name in setup.patients]
    everybody = [pieces for name, pieces in cohorts.counted.items()]
    assert len(opened) < len(everybody)
    assert federation.withdrawals() == []


def test_subgroups_of_everybody_beside_rows_without_the_rare_are_refused() -> None:
    """Two institutions' patients of a combination that no row shows would be everybody less the rows."""
    by = (Subgroup(name="sex", column="sex", categories=("f", "m")),)
    counted: dict[str, Any] = {"evaluation": {"subgroups": Subgroups(by=by, min_institutions=3)}}
    federation = finished(lacking(1, **counted))
    record = json.loads(federation.run.records()[-1])
    held = sum(len(work._validation_rows) for work in federation.works.values())
    assert record["metrics"]["all"]["patients"] == held
    alone = lacking(1, **counted)
    roster = alone.roster
    rare = with_combinations(alone, dict.fromkeys(roster[:3], (*LATTICE[:-2], FULL)) | {roster[3]: LATTICE})
    told = [p for p in cohort_problems(rare) if "would tell of fewer than 3" in p.message]
    assert told, "image+clinical is listed by one institution, and so in no row"


def test_the_status_tells_the_combinations_that_the_plan_lists() -> None:
    shown = institutions_of(ran().run)
    assert [tuple(i.combinations) for i in shown] == [LATTICE] * 4 + [()] * 3  # nothing where there is one
    assert [i.combination for i in shown] == [FULL] * 4 + ["mrna"] * 3


# -- restarts ---------------------------------------------------------------------------------------------------------

RESTARTS = [(0, "weights", "sign_list"), (1, "updates", "contribute"), (1, "statistics", "open_shares")]


@pytest.mark.parametrize("at", RESTARTS, ids=lambda at: "-".join(map(str, at)))
def test_a_killed_node_keeps_the_numbers_that_it_drew_for_each_combination(
    at: tuple[int, str, str], tmp_path: Path
) -> None:
    """Drawn a second time, two draws of the same patients would average the noise out, and α would not add up."""
    plan = lacking(training={"count_noise": 8.0})
    federation = SmallFederation(plan, folder=tmp_path)
    federation.enrol()
    name = plan.roster[0]
    before: list[dict[str, int]] = []

    def acts(who: str, directive: service_pb2.Directive) -> bool:
        if who == name and not before and place(federation, directive) == at:
            before.append(dict(federation.memory(name).noised_by_combination))
            federation.start(name)
            return False
        return True

    assert federation.run_to_end(acts) == "finished"
    assert set(before[0]) == set(LATTICE)
    memory = federation.memory(name)
    assert dict(memory.noised_by_combination) == before[0]
    assert memory.noised_patients == sum(before[0].values())
    check_model(federation, 2)
    alphas = federation.recorded[name][2, "updates"].alphas
    setup = federation.run.state.setup
    for component, alpha in alphas.items():
        own = sum(before[0][c] for c in federation.run.cohorts.ownership.trained_by(name, component))
        cohort = federation.run.cohorts.name_of(component, federation.run.cohorts.shared[component].owners)
        assert alpha == min(1.0, own / setup.patients[cohort])
