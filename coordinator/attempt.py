"""The attempt in progress at the coordinator: its machine, what its phases wait for, and how it is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from consilium.v1 import round_pb2 as pb
from consilium.v1 import service_pb2 as sv

from coordinator.folding import FoldJob
from coordinator.observer import Observer
from coordinator.outcome import RoundOutcome, fold_job, folded_openings
from coordinator.state import RunState
from coordinator.store import POINT_KINDS, Point
from coordinator.told import Told
from federation.plan import Plan
from federation.rounds import UPDATES, RoundError, consumed
from federation.vectors import Spool
from security.ckks.aggregator import make_aggregator
from security.secure_sum import spec
from security.secure_sum.complaints import check_complaint
from security.secure_sum.errors import (
    BadShareError,
    OutOfPhaseError,
    StaleAttemptError,
    TooFewMembersError,
    TranscriptError,
)
from security.secure_sum.journal import JournalledAggregator, restore
from security.secure_sum.messages import Signed
from security.secure_sum.phases import BEFORE_SUMS, AggregatorPhase

DISPUTED: Final = "disputed-shares"
"""Code of an attempt that too few hold a good share of somebody for, and of who sits the next one out for it."""
_PASSING: Final = frozenset({"withdrawn", "node-stopped", "restart", DISPUTED})
"""What an institution says that is well again in the next attempt."""
_STALE: Final = frozenset({StaleAttemptError.code})
_REFUSED: Final = frozenset({TranscriptError.code, RoundError.code})
"""What institutions say to a round's opening that no other attempt would change."""


def latest_point(points: Iterable[Point], sums: Iterable[spec.Sum]) -> Point:
    """The durable point from which a round goes on."""
    order = [s.name for s in sums]
    return max(points, key=lambda p: (p.attempt, order.index(p.sum), POINT_KINDS.index(p.kind)))


@dataclass
class Attempt:
    """The attempt in progress.

    Attributes:
        number: within its round, from 1.
        round_start: RoundStart, exact bytes.
        machine: the secure sum.
        outcome: of the sums that are open.
        withdrawn: institution to the code with which it left.
        folding: whether a job is being done.
        signed_once: whether a survivor list was shown: from then on there is no other attempt of the round (rule 7).
        fruitless: openings that did not suffice to unmask the current sum.
        folded: part to the digest of the current sum's opened words, while the model that follows is to come.
        entered: who has nothing to upload for the current sum and was seen to have turned to it.
        told: directives of the phase in which it is.
        complaints: of shareholders about shares that they were dealt.
        disputed: (complainer, dealer) of all of them.
        convicted: who dealt shares that do not give back what it committed to, by code.
    """

    number: int
    round_start: bytes
    machine: JournalledAggregator
    outcome: RoundOutcome
    withdrawn: dict[str, str] = field(default_factory=dict)
    folding: bool = False
    signed_once: bool = False
    fruitless: int = 0
    folded: Mapping[str, str] = field(default_factory=dict)
    entered: set[str] = field(default_factory=set)
    told: Told[sv.Directive] = field(default_factory=Told)
    complaints: dict[str, Signed] = field(default_factory=dict)
    disputed: set[tuple[str, str]] = field(default_factory=set)
    convicted: dict[str, str] = field(default_factory=dict)

    @property
    def opened(self) -> list[bytes]:
        """OpenedSum of the sums that are open, in order, exact bytes."""
        return self.outcome.opened

    @property
    def phase(self) -> str:
        """Where the attempt stands, for people."""
        machine = self.machine
        if self.folding:
            return f"{machine.current.name}: opening"
        between = machine.phase in BEFORE_SUMS or machine.phase is AggregatorPhase.DONE
        return machine.phase.value if between else f"{machine.current.name}: {machine.phase.value}"

    @property
    def place(self) -> tuple[int, int, AggregatorPhase, str]:
        """Round, attempt, phase and sum: changes whenever the attempt moves on."""
        context = self.machine.attempt.context
        return context.round, self.number, self.machine.phase, self.machine.current.name

    @staticmethod
    def resumed(saved: pb.Checkpoint, what: spec.Attempt, outcome: RoundOutcome) -> Attempt:
        """The attempt that wrote a checkpoint, in the phase in which it did; `outcome` has taken nothing yet."""
        machine = restore(make_aggregator(what), saved.journal)
        withdrawn = dict.fromkeys(saved.withdrawn, "restart")
        for data in saved.opened:
            outcome.take(data)
        folded = dict(saved.folded)
        return Attempt(saved.attempt, saved.round_start, machine, outcome, withdrawn, signed_once=True, folded=folded)

    # -- what the phases wait for -------------------------------------------------------------------------------

    def keys_complete(self, here: Set[str]) -> bool:
        """Whether everybody who is here sent keys, and they are enough."""
        keys = set(self.machine.keys)
        return here <= keys and len(keys) >= self.machine.attempt.threshold

    def reveals_complete(self) -> bool:
        """Whether everybody revealed its value who sent keys and has not left."""
        return set(self.machine.keys) - set(self.withdrawn) <= set(self.machine.reveals)

    def shares_complete(self) -> bool:
        """Whether every member dealt that has not left."""
        return self.machine.members - set(self.withdrawn) <= set(self.machine.shares)

    def uploads_complete(self) -> bool:
        """Whether every upload is there that can be hoped for."""
        here = self.machine.uploaders() - set(self.withdrawn) - self._silent()
        return here <= self.machine.current.completed and not self.onlookers()

    def onlookers(self) -> frozenset[str]:
        """Who has nothing to upload and was not yet seen to have turned to the sum. They are waited for, since whoever
        has not turned to a sum cannot sign for it."""
        machine = self.machine
        return machine.cohort - machine.uploaders() - set(self.withdrawn) - self._silent() - self.entered

    def undecidable(self) -> bool:
        """Whether everybody has answered the survivor list, and too few have signed it."""
        # Everybody: who waits for a cohort to settle counts the lists that it has seen.
        signed = set(self.machine.current.signatures)
        return set(self.machine.cohort) <= signed | set(self.withdrawn) and not self.machine.decidable

    def _silent(self) -> frozenset[str]:
        """Who sends no statistics: whoever has none of the round's update in the model that they are about."""
        updates = self.machine.finished.get(UPDATES)
        if updates is None:
            return frozenset()
        cohort, what = self.machine.cohort, self.machine.attempt
        return frozenset(i for i in cohort - updates.alive if what.uploaded_parts(UPDATES, cohort, i))

    def asks(self, institution: str) -> bool:
        """Whether an institution is to open its shares, or decrypt, and has not done so."""
        machine = self.machine
        asked = institution in machine.asked(self.withdrawn.keys())
        return asked and not (self.folding or self.folded) and institution not in machine.current.openings

    @property
    def openable(self) -> bool:
        """Whether the current sum is folded, or openings are there that were not tried in vain."""
        machine = self.machine
        return bool(self.folded) or (machine.openable and len(machine.current.openings) > self.fruitless)

    # -- complaints ---------------------------------------------------------------------------------------------

    def take_complaint(self, signed: Signed) -> tuple[str, ...]:
        """Takes one shareholder's complaint; the same again changes nothing.

        Returns:
            The dealers whom it had not complained of before.

        Raises:
            OutOfPhaseError: nothing is uploaded now: it is too early, or too late.
            As `check_complaint`.
        """
        machine = self.machine
        if machine.phase is not AggregatorPhase.UPLOADS:
            raise OutOfPhaseError("complaints are taken while vectors are uploaded.", remedy="Ask what is next.")
        relayed = {dealer: machine.shares[dealer] for dealer in machine.cohort}
        complaint = check_complaint(machine.attempt, signed, relayed, self.complaints.get(signed.signer))
        self.complaints.setdefault(signed.signer, signed)
        pairs = {(signed.signer, dealer) for dealer in complaint.refused} - self.disputed
        self.disputed |= pairs
        return tuple(sorted(dealer for _, dealer in pairs))

    def holders(self, dealer: str) -> int:
        """How many may still open a share of this dealer's secrets."""
        graph = self.machine.graph
        assert graph is not None
        refuse = {complainer for complainer, accused in self.disputed if accused == dealer}
        return len(set(graph.shareholders(dealer)) - refuse - self.withdrawn.keys())

    # -- what withdrawals say -----------------------------------------------------------------------------------

    def stale(self) -> bool:
        """Too few are left who could join another attempt of this round: there is nothing to wait for."""
        return self._withdrew(_STALE)

    def refused(self) -> bool:
        """Too few are left who believe this round's opening."""
        return self._withdrew(_REFUSED)

    def unable(self) -> str:
        """Why too few are left who can take part: the code that most of them gave; empty: enough are left.

        Whoever only comes back from a restart, or was cut off, can take part in the next attempt.
        """
        codes = Counter(code for code in self.withdrawn.values() if code not in _PASSING)
        spare = len(self.machine.attempt.roster) - self.machine.attempt.threshold
        return codes.most_common(1)[0][0] if codes.total() > spare else ""

    def _withdrew(self, codes: frozenset[str]) -> bool:
        spare = len(self.machine.attempt.roster) - self.machine.attempt.threshold
        return sum(code in codes for code in self.withdrawn.values()) > spare

    # -- opening ------------------------------------------------------------------------------------------------

    def job(self, plan: Plan, spool: Spool, run: str, state: RunState, observer: Observer) -> FoldJob | None:
        """The heavy work that is due, once.

        Args:
            plan: the plan.
            spool: where the uploads are.
            run: its key.
            state: of the run.
            observer: told who opened shares that do not fit.
        """
        machine = self.machine
        if self.folding or machine.phase is not AggregatorPhase.OPENINGS or not self.openable:
            return None
        try:
            openings = folded_openings(machine) if self.folded else machine.unmask()
        except (BadShareError, TooFewMembersError) as error:
            self.fruitless = len(machine.current.openings)  # more may come until the deadline
            if isinstance(error, BadShareError):
                self.convicted.update(dict.fromkeys(error.culprits, error.code))
            observer.blamed(error.culprits, error.code)
            return None
        job = fold_job(plan, machine, openings, self.folded, spool, run, state, self.outcome)
        self.folding = True
        return job

    # -- steps --------------------------------------------------------------------------------------------------

    def begin_sum(self) -> None:
        """Begins the current sum upon those that are open."""
        self.entered.clear()
        self.machine.begin_sum(consumed(self.opened))

    def checkpoint(self) -> bytes:
        """Everything that a restart needs to go on with this attempt."""
        return pb.Checkpoint(
            round_start=self.round_start,
            attempt=self.number,
            journal=self.machine.journal(),
            opened=self.opened,
            withdrawn=sorted(self.withdrawn),
            folded=self.folded,
        ).SerializeToString(deterministic=True)
