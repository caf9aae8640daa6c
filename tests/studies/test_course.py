"""The course of losses and weights that explains a study."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from federation.plan import Plan
from studies.cells import CellResult
from studies.course import SHOWN, course_of, table, weights_of
from studies.methods import changed, plan_of
from tests.studies.small_study import small_plan

WHOLE = "mrna+image+clinical"
MODALITIES = {"among": "modalities", "kappa": "subsets", "clamp": False}


def plan(**blending: object) -> Plan:
    return changed(small_plan(rounds=3), {"preset": "custom", "blending": blending})


def figures(training: float, score: float | None, proximity: float | None = 0.5) -> Mapping[str, float | None]:
    return {"training": training, "validation": 0.7, "score": score, "proximity": proximity}


def result(*losses: Mapping[str, Mapping[str, float | None]]) -> CellResult:
    return CellResult((), (), (), (), 1, (), losses)


def test_weights_are_those_of_the_next_round() -> None:
    scores = {"mrna": 1.0, "image": 2.0, "clinical": 5.0, WHOLE: 2.0}
    among = weights_of(plan(**MODALITIES), scores, 2)
    assert among == pytest.approx({"mrna": 3 / 8, "image": 6 / 8, "clinical": 15 / 8, WHOLE: 1.0})
    subsets = weights_of(plan(kappa="subsets", clamp=False), scores, 2)
    assert subsets == pytest.approx({"mrna": 0.4, "image": 0.8, "clinical": 2.0, WHOLE: 0.8})
    assert set(weights_of(plan_of("cm-fl", plan()), scores, 2).values()) == {1.0}


def test_a_course_is_the_mean_over_the_runs_that_tell() -> None:
    ours = plan(**MODALITIES)
    first = {"mrna": figures(0.6, None), "image": figures(0.5, None)}
    second = {"mrna": figures(0.4, 1.0), "image": figures(0.5, 3.0, None)}
    points = course_of([(ours, result(first, second)), (ours, result({"mrna": figures(0.8, None)}))])
    assert [(p.round, p.subset) for p in points] == [(1, "mrna"), (1, "image"), (2, "mrna")]  # no proximity: left out
    assert points[0].training == pytest.approx(0.7)
    assert points[2].training == pytest.approx(0.4)
    # Clinical data has no score yet and keeps a third; the others share two thirds by theirs.
    assert points[2].weight == pytest.approx(3 * 2 / 3 * 1 / 4)


def test_no_runs_have_no_course() -> None:
    assert course_of([]) == []


def test_the_table_shows_some_rounds() -> None:
    points = course_of([(plan(), result(*[{"mrna": figures(0.5, None)}] * 5))])
    assert len(points) == 5
    assert table("t", points).row_count == sum(p.round in SHOWN for p in points) == 4
