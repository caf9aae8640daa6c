"""The node's loop: an invitation, the local rules, the patients, then directives and replies until the run ends.

It does no waiting of its own but in the link's calls, and nothing but its ports touches disk or network: `studies/`
drive nine nodes in one thread with `wait_seconds=0`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Final

from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import service_pb2 as pb
from google.protobuf.message import DecodeError

from federation import plan_check
from federation.plan import Plan, digest
from institution_node.data import InstitutionData
from institution_node.guard import GuardedWork, guarded
from institution_node.library import LinkLibrary
from institution_node.link import (
    CoordinatorLink,
    CoordinatorRefusalError,
    CoordinatorUnreachableError,
    LinkError,
    StoppedError,
)
from institution_node.memory import Memory
from institution_node.policy import NodeIdentity, Policy, PolicyRefusal
from institution_node.session import Reply, RoundWork, Session, Watcher
from security.errors import ConfigurationError, ConsiliumError
from security.privacy.randomness import Randomness
from security.signing import IdentityKey

RECHECK_SECONDS: Final = 60.0
"""After which a refused plan is looked at again, though policy did not change: tables may have been mended."""

PHASES: Final[Mapping[str, str]] = {
    "wait": "waiting",
    "make_keys": "keys",
    "reveal_value": "reveals",
    "deal_shares": "shares",
    "contribute": "training",
    "sign_list": "signatures",
    "open_shares": "openings",
    "sit_out": "waiting",
    "run_ended": "done",
}
"""Directive to `monitoring.metrics.PHASES`."""


class DataChangedError(ConfigurationError):
    """The tables are not those that the run began with."""

    code = "data-changed"


@dataclass(frozen=True)
class Assignment:
    """One run at this institution: everything that its work may use.

    Attributes:
        plan_bytes: exact bytes, accepted by local policy.
        plan: the same, read.
        institution: this one.
        data: its patients.
        library: the run's content by digest.
        memory: what survives a restart.
        randomness: the node's generator.
        policy: the institution's rules when the run was accepted.
    """

    plan_bytes: bytes
    plan: Plan
    institution: str
    data: InstitutionData
    library: LinkLibrary
    memory: Memory
    randomness: Randomness
    policy: Policy

    @property
    def run(self) -> bytes:
        """Digest of the plan, 32 bytes."""
        return digest(self.plan_bytes)


class NodeWatcher(Watcher):
    """Hears what a node does, for logs, audit and metrics; keeps nothing. Codes are short, kebab-case, value-free."""

    def phase(self, name: str) -> None:
        """The node entered a phase, one of `monitoring.metrics.PHASES`."""

    def accepted(self, plan: Plan, run: bytes) -> None:
        """Local policy accepts a plan; its names may be used from here on."""

    def rejected(self, run: bytes, error: ConsiliumError) -> None:
        """Local policy, or this institution's data, refuses a plan. Said once until something changes."""

    def data_changed(self, run: bytes, before: str, now: str, confirmed: bool) -> None:
        """The tables' fingerprint differs from the run's; `confirmed`: the engineer accepted it."""

    def enrolled(self, run: bytes) -> None:
        """The coordinator admitted this institution."""

    def sits_out(self, run: bytes, code: str) -> None:
        """This institution takes no further part in the run."""

    def withdrawn(self, round_: int, attempt: int, code: str) -> None:
        """This institution left an attempt."""

    def failed(self, error: ConsiliumError) -> None:
        """A step did not succeed; the node goes on."""

    def ended(self, run: bytes, status: str) -> None:
        """The run is over: `finished`, `stopped` or `failed`."""


@dataclass
class _Part:
    """A run that this node takes part in."""

    assignment: Assignment
    session: Session
    resources: ExitStack
    known: int = 0
    told: pb.Directive | None = None  # what came with the last answer
    place: tuple[int, int] | None = None  # round and attempt that keys were made for, while not withdrawn


@dataclass(frozen=True)
class _Refused:
    run: bytes
    code: str
    policy: Policy
    at: float


class Node:
    """One institution's node.

    Args:
        link: the coordinator.
        own: who this node is.
        identity: its certified key.
        policy: the institution's rules as they are now; asked again before every decision.
        memory: what survives a restart.
        randomness: where keys, batches and noise come from.
        load_data: reads and aligns the patients that a plan asks for.
        make_work: what computes in a run; entered when the run is joined, left when it is over.
        finish: given the assignment when a run ended with a model; makes this institution's own copy.
        watcher: told what happens.
        accept_new_data: the engineer confirmed that the tables changed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        own: NodeIdentity,
        identity: IdentityKey,
        policy: Callable[[], Policy],
        memory: Memory,
        randomness: Randomness,
        load_data: Callable[[Plan], InstitutionData],
        make_work: Callable[[Assignment], AbstractContextManager[RoundWork]],
        *,
        finish: Callable[[Assignment, pb.RunEnded], None] | None = None,
        watcher: NodeWatcher | None = None,
        accept_new_data: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._own, self._identity = link, own, identity
        self._policy, self._memory, self._randomness = policy, memory, randomness
        self._load_data, self._make_work, self._finish = load_data, make_work, finish
        self._watcher = watcher or NodeWatcher()
        self._accept_new_data = accept_new_data
        self._clock = clock
        self._part: _Part | None = None
        self._refused: _Refused | None = None
        self._done: set[bytes] = set()

    @property
    def run(self) -> bytes | None:
        """The run that this node takes part in."""
        return self._part.assignment.run if self._part is not None else None

    def step(self, wait_seconds: float) -> bool:
        """One turn: looks for a run, or does what the coordinator asks for next.

        Whatever the coordinator sends, or the link fails with, costs at most this node's part in the attempt.

        Args:
            wait_seconds: how long the coordinator may hold a directive back until there is a new one.

        Returns:
            Whether anything was done; False: nothing new, or it failed: wait a little before the next step.

        Raises:
            StoppedError: the node was told to stop.
            DataChangedError: the tables are not those that the run began with; a person must look.
        """
        try:
            return self._look_for_run() if self._part is None else self._follow(self._part, wait_seconds)
        except (StoppedError, DataChangedError):
            raise
        except ConsiliumError as error:
            self._watcher.failed(error)
            return False

    def leave(self) -> None:
        """Withdraws from the attempt in hand, if there is one, and lets go of the run. It may be taken up again."""
        part, self._part = self._part, None
        if part is None:
            return
        with part.resources:
            if part.place is not None:
                try:
                    self._withdraw(part, StoppedError.code)
                except ConsiliumError as error:
                    self._watcher.failed(error)

    # -- before a run -------------------------------------------------------------------------------------------

    def _look_for_run(self) -> bool:
        plan_bytes = self._link.invitation()
        run = digest(plan_bytes)
        if not plan_bytes or run in self._done:
            self._watcher.phase("waiting")
            return False
        policy = self._policy()
        before = self._refused
        if (
            before is not None
            and (before.run, before.policy) == (run, policy)
            and self._clock() - before.at < RECHECK_SECONDS
        ):
            return False
        self._watcher.phase("enrolment")
        with ExitStack() as opening:
            try:
                assignment = guarded(lambda: self._decide(plan_bytes, run, policy))
                work = guarded(lambda: opening.enter_context(self._make_work(assignment)))
            except LinkError:
                raise
            except ConsiliumError as error:
                return self._refuse(run, policy, error)
            return self._join(assignment, work, opening)

    def _decide(self, plan_bytes: bytes, run: bytes, policy: Policy) -> Assignment:
        plan = Plan.from_bytes(plan_bytes)
        plan_check.check(plan)  # the coordinator may lie
        policy.check(plan, run, self._own)
        policy.check_randomness(self._randomness)
        data = self._load_data(plan)
        self._pin(run, data.fingerprint)
        self._watcher.accepted(plan, run)
        library = LinkLibrary(self._link, run)
        return Assignment(
            plan_bytes, plan, self._own.institution, data, library, self._memory, self._randomness, policy
        )

    def _pin(self, run: bytes, fingerprint: str) -> None:
        memory = self._memory.load(run.hex())
        if memory.fingerprint == fingerprint:
            return
        if memory.fingerprint:
            self._watcher.data_changed(run, memory.fingerprint, fingerprint, self._accept_new_data)
            if not self._accept_new_data:
                raise DataChangedError(
                    "the tables are not those that this run began with.",
                    remedy="Restore them; or, if the change is meant, start once with "
                    "`consilium-node run --accept-new-data`.",
                    place=f"run {run.hex()}",
                )
        self._memory.save(run.hex(), replace(memory, fingerprint=fingerprint))

    def _refuse(self, run: bytes, policy: Policy, error: ConsiliumError) -> bool:
        code = error.rule.replace("_", "-") if isinstance(error, PolicyRefusal) else error.code
        new = self._remember(_Refused(run, code, policy, self._clock()))
        if new:
            self._watcher.rejected(run, error)
        try:
            self._link.enrol(run, code)
        except LinkError as unsaid:
            self._watcher.failed(unsaid)
        if isinstance(error, DataChangedError):
            raise error
        return new

    def _remember(self, refused: _Refused) -> bool:
        """Whether this is news."""
        before, self._refused = self._refused, refused
        return before is None or (before.run, before.code) != (refused.run, refused.code)

    def _join(self, assignment: Assignment, work: RoundWork, opening: ExitStack) -> bool:
        reason = self._link.enrol(assignment.run, "")
        if reason:
            if self._remember(_Refused(assignment.run, reason, assignment.policy, self._clock())):
                self._watcher.sits_out(assignment.run, reason)
            return False
        session = Session(
            assignment.plan_bytes,
            assignment.institution,
            self._identity,
            assignment.randomness.child("secure-sum"),
            assignment.memory,
            GuardedWork(work),
            assignment.policy.similar_cohorts_of(assignment.plan),
            self._watcher,
            partial(self._link.download, assignment.run),
        )
        self._watcher.enrolled(assignment.run)
        self._part, self._refused = _Part(assignment, session, opening.pop_all()), None
        return True

    # -- in a run -----------------------------------------------------------------------------------------------

    def _follow(self, part: _Part, wait_seconds: float) -> bool:
        directive, part.told = part.told, None
        if directive is None:
            directive = self._link.next_directive(part.assignment.run, part.known, wait_seconds)
        if directive.serial == part.known:
            return False
        kind = directive.WhichOneof("kind") or ""
        self._watcher.phase(PHASES.get(kind, "waiting"))
        if kind == "run_ended":
            return self._end(part, directive.run_ended)
        if kind == "sit_out":
            self._watcher.sits_out(part.assignment.run, directive.sit_out.reason)
        elif kind == "make_keys":
            part.place = _place_of(directive.make_keys)
        try:
            reply = guarded(lambda: part.session.handle(directive))
            if reply.message is not None:
                reply.message.known, reply.message.wait_seconds = directive.serial, wait_seconds
            part.told = self._send(part, reply)
        except CoordinatorRefusalError as error:
            self._watcher.failed(error)  # it has heard, and will say what is next
        except LinkError:
            raise
        except ConsiliumError as error:  # vectors are computed as late as while they are sent
            self._watcher.failed(error)
            self._withdraw(part, error.code)
        # Only now: where the answer did not get through, the same directive is asked for and answered again.
        part.known = directive.serial
        return True

    def _send(self, part: _Part, reply: Reply) -> pb.Directive | None:
        """Sends what a directive asked for; returns the next one, where it came with the answer."""
        if reply.upload is not None:
            self._watcher.phase("uploads")
            self._link.upload(part.assignment.run, reply.upload)
        if reply.message is None:
            return None
        if reply.message.HasField("withdrawal"):
            w = reply.message.withdrawal
            part.place = None
            self._watcher.withdrawn(w.round, w.attempt, w.code)
        told = self._link.submit(reply.message)
        return told if told.WhichOneof("kind") not in (None, "wait") else None

    def _withdraw(self, part: _Part, code: str) -> None:
        round_, attempt = part.place or (0, 0)
        part.place = None
        self._watcher.withdrawn(round_, attempt, code)
        withdrawal = pb.Withdrawal(round=round_, attempt=attempt, code=code)
        self._link.submit(pb.SubmitRequest(run=part.assignment.run, withdrawal=withdrawal))

    def _end(self, part: _Part, ended: pb.RunEnded) -> bool:
        run = part.assignment.run.hex()
        self._memory.save(run, self._memory.load(run))  # what was only noted since the last signature
        finish = self._finish
        if finish is not None and ended.final:
            try:
                guarded(lambda: finish(part.assignment, ended))
            except (CoordinatorUnreachableError, StoppedError):
                raise  # the end of the run is asked for again
            except ConsiliumError as error:
                self._watcher.failed(error)
        self._part = None
        part.resources.close()
        self._done.add(part.assignment.run)
        self._watcher.ended(part.assignment.run, ended.status)
        return True


def _place_of(message: pb.MakeKeys) -> tuple[int, int] | None:
    try:
        return rounds_pb.RoundStart.FromString(message.round_start).round, message.attempt
    except DecodeError:
        return None


def run_until_stopped(node: Node, stop: Event, wait_seconds: float = 20.0, idle_seconds: float = 1.0) -> None:
    """Steps until `stop` is set; then leaves the attempt in hand properly.

    Args:
        node: the node.
        stop: set by a signal handler, or by another thread.
        wait_seconds: of one long poll.
        idle_seconds: between steps that did nothing and did not wait themselves.

    Raises:
        DataChangedError: a person must look; the node has left the run's attempt.
    """
    try:
        while not stop.is_set():
            began = time.monotonic()
            if not node.step(wait_seconds) and time.monotonic() - began < idle_seconds:
                stop.wait(idle_seconds)
    except StoppedError:
        pass
    finally:
        node.leave()
