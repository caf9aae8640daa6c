"""One run: rounds, attempts and deadlines as a sans-I/O machine over the aggregator of the secure sum.

Whoever drives it (the service, `studies/`, tests) hands in messages, uploads' completion and the time; it answers with
directives, and with jobs that are too heavy to do in between. Its store and content are ports. Three durable points a
sum's life: survivor list signed, sum opened, round committed (DESIGN.md, "State and failure").
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from coordinator.attempt import DISPUTED, Attempt
from coordinator.disputes import EXPELLED
from coordinator.errors import NotEnrolledError, RunEndedError
from coordinator.failed_attempts import after_failure
from coordinator.folding import FoldJob, FoldResult
from coordinator.intake import ENDED, Intake
from coordinator.observer import Observer
from coordinator.outcome import RoundOutcome, opened_sum
from coordinator.phase_clock import PhaseClock
from coordinator.restart import RunDamagedError, committed_state, resumed_attempt
from coordinator.room import lack_of_room
from coordinator.round_record import round_record
from coordinator.store import HOLDERS_PASSED, LIST_SHOWN, LIST_SIGNED, SUM_FOLDED, SUM_OPENED, Store, StoreError
from federation.rounds import Cohorts, digest
from federation.vectors import ContentStore, Spool, StorageError, UploadKey
from security.ckks.aggregator import make_aggregator
from security.errors import ConsiliumError
from security.secure_sum.errors import TooFewMembersError
from security.secure_sum.phases import AggregatorPhase
from security.secure_sum.spec import Context

__all__ = ["ENDED", "Attempt", "NotEnrolledError", "Run", "RunEndedError"]


class Run(Intake):
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
        super().__init__(plan_bytes, store, spool, observer)
        self.cohorts = Cohorts(self.plan)
        self.content = content
        self.reason = ""
        self.began = now
        self._clock = PhaseClock(now)
        self._burnt = 0
        self._waiting_attempt = 0  # number of the attempt that begins once the disk has room for it; 0: none
        self.traffic: Counter[str] = Counter()  # payload bytes of the round, `up` and `down`; whoever moves them adds

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Where the run stands, for people."""
        if self.ended or self.attempt is None:
            return "waiting for room on the disk" if self._waiting_attempt and not self.ended else self.status
        return self.attempt.phase

    @classmethod
    def load(
        cls, plan_bytes: bytes, store: Store, content: ContentStore, spool: Spool, observer: Observer, now: datetime
    ) -> Run:
        """The run as the store has it: the last committed round, and the attempt that a durable point can resume.

        Raises:
            RunDamagedError: it is not over, and what it goes on from cannot be restored.
        """
        run = cls(plan_bytes, store, content, spool, observer, now)
        row = store.run(run.key)
        run.began = row.created_at
        run.round = row.round
        standings = store.enrolments(run.key)
        run.disputes.expelled = {e.institution: e.reason for e in standings if e.status == EXPELLED}
        run.enrolled = {e.institution: "" if e.status == EXPELLED else e.reason for e in standings}
        if row.status in ENDED:
            run.status, run.reason = row.status, row.reason
        committed = store.latest_state(run.key)
        if committed is not None:
            try:
                run.state = committed_state(committed.state)
            except RunDamagedError:
                if not run.ended:
                    raise
        if row.status == "running":
            run.status = "running"
            if row.attempt >= 0 or not run._finish_if_due(now):  # −1: nothing was begun since the last commit
                run._resume(row.attempt, now)
        return run

    def _resume(self, last_attempt: int, now: datetime) -> None:
        points = self._store.points(self.key, self.round)
        if not points:
            self._begin_attempt(max(1, last_attempt + 1), now)
            return
        attempt, kind = resumed_attempt(points, self.round, self.state, self.cohorts, self.content, self._context)
        self.attempt = attempt
        self._observer.event("run-resumed", round=self.round, attempt=attempt.number, point=kind)
        self._entered(now)
        if attempt.machine.phase is AggregatorPhase.DONE:
            self._commit(attempt, now)
        elif attempt.machine.phase is AggregatorPhase.UPLOADS:
            attempt.begin_sum()

    def stop(self, status: str, reason: str, now: datetime) -> None:
        """Ends the run."""
        if self.ended:
            return
        self.status, self.reason, self.attempt = status, reason, None
        self._store.set_status(self.key, status, reason, now)
        self._observer.run_ended(status, reason)

    # -- time ---------------------------------------------------------------------------------------------------

    def tick(self, now: datetime) -> None:
        """Moves on whatever can: a phase that everybody answered, or whose deadline passed."""
        if self.ended:
            return
        if self._waiting_attempt:
            self._begin_attempt(self._waiting_attempt, now)
        elif self.attempt is None:
            self._tick_enrolment(now)
        before = None
        while (attempt := self.attempt) is not None and before != (place := attempt.place):
            before = place
            try:
                self._tick_attempt(attempt, now)
            except TooFewMembersError as error:
                self._fail_attempt(attempt, error.code, now)

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
        match machine.phase:
            case AggregatorPhase.KEYS:
                here = self._expected(attempt, now)
                hopeless = self._clock.late(now, deadlines.keys) or attempt.stale() or attempt.refused()
                if attempt.keys_complete(here) or hopeless:
                    self._drop(attempt, "keys", here - set(machine.keys))
                    machine.close_keys()
                    self._entered(now)
            case AggregatorPhase.REVEALS:
                if attempt.reveals_complete() or self._clock.late(now, deadlines.keys):
                    self._drop(attempt, "reveals", set(machine.keys) - set(machine.reveals))
                    machine.close_reveals()
                    self._entered(now)
            case AggregatorPhase.SHARES:
                if attempt.shares_complete() or self._clock.late(now, deadlines.keys):
                    self._drop(attempt, "shares", machine.members - set(machine.shares))
                    machine.close_shares()
                    self._entered(now)
                    attempt.begin_sum()
            case AggregatorPhase.UPLOADS:
                over = attempt.uploads_complete() or self._clock.late(now, deadlines.upload)
                if stop := self.disputes.stop(attempt):
                    self._fail_attempt(attempt, stop, now)
                elif machine.current.transcript and over:
                    self._drop(attempt, machine.current.name, machine.uploaders() - machine.current.completed)
                    machine.close_uploads()
                    attempt.signed_once = True
                    if self.round == 0:
                        # Whoever signs this list joins no other attempt of the round, and round 0 cannot be burnt: a
                        # restart from here on has to show the same list again.
                        self._save(attempt, machine.current.name, LIST_SHOWN, now)
                    self._entered(now)
            case AggregatorPhase.SIGNATURES:
                if machine.decidable:
                    machine.decide()
                    self._save(attempt, machine.current.name, LIST_SIGNED, now)
                    self._entered(now)
                elif attempt.undecidable() or self._clock.late(now, deadlines.signatures):
                    self._fail_attempt(attempt, "missing-signatures", now)
            case AggregatorPhase.OPENINGS:
                if (lie := machine.contradiction) is not None:
                    self._observer.blamed(lie.culprits, lie.code)
                    self._fail_attempt(attempt, lie.code, now)
                elif not attempt.folding and not attempt.openable and self._clock.late(now, deadlines.openings):
                    self._pass_on(attempt, now)
            case AggregatorPhase.DONE:
                pass

    def _expected(self, attempt: Attempt, now: datetime) -> set[str]:
        patience = timedelta(seconds=self.plan.deadlines.keys)
        return {
            i
            for i in self.enrolled
            if not self.excluded(i)
            and i not in attempt.withdrawn
            and now - self.seen.get(i, self._clock.began) <= patience
        }

    def _pass_on(self, attempt: Attempt, now: datetime) -> None:
        """Who was asked to open did not; others are asked, if there are any."""
        gone, sum_name = attempt.withdrawn.keys(), attempt.machine.current.name
        asked = attempt.machine.asked(gone)
        others = attempt.machine.pass_on(gone)
        if attempt.machine.passed_over.get(sum_name):
            self._drop(attempt, "openings", asked)
        if others:
            # Durable, or a restart would wait for the same ones again.
            self._save(attempt, sum_name, HOLDERS_PASSED, now)
            self._entered(now)
        else:
            self._fail_attempt(attempt, "missing-openings", now)

    def _drop(self, attempt: Attempt, phase: str, institutions: set[str] | frozenset[str]) -> None:
        for institution in sorted(institutions):
            self._observer.dropped(institution, phase, attempt.withdrawn.get(institution, "deadline"))

    def _entered(self, now: datetime) -> None:
        self._turn(now)
        self._observer.phase(self.round, self.phase)

    def _turn(self, now: datetime) -> None:
        ended, seconds = self._clock.turn(self.phase.split(": ")[-1] if self.attempt else "", now)
        if ended:
            self._observer.phase_took(ended, seconds)

    # -- attempts -----------------------------------------------------------------------------------------------

    def final(self) -> bytes:
        """RoundStart of what would follow the exported round: where the final model is, and its temperatures."""
        return self.state.final(self.id, self.round, last=self.plan.evaluation.select == "last")

    def _context(self, round_start: bytes, number: int) -> Context:
        return Context(self.plan.federation, self.id, self.round, number, digest(round_start))

    def _begin_attempt(self, number: int, now: datetime) -> None:
        self.spool.discard_round(self.key, self.round)
        sums = self.state.sums(self.cohorts, self.content, self.round)
        if lack := lack_of_room(self.spool, sums, self.state):  # nothing was begun; the next tick looks again
            if not self._waiting_attempt:
                self._observer.event("waiting-for-room", round=self.round)
            self.attempt, self._waiting_attempt, self.reason = None, number, lack
            return
        self._waiting_attempt, self.reason = 0, ""
        # Durable before anybody hears of it: institutions never join an attempt number twice (rule 7).
        self._store.begin_attempt(self.key, self.round, number, now)
        start = self.state.round_start(self.id, self.round)
        machine = make_aggregator(self.cohorts.attempt(self._context(start, number), sums))
        self.attempt = Attempt(number, start, machine, RoundOutcome(self.cohorts, self.content, sums, self.state))
        self.attempt.withdrawn.update(dict.fromkeys(self.disputes.sitting, DISPUTED))
        self.disputes.sitting = frozenset()
        self._entered(now)

    def _fail_attempt(self, attempt: Attempt, code: str, now: datetime) -> None:
        """What cannot go on is tried again, or its round number is burnt."""
        self._expel(attempt.convicted, now)
        self._observer.attempt_failed(self.round, attempt.number, code)
        following = after_failure(attempt, self.round, self._burnt, code)
        match following.step:
            case "fail":
                self.stop("failed", following.reason, now)
            case "again":
                self._begin_attempt(attempt.number + 1, now)
            case "commit":
                self._commit(attempt, now)
            case "burn":
                self._burnt += 1
                self.round += 1
                self._observer.burnt(self.round - 1, code)
                if not self._finish_if_due(now):  # a burnt round counts: a run has an end
                    self._begin_attempt(1, now)

    def _save(self, attempt: Attempt, sum_name: str, kind: str, now: datetime) -> None:
        self._store.save_point(self.key, self.round, attempt.number, sum_name, kind, attempt.checkpoint(), now)

    # -- opening ------------------------------------------------------------------------------------------------

    def job(self) -> FoldJob | None:
        """The heavy work that is due, once. Its result goes to `folded`."""
        attempt = self.attempt
        return None if attempt is None else attempt.job(self.plan, self.spool, self.key, self.state, self._observer)

    def job_failed(self) -> None:
        """The job's storage failed; it may be done again."""
        if self.attempt is not None:
            self.attempt.folding = False

    def cannot_open(self, code: str, now: datetime) -> None:
        """The sum cannot be opened, or not be used, and trying again would not help: the attempt cannot go on."""
        if self.attempt is not None and self.attempt.machine.phase is AggregatorPhase.OPENINGS:
            self.attempt.folding = False
            self._fail_attempt(self.attempt, code, now)

    def folded(self, job: FoldJob, result: FoldResult, now: datetime) -> None:
        """Takes a job's result: durably, uploads are folded; or the sum is open, and the next one begins."""
        attempt = self.attempt
        if attempt is None or attempt.machine.current.name != job.sum:
            return
        machine = attempt.machine
        attempt.folding, attempt.fruitless = False, 0
        if job.uploads:
            self._observer.opened(job, sum(p.part.length * len(p.keystreams) for p in job.openings))
        if job.only_folds:
            attempt.folded = result.words
            self._save(attempt, job.sum, SUM_FOLDED, now)
            for institution in job.uploads:  # what replaces them is durable, and the next model needs their room
                self.spool.discard(UploadKey(self.key, self.round, attempt.number, job.sum, institution))
            return
        data, attempt.folded = opened_sum(job, result, machine.current.payload), {}
        machine.close_sum()
        try:
            attempt.outcome.take(data)
        except (StoreError, StorageError):
            raise
        except ConsiliumError as error:
            self.stop("failed", f"sum {job.sum!r} of round {self.round} cannot be used ({error.code})", now)
            return
        self._save(attempt, job.sum, SUM_OPENED, now)
        self._observer.moved(result.norms)
        if machine.phase is AggregatorPhase.DONE:
            self._commit(attempt, now)
        else:
            self._entered(now)
            attempt.begin_sum()
            self.tick(now)

    # -- commit -------------------------------------------------------------------------------------------------

    def _commit(self, attempt: Attempt, now: datetime) -> None:
        self._turn(now)
        self.state = attempt.outcome.state(self.round)
        record = round_record(self.round, attempt, self.traffic, self._clock.seconds, self.state.selection)
        self._store.commit_round(self.key, self.round, record, self.state.to_json(), now)
        self._observer.committed(record, attempt.outcome.statistics)
        self.spool.discard_round(self.key, self.round)
        self._clock = PhaseClock(now)
        self.traffic.clear()
        self.round += 1
        over = self._finish_if_due(now)
        # Nobody can ask for opened sums any more, and the next round needs their room. Those of a run that is over
        # stay: whoever doubts its last model can make it again.
        self.content.collect(self.state.digests() | (attempt.outcome.words() if over else set()))
        if not over:
            self._begin_attempt(1, now)

    def _finish_if_due(self, now: datetime) -> bool:
        patience = self.plan.evaluation.patience
        if self.round > self.plan.rounds:
            self.stop("finished", "", now)
        elif patience and self.state.selection.without_gain >= patience:
            self.stop("finished", f"no gain in {patience} rounds", now)
        return self.ended

    def records(self) -> tuple[str, ...]:
        """Records of the committed rounds, JSON, in order."""
        return tuple(r.record for r in self._store.rounds(self.key))
