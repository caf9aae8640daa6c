"""Exact draws from the discrete Laplace and the discrete Gaussian distribution.

No floating-point number decides an outcome, so the samples have exactly the stated law and leak nothing
through rounding (Mironov 2012). The algorithms are those of Canonne, Kamath and Steinke 2020 (arXiv
2004.00010, algorithms 1 to 3), twice:

- one draw at a time in integer arithmetic, for any rational parameter (`discrete_laplace`,
`discrete_gaussian`); - many at once (`discrete_laplaces`, `discrete_gaussians`). There an event of chance
exp(-γ) happens if a uniform real
  lies below exp(-γ). float64 decides only where it must be right, farther from the border than its error can
  reach; the few draws in between are decided by decimal enclosures of exp(-γ) of growing precision, against
  as many more bits of the uniform real as it takes.

Time taken depends on what is drawn, as in any rejection sampler; who measures it at the institution learns
something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from security.privacy.randomness import Randomness, integers_below, randint_below, uniform64

Integers = npt.NDArray[np.int64]

# With z = |y| / sigma, float64 has γ wrong by at most (z + 1)² 2^-50, hence exp(-γ) by (z + 1)² 2^-50
# exp(-(z - 1)² / 2) < 2^-47; the exponential and the uniform add an ulp each. The margin is 64 times as wide
# as that.
MARGIN: Final = 2.0**-40
LARGEST_SCALE: Final = 2**56
"""Largest numerator of a Laplace scale, or standard deviation, whose many draws fit 64 bits (but for a chance
below exp(-128))."""

# --- one at a time, integers only ---


def bernoulli_exp(gamma: Fraction, rng: Randomness) -> bool:
    """True with chance exactly exp(-γ), `γ >= 0` (algorithm 1)."""
    for _ in range(int(gamma)):
        if not _bernoulli_exp_small(Fraction(1), rng):
            return False
    return _bernoulli_exp_small(gamma - int(gamma), rng)


def _bernoulli_exp_small(gamma: Fraction, rng: Randomness) -> bool:
    """exp(-γ) for `0 <= γ <= 1`: the parity of the first k at which a coin of chance γ/k fails."""
    k = 1
    while randint_below(rng, gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def discrete_laplace(scale: Fraction | int, rng: Randomness) -> int:
    """One integer x with chance proportional to exp(-|x| / scale), exactly (algorithm 2).

    Args:
        scale: positive rational; a count that one patient moves by 1 is then `1/scale`-differentially
            private.

    Raises:
        ValueError: `scale <= 0`.
    """
    s, t = _positive(scale, "scale").as_integer_ratio()
    while True:
        u = randint_below(rng, s)
        if not _bernoulli_exp_small(Fraction(u, s), rng):
            continue
        v = 0
        while _bernoulli_exp_small(Fraction(1), rng):
            v += 1
        y = (u + s * v) // t
        negative = randint_below(rng, 2) == 1
        if not (negative and y == 0):  # zero would count twice
            return -y if negative else y


def discrete_gaussian(sigma2: Fraction | int, rng: Randomness) -> int:
    """One integer x with chance proportional to exp(-x² / (2 sigma2)), exactly (algorithm 3).

    Raises:
        ValueError: `sigma2 <= 0`.
    """
    variance = _positive(sigma2, "sigma2")
    t = _laplace_scale(variance)
    while True:
        y = discrete_laplace(t, rng)
        if bernoulli_exp((abs(y) - variance / t) ** 2 / (2 * variance), rng):
            return y


# --- many at once ---


def discrete_laplaces(scale: Fraction | int, count: int, rng: Randomness, *, margin: float = MARGIN) -> Integers:
    """`count` independent draws of `discrete_laplace`, shape `(count,)`.

    Args:
        scale: positive rational with a numerator of at most `LARGEST_SCALE`: any float that is.
        margin: how near to the border float64 may decide; tests raise it to 1 so that it never does.

    Raises:
        ValueError: `scale` out of range.
    """
    s, t = _positive(scale, "scale").as_integer_ratio()
    if s > LARGEST_SCALE:
        raise ValueError(f"the numerator of the scale must be at most {LARGEST_SCALE}")

    def attempt(n: int) -> Integers:
        u = integers_below(rng, s, n)
        u = u[_happens(u / s, lambda i: Fraction(int(u[i]), s), rng, margin)]
        y = (u + s * _geometric(u.size, rng)) // t
        negative = (uniform64(rng, y.size) >> np.uint64(63)).astype(np.bool_)
        signed: Integers = np.where(negative, -y, y)
        kept: Integers = signed[~(negative & (y == 0))]  # zero would count twice
        return kept

    return _collect(attempt, count)


def discrete_gaussians(sigma2: Fraction | int, count: int, rng: Randomness, *, margin: float = MARGIN) -> Integers:
    """`count` independent draws of `discrete_gaussian`, shape `(count,)`; `margin` as in `discrete_laplaces`.

    Raises:
        ValueError: `sigma2 <= 0`, or its root is above `LARGEST_SCALE` (the draws would not fit 64 bits).
    """
    variance = _positive(sigma2, "sigma2")
    t = _laplace_scale(variance)
    if t > LARGEST_SCALE:
        raise ValueError(f"sigma2 must be at most {LARGEST_SCALE}²")
    shift, sigma = variance / t, math.sqrt(variance)

    def attempt(n: int) -> Integers:
        y = discrete_laplaces(t, n, rng, margin=margin)
        gamma = ((np.abs(y) - float(shift)) / sigma) ** 2 / 2
        kept: Integers = y[_happens(gamma, lambda i: (abs(int(y[i])) - shift) ** 2 / (2 * variance), rng, margin)]
        return kept

    return _collect(attempt, count)


def _collect(attempt: Callable[[int], Integers], count: int) -> Integers:
    """Repeats `attempt(n)`, which keeps some of n draws, until `count` are there."""
    found = np.empty(count, dtype=np.int64)
    have = 0
    while have < count:
        kept = attempt((count - have) * 5 // 3 + 8)[: count - have]
        found[have : have + kept.size] = kept
        have += kept.size
    return found


_DIGITS: Final = Context(prec=60)
_GEOMETRIC_FLOOR: Final = np.array(
    [int(_DIGITS.multiply(_DIGITS.exp(Decimal(-k)), Decimal(2**64))) for k in range(44, 0, -1)], dtype=np.uint64
)
"""floor(2^64 exp(-k)) for k = 44 … 1, ascending; exp(-45) is below 2^-64."""


def _geometric(count: int, rng: Randomness) -> Integers:
    """How often in a row an event of chance exp(-1) happens: P(V >= k) = exp(-k), by inversion of a uniform
    real."""
    words = uniform64(rng, count)
    above = np.searchsorted(_GEOMETRIC_FLOOR, words, side="right")
    value = (len(_GEOMETRIC_FLOOR) - above).astype(np.int64)
    # A word equal to a floor straddles that border, and word 0 every border beyond the table: ask for more
    # bits.
    unclear = (words == 0) | (_GEOMETRIC_FLOOR[np.maximum(above, 1) - 1] == words)
    for i in np.flatnonzero(unclear):
        uniform = _LazyUniform(int(words[i]), rng)
        k = int(value[i])
        while uniform.below_exp(Fraction(k + 1)):
            k += 1
        value[i] = k
    return value


def _happens(
    gamma: npt.NDArray[np.float64], exactly: Callable[[int], Fraction], rng: Randomness, margin: float
) -> npt.NDArray[np.bool_]:
    """For each element, True with chance exp(-γ): `gamma` is γ in float64, `exactly(i)` the same without
    error."""
    words = uniform64(rng, gamma.size)
    distance = np.exp(-gamma) - words * 2.0**-64
    happened: npt.NDArray[np.bool_] = distance > 0
    for i in np.flatnonzero(np.abs(distance) <= margin):
        happened[i] = _LazyUniform(int(words[i]), rng).below_exp(exactly(int(i)))
    return happened


class _LazyUniform:
    """A uniform real in [0, 1) of which 64 bits are known, and more on demand."""

    def __init__(self, word: int, rng: Randomness) -> None:
        self._value, self._bits, self._rng = word, 64, rng

    def below_exp(self, gamma: Fraction) -> bool:
        """Whether the real is below exp(-γ), `γ >= 0`; equality has chance 0, as exp(-γ) is 1 or
        transcendental."""
        if gamma == 0:
            return True
        while True:
            low, high = _exp_enclosure(gamma, digits=self._bits // 3 + 10)
            one = 1 << self._bits
            if self._value + 1 <= low * one:
                return True
            if self._value >= high * one:
                return False
            self._value = self._value << 64 | int.from_bytes(self._rng.bytes(8), "little")
            self._bits += 64


def _exp_enclosure(gamma: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Rationals around exp(-γ), about `digits` decimal digits after the point apart.

    `Decimal.exp` is correctly rounded (to half an ulp, whatever the context's rounding), and the quotient is
    rounded outward, so one ulp on either side encloses the truth.
    """
    below, above = Context(prec=digits, rounding=ROUND_FLOOR), Context(prec=digits, rounding=ROUND_CEILING)
    # No operator of Decimal's own here, not even a minus sign: they round to the thread's 28 digits.
    n, d = Decimal(-gamma.numerator), Decimal(gamma.denominator)
    low = below.next_minus(below.exp(below.divide(n, d)))
    high = above.next_plus(above.exp(above.divide(n, d)))
    return Fraction(low), Fraction(high)


def _laplace_scale(variance: Fraction) -> int:
    """floor(sigma) + 1: the proposal's scale that algorithm 3 takes."""
    return math.isqrt(variance.numerator // variance.denominator) + 1


def _positive(value: Fraction | int, name: str) -> Fraction:
    if value <= 0:
        raise ValueError(f"{name} must be positive, not {value}")
    return Fraction(value)
