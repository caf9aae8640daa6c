"""The heavy work of a round: opening a sum and, for model updates, the server optimiser. Streamed, constant memory.

A job holds everything it needs and touches no state of the run, so that a service may do it in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.first_model import FirstModel
from federation.fixed_point import ModelEncoding, mean_trajectory, read_weight
from federation.rounds import ComponentDigests
from federation.server_optimisers import ServerOptimiserSettings, apply
from federation.thinning import BLOCK, RUN, Thinning, apply_to
from federation.vectors import ContentStore, VectorReader, commit_all
from security.secure_sum.fold import fold
from security.secure_sum.recover import PartOpening

STEP: Final = 1 << 18
"""Parameters in work at a time."""


@dataclass(frozen=True)
class UpdateSettings:
    """What turns the opened updates of a component into its next weights.

    Attributes:
        encodings: component to how its words are read.
        thinning: component and its size to what was sent of it in the round.
        optimiser: the server's.
    """

    encodings: Mapping[str, ModelEncoding]
    thinning: Callable[[str, int], Thinning]
    optimiser: ServerOptimiserSettings


@dataclass(frozen=True, repr=False)
class FoldJob:
    """Opens one sum. Updates are opened in two jobs: folded first, so that their uploads can go before the next model
    takes room on the disk.

    Attributes:
        sum: its name.
        openings: what unmasks each part; without keystreams where it is folded.
        uploads: institution to its spooled upload; empty where it is folded.
        words: part to the digest of its opened words, where it is folded; empty: that is to do.
        offsets: (institution, part) to where the part begins in that upload.
        weights: sum `updates` only: w(t) and the optimiser's state by component.
        settings: sum `updates` only.
        first: sum `weights` only, and only where its model can be made: what it is made from.
    """

    sum: str
    openings: tuple[PartOpening, ...]
    words: Mapping[str, str]
    uploads: Mapping[str, VectorReader]
    offsets: Mapping[tuple[str, str], int]
    weights: Mapping[str, ComponentDigests]
    settings: UpdateSettings | None
    first: FirstModel | None = None

    @property
    def only_folds(self) -> bool:
        """Whether another job makes the next model."""
        return self.settings is not None and not self.words


@dataclass(frozen=True)
class FoldResult:
    """Content digests of what a job made.

    Attributes:
        words: part to its opened words.
        components: component to the weights and the optimiser's state that follow from the sum: w(t+1) from
            `updates` that were folded before, w(0) from `weights`; else empty.
        norms: component to the L2 norm of the mean trajectory that was added to it.
    """

    words: Mapping[str, str]
    components: Mapping[str, ComponentDigests]
    norms: Mapping[str, float] = field(default_factory=dict)


def run_job(job: FoldJob, content: ContentStore) -> FoldResult:
    """Does the job; what it makes is durable in `content` when this returns.

    Raises:
        StorageError: the disk failed or is full; nothing was committed, the job can be done again.
        WeightError: an opened sum of weights is not positive.
    """
    words = dict(job.words) or _fold_all(job, content)
    components: dict[str, ComponentDigests] = {}
    norms: dict[str, float] = {}
    if job.settings is not None and not job.only_folds:
        for opening in job.openings:
            name = opening.part.name
            current = job.weights[name]
            components[name], norms[name] = _advance(content, name, words[name], current, job.settings)
    if job.first is not None:
        alive = frozenset(i for opening in job.openings for i in opening.alive)
        patients = {name: read_words(content, digest) for name, digest in words.items()}
        components |= job.first.make(content, patients, alive)
    return FoldResult(words, components, norms)


def _fold_all(job: FoldJob, content: ContentStore) -> dict[str, str]:
    writers = {opening.part.name: content.writer() for opening in job.openings}
    try:
        for opening in job.openings:
            name = opening.part.name
            uploads = {i: (job.uploads[i], job.offsets[i, name]) for i in opening.alive}
            fold(opening, uploads, writers[name].write)
        return dict(zip(writers, commit_all(list(writers.values())), strict=True))
    finally:
        for writer in writers.values():
            writer.abort()


def read_words(content: ContentStore, digest: str) -> npt.NDArray[np.uint64]:
    """The opened words of a statistic, whole: they are few."""
    reader = content.open(digest)
    data = bytearray(reader.length)
    reader.read_into(0, memoryview(data))
    return np.frombuffer(data, np.dtype("<u8"))


def _advance(
    content: ContentStore, name: str, words: str, current: ComponentDigests, settings: UpdateSettings
) -> tuple[ComponentDigests, float]:
    """w(t+1) = ServerOpt(w(t), δ_G), a block at a time (METHOD.md, "One round", step 4), and the norm of δ_G."""
    encoding, optimiser = settings.encodings[name], settings.optimiser
    type_ = encoding.word_type
    opened, weights = content.open(words), content.open(current.weights)
    slots = {slot: content.open(digest) for slot, digest in current.slots.items()}
    parameters = weights.length // 4
    thinning = settings.thinning(name, parameters)
    tail = np.empty(encoding.weight_words, type_)
    opened.read_into(type_.itemsize * thinning.words, tail.data)
    weight = read_weight(tail, encoding)
    step = STEP if thinning.whole else BLOCK
    size = min(step, -(-parameters // RUN) * RUN)
    delta, mean, w = np.empty(size, type_), np.empty(size, np.float32), np.empty(size, np.float32)
    states = {slot: np.empty(size, np.float32) for slot in slots}
    writers = {"": content.writer(), **{slot: content.writer() for slot in slots}}
    squares = 0.0
    try:
        for start in range(0, parameters, step):
            count = min(step, parameters - start)
            block = start // BLOCK
            first, sent = (start, count) if thinning.whole else (block * thinning.block_words, thinning.count(block))
            opened.read_into(type_.itemsize * first, delta[:sent].data)
            weights.read_into(4 * start, w[:count].data)
            for slot, reader in slots.items():
                reader.read_into(4 * start, states[slot][:count].data)
            mean_trajectory(delta[:sent], weight, encoding, mean[:sent])
            squares += float(np.dot(mean[:sent], mean[:sent]))
            now = {slot: values[:count] for slot, values in states.items()}
            if thinning.whole:
                apply(optimiser, w[:count], mean[:count], now)
            else:
                apply_to(optimiser, w[:count], mean[:sent], now, thinning.sent(block, count))
            writers[""].write(w[:count].data)
            for slot, values in now.items():
                writers[slot].write(values.data)
        weights_digest, *others = commit_all([writers[""], *(writers[slot] for slot in slots)])
        return ComponentDigests(weights_digest, dict(zip(slots, others, strict=True))), math.sqrt(squares)
    finally:
        for writer in writers.values():
            writer.abort()
