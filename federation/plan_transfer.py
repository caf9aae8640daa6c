"""How a plan travels: in pieces, so that the limit on a message need not be a limit on plans.

A plan of 20,531 genes has about 1 MB, one of 450,000 methylation sites 17; the limit is the plan's own, `MAX_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from federation.plan import MAX_BYTES
from federation.plan_problems import PlanError

PIECE_BYTES: Final = 1 << 20


def pieces(plan: bytes) -> Iterator[bytes]:
    """A plan's exact bytes, piece by piece; none of an empty one."""
    for start in range(0, len(plan), PIECE_BYTES):
        yield plan[start : start + PIECE_BYTES]


class Gathering:
    """The pieces of one plan, in the order in which they come."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, piece: bytes) -> None:
        """Takes the next piece.

        Raises:
            PlanError: they are more than any plan has; nothing further is kept.
        """
        if len(self._bytes) + len(piece) > MAX_BYTES:
            raise PlanError.one(f"the plan has more than {MAX_BYTES >> 20} MiB.", "Use fewer columns.")
        self._bytes += piece

    def done(self) -> bytes:
        """The plan's exact bytes; empty where no piece came."""
        return bytes(self._bytes)
