"""The global components that an institution owns: fetched once, then followed by applying each opened sum itself.

One model down per round: the opened sum. w(t+1) is computed here and held against the coordinator's word (rule 6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from federation.fixed_point import ModelEncoding, decode_weight_sum, mean_trajectory
from federation.layout import Layout
from federation.plan import Plan
from federation.rounds import ComponentDigests, RoundError
from federation.server_optimisers import apply, initial_value, state_slots
from federation.settings import optimiser_settings
from institution_node.memory import RunMemory
from security.secure_sum.errors import TranscriptError

Float32 = npt.NDArray[np.float32]


class Library(Protocol):
    """Content of the run by digest, checked against it."""

    def fetch(self, digest: str) -> bytearray:
        """A buffer that is the caller's to keep."""
        ...


class GlobalModel:
    """w(t) and the server optimiser's state of the summed components that one institution owns.

    Args:
        plan: the plan.
        made: its layout.
        components: those that are summed and owned here.
        library: where content is fetched by digest.
    """

    def __init__(self, plan: Plan, made: Layout, components: tuple[str, ...], library: Library) -> None:
        self._seed = plan.seed
        self._warm = bool(plan.initial_model)
        self._optimiser = optimiser_settings(plan)
        self._layout = made
        self._library = library
        self._components = components
        self.weights: dict[str, Float32] = {}
        self._slots: dict[str, dict[str, Float32]] = {}
        self._now: dict[str, ComponentDigests] = {}

    def load(self, round_: int, states: Mapping[str, ComponentDigests], memory: RunMemory) -> None:
        """Makes w(t) what the round's opening names: kept, made from the plan's seed, or fetched.

        Raises:
            TranscriptError: it is not the model that this institution itself arrived at.
            RoundError: it is not of the plan's shape.
        """
        for name in self._components:
            if set(states[name].slots) != set(state_slots(self._optimiser.kind)):
                raise RoundError(f"the server optimiser's state of {name} is not the plan's.")
        behind = memory.known_round >= 0 and round_ == memory.known_round + 1
        for name in self._components:
            state = states[name]
            if behind and memory.known.get(name) != state.weights:
                raise TranscriptError(
                    f"w(t) of {name} is not what the round before gave here.",
                    remedy="The coordinator shows another model, or was restored from an old state.",
                )
            if self._now.get(name) == state:
                continue
            if round_ == 1 and not self._warm:
                self._start(name, state)
            else:
                self.weights[name] = self._fetch(state.weights, name)
                self._slots[name] = {slot: self._fetch(d, name) for slot, d in state.slots.items()}
            self._now[name] = state

    def _start(self, name: str, state: ComponentDigests) -> None:
        weights = self._layout.components[name].initial(self._seed)
        if _digest(weights) != state.weights:
            raise TranscriptError(
                f"w(0) of {name} is not what the plan's seed gives.",
                remedy="The coordinator starts from another model than the plan says.",
            )
        self.weights[name] = weights
        self._slots[name] = {
            slot: np.full(len(weights), initial_value(self._optimiser, slot), np.float32)
            for slot in state_slots(self._optimiser.kind)
        }

    def _fetch(self, digest: str, name: str) -> Float32:
        return self._read(digest, name, self._layout.components[name].size).copy().view(np.float32)

    def _read(self, digest: str, name: str, words: int) -> npt.NDArray[np.uint32]:
        data = self._library.fetch(digest)
        if len(data) != 4 * words:
            raise RoundError(f"the coordinator's {name} has not the plan's size.")
        return np.frombuffer(data, np.dtype("<u4"))

    def advance(
        self, name: str, words: str, encoding: ModelEncoding, expected: ComponentDigests
    ) -> tuple[float, Float32]:
        """w(t+1) from the opened sum of one component.

        Args:
            name: the component.
            words: digest of its opened words.
            encoding: of the component.
            expected: what the coordinator says w(t+1) is.

        Returns:
            Σα and δ_G, float32[size].

        Raises:
            TranscriptError: w(t+1) is not the coordinator's.
        """
        opened = self._read(words, name, self._layout.components[name].size + 1)
        weight = int(opened[-1])
        mean = np.empty(len(opened) - 1, np.float32)
        mean_trajectory(opened[:-1], weight, encoding, mean)
        apply(self._optimiser, self.weights[name], mean, self._slots[name])
        slots = {slot: _digest(values) for slot, values in self._slots[name].items()}
        if ComponentDigests(_digest(self.weights[name]), slots) != expected:
            self._now.pop(name, None)
            raise TranscriptError(
                f"w(t+1) of {name} is not what the opened sum gives.",
                remedy="The coordinator's model is not the federation's: do not go on with it.",
            )
        self._now[name] = expected
        return decode_weight_sum(weight, encoding), mean

    def digests(self) -> dict[str, str]:
        """Digest of the weights of each component, as followed so far."""
        return {name: state.weights for name, state in self._now.items()}


def _digest(values: Float32) -> str:
    return hashlib.sha256(values.data).hexdigest()
