"""One run: rounds, attempts and deadlines as a sans-I/O machine over the aggregator of the secure sum.

Whoever drives it (the service, `studies/`, tests) hands in messages, uploads' completion and the time; it answers with
directives, and with jobs that are too heavy to do in between. Its store and content are ports. Three durable points a
sum's life: survivor list signed, sum opened, round committed (DESIGN.md, "State and failure").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as pb

from coordinator.folding import FoldJob, FoldResult, UpdateSettings, initial_state
from coordinator.observer import Observer
from coordinator.results import (
    RoundStatistics,
    figures_json,
    read_statistics,
    scores_json,
    selection_score,
)
from coordinator.state import BestRound, RunState
from coordinator.store import LIST_SHOWN, LIST_SIGNED, SUM_OPENED, Store, StoreError
from federation.feature_sums import FEATURE_SUMS
from federation.layout import layout
from federation.plan import Plan
from federation.rounds import (
    FORMAT,
    UPDATES,
    WEIGHTS,
    Cohorts,
    ComponentDigests,
    RoundError,
    Setup,
    consumed,
    digest,
)
from federation.settings import optimiser_settings
from federation.setup import FeatureSums, patients_of
from federation.vectors import ContentStore, Spool, StorageError, UploadKey
from security.errors import ConsiliumError, ProtocolError
from security.secure_sum.errors import BadShareError, StaleAttemptError, TooFewMembersError, TranscriptError
from security.secure_sum.journal import JournalledAggregator, restore
from security.secure_sum.messages import Signed
from security.secure_sum.phases import AggregatorPhase
from security.secure_sum.spec import Context, Sum

STALE: Final = StaleAttemptError.code
REFUSED: Final = frozenset({TranscriptError.code, RoundError.code})
"""What institutions say to a round's opening that no other attempt would change."""
ENDED: Final = frozenset({"finished", "stopped", "failed"})


class RunEndedError(ProtocolError):
    """The run is over; nothing more is taken."""

    code = "run-ended"


class NotEnrolledError(ProtocolError):
    """The institution has not enrolled in this run, or sits it out."""

    code = "not-enrolled"


@dataclass
class Attempt:
    """The attempt in progress."""

    number: int
    round_start: bytes
    machine: JournalledAggregator
    opened: list[bytes] = field(default_factory=list)
    withdrawn: dict[str, str] = field(default_factory=dict)
    folding: bool = False
    signed_once: bool = False
    fruitless: int = 0  # openings that did not suffice to unmask the current sum


class Run:
    """A run at the coordinator.

    Args:
        plan_bytes: the plan's exact bytes; their digest names the run.
        store: durable state; the run's row must be there.
        content: components, schemas and opened sums by digest.
        spool: uploads.
        observer: told of what happens, for metrics and logs.
        now: the time.
    """

    def __init__(
        self, plan_bytes: bytes, store: Store, content: ContentStore, spool: Spool, observer: Observer, now: datetime
    ) -> None:
        self.plan_bytes = plan_bytes
        self.plan = Plan.from_bytes(plan_bytes)
        self.id = digest(plan_bytes)
        self.cohorts = Cohorts(self.plan)
        self.content, self.spool = content, spool
        self._store, self._observer = store, observer
        self.state = RunState()
        self.round = 0
        self.attempt: Attempt | None = None
        self.enrolled: dict[str, str] = {}  # institution to "" or the code that refused
        self.seen: dict[str, datetime] = {}
        self.status, self.reason = "enrolling", ""
        self.phase_began = self.began = now
        self._seconds: dict[str, float] = {}
        self._features: FeatureSums | None = None
        self._statistics: RoundStatistics | None = None
        self._updated: Mapping[str, ComponentDigests] = {}
        self._sums: tuple[Sum, ...] = ()
        self._burnt = 0
        self.traffic: Counter[str] = Counter()  # payload bytes of the round, `up` and `down`; whoever moves them adds

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The run's name: digest of its plan, hex."""
        return self.id.hex()

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.status in ENDED

    @property
    def phase(self) -> str:
        """Where the run stands, for people."""
        if self.ended or self.attempt is None:
            return self.status
        machine = self.attempt.machine
        if self.attempt.folding:
            return f"{machine.current.name}: opening"
        between = machine.phase in (AggregatorPhase.KEYS, AggregatorPhase.SHARES, AggregatorPhase.DONE)
        return machine.phase.value if between else f"{machine.current.name}: {machine.phase.value}"

    @classmethod
    def load(
        cls, plan_bytes: bytes, store: Store, content: ContentStore, spool: Spool, observer: Observer, now: datetime
    ) -> Run:
        """The run as the store has it: the last committed round, and the attempt that a durable point can resume."""
        run = cls(plan_bytes, store, content, spool, observer, now)
        row = store.run(run.key)
        run.began = row.created_at
        run.round = row.round
        run.enrolled = {e.institution: e.reason for e in store.enrolments(run.key)}
        if row.status in ENDED:
            run.status, run.reason = row.status, row.reason
        committed = store.latest_state(run.key)
        if committed is not None:
            run.state = RunState.from_json(committed.state)
        if row.status == "running":
            run.status = "running"
            if row.attempt >= 0 or not run._finish_if_due(now):  # −1: nothing was begun since the last commit
                run._resume(row.attempt, now)
        return run

    def _resume(self, last_attempt: int, now: datetime) -> None:
        points = self._store.points(self.key, self.round)
        order = [s.name for s in self._round_sums()]
        kinds = [LIST_SHOWN, LIST_SIGNED, SUM_OPENED]
        if not points:
            self._begin_attempt(max(1, last_attempt + 1), now)
            return
        point = max(points, key=lambda p: (p.attempt, order.index(p.sum), kinds.index(p.kind)))
        saved = pb.Checkpoint.FromString(point.blob)
        self._sums = self._round_sums()
        start = saved.round_start
        machine = restore(self.cohorts.attempt(self._context(start, saved.attempt), self._sums), saved.journal)
        self.attempt = Attempt(saved.attempt, start, machine, [], dict.fromkeys(saved.withdrawn, "restart"))
        self.attempt.signed_once = True
        self._prepare_round()
        for data in saved.opened:
            self._take_opened(data)
        self._observer.event("run-resumed", round=self.round, attempt=saved.attempt, point=point.kind)
        self._entered(now)
        if machine.phase is AggregatorPhase.DONE:
            self._commit(now)
        elif machine.phase is AggregatorPhase.UPLOADS:
            self._begin_sum()

    def enrol(self, institution: str, fingerprint: str, refusal: str, now: datetime) -> str:
        """An institution joins, or says which of its rules refused. Returns why it sits out; empty: it is in.

        Raises:
            NotEnrolledError: the plan's roster does not have it.
        """
        if institution not in self.plan.roster:
            raise NotEnrolledError(
                f"{institution!r} is not in this run's roster.", remedy="Ask the operator for a plan."
            )
        self.seen[institution] = now
        if self.enrolled.get(institution) != refusal:
            self.enrolled[institution] = refusal
            status = "refused" if refusal else "enrolled"
            self._store.enrol(self.key, institution, fingerprint, status, refusal, now)
            self._observer.enrolled(institution, refusal)
        return self.excluded(institution)

    def excluded(self, institution: str) -> str:
        """Why an institution takes no part; empty: it does."""
        if self.enrolled.get(institution, ""):
            return f"refused: {self.enrolled[institution]}"
        setup = self.state.setup
        if setup is not None and institution not in setup.institutions:
            return "missed the run's first sums; a new run takes it in"
        return ""

    def stop(self, status: str, reason: str, now: datetime) -> None:
        """Ends the run."""
        if self.ended:
            return
        self.status, self.reason, self.attempt = status, reason, None
        self._store.set_status(self.key, status, reason, now)
        self._observer.run_ended(status, reason)

    # -- messages -----------------------------------------------------------------------------------------------

    def poll(self, institution: str, now: datetime) -> None:
        """Notes that an institution is there."""
        self.seen[institution] = now

    def take_keys(self, signed: Signed, now: datetime) -> None:
        """A key message; see `Aggregator.take_keys` for the errors."""
        attempt = self._attempt_for(signed.signer)
        attempt.machine.take_keys(signed)
        attempt.withdrawn.pop(signed.signer, None)
        self.tick(now)

    def take_shares(self, sender: str, messages: list[Signed], now: datetime) -> None:
        """One dealer's share messages; see `Aggregator.take_shares` for the errors."""
        self._attempt_for(sender).machine.take_shares(sender, messages)
        self.tick(now)

    def take_signature(self, signed: Signed, now: datetime) -> None:
        """A signature of the survivor list; see `Aggregator.take_signature` for the errors."""
        self._attempt_for(signed.signer).machine.take_signature(signed)
        self.tick(now)

    def take_opening(self, signed: Signed, now: datetime) -> None:
        """Opened shares; see `Aggregator.take_opening` for the errors."""
        self._attempt_for(signed.signer).machine.take_opening(signed)
        self.tick(now)

    def withdraw(self, institution: str, round_: int, attempt: int, code: str, now: datetime) -> None:
        """An institution cannot go on with an attempt; it is not waited for."""
        current = self.attempt
        if current is None or (self.round, current.number) != (round_, attempt) or institution in current.withdrawn:
            return
        current.withdrawn[institution] = code
        self._observer.withdrew(institution, code)
        self.tick(now)

    def begin_upload(self, signed: Signed) -> UploadKey:
        """Admits an upload by its header; the spool takes the bytes.

        Returns:
            The upload's key in the spool, whose length is `upload_length`.
        """
        attempt = self._attempt_for(signed.signer)
        header = attempt.machine.take_header(signed)
        key = UploadKey(self.key, self.round, attempt.number, header.sum, signed.signer)
        self.spool.begin(key, header.length)
        return key

    def complete_upload(self, key: UploadKey, now: datetime) -> None:
        """Counts an upload that the spool has complete."""
        current = self._attempt_for(key.institution)
        if (key.round, key.attempt, key.sum) != (self.round, current.number, current.machine.current.name):
            return  # a late one of an attempt that has moved on: it does not count
        current.machine.complete_upload(key.institution)
        self.tick(now)

    def _attempt_for(self, institution: str) -> Attempt:
        if self.ended:
            raise RunEndedError("the run is over.", remedy="Ask for the next directive.")
        if self.excluded(institution) or institution not in self.enrolled or self.attempt is None:
            raise NotEnrolledError(f"{institution!r} does not take part now.", remedy="Ask for the next directive.")
        return self.attempt

    # -- time ---------------------------------------------------------------------------------------------------

    def tick(self, now: datetime) -> None:
        """Moves on whatever can: a phase that everybody answered, or whose deadline passed."""
        if self.ended:
            return
        if self.attempt is None:
            self._tick_enrolment(now)
            return
        before = None
        while self.attempt is not None and not self.ended and before != (mark := self._mark()):
            before = mark
            try:
                self._tick_attempt(self.attempt, now)
            except TooFewMembersError as error:
                self._fail_attempt(error.code, now)

    def _mark(self) -> tuple[Any, ...]:
        assert self.attempt is not None
        machine = self.attempt.machine
        return self.round, self.attempt.number, machine.phase, machine.current.name

    def _tick_enrolment(self, now: datetime) -> None:
        roster = set(self.plan.roster)
        joined = {i for i in roster if self.enrolled.get(i) == ""}
        late = now - self.began >= timedelta(seconds=self.plan.deadlines.enrolment)
        if set(self.enrolled) == roster or (late and len(joined) >= self.plan.secure_sum.threshold):
            if len(joined) < self.plan.secure_sum.threshold:
                self.stop("failed", f"only {len(joined)} institutions accept the plan", now)
                return
            self.status = "running"
            self._store.set_status(self.key, "running", "", now)
            self._begin_attempt(1, now)

    def _tick_attempt(self, attempt: Attempt, now: datetime) -> None:
        machine, deadlines = attempt.machine, self.plan.deadlines
        here = self._expected(attempt, now)
        match machine.phase:
            case AggregatorPhase.KEYS:
                if here <= set(machine.keys) and len(machine.keys) >= self.plan.secure_sum.threshold:
                    machine.close_keys()
                    self._entered(now)
                elif self._late(now, deadlines.keys) or self._stale(attempt) or self._refused(attempt):
                    self._drop("keys", here - set(machine.keys))
                    machine.close_keys()
                    self._entered(now)
            case AggregatorPhase.SHARES:
                if set(machine.keys) - set(attempt.withdrawn) <= set(machine.shares) or self._late(now, deadlines.keys):
                    self._drop("shares", set(machine.keys) - set(machine.shares))
                    machine.close_shares()
                    self._entered(now)
                    self._begin_sum()
            case AggregatorPhase.UPLOADS:
                expected = machine.uploaders() - set(attempt.withdrawn) - self._silent(attempt)
                done = expected <= machine.current.completed
                if machine.current.transcript and (done or self._late(now, deadlines.upload)):
                    self._drop(machine.current.name, machine.uploaders() - machine.current.completed)
                    machine.close_uploads()
                    attempt.signed_once = True
                    if self.round == 0:
                        # Whoever signs this list joins no other attempt of the round, and round 0 cannot be burnt: a
                        # restart from here on has to show the same list again.
                        self._save(LIST_SHOWN, now)
                    self._entered(now)
            case AggregatorPhase.SIGNATURES:
                if machine.decidable:
                    machine.decide()
                    self._save(LIST_SIGNED, now)
                    self._entered(now)
                elif self._late(now, deadlines.signatures):
                    self._fail_attempt("missing-signatures", now)
            case AggregatorPhase.OPENINGS:
                enough = machine.openable and len(machine.current.openings) > attempt.fruitless
                if not attempt.folding and not enough and self._late(now, deadlines.openings):
                    self._fail_attempt("missing-openings", now)
            case AggregatorPhase.DONE:
                pass

    @staticmethod
    def _silent(attempt: Attempt) -> frozenset[str]:
        """Who sends no statistics: whoever has none of the round's update in the model that they are about."""
        machine = attempt.machine
        updates = machine.finished.get(UPDATES)
        if updates is None:
            return frozenset()
        cohort = machine.cohort
        return frozenset(
            i for i in cohort - updates.alive if machine.attempt.uploaded_parts(UPDATES, cohort, i)
        )

    def _expected(self, attempt: Attempt, now: datetime) -> set[str]:
        patience = timedelta(seconds=self.plan.deadlines.keys)
        return {
            i
            for i in self.enrolled
            if not self.excluded(i)
            and i not in attempt.withdrawn
            and now - self.seen.get(i, self.phase_began) <= patience
        }

    def _late(self, now: datetime, seconds: float) -> bool:
        return now - self.phase_began >= timedelta(seconds=seconds)

    def _drop(self, phase: str, institutions: set[str] | frozenset[str]) -> None:
        assert self.attempt is not None
        for institution in sorted(institutions):
            self._observer.dropped(institution, phase, self.attempt.withdrawn.get(institution, "deadline"))

    def _entered(self, now: datetime) -> None:
        self._note_seconds(now)
        self.phase_began = now
        self._observer.phase(self.round, self.phase)

    def _note_seconds(self, now: datetime) -> None:
        seconds = (now - self.phase_began).total_seconds()
        if self._last_phase:
            self._seconds[self._last_phase] = self._seconds.get(self._last_phase, 0.0) + seconds
            self._observer.phase_took(self._last_phase, seconds)
        self._last_phase = self.phase.split(": ")[-1] if self.attempt else ""

    _last_phase = ""

    # -- attempts -----------------------------------------------------------------------------------------------

    def _round_sums(self) -> tuple[Sum, ...]:
        if self.round == 0:
            return self.cohorts.setup_sums()
        assert self.state.setup is not None
        return self.cohorts.training_sums(self._sizes(), self.state.setup)

    def _sizes(self) -> dict[str, int]:
        return {name: self.content.size(c.weights) // 4 for name, c in self.state.components.items()}

    def _round_start(self, round_: int, state: RunState) -> bytes:
        start = pb.RoundStart(format=FORMAT, run=self.id, round=round_)
        if round_ > 0:
            assert state.setup is not None
            start.setup.CopyFrom(state.setup.to_proto())
            start.components.extend(c.to_proto(name) for name, c in sorted(state.components.items()))
            start.figures = state.figures()
        return start.SerializeToString(deterministic=True)

    def final(self) -> bytes:
        """RoundStart of what would follow the exported round: where the final model is, and its temperatures."""
        best = self.state.best
        if best is None or self.plan.evaluation.select == "last":
            return self._round_start(self.round, self.state)
        state = replace(self.state, components=best.components, temperatures=best.temperatures)
        return self._round_start(best.round + 1, state)

    def _context(self, round_start: bytes, number: int) -> Context:
        return Context(self.plan.federation, self.id, self.round, number, digest(round_start))

    def _begin_attempt(self, number: int, now: datetime) -> None:
        # Durable before anybody hears of it: institutions never join an attempt number twice (rule 7).
        self._store.begin_attempt(self.key, self.round, number, now)
        self.spool.discard_round(self.key, self.round)
        self._sums = self._round_sums()
        start = self._round_start(self.round, self.state)
        machine = JournalledAggregator(self.cohorts.attempt(self._context(start, number), self._sums))
        self.attempt = Attempt(number, start, machine)
        self._prepare_round()
        self._entered(now)

    def _prepare_round(self) -> None:
        self._features = FeatureSums(self.plan, {s.name: s for s in self._sums})
        self._statistics, self._updated = None, {}

    def _begin_sum(self) -> None:
        assert self.attempt is not None
        self.attempt.machine.begin_sum(consumed(self.attempt.opened))

    def _fail_attempt(self, code: str, now: datetime) -> None:
        """What cannot go on is tried again if no list was shown yet; otherwise the round number is burnt (rule 7)."""
        attempt = self.attempt
        assert attempt is not None
        self._observer.attempt_failed(self.round, attempt.number, code)
        stale = self._stale(attempt)
        if self._refused(attempt):
            reason = "does not follow from the rounds before: this coordinator's state is old or damaged"
            self.stop("failed", f"institutions refuse round {self.round}, which {reason}", now)
        elif stale and self._burnt:
            self.stop("failed", "institutions have seen later rounds than this coordinator: its state is old", now)
        elif not attempt.signed_once and not stale:
            self._begin_attempt(attempt.number + 1, now)
        elif self.round == 0:
            self.stop("failed", f"the run's first sums could not be opened ({code}); start a new run", now)
        elif attempt.opened:
            self._commit(now)  # sum A is open and stands; its losses are left out
        else:
            self._burnt += 1
            self.round += 1
            self._observer.burnt(self.round - 1, code)
            self._begin_attempt(1, now)

    def _stale(self, attempt: Attempt) -> bool:
        """Too few are left who could join another attempt of this round: there is nothing to wait for."""
        return self._withdrew(attempt, frozenset({STALE}))

    def _refused(self, attempt: Attempt) -> bool:
        """Too few are left who believe this round's opening."""
        return self._withdrew(attempt, REFUSED)

    def _withdrew(self, attempt: Attempt, codes: frozenset[str]) -> bool:
        spare = len(self.plan.institutions) - self.plan.secure_sum.threshold
        return sum(code in codes for code in attempt.withdrawn.values()) > spare

    def _save(self, kind: str, now: datetime) -> None:
        attempt = self.attempt
        assert attempt is not None
        blob = pb.Checkpoint(
            round_start=attempt.round_start,
            attempt=attempt.number,
            journal=attempt.machine.journal(),
            opened=attempt.opened,
            withdrawn=sorted(attempt.withdrawn),
        ).SerializeToString(deterministic=True)
        name = self._sums[len(attempt.opened) - 1].name if kind == SUM_OPENED else attempt.machine.current.name
        self._store.save_point(self.key, self.round, attempt.number, name, kind, blob, now)

    # -- opening ------------------------------------------------------------------------------------------------

    def job(self) -> FoldJob | None:
        """The heavy work that is due, once. Its result goes to `folded`."""
        attempt = self.attempt
        if attempt is None or attempt.folding or attempt.machine.phase is not AggregatorPhase.OPENINGS:
            return None
        machine = attempt.machine
        if not machine.openable or len(machine.current.openings) <= attempt.fruitless:
            return None
        try:
            openings = machine.unmask()
        except (BadShareError, TooFewMembersError) as error:
            attempt.fruitless = len(machine.current.openings)  # more may come until the deadline
            self._observer.blamed(error.culprits, error.code)
            return None
        name, cohort = machine.current.name, machine.cohort
        uploads = {
            i: self.spool.open(UploadKey(self.key, self.round, attempt.number, name, i)) for i in machine.current.alive
        }
        offsets: dict[tuple[str, str], int] = {}
        for institution in uploads:
            offset = 0
            for part in machine.attempt.uploaded_parts(name, cohort, institution):
                offsets[institution, part.name] = offset
                offset += part.bytes
        settings = None
        if name == UPDATES:
            s = self.plan.secure_sum
            settings = UpdateSettings(s.clip, s.headroom, optimiser_settings(self.plan))
        attempt.folding = True
        return FoldJob(name, openings, uploads, offsets, self.state.components, settings)

    def job_failed(self) -> None:
        """The job's storage failed; it may be done again."""
        if self.attempt is not None:
            self.attempt.folding = False

    def cannot_open(self, code: str, now: datetime) -> None:
        """The sum cannot be opened, or not be used, and trying again would not help: the attempt cannot go on."""
        if self.attempt is not None and self.attempt.machine.phase is AggregatorPhase.OPENINGS:
            self.attempt.folding = False
            self._fail_attempt(code, now)

    def folded(self, job: FoldJob, result: FoldResult, now: datetime) -> None:
        """Takes a job's result: the sum is open, durably, and the next one begins."""
        attempt = self.attempt
        if attempt is None or attempt.machine.current.name != job.sum:
            return
        machine = attempt.machine
        message = pb.OpenedSum(
            sum=job.sum,
            list=machine.current.payload,
            parts=[
                pb.OpenedPart(part=o.part.name, words=result.words[o.part.name], contributors=o.alive)
                for o in job.openings
            ],
            components=[c.to_proto(name) for name, c in sorted(result.components.items())],
        )
        data = message.SerializeToString(deterministic=True)
        attempt.folding, attempt.fruitless = False, 0
        machine.close_sum()
        try:
            self._take_opened(data)
        except (StoreError, StorageError):
            raise
        except ConsiliumError as error:
            self.stop("failed", f"sum {job.sum!r} of round {self.round} cannot be used ({error.code})", now)
            return
        self._save(SUM_OPENED, now)
        self._observer.opened(job, sum(p.part.length * len(p.keystreams) for p in job.openings))
        if machine.phase is AggregatorPhase.DONE:
            self._commit(now)
        else:
            self._entered(now)
            self._begin_sum()
            self.tick(now)

    def _take_opened(self, data: bytes) -> None:
        assert self.attempt is not None
        message = pb.OpenedSum.FromString(data)
        which = next(s for s in self._sums if s.name == message.sum)
        if message.sum == UPDATES:
            self._updated = ComponentDigests.all_from(message.components)
        else:
            words = {p.part: self._words(p.words) for p in message.parts}
            if message.sum in FEATURE_SUMS:
                assert self._features is not None
                self._features.take(message.sum, words)
            elif message.sum == WEIGHTS:
                self._finish_setup(patients_of(which, words), self._alive(message))
            else:
                self._statistics = read_statistics(self.plan, which, self._alive(message), words, self.state.blending)
        self.attempt.opened.append(data)

    @staticmethod
    def _alive(message: pb.OpenedSum) -> frozenset[str]:
        return frozenset(name for part in message.parts for name in part.contributors)

    def _words(self, content: str) -> npt.NDArray[np.uint64]:
        reader = self.content.open(content)
        data = bytearray(reader.length)
        reader.read_into(0, memoryview(data))
        return np.frombuffer(data, np.dtype("<u8"))

    def _finish_setup(self, patients: Mapping[str, int], alive: frozenset[str]) -> None:
        assert self._features is not None
        schema = self._features.schema
        if schema is None:
            raise TooFewMembersError("the feature schema is incomplete.")
        if len(alive) < self.plan.secure_sum.threshold:
            raise TooFewMembersError("fewer institutions than the threshold were there for the run's first sums.")
        setup = Setup(self.content.put(schema.to_bytes()), patients, alive)
        made = layout(self.plan, schema.widths)
        optimiser = optimiser_settings(self.plan)
        components = {
            name: initial_state(self.content, made.components[name].initial(self.plan.seed), optimiser)
            for name in self.cohorts.summed(setup)
        }
        if not components:
            raise TooFewMembersError("no component has enough owners that were there for the run's first sums.")
        self.state = replace(self.state, setup=setup, components=components)

    # -- commit -------------------------------------------------------------------------------------------------

    def _commit(self, now: datetime) -> None:
        attempt = self.attempt
        assert attempt is not None
        self._note_seconds(now)
        if self._updated:
            self.state = replace(self.state, components={**self.state.components, **self._updated})
        if self._statistics is not None:
            self._take_statistics(self._statistics)
        record = self._record(attempt)
        self._store.commit_round(self.key, self.round, record, self.state.to_json(), now)
        self._observer.committed(record, self._statistics)
        self.spool.discard_round(self.key, self.round)
        words = {p.words for data in attempt.opened for p in pb.OpenedSum.FromString(data).parts}
        self.content.collect(self.state.digests() | words)
        self._seconds, self._last_phase = {}, ""
        self.traffic.clear()
        self.round += 1
        if not self._finish_if_due(now):
            self._begin_attempt(1, now)

    def _finish_if_due(self, now: datetime) -> bool:
        patience = self.plan.evaluation.patience
        if self.round > self.plan.rounds:
            self.stop("finished", "", now)
        elif patience and self.state.rounds_without_gain >= patience:
            self.stop("finished", f"no gain in {patience} rounds", now)
        return self.ended

    def _take_statistics(self, result: RoundStatistics) -> None:
        state = replace(
            self.state,
            blending=result.blending,
            scores=result.figures.scores(),
            median_squared_overfitting=result.figures.median_squared_overfitting,
            temperatures={**self.state.temperatures, **result.temperatures},
        )
        score = selection_score(result, self.plan.evaluation.metric)
        if score is not None:
            if state.best is None or score > state.best.score:
                best = BestRound(self.round, score, state.components, state.temperatures)
                state = replace(state, best=best, rounds_without_gain=0)
            else:
                state = replace(state, rounds_without_gain=state.rounds_without_gain + 1)
        self.state = state

    def _record(self, attempt: Attempt) -> str:
        machine, result = attempt.machine, self._statistics
        record: dict[str, Any] = {
            "round": self.round,
            "attempt": attempt.number,
            "cohort": sorted(machine.cohort),
            "sums": {name: {"alive": sorted(s.alive)} for name, s in machine.finished.items()},
            "opened": [pb.OpenedSum.FromString(data).sum for data in attempt.opened],
            "withdrawn": dict(sorted(attempt.withdrawn.items())),
            "bytes": {"up": self.traffic["up"], "down": self.traffic["down"]},
            "seconds": {phase: round(seconds, 4) for phase, seconds in self._seconds.items()},
        }
        if result is not None:
            record |= {
                "blending": figures_json(result.figures),
                "proximity": dict(result.proximity),
                "metrics": {name: scores_json(s) for name, s in result.rows.items()},
                "confusion": {name: row.confusion.tolist() for name, row in result.counts.items()},
                "reliability": {name: row.reliability.tolist() for name, row in result.counts.items()},
                "clipped": dict(result.clipped),
            }
        return json.dumps(record, sort_keys=True, allow_nan=False)

    def records(self) -> tuple[str, ...]:
        """Records of the committed rounds, JSON, in order."""
        return tuple(r.record for r in self._store.rounds(self.key))
