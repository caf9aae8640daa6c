"""Half-width words: 32-bit words rounded stochastically to 16 bits, and a weight in 16-bit words without loss.

A 16-bit word is a 32-bit one, `v`, plus sixteen random bits, without its lower half: `⌊(v + r) / 2^16⌋`. Over the
2^16 values of `r` its mean is exactly `v / 2^16`, so rounding adds noise of at most one word but no bias: what is lost
in one round is not lost in every round.

The sum of the weights divides everything, so it must keep its 31 bits. It travels in limbs so short that no sum of them
over the contributors carries into the next one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError

MOST_CONTRIBUTORS: Final = 4096
"""Of a 16-bit sum: rounding takes up to one word from the range for each, here an eighth of it."""

WEIGHT_BITS: Final = 31

Uint16Array = npt.NDArray[np.uint16]


def narrow(words: npt.NDArray[np.int32], random: Uint16Array, out: Uint16Array) -> None:
    """Rounds signed 32-bit words to 16 bits.

    Args:
        words: int32[n], at most `2^31 − 2^16` in size; overwritten.
        random: uint16[n], uniform, and the same at every call for the same vector.
        out: uint16[n], overwritten.
    """
    np.add(words, random, out=words)
    np.right_shift(words, 16, out=words)  # arithmetic: rounds down, negative words too
    np.copyto(out, words, casting="unsafe")


def limb_bits(contributors: int) -> int:
    """Bits of a weight that one 16-bit word takes, so that a sum over this many contributors cannot wrap."""
    if not 1 <= contributors <= MOST_CONTRIBUTORS:
        raise ConfigurationError(
            f"{contributors} contributors to a sum in words of 16 bits.",
            remedy=f"It takes 1 to {MOST_CONTRIBUTORS}; use words of 32 bits.",
        )
    return ((2**16 - 1) // contributors + 1).bit_length() - 1


def limbs(contributors: int) -> int:
    """How many 16-bit words a weight takes."""
    return -(-WEIGHT_BITS // limb_bits(contributors))


def split_weight(word: int, contributors: int) -> Uint16Array:
    """A weight's word, in `[0, 2^31)`, as uint16[`limbs`], lowest bits first."""
    bits = limb_bits(contributors)
    return np.array([word >> bits * k & (1 << bits) - 1 for k in range(limbs(contributors))], np.uint16)


def join_weight(words: Uint16Array, contributors: int) -> int:
    """The sum of the weights' words, from the sums of their limbs."""
    bits = limb_bits(contributors)
    return sum(int(word) << bits * k for k, word in enumerate(words))
