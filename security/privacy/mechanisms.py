"""Noised releases: counts, statistics in the ring of the secure sum, and the Gaussian noise of DP-SGD.

Each function only adds the noise. What it costs is an event of `events`, reserved in the ledger *before* the
result leaves the institution.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from security.privacy.events import LaplaceRelease
from security.privacy.randomness import Randomness, uniform64
from security.privacy.samplers import discrete_gaussians, discrete_laplace

_CHUNK: Final = 1 << 16  # elements noised at a time, so that no second model is ever held


def noised_count(n: int, scale: Fraction | int, rng: Randomness) -> int:
    """`max(1, n + discrete Laplace noise)`, the `ñ_i` of METHOD.md ("Objects").

    Drawn once per run and kept: a second draw is a second release and averages the noise away.

    Args:
        n: patients, `n >= 0`.
        scale: of the noise, in patients, `> 0`; the release costs `count_event(scale)`.
    """
    return max(1, n + discrete_laplace(scale, rng))


def count_event(scale: Fraction | int) -> LaplaceRelease:
    """What `noised_count` costs: a patient more or less moves a count by 1, so epsilon is `1 / scale`."""
    return LaplaceRelease(epsilon=float(1 / Fraction(scale)))


def add_discrete_gaussian(
    words: npt.NDArray[np.uint64] | npt.NDArray[np.uint32], sigma_in_quanta: Fraction | int, rng: Randomness
) -> None:
    """Adds independent discrete Gaussian noise to every word, **in place**, wrapping in the ring of the
    word's size.

    Charge `GaussianRelease(sigma_in_quanta / rounded_sensitivity(...))`. In a ring the noise can wrap like
    any summand: the plan's headroom must leave room for it.

    Args:
        words: fixed-point values mod 2^64 or mod 2^32, any shape, contiguous, in the machine's byte order.
        sigma_in_quanta: standard deviation in units of the last bit, `> 0`, at most 2^56.

    Raises:
        ValueError: sigma out of range, or `words` is not such an array.
    """
    if words.dtype not in (np.dtype(np.uint64), np.dtype(np.uint32)) or not words.flags.c_contiguous:
        raise ValueError("words must be a contiguous array of uint64 or uint32")
    flat = words.reshape(-1)
    variance = Fraction(sigma_in_quanta) ** 2 if sigma_in_quanta > 0 else Fraction(0)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        noise = discrete_gaussians(variance, part.size, rng)
        part += noise.astype(part.dtype)  # a negative draw becomes its residue, and addition wraps


def rounded_sensitivity(l2_in_quanta: float, dimension: int) -> float:
    """How far one patient can move a vector that is *rounded to integers*, in the L2 norm.

    Rounding moves each of the two neighbouring vectors by at most half a quantum a coordinate, so by
    `√dimension` together, beyond the `l2_in_quanta` that they were apart. Noise is relative to this, or
    epsilon is understated.
    """
    return l2_in_quanta + math.sqrt(dimension)


def gaussian_float32(n: int, rng: Randomness) -> npt.NDArray[np.float32]:
    """`n` standard normal values for DP-SGD, shape `(n,)`, from the cryptographic stream itself.

    Box and Muller's transform in float64 of 64-bit uniforms, rounded once to float32; |value| stays below
    9.5, which cuts off less than 1e-20 of the law. Not numpy's or torch's generators: neither is a cipher,
    and torch's CPU generator keeps 32 bits of its seed. Being floating-point numbers, these are not exact
    draws; where the value is a statistic in fixed point, use `add_discrete_gaussian`. For gradients prefer
    `add_gaussian`, which hides the low bits.
    """
    out = np.empty(n, dtype=np.float32)
    for start in range(0, n, _CHUNK):
        part = out[start : start + _CHUNK]
        part[:] = _gaussian_float64(part.size, rng)
    return out


def add_gaussian(values: npt.NDArray[np.float32], sigma: float, rng: Randomness) -> None:
    """Adds Gaussian noise of standard deviation `sigma` to float32 values, **in place**.

    The sum is formed in float64 and rounded once. Each float32 result then has some 2^29 float64 sums behind
    it, so the gaps between representable noise values (Mironov 2012) are not to be seen in it.

    Args:
        values: any shape, contiguous.
        sigma: finite, `> 0`: noise multiplier times clipping norm.

    Raises:
        ValueError: sigma out of range, or `values` is not such an array.
    """
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError("values must be a contiguous array of float32")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite, not {sigma}")
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        part[:] = part.astype(np.float64) + sigma * _gaussian_float64(part.size, rng)


def _gaussian_float64(n: int, rng: Randomness) -> npt.NDArray[np.float64]:
    pairs = (n + 1) // 2
    words = uniform64(rng, 2 * pairs)
    # (0, 1]: the logarithm below needs to stay away from 0; + 0.5 is lost in large words and matters in the
    # tail.
    radius = np.sqrt(-2.0 * np.log((words[:pairs] + 0.5) * 2.0**-64))
    angle = words[pairs:] * (2.0 * math.pi * 2.0**-64)
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:n]
