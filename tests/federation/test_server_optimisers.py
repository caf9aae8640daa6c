"""Server optimisers: the textbook's steps, the same bits for any block size, nothing changed on a mistake."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import server_optimisers as so
from security.errors import ConfigurationError

KINDS: tuple[so.Kind, ...] = ("fedavg", "fedavgm", "fedadam", "fedyogi")
TINY = np.finfo(np.float32).tiny


def fresh(kind: so.Kind, size: int) -> dict[str, np.ndarray]:
    return {slot: np.zeros(size, np.float32) for slot in so.state_slots(kind)}


def reference(s: so.ServerOptimiserSettings, w: float, deltas: list[float], v0: float = 0.0) -> float:
    """Reddi et al. 2021, Algorithm 2, on one number, in float64."""
    m, v = 0.0, v0
    for d in deltas:
        if s.kind == "fedavg":
            w += s.learning_rate * d
        elif s.kind == "fedavgm":
            m = s.momentum * m + d
            w += s.learning_rate * m
        else:
            m = s.beta1 * m + (1 - s.beta1) * d
            if s.kind == "fedadam":
                v = s.beta2 * v + (1 - s.beta2) * d * d
            else:
                v = v - (1 - s.beta2) * d * d * math.copysign(1, v - d * d) if v != d * d else v
            w += s.learning_rate * m / (math.sqrt(v) + s.tau)
    return w


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40)
def test_it_is_the_textbooks_step(kind: so.Kind, data: st.DataObject) -> None:
    s = so.ServerOptimiserSettings(kind=kind, learning_rate=data.draw(st.sampled_from([1.0, 0.3])), tau=0.01)
    deltas = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
    w, state = np.array([0.5], np.float32), fresh(kind, 1)
    for slot, vector in state.items():
        vector[:] = so.initial_value(s, slot)
    for d in deltas:
        so.apply(s, w, np.array([d], np.float32), state)
    assert float(w[0]) == pytest.approx(reference(s, 0.5, deltas, v0=0.01**2), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(cut=st.integers(0, 1000))
@settings(max_examples=20)
def test_streamed_in_pieces_it_gives_the_same_bits(kind: so.Kind, cut: int) -> None:
    size = so.BLOCK + 1000
    s = so.ServerOptimiserSettings(kind=kind, learning_rate=0.7)
    rng = np.random.default_rng(5)
    delta = rng.normal(0, 0.01, size).astype(np.float32)
    whole, pieces = (rng.normal(0, 0.1, size).astype(np.float32) for _ in range(2))
    pieces[:] = whole
    state_whole, state_pieces = fresh(kind, size), fresh(kind, size)
    for _ in range(2):
        so.apply(s, whole, delta, state_whole)
        for part in (slice(0, cut), slice(cut, so.BLOCK + cut), slice(so.BLOCK + cut, None)):
            so.apply(s, pieces[part], delta[part], {k: v[part] for k, v in state_pieces.items()})
    assert whole.tobytes() == pieces.tobytes()
    for slot in state_whole:
        assert state_whole[slot].tobytes() == state_pieces[slot].tobytes()


def test_fedavg_adds() -> None:
    rng = np.random.default_rng(1)
    w, d = (rng.normal(0, 1, 1000).astype(np.float32) for _ in range(2))
    expected = (w.astype(np.float64) + d).astype(np.float32)
    so.apply(so.ServerOptimiserSettings(), w, d, {})
    assert np.array_equal(w, expected)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam", "fedyogi"])
def test_a_decaying_state_never_becomes_subnormal(kind: so.Kind) -> None:
    """Some libraries make the processor flush subnormal numbers to zero: institutions would then disagree."""
    s = so.ServerOptimiserSettings(kind=kind, learning_rate=1e-3, momentum=0.5, beta1=0.5, beta2=0.5)
    w, state = np.zeros(64, np.float32), fresh(kind, 64)
    so.apply(s, w, np.linspace(1e-30, 1e-10, 64, dtype=np.float32), state)
    for _ in range(200):
        so.apply(s, w, np.zeros(64, np.float32), state)
        for vector in (w, *state.values()):
            assert not np.any((vector != 0) & (np.abs(vector) < TINY))
    assert all(not state[slot].any() for slot in state if kind != "fedyogi" or slot == "m")


def test_slots_and_their_first_values() -> None:
    assert [so.state_slots(kind) for kind in KINDS] == [(), ("momentum",), ("m", "v"), ("m", "v")]
    s = so.ServerOptimiserSettings(kind="fedadam", tau=0.5)
    assert [so.initial_value(s, slot) for slot in ("m", "v")] == [0.0, 0.25]


def test_mistakes_change_nothing() -> None:
    s = so.ServerOptimiserSettings(kind="fedadam")
    good = fresh("fedadam", 2)
    for weights, delta, state in (
        (np.ones(2, np.float32), np.ones(3, np.float32), good),
        (np.ones(2, np.float32), np.ones(2, np.float64), good),
        (np.ones(2, np.float32), np.ones(2, np.float32), {"m": good["m"]}),
        (np.ones(2, np.float32), np.ones(2, np.float32), {**good, "momentum": good["m"]}),
        (np.ones(2, np.float32), np.ones(2, np.float32), {"m": good["m"], "v": np.zeros(1, np.float32)}),
    ):
        with pytest.raises(ConfigurationError):
            so.apply(s, weights, delta, state)  # type: ignore[arg-type] # that is the point
        assert weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    "field",
    [
        {"kind": "sgd"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"beta1": -0.1},
        {"beta2": math.nan},
        {"tau": 0.0},
        {"tau": math.inf},
    ],
)
def test_bad_settings_cannot_be_made(field: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        so.ServerOptimiserSettings(**field)  # type: ignore[arg-type] # that is the point
