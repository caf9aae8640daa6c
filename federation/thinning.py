"""Thinning: in each round a public pseudo-random part of a component's parameters is summed, the rest stays as it is.

Which part follows from the run, the round and the component alone, so that every institution and the coordinator find
the same one, in every attempt of the round, and nobody can choose it. Parameters are taken in runs of 16 neighbours,
and the same number of runs from every block of 65,536: so a vector is thinned block by block as it streams, and its
length is known beforehand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt

from federation.server_optimisers import ServerOptimiserSettings, apply

BLOCK: Final = 1 << 16
"""Parameters that are drawn from together."""

RUN: Final = 16
"""Neighbouring parameters that are sent or left out together."""

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Thinning:
    """What is sent of one component in one round.

    Args:
        size: parameters of the component, at least 1.
        fraction: part of the runs of each block that is sent, above 0, at most 1; at least one run of a block is.
        key: 32 bytes that fix the choice (`thinning_key`); of no use, and never read, where everything is sent.
    """

    size: int
    fraction: float = 1.0
    key: bytes = b""

    @property
    def whole(self) -> bool:
        """Whether every parameter is sent."""
        return self.fraction >= 1.0

    @property
    def block_words(self) -> int:
        """Words that a full block of parameters gives."""
        return RUN * _kept(BLOCK // RUN, self.fraction)

    @cached_property
    def words(self) -> int:
        """Parameters sent, and zeros behind the last one that fill its run up."""
        if self.whole:
            return self.size
        rest = self.size % BLOCK
        return self.size // BLOCK * self.block_words + RUN * _kept(ceil(rest / RUN), self.fraction)

    def count(self, block: int) -> int:
        """Words that a block gives, zeros behind the last parameter included."""
        return RUN * _kept(ceil(min(BLOCK, self.size - block * BLOCK) / RUN), self.fraction)

    def positions(self, block: int) -> Int64Array:
        """Which parameters of a block are sent, counted from its first: int64[…], rising, runs of 16 complete.

        A position beyond the component's end stands for a zero.

        Args:
            block: number of the block, from 0.
        """
        runs = ceil(min(BLOCK, self.size - block * BLOCK) / RUN)
        kept = _kept(runs, self.fraction)
        if kept == runs:
            chosen = np.arange(runs)
        else:
            keys = _draw(self.key, block, runs)
            chosen = np.sort(np.argpartition(keys, kept)[:kept])
        return (chosen[:, None] * RUN + np.arange(RUN)).ravel()

    def sent(self, block: int, count: int) -> Int64Array:
        """`positions` without those beyond the component's end, where the block has `count` parameters."""
        positions = self.positions(block)
        return positions[: int(np.searchsorted(positions, count))]


def apply_to(
    optimiser: ServerOptimiserSettings,
    weights: Float32Array,
    mean: Float32Array,
    slots: Mapping[str, Float32Array],
    positions: Int64Array,
) -> None:
    """A server step on some parameters; the others keep their weight and their optimiser state.

    Args:
        optimiser: the plan's.
        weights: float32[n], changed in place.
        mean: float32[at least len(positions)], δ_G of those parameters.
        slots: the optimiser's state, float32[n] each, changed in place.
        positions: int64, each in [0, n), distinct.
    """
    chosen, states = weights[positions], {slot: values[positions] for slot, values in slots.items()}
    apply(optimiser, chosen, mean[: len(positions)], states)
    weights[positions] = chosen
    for slot, values in states.items():
        slots[slot][positions] = values


def thinning_key(run: bytes, round_: int, component: str) -> bytes:
    """What fixes the choice of one component in one round.

    Args:
        run: digest of the plan, 32 bytes.
        round_: its number, from 1.
        component: its name.
    """
    text = b"consilium/v1/thinning" + run + round_.to_bytes(4, "big") + component.encode()
    return hashlib.sha256(text).digest()


def _kept(runs: int, fraction: float) -> int:
    return ceil(runs * fraction) if runs else 0


def _draw(key: bytes, block: int, count: int) -> npt.NDArray[np.uint64]:
    """Distinct words, one per run; whose words are smallest is chosen.

    SHAKE-256 fills the upper bits; the run's number below them lets no two be equal, so that every machine sorts alike.
    """
    data = hashlib.shake_256(key + block.to_bytes(8, "big")).digest(8 * count)
    drawn = np.frombuffer(data, "<u8") & np.uint64(~np.uint64(BLOCK // RUN - 1))
    return drawn | np.arange(count, dtype=np.uint64)
