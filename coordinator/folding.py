"""The heavy work of a round: opening a sum and, for model updates, the server optimiser. Streamed, constant memory.

A job holds everything it needs and touches no state of the run, so that a service may do it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from federation.fixed_point import ModelEncoding, mean_trajectory
from federation.rounds import ComponentDigests
from federation.server_optimisers import ServerOptimiserSettings, apply, initial_value, state_slots
from federation.vectors import ContentStore, VectorReader
from security.secure_sum.fold import fold
from security.secure_sum.recover import PartOpening

STEP_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class UpdateSettings:
    """What turns the opened updates of a component into its next weights."""

    clip: float
    headroom: float
    optimiser: ServerOptimiserSettings


@dataclass(frozen=True, repr=False)
class FoldJob:
    """Opens one sum.

    Attributes:
        sum: its name.
        openings: what unmasks each part.
        uploads: institution to its spooled upload.
        offsets: (institution, part) to where the part begins in that upload.
        weights: sum `updates` only: w(t) and the optimiser's state by component.
        settings: sum `updates` only.
    """

    sum: str
    openings: tuple[PartOpening, ...]
    uploads: Mapping[str, VectorReader]
    offsets: Mapping[tuple[str, str], int]
    weights: Mapping[str, ComponentDigests]
    settings: UpdateSettings | None


@dataclass(frozen=True)
class FoldResult:
    """Content digests of what a job made.

    Attributes:
        words: part to its opened words.
        components: component to w(t+1) and the optimiser's state; empty but for `updates`.
    """

    words: Mapping[str, str]
    components: Mapping[str, ComponentDigests]


def run_job(job: FoldJob, content: ContentStore) -> FoldResult:
    """Does the job; what it makes is durable in `content` when this returns.

    Raises:
        StorageError: the disk failed or is full; nothing was committed, the job can be done again.
        WeightError: an opened sum of weights is not positive.
    """
    words: dict[str, str] = {}
    for opening in job.openings:
        name = opening.part.name
        uploads = {i: (job.uploads[i], job.offsets[i, name]) for i in opening.alive}
        writer = content.writer()
        try:
            fold(opening, uploads, writer.write)
            words[name] = writer.commit()
        finally:
            writer.abort()
    components: dict[str, ComponentDigests] = {}
    if job.settings is not None:
        for opening in job.openings:
            name = opening.part.name
            contributors = len(opening.part.contributors)
            components[name] = _advance(content, words[name], job.weights[name], job.settings, contributors)
    return FoldResult(words, components)


def _advance(
    content: ContentStore, words: str, current: ComponentDigests, settings: UpdateSettings, contributors: int
) -> ComponentDigests:
    """w(t+1) = ServerOpt(w(t), δ_G), a block at a time (METHOD.md, "One round", step 4)."""
    encoding = ModelEncoding(settings.clip, settings.headroom, contributors)
    opened, weights = content.open(words), content.open(current.weights)
    slots = {slot: content.open(digest) for slot, digest in current.slots.items()}
    last = bytearray(4)
    opened.read_into(weights.length, memoryview(last))
    weight_word = int.from_bytes(last, "little")
    writers = {"": content.writer(), **{slot: content.writer() for slot in slots}}
    try:
        for start in range(0, weights.length, STEP_BYTES):
            size = min(STEP_BYTES, weights.length - start)
            delta, w = bytearray(size), bytearray(size)
            opened.read_into(start, memoryview(delta))
            weights.read_into(start, memoryview(w))
            states = {slot: bytearray(size) for slot in slots}
            for slot, reader in slots.items():
                reader.read_into(start, memoryview(states[slot]))
            block = np.frombuffer(delta, np.uint32)
            mean = mean_trajectory(block, weight_word, encoding, block.view(np.float32))
            arrays = {slot: np.frombuffer(data, np.float32) for slot, data in states.items()}
            apply(settings.optimiser, np.frombuffer(w, np.float32), mean, arrays)
            writers[""].write(memoryview(w))
            for slot, data in states.items():
                writers[slot].write(memoryview(data))
        return ComponentDigests(writers[""].commit(), {slot: writers[slot].commit() for slot in slots})
    finally:
        for writer in writers.values():
            writer.abort()


def initial_state(
    content: ContentStore, weights: np.ndarray[tuple[int], np.dtype[np.float32]], optimiser: ServerOptimiserSettings
) -> ComponentDigests:
    """Stores w(0) of one component and the optimiser's state before the first round."""
    slots = {
        slot: content.put(np.full(len(weights), initial_value(optimiser, slot), np.float32).tobytes())
        for slot in state_slots(optimiser.kind)
    }
    return ComponentDigests(content.put(weights.tobytes()), slots)
