"""What the opened sums of one round come to: taken one by one, and only the commit makes it the run's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from consilium.v1 import round_pb2 as pb

from coordinator.first_model import FirstModel
from coordinator.folding import FoldJob, FoldResult, UpdateSettings, read_words
from coordinator.results import RoundStatistics, fresh_losses, read_statistics, selection_score
from coordinator.selection import BestRound
from coordinator.state import RunState
from federation.feature_sums import FEATURE_SUMS
from federation.plan import Evaluation, Plan
from federation.rounds import UPDATES, WEIGHTS, Cohorts, ComponentDigests, Setup
from federation.settings import model_encoding, optimiser_settings, thinning
from federation.setup import FeatureSums, feature_sum, patients_of
from federation.subgroups import holders_of
from federation.vectors import ContentStore, Spool, UploadKey
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.errors import TooFewMembersError
from security.secure_sum.recover import PartOpening
from security.secure_sum.spec import Context, Sum


class RoundOutcome:
    """The opened sums of an attempt.

    Args:
        cohorts: of the plan.
        content: where opened words are, and where schema and w(0) go.
        sums: of the attempt.
        before: the run's state when the round began.

    Attributes:
        opened: OpenedSum of each sum that is open, in order, exact bytes.
        statistics: what sum B told; None before, and where it stays shut.
    """

    def __init__(self, cohorts: Cohorts, content: ContentStore, sums: tuple[Sum, ...], before: RunState) -> None:
        self.opened: list[bytes] = []
        self.statistics: RoundStatistics | None = None
        self._plan, self._cohorts, self._content = cohorts.plan, cohorts, content
        self._sums = {s.name: s for s in sums}
        self._state = before
        self._features = FeatureSums(self._plan, self._sums)

    def take(self, data: bytes) -> None:
        """Takes the next opened sum.

        Raises:
            StoreError, StorageError: what it is made of cannot be read or written.
            ConsiliumError: nothing can be made of it, today or later.
        """
        message = pb.OpenedSum.FromString(data)
        which, alive = self._sums[message.sum], survivors(message)
        if message.sum == UPDATES:
            updated = ComponentDigests.all_from(message.components)
            self._state = replace(self._state, components={**self._state.components, **updated})
        else:
            words = {p.part: read_words(self._content, p.words) for p in message.parts}
            if message.sum in FEATURE_SUMS:
                self._features.take(feature_sum(message.sum), words)
            elif message.sum == WEIGHTS:
                setup = Setup("", patients_of(which, words), alive, holders_of(which, words))
                self._settle(setup, ComponentDigests.all_from(message.components))
            else:
                assert self._state.setup is not None
                groups = self._cohorts.clip_groups(self._state.setup)
                self.statistics = read_statistics(self._plan, which, alive, words, self._state.blending, groups)
        self.opened.append(data)

    def state(self, round_: int) -> RunState:
        """The run's state after the round; the last losses stand where sum B stayed shut."""
        if round_ == 0:
            return self._state
        return _with_statistics(self._state, round_, self.statistics, self._plan.evaluation)

    def words(self) -> set[str]:
        """Content digests of everything that was opened."""
        return {p.words for data in self.opened for p in pb.OpenedSum.FromString(data).parts}

    def names(self) -> list[str]:
        """Names of the sums that are open, in order."""
        return [pb.OpenedSum.FromString(data).sum for data in self.opened]

    def first_model(self) -> FirstModel | None:
        """What w(0) is made from when the patients are summed; None where the schema is incomplete."""
        schema = self._features.schema
        return None if schema is None else FirstModel(self._cohorts, schema, self._sums[WEIGHTS])

    def _settle(self, setup: Setup, components: Mapping[str, ComponentDigests]) -> None:
        """Round 0 is complete: the schema, who takes part, and w(0)."""
        schema = self._features.schema
        if schema is None:
            raise TooFewMembersError("the feature schema is incomplete.")
        if len(setup.institutions) < self._plan.secure_sum.threshold:
            raise TooFewMembersError("fewer institutions than the threshold were there for the run's first sums.")
        if not any(self._plan.component(name).every == 1 for name in components):
            raise TooFewMembersError("no component has enough owners that were there for the run's first sums.")
        setup = replace(setup, schema=self._content.put(schema.to_bytes()))
        self._state = replace(self._state, setup=setup, components=components)


def _with_statistics(state: RunState, round_: int, result: RoundStatistics | None, evaluation: Evaluation) -> RunState:
    score, losses = None, {}
    if result is not None:
        state = replace(
            state,
            blending=result.blending,
            scores=result.figures.scores(),
            median_squared_overfitting=result.figures.median_squared_overfitting,
            temperatures={**state.temperatures, **result.temperatures},
        )
        score, losses = selection_score(result, evaluation.metric), fresh_losses(result)
    now = BestRound(round_, 0.0, state.components, state.temperatures)
    return replace(state, selection=state.selection.after(now, score, losses, evaluation.fallback_after))


def survivors(message: pb.OpenedSum) -> frozenset[str]:
    """Whose vectors are in an opened sum."""
    return frozenset(name for part in message.parts for name in part.contributors)


def opened_sum(job: FoldJob, result: FoldResult, survivor_list: bytes) -> bytes:
    """OpenedSum of a job that is done, as institutions are shown it: exact bytes."""
    return pb.OpenedSum(
        sum=job.sum,
        list=survivor_list,
        parts=[
            pb.OpenedPart(part=o.part.name, words=result.words[o.part.name], contributors=o.alive) for o in job.openings
        ],
        components=[c.to_proto(name) for name, c in sorted(result.components.items())],
    ).SerializeToString(deterministic=True)


def folded_openings(machine: Aggregator) -> tuple[PartOpening, ...]:
    """The parts of the current sum, which is folded, with its survivors: nothing is left to unmask."""
    alive = machine.current.alive
    parts = machine.attempt.opened_parts(machine.current.name, machine.cohort, alive, machine.graph)
    return tuple(PartOpening(part, tuple(sorted(part.contributors & alive)), ()) for part in parts)


def update_settings(plan: Plan, context: Context, openings: tuple[PartOpening, ...]) -> UpdateSettings:
    """What makes the next weights of the opened updates of a round."""
    encodings = {o.part.name: model_encoding(plan, len(o.part.contributors)) for o in openings}
    return UpdateSettings(encodings, partial(thinning, plan, context.run, context.round), optimiser_settings(plan))


def fold_job(
    plan: Plan,
    machine: Aggregator,
    openings: tuple[PartOpening, ...],
    words: Mapping[str, str],
    spool: Spool,
    run: str,
    state: RunState,
    outcome: RoundOutcome,
) -> FoldJob:
    """The heavy work of opening the current sum.

    Args:
        plan: the plan.
        machine: of the attempt; its current sum is unmasked by `openings`.
        openings: from `machine.unmask`, or `folded_openings`.
        words: of the sum, where it is folded.
        spool: where the uploads are; they are opened here, whatever becomes of the run meanwhile.
        run: its key.
        state: of the run, for w(t).
        outcome: of the attempt, for w(0).
    """
    name, context = machine.current.name, machine.attempt.context
    alive = () if words else machine.current.alive
    uploads = {i: spool.open(UploadKey(run, context.round, context.attempt, name, i)) for i in alive}
    offsets: dict[tuple[str, str], int] = {}
    for institution in uploads:
        offset = 0
        for part in machine.attempt.uploaded_parts(name, machine.cohort, institution):
            offsets[institution, part.name] = offset
            offset += part.bytes
    settings = update_settings(plan, context, openings) if name == UPDATES else None
    first = outcome.first_model() if name == WEIGHTS else None
    return FoldJob(name, openings, words, uploads, offsets, state.components, settings, first)
