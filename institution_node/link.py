"""Everything that a node sees of the coordinator: seven calls, and what can go wrong with them.

`GrpcLink` speaks them over mTLS; `studies/` and tests implement them in memory. No call keeps state in a connection:
each may be repeated, and says the same again.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from consilium.v1 import service_pb2 as pb

from federation.content_hash import content_digest
from federation.rounds import RoundError
from security.errors import ConsiliumError, ProtocolError
from security.secure_sum.upload import Upload

PROTOCOL_VERSION: Final = 1
LARGEST_CONTENT: Final = 512 << 20
"""Bytes taken into memory at once where no length is known: schema and statistics. What is larger is streamed."""


class LinkError(ConsiliumError):
    """A call to the coordinator did not succeed."""

    code = "link"


class CoordinatorUnreachableError(LinkError):
    """No answer: the coordinator, or the way to it, is down. Worth trying again."""

    code = "coordinator-unreachable"


class StoppedError(LinkError):
    """This node was told to stop while it waited for the coordinator."""

    code = "node-stopped"


class CoordinatorRefusalError(LinkError):
    """The coordinator answered with an error.

    Attributes:
        reason: its code, such as `unknown-run`; short, kebab-case, without values.
    """

    code = "refused-by-coordinator"

    def __init__(self, reason: str, message: str = "", *, remedy: str = "", place: str = "") -> None:
        super().__init__(message or f"the coordinator refused: {reason}.", remedy=remedy, place=place)
        self.reason = reason


class CoordinatorIdentityError(LinkError):
    """Who answers at the coordinator's address is not the federation's coordinator, or does not speak TLS 1.3."""

    code = "coordinator-identity"


class ContentMismatchError(ProtocolError):
    """Content from the coordinator is not what its digest promises."""

    code = "content-mismatch"


class CoordinatorLink(Protocol):
    """The coordinator as one institution sees it.

    Every call may raise CoordinatorUnreachableError (try again), StoppedError, CoordinatorIdentityError, or
    CoordinatorRefusalError with the coordinator's code.
    """

    def invitation(self) -> bytes:
        """The exact bytes of the plan that this institution is invited to; empty: none at present."""
        ...

    def enrol(self, run: bytes, refusal: str) -> str:
        """Joins a run, or says which local rule refused it.

        Args:
            run: digest of the plan, 32 bytes.
            refusal: empty: accepted; otherwise the rule's code.

        Returns:
            Empty: admitted. Otherwise the code of why this institution sits the run out.
        """
        ...

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        """The current directive, as soon as its serial differs from `known`, at the latest after `wait_seconds`."""
        ...

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        """Sends a message of the secure sum, or a withdrawal.

        Returns:
            What to do next, where `request` waits for it and the coordinator has something: spares the question.
            Otherwise without a kind.
        """
        ...

    def upload(self, run: bytes, upload: Upload) -> None:
        """Sends a masked vector, whole: goes on by itself where it was cut off. Returns when it counts."""
        ...

    def download(self, run: bytes, digest: str, at_most: int = LARGEST_CONTENT) -> bytearray:
        """Content by its digest (64 hex digits), a fresh buffer that is the caller's to keep.

        Raises:
            ContentMismatchError: what came is something else, or has more than `at_most` bytes; of that, nothing is
                taken.
        """
        ...

    def pieces(self, run: bytes, digest: str, length: int, offset: int = 0) -> Generator[memoryview]:
        """Content in order, a piece at a time, without holding it; goes on by itself where it was cut off. Nothing is
        asked for before the first piece is; several contents may be taken side by side. Whoever leaves early closes it.

        Args:
            run: digest of the plan.
            digest: of the content.
            length: bytes that the whole content must have.
            offset: where to begin; from anywhere but 0, what is passed on is NOT checked against the digest.

        Yields:
            The next bytes; to be done with when the next are asked for.

        Raises:
            RoundError: it has another length; nothing was passed on.
            ContentMismatchError: at the end: what came is something else, and must not be used.
        """
        ...


def wrong_length(expected: int, length: int) -> RoundError:
    """The error for content of another length than the plan's."""
    return RoundError(
        f"content has {length} bytes, and the plan's has {expected}.",
        remedy="Coordinator and node must be of one release; tell the coordinator's operator if they are.",
    )


def verified(content: bytearray, digest: str) -> bytearray:
    """Passes content on if `digest` is its content digest.

    Raises:
        ContentMismatchError: it is not.
    """
    if content_digest(content) != digest:
        raise ContentMismatchError(
            "content from the coordinator has not the digest that was asked for.",
            remedy="Tell the coordinator's operator: its store is damaged, or something on the way changes bytes.",
        )
    return content


class LinkWatcher:
    """Hears what passes over a link, for metrics and logs; keeps nothing. Kinds are `monitoring.metrics.TRAFFIC`."""

    def sent(self, kind: str, count: int) -> None:
        """So many bytes of payload went out."""

    def received(self, kind: str, count: int) -> None:
        """So many bytes of payload came in."""

    def answered(self) -> None:
        """The coordinator answered a call, with whatever."""

    def unreachable(self, error: LinkError, wait_seconds: float) -> None:
        """A call failed and is tried again after so many seconds."""

    def masked(self, sum_name: str, count: int, seconds: float) -> None:
        """So many bytes of a sum's upload were made and masked in so many seconds."""
