"""Server optimisers: `w(t+1) = ServerOpt(w(t), δ_G)`, run by the coordinator and by every institution alike.

FedAvg, FedAvgM (Hsu, Qi, Brown 2019, arXiv 1909.06335), FedAdam and FedYogi (Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, arXiv 2003.00295, Algorithm 2; as there without bias correction). `δ_G`
points *along* the descent, so it is added.

Every institution checks the digest of the coordinator's `w(t+1)` (DESIGN.md, "Secure sum", rule 6), so the
result must be the same to the last bit wherever it is computed, whatever the block size: elementwise IEEE
operations in float64, one cast, and no subnormal float32 is ever stored, for some libraries switch the
processor to flushing those to zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError

Kind = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]

BLOCK: Final = 1 << 16
_SLOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "fedavg": (),
    "fedavgm": ("momentum",),
    "fedadam": ("m", "v"),
    "fedyogi": ("m", "v"),
}
_SNAP: Final = 1.5 * 2.0 ** (52 - 126)
"""`(x + _SNAP) − _SNAP` rounds a small float64 to a multiple of 2^-126, the smallest normal float32: no
subnormal."""

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ServerOptimiserSettings:
    """The plan's server optimiser.

    Args:
        kind: which one.
        learning_rate: `η`, above 0; 1 for plain FedAvg.
        momentum: `β` of FedAvgM, in [0, 1).
        beta1: decay of `m` in FedAdam and FedYogi, in [0, 1).
        beta2: decay of `v` in FedAdam and FedYogi, in [0, 1).
        tau: `τ`, the degree of adaptivity, above 0; `v` starts at `τ²`.

    Raises:
        ConfigurationError: a field is out of range.
    """

    kind: Kind = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigurationError(
                f"unknown server optimiser {self.kind!r}.", remedy=f"Use one of: {', '.join(get_args(Kind))}."
            )
        for name in ("learning_rate", "tau"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(
                    f"server optimiser: {name} is {value!r}.", remedy="Use a finite number above 0."
                )
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigurationError(f"server optimiser: {name} is {value!r}.", remedy="Use 0 <= value < 1.")


def state_slots(kind: Kind) -> tuple[str, ...]:
    """Names of the state vectors that `kind` keeps per component, each float32[n]."""
    return _SLOTS[kind]


def initial_value(settings: ServerOptimiserSettings, slot: str) -> float:
    """What a state vector is filled with before the first round: `v = τ²` (Reddi et al., Algorithm 2), else 0."""
    return settings.tau * settings.tau if slot == "v" else 0.0


def apply(
    settings: ServerOptimiserSettings,
    weights: Float32Array,
    delta: Float32Array,
    state: Mapping[str, Float32Array],
) -> None:
    """One server step, in place: `weights` and every vector of `state` are overwritten.

    Elementwise, so a component may be streamed through it in pieces of any size with the same result.

    Args:
        settings: the plan's optimiser.
        weights: float32[n], `w(t)`; becomes `w(t+1)`.
        delta: float32[n], `δ_G`; left alone.
        state: float32[n] for each of `state_slots(settings.kind)`; `initial_value` before the first round.

    Raises:
        ConfigurationError: a slot is missing or left over, or sizes or dtypes do not fit. Nothing was
            changed.
    """
    slots = state_slots(settings.kind)
    if set(state) != set(slots):
        raise ConfigurationError(
            f"{settings.kind} keeps {list(slots)}, and was given {sorted(state)}.",
            remedy="Start the run's optimiser state anew, or go back to the plan's optimiser.",
        )
    for name, array in (("weights", weights), ("delta", delta), *state.items()):
        if array.dtype != np.float32 or array.shape != (weights.size,):
            raise ConfigurationError(
                f"{name} must be float32[{weights.size}], and is {array.dtype.name}{list(array.shape)}.",
                remedy="Flatten every tensor of the component in plan order.",
            )
    size = min(BLOCK, weights.size)
    first, second = np.empty(size, np.float64), np.empty(size, np.float64)
    for start in range(0, weights.size, BLOCK):
        part = slice(start, min(start + BLOCK, weights.size))
        length = part.stop - part.start
        a, b = first[:length], second[:length]
        if settings.kind == "fedavg":
            _fedavg(settings, weights[part], delta[part], a)
        elif settings.kind == "fedavgm":
            _fedavgm(settings, weights[part], delta[part], state["momentum"][part], a, b)
        else:
            _adaptive(settings, weights[part], delta[part], state["m"][part], state["v"][part], a, b)


def _store(values: Float64Array, out: Float32Array) -> None:
    """Casts to float32 without ever making a subnormal."""
    np.add(values, _SNAP, out=values)
    np.subtract(values, _SNAP, out=values)
    np.copyto(out, values, casting="same_kind")


def _fedavg(s: ServerOptimiserSettings, w: Float32Array, d: Float32Array, a: Float64Array) -> None:
    """`w += η δ`. At η = 1 the float32 sum itself: it equals the cast float64 sum, at half the cost."""
    if s.learning_rate == 1.0:
        np.add(w, d, out=w)
        return
    np.multiply(d, s.learning_rate, out=a, dtype=np.float64)
    np.add(w, a, out=a)
    _store(a, w)


def _fedavgm(
    s: ServerOptimiserSettings,
    w: Float32Array,
    d: Float32Array,
    m: Float32Array,
    a: Float64Array,
    b: Float64Array,
) -> None:
    """`m = β m + δ`, `w += η m`."""
    np.multiply(m, s.momentum, out=a, dtype=np.float64)
    np.add(a, d, out=a)
    _store(a, m)
    np.multiply(m, s.learning_rate, out=b, dtype=np.float64)
    np.add(w, b, out=b)
    _store(b, w)


def _adaptive(
    s: ServerOptimiserSettings,
    w: Float32Array,
    d: Float32Array,
    m: Float32Array,
    v: Float32Array,
    a: Float64Array,
    b: Float64Array,
) -> None:
    """Reddi et al., Algorithm 2: `m = β1 m + (1−β1) δ`; Adam `v = β2 v + (1−β2) δ²`; Yogi
    `v −= (1−β2) δ² sign(v − δ²)`; `w += η m / (√v + τ)`."""
    np.multiply(m, s.beta1, out=a, dtype=np.float64)
    np.multiply(d, 1.0 - s.beta1, out=b, dtype=np.float64)
    np.add(a, b, out=a)
    _store(a, m)

    np.multiply(d, d, out=b, dtype=np.float64)
    if s.kind == "fedadam":
        np.multiply(b, 1.0 - s.beta2, out=b)
        np.multiply(v, s.beta2, out=a, dtype=np.float64)
        np.add(a, b, out=a)
    else:
        np.subtract(v, b, out=a)
        np.sign(a, out=a)
        np.multiply(a, b, out=a)
        np.multiply(a, 1.0 - s.beta2, out=a)
        np.subtract(v, a, out=a)
    _store(a, v)

    np.copyto(a, v)
    np.sqrt(a, out=a)
    np.add(a, s.tau, out=a)
    np.multiply(m, s.learning_rate, out=b, dtype=np.float64)
    np.divide(b, a, out=b)
    np.add(w, b, out=b)
    _store(b, w)
