"""One sum at the coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field

from security.secure_sum.messages import Opening, Signed
from security.secure_sum.spec import Part


@dataclass
class SumState:
    """What the coordinator holds of one sum."""

    name: str
    transcript: bytes = b""
    headers: dict[str, Signed] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    payload: bytes = b""
    alive: frozenset[str] = frozenset()
    signatures: dict[str, Signed] = field(default_factory=dict)
    openings: dict[str, Signed] = field(default_factory=dict)
    opened: dict[str, Opening] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # that may be opened, once the uploads are closed
    lacking: dict[tuple[str, str], int] = field(default_factory=dict)  # (victim, part) to shares still wanted
