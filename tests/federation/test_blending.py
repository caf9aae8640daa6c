"""DGB: what must hold for any losses. The hand-computed rounds are in test_dgb_pcw_vectors.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.blending import (
    BlendingState,
    LossSums,
    advance,
    blending_score,
    default_settings,
    paper_settings,
    step_weights,
)

NAMES = ("mrna", "image", "clinical", "mrna+image+clinical")
loss = st.floats(0, 5)
settings_strategy = st.builds(
    replace,
    st.sampled_from([default_settings(), paper_settings()]),
    kappa=st.sampled_from(["one", "subsets"]),
    smoothing=st.floats(0, 1),
    window=st.integers(1, 4),
    generalisation=st.sampled_from(["fall", "absolute"]),
    overfitting=st.sampled_from(["delta-sums", "weighted-means"]),
    horizon=st.integers(0, 3),
)
histories = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.tuples(st.floats(0, 1), loss, loss, loss, loss), max_size=4), max_size=6
)


def sums(p: float, t: float, v: float, t0: float, v0: float) -> LossSums:
    return LossSums.contribution(p, t, v, (t0, v0), 5.0)


@given(settings_strategy, histories, st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.integers(0, 5))
def test_any_history_gives_usable_steps(settings, history, subsets, round_index) -> None:  # type: ignore[no-untyped-def] # Hypothesis draws them
    state = BlendingState()
    scores: dict[str, float | None] = {}
    for losses in history:
        before = json.dumps(state.to_json())
        following, figures = advance(state, {k: sums(*v) for k, v in losses.items()}, settings)
        assert json.dumps(state.to_json()) == before  # the state given is not touched
        restored = BlendingState.from_json(json.loads(json.dumps(following.to_json())))
        assert restored == following
        assert advance(restored, {}, settings) == advance(following, {}, settings)
        state, scores = following, figures.scores()
        for score in scores.values():
            assert score is None or (math.isfinite(score) and score >= 0)
    unclamped = replace(settings, clamp=False)
    steps = step_weights(scores, subsets, unclamped, round_index)
    kappa = len(subsets) if settings.kappa == "subsets" else 1
    expected = 1.0 if len(subsets) == 1 else kappa
    assert math.fsum(steps.values()) == pytest.approx(expected)
    assert all(f >= 0 for f in steps.values())
    clamped = step_weights(scores, subsets, replace(settings, clamp=True), round_index)
    for name, factor in clamped.items():
        assert factor == (1.0 if len(subsets) == 1 else min(max(steps[name], settings.v_min), settings.v_max))


@given(st.lists(st.tuples(st.floats(0.01, 1), loss, loss, loss, loss), min_size=1, max_size=9))
def test_sums_are_weighted_means_of_the_institutions(parts: list[tuple[float, ...]]) -> None:
    total = LossSums(0, 0, 0, 0, 0)
    for part in parts:
        total = total + sums(*part)
    means = total.means()
    assert means is not None
    weight = math.fsum(p[0] for p in parts)
    assert means.training == pytest.approx(math.fsum(p[0] * p[1] for p in parts) / weight, abs=1e-9)
    assert means.validation == pytest.approx(math.fsum(p[0] * p[2] for p in parts) / weight, abs=1e-9)
    expected = math.fsum(p[0] * (p[2] - p[4]) for p in parts) / weight
    assert means.validation_delta == pytest.approx(expected, abs=1e-9)


def test_other_survivors_invent_no_overfitting() -> None:
    """Institution a is at (1, 1), b at (0, 3); nothing changes but who survives."""
    a, b = LossSums.contribution(1, 1, 1, (1, 1), 5), LossSums.contribution(1, 0, 3, (0, 3), 5)
    for settings, invented in ((default_settings(), 0.0), (paper_settings(), (3 - 0) - (2 - 0.5))):
        state, _ = advance(BlendingState(), {"mrna": a + b}, settings)
        _, figures = advance(state, {"mrna": b}, settings)
        assert figures.subsets["mrna"].overfitting == invented


def test_losses_without_weight_leave_the_last_ones_standing() -> None:
    settings = default_settings()
    state, _ = advance(BlendingState(), {"mrna": sums(1, 1, 1, 1, 1)}, settings)
    state, first = advance(state, {"mrna": sums(1, 0.9, 0.8, 1, 1)}, settings)
    for nothing in (
        {},
        {"mrna": LossSums(0, 0, 0, 0, 0)},
        {"mrna": LossSums(3, 3, 3, 3, -1e-9)},
        {"mrna": LossSums(1e-9, 5e-9, 0, 0, 1e-9)},
    ):
        after, figures = advance(state, nothing, settings)
        assert after == state
        assert figures.subsets["mrna"] == replace(first.subsets["mrna"], fresh=False)


def test_a_fall_is_rewarded_and_overfitting_punished() -> None:
    settings = default_settings()
    start = {name: sums(1, 1, 1, 1, 1) for name in ("good", "overfit", "rising", "still")}
    state, figures = advance(BlendingState(), start, settings)
    assert not any(f.known for f in figures.subsets.values())
    _, figures = advance(
        state,
        {
            "good": sums(1, 0.9, 0.9, 1, 1),
            "overfit": sums(1, 0.7, 0.9, 1, 1),
            "rising": sums(1, 1.2, 1.2, 1, 1),
            "still": sums(1, 1, 1, 1, 1),
        },
        settings,
    )
    scores = figures.scores()
    assert scores["good"] > scores["overfit"] > scores["rising"] == scores["still"] == 0  # type: ignore[operator] # known
    absolute = replace(settings, generalisation="absolute")
    _, figures = advance(state, {"rising": sums(1, 1.2, 1.2, 1, 1), "good": sums(1, 0.9, 0.9, 1, 1)}, absolute)
    assert figures.scores()["rising"] > figures.scores()["good"]  # type: ignore[operator] # known: what METHOD.md warns of


def test_the_window_forgets() -> None:
    settings = replace(default_settings(), window=2, smoothing=1.0)
    state = BlendingState()
    for validation in (1.0, 0.4, 0.4, 0.2):
        last = state.subsets["s"].validation if state.subsets else 1.0
        state, figures = advance(state, {"s": sums(1, 0.5, validation, 0.5, last)}, settings)
    assert figures.subsets["s"].generalisation == pytest.approx(0.1)
    assert len(state.subsets["s"].generalisation) == 2


@pytest.mark.parametrize("horizon", [0, 1, 2, 3, 9])
def test_over_a_horizon_changes_are_added_up(horizon: int) -> None:
    """Against the losses of so many rounds ago, whose differences they are; from the start, against those at w(0)."""
    settings = replace(default_settings(), horizon=horizon, window=1)
    curve = [(1.0, 1.0), (0.9, 0.95), (0.7, 0.8), (0.6, 0.85), (0.3, 0.9)]
    state = BlendingState()
    for now, (training, validation) in enumerate(curve[1:], 1):
        last = curve[now - 1]
        state, figures = advance(state, {"s": sums(1, training, validation, *last)}, settings)
        # The first round's change is counted only where everybody has losses at w(0).
        first = 0 if horizon == 0 else max(1, now - horizon)
        found = figures.subsets["s"]
        if not found.known:
            assert now == 1
            assert horizon > 0
            continue
        fell = curve[first][1] - validation
        assert found.generalisation == pytest.approx(max(0.0, fell))
        assert found.overfitting == pytest.approx(curve[first][0] - training - fell)


def test_noise_of_one_round_cancels_over_a_horizon() -> None:
    """Ups and downs around a steady course look like overfitting in each round, and like nothing over all of them."""
    steady = replace(default_settings(), window=1)
    scores = {}
    for horizon in (1, 0):
        state = BlendingState()
        for now in range(1, 9):
            noise, before = (0.02 * (-1) ** k for k in (now, now - 1))
            losses = sums(1, 1 - 0.05 * now, 1 - 0.05 * now + noise, 1.05 - 0.05 * now, 1.05 - 0.05 * now + before)
            state, figures = advance(state, {"s": losses}, replace(steady, horizon=horizon))
        scores[horizon] = figures.subsets["s"]
    assert scores[1].overfitting == pytest.approx(0.04)
    assert scores[0].overfitting == pytest.approx(0.0)
    assert scores[0].generalisation == pytest.approx(0.4)


def test_hierarchical_blending_is_the_same_function_on_ones_own_losses() -> None:
    settings, state, last = default_settings(), BlendingState(), None
    for now in ((1.0, 1.0), (0.9, 0.8)):
        own = {name: LossSums.contribution(1.0, *now, last, 5.0) for name in ("mrna", "image", "mrna+image")}
        state, figures = advance(state, own, settings)
        last = now
    assert step_weights(figures.scores(), ["mrna", "image", "mrna+image"], settings, 2) == pytest.approx(
        dict.fromkeys(("mrna", "image", "mrna+image"), 1 / 3)
    )


def test_a_private_combination_is_scored_on_the_federations_scale() -> None:
    settings = default_settings()
    state, _ = advance(BlendingState(), {"a+b": sums(1, 1, 1, 1, 1)}, settings)
    own = {"a+b": sums(1, 0.8, 0.9, 1, 1)}
    alone, published = advance(state, own, settings)[1], advance(state, own, settings, 0.5)[1]
    assert alone.subsets["a+b"].overfitting == pytest.approx(0.1)
    assert alone.subsets["a+b"].generalisation == pytest.approx(0.1)
    assert alone.scores()["a+b"] == pytest.approx(blending_score(0.1, 0.1, 0.01, settings))
    assert published.scores()["a+b"] == pytest.approx(blending_score(0.1, 0.1, 0.5, settings))


def test_without_epsilon_every_figure_is_still_finite() -> None:
    settings = replace(default_settings(), epsilon=0.0)
    state, _ = advance(BlendingState(), {"s": sums(1, 1, 1, 1, 1)}, settings)
    _, figures = advance(state, {"s": sums(1, 0.5, 1, 1, 1)}, settings)
    assert figures.subsets["s"].score == 0.0
    assert figures.subsets["s"].dogr == pytest.approx(0.5 / 1e-6)
