"""Statistics in fixed point: 64-bit words, a power of two of them to a unit, and no sum that can wrap.

A word is the two's complement of an integer, so that adding words adds integers as long as the true sum stays below
half the ring; an encoding that does not promise that for all contributors together cannot be made (DESIGN.md, "Secure
sum", rule 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from federation.encoding_checks import RingOverflowError, check_array, check_contributors, check_positive
from security.errors import ConfigurationError, ConsiliumError

Float64Array = npt.NDArray[np.float64]
Uint64Array = npt.NDArray[np.uint64]


class StatisticRangeError(ConsiliumError):
    """A statistic is not finite, or larger than the bound that keeps its sum from wrapping."""

    code: ClassVar[str] = "statistic-out-of-range"


@dataclass(frozen=True, slots=True)
class StatisticsEncoding:
    """How statistics become 64-bit words: times `2^resolution_bits`, one rounding. An encoding that could
    wrap cannot be made.

    Args:
        bound: largest `|value|` that one institution may send, above 0.
        contributors: the most institutions whose words are added, at least 1.
        resolution_bits: binary digits after the point, 0 to 62; 0 for counts, whose sums are then exact.

    Raises:
        ConfigurationError: a field is out of range.
        RingOverflowError: `contributors · bound` does not fit.
    """

    bound: float
    contributors: int
    resolution_bits: int

    def __post_init__(self) -> None:
        check_positive(self.bound, "bound")
        check_contributors(self.contributors, 2**20)
        if not 0 <= self.resolution_bits <= 62:
            raise ConfigurationError(
                f"resolution_bits is {self.resolution_bits}.", remedy="Use 0 (counts) to 62 binary digits."
            )
        prove_statistics_no_wrap(self)

    @property
    def scale(self) -> float:
        """Words per unit: a power of two, so that scaling is exact."""
        return float(2**self.resolution_bits)


def prove_statistics_no_wrap(encoding: StatisticsEncoding) -> None:
    """Proves that `n·(bound·2^bits + 1/2) ≤ 2^63 − 1`.

    Raises:
        RingOverflowError: a sum could wrap; the text holds the arithmetic.
    """
    n, bits = encoding.contributors, encoding.resolution_bits
    largest = n * (Fraction(encoding.bound) * 2**bits + Fraction(1, 2))
    if largest > 2**63 - 1:
        raise RingOverflowError(
            f"n·(bound·2^bits + 1/2) = {n}·({encoding.bound!r}·2^{bits} + 1/2) = {float(largest):.4g} "
            f"exceeds 2^63 − 1 = {float(2**63 - 1):.4g}: the sum could wrap.",
            remedy="Lower the bound or the number of resolution bits.",
        )


def encode_statistics(
    values: Float64Array | npt.NDArray[np.int64],
    encoding: StatisticsEncoding,
    bounds: Float64Array | float | None = None,
) -> Uint64Array:
    """The words of one institution's statistics.

    Args:
        values: float64[n], or int64[n] (encoded exactly).
        encoding: the encoding that all contributors share.
        bounds: largest `|value|`, one for all or one each; at most `encoding.bound`, which None stands for.

    Returns:
        uint64[n].

    Raises:
        StatisticRangeError: a value is NaN, infinite or beyond its bound. The text names positions, never
            values.
        ConfigurationError: a bound is above `encoding.bound`, or an array has the wrong dtype or size.
    """
    integers = values.dtype == np.int64
    if not integers:
        check_array(values, np.float64, None, "values")
    check_array(values, values.dtype, None, "values")
    limits: Float64Array = np.asarray(encoding.bound if bounds is None else bounds, np.float64)
    if limits.ndim and limits.shape != values.shape:
        raise ConfigurationError(
            f"{limits.size} bounds for {values.size} statistics.", remedy="Give one bound, or one for each."
        )
    if not bool(np.all((limits >= 0) & (limits <= encoding.bound))):
        raise ConfigurationError(
            "a statistic's own bound is above the encoding's, negative or not a number.",
            remedy=f"Keep every bound in [0, {encoding.bound!r}].",
        )
    # Written so that NaN fails; int64 is compared on both sides because |−2^63| is not an int64.
    inside = (values <= limits) & (values >= -limits)
    if not bool(inside.all()):
        wrong = np.flatnonzero(~inside)
        raise StatisticRangeError(
            f"{wrong.size} of {values.size} statistics are not finite or beyond their bound.",
            remedy="Clip the statistic before it is summed, or raise the plan's bound for it.",
            place=f"statistic {int(wrong[0])}",
        )
    if integers:
        return (values.astype(np.int64) * np.int64(2**encoding.resolution_bits)).view(np.uint64)
    rounded: Float64Array = np.rint(np.multiply(values, encoding.scale))
    return rounded.astype(np.int64).view(np.uint64)


def decode_statistics(words: Uint64Array, encoding: StatisticsEncoding) -> Float64Array:
    """The sums behind opened words: float64[n], within `contributors/2` words of the true sums (exact for
    integers below 2^53)."""
    check_array(words, np.uint64, None, "words")
    decoded: Float64Array = words.view(np.int64).astype(np.float64) / encoding.scale
    return decoded
