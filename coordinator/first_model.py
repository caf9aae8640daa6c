"""w(0) and the server optimiser's first state, from the plan's seed into the content store, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from federation.features import FeatureSchema
from federation.initialisation import BLOCK
from federation.layout import Component, layout
from federation.rounds import Cohorts, ComponentDigests, Setup
from federation.server_optimisers import ServerOptimiserSettings, initial_value, state_slots
from federation.settings import optimiser_settings
from federation.setup import patients_of
from federation.vectors import ContentStore
from security.secure_sum.spec import Sum

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FirstModel:
    """What the model is made from once the patients are summed: round 0's last sum.

    Attributes:
        cohorts: of the plan.
        schema: the run's.
        which: the sum of the patients, as the attempt has it.
    """

    cohorts: Cohorts
    schema: FeatureSchema
    which: Sum

    def make(
        self, content: ContentStore, words: Mapping[str, npt.NDArray[np.uint64]], alive: frozenset[str]
    ) -> dict[str, ComponentDigests]:
        """Stores the components that this run sums.

        Args:
            content: where they go; durable on return.
            words: the opened patients by part.
            alive: whose patients they are.

        Raises:
            StorageError: the disk failed or is full; it can be done again.
        """
        setup = Setup(self.schema.digest, patients_of(self.which, words), alive)
        return first_components(content, self.cohorts, self.schema.widths, setup)


def first_components(
    content: ContentStore, cohorts: Cohorts, widths: Mapping[str, int], setup: Setup
) -> dict[str, ComponentDigests]:
    """Stores the components that a run sums, as the plan's seed gives them, and the optimiser's first state.

    Args:
        content: where they go; durable on return.
        cohorts: of the plan.
        widths: of the feature schema.
        setup: of the run.

    Raises:
        StorageError: the disk failed or is full; it can be done again.
    """
    plan = cohorts.plan
    made, optimiser = layout(plan, widths), optimiser_settings(plan)
    return {name: _store(content, made.components[name], plan.seed, optimiser) for name in cohorts.summed(setup)}


def _store(
    content: ContentStore, component: Component, seed: int, optimiser: ServerOptimiserSettings
) -> ComponentDigests:
    slots = {
        slot: _put(content, _constant(component.size, initial_value(optimiser, slot)))
        for slot in state_slots(optimiser.kind)
    }
    return ComponentDigests(_put(content, component.initial_blocks(seed)), slots)


def _constant(size: int, value: float) -> Iterator[Float32]:
    block = np.full(min(BLOCK, size), value, np.float32)
    for start in range(0, size, BLOCK):
        yield block[: size - start]


def _put(content: ContentStore, blocks: Iterator[Float32]) -> str:
    writer = content.writer()
    try:
        for block in blocks:
            writer.write(block.data)
        return writer.commit()
    finally:
        writer.abort()
