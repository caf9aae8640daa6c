"""`summary.json`: the promised shape, honest spreads, and the same bytes for the same numbers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.summary import (
    METRICS,
    REQUIRED,
    Summary,
    SummaryError,
    build_summary,
    read_summary,
    spread_of,
    summary_from,
    summary_json,
    write_summary,
)
from federation.evaluation import Scores
from tests.deploy.generated_run import facts, scores, summary

Accuracies = dict[str, list[float]]


def runs(accuracies: Accuracies) -> dict[str, list[dict[str, Scores]]]:
    return {method: [{"all": scores(a)} for a in values] for method, values in accuracies.items()}


def flat(level: float = 0.5) -> Accuracies:
    return {method: [level, level, level] for method in REQUIRED}


def test_the_promised_shape() -> None:
    content = json.loads(summary_json(summary("tcga")))
    promised = {"data", "institutions", "rounds", "seeds", "wall_seconds", "coordinator_peak_mib"}
    promised |= {"bytes_up_per_parameter", "bytes_down_per_parameter", "dropouts", "processes", "methods"}
    assert promised <= set(content)
    assert content["seeds"] == 3
    assert content["coordinator_peak_mib"] == content["processes"]["coordinator"]
    assert set(REQUIRED) <= set(content["methods"])
    for table in content["methods"].values():
        assert next(iter(table)) == "all"
        for row in table.values():
            assert set(row) == set(METRICS)
            assert all(set(cell) == {"mean", "std"} for cell in row.values())


def test_mean_sample_deviation_and_pairs() -> None:
    made = build_summary(facts(), runs(flat() | {"dgb+pcw": [0.60, 0.62, 0.64], "cm-fl": [0.59, 0.62, 0.60]}))
    cell = made.spread("dgb+pcw", "accuracy")
    assert cell is not None
    assert (cell.mean, cell.std) == (0.62, 0.02)
    pair = made.differences["cm-fl"]["all"]["accuracy"]
    assert pair.mean == round(0.05 / 3, 6)
    assert pair.std == round(statistics.stdev([0.01, 0.0, 0.04]), 6)
    assert (pair.higher, pair.seeds) == (2, 3)  # equal is not higher
    assert "dgb+pcw" not in made.differences


def test_one_seed_has_no_spread() -> None:
    made = build_summary(facts(), runs({method: [0.5] for method in REQUIRED}))
    cell = made.spread("alone", "accuracy")
    assert cell is not None
    assert (cell.mean, cell.std) == (0.5, None)


@pytest.mark.parametrize("values", [[0.5, None, 0.6], [], [None], [0.5, float("nan")]])
def test_a_seed_without_the_figure_leaves_none(values: list[float | None]) -> None:
    found = spread_of(values)
    assert (found.mean, found.std) == (None, None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.randoms())
def test_order_of_seeds_does_not_matter_and_rereading_changes_nothing(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis' own random.Random
    first, second = (build_summary(facts(), runs(dict.fromkeys(REQUIRED, v))) for v in (values, shuffled))
    assert summary_json(first) == summary_json(second)
    assert summary_json(summary_from(json.loads(summary_json(first)))) == summary_json(first)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / "summary.json"
    write_summary(path, summary())
    assert read_summary(path) == summary()
    assert summary().synthetic
    assert not summary("tcga").synthetic
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


def test_results_that_cannot_be_compared() -> None:
    whole = runs(flat())
    cases = [
        ({m: r for m, r in whole.items() if m != "pooled"}, "pooled"),
        (whole | {"alone": whole["alone"][:2]}, "seeds"),
        (whole | {"alone": [{"all": scores(0.5), "BRCA": scores(0.5)}] * 3}, "other cohorts"),
        ({m: [{"BRCA": scores(0.5)}] * 3 for m in REQUIRED}, "all"),
        ({m: [] for m in REQUIRED}, "all"),
    ]
    for methods, word in cases:
        with pytest.raises(SummaryError, match=word):
            build_summary(facts(), methods)  # type: ignore[arg-type]  # an empty list has no type of its own
    with pytest.raises(SummaryError, match="coordinator"):
        build_summary(facts(processes={"brca-1": 1.0}), whole)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seeds": 0}, "seeds"),
        ({"wall_seconds": float("inf")}, "wall_seconds"),
        ({"coordinator_peak_mib": -1.0}, "coordinator_peak_mib"),
        ({"surprise": 1}, "surprise"),
        ({"methods": {"dgb+pcw": {"all": {"accuracy": {"mean": 0.5, "std": 0.1}}}}}, "dgb\\+pcw.all"),
        ({"methods": {"dgb+pcw": {"all": {"accuracy": {"mean": "high", "std": 0.1}}}}}, "accuracy.mean"),
    ],
)
def test_a_file_of_another_shape(change: dict[str, object], place: str) -> None:
    with pytest.raises(SummaryError, match=place):
        summary_from(summary().model_dump() | change)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("{")
    with pytest.raises(SummaryError) as caught:
        read_summary(path)
    assert caught.value.place == str(path)


def test_no_negative_zero() -> None:
    made = build_summary(facts(), runs(flat() | {"cm-fl": [0.5 + 1e-9] * 3}))
    assert "-0.0" not in summary_json(made)
    assert made.differences["cm-fl"]["all"]["accuracy"].higher == 0
    assert isinstance(made, Summary)
