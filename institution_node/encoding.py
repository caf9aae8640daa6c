"""A trajectory as words, encoded on the way out: no second copy of a model (rules 1 and 3)."""

from __future__ import annotations

import numpy as np

from federation.fixed_point import ModelEncoding, encode_update, encode_weight
from institution_node.updates import Update
from security.secure_sum.masks import Words


class UpdateWords:
    """The words of `α·δ`, and of α behind them; a `WordSource`.

    Args:
        update: finite and clipped: the same values at every call.
        alpha: the institution's share of the component's patients, in [0, headroom].
        encoding: of the component.
    """

    def __init__(self, update: Update, alpha: float, encoding: ModelEncoding) -> None:
        self._update, self._alpha, self._encoding = update, alpha, encoding
        self._weight = encode_weight(alpha, encoding)

    def fill(self, start: int, out: Words) -> None:
        """Words `start` and following."""
        parameters = out[: max(0, self._update.size - start)]
        values = parameters.view(np.float32)  # in the place of the words that they become
        self._update.read(start, values)
        encode_update(values, self._alpha, self._encoding, parameters)
        if len(parameters) < len(out):
            out[len(parameters) :] = self._weight
