"""Fixed point: how real numbers enter a secure sum, and why no sum can wrap (DESIGN.md, "Secure sum", rule
1).

Model vectors live in the ring mod 2^32, one word a parameter; statistics in the ring mod 2^64. A word is the
two's complement of an integer, so that adding words adds integers as long as the true sum stays below half
the ring. That is a promise about *all* institutions together, and `prove_no_wrap` and
`prove_statistics_no_wrap` check it in exact arithmetic before anything is summed.

Everything here is one multiplication and one rounding in IEEE float64, element by element: the same bits on
every machine, for any block size, so institutions and coordinator agree on `δ_G` to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError, ConsiliumError

BLOCK: Final = 1 << 16
"""Elements per block: 512 KiB of float64 scratch stays in the second-level cache."""

_SLACK: Final = 1 + Fraction(1, 2**50)
"""Covers the float64 roundings of `α·scale` and of the product, each at most 2^-53 relative."""

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Uint32Array = npt.NDArray[np.uint32]
Uint64Array = npt.NDArray[np.uint64]


class NonFiniteUpdateError(ConsiliumError):
    """An update holds NaN or infinity and must not be masked."""

    code: ClassVar[str] = "non-finite-update"


class RingOverflowError(ConfigurationError):
    """A sum under this encoding could wrap around its ring."""

    code: ClassVar[str] = "ring-overflow"


class WeightError(ConfigurationError):
    """A weight `α` is not in `[0, headroom]`, or an opened sum of weights is not positive."""

    code: ClassVar[str] = "weight-out-of-range"


class StatisticRangeError(ConsiliumError):
    """A statistic is not finite, or larger than the bound that keeps its sum from wrapping."""

    code: ClassVar[str] = "statistic-out-of-range"


def _check_array(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int | None, what: str) -> None:
    if array.dtype != np.dtype(dtype) or array.ndim != 1 or (size is not None and array.size != size):
        expected = f"{np.dtype(dtype).name}[{'n' if size is None else size}]"
        raise ConfigurationError(
            f"{what} must be {expected}, and is {array.dtype.name}{list(array.shape)}.",
            remedy="Flatten the tensor and convert it before it is encoded or decoded.",
        )


def _check_positive(value: float, what: str) -> None:
    # The limits keep every scale and quotient of two of them a normal float64. NaN fails both comparisons.
    if not 1e-100 <= value <= 1e100:
        raise ConfigurationError(f"{what} is {value!r}.", remedy=f"Set {what} to a number above 0, up to 1e100.")


def _check_contributors(contributors: int, largest: int) -> None:
    if not 1 <= contributors <= largest:
        raise ConfigurationError(
            f"{contributors} contributors.", remedy=f"A secure sum has between 1 and {largest} contributors."
        )


# ------------------------------------------------------------------------------------ model vectors, mod 2^32


@dataclass(frozen=True, slots=True)
class ModelEncoding:
    """How `α·δ` becomes 32-bit words (DESIGN.md, "Secure sum", rule 1).

    Args:
        clip: largest `|δ|` of one parameter, above 0; what is larger is clipped and counted.
        headroom: the largest `Σα` that can occur, above 0 (1 where `α_i = ñ_i / N_c`).
        contributors: the most institutions whose words are added, at least 1.

    Raises:
        ConfigurationError: a field is out of range.
    """

    clip: float
    headroom: float
    contributors: int

    def __post_init__(self) -> None:
        _check_positive(self.clip, "clip")
        _check_positive(self.headroom, "headroom")
        _check_contributors(self.contributors, 2**20)

    @property
    def scale(self) -> float:
        """Words per unit of `α·δ`; one word is `1/scale`."""
        return float(2**31 - 1 - self.contributors) / (self.clip * self.headroom)

    @property
    def weight_scale(self) -> float:
        """Words per unit of `α`."""
        return float(2**31 - 1 - self.contributors) / self.headroom


def prove_no_wrap(encoding: ModelEncoding, largest_weight_sum: float) -> None:
    """Proves, in exact arithmetic, that no sum of `encoding.contributors` updates leaves the ring.

    Each word is at most `α·clip·scale` and half a word of rounding, so the sum is at most
    `Σα·clip·scale + n/2`, which must not exceed `2^31 − 1`.

    Args:
        encoding: the encoding of the component.
        largest_weight_sum: the largest `Σα` over the component's owners, finite and at least 0.

    Raises:
        RingOverflowError: a sum could wrap; the text holds the arithmetic.
    """
    n = encoding.contributors
    if not (math.isfinite(largest_weight_sum) and largest_weight_sum >= 0):
        raise RingOverflowError(
            f"the largest sum of weights is {largest_weight_sum!r}.",
            remedy="It must be a finite number, 0 or above.",
        )
    for name, step in (
        ("clip·scale", Fraction(encoding.clip) * Fraction(encoding.scale)),
        ("weight_scale", Fraction(encoding.weight_scale)),
    ):
        largest = Fraction(largest_weight_sum) * step * _SLACK + Fraction(n, 2)
        if largest > 2**31 - 1:
            raise RingOverflowError(
                f"Σα·{name} + n/2 = {largest_weight_sum!r}·{float(step):.1f} + {n}/2 = {float(largest):.1f} "
                f"exceeds 2^31 − 1 = {2**31 - 1}: the sum could wrap.",
                remedy=f"Set headroom to at least {largest_weight_sum!r} (it is {encoding.headroom!r}).",
            )


def _check_weight(alpha: float, encoding: ModelEncoding) -> None:
    if not (math.isfinite(alpha) and 0 <= alpha <= encoding.headroom):
        raise WeightError(
            f"a weight α is outside [0, {encoding.headroom!r}].",
            remedy="α is this institution's share of the component's patients; check the opened total N_c.",
        )


def encode_update(delta: Float32Array, alpha: float, encoding: ModelEncoding, out: Uint32Array) -> int:
    """Writes the words of `α·δ` into `out`: clip, scale, one rounding (half to even), two's complement.

    Works in blocks through one float64 scratch of 512 KiB: no second copy of a model. `out` may be
    `delta.view(numpy.uint32)`; then the update is replaced by its words.

    Args:
        delta: float32[n], the update `δ` of one component.
        alpha: the weight `α`, in `[0, encoding.headroom]`.
        encoding: the component's encoding.
        out: uint32[n], overwritten. Meaningless where an error is raised.

    Returns:
        How many values were clipped to `±encoding.clip`.

    Raises:
        NonFiniteUpdateError: `delta` holds NaN or infinity.
        WeightError: `alpha` is out of range.
        ConfigurationError: an array has the wrong dtype or size.
    """
    _check_array(delta, np.float32, None, "delta")
    _check_array(out, np.uint32, delta.size, "out")
    _check_weight(alpha, encoding)
    factor, clip = alpha * encoding.scale, encoding.clip
    signed = out.view(np.int32)
    scratch = np.empty(min(BLOCK, delta.size), np.float64)
    clipped = 0
    for start in range(0, delta.size, BLOCK):
        block = delta[start : start + BLOCK]
        # NaN passes through min and max, so two fast reductions find everything that needs a slower look.
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NonFiniteUpdateError(
                "the update holds NaN or infinite values.",
                remedy="Lower the learning rate or clip gradients; nothing was sent.",
                place=f"elements {start} to {start + block.size - 1}",
            )
        values = scratch[: block.size]
        np.copyto(values, block)
        if low < -clip or high > clip:
            clipped += int(np.count_nonzero(values > clip)) + int(np.count_nonzero(values < -clip))
            np.clip(values, -clip, clip, out=values)
        np.multiply(values, factor, out=values)
        np.rint(values, out=values)
        np.copyto(signed[start : start + block.size], values, casting="unsafe")  # exact: an integer within int32
    return clipped


def decode_sum(
    words: Uint32Array, encoding: ModelEncoding, out: Float64Array | Float32Array | None = None
) -> Float64Array | Float32Array:
    """The real numbers behind an opened sum of words: `Σαδ`, within `contributors/2` words of the true sum.

    Args:
        words: uint32[n], the opened sum.
        encoding: the component's encoding.
        out: float64[n] or float32[n] to write into (float32 may share memory with `words`); None makes a
            float64[n].

    Returns:
        `out`.
    """
    _check_array(words, np.uint32, None, "words")
    result: Float64Array | Float32Array = np.empty(words.size, np.float64) if out is None else out
    if result.dtype != np.float32:
        _check_array(result, np.float64, words.size, "out")
    _check_array(result, result.dtype, words.size, "out")
    _scale_words(words, 1.0 / encoding.scale, result)
    return result


def _scale_words(words: Uint32Array, factor: float, out: Float64Array | Float32Array) -> None:
    """`out = words · factor`: one product in float64, then (for float32) one cast."""
    signed = words.view(np.int32)
    scratch = np.empty(min(BLOCK, words.size), np.float64)
    for start in range(0, words.size, BLOCK):
        block = signed[start : start + BLOCK]
        values = scratch[: block.size]
        np.copyto(values, block)
        np.multiply(values, factor, out=values)
        np.copyto(out[start : start + block.size], values, casting="same_kind")


def encode_weight(alpha: float, encoding: ModelEncoding) -> int:
    """The word of one weight `α`, in `[0, 2^32)`.

    Raises:
        WeightError: `alpha` is not in `[0, encoding.headroom]`.
    """
    _check_weight(alpha, encoding)
    return int(np.rint(alpha * encoding.weight_scale)) % 2**32


def decode_weight_sum(word: int, encoding: ModelEncoding) -> float:
    """`Σα` from its opened word.

    Raises:
        WeightError: the word is not one of a positive sum: nobody contributed, or the opened sum is damaged.
    """
    if not 0 < int(word) < 2**31:
        raise WeightError(
            "the opened sum of weights is not positive.",
            remedy="No contributor had any weight: leave this component out of the round.",
        )
    return int(word) / encoding.weight_scale


def mean_trajectory(words: Uint32Array, weight_word: int, encoding: ModelEncoding, out: Float32Array) -> Float32Array:
    """`δ_G = Σαδ / Σα` from the two opened sums (METHOD.md, "One round", step 4), bit-identical wherever it
    runs.

    The scales of the two sums differ by exactly `clip`, so `δ_G = word · (clip / weight_word)`: one float64
    division for all, one float64 product and one cast for each element.

    Args:
        words: uint32[n], the opened `Σαδ`.
        weight_word: the opened `Σα`, as its word.
        encoding: the component's encoding.
        out: float32[n], overwritten; may be `words.view(numpy.float32)`.

    Returns:
        `out`.

    Raises:
        WeightError: `Σα` is not positive.
    """
    _check_array(words, np.uint32, None, "words")
    _check_array(out, np.float32, words.size, "out")
    decode_weight_sum(weight_word, encoding)
    _scale_words(words, encoding.clip / float(int(weight_word)), out)
    return out


# --------------------------------------------------------------------------------------- statistics, mod 2^64


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
        _check_positive(self.bound, "bound")
        _check_contributors(self.contributors, 2**20)
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
        _check_array(values, np.float64, None, "values")
    _check_array(values, values.dtype, None, "values")
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
    _check_array(words, np.uint64, None, "words")
    decoded: Float64Array = words.view(np.int64).astype(np.float64) / encoding.scale
    return decoded
