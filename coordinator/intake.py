"""What institutions say to a run, and whom it listens to: enrolment, messages, withdrawals, uploads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from coordinator.attempt import DISPUTED, Attempt
from coordinator.disputes import EXPELLED, Disputes
from coordinator.errors import NotEnrolledError, RunEndedError
from coordinator.observer import Observer
from coordinator.state import RunState
from coordinator.store import Store
from federation.plan import Plan
from federation.rounds import digest
from federation.vectors import Spool, UploadKey
from security.secure_sum.messages import Signed
from security.secure_sum.phases import AggregatorPhase

ENDED: Final = frozenset({"finished", "stopped", "failed"})


class Intake(ABC):
    """The side of a `Run` that its institutions see; whatever they say, `tick` draws the consequences.

    Args:
        plan_bytes: the plan's exact bytes; their digest names the run.
        store: durable state; the run's row must be there.
        spool: uploads.
        observer: told of what happens, for metrics and logs.
    """

    def __init__(self, plan_bytes: bytes, store: Store, spool: Spool, observer: Observer) -> None:
        self.plan_bytes = plan_bytes
        self.plan = Plan.from_bytes(plan_bytes)
        self.id = digest(plan_bytes)
        self.spool = spool
        self._store, self._observer = store, observer
        self.state = RunState()
        self.status = "enrolling"
        self.round = 0
        self.attempt: Attempt | None = None
        self.enrolled: dict[str, str] = {}  # institution to "" or the code that refused
        self.seen: dict[str, datetime] = {}
        self.disputes = Disputes(self.plan.secure_sum.max_colluders)

    @abstractmethod
    def tick(self, now: datetime) -> None:
        """Moves on whatever can."""

    @property
    def key(self) -> str:
        """The run's name: digest of its plan, hex."""
        return self.id.hex()

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.status in ENDED

    # -- who takes part -----------------------------------------------------------------------------------------

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
        if self.enrolled.get(institution) != refusal and institution not in self.disputes.expelled:
            self.enrolled[institution] = refusal
            status = "refused" if refusal else "enrolled"
            self._store.enrol(self.key, institution, fingerprint, status, refusal, now)
            self._observer.enrolled(institution, refusal)
        return self.excluded(institution)

    def excluded(self, institution: str) -> str:
        """Why an institution takes no part; empty: it does."""
        if institution in self.disputes.expelled:
            return f"expelled: {self.disputes.expelled[institution]}"
        if self.enrolled.get(institution, ""):
            return f"refused: {self.enrolled[institution]}"
        setup = self.state.setup
        if setup is not None and institution not in setup.institutions:
            return "missed the run's first sums; a new run takes it in"
        return ""

    # -- messages -----------------------------------------------------------------------------------------------

    def poll(self, institution: str, now: datetime) -> None:
        """Notes that an institution is there."""
        self.seen[institution] = now

    def awaits(self, institution: str) -> bool:
        """Whether the current sum waits for an institution that has nothing to upload to turn to it."""
        attempt = self.attempt
        if attempt is None or attempt.machine.phase is not AggregatorPhase.UPLOADS:
            return False
        return bool(attempt.machine.current.transcript) and institution in attempt.onlookers()

    def turned(self, institution: str, now: datetime) -> None:
        """An institution asks again after it was told of the current sum, so it has turned to it."""
        if self.attempt is not None and self.awaits(institution):
            self.attempt.entered.add(institution)
            self.tick(now)

    def take_keys(self, signed: Signed, now: datetime) -> None:
        """A key message; see `Aggregator.take_keys` for the errors.

        Raises:
            NotEnrolledError: its sender sits this attempt out.
        """
        attempt = self._attempt_for(signed.signer)
        if attempt.withdrawn.get(signed.signer) == DISPUTED:
            raise NotEnrolledError(f"{signed.signer!r} sits this attempt out.", remedy="Ask for the next directive.")
        new = signed.signer not in attempt.machine.keys
        attempt.machine.take_keys(signed)
        if new:  # it could not before and now can; whoever leaves with its keys sent has destroyed them
            attempt.withdrawn.pop(signed.signer, None)
        self.tick(now)

    def take_reveal(self, sender: str, value: bytes, now: datetime) -> None:
        """The value that an institution committed to; see `Aggregator.take_reveal` for the errors."""
        self._attempt_for(sender).machine.take_reveal(sender, value)
        self.tick(now)

    def take_shares(self, sender: str, messages: list[Signed], now: datetime, key: Signed | None = None) -> None:
        """One dealer's share messages, and its encryption key; see `Aggregator.take_shares` for the errors."""
        self._attempt_for(sender).machine.take_shares(sender, messages, key)
        self.tick(now)

    def take_complaint(self, signed: Signed, now: datetime) -> None:
        """A complaint about dealt shares; see `Attempt.take_complaint` for the errors."""
        dealers = self._attempt_for(signed.signer).take_complaint(signed)
        for dealer in dealers:
            self._observer.complained(signed.signer, dealer)
        self._expel(self.disputes.add(signed.signer, dealers), now)
        self.tick(now)

    def _expel(self, culprits: Mapping[str, str], now: datetime) -> None:
        """Leaves proven liars out of the rest of the run, durably."""
        fingerprints = {e.institution: e.fingerprint for e in self._store.enrolments(self.key)} if culprits else {}
        for institution, code in sorted(culprits.items()):
            if institution in self.disputes.expelled:
                continue
            self._store.enrol(self.key, institution, fingerprints.get(institution, ""), EXPELLED, code, now)
            self.disputes.expelled[institution] = code
            if self.attempt is not None:
                self.attempt.withdrawn.setdefault(institution, code)
            self._observer.expelled(institution, code)

    def take_signature(self, signed: Signed, now: datetime) -> None:
        """A signature of the survivor list; see `Aggregator.take_signature` for the errors."""
        self._attempt_for(signed.signer).machine.take_signature(signed)
        self.tick(now)

    def take_opening(self, signed: Signed, now: datetime) -> None:
        """Opened shares; see `Aggregator.take_opening` for the errors."""
        attempt = self._attempt_for(signed.signer)
        attempt.machine.take_opening(signed, attempt.withdrawn.keys())
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
