"""How much room a round takes on the coordinator's disk, beyond what the run keeps between rounds."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.state import RunState
from federation.rounds import UPDATES
from federation.vectors import Spool, StorageFullError
from security.secure_sum.spec import Sum


def lack_of_room(spool: Spool, sums: Iterable[Sum], state: RunState) -> str:
    """Why a round cannot begin now, for people; empty: its spool has room for it. Raises StorageError as the spool."""
    try:
        spool.check_room(room_of(sums, state))
    except StorageFullError as error:
        return str(error)
    return ""


def room_of(sums: Iterable[Sum], state: RunState) -> int:
    """Bytes that a round takes at most: every upload beside the opened sums; or, when the uploads of the updates are
    gone, the next model beside the opened sums.

    Args:
        sums: of the round.
        state: of the run when it begins.
    """
    parts = [(which.name, part) for which in sums for part in which.parts]
    uploads = sum(part.sent_bytes * len(part.contributors) for _, part in parts)
    opened = sum(part.bytes for _, part in parts)
    slots = max((len(c.slots) for c in state.components.values()), default=0)
    model = sum(4 * part.length * (1 + slots) for name, part in parts if name == UPDATES)
    return opened + max(uploads, model)
