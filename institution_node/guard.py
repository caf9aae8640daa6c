"""A fault in the round's work ends this institution's part in the attempt, never its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from consilium.v1 import round_pb2 as rounds_pb

from institution_node.session import RoundWork
from security.errors import ConsiliumError
from security.secure_sum.masks import Words
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import WordSource

_Result = TypeVar("_Result")


class WorkFailedError(ConsiliumError):
    """Something unforeseen failed while computing: out of memory, a device, a fault of ours. See the cause."""

    code = "work-failed"


class GuardedWork:
    """A RoundWork whose unforeseen errors come out as WorkFailedError, with the cause for the local log.

    Args:
        work: what computes.
    """

    def __init__(self, work: RoundWork) -> None:
        self._work = work

    def open_round(self, start: rounds_pb.RoundStart, round_start: bytes) -> tuple[Sum, ...]:
        """See RoundWork."""
        return guarded(lambda: self._work.open_round(start, round_start))

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        """See RoundWork."""
        made = guarded(lambda: self._work.sources(which, uploads))
        return {name: _GuardedWords(source) for name, source in made.items()}

    def take_opened(self, which: Sum, opened: rounds_pb.OpenedSum, listed: SurvivorList) -> None:
        """See RoundWork."""
        guarded(lambda: self._work.take_opened(which, opened, listed))


class _GuardedWords:
    """Words are made as late as while they are uploaded."""

    def __init__(self, source: WordSource) -> None:
        self._source = source

    def fill(self, start: int, out: Words) -> None:
        """See WordSource."""
        guarded(lambda: self._source.fill(start, out))


def guarded(compute: Callable[[], _Result]) -> _Result:
    """The result of `compute`.

    Raises:
        ConsiliumError: that of `compute`, or WorkFailedError for any other error.
    """
    try:
        return compute()
    except ConsiliumError:
        raise
    except Exception as error:
        raise WorkFailedError(
            f"the round's work failed with {type(error).__name__}.",
            remedy="See the node's log for where; the node joins the next round.",
        ) from error
