"""The study of compression: its bytes are those of the sums, and its differences are paired by seed."""

from __future__ import annotations

import pytest

from federation.evaluation import Scores
from federation.plan import ComponentRule
from studies.comparison import Comparison, Outcome
from studies.compression import VARIANTS, WHOLE, largest_upload, table
from studies.methods import DGB_PCW
from studies.scoring import ALL
from tests.small_federation import small_plan


def test_bytes_follow_words_and_rounds() -> None:
    whole = largest_upload(small_plan(7, rounds=4))
    assert largest_upload(small_plan(7, rounds=4, secure_sum={"half_words": True})) == pytest.approx(
        whole / 2, rel=0.02
    )
    rules = tuple(ComponentRule(name=f"{kind}/{m}", every=2) for kind in ("encoder", "classifier") for m in ("image",))
    seldom = largest_upload(small_plan(7, rounds=4, components=rules))
    alone = largest_upload(small_plan(7, rounds=1, components=rules))
    assert alone == whole
    assert seldom == (whole + largest_upload(small_plan(7, rounds=1, components=_frozen(rules)))) / 2


def _frozen(rules: tuple[ComponentRule, ...]) -> tuple[ComponentRule, ...]:
    return tuple(ComponentRule(name=rule.name, every=0) for rule in rules)


def test_differences_are_taken_seed_by_seed() -> None:
    def comparison(values: tuple[float, ...]) -> Comparison:
        outcomes = {
            (DGB_PCW, seed): Outcome(DGB_PCW, seed, {ALL: Scores(10, v, v, v, v, 0.0)}) for seed, v in enumerate(values)
        }
        return Comparison((DGB_PCW,), tuple(range(len(values))), outcomes, {})

    other = next(name for name in VARIANTS if name != WHOLE)
    lines = list(table({WHOLE: comparison((0.5, 0.7)), other: comparison((0.6, 0.8))}, {WHOLE: 100.0, other: 50.0}))
    assert "| 50 (0.50) |" in lines[3]
    assert "+0.1000 ± 0.0000" in lines[3]
