"""A coordinator without a network: the service's own run, store and directives, called directly and in order."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta

from consilium.v1 import service_pb2 as pb

from coordinator.directives import directive_for
from coordinator.folding import run_job
from coordinator.observer import Observer
from coordinator.published import open_published
from coordinator.run import Run
from coordinator.store import Store
from federation.content_hash import ContentHash
from federation.fixed_point import WeightError
from federation.in_memory import MemoryContentStore, MemorySpool
from federation.plan import Plan
from federation.rounds import digest
from federation.vectors import ContentStore, Spool
from institution_node.link import LARGEST_CONTENT, ContentMismatchError, verified, wrong_length
from security.secure_sum.messages import Signed
from security.secure_sum.upload import Upload

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""Studies have no clock: time moves only when nobody can."""


class MemoryCoordinator:
    """One run of one plan.

    Args:
        plan_bytes: the plan's exact bytes.
        observer: told what happens.
        store: durable state; in memory by default.
        content, spool: where vectors rest; in memory by default.
    """

    def __init__(
        self,
        plan_bytes: bytes,
        observer: Observer | None = None,
        store: Store | None = None,
        content: ContentStore | None = None,
        spool: Spool | None = None,
    ) -> None:
        self.now = EPOCH
        self.starts = 1
        self.store = store or Store("sqlite://")
        self.content: ContentStore = content or MemoryContentStore()
        self.spool: Spool = spool or MemorySpool()
        self.observer = observer or Observer()
        plan = Plan.from_bytes(plan_bytes)
        self.store.create_run(digest(plan_bytes).hex(), plan.run, plan_bytes, self.now)
        self.store.set_status(digest(plan_bytes).hex(), "enrolling", "", self.now)
        self.run = Run(plan_bytes, self.store, self.content, self.spool, self.observer, self.now)

    def restart(self) -> None:
        """Forgets everything but what is durable, as a coordinator that was killed and started again."""
        self.starts += 1
        run = self.run
        self.run = Run.load(run.plan_bytes, self.store, self.content, self.spool, self.observer, self.now)

    @property
    def boot(self) -> bytes:
        """Nonce of this start, for directives' serials."""
        return f"in-memory {self.starts}".encode()

    def work(self) -> bool:
        """Does the heavy work that is due; whether there was any."""
        job = self.run.job()
        if job is None:
            return False
        try:
            result = run_job(job, self.content)
        except WeightError as error:
            self.run.cannot_open(error.code, self.now)
        else:
            self.run.folded(job, result, self.now)
        return True

    def pass_time(self, seconds: float) -> None:
        """Lets deadlines come."""
        self.now += timedelta(seconds=seconds)
        self.run.tick(self.now)


class MemoryLink:
    """The coordinator as one institution sees it; a `CoordinatorLink`."""

    def __init__(self, coordinator: MemoryCoordinator, institution: str) -> None:
        self._coordinator, self._institution = coordinator, institution

    @property
    def _run(self) -> Run:
        return self._coordinator.run

    def invitation(self) -> bytes:
        """See CoordinatorLink."""
        return b"" if self._run.ended else self._run.plan_bytes

    def enrol(self, run: bytes, refusal: str) -> str:
        """See CoordinatorLink."""
        reason = self._run.enrol(self._institution, "in-memory", refusal, self._coordinator.now)
        self._run.tick(self._coordinator.now)
        return reason

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        """See CoordinatorLink; never waits."""
        self._run.poll(self._institution, self._coordinator.now)
        directive = directive_for(self._run, self._institution, self._coordinator.boot)
        if directive.serial != known or not self._run.awaits(self._institution):
            return directive
        self._run.turned(self._institution, self._coordinator.now)
        return directive_for(self._run, self._institution, self._coordinator.boot)

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        """See CoordinatorLink; what is next is asked for."""
        run, now = self._run, self._coordinator.now
        match request.WhichOneof("message"):
            case "keys":
                run.take_keys(Signed.from_proto(request.keys), now)
            case "reveal":
                run.take_reveal(self._institution, request.reveal.value, now)
            case "shares":
                dealt = request.shares
                key = Signed.from_proto(dealt.encryption_key) if dealt.HasField("encryption_key") else None
                run.take_shares(self._institution, [Signed.from_proto(m) for m in dealt.messages], now, key)
            case "complaint":
                run.take_complaint(Signed.from_proto(request.complaint), now)
            case "signature":
                run.take_signature(Signed.from_proto(request.signature), now)
            case "opening":
                run.take_opening(Signed.from_proto(request.opening), now)
            case "withdrawal":
                w = request.withdrawal
                run.withdraw(self._institution, w.round, w.attempt, w.code, now)
        return pb.Directive()

    def upload(self, run: bytes, upload: Upload) -> None:
        """See CoordinatorLink."""
        spool = self._coordinator.spool
        key = self._run.begin_upload(upload.header)
        if not spool.is_complete(key):  # complete and not counted: the coordinator was restarted in between
            begun, sent, hashed = spool.offset(key), 0, ContentHash()
            for chunk in upload.chunks():
                hashed.update(chunk)
                rest = chunk[max(0, begun - sent) :]
                if rest:
                    spool.append(key, max(begun, sent), rest)
                    self._run.traffic["up"] += len(rest)
                sent += len(chunk)
            spool.complete(key, hashed.hexdigest(), upload.length)
        self._run.complete_upload(key, self._coordinator.now)

    def download(self, run: bytes, digest: str, at_most: int = LARGEST_CONTENT) -> bytearray:
        """See CoordinatorLink."""
        reader = open_published(self._run, self._institution, digest)
        if reader.length > at_most:
            raise ContentMismatchError(f"content of {reader.length} bytes is too large, {at_most} are the most.")
        data = bytearray(reader.length)
        reader.read_into(0, memoryview(data))
        self._run.traffic["down"] += len(data)
        return verified(data, digest)

    def pieces(self, run: bytes, digest: str, length: int, offset: int = 0) -> Generator[memoryview]:
        """See CoordinatorLink."""
        reader = self._coordinator.content.open(digest)
        if reader.length != length:
            raise wrong_length(length, reader.length)
        data = bytearray(length - offset)
        reader.read_into(offset, memoryview(data))
        self._run.traffic["down"] += len(data)
        yield memoryview(data if offset else verified(data, digest))
