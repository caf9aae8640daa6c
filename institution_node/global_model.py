"""The global components that an institution owns: fetched once, then followed by applying each opened sum itself.

One model down per round: the opened sum. w(t+1) is computed here, block by block as the sum comes in and in the place
of w(t), and held against the coordinator's word (rule 6). Until that holds, the component counts as not there: a stream
that breaks off for good, a wrong sum or a crash leave nothing that is believed, and it is fetched again by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from federation.content_hash import ContentHash
from federation.fixed_point import ModelEncoding, ModelWords, decode_weight_sum, mean_trajectory, read_weight
from federation.layout import Layout
from federation.plan import Plan
from federation.proximity import ComponentDots, DotSums
from federation.rounds import ComponentDigests, RoundError
from federation.server_optimisers import ServerOptimiserSettings, apply, initial_value, state_slots
from federation.settings import optimiser_settings
from federation.thinning import BLOCK, Thinning, apply_to
from institution_node.memory import RunMemory
from institution_node.model_files import ModelShelf, ModelVector, digest_of
from institution_node.updates import Update
from security.secure_sum.errors import TranscriptError

Float32 = npt.NDArray[np.float32]


class Library(Protocol):
    """Content of the run by digest, checked against it."""

    def fetch(self, digest: str) -> bytearray:
        """Whole, in a buffer that is shared with later callers: do not change it."""
        ...

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        """The rest from `offset` on, of content of `length` bytes. NOT checked: for what is streamed whole later."""
        ...

    def stream(self, digest: str, length: int, take: Callable[[memoryview], None]) -> None:
        """Passes content of `length` bytes on in order, a piece at a time; checked once all of it was passed on."""
        ...


class GlobalModel:
    """w(t) and the server optimiser's state of the summed components that one institution owns.

    Args:
        plan: the plan.
        made: its layout.
        components: those that are summed and owned here.
        library: where content is fetched by digest.
        shelf: where vectors rest.
    """

    def __init__(
        self, plan: Plan, made: Layout, components: tuple[str, ...], library: Library, shelf: ModelShelf
    ) -> None:
        self._seed = plan.seed
        self._warm = bool(plan.initial_model)
        self._optimiser = optimiser_settings(plan)
        self._layout = made
        self._library = library
        self._shelf = shelf
        self.components = components
        self._kept: dict[str, _Kept] = {}
        self._wanted: dict[str, ComponentDigests] = {}
        self._round = -1

    @property
    def weights(self) -> dict[str, Float32]:
        """Component to float32[size], read-only: w(t), or w(t+1) once the sum was followed. After `load`.

        Raises:
            TranscriptError: a component is neither: its sum broke off, or was not what the coordinator said.
        """
        for name, kept in self._kept.items():
            if kept.now is None or kept.now != self._wanted.get(name):
                raise TranscriptError(
                    f"{name} is not at the round's weights here.", remedy="Nothing to do: it is fetched again."
                )
        return {name: kept.weights.array() for name, kept in self._kept.items()}

    def load(self, round_: int, states: Mapping[str, ComponentDigests], memory: RunMemory) -> None:
        """Makes w(t) what the round's opening names: kept, made from the plan's seed, or fetched.

        Raises:
            TranscriptError: it is not the model that this institution itself arrived at.
            RoundError: it is not of the plan's shape.
            StorageFullError: the disk has no room for the model; nothing was begun.
        """
        for name in self.components:
            if set(states[name].slots) != set(state_slots(self._optimiser.kind)):
                raise RoundError(f"the server optimiser's state of {name} is not the plan's.")
        behind = memory.known_round >= 0 and round_ == memory.known_round + 1
        for name in self.components:
            if behind and memory.known.get(name) != states[name].weights:
                raise TranscriptError(
                    f"w(t) of {name} is not what the round before gave here.",
                    remedy="The coordinator shows another model, or was restored from an old state.",
                )
        self._wanted, self._round = {name: states[name] for name in self.components}, round_
        for name in self.components:  # room for all of them before anything is fetched
            if name not in self._kept:
                self._kept[name] = _Kept(self._shelf, name, self._layout.components[name].size, self._optimiser)
        for name in self.components:
            self._ready(name)

    def _ready(self, name: str) -> _Kept:
        """The component as the round's opening names it."""
        kept, state = self._kept[name], self._wanted[name]
        if kept.now == state:
            return kept
        kept.now = None
        pairs = [(kept.weights, state.weights), *((kept.slots[slot], d) for slot, d in state.slots.items())]
        # Once: what an earlier process left may be what is wanted; what this one spoilt is not.
        missing = [(v, d) for v, d in pairs if not (kept.untried and v.found and digest_of(v) == d)]
        kept.untried = False
        if missing and self._round == 1 and not self._warm:
            self._start(name, kept, state)
        else:
            for vector, digest in missing:
                fetch_into(vector, self._library, digest)
        kept.now = state
        return kept

    def _start(self, name: str, kept: _Kept, state: ComponentDigests) -> None:
        hashed, start = ContentHash(), 0
        for block in self._layout.components[name].initial_blocks(self._seed, BLOCK):
            hashed.update(block.data)
            kept.weights.put(start, block)
            start += len(block)
        if hashed.hexdigest() != state.weights:
            raise TranscriptError(
                f"w(0) of {name} is not what the plan's seed gives.",
                remedy="The coordinator starts from another model than the plan says.",
            )
        for slot, vector in kept.slots.items():
            vector.fill(initial_value(self._optimiser, slot))

    def advance(
        self,
        name: str,
        words: str,
        encoding: ModelEncoding,
        expected: ComponentDigests,
        own: Update | None = None,
        thinning: Thinning | None = None,
    ) -> tuple[float, ComponentDots | None]:
        """w(t+1) from the opened sum of one component, in the place of w(t).

        Args:
            name: the component.
            words: digest of its opened words.
            encoding: of the component.
            expected: what the coordinator says w(t+1) is.
            own: δ_i as it was encoded, what was not sent left out; None: this institution has none.
            thinning: what was sent of the component; None: all of it.

        Returns:
            Σα, and how δ_i lies to δ_G.

        Raises:
            TranscriptError: w(t+1) is not the coordinator's.
            ContentMismatchError: the sum that came is not what its digest promises.
        """
        kept = self._ready(name)
        kept.now = None  # from here on it is neither w(t) nor w(t+1), whatever happens
        sent = thinning or Thinning(kept.weights.size)
        type_, size = encoding.word_type, sent.words
        length = type_.itemsize * (size + encoding.weight_words)
        # Σα comes last and is needed first: here it is only said, in its place in the stream it counts.
        tail: npt.NDArray[Any] = np.frombuffer(self._library.peek(words, length, type_.itemsize * size), type_)
        weight = read_weight(tail, encoding)
        total = decode_weight_sum(weight, encoding)
        step = _Step(kept, self._optimiser, weight, encoding, own, sent)
        blocks = _Blocks(type_, step.take, BLOCK if sent.whole else sent.block_words)
        self._library.stream(words, length, blocks.take)
        blocks.end()
        if step.reached != expected or step.tail != tail.tobytes():
            raise TranscriptError(
                f"w(t+1) of {name} is not what the opened sum gives.",
                remedy="The coordinator's model is not the federation's: do not go on with it.",
            )
        kept.now = self._wanted[name] = expected
        return total, step.dots

    def digests(self) -> dict[str, str]:
        """Digest of the weights of each component, as followed so far."""
        return {name: kept.now.weights for name, kept in self._kept.items() if kept.now is not None}


def fetch_into(vector: ModelVector, library: Library, digest: str) -> None:
    """Fills a vector with content, block by block.

    Raises:
        RoundError: the content has another length.
        ContentMismatchError: what came is something else; the vector holds nothing that may be used.
    """
    blocks = _Blocks(np.dtype("<f4"), vector.put)
    library.stream(digest, 4 * vector.size, blocks.take)
    blocks.end()


class _Kept:
    """One component at rest.

    Attributes:
        now: what it was found or computed to be; None: nothing that may be used.
        untried: nobody looked yet at what an earlier process left.
    """

    def __init__(self, shelf: ModelShelf, name: str, size: int, optimiser: ServerOptimiserSettings) -> None:
        self.weights = shelf.vector(name, size)
        self.slots = {slot: shelf.vector(f"{name}.{slot}", size) for slot in state_slots(optimiser.kind)}
        self.now: ComponentDigests | None = None
        self.untried = True


class _Blocks:
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


class _Step:
    """One server step over one component, a block of the opened sum at a time.

    Attributes:
        tail: the words of Σα, once everything was taken.
    """

    def __init__(
        self,
        kept: _Kept,
        optimiser: ServerOptimiserSettings,
        weight: int,
        encoding: ModelEncoding,
        own: Update | None,
        thinning: Thinning,
    ) -> None:
        self._kept, self._optimiser, self._encoding, self._own = kept, optimiser, encoding, own
        self._thinning = thinning
        self._weight, self.tail = weight, b""
        self._hashed = ContentHash()
        self._slots_hashed = {slot: ContentHash() for slot in kept.slots}
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
        slots = {slot: vector.block(first, count) for slot, vector in self._kept.slots.items()}
        if self._thinning.whole:
            apply(self._optimiser, weights, mean, slots)
        else:
            apply_to(self._optimiser, weights, mean, slots, self._thinning.sent(block, count))
        self._hashed.update(weights.data)
        self._kept.weights.put(first, weights)
        for slot, values in slots.items():
            self._slots_hashed[slot].update(values.data)
            self._kept.slots[slot].put(first, values)
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
