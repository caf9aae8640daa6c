"""From cells to rows: only complete splits count, pairs are of one split, and the page says what it has not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from security.errors import ConfigurationError
from studies import run
from studies.catalogue import STUDIES, Study, Variant, study
from studies.cells import Cell, CellResult
from studies.federation import StudyError
from studies.outcomes import complete_splits, rows_of
from studies.results_page import page, table
from studies.run import seconds_of
from studies.significance import corrected_interval
from studies.tasks import STAGE_I_II

STUDY = Study("small", "Which?", STAGE_I_II, (Variant("A", "cm-fl"), Variant("B", "dgb")), "A", rounds=2)


def result(right: float, seed: int) -> CellResult:
    """Twenty patients of two cohorts; `right` of them are staged rightly."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1] * 10)
    sure = np.where(rng.permutation(20) < round(20 * right), 0.9, 0.1)
    own = np.where(labels == 1, sure, 1 - sure)
    curve = tuple({"accuracy": x, "balanced_accuracy": x, "auroc": None} for x in (0.3, right + 0.05))
    return CellResult(
        tuple(f"p{k}" for k in range(20)),
        ("BRCA",) * 12 + ("LUSC",) * 8,
        tuple(labels.tolist()),
        tuple((1 - p, p) for p in own.tolist()),
        1,
        curve,
    )


def results(right: dict[str, list[float]], folds: int = 2) -> dict[Cell, CellResult]:
    return {
        STUDY.of(v, 1 + k // folds, k % folds)[0]: result(x, k)
        for v in STUDY.variants
        for k, x in enumerate(right[v.name])
    }


SCORES = {"A": [0.5, 0.6, 0.5, 0.7], "B": [0.6, 0.8, 0.6, 0.7]}


def test_rows_are_means_over_splits_and_paired_within_them() -> None:
    rows = {(r.method, r.metric): r for r in rows_of(STUDY, results(SCORES), "real")}
    one, other = rows["A", "accuracy"], rows["B", "accuracy"]
    assert (one.mean, other.mean) == pytest.approx((0.575, 0.675))
    expected = corrected_interval([0.1, 0.2, 0.1, 0.0], 0.2)
    assert (other.paired_mean, other.paired_low, other.paired_high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert one.paired_mean is None
    assert (one.seeds, one.folds, one.data, one.study) == (2, 2, "real", "small")


def test_cohorts_and_the_best_of_all_rounds_have_rows_of_their_own() -> None:
    rows = {r.metric: r for r in rows_of(STUDY, results(SCORES), "real") if r.method == "B"}
    assert {"accuracy (BRCA)", "auroc (LUSC)", "best round accuracy"} <= rows.keys()
    assert rows["best round accuracy"].mean == pytest.approx(rows["accuracy"].mean + 0.05)
    assert "best round auroc" not in rows  # not known in every round


def test_a_split_that_lacks_a_variant_counts_for_none() -> None:
    found = results(SCORES)
    del found[STUDY.of(STUDY.variants[1], 2, 1)[0]]
    assert complete_splits(STUDY, found) == [(1, 0), (2, 0)]  # more seeds rather than more folds
    assert rows_of(STUDY, found, "real")[0].seeds == 2
    del found[STUDY.of(STUDY.variants[0], 2, 0)[0]]
    assert complete_splits(STUDY, found) == [(1, 0), (1, 1)]
    assert rows_of(STUDY, {}, "real") == []


def test_each_alone_is_the_mean_over_institutions() -> None:
    alone = Study("alone", "?", STAGE_I_II, (Variant("each alone", "alone"), Variant("A", "cm-fl")), "A", rounds=2)
    cells = alone.of(alone.variants[0], 1, 0)
    assert [c.method for c in cells[:2]] == ["alone/brca-1", "alone/brca-2"]
    found = {cell: result(0.5 + 0.05 * k, k) for k, cell in enumerate(cells)} | {
        alone.of(alone.variants[1], 1, 0)[0]: result(0.5, 1)
    }
    rows = {r.method: r.mean for r in rows_of(alone, found, "real") if r.metric == "accuracy"}
    assert rows["each alone"] == pytest.approx(np.mean([0.5 + 0.05 * k for k in range(9)]))


def test_the_page_tells_means_pairs_and_what_is_missing() -> None:
    rows = rows_of(STUDIES["figure3"], {}, "real")
    text = page(rows, 7)
    assert "**7 runs were not made" in text
    assert text.count("Not run.") == len(STUDIES)
    assert "runs were not made" not in page(rows, 0)
    assert table(STUDY, rows_of(STUDY, results(SCORES), "real")).row_count == 2


def test_budgets_are_read_and_refused() -> None:
    assert [seconds_of(text) for text in ("90s", "45m", "1.5h")] == [90, 2700, 5400]
    with pytest.raises(ConfigurationError, match="2h"):
        seconds_of("two hours")


def test_a_spent_budget_runs_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["figure3", "--synthetic", "--seeds", "1", "--budget", "0s", "--store", str(tmp_path / "store")])
    said = capsys.readouterr().out
    assert "68 of 68 runs are missing" in said
    assert "no complete split" in said


def test_a_study_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["figure4"])
    assert "figure3" in capsys.readouterr().err


def test_every_variant_of_every_study_makes_another_cell() -> None:
    for each in STUDIES.values():
        cells = list(each.cells([1, 2], range(2)))
        assert len(set(cells)) == len(cells) >= 4 * len(each.variants)
        assert any(v.name == each.against for v in each.variants)
        json.dumps([c.description("x") for c in cells])
    with pytest.raises(StudyError):
        study("figure4")
