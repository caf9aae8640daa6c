"""PCW, proximity-aware client weighting: `p_i`, how far an institution's trajectory runs along the global
one.

METHOD.md, "PCW". An institution computes its own `p_i` from the published `δ_G`; nobody else learns it. `p_i`
weights *losses* in sum B, not models. Components are read once, in blocks; all three kinds are then made from
three numbers a component.

Degenerate cases, defined: a vector of norm zero has cosine 0 with everything (so `cosine` gives its floor);
an institution alone in a component (`α_i = Σα`) leaves nothing to compare with, and its cosine there is 0;
where no component is opened, `cosine` gives its floor and `inner` 0; where every `δ_G` is zero, `inner` is 0,
`Σp` is zero and the last losses stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError, ConsiliumError

Kind = Literal["inner", "cosine", "size"]

BLOCK: Final = 1 << 16
_NOTHING_LEFT: Final = 1e-12
"""`‖δ_G − share·δ_i‖²` below this part of its terms is rounding of the fixed point, not a trajectory."""

Float32Array = npt.NDArray[np.float32]


class ProximityInputError(ConsiliumError):
    """Trajectories or shares from which no proximity can be computed."""

    code: ClassVar[str] = "proximity-input"


@dataclass(frozen=True, slots=True)
class ProximitySettings:
    """How `p_i` is computed; every field is a field of the plan.

    Args:
        kind: `inner` (the paper's), `cosine` or `size` (PCW off).
        floor: `p_floor` of `cosine`, in [0, 1].
        bound: the largest `p_i` of `inner`, finite and above 0.

    Raises:
        ConfigurationError: a field is out of range.
    """

    kind: Kind = "cosine"
    floor: float = 0.05
    bound: float = 16.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigurationError(
                f"unknown proximity {self.kind!r}.", remedy=f"Use one of: {', '.join(get_args(Kind))}."
            )
        if not 0 <= self.floor <= 1:
            raise ConfigurationError(f"proximity: floor is {self.floor!r}.", remedy="Use 0 to 1.")
        if not 0 < self.bound < math.inf:
            raise ConfigurationError(f"proximity: bound is {self.bound!r}.", remedy="Use a finite number above 0.")

    @property
    def largest(self) -> float:
        """The largest `p_i` that can occur: what the encoding of sum B must have room for."""
        return self.bound if self.kind == "inner" else 1.0


@dataclass(frozen=True, slots=True)
class ComponentDots:
    """`⟨δ_i, δ_G⟩`, `‖δ_i‖²` and `‖δ_G‖²` of one component.

    Raises:
        ProximityInputError: a number is not finite, or a squared norm negative.
    """

    inner: float
    own: float
    total: float

    def __post_init__(self) -> None:
        if not (all(map(math.isfinite, (self.inner, self.own, self.total))) and self.own >= 0 and self.total >= 0):
            raise ProximityInputError(
                "a trajectory holds NaN or infinite values.", remedy="Lower the learning rate or clip gradients."
            )

    def __add__(self, other: ComponentDots) -> ComponentDots:
        return ComponentDots(self.inner + other.inner, self.own + other.own, self.total + other.total)


class DotSums:
    """The three products of one component, summed up block by block, in float64.

    By numpy's pairwise sum, not by BLAS, whose result changes with its number of threads. Whoever adds the same blocks
    of `BLOCK` elements in the same order gets the same bits: over gRPC, in memory, from files.
    """

    def __init__(self) -> None:
        self._sums = [0.0, 0.0, 0.0]
        self._scratch: list[npt.NDArray[np.float64]] = []

    def add(self, own: Float32Array, total: Float32Array) -> None:
        """Takes the next elements in: `δ_i` and `δ_G`, float32[n] each.

        Raises:
            ConfigurationError: the sizes differ.
        """
        if own.shape != total.shape or own.ndim != 1:
            raise ConfigurationError(
                f"trajectories of shapes {own.shape} and {total.shape}.", remedy="Flatten both in plan order."
            )
        if not self._scratch or len(self._scratch[0]) < own.size:
            self._scratch = [np.empty(own.size, np.float64) for _ in range(3)]
        x, y, product = (array[: own.size] for array in self._scratch)
        np.copyto(x, own)
        np.copyto(y, total)
        for k, (left, right) in enumerate(((x, y), (x, x), (y, y))):
            np.multiply(left, right, out=product)
            self._sums[k] += float(np.add.reduce(product))

    def result(self) -> ComponentDots:
        """The products of everything that was added.

        Raises:
            ProximityInputError: a value was not finite.
        """
        return ComponentDots(*self._sums)


def component_dots(own: Float32Array, total: Float32Array) -> ComponentDots:
    """The three products of one component that is there as a whole.

    Args:
        own: float32[n], `δ_i` as it was encoded (clipped).
        total: float32[n], the opened `δ_G`.

    Raises:
        ConfigurationError: the sizes differ.
        ProximityInputError: a value is not finite.
    """
    sums = DotSums()
    for start in range(0, max(own.size, total.size), BLOCK):
        sums.add(own[start : start + BLOCK], total[start : start + BLOCK])
    return sums.result()


def inner(dots: Iterable[ComponentDots], bound: float) -> float:
    """`max(0, ⟨δ_i, δ_G⟩) / ‖δ_G‖²` on the concatenation, at most `bound`; 0 where `δ_G` is zero."""
    summed = sum(dots, ComponentDots(0.0, 0.0, 0.0))
    if summed.total <= 0:
        return 0.0
    return min(max(0.0, summed.inner) / summed.total, bound)


def cosine(dots: ComponentDots, share: float) -> float:
    """`cos(δ_i, δ_G − share·δ_i)` with `share = α_i / Σα`: against the trajectory of the others, in [−1, 1].

    Args:
        dots: of one component.
        share: in [0, 1]; 0 compares with `δ_G` as it is.

    Raises:
        ProximityInputError: `share` is out of range by more than the weight's own rounding.
    """
    if not -1e-6 <= share <= 1 + 1e-6:
        raise ProximityInputError(
            "an institution's share of a component is outside [0, 1].", remedy="Check the opened sum of weights."
        )
    along = dots.inner - share * dots.own
    others = dots.total - 2.0 * share * dots.inner + share * share * dots.own
    if dots.own <= 0 or share >= 1 or others <= _NOTHING_LEFT * (dots.total + share * share * dots.own):
        return 0.0
    return min(1.0, max(-1.0, along / (math.sqrt(dots.own) * math.sqrt(others))))


def proximity(
    settings: ProximitySettings,
    dots: Mapping[str, ComponentDots],
    shares: Mapping[str, float],
    components: Iterable[str],
    size_weight: float,
) -> float:
    """`p_i` for one subset.

    Args:
        settings: the plan's.
        dots: of every *opened* component that the institution owns; private ones are not in it.
        shares: `α_i / Σα` of the same components (`cosine` only).
        components: those of the subset (`cosine` only; `inner` is one number for all subsets, over all of
            `dots`). What was not opened is passed over.
        size_weight: `ñ_i / N_s`, in [0, 1] (`size` only).

    Returns:
        `p_i`, in [0, settings.largest].

    Raises:
        ProximityInputError: a share is missing or out of range, or `size_weight` is.
    """
    if settings.kind == "inner":
        return inner((dots[name] for name in sorted(dots)), settings.bound)
    if settings.kind == "size":
        if not 0 <= size_weight <= 1:
            raise ProximityInputError(
                "an institution's share of a subset's patients is outside [0, 1].", remedy="Check the opened total N_s."
            )
        return size_weight
    opened = sorted(set(components) & set(dots))
    if missing := [name for name in opened if name not in shares]:
        raise ProximityInputError(f"no share is known of {missing[0]!r}.", remedy="Pass α_i / Σα for every component.")
    if not opened:
        return settings.floor
    mean = math.fsum(cosine(dots[name], shares[name]) for name in opened) / len(opened)
    return min(1.0, max(settings.floor, mean))
