"""δ of one component, as it comes from a trainer and as it is encoded: read in blocks, the same at every reading.

A trainer may return arrays; what produces its values in order, or keeps them in a file, is a source of its own and is
never held as a whole.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from federation.fixed_point import NonFiniteUpdateError
from federation.thinning import BLOCK, Thinning
from institution_node.errors import WeightsError

Float32 = npt.NDArray[np.float32]


class Update(Protocol):
    """δ of one component. Read at random, by any thread; the same values at every call: another vector under the same
    mask reveals both (rule 8)."""

    @property
    def size(self) -> int:
        """Parameters."""

    def read(self, start: int, out: Float32) -> None:
        """Writes values `start` to `start + len(out)` into `out`."""


class ArrayUpdate:
    """An `Update` that is there as a whole; the array is made read-only.

    Args:
        delta: float32[n].

    Raises:
        WeightsError: it is another kind of array.
    """

    def __init__(self, delta: Float32) -> None:
        if delta.dtype != np.float32 or delta.ndim != 1:
            raise WeightsError(
                f"an update must be float32[n], and is {delta.dtype.name}{list(delta.shape)}.",
                remedy="Report this as a fault of the trainer; the node joins the next round.",
            )
        delta.setflags(write=False)
        self._delta = delta

    @property
    def size(self) -> int:
        """See Update."""
        return len(self._delta)

    def read(self, start: int, out: Float32) -> None:
        """See Update."""
        out[:] = self._delta[start : start + len(out)]


class ThinnedUpdate:
    """The part of an `Update` that is sent: the chosen parameters in order, zeros behind the component's last one.

    Args:
        update: of one component.
        thinning: of the component in this round; not of all of it.
    """

    def __init__(self, update: Update, thinning: Thinning) -> None:
        self._update, self._thinning = update, thinning

    @property
    def size(self) -> int:
        """See Update."""
        return self._thinning.words

    def read(self, start: int, out: Float32) -> None:
        """See Update."""
        values = np.empty(min(BLOCK, self._update.size), np.float32)
        block, skipped = divmod(start, self._thinning.block_words)
        done = 0
        while done < len(out):
            inside = values[: self._update.size - block * BLOCK]
            self._update.read(block * BLOCK, inside)
            chosen = np.zeros(self._thinning.count(block), np.float32)
            positions = self._thinning.sent(block, len(inside))
            chosen[: len(positions)] = inside[positions]
            piece = chosen[skipped : skipped + len(out) - done]
            out[done : done + len(piece)] = piece
            done, block, skipped = done + len(piece), block + 1, 0


class ClippedUpdate:
    """An `Update` with every value within ±`clip`, found finite: what is encoded, and what proximity is computed from.

    Args:
        update: of one component; read once here.
        clip: the plan's, above 0.

    Attributes:
        clipped: how many values were beyond ±`clip`.
        norm: of the clipped update, to about seven digits.

    Raises:
        NonFiniteUpdateError: it holds NaN or infinity; it must not be masked.
    """

    def __init__(self, update: Update, clip: float) -> None:
        self._update, self._clip = update, clip
        self.clipped, total = 0, 0.0
        block, sizes = (np.empty(min(BLOCK, update.size), np.float32) for _ in range(2))
        for start in range(0, update.size, BLOCK):  # in blocks that stay in the cache: no second copy of a model
            values = block[: update.size - start]
            update.read(start, values)
            magnitudes = np.abs(values, out=sizes[: len(values)])
            largest = float(np.max(magnitudes))  # NaN if there is one
            if not math.isfinite(largest):
                raise NonFiniteUpdateError(
                    "the update holds NaN or infinity.",
                    remedy="Lower the learning rate, or clip the gradient in the plan.",
                )
            if largest > clip:
                self.clipped += int(np.count_nonzero(magnitudes > clip))
                np.minimum(magnitudes, np.float32(clip), out=magnitudes)
            total += float(np.dot(magnitudes, magnitudes))
        self.norm = math.sqrt(total)

    @property
    def size(self) -> int:
        """See Update."""
        return self._update.size

    def read(self, start: int, out: Float32) -> None:
        """See Update."""
        self._update.read(start, out)
        if self.clipped:
            np.clip(out, -self._clip, self._clip, out=out)


def as_update(delta: Update | Float32) -> Update:
    """What a trainer returned, as an `Update`."""
    return ArrayUpdate(delta) if isinstance(delta, np.ndarray) else delta


def as_array(update: Update) -> Float32:
    """float32[size], a new array: for components that stay at their institution, and tests."""
    whole = np.empty(update.size, np.float32)
    update.read(0, whole)
    return whole
