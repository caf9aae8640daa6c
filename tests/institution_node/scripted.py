"""A node with a scripted coordinator, tiny work, and ears for all that it tells."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import service_pb2 as pb

from federation.rounds import Cohorts, digest
from institution_node.data import InstitutionData
from institution_node.link import LARGEST_CONTENT, CoordinatorLink, CoordinatorRefusalError
from institution_node.node import Assignment, Node, NodeWatcher
from institution_node.policy import NodeIdentity, Policy
from institution_node.session import RoundWork
from security.errors import ConsiliumError
from security.privacy.randomness import Randomness, SystemRandomness
from security.secure_sum.masks import Words
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import Upload, WordSource
from tests.plans import example_identity
from tests.small_federation import DictMemory, patients, small_plan

PLAN = small_plan()
BYTES = PLAN.to_bytes()
RUN = digest(BYTES)
ACCEPTING = Policy(accepted_plans=(RUN.hex(),), data_is_public=True, allow_seeded_randomness=True)
NAME = PLAN.roster[0]


class Zeros:
    """Words of nothing, or a fault."""

    def __init__(self, fault: bool = False) -> None:
        self._fault = fault

    def fill(self, start: int, out: Words) -> None:
        if self._fault:
            raise MemoryError("canary-4711")
        out[:] = 0


class TinyWork:
    """Work without patients: the sums of round 0, all zero."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.open = fault, True

    def open_round(self, start: rounds_pb.RoundStart, round_start: bytes) -> tuple[Sum, ...]:
        if self.fault == "open":
            raise ZeroDivisionError("canary-4711")
        return Cohorts(PLAN).setup_sums()

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        return {part.name: Zeros(self.fault == "fill") for part in uploads}

    def take_opened(self, which: Sum, opened: rounds_pb.OpenedSum, listed: SurvivorList) -> None:
        pass


class ScriptedLink:
    """Says what the test wrote down, and keeps what it hears."""

    def __init__(self, *directives: pb.Directive, plan: bytes = BYTES) -> None:
        self.plan, self.directives = plan, list(directives)
        self.enrolments: list[str] = []
        self.reason = ""
        self.sent: list[pb.SubmitRequest] = []
        self.sent_chunks = 0
        self.answers: list[pb.Directive] = []  # what comes with the answers to the next messages
        self.fail: list[ConsiliumError] = []  # of the next calls that send something

    def invitation(self) -> bytes:
        return self.plan

    def enrol(self, run: bytes, refusal: str) -> str:
        assert run == digest(self.plan)
        self.enrolments.append(refusal)
        return "" if refusal else self.reason

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        return self.directives[0] if self.directives else pb.Directive(serial=known)

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        self.sent.append(request)
        if self.fail:
            raise self.fail.pop(0)
        return self.answers.pop(0) if self.answers else pb.Directive()

    def upload(self, run: bytes, upload: Upload) -> None:
        for _ in upload.chunks():
            self.sent_chunks += 1

    def download(self, run: bytes, digest: str, at_most: int = LARGEST_CONTENT) -> bytearray:
        raise CoordinatorRefusalError("unknown-content")

    def pieces(self, run: bytes, digest: str, length: int, offset: int = 0) -> Generator[memoryview]:
        raise CoordinatorRefusalError("unknown-content")


class Ears(NodeWatcher):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.errors: list[ConsiliumError] = []

    def rejected(self, run: bytes, error: ConsiliumError) -> None:
        self.heard.append(("rejected", error.code))

    def data_changed(self, run: bytes, before: str, now: str, confirmed: bool) -> None:
        self.heard.append(("data-changed", confirmed))

    def enrolled(self, run: bytes) -> None:
        self.heard.append(("enrolled",))

    def sits_out(self, run: bytes, code: str) -> None:
        self.heard.append(("sits-out", code))

    def withdrawn(self, round_: int, attempt: int, code: str) -> None:
        self.heard.append(("withdrawn", round_, attempt, code))

    def failed(self, error: ConsiliumError) -> None:
        self.errors.append(error)

    def refused(self, error: ConsiliumError) -> None:
        self.errors.append(error)

    def ended(self, run: bytes, status: str) -> None:
        self.heard.append(("ended", status))


class Bench:
    """One node with everything that a test may want to change."""

    def __init__(self, link: CoordinatorLink, **changes: Any) -> None:
        self.ears, self.memory, self.work = Ears(), changes.pop("memory", None) or DictMemory(), TinyWork()
        self.policy, self.now = ACCEPTING, 0.0
        self.data: Callable[[], InstitutionData] = lambda: patients(PLAN, NAME)
        self.randomness: Randomness = SystemRandomness()
        self.link = link
        self.made: list[Assignment] = []
        for name, value in changes.items():
            setattr(self, name, value)
        self.node = self.restart()

    def restart(self, *, accept_new_data: bool = False) -> Node:
        identity = example_identity(0)
        entry = PLAN.institution(NAME)
        self.node = Node(
            self.link,
            NodeIdentity(PLAN.federation, NAME, entry.key, entry.modalities),
            identity,
            lambda: self.policy,
            self.memory,
            self.randomness,
            lambda plan: self.data(),
            self._make,
            finish=getattr(self, "finish", None),
            watcher=self.ears,
            accept_new_data=accept_new_data,
            clock=lambda: self.now,
        )
        return self.node

    @contextmanager
    def _make(self, assignment: Assignment) -> Iterator[RoundWork]:
        self.made.append(assignment)
        self.work.open = True
        yield self.work
        self.work.open = False


def make_keys(attempt: int = 1, serial: int = 1) -> pb.Directive:
    start = rounds_pb.RoundStart(format=1, run=RUN, round=0).SerializeToString()
    return pb.Directive(serial=serial, make_keys=pb.MakeKeys(round_start=start, attempt=attempt))
