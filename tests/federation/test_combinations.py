"""Institutions whose patients come in several combinations: owners, numbers of patients, and which plans may say so."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import names
from federation.layout import layout
from federation.plan import Plan, PlanError
from federation.plan_check import check, find_problems
from federation.plan_describe import describe
from federation.plan_problems import path_text
from federation.rounds import OTHER, Cohorts
from tests.plans import example_plan, with_combinations

ALL = ("mrna", "image", "clinical")
FULL = "mrna+image+clinical"
LATTICE = ("mrna", "image", "clinical", "mrna+image", "mrna+clinical", "image+clinical", FULL)
WIDTHS = dict.fromkeys(ALL, 3)
TRI = ("brca-1", "lusc-1", "lihc-1")  # METHOD.md's nine: who holds all three


def nine(**listed: tuple[str, ...]) -> Plan:
    return with_combinations(example_plan(), {name.replace("_", "-"): held for name, held in listed.items()})


def everywhere(listed: tuple[str, ...], **changes: object) -> Plan:
    plan = example_plan(7, **changes)
    roster = tuple(i.model_copy(update={"modalities": ALL, "combinations": listed}) for i in plan.institutions)
    return plan.model_copy(update={"institutions": roster})


def test_a_plan_without_lists_has_the_bytes_that_it_had() -> None:
    """Field 4 of an institution is not written: digests that hospitals accepted stay what they are."""
    plan = example_plan()
    read = Plan.from_bytes(plan.to_bytes())
    assert read == plan
    assert all(i.combinations == () for i in read.institutions)
    listed = with_combinations(plan, {"brca-1": (FULL,)})
    assert len(listed.to_bytes()) > len(plan.to_bytes())
    assert Plan.from_bytes(listed.to_bytes()) == listed
    assert layout(listed, WIDTHS) == layout(plan, WIDTHS)
    assert Cohorts(listed).setup_sums() == Cohorts(plan).setup_sums()


def test_owners_are_who_lists_a_combination_and_who_holds_a_modality() -> None:
    plan = nine(**{name.replace("-", "_"): LATTICE for name in TRI})
    check(plan)
    made = layout(plan, WIDTHS)
    assert made.components["classifier/mrna+image"].owners == ("brca-1", "brca-2", "lusc-1", "lihc-1")
    assert made.components["classifier/mrna+image"].shared  # no more the single owner's own
    assert made.components["encoder/image"].owners == ("brca-1", "brca-2", "lusc-1", "lusc-2", "lusc-3", "lihc-1")
    assert made.subsets_of("brca-1") == LATTICE
    assert made.subsets_of("brca-2") == ("mrna", "image", "mrna+image")
    assert made.subsets_of("brca-3") == ("mrna",)
    assert made.trained_by("brca-1", "encoder/mrna") == ("mrna", "mrna+image", "mrna+clinical", FULL)
    assert made.trained_by("brca-1", "classifier/mrna+image") == ("mrna+image", FULL)
    assert made.trained_by("brca-2", "classifier/mrna") == ("mrna+image",)


def test_without_heads_a_classifier_is_its_own_patients_alone() -> None:
    plan = everywhere(LATTICE, model={"heads": False})
    check(plan)
    made = layout(plan, WIDTHS)
    assert made.trained_by("brca-1", "classifier/mrna+image") == ("mrna+image",)
    assert made.trained_by("brca-1", "classifier/mrna") == ("mrna",)
    assert made.trained_by("brca-1", "encoder/mrna") == ("mrna", "mrna+image", "mrna+clinical", FULL)


def test_each_number_of_patients_is_summed_once() -> None:
    cohorts = Cohorts(everywhere(LATTICE))
    assert len(cohorts.counted) == len(LATTICE)  # of a modality's encoder and its head they are the same
    assert set(cohorts.patients.values()) == {frozenset(cohorts.plan.roster)}
    for name, component in cohorts.shared.items():
        cohort = cohorts.name_of(name, component.owners)
        assert cohort is not None
        held = {piece.partition("/")[2] for piece in cohorts.counted[cohort]}
        assert held == set(cohorts.ownership.trained_by("brca-1", name))


def test_every_patient_is_counted_in_one_row_of_the_metrics() -> None:
    listed = nine(**{name.replace("-", "_"): (FULL, "image+clinical", "mrna") for name in TRI})
    cohorts = Cohorts(listed)
    assert cohorts.metric_rows["mrna"] == {*TRI, "brca-3"}
    assert cohorts.metric_rows["image+clinical"] == {*TRI, "lusc-2"}
    assert cohorts.metric_rows[OTHER] == {"brca-2", "lihc-2", "lusc-3", "lihc-3"}
    for institution in listed.roster:
        rows = [row for row, members in cohorts.metric_rows.items() if institution in members]
        counted = [c for row in rows for c in cohorts.row_combinations(row, institution)]
        assert sorted(counted) == sorted(listed.combinations(institution))


WRONG = {
    "another modality": (("mrna+image", "clinical"), ["institutions[1].combinations[1]"]),
    "another order": (("image+mrna",), ["institutions[1].combinations[0]"]),
    "twice": (("mrna+image", "mrna+image"), ["institutions[1].combinations[1]"]),
    "nobody has one": (("mrna",), ["institutions[1].combinations"]),
    "no name": (("mrna+image", ""), ["institutions[1].combinations[1]"]),
    "a modality twice": (("mrna+mrna+image",), ["institutions[1].combinations[0]"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_list_that_is_none_is_refused(case: str) -> None:
    listed, paths = WRONG[case]
    problems = find_problems(nine(brca_2=listed))
    assert [path_text(p.path) for p in problems] == paths
    assert all(p.remedy for p in problems)


def test_two_institutions_alone_with_their_lists_are_refused() -> None:
    """Both modalities' numbers over the same holders differ by the patients of those two: Σ over five less Σ over
    five."""
    alone = everywhere(("mrna+image", FULL))
    roster = tuple(i if k < 2 else i.model_copy(update={"combinations": ()}) for k, i in enumerate(alone.institutions))
    with pytest.raises(PlanError, match="how many patients of some combination 2 institutions have") as error:
        check(alone.model_copy(update={"institutions": roster}))
    assert "at least k_min = 3 institutions" in error.value.remedy


def test_a_combination_that_one_institution_alone_has_shows_where_it_can_be_subtracted() -> None:
    """Patients with mrna, less those with mrna and more, are those with mrna alone: here one institution's."""
    rest = ("mrna+image", "mrna+clinical", "image+clinical", FULL)
    plan = everywhere(rest)
    check(plan)
    roster = list(plan.institutions)
    roster[0] = roster[0].model_copy(update={"combinations": (*rest, "mrna")})
    with pytest.raises(PlanError, match="1 institutions"):
        check(plan.model_copy(update={"institutions": tuple(roster)}))


SUBSETS = list(chain.from_iterable(combinations(ALL, k) for k in (1, 2, 3)))


def singled_out(counted: list[frozenset[str]], k_min: int) -> bool:
    """By the definition, on the numbers: without some k_min − 1 institutions the sums' matrix has a smaller rank."""
    pieces = sorted(frozenset().union(*counted))
    matrix = np.array([[piece in row for piece in pieces] for row in counted], np.float64)
    owners = np.array([piece.partition("/")[0] for piece in pieces])
    rank = np.linalg.matrix_rank(matrix)
    everybody = sorted(set(owners))
    return any(
        np.linalg.matrix_rank(matrix[:, ~np.isin(owners, few)]) < rank
        for size in range(1, k_min)
        for few in combinations(everybody, size)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from(SUBSETS), min_size=1), min_size=7, max_size=7), st.booleans())
def test_only_plans_whose_numbers_single_nobody_out_pass(lists: list[set[tuple[str, ...]]], heads: bool) -> None:
    plan = example_plan(7, model={"heads": heads})
    roster = []
    for institution, held in zip(plan.institutions, lists, strict=True):
        modalities = tuple(m for m in ALL if any(m in each for each in held))
        listed = tuple("+".join(m for m in ALL if m in each) for each in sorted(held))
        roster.append(institution.model_copy(update={"modalities": modalities, "combinations": listed}))
    plan = plan.model_copy(update={"institutions": tuple(roster)})
    refused = any("how many patients" in p.message for p in find_problems(plan))
    sound = not [p for p in find_problems(plan) if "how many patients" not in p.message]
    several = any(len(held) > 1 for held in plan.by_institution.values())
    cohorts = Cohorts(plan)
    encoders = [cohorts.ownership.pieces(n, c.owners) for n, c in cohorts.shared.items() if n.startswith("encoder/")]
    told = singled_out(list(cohorts.counted.values()), 3) or singled_out(encoders, 3)
    if sound and several:
        assert refused == told


def test_the_plan_in_words_lists_the_combinations() -> None:
    text = describe(everywhere(("mrna+image", FULL)))
    assert "brca-1  mrna+image, mrna+image+clinical" in text
    assert "come in these combinations" not in describe(example_plan())


@given(st.sets(st.sampled_from(ALL)), st.lists(st.sampled_from(LATTICE), unique=True))
def test_a_patient_counts_as_the_largest_listed_combination_that_it_has(held: set[str], listed: list[str]) -> None:
    own = names.largest_within(held, listed)
    fitting = [c for c in listed if set(names.modalities_of(c)) <= held]
    assert (own is None) == (not fitting)
    if own is not None:
        assert own in fitting
        assert all(len(names.modalities_of(c)) <= len(names.modalities_of(own)) for c in fitting)
