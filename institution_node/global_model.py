"""The global components that an institution owns: fetched once, then followed by applying each opened sum itself.

One model down per round: the opened sum. w(t+1) is computed here, block by block as the sum comes in and in the place
of w(t), and held against the coordinator's word (rule 6). Until that holds, the component counts as not there: a stream
that breaks off for good, a wrong sum or a crash leave nothing that is believed, and it is fetched again by digest.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from federation.content_hash import ContentHash
from federation.fixed_point import ModelEncoding, decode_weight_sum, read_weight
from federation.layout import Layout
from federation.plan import Plan
from federation.proximity import ComponentDots
from federation.rounds import ComponentDigests, RoundError
from federation.server_optimisers import initial_value, state_slots
from federation.settings import optimiser_settings
from federation.thinning import BLOCK, Thinning
from institution_node.memory import RunMemory
from institution_node.model_files import ModelShelf, ModelVector, digest_of
from institution_node.server_step import Blocks, Kept, PassingVector, ServerStep
from institution_node.updates import Update
from security.secure_sum.errors import TranscriptError

Float32 = npt.NDArray[np.float32]


class Library(Protocol):
    """Content of the run by digest, checked against it."""

    def fetch(self, digest: str, at_most: int) -> bytearray:
        """Whole, in a buffer that is shared with later callers: do not change it.

        Raises:
            ContentMismatchError: it has more than `at_most` bytes; of that, nothing is taken.
        """
        ...

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        """The rest from `offset` on, of content of `length` bytes. NOT checked: for what is streamed whole later."""
        ...

    def pieces(self, digest: str, length: int) -> Generator[memoryview]:
        """Content of `length` bytes in order, a piece at a time; checked once all of it was passed on."""
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
        self._kept: dict[str, Kept] = {}
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
            if behind and any(memory.known.get(vector) != found for vector, found in _vectors(name, states[name])):
                raise TranscriptError(
                    f"w(t) of {name}, or the optimiser's state, is not what the round before gave here.",
                    remedy="The coordinator shows another model, or was restored from an old state.",
                )
        self._wanted, self._round = {name: states[name] for name in self.components}, round_
        for name in self.components:  # room for all of them before anything is fetched
            if name not in self._kept:
                self._kept[name] = Kept(self._shelf, name, self._layout.components[name].size, self._optimiser)
        for name in self.components:
            self._ready(name)

    def _ready(self, name: str) -> Kept:
        """The component as the round's opening names it."""
        kept, state = self._kept[name], self._wanted[name]
        if kept.now == state:
            return kept
        kept.now = None
        if self._round == 1:
            self._check_first(name, kept.weights.size, state)
        pairs = [(kept.weights, state.weights), *((v, state.slots[slot]) for slot, v in kept.slots.items())]
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

    def _check_first(self, name: str, size: int, state: ComponentDigests) -> None:
        """The optimiser's state before the first step is the plan's, whether it rests here or not."""
        for slot, digest in state.slots.items():
            block = np.full(min(BLOCK, size), initial_value(self._optimiser, slot), np.float32)
            hashed = ContentHash()
            for start in range(0, size, BLOCK):
                hashed.update(block[: size - start].data)
            if hashed.hexdigest() != digest:
                raise TranscriptError(
                    f"the optimiser's state of {name} is not what the plan begins with.",
                    remedy="The coordinator starts from another state than the plan says.",
                )

    def _start(self, name: str, kept: Kept, state: ComponentDigests) -> None:
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
        with ExitStack() as streams:

            def pieces(digest: str, count: int) -> Iterator[memoryview]:
                return streams.enter_context(closing(self._library.pieces(digest, count)))

            before, parameters = self._wanted[name].slots, kept.weights.size
            passing = {
                slot: PassingVector(pieces(digest, 4 * parameters), parameters)
                for slot, digest in before.items()
                if slot not in kept.slots
            }
            step = ServerStep(kept, self._optimiser, weight, encoding, own, sent, passing)
            blocks = Blocks(type_, step.take, BLOCK if sent.whole else sent.block_words)
            for piece in pieces(words, length):
                blocks.take(piece)
            blocks.end()
            for vector in passing.values():
                vector.end()
        if step.reached != expected or step.tail != tail.tobytes():
            raise TranscriptError(
                f"w(t+1) of {name} is not what the opened sum gives.",
                remedy="The coordinator's model is not the federation's: do not go on with it.",
            )
        kept.now = self._wanted[name] = expected
        return total, step.dots

    def digests(self) -> dict[str, str]:
        """Digest of each component's weights, and as `component.slot` of the optimiser's state, as followed so far."""
        known = {name: kept.now for name, kept in self._kept.items() if kept.now is not None}
        return {vector: digest for name, now in known.items() for vector, digest in _vectors(name, now)}


def _vectors(name: str, digests: ComponentDigests) -> list[tuple[str, str]]:
    return [(name, digests.weights), *((f"{name}.{slot}", digest) for slot, digest in digests.slots.items())]


def fetch_into(vector: ModelVector, library: Library, digest: str) -> None:
    """Fills a vector with content, block by block.

    Raises:
        RoundError: the content has another length.
        ContentMismatchError: what came is something else; the vector holds nothing that may be used.
    """
    blocks = Blocks(np.dtype("<f4"), vector.put)
    with closing(library.pieces(digest, 4 * vector.size)) as pieces:
        for piece in pieces:
            blocks.take(piece)
    blocks.end()
