"""Who hears an institution's own figures, for the hospital's metrics. Nothing of it is ever sent."""

from __future__ import annotations

from collections.abc import Mapping


class Recorder:
    """Hears local figures, for the hospital's own metrics; keeps nothing. Nothing of it is ever sent."""

    def trained(self, round_: int, mean_loss: float, factors: Mapping[str, float]) -> None:
        """K local steps were taken."""

    def updated(self, component: str, norm: float, clipped: int) -> None:
        """A trajectory was encoded."""

    def weighed(self, component: str, alpha: float) -> None:
        """α_i of a trajectory in its sum."""

    def evaluated(self, subset: str, training: float, validation: float | None) -> None:
        """Losses at the published model."""

    def near(self, subset: str, proximity: float) -> None:
        """p_i of a subset."""

    def spent(self, epsilon: float, limit: float) -> None:
        """The privacy ledger moved."""
