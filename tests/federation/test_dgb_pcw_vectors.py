"""DGB and PCW against hand-computed rounds, and named bad cases that must fail with a stated code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.blending import (
    BlendingSettings,
    BlendingState,
    LossSums,
    advance,
    default_settings,
    paper_code_settings,
    paper_settings,
    step_weights,
)
from federation.plan_presets import PRESETS as PLAN_PRESETS
from federation.proximity import ComponentDots, ProximitySettings, component_dots, proximity
from security.errors import ConsiliumError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "dgb_pcw.json").read_text(encoding="utf-8"))
PRESETS = {"default": default_settings, "paper": paper_settings, "paper-code": paper_code_settings}


def numbers(value: Any) -> Any:
    """JSON has no NaN and no infinity: the table writes them as texts."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return float(value) if value in ("nan", "inf") else value


def settings_of(case: dict[str, Any]) -> BlendingSettings:
    return replace(PRESETS[case["preset"]](), **case["overrides"])


def close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("case", VECTORS["blending"], ids=lambda c: c["name"])
def test_rounds_of_blending(case: dict[str, Any]) -> None:
    settings, state = settings_of(case), BlendingState()
    for expected in case["rounds"]:
        losses = {name: LossSums(*sums) for name, sums in expected["losses"].items()}
        state, figures = advance(state, losses, settings)
        assert figures.median_squared_overfitting == close(expected["median"])
        assert set(figures.subsets) == set(expected["figures"])
        for name, wanted in expected["figures"].items():
            got = figures.subsets[name]
            assert (got.known, got.fresh) == (wanted["known"], wanted["fresh"])
            for field in ("training_loss", "validation_loss", "overfitting", "generalisation", "score", "dogr"):
                assert getattr(got, field) == close(wanted.get(field)), field
        state = BlendingState.from_json(json.loads(json.dumps(state.to_json())))  # a restart changes nothing
    for step in case["steps"]:
        weights = step_weights(figures.scores(), step["subsets"], settings, step["round_index"])
        assert weights == {name: close(v) for name, v in step["expected"].items()}, step["working"]


@pytest.mark.parametrize("case", VECTORS["step_weights"], ids=lambda c: c["name"])
def test_step_weights(case: dict[str, Any]) -> None:
    weights = step_weights(case["scores"], case["subsets"], settings_of(case), case["round_index"])
    assert list(weights) == case["subsets"]
    assert weights == {name: close(v) for name, v in case["expected"].items()}


@pytest.mark.parametrize("case", VECTORS["contributions"], ids=lambda c: c["name"])
def test_contributions(case: dict[str, Any]) -> None:
    assert LossSums.contribution(**numbers(case["input"])).values() == pytest.approx(case["expected"], rel=1e-15)


def dots_of(own: dict[str, list[float]], total: dict[str, list[float]]) -> dict[str, ComponentDots]:
    return {name: component_dots(np.array(own[name], np.float32), np.array(total[name], np.float32)) for name in own}


@pytest.mark.parametrize("case", VECTORS["proximity"], ids=lambda c: c["name"])
def test_proximity(case: dict[str, Any]) -> None:
    settings = ProximitySettings(**case["settings"])
    p = proximity(
        settings, dots_of(case["own"], case["total"]), case["shares"], case["components"], case["size_weight"]
    )
    assert p == close(case["expected"])
    assert 0 <= p <= settings.largest


def run_dots(own: list[float], total: list[float]) -> ComponentDots:
    return component_dots(np.array(own, np.float32), np.array(total, np.float32))


def run_proximity(settings: dict[str, Any], **arguments: Any) -> float:
    return proximity(ProximitySettings(**settings), {"encoder/a": ComponentDots(1.0, 2.0, 2.0)}, **arguments)


STEPS: dict[str, Callable[[Any], Any]] = {
    "loss-sums": lambda x: LossSums(*x),
    "contribution": lambda x: LossSums.contribution(**x),
    "step-weights": lambda x: step_weights(settings=default_settings(), **x),
    "blending-settings": lambda x: replace(default_settings(), **x),
    "state": BlendingState.from_json,
    "median": lambda x: advance(BlendingState(), {}, default_settings(), x),
    "dots": lambda x: run_dots(**x),
    "proximity": lambda x: run_proximity(**x),
    "proximity-settings": lambda x: ProximitySettings(**x),
}


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["name"])
def test_bad_cases_fail_with_their_code(case: dict[str, Any]) -> None:
    with pytest.raises(ConsiliumError) as caught:
        STEPS[case["step"]](numbers(case["input"]))
    assert caught.value.code == case["code"]
    assert caught.value.remedy


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_those_of_the_plan(name: str) -> None:
    settings, fields = PRESETS[name](), PLAN_PRESETS[name]["blending"]
    shared = set(fields) & {field.name for field in dataclasses.fields(settings)}
    assert len(shared) == 12
    assert {field: getattr(settings, field) for field in shared} == {field: fields[field] for field in shared}
