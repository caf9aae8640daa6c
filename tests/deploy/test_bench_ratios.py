"""The CI bench fails where a ratio worsened by a third, every time; and only there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.bench_loops import opening_to_floor, upload_to_floor
from deploy.bench_ratios import Readings, Verdict, judge, read_baseline, verdicts
from deploy.bench_small import BASELINE, MEANINGS
from security.errors import ConfigurationError

BASE = {"a": 1.5, "b": 3.0}


def test_a_third_worse_passes_and_more_fails() -> None:
    assert Verdict("a", 1.999, 1.5, 1).passed
    assert not Verdict("a", 2.001, 1.5, 1).passed
    assert Verdict("a", 0.1, 1.5, 1).passed
    assert not Verdict("a", math.nan, 1.5, 1).passed


def test_the_median_of_the_readings_counts() -> None:
    a, b = verdicts({"a": [1.0, 9.0, 1.2], "b": [3.0]}, BASE)
    assert (a.measured, a.readings, a.passed) == (1.2, 3, True)
    assert b.worsened == 1.0


def test_only_what_failed_is_measured_again_and_a_bad_moment_passes() -> None:
    asked: list[list[str]] = []

    def measure(wanted: Sequence[str]) -> Readings:
        asked.append(list(wanted))
        return {"a": [9.0] if len(asked) == 1 else [1.0], "b": [3.0]}

    assert all(v.passed for v in judge(measure, BASE))
    assert asked == [["a", "b"], ["a"]]


def test_a_slowdown_fails_in_every_try() -> None:
    tries: list[int] = []

    def measure(wanted: Sequence[str]) -> Readings:
        tries.append(1)
        return {"a": [2 * BASE["a"]], "b": [3.0]}

    assert [v.passed for v in judge(measure, BASE)] == [False, True]
    assert len(tries) == 3


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("not json", "cannot be read"),
        ("[1, 2]", "cannot be read"),
        ('{"a": null, "b": 1}', "cannot be read"),
        ('{"a": 1.5}', "b"),
        ('{"a": 1.5, "b": 1, "c": 2}', "c"),
        ('{"a": 1.5, "b": 0}', "positive"),
        ('{"a": 1.5, "b": NaN}', "positive"),
    ],
)
def test_a_baseline_that_would_let_everything_pass_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        read_baseline(text, list(BASE))


def test_the_committed_baseline_has_every_ratio() -> None:
    text = (Path(__file__).parents[2] / BASELINE).read_text()
    assert list(read_baseline(text, list(MEANINGS))) == list(json.loads(text)) == list(MEANINGS)


def test_the_loops_cannot_be_faster_than_what_they_are_made_of() -> None:
    assert upload_to_floor() > 0.8
    assert opening_to_floor() > 0.8
