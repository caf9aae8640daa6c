"""The losses of one subset, as an institution sends them into sum B and as they are opened.

METHOD.md, "One round", step 6, and "PCW": losses are per-patient means at the published `w(t+1)`, clipped at
`L_max`, and weighted with `p_i`; the change `ΔL` is against the institution's own losses at `w(t)`, with the same
`p_i`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from security.errors import ConsiliumError


class BlendingInputError(ConsiliumError):
    """A loss, a sum of losses or a score that no honest computation yields."""

    code: ClassVar[str] = "blending-input"


@dataclass(frozen=True, slots=True)
class LossMeans:
    """Weighted mean losses of a subset in one round, and mean changes against each institution's own last
    losses."""

    training: float
    validation: float
    training_delta: float
    validation_delta: float


@dataclass(frozen=True, slots=True)
class LossSums:
    """What sum B opens for one subset: `Σ p L^T, Σ p L^V, Σ p ΔL^T, Σ p ΔL^V, Σ p` (METHOD.md, "One round",
    step 6).

    Raises:
        BlendingInputError: a sum is NaN or infinite.
    """

    training: float
    validation: float
    training_delta: float
    validation_delta: float
    weight: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.values())):
            raise BlendingInputError("a sum of losses is not finite.", remedy="Drop the round: the sum is damaged.")

    @classmethod
    def contribution(
        cls, weight: float, training: float, validation: float, last: tuple[float, float] | None, largest: float
    ) -> LossSums:
        """One institution's part: its mean losses, clipped at `largest`, times its `p_i`.

        Args:
            weight: `p_i` (PCW), finite and at least 0; 1 for an institution's own blending.
            training: mean training loss per patient at `w(t+1)`, in evaluation mode; at least 0 (+∞ is
                clipped).
            validation: the same on the validation part.
            last: (training, validation) of the institution itself at `w(t)`; None sends zeros.
            largest: `L_max`, above 0.

        Raises:
            BlendingInputError: a loss is NaN or negative, or the weight is not a finite number of at least 0.
        """
        previous = (training, validation) if last is None else last
        for value in (training, validation, *previous):
            if not value >= 0:
                raise BlendingInputError(
                    "a loss is NaN or negative.", remedy="Check the training data and lower the learning rate."
                )
        if not (math.isfinite(weight) and weight >= 0):
            raise BlendingInputError("a proximity is not a finite number of 0 or more.", remedy="Check δ_i and δ_G.")
        t, v, t0, v0 = (min(value, largest) for value in (training, validation, *previous))
        return cls(weight * t, weight * v, weight * (t - t0), weight * (v - v0), weight)

    def values(self) -> tuple[float, float, float, float, float]:
        """In the order in which they are summed."""
        return self.training, self.validation, self.training_delta, self.validation_delta, self.weight

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def means(self, weight_floor: float = 0.0) -> LossMeans | None:
        """The sums over `Σ p`; None where `Σ p ≤ weight_floor`: nobody's losses count, the last ones
        stand."""
        if self.weight <= max(weight_floor, 0.0):
            return None
        sums = (self.training, self.validation, self.training_delta, self.validation_delta)
        quotients = tuple(value / self.weight for value in sums)
        if not all(map(math.isfinite, quotients)):  # a subnormal weight
            return None
        return LossMeans(*quotients)
