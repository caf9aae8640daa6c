"""Comparisons: every method on every seed or none, on the same patients, the same numbers each time."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from federation.plan import Plan
from studies.comparison import Comparison, Outcome, Spread, compare, outcome_of, run_method
from studies.federation import StudyError
from studies.methods import METHODS
from studies.scoring import ALL, TestPatients
from studies.simulate import simulate
from studies.tcga import Federation
from tests.studies.small_study import PLANS, small_plan, study

SEEDS = (1, 2)
ROWS = {ALL, "BRCA", "LUSC"}


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def comparison(told: list[tuple[int, int, str]]) -> Comparison:
    return compare(study, PLANS, METHODS, SEEDS, processes=1, progress=lambda *job: told.append(job))


def test_every_method_has_every_seed_on_the_same_patients(
    comparison: Comparison, told: list[tuple[int, int, str]]
) -> None:
    assert set(comparison.outcomes) == {(m, s) for m in METHODS for s in SEEDS}
    assert {m: len(scores) for m, scores in comparison.scores.items()} == dict.fromkeys(METHODS, len(SEEDS))
    for (method, seed), outcome in comparison.outcomes.items():
        patients = comparison.patients[seed]
        assert set(outcome.scores) == ROWS
        assert outcome.scores[ALL].patients == len(patients.ids)
        if method == "alone":
            assert outcome.probabilities is None
        else:
            assert outcome.probabilities is not None
            assert outcome.probabilities.shape == (len(patients.ids), 2)
            np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert [(done, of) for done, of, _ in told] == [(k, len(told)) for k in range(1, len(METHODS) * len(SEEDS) + 1)]


def test_methods_differ_from_each_other(comparison: Comparison) -> None:
    """After two rounds blending has just begun, so the first round is alike and the scores of later ones are not."""
    learning = ("dgb", "cm-fl", "alone", "pooled")
    losses = {m: comparison.outcomes[m, 1].records[-1]["blending"] for m in ("dgb+pcw", "dgb", "cm-fl", "hgb")}
    assert losses["dgb+pcw"] != losses["dgb"]  # weighted otherwise
    assert losses["cm-fl"] != losses["dgb"]  # stepped otherwise
    found = {m: comparison.outcomes[m, 1].scores for m in learning}
    assert all(found[a] != found[b] for a in learning for b in learning if a < b)


def test_curves_and_the_exported_round(comparison: Comparison) -> None:
    curves = comparison.test_curve()
    assert set(curves) == {"dgb+pcw", "cm-fl"}
    for method, rows in curves.items():
        assert [row["round"] for row in rows] == [1, 2]
        for seed in SEEDS:
            outcome = comparison.outcomes[method, seed]
            assert dict(outcome.curve)[outcome.exported_round] == outcome.scores
        expected = [dict(comparison.outcomes[method, s].curve)[2][ALL].auroc for s in SEEDS]
        assert rows[-1]["auroc"]["mean"] == pytest.approx(statistics.fmean(v for v in expected if v is not None))


def test_spreads_and_paired_differences(comparison: Comparison) -> None:
    ours, plain = (comparison.values(m, "auroc", "LUSC") for m in ("dgb+pcw", "cm-fl"))
    gaps = [a - b for a, b in zip(ours, plain, strict=True) if a is not None and b is not None]
    difference = comparison.difference("dgb+pcw", "cm-fl", "auroc", "LUSC")
    assert difference.mean == pytest.approx(statistics.fmean(gaps))
    assert difference.std == pytest.approx(statistics.stdev(gaps))
    assert Spread.of([0.5]) == Spread(0.5, None)
    assert Spread.of([0.5, None]) == Spread(None, None)


def test_an_outcome_does_not_depend_on_what_ran_before(comparison: Comparison) -> None:
    again = run_method("cm-fl", study(2), small_plan(2), 2)
    assert again.scores == comparison.outcomes["cm-fl", 2].scores
    assert again.curve == comparison.outcomes["cm-fl", 2].curve


def test_processes_give_the_same_numbers(comparison: Comparison) -> None:
    parallel = compare(study, PLANS, ("pooled", "cohort-only"), SEEDS, processes=2)
    for key, outcome in parallel.outcomes.items():
        assert outcome.scores == comparison.outcomes[key].scores


def test_known_outcomes_are_taken_as_they_are(comparison: Comparison) -> None:
    model = simulate(small_plan(), study(), 1).exported
    elsewhere = outcome_of("dgb+pcw", 1, model, TestPatients.of(study(), small_plan()))
    assert elsewhere.scores == comparison.outcomes["dgb+pcw", 1].scores
    done: list[str] = []
    mixed = compare(
        study, PLANS, ("dgb+pcw", "constant"), (1,), 1, lambda _d, _n, what: done.append(what), known=[elsewhere]
    )
    assert mixed.outcomes["dgb+pcw", 1] is elsewhere
    assert done == ["constant, seed 1"]


class _FailsOnSeedTwo:
    def __call__(self, federation: Federation, seed: int) -> Plan:
        plan = PLANS(federation, seed)
        if seed == 2:
            raise RuntimeError("no plan today")
        return plan


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_seed_is_an_error_with_its_place(processes: int) -> None:
    with pytest.raises(StudyError, match="no plan today") as told:
        compare(study, _FailsOnSeedTwo(), ("constant",), SEEDS, processes)
    assert told.value.place == "constant, seed 2"


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(StudyError, match="there is no method 'fedprox'"):
        compare(study, PLANS, ("fedprox",), (1,), 1)
    with pytest.raises(StudyError, match="nothing to compare"):
        compare(study, PLANS, METHODS, (), 1)


def test_an_outcome_of_another_seed_is_not_mistaken(comparison: Comparison) -> None:
    stray = Outcome("constant", 7, comparison.outcomes["constant", 1].scores)
    found = compare(study, PLANS, ("constant",), (1,), 1, known=[stray])
    assert set(found.outcomes) == {("constant", 1)}
