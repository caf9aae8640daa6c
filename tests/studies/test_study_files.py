"""What `make studies` writes and in which order it runs, and that `make studies-quick` sees a changed figure."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from studies import quick
from studies.catalogue import STUDIES
from studies.figures import by_round, forest, losses_by_round
from studies.machine import kind
from studies.order import informative
from studies.outcomes import METRICS, rows_of
from studies.results_page import page
from studies.run import FINDINGS
from tests.studies.test_outcomes import SCORES, STUDY, results

FIGURES = {"figure3": {"CM-FL": {"auroc": 0.625, "accuracy": 0.5}}}
KEPT = {"machine": kind(), "synthetic": FIGURES}


def test_one_fold_of_every_study_is_run_before_the_other_folds() -> None:
    first, other = replace(STUDY, name="first"), replace(STUDY, name="other", rounds=3)
    cells = informative([first, other], [1, 2], 2)
    assert [(c.rounds, c.seed, c.fold) for c in cells[::2]] == [
        (2, 1, 0), (2, 2, 0), (3, 1, 0), (3, 2, 0), (2, 1, 1), (2, 2, 1), (3, 1, 1), (3, 2, 1)
    ]  # fmt: skip
    assert len(set(cells)) == len(cells) == 16
    assert informative([first, first], [1], 1) == informative([first], [1], 1)


def test_figures_that_agree_are_counted() -> None:
    assert "2 figures on synthetic patients are as they were, to the last digit" in quick.check(
        KEPT, FIGURES, "synthetic"
    )


@pytest.mark.parametrize(
    "found",
    [
        {"figure3": {"CM-FL": {"auroc": 0.625001, "accuracy": 0.5}}},
        {"figure3": {"CM-FL": {"auroc": 0.625}}},
        {"figure3": {"CM-FL": {"auroc": float("nan"), "accuracy": 0.5}}},
        {"figure3": {"CM-FL": {"auroc": 0.625, "accuracy": 0.5, "log_loss": 0.7}}},
    ],
)
def test_one_digit_of_one_figure_is_seen(found: quick.Figures) -> None:
    with pytest.raises(quick.OtherFiguresError, match="CM-FL / "):
        quick.check(KEPT, found, "synthetic")


def test_another_kind_of_machine_may_differ_a_little_and_says_so() -> None:
    elsewhere = {**KEPT, "machine": "an abacus"}
    near = {"figure3": {"CM-FL": {"auroc": 0.63, "accuracy": 0.5}}}
    assert "made on an abacus" in quick.check(elsewhere, near, "synthetic")
    far = {"figure3": {"CM-FL": {"auroc": 0.7, "accuracy": 0.5}}}
    with pytest.raises(quick.OtherFiguresError):
        quick.check(elsewhere, far, "synthetic")


def test_the_kept_figures_are_of_every_study() -> None:
    kept = json.loads(quick.KEPT.read_text())
    assert set(kept["synthetic"]) == set(STUDIES)
    for name, study in STUDIES.items():
        assert set(kept["synthetic"][name]) == {v.name for v in study.variants}
    assert all(set(m) <= set(METRICS) for s in kept["synthetic"].values() for m in s.values())


def test_findings_are_of_studies_that_there_are() -> None:
    assert set(tomllib.loads(FINDINGS.read_text())) <= {"", *STUDIES}


def test_figures_are_svg_with_every_variant() -> None:
    found = results(SCORES)
    drawn = [forest(STUDY, rows_of(STUDY, found, "synthetic")), by_round(STUDY, found, "accuracy", "synthetic")]
    for svg in drawn:
        assert svg is not None
        texts = " ".join(t for t in ElementTree.fromstring(svg).itertext())
        assert "synthetic" in texts
        assert " A " in f" {texts} "
        assert " B " in f" {texts} "
    assert by_round(STUDY, found, "auroc", "synthetic") is None  # not known in every round
    assert losses_by_round(STUDY, "A", found, "synthetic") is None


def test_losses_are_drawn_of_every_subset() -> None:
    each: dict[str, dict[str, float | None]] = {
        "mrna": {"training": 0.6, "validation": 0.7},
        "image": {"training": 0.5, "validation": None},
    }
    found = {cell: replace(r, losses=(each, each)) for cell, r in results(SCORES).items()}
    svg = losses_by_round(STUDY, "A", found, "synthetic")
    assert svg is not None
    assert "image, validation" in svg


def test_the_page_shows_findings_figures_and_the_bootstrap() -> None:
    rows = [replace(r, study="figure3", method="HGB" if r.method == "B" else "CM-FL") for r in
            rows_of(STUDY, results(SCORES), "real", draws=50)]  # fmt: skip
    text = page(rows, 0, {"": "All in all.", "figure3": "It wins."}, {"figure3": ["figures/figure3.svg"]})
    assert "All in all." in text
    assert "It wins." in text
    assert "![figure3](figures/figure3.svg)" in text
    assert "patients [" in text
    assert "| HGB |" in text
