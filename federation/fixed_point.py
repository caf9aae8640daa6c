"""Fixed point: how model vectors enter a secure sum, and why no sum can wrap (DESIGN.md, "Secure sum", rule 1).

They live in the ring mod 2^32 or, at half the bytes, mod 2^16, one word a parameter; statistics have their own
(`federation.statistic_words`). A word is the two's complement of an integer, so that adding words adds integers as long
as the true sum stays below half the ring. That is a promise about *all* institutions together, and `prove_no_wrap`
checks it in exact arithmetic before anything is summed.

Everything here is one multiplication and one rounding in IEEE float64, element by element (and for 16 bits a second
rounding, of integers): the same bits on every machine, for any block size, so institutions and coordinator agree on
`δ_G` to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from federation import half_words
from federation.encoding_checks import RingOverflowError, check_array, check_contributors, check_positive
from security.errors import ConfigurationError, ConsiliumError

BLOCK: Final = 1 << 16
"""Elements per block: 512 KiB of float64 scratch stays in the second-level cache."""

_SLACK: Final = 1 + Fraction(1, 2**50)
"""Covers the float64 roundings of `α·scale` and of the product, each at most 2^-53 relative."""

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Uint32Array = npt.NDArray[np.uint32]
ModelWords = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]
"""Words of a model vector, as wide as the encoding's `bits`."""


class NonFiniteUpdateError(ConsiliumError):
    """An update holds NaN or infinity and must not be masked."""

    code: ClassVar[str] = "non-finite-update"


class WeightError(ConfigurationError):
    """A weight `α` is not in `[0, headroom]`, or an opened sum of weights is not positive."""

    code: ClassVar[str] = "weight-out-of-range"


@dataclass(frozen=True, slots=True)
class ModelEncoding:
    """How `α·δ` becomes words (DESIGN.md, "Secure sum", rule 1).

    Args:
        clip: largest `|δ|` of one parameter, above 0; what is larger is clipped and counted.
        headroom: the largest `Σα` that can occur, above 0 (1 where `α_i = ñ_i / N_c`).
        contributors: the most institutions whose words are added, at least 1; at most 4096 with 16 bits.
        bits: of a word, 32 or 16. With 16 the second rounding is stochastic (`federation.half_words`).

    Raises:
        ConfigurationError: a field is out of range.
    """

    clip: float
    headroom: float
    contributors: int
    bits: Literal[16, 32] = 32

    def __post_init__(self) -> None:
        check_positive(self.clip, "clip")
        check_positive(self.headroom, "headroom")
        if self.bits not in (16, 32):
            raise ConfigurationError(f"words of {self.bits} bits.", remedy="Words of a model have 32 bits, or 16.")
        check_contributors(self.contributors, 2**20 if self.bits == 32 else half_words.MOST_CONTRIBUTORS)

    @property
    def steps(self) -> int:
        """The largest sum of words before rounding, `2^(bits−1) − 1 − n`: each contributor may round away one more."""
        return int(2 ** (self.bits - 1)) - 1 - self.contributors

    @property
    def scale(self) -> float:
        """Words per unit of `α·δ`; one word is `1/scale`."""
        return float(self.steps) / (self.clip * self.headroom)

    @property
    def fine(self) -> int:
        """Steps of the first rounding in one word: 2^16 with 16 bits, so that both rings round to 32 bits first."""
        return int(2 ** (32 - self.bits))

    @property
    def weight_scale(self) -> float:
        """Steps per unit of `α`, which keeps 31 bits in either ring."""
        return float(self.steps * self.fine) / self.headroom

    @property
    def word_type(self) -> np.dtype[np.uint32] | np.dtype[np.uint16]:
        """Of a word."""
        return np.dtype(np.uint32) if self.bits == 32 else np.dtype(np.uint16)

    @property
    def weight_words(self) -> int:
        """Words that carry `Σα`, at the end of a component's vector."""
        return 1 if self.bits == 32 else half_words.limbs(self.contributors)


def prove_no_wrap(encoding: ModelEncoding, largest_weight_sum: float) -> None:
    """Proves, in exact arithmetic, that no sum of `encoding.contributors` updates leaves the ring.

    Each word is at most `α·clip·scale` and its rounding `r`, so the sum is at most `Σα·clip·scale + n·r`, which must
    not exceed `2^(bits−1) − 1`. `r` is half a word of 32 bits; stochastic rounding takes up to `1 − 2^-16` of a word
    after the first rounding took `2^-17`. `Σα` has 31 bits in either ring.

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
    half = Fraction(1, 2)
    rounding = half if encoding.bits == 32 else half / encoding.fine + Fraction(encoding.fine - 1, encoding.fine)
    for name, step, lost, bits in (
        ("clip·scale", Fraction(encoding.clip) * Fraction(encoding.scale), rounding, encoding.bits),
        ("weight_scale", Fraction(encoding.weight_scale), half, 32),
    ):
        largest = Fraction(largest_weight_sum) * step * _SLACK + n * lost
        if largest > 2 ** (bits - 1) - 1:
            raise RingOverflowError(
                f"Σα·{name} + n·{float(lost):.6g} = {largest_weight_sum!r}·{float(step):.1f} + {float(n * lost):.6g} = "
                f"{float(largest):.1f} exceeds 2^{bits - 1} − 1 = {2 ** (bits - 1) - 1}: the sum could wrap.",
                remedy=f"Set headroom to at least {largest_weight_sum!r} (it is {encoding.headroom!r}).",
            )


def _check_weight(alpha: float, encoding: ModelEncoding) -> None:
    if not (math.isfinite(alpha) and 0 <= alpha <= encoding.headroom):
        raise WeightError(
            f"a weight α is outside [0, {encoding.headroom!r}].",
            remedy="α is this institution's share of the component's patients; check the opened total N_c.",
        )


def encode_update(
    delta: Float32Array,
    alpha: float,
    encoding: ModelEncoding,
    out: ModelWords,
    random: half_words.Uint16Array | None = None,
) -> int:
    """Writes the words of `α·δ` into `out`: clip, scale, one rounding (half to even), two's complement; with 16 bits
    then the stochastic rounding of `half_words.narrow`.

    Works in blocks through scratch of at most 768 KiB: no second copy of a model. With 32 bits `out` may be
    `delta.view(numpy.uint32)`; then the update is replaced by its words.

    Args:
        delta: float32[n], the update `δ` of one component.
        alpha: the weight `α`, in `[0, encoding.headroom]`.
        encoding: the component's encoding.
        out: uint32[n], or uint16[n] with 16 bits; overwritten. Meaningless where an error is raised.
        random: uint16[n] with 16 bits, else None: uniform, the institution's own secret, and the same whenever the
            words of one vector are made again (rule 8).

    Returns:
        How many values were clipped to `±encoding.clip`.

    Raises:
        NonFiniteUpdateError: `delta` holds NaN or infinity.
        WeightError: `alpha` is out of range.
        ConfigurationError: an array has the wrong dtype or size.
    """
    check_array(delta, np.float32, None, "delta")
    check_array(out, encoding.word_type, delta.size, "out")
    _check_weight(alpha, encoding)
    if (random is not None) != (encoding.bits == 16):
        raise ConfigurationError(
            f"words of {encoding.bits} bits and {'no ' if random is None else ''}random bits.",
            remedy="Words of 16 bits are rounded with random bits, words of 32 bits without.",
        )
    if random is not None:
        check_array(random, np.uint16, delta.size, "random")
    factor, clip = alpha * encoding.scale * encoding.fine, encoding.clip
    fine = out.view(np.int32) if encoding.bits == 32 else np.empty(min(BLOCK, delta.size), np.int32)
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
        words = fine[start : start + block.size] if random is None else fine[: block.size]
        np.copyto(words, values, casting="unsafe")  # exact: an integer within int32
        if random is not None:
            stop = start + block.size
            half_words.narrow(words, random[start:stop], out[start:stop])  # type: ignore[arg-type]  # checked above
    return clipped


def decode_sum(
    words: ModelWords, encoding: ModelEncoding, out: Float64Array | Float32Array | None = None
) -> Float64Array | Float32Array:
    """The real numbers behind an opened sum of words: `Σαδ`, within `contributors/2` words of the true sum, with 16
    bits within `contributors` words.

    Args:
        words: uint32[n] or uint16[n], the opened sum.
        encoding: the component's encoding.
        out: float64[n] or float32[n] to write into (float32 may share memory with 32-bit `words`); None makes a
            float64[n].

    Returns:
        `out`.
    """
    check_array(words, encoding.word_type, None, "words")
    result: Float64Array | Float32Array = np.empty(words.size, np.float64) if out is None else out
    if result.dtype != np.float32:
        check_array(result, np.float64, words.size, "out")
    check_array(result, result.dtype, words.size, "out")
    _scale_words(words, 1.0 / encoding.scale, result)
    return result


def _scale_words(words: ModelWords, factor: float, out: Float64Array | Float32Array) -> None:
    """`out = words · factor`: one product in float64, then (for float32) one cast."""
    signed = words.view(np.dtype(f"i{words.itemsize}"))
    scratch = np.empty(min(BLOCK, words.size), np.float64)
    for start in range(0, words.size, BLOCK):
        block = signed[start : start + BLOCK]
        values = scratch[: block.size]
        np.copyto(values, block)
        np.multiply(values, factor, out=values)
        np.copyto(out[start : start + block.size], values, casting="same_kind")


def encode_weight(alpha: float, encoding: ModelEncoding) -> int:
    """One weight `α` in steps of `1/weight_scale`, in `[0, 2^31)`; `weight_vector` is how it travels.

    Raises:
        WeightError: `alpha` is not in `[0, encoding.headroom]`.
    """
    _check_weight(alpha, encoding)
    return int(np.rint(alpha * encoding.weight_scale))


def weight_vector(alpha: float, encoding: ModelEncoding) -> ModelWords:
    """The words of one weight, `encoding.weight_words` of them: they sum like any others.

    Raises:
        WeightError: `alpha` is not in `[0, encoding.headroom]`.
    """
    word = encode_weight(alpha, encoding)
    if encoding.bits == 32:
        return np.array([word], np.uint32)
    return half_words.split_weight(word, encoding.contributors)


def read_weight(words: ModelWords, encoding: ModelEncoding) -> int:
    """The opened sum of the weights' words, from the last `encoding.weight_words` words of a component's sum."""
    check_array(words, encoding.word_type, encoding.weight_words, "words")
    return int(words[0]) if encoding.bits == 32 else half_words.join_weight(words, encoding.contributors)  # type: ignore[arg-type]  # checked


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


def mean_trajectory(words: ModelWords, weight_word: int, encoding: ModelEncoding, out: Float32Array) -> Float32Array:
    """`δ_G = Σαδ / Σα` from the two opened sums (METHOD.md, "One round", step 4), bit-identical wherever it
    runs.

    The scales of the two sums differ by exactly `clip·fine`, so `δ_G = word · (clip·fine / weight_word)`: one float64
    division for all (`fine` is a power of two), one float64 product and one cast for each element.

    Args:
        words: uint32[n] or uint16[n], the opened `Σαδ`.
        weight_word: the opened `Σα`, as `read_weight` gives it.
        encoding: the component's encoding.
        out: float32[n], overwritten; may be `words.view(numpy.float32)` with 32 bits.

    Returns:
        `out`.

    Raises:
        WeightError: `Σα` is not positive.
    """
    check_array(words, encoding.word_type, None, "words")
    check_array(out, np.float32, words.size, "out")
    decode_weight_sum(weight_word, encoding)
    _scale_words(words, encoding.clip * encoding.fine / float(int(weight_word)), out)
    return out
