"""A trajectory as words, encoded on the way out: no second copy of a model (rules 1 and 3)."""

from __future__ import annotations

import numpy as np

from federation.fixed_point import BLOCK, ModelEncoding, encode_update, weight_vector
from institution_node.updates import Update
from security.errors import LocalMisuseError
from security.privacy.positioned_bits import PositionedBits
from security.secure_sum.masks import Words


class UpdateWords:
    """The words of `α·δ`, and of α behind them; a `WordSource`.

    Args:
        update: finite and clipped: the same values at every call.
        alpha: the institution's share of the component's patients, in [0, headroom].
        encoding: of the component.
        rounding: for words of 16 bits: the institution's own bits, which round word k alike at every call (rule 8).
    """

    def __init__(
        self, update: Update, alpha: float, encoding: ModelEncoding, rounding: PositionedBits | None = None
    ) -> None:
        if (rounding is None) != (encoding.bits == 32):
            raise LocalMisuseError("words of 16 bits, and no others, are rounded with random bits.")
        self._update, self._alpha, self._encoding, self._rounding = update, alpha, encoding, rounding
        self._weight = weight_vector(alpha, encoding)

    def fill(self, start: int, out: Words) -> None:
        """Words `start` and following."""
        parameters = out[: max(0, self._update.size - start)]
        if self._rounding is None:
            values = parameters.view(np.float32)  # in the place of the words that they become
            self._update.read(start, values)
            encode_update(values, self._alpha, self._encoding, parameters)
        else:
            self._fill_half(start, parameters, self._rounding)
        if len(parameters) < len(out):
            first = start + len(parameters) - self._update.size
            out[len(parameters) :] = self._weight[first : first + len(out) - len(parameters)]

    def _fill_half(self, start: int, out: Words, rounding: PositionedBits) -> None:
        scratch = np.empty(min(BLOCK, len(out)), np.float32)
        for done in range(0, len(out), BLOCK):
            words = out[done : done + BLOCK]
            values = scratch[: len(words)]
            self._update.read(start + done, values)
            random = rounding.words(start + done, len(words))
            encode_update(values, self._alpha, self._encoding, words, random)
