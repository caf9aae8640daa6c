"""Rounds without keys, shares, masks, signatures and uploads: what is left of one is the arithmetic, and that is the
service's own.

Institutions are the node's `LocalRun`, their words are the ones that would be masked, and what opens is what the
coordinator's `run_job` and `RoundOutcome` make of the sum of these words. Masks cancel exactly, so a run gives the same
model bytes as over gRPC (`tests/studies/test_plain_rounds.py`), at a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as pb

from coordinator.first_model import first_components
from coordinator.folding import FoldJob, run_job
from coordinator.outcome import RoundOutcome, opened_sum, update_settings
from coordinator.round_record import statistics_record
from coordinator.state import RunState
from federation.in_memory import MemoryContentStore
from federation.plan import Plan
from federation.rounds import UPDATES, WEIGHTS, Cohorts, digest
from institution_node.data import InstitutionData
from institution_node.local_run import LocalRun, features_of
from institution_node.memory import ProcessMemory
from institution_node.trainer import TrainerFactory, trainer_for
from security.privacy.ledger import PrivacyLedger
from security.secure_sum.masks import word_type
from security.secure_sum.messages import SurvivorList
from security.secure_sum.recover import PartOpening
from security.secure_sum.spec import Attempt, Context, Sum
from studies.settled import RandomnessOf, Settled, memory_after


class PlainRun:
    """One run, everybody present in every round.

    Args:
        plan: a checked plan.
        data: institution to its patients, for the plan's whole roster.
        randomness: institution to its node's generator.
        settled: round 0 of these patients, so that the run begins with round 1; None: it begins with round 0.
        make_trainer: what trains.
        ledgers: institution to its privacy ledger, under differential privacy.

    Attributes:
        state: of the run, after the last round.
        round: that comes next.
        works: institution to its work, of those that take part.
        content: everything that was opened, and the models that the state names.
        uploaded: institution to the bytes of sum A's words that it sent.
    """

    def __init__(
        self,
        plan: Plan,
        data: Mapping[str, InstitutionData],
        randomness: RandomnessOf,
        settled: Settled | None = None,
        make_trainer: TrainerFactory = trainer_for,
        ledgers: Mapping[str, PrivacyLedger] | None = None,
    ) -> None:
        self.plan = plan
        self.state, self.round = RunState(), 0
        self.content = MemoryContentStore()
        self.uploaded = dict.fromkeys(plan.roster, 0)
        plan_bytes = plan.to_bytes()
        self._id = digest(plan_bytes)
        self._cohorts = Cohorts(plan)
        library = StoreLibrary(self.content)
        self._memory = {name: ProcessMemory() for name in plan.roster}
        read = features_of
        if settled is not None:
            settled.check(plan)
            read = settled.features
            self._begin_after(settled)
        self.works = {
            name: LocalRun(
                plan_bytes,
                name,
                data[name],
                library,
                self._memory[name],
                randomness(name),
                ledger=None if ledgers is None else ledgers[name],
                make_trainer=make_trainer,
                read_features=read,
            )
            for name in plan.roster
        }
        self._opened: RoundOutcome | None = None
        self._attempt: Attempt | None = None

    def _begin_after(self, settled: Settled) -> None:
        self.content.put(settled.schema)
        components = first_components(self.content, self._cohorts, settled.widths, settled.setup)
        self.state, self.round = RunState(setup=settled.setup, components=components), 1
        for name, memory in settled.memories.items():
            self._memory[name].save(self._id.hex(), memory)

    @property
    def ended(self) -> bool:
        """Whether the plan's rounds are over, or nothing improves any more (`evaluation.patience`)."""
        patience = self.plan.evaluation.patience
        late = bool(patience) and self.state.selection.without_gain >= patience
        return self.round > self.plan.rounds or late

    def begin(self) -> None:
        """Opens the next round at every institution."""
        setup = self.state.setup
        if setup is not None:  # who owns nothing that is summed sits the run out
            self.works = {name: work for name, work in self.works.items() if name in setup.institutions}
        start = self.state.round_start(self._id, self.round)
        sums = self.state.sums(self._cohorts, self.content, self.round)
        context = Context(self.plan.federation, self._id, self.round, 1, digest(start))
        self._attempt = self._cohorts.attempt(context, sums)
        self._opened = RoundOutcome(self._cohorts, self.content, sums, self.state)
        message = pb.RoundStart.FromString(start)
        for work in self.works.values():
            work.open_round(message, start)

    def open(self, which: Sum) -> None:
        """Adds one sum up, opens it, and shows it to everybody."""
        assert self._attempt is not None
        assert self._opened is not None
        attempt, everybody = self._attempt, frozenset(self.works)
        totals: dict[str, npt.NDArray[Any]] = {}
        for name, work in self.works.items():
            parts = attempt.uploaded_parts(which.name, everybody, name)
            for part, source in work.sources(which, parts).items():
                length, ring = which.part(part).length, which.part(part).ring
                words = np.empty(length, word_type(ring))
                source.fill(0, words)
                if which.name == UPDATES:
                    self.uploaded[name] += words.nbytes
                totals[part] = words if part not in totals else np.add(totals[part], words, out=totals[part])
        openings = tuple(
            PartOpening(part, tuple(sorted(part.contributors)), ())
            for part in attempt.opened_parts(which.name, everybody, everybody)
        )
        opened_words = {o.part.name: self.content.put(totals[o.part.name].data) for o in openings}
        context = attempt.context
        settings = update_settings(self.plan, context, openings) if which.name == UPDATES else None
        first = self._opened.first_model() if which.name == WEIGHTS else None
        job = FoldJob(which.name, openings, opened_words, {}, {}, self.state.components, settings, first)
        result = run_job(job, self.content)
        listed = SurvivorList(
            context, which.name, bytes(32), tuple(sorted(everybody)), (), (bytes(64),) * len(everybody)
        )
        data = opened_sum(job, result, listed.encode())
        self._opened.take(data)
        opened = pb.OpenedSum.FromString(data)
        for work in self.works.values():
            work.take_opened(which, opened, listed)

    @property
    def key(self) -> str:
        """Of the run: the plan's digest."""
        return self._id.hex()

    @property
    def sums(self) -> tuple[Sum, ...]:
        """Of the open round, in order."""
        assert self._attempt is not None
        return self._attempt.sums

    def commit(self) -> dict[str, Any]:
        """Ends the round.

        Returns:
            What its record tells (`coordinator.round_record`), without parties, bytes and times.
        """
        assert self._opened is not None
        self.state = self._opened.state(self.round)
        record: dict[str, Any] = {"round": self.round, "selection": self.state.selection.said()}
        if self._opened.statistics is not None:
            record |= statistics_record(self._opened.statistics)
        self.content.collect(self.state.digests())
        self.round += 1
        return record

    def step(self) -> dict[str, Any]:
        """One whole round; see `commit`."""
        self.begin()
        for which in self.sums:
            self.open(which)
        return self.commit()


def settle(plan: Plan, data: Mapping[str, InstitutionData], randomness: RandomnessOf) -> Settled:
    """Runs round 0 of a plan; see PlainRun."""
    run = PlainRun(plan, data, randomness)
    run.step()
    setup = run.state.setup
    assert setup is not None
    memories = {name: memory_after(memory.load(run.key)) for name, memory in run._memory.items()}
    return Settled(plan, data, randomness, bytes(run.content.open(setup.schema).view()), setup, memories)


class StoreLibrary:
    """Content straight from the store that everybody shares: nothing travels, so nothing is checked."""

    def __init__(self, content: MemoryContentStore) -> None:
        self._content = content

    def fetch(self, digest: str, at_most: int) -> bytearray:
        """See Library."""
        return bytearray(self._content.open(digest).view())

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        """See Library."""
        return bytes(self._content.open(digest).view()[offset:length])

    def pieces(self, digest: str, length: int) -> Generator[memoryview]:
        """See Library."""
        yield self._content.open(digest).view()[:length]
