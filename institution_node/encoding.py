"""A trajectory as words, encoded on the way out: no second copy of a model (rules 1 and 3)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from federation.fixed_point import ModelEncoding, NonFiniteUpdateError, encode_update, encode_weight
from security.secure_sum.masks import Words

Float32 = npt.NDArray[np.float32]
BLOCK: Final = 1 << 16


def clip_update(delta: Float32, clip: float) -> int:
    """Clips δ to ±`clip` in place and makes it read-only: one vector under one mask (rule 8).

    Returns:
        How many values were clipped.

    Raises:
        NonFiniteUpdateError: δ holds NaN or infinity; it must not be masked.
    """
    clipped = 0
    scratch = np.empty(min(BLOCK, len(delta)), np.float32)
    for start in range(0, len(delta), BLOCK):  # in blocks that stay in the cache: no second copy of a model
        block = delta[start : start + BLOCK]
        sizes = np.abs(block, out=scratch[: len(block)])
        largest = float(np.max(sizes))  # NaN if there is one
        if not np.isfinite(largest):
            raise NonFiniteUpdateError(
                "the update holds NaN or infinity.", remedy="Lower the learning rate, or clip the gradient in the plan."
            )
        if largest > clip:
            clipped += int(np.count_nonzero(sizes > clip))
            np.clip(block, -clip, clip, out=block)
    delta.setflags(write=False)
    return clipped


class UpdateWords:
    """The words of `α·δ`, and of α behind them; a `WordSource`.

    Args:
        delta: float32[n], read-only.
        alpha: the institution's share of the component's patients, in [0, headroom].
        encoding: of the component.
    """

    def __init__(self, delta: Float32, alpha: float, encoding: ModelEncoding) -> None:
        self._delta, self._alpha, self._encoding = delta, alpha, encoding
        self._weight = encode_weight(alpha, encoding)

    def fill(self, start: int, out: Words) -> None:
        """Words `start` and following."""
        parameters = self._delta[start : start + len(out)]
        encode_update(parameters, self._alpha, self._encoding, out[: len(parameters)])
        if len(parameters) < len(out):
            out[len(parameters) :] = self._weight
