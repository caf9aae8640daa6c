"""The institution's side of a run: directives in, messages out. Sans-I/O but for its ports.

It holds the member of the current attempt, keeps the high-water mark ahead of every message that leaves, and hands the
vectors to `RoundWork`. Whatever goes wrong here ends this institution's part in the attempt, never its process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import secure_sum_pb2 as sum_pb
from consilium.v1 import service_pb2 as pb

from federation.plan import Plan
from federation.rounds import STATISTICS, UPDATES, Cohorts, consumed, digest, opened_by, read_round_start
from institution_node.memory import Memory, RunMemory
from institution_node.similar_cohorts import consider
from security.ckks.member import make_member
from security.errors import ConsiliumError, ProtocolError
from security.privacy.randomness import Randomness
from security.secure_sum.cohorts import Cohort
from security.secure_sum.errors import DifferencingError, TranscriptError
from security.secure_sum.member import Fetch, Member, nothing_to_fetch
from security.secure_sum.messages import Signed, SurvivorList
from security.secure_sum.phases import MemberPhase
from security.secure_sum.spec import Context, Part, Sum
from security.secure_sum.upload import Upload, WordSource
from security.signing import IdentityKey


def _too_similar(parts: tuple[str, ...], remedy: str) -> DifferencingError:
    return DifferencingError(
        f"the cohort differs from a recent one by few institutions ({len(parts)} parts).", remedy=remedy
    )


class WithdrawnError(ProtocolError):
    """This institution has no part in the attempt: it was restarted, or came too late."""

    code = "withdrawn"


class RoundWork(Protocol):
    """What an institution computes in a round. Patients and model are behind it."""

    def open_round(self, start: rounds_pb.RoundStart, round_start: bytes) -> tuple[Sum, ...]:
        """Checks the round's opening, loads what it names; returns the round's sums as the plan has them.

        Raises:
            RoundError: the opening does not follow from the plan and the rounds before.
        """

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        """The encoded vectors of a sum, for exactly these parts. Computed once; asked again, the same."""

    def take_opened(self, which: Sum, opened: rounds_pb.OpenedSum, listed: SurvivorList) -> None:
        """Takes an opened sum of this round, in order.

        Raises:
            TranscriptError: what the coordinator made of it is not what follows from it.
        """


@dataclass(frozen=True)
class Reply:
    """What to send. At most one of the two."""

    message: pb.SubmitRequest | None = None
    upload: Upload | None = None


class Watcher:
    """Hears what happens in a session, for logs, audit and metrics; keeps nothing."""

    def joined(self, round_: int, attempt: int) -> None:
        """An attempt was joined."""

    def signed(self, sum_name: str, alive: int, gone: int) -> None:
        """A survivor list was signed."""

    def similar_cohort(self, parts: tuple[str, ...]) -> None:
        """A list was signed whose cohort differs little from a recent one (rule 9)."""

    def complained(self, errors: tuple[ProtocolError, ...]) -> None:
        """Dealers sent shares that do not open."""

    def refused(self, error: ConsiliumError) -> None:
        """Something was refused; nothing was sent."""


NOTHING: Final = Reply()


class Session:
    """One institution in one run.

    Args:
        plan_bytes: the plan's exact bytes, accepted by local policy.
        name: this institution.
        identity: its certified key.
        randomness: where keys and seeds come from.
        memory: what survives a restart.
        work: what is computed.
        similar_cohorts: the local policy's, where it is stricter than the plan.
        watcher: told what happens.
        fetch: downloads what an encrypted sum is opened with.
    """

    def __init__(
        self,
        plan_bytes: bytes,
        name: str,
        identity: IdentityKey,
        randomness: Randomness,
        memory: Memory,
        work: RoundWork,
        similar_cohorts: Literal["log", "withhold"] = "log",
        watcher: Watcher | None = None,
        fetch: Fetch = nothing_to_fetch,
    ) -> None:
        self.plan = Plan.from_bytes(plan_bytes)
        self.run = digest(plan_bytes)
        self.name = name
        self._identity, self._randomness = identity, randomness
        self._memory, self._work = memory, work
        self._similar = "withhold" if self.plan.secure_sum.similar_cohorts == "withhold" else similar_cohorts
        self._watcher = watcher or Watcher()
        self._fetch = fetch
        self._cohorts = Cohorts(self.plan)
        self._place: tuple[int, int] = (-1, 0)
        self._member: Member | None = None
        self._sums: tuple[Sum, ...] = ()
        self._opened: list[bytes] = []
        self._entered = ""  # the sum that the member stands in
        self._survived_updates = True

    def handle(self, directive: pb.Directive) -> Reply:
        """Acts on a directive. A repeated directive gives the same bytes.

        Returns:
            What to send; a withdrawal where this institution cannot go on with the attempt.
        """
        kind = directive.WhichOneof("kind")
        step: Callable[[], Reply] | None = {
            "make_keys": lambda: self._make_keys(directive.make_keys),
            "reveal_value": lambda: self._reveal(directive.reveal_value),
            "deal_shares": lambda: self._deal(directive.deal_shares),
            "contribute": lambda: self._contribute(directive.contribute),
            "sign_list": lambda: self._sign(directive.sign_list.list),
            "open_shares": lambda: self._open(directive.open_shares),
        }.get(kind or "")
        if step is None:
            return NOTHING
        try:
            return step()
        except ConsiliumError as error:
            return self._refuse(directive, error)

    # -- steps --------------------------------------------------------------------------------------------------

    def _make_keys(self, m: pb.MakeKeys) -> Reply:
        start = read_round_start(m.round_start, self.run)
        context = Context(self.plan.federation, self.run, start.round, m.attempt, digest(m.round_start))
        if self._member is not None and self._member.attempt.context == context:
            return self._keys(self._member)
        self._place = (start.round, m.attempt)
        memory = self._recall()
        mark = memory.mark.join(start.round, m.attempt)
        sums = self._work.open_round(start, m.round_start)
        if self._member is not None:
            self._member.withdraw()  # its keys and shares are destroyed before the next attempt is joined (rule 7)
            self._member = None
        # Durable before the keys leave: after a restart this attempt can only be withdrawn from (rules 7 and 8).
        self._memory.save(self.run.hex(), replace(self._recall(), mark=mark))
        member = make_member(self._cohorts.attempt(context, sums), self.name, self._identity, self._randomness)
        reply = self._keys(member)
        self._member, self._sums, self._opened = member, sums, []
        self._entered, self._survived_updates = "", True
        self._watcher.joined(start.round, m.attempt)
        return reply

    def _keys(self, member: Member) -> Reply:
        return Reply(pb.SubmitRequest(run=self.run, keys=member.make_keys().to_proto()))

    def _reveal(self, m: pb.RevealValue) -> Reply:
        value = self._current().reveal([Signed.from_proto(k) for k in m.keys])
        return Reply(pb.SubmitRequest(run=self.run, reveal=sum_pb.Reveal(sender=self.name, value=value)))

    def _deal(self, m: pb.DealShares) -> Reply:
        member = self._current()
        if m.reveals:
            dealt = member.deal_around({r.sender: r.value for r in m.reveals})
        else:
            dealt = member.deal([Signed.from_proto(k) for k in m.keys])
        shares = sum_pb.DealtShares(sender=self.name, messages=[s.to_proto() for s in dealt.values()])
        if (key := self._current().encryption_key) is not None:
            shares.encryption_key.CopyFrom(key.to_proto())
        return Reply(pb.SubmitRequest(run=self.run, shares=shares))

    def _contribute(self, m: pb.Contribute) -> Reply:
        member = self._current()
        if member.phase in (MemberPhase.NEW, MemberPhase.KEYED, MemberPhase.REVEALED):
            raise WithdrawnError("the attempt went on before this institution had dealt its shares.")
        if member.phase is MemberPhase.DEALT:
            key = Signed.from_proto(m.encryption_key) if m.HasField("encryption_key") else None
            member.accept(list(m.cohort), [Signed.from_proto(s) for s in m.shares], key)
            if member.complaints:
                self._watcher.complained(member.complaints)
        if member.complaint is not None and not m.complained:  # first: it may save everybody the attempt
            return Reply(pb.SubmitRequest(run=self.run, complaint=member.complaint.to_proto()))
        self._follow(list(m.opened))
        which = next((s for s in self._sums if s.name == m.sum), None)
        if which is None or self._sums.index(which) != len(self._opened):
            raise WithdrawnError("the coordinator asks for a sum out of its turn.")
        member.enter(m.sum, consumed(self._opened))
        self._entered = m.sum
        if member.phase not in (MemberPhase.READY, MemberPhase.MASKED):
            return NOTHING
        if m.sum == STATISTICS and not self._survived_updates:
            return NOTHING
        # Asked even where nothing is uploaded: components that stay here are trained in the others' rounds.
        sources = self._work.sources(which, member.uploads)
        return Reply(upload=member.mask(sources)) if member.uploads else NOTHING

    def _follow(self, opened: list[bytes]) -> None:
        if opened[: len(self._opened)] != self._opened:
            raise WithdrawnError("the coordinator shows another opened sum than before.")
        for data in opened[len(self._opened) :]:
            message, listed = opened_by(data)
            expected = self._sums[len(self._opened)].name
            if message.sum != expected or listed.sum != expected:
                raise WithdrawnError("the coordinator shows opened sums out of order.")
            signed = self._recall().mark.signed.get(expected)
            if signed is not None and signed != digest(message.list):
                raise TranscriptError(
                    f"sum {expected!r} is shown as opened for another survivor list than was signed here.",
                    remedy="The coordinator shows two lists: report it to the federation.",
                )
            self._work.take_opened(self._sums[len(self._opened)], message, listed)
            if message.sum == UPDATES:
                member = self._current()
                silent = not member.attempt.uploaded_parts(UPDATES, member.cohort, self.name)
                self._survived_updates = silent or self.name in listed.alive
            self._opened.append(data)

    def _sign(self, payload: bytes) -> Reply:
        member = self._current()
        listed = SurvivorList.decode(payload)
        if listed.sum != self._entered:
            return NOTHING  # this institution came too late for this sum, and cannot know what was summed
        memory = self._recall()
        mark = memory.mark.sign(listed.context.round, listed.context.attempt, listed.sum, digest(payload))
        cohorts = self._opened_cohorts(member, listed)
        if member.phase in (MemberPhase.READY, MemberPhase.MASKED):
            memory = self._check_similar(memory, listed, cohorts)
        signature = member.sign(payload)
        if mark != memory.mark:
            history = memory.history.with_opened(cohorts)
            self._memory.save(self.run.hex(), replace(memory, mark=mark, history=history))
            self._watcher.signed(listed.sum, len(listed.alive), len(listed.gone))
        return Reply(pb.SubmitRequest(run=self.run, signature=signature.to_proto()))

    def _check_similar(self, memory: RunMemory, listed: SurvivorList, cohorts: Mapping[str, Cohort]) -> RunMemory:
        """Refuses a list whose cohort is too like a recent one (rule 9); otherwise, what to remember of it."""
        settings = self.plan.secure_sum
        how = "withhold" if self._similar == "withhold" else "log"
        # What is noised for differential privacy is charged as if it were seen alone.
        if listed.sum == STATISTICS and how == "log" and not self.plan.differential_privacy.enabled:
            how = settings.similar_statistics
        if how == "wait":
            alive, round_ = frozenset(listed.alive), listed.context.round
            verdict = consider(
                memory.history, memory.waiting, cohorts, alive, round_, settings.max_colluders, settings.similar_wait
            )
            near, memory = verdict.near, replace(memory, waiting=verdict.waiting)
            if not verdict.signs:
                self._memory.save(self.run.hex(), memory)
                raise _too_similar(near, "The last losses stand until the others are back, or have stayed away longer.")
        else:
            near = memory.history.similar(cohorts, settings.max_colluders)
        if near:
            self._watcher.similar_cohort(near)
        if near and how == "withhold":
            raise _too_similar(
                near, "The plan or local policy withholds such sums; the next round may be opened again."
            )
        return memory

    @staticmethod
    def _opened_cohorts(member: Member, listed: SurvivorList) -> dict[str, frozenset[str]]:
        alive = frozenset(listed.alive)
        parts = member.opened_parts(listed.sum, alive)
        return {f"{listed.sum}/{p.name}": p.contributors & alive for p in parts}

    def _open(self, m: pb.OpenShares) -> Reply:
        member = self._current()
        if SurvivorList.decode(m.list).sum != self._entered:
            return NOTHING
        if member.phase in (MemberPhase.READY, MemberPhase.MASKED):
            self._sign(m.list)  # the others decided without us; the same checks, the same mark
        if member.phase not in (MemberPhase.SIGNED, MemberPhase.OPENED):
            return NOTHING
        opening = member.open([Signed.from_proto(s, m.list) for s in m.signatures], self._fetch)
        return Reply(pb.SubmitRequest(run=self.run, opening=opening.to_proto()))

    # -- inside -------------------------------------------------------------------------------------------------

    def _recall(self) -> RunMemory:
        return self._memory.load(self.run.hex())

    def _current(self) -> Member:
        if self._member is None:
            raise WithdrawnError(
                "this node has no keys of the attempt: it was restarted, or it withdrew.",
                remedy="Nothing to do: it joins the next round.",
            )
        return self._member

    def _refuse(self, directive: pb.Directive, error: ConsiliumError) -> Reply:
        """Leaves the attempt; the reason goes to the local log in words, to the coordinator as a code."""
        self._watcher.refused(error)
        if self._member is not None:
            self._member.withdraw()
            self._member = None
        round_, attempt = self._place
        if round_ < 0:  # restarted: the attempt that it had joined is the mark
            mark = self._recall().mark
            round_, attempt = mark.round, mark.attempt
        withdrawal = pb.Withdrawal(round=max(0, round_), attempt=attempt, code=error.code)
        return Reply(pb.SubmitRequest(run=self.run, withdrawal=withdrawal))
