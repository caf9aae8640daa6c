"""The order of the circle: committed to with the keys, revealed once every commitment is fixed (rule 10).

Nobody's privacy hangs on it: institutions check the graph that comes out. Whoever keeps its value to itself is left out
of the attempt. A lying coordinator may leave out honest values as well, once it has seen all, and so choose among many
circles; the bound on failures (`graph_bound`) is for honest dropouts only. A value needs no signature: the commitment
to it stands in its sender's signed key message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from security.secure_sum import derive
from security.secure_sum.errors import RevealError
from security.secure_sum.graph import Graph
from security.secure_sum.messages import KeyMessage
from security.secure_sum.spec import Attempt, Context

REVEAL_BYTES: Final = 32


def reveal_commitment(context: Context, sender: str, value: bytes) -> bytes:
    """What a key message says of the value that its sender will reveal: 32 bytes."""
    return derive.commitment("graph-reveal", context, sender, value)


def check_reveal(attempt: Attempt, message: KeyMessage, value: bytes) -> None:
    """Raises RevealError unless the sender of this key message committed to this value."""
    if len(value) != REVEAL_BYTES or reveal_commitment(attempt.context, message.sender, value) != (
        message.graph_commitment
    ):
        raise RevealError(
            f"the value revealed for {message.sender!r} is not the one that it committed to.",
            remedy="It, or the coordinator, wants to choose the mask graph; nothing was dealt.",
            place=message.sender,  # who changed it is not proven: a value is not signed
        )


def agreed_digest(keys_digest: bytes, reveals: Mapping[str, bytes]) -> bytes:
    """Everything that the graph follows from: what was relayed as key messages and as values, by name."""
    items = (derive.encode(name, reveals[name]) for name in sorted(reveals))
    return derive.digest_of("reveals", (keys_digest, *items))


def drawn_graph(attempt: Attempt, agreed: bytes, members: Iterable[str]) -> Graph:
    """The graph that all revealed values draw together: a circle of names by their hashes under all of them.

    Args:
        attempt: a sparse one.
        agreed: `agreed_digest`.
        members: who revealed.
    """
    seed = derive.bind("circle", attempt.context, agreed)
    places = {name: hashlib.sha256(derive.encode(seed, name)).digest() for name in members}
    return Graph(attempt.roster, places, attempt.sparse, sorted(places, key=places.__getitem__))
