"""Which group a patient is counted in, and that no group of too few is ever told: the floors, on any counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from federation import subgroups
from federation.evaluation import scores_exact
from federation.plan import Subgroup, Subgroups
from federation.plan_check import find_problems
from federation.plan_describe import describe
from federation.plan_tables import DifferentialPrivacy
from federation.rounds import Cohorts, Setup
from security.secure_sum.cohorts import subtracts_below
from security.secure_sum.spec import Context
from tests.plans import example_plan

SEX = Subgroup(name="sex", column="sex", categories=("female", "male"))
AGE = Subgroup(name="age", column="age", cuts=(50.0, 65.5))
COUNTS = arrays(np.int64, st.integers(2, 6), elements=st.integers(0, 12))


def plan_with(*by: Subgroup, **settings: Any) -> Any:
    return example_plan(evaluation={"subgroups": Subgroups(by=by, **settings)})


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_named_and_filled_as_the_plan_says() -> None:
    assert subgroups.groups_of(SEX) == ("female", "male", "other")
    assert subgroups.groups_of(AGE) == ("under 50", "50 to 65.5", "65.5 and over", "other")
    assert subgroups.place_texts(SEX, ["male", None, "female", "unknown", "Male"]).tolist() == [1, 2, 0, 2, 2]
    ages = np.array([49.99, 50.0, 65.5, np.nan, -1.0, 300.0])
    assert subgroups.place_numbers(AGE, ages).tolist() == [0, 1, 2, 3, 0, 2]


def test_they_are_counted_every_so_often_and_at_the_end() -> None:
    plan = plan_with(SEX, every=4).model_copy(update={"rounds": 10})
    assert [r for r in range(1, 11) if subgroups.due(plan, r)] == [1, 5, 9, 10]


# -- the floors ------------------------------------------------------------------------------------------------------


@given(COUNTS, st.integers(1, 8))
def test_an_institution_tells_of_no_group_below_the_floor(counts: npt.NDArray[np.int64], floor: int) -> None:
    back = subgroups.held_back(counts, floor)
    places = subgroups.moved(np.repeat(np.arange(len(counts)), counts), back)
    told = np.bincount(places, minlength=len(counts))
    assert told.sum() == counts.sum()  # who is not told of by itself is counted in `other`
    assert not back[-1]
    assert all(n == 0 or n >= floor for n in told[:-1])
    assert told[-1] == 0 or told[-1] >= floor or not told[:-1].any()
    # No group is held back that need not be: it is small, or `other` would be without it.
    kept_large = [k for k in np.flatnonzero(back) if counts[k] >= floor]
    for k in kept_large:
        assert told[-1] - counts[k] < floor


@given(arrays(np.bool_, st.tuples(st.integers(3, 9), st.integers(2, 6))), st.integers(1, 4))
def test_no_group_of_too_few_institutions_is_told(counted: npt.NDArray[np.bool_], floor: int) -> None:
    shut = subgroups.closed(tuple(int(n) for n in counted.sum(axis=0)), floor)
    assert not shut[-1]
    told = counted & ~shut
    told[:, -1] |= (counted & shut).any(axis=1)
    institutions = told.sum(axis=0)
    assert all(institutions[:-1][~shut[:-1]] >= floor)
    # All patients are known: `other` is always told, as all less the groups. Of too few only where no group is.
    assert institutions[-1] == 0 or institutions[-1] >= floor or shut[:-1].all()
    if shut[:-1].all() and len(shut) > 2:
        assert not subgroups.tells(tuple(int(n) for n in counted.sum(axis=0)), floor)


@pytest.mark.parametrize(
    ("holders", "shut"),
    [
        ((9, 9, 0), [False, False, False]),
        ((9, 2, 0), [True, True, False]),  # all less the nine's group would be the two's
        ((9, 9, 2), [False, True, False]),  # or that of two whose patients have no value
        ((9, 7, 2), [False, True, False]),
        ((9, 2, 5), [False, True, False]),
        ((2, 0, 9), [True, True, False]),
        ((0, 0, 0), [True, True, False]),
    ],
)
def test_where_all_less_the_others_would_tell_one_more_is_closed(holders: tuple[int, ...], shut: list[bool]) -> None:
    assert subgroups.closed(holders, 3).tolist() == shut


# -- counts ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 10]))
def test_counts_of_several_institutions_add_up_to_the_pooled_figures(n: int, seed: int, bins: int) -> None:
    plan = plan_with(SEX, AGE, bins=bins, min_patients=1, min_institutions=3)
    rng = np.random.default_rng(seed)
    chances = rng.random(n)
    p, labels = np.stack([1 - chances, chances], 1), rng.integers(2, size=n)
    places, owners = rng.integers(3, size=n), rng.integers(4, size=n)
    total = np.zeros(subgroups.length(plan, SEX))
    for owner in range(4):
        own = owners == owner
        total += subgroups.counts_vector(plan, SEX, places[own], labels[own], p[own])
    found = subgroups.figures(plan, SEX, total)
    assert list(found) == ["female", "male", "other"]
    for k, told in enumerate(found.values()):
        there = places == k
        if there.sum() < 3:
            assert told is None
            continue
        exact = scores_exact(labels[there], p[there])
        assert told is not None
        assert told.scores.patients == there.sum() == told.confusion.sum()
        assert (told.scores.accuracy, told.scores.balanced_accuracy, told.scores.macro_f1) == (
            exact.accuracy, exact.balanced_accuracy, exact.macro_f1,
        )  # fmt: skip
        assert (told.scores.auroc is None) == (bins == 0 or exact.auroc is None)
        if bins == 10 and exact.auroc is not None:
            assert told.scores.auroc == pytest.approx(exact.auroc, abs=0.5)


def test_noise_below_zero_and_below_the_floors_is_not_told() -> None:
    plan = plan_with(SEX, bins=0)  # of 5 patients at 3 institutions
    found = subgroups.figures(plan, SEX, np.array([8.2, -3.1, 2.4, 6.3, 4.0, 3.0, 2.0, 5.2, -9.0, -1.0, 0.2, 0.0]))
    assert found["female"] is not None
    assert found["female"].confusion.tolist() == [[8, 0], [2, 6]]
    assert (found["male"], found["other"]) == (None, None)  # 14 patients, and none


# -- plans -----------------------------------------------------------------------------------------------------------


def problems(*by: Subgroup, **settings: Any) -> list[str]:
    return [str(p) for p in find_problems(plan_with(*by, **settings))]


def test_a_plan_with_subgroups_passes_and_is_described() -> None:
    assert problems(SEX, AGE) == []
    text = describe(plan_with(SEX, AGE))
    assert "column sex: female, male, other; at all 9" in text
    assert "column age: under 50, 50 to 65.5, 65.5 and over, other; at all 9" in text
    assert "5 patients of an institution, 3 institutions" in text
    assert "subgroup" not in describe(example_plan())


def changed(**fields: Any) -> Subgroup:
    return SEX.model_copy(update=fields)


@pytest.mark.parametrize(
    ("by", "settings", "said"),
    [
        ((changed(name="Sex!"),), {}, "not a legal name"),
        ((changed(column=" sex"),), {}, "cannot be told apart"),
        ((changed(cuts=(1.0,)),), {}, "both categories and cuts"),
        ((changed(categories=()),), {}, "neither categories nor cuts"),
        ((changed(categories=("female", "other")),), {}, "everybody else"),
        ((changed(categories=("female", "female")),), {}, "occurs twice"),
        ((changed(categories=tuple(f"c{k}" for k in range(13))),), {}, "13 groups"),
        ((AGE.model_copy(update={"cuts": (65.0, 50.0)}),), {}, "do not ascend"),
        (
            (AGE.model_copy(update={"cuts": (50.0, 50.000000000001, 50.000000000002)}),),
            {},
            "occurs twice",
        ),  # named alike
        ((SEX, SEX), {}, "'sex' occurs twice"),
        # The patients of one age would be the difference.
        ((AGE, AGE.model_copy(update={"name": "years", "cuts": (51.0,)})), {}, "the column 'age' occurs twice"),
        (tuple(changed(name=f"n{k}", column=f"c{k}") for k in range(5)), {}, "5 attributes"),
        ((changed(institutions=("nobody",)),), {}, "not in the roster"),
        ((SEX,), {"min_institutions": 2}, "below secure_sum.k_min"),
        ((SEX,), {"min_institutions": 10}, "9 institutions count by sex"),
    ],
)
def test_a_plan_that_may_not_run_says_why(by: tuple[Subgroup, ...], settings: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(*by, **settings)), problems(*by, **settings)


def test_a_plan_that_counts_all_but_one_is_refused() -> None:
    """Their groups add up to all less one, whose confusion matrix would be the difference to the metrics."""
    roster = example_plan().roster
    all_but_one = changed(institutions=roster[:-1])
    assert any("would tell of fewer than 3 institutions" in p for p in problems(all_but_one))
    # Two attributes of different institutions: the one's less the other's.
    rest = [name for name in roster if not name.endswith("-1")]  # the metrics' merged row of six
    assert problems(changed(institutions=tuple(rest))) == []
    fewer = AGE.model_copy(update={"institutions": tuple(rest[:-1])})
    assert any("would tell of fewer" in p for p in problems(changed(institutions=tuple(rest)), fewer))


def opened_in(cohorts: Cohorts, setup: Setup, gone: frozenset[str] = frozenset()) -> dict[str, frozenset[str]]:
    """Counts in sum B that open where some of the run's institutions drop out, to their contributors."""
    there = setup.institutions - gone
    sums = cohorts.training_sums(dict.fromkeys(cohorts.summed(setup), 4), setup, 1)
    attempt = cohorts.attempt(Context("example", bytes(32), 1, 1, bytes(32)), sums)
    opened = attempt.opened_parts("statistics", there, there)
    return {p.name: p.contributors for p in opened if p.name.startswith(("metrics/", subgroups.PREFIX))}


def test_their_sums_stay_shut_where_the_metrics_would_subtract() -> None:
    """One of a combination of three sits the run out: that row is below the floor, and all less it would be the two.
    Noised counts open over whom there is, so that what they subtract from is known in each round only."""
    cohorts = Cohorts(
        plan_with(SEX, every=1).model_copy(update={"differential_privacy": DifferentialPrivacy(enabled=True)})
    )
    there = frozenset(cohorts.plan.roster) - {"brca-1"}
    setup = Setup("", dict.fromkeys(cohorts.patients, 50), there)
    assert list(opened_in(cohorts, setup)) == ["metrics/other"]
    sums = cohorts.training_sums(dict.fromkeys(cohorts.summed(setup), 4), setup, 1)
    assert sums[1].part("subgroups/sex").contributors == there


def test_attack_a_round_in_which_the_metrics_are_shut_does_not_open_what_they_subtract_from() -> None:
    """Three institutions count by sex, in a row of the metrics of six. One of the six sits the run out, and another is
    left out of one round: then the row was shut and the three were told, and in the next round the row of five. Exact
    counts are the same in both, so that the two others' would be the difference."""
    three = ("brca-2", "brca-3", "lusc-2")
    plan = plan_with(changed(institutions=three), every=1)
    assert not find_problems(plan)
    cohorts = Cohorts(plan)
    setup = Setup("", dict.fromkeys(cohorts.patients, 50), frozenset(plan.roster) - {"lusc-3"}, {"sex": (3, 3, 0)})
    told = [opened_in(cohorts, setup, frozenset(gone)) for gone in ((), *((name,) for name in setup.institutions))]
    assert subtracts_below(3, {members for round_ in told for members in round_.values()}) is None
    everybody = Setup("", setup.patients, frozenset(plan.roster), setup.groups)
    assert opened_in(cohorts, everybody)["subgroups/sex"] == frozenset(three)
