"""One server step at an institution, a block at a time: what it works on, how a stream becomes blocks, and the step.

A component's weights rest here. The server optimiser's vectors do too, or pass by: each is fetched by the digest that
this institution itself computed in the step before, and what becomes of it is hashed and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from federation.content_hash import ContentHash
from federation.fixed_point import ModelEncoding, ModelWords, mean_trajectory
from federation.proximity import ComponentDots, DotSums
from federation.rounds import ComponentDigests
from federation.server_optimisers import ServerOptimiserSettings, apply, state_slots
from federation.thinning import BLOCK, Thinning, apply_to
from institution_node.model_files import ModelShelf
from institution_node.updates import Update

Float32 = npt.NDArray[np.float32]


class Kept:
    """One component at rest.

    Attributes:
        slots: those of the server optimiser's vectors that rest here; the others are fetched at every step.
        now: what it was found or computed to be; None: nothing that may be used.
        untried: nobody looked yet at what an earlier process left.
    """

    def __init__(self, shelf: ModelShelf, name: str, size: int, optimiser: ServerOptimiserSettings) -> None:
        self.weights = shelf.vector(name, size)
        resting = {slot: shelf.slot(name, slot, k, size) for k, slot in enumerate(state_slots(optimiser.kind))}
        self.slots = {slot: vector for slot, vector in resting.items() if vector is not None}
        self.now: ComponentDigests | None = None
        self.untried = True


class Slot(Protocol):
    """float32[size] of the server optimiser's state, where a step finds it: a `ModelVector`, or one that passes by."""

    def block(self, start: int, size: int) -> Float32:
        """Elements `start` to `start + size`, to be changed in place; asked for in order, all of them."""

    def put(self, start: int, block: Float32) -> None:
        """Keeps a block that was changed in place, where anything is kept."""


class PassingVector:
    """A `Slot` that does not rest here: read once, in order, from content as it comes in. What becomes of it is only
    hashed; the coordinator keeps the same, or the round's digests differ.

    Args:
        pieces: its bytes; they raise at their end if they are not the content that was asked for.
        size: elements.
    """

    def __init__(self, pieces: Iterator[memoryview], size: int) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")
        self._block = np.empty(min(BLOCK, size), np.float32)

    def block(self, start: int, size: int) -> Float32:
        """See Slot; the array is good until the next call."""
        view, done = self._block.data.cast("B")[: 4 * size], 0
        while done < len(view):
            self._rest = self._rest or next(self._pieces)
            count = min(len(self._rest), len(view) - done)
            view[done : done + count] = self._rest[:count]
            done, self._rest = done + count, self._rest[count:]
        return self._block[:size]

    def put(self, start: int, block: Float32) -> None:
        """See Slot: nothing is kept."""

    def end(self) -> None:
        """Takes the end of the content, where it is checked.

        Raises:
            ContentMismatchError: it was something else; nothing that was computed from it may be used.
        """
        for _ in self._pieces:
            pass


class Blocks:
    """Cuts a stream into blocks of `block` words, wherever the pieces of the stream end."""

    def __init__(self, type_: np.dtype[Any], take: Callable[[int, npt.NDArray[Any]], None], block: int = BLOCK) -> None:
        self._take = take
        self._words = np.empty(block, type_)
        self._bytes = self._words.data.cast("B")
        self._start = self._filled = 0

    def take(self, piece: memoryview) -> None:
        """The next bytes."""
        while piece:
            count = min(len(piece), len(self._bytes) - self._filled)
            self._bytes[self._filled : self._filled + count] = piece[:count]
            self._filled += count
            piece = piece[count:]
            if self._filled == len(self._bytes):
                self.end()

    def end(self) -> None:
        """Passes on what is left."""
        words = self._filled // self._words.itemsize
        if words:
            self._take(self._start, self._words[:words])
        self._start, self._filled = self._start + words, 0


class ServerStep:
    """One server step over one component, a block of the opened sum at a time.

    Args:
        kept: the component; w(t+1) takes the place of w(t).
        optimiser: the plan's.
        weight: Σα, as its word.
        encoding: of the component.
        own: δ_i as it was encoded; None: none.
        thinning: what was sent of the component.
        passing: the vectors of the optimiser's state that do not rest here.

    Attributes:
        tail: the words of Σα, once everything was taken.
    """

    def __init__(
        self,
        kept: Kept,
        optimiser: ServerOptimiserSettings,
        weight: int,
        encoding: ModelEncoding,
        own: Update | None,
        thinning: Thinning,
        passing: Mapping[str, PassingVector],
    ) -> None:
        self._kept, self._optimiser, self._encoding, self._own = kept, optimiser, encoding, own
        self._thinning = thinning
        self._weight, self.tail = weight, b""
        self._hashed = ContentHash()
        self._slots: dict[str, Slot] = {**kept.slots, **passing}
        self._slots_hashed = {slot: ContentHash() for slot in self._slots}
        self._sums = DotSums()
        self._mean, self._delta = (np.empty(min(BLOCK, thinning.words), np.float32) for _ in range(2))

    def take(self, start: int, words: ModelWords) -> None:
        """Words from `start` on, those of one block of parameters; the last ones of all are Σα."""
        size = max(0, min(len(words), self._thinning.words - start))
        self.tail += words[size:].tobytes()
        if size == 0:
            return
        mean = mean_trajectory(words[:size], self._weight, self._encoding, self._mean[:size])
        block = start // (BLOCK if self._thinning.whole else self._thinning.block_words)
        first = block * BLOCK
        count = min(BLOCK, self._kept.weights.size - first)
        weights = self._kept.weights.block(first, count)
        slots = {slot: vector.block(first, count) for slot, vector in self._slots.items()}
        if self._thinning.whole:
            apply(self._optimiser, weights, mean, slots)
        else:
            apply_to(self._optimiser, weights, mean, slots, self._thinning.sent(block, count))
        self._hashed.update(weights.data)
        self._kept.weights.put(first, weights)
        for slot, values in slots.items():
            self._slots_hashed[slot].update(values.data)
            self._slots[slot].put(first, values)
        if self._own is not None:
            delta = self._delta[:size]
            self._own.read(start, delta)
            self._sums.add(delta, mean)

    @property
    def reached(self) -> ComponentDigests:
        """What w(t+1) and the optimiser's state came to."""
        slots = {slot: hashed.hexdigest() for slot, hashed in self._slots_hashed.items()}
        return ComponentDigests(self._hashed.hexdigest(), slots)

    @property
    def dots(self) -> ComponentDots | None:
        """How δ_i lies to δ_G; None without a δ_i."""
        return None if self._own is None else self._sums.result()
