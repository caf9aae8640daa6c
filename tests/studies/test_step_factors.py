"""Whom DGB's weights reach, and with what: the step factors of a round at each institution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from federation.plan import ComponentRule, Plan
from federation.plan_check import find_problems
from federation.rounds import Figures
from studies.methods import changed
from studies.plain_rounds import PlainRun
from tests.studies.small_study import small_plan
from tests.studies.test_plain_rounds import settled

AMONG = {"among": "modalities", "kappa": "subsets", "clamp": False}


def factors(plan: Plan, rounds: int) -> tuple[Mapping[str, Mapping[str, float]], Figures]:
    """Institution to its step factors in the round after so many, and the figures that they follow from."""
    start = settled(plan)
    run = PlainRun(plan, start.data, start.randomness, start)
    for _ in range(rounds):
        run.step()
    run.begin()
    found = {}
    for name, work in run.works.items():
        training = work.updates.training()
        assert training is not None
        found[name] = training.step_factors
    state = run.state
    return found, Figures(state.scores, state.median_squared_overfitting)


def plan(**changes: Any) -> Plan:
    return changed(small_plan(rounds=5), {"preset": "custom", **changes})


def test_among_modalities_an_encoder_has_one_factor_everywhere() -> None:
    found, figures = factors(plan(blending=AMONG), 3)
    scores = {m: figures.scores[m] for m in ("mrna", "image", "clinical")}
    known = {m: score for m, score in scores.items() if score is not None}
    assert len(known) == 3
    total = sum(known.values())
    assert total > 0
    for owned in found.values():
        for component, factor in owned.items():
            kind, _, subset = component.partition("/")
            expected = 3 * known[subset] / total if kind == "encoder" else 1.0
            assert factor == pytest.approx(expected), component
    assert any(set(owned) == {"encoder/mrna", "classifier/mrna"} for owned in found.values())  # uni-modal ones too


def test_among_subsets_a_unimodal_institution_steps_by_eta() -> None:
    found, _ = factors(plan(), 3)
    assert all(set(owned.values()) == {1.0} for owned in found.values() if len(owned) == 2)
    assert any(set(owned.values()) != {1.0} for owned in found.values())


def test_a_components_step_multiplies_whatever_blending_gives() -> None:
    rules = (ComponentRule(name="encoder/mrna", step=0.25), ComponentRule(name="encoder/image", step=0.0))
    plain, _ = factors(plan(), 3)
    scaled, figures = factors(plan(components=rules, blending={"kind": "off"}), 3)
    assert figures.scores  # measured all the same
    for name, owned in scaled.items():
        for component, factor in owned.items():
            assert factor == {"encoder/mrna": 0.25, "encoder/image": 0.0}.get(component, 1.0)
        assert owned.keys() == plain[name].keys()


def test_from_the_start_the_first_round_counts() -> None:
    _, later = factors(plan(), 1)
    assert set(later.scores.values()) == {None}
    _, first = factors(plan(blending={"horizon": 0}), 1)
    assert None not in first.scores.values()


def test_an_institution_alone_blends_no_modalities_for_all() -> None:
    wrong = plan(blending={"kind": "local", "among": "modalities"})
    assert [p.path for p in find_problems(wrong)] == [("blending", "among")]
