"""Which parts of an encrypted sum share ciphertexts, and which of their words lies where.

A ciphertext has room for 2048 slots and weighs 62 KB whatever it holds; most parts of statistics have less than a
hundred words. So the words of parts that go everywhere together are put one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from security.ckks.encoding import FRAME_BYTES, SlotCode
from security.secure_sum.spec import Part, Sum


@dataclass(frozen=True)
class Pack:
    """Parts of one sum whose words share ciphertexts, in plan order.

    They have the same contributors and the same rule of when they open: one of them is uploaded, folded and opened
    exactly where all are (parts of one quantity over one cohort count once against differencing).
    """

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Its first part's."""
        return self.parts[0].name

    @property
    def code(self) -> SlotCode:
        """How its words lie in slots: all its parts have the same contributors and ring, and so digits and scale."""
        return SlotCode.for_part(self.parts[0])

    @property
    def length(self) -> int:
        """Words of all parts."""
        return sum(part.length for part in self.parts)

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts that one institution uploads for it."""
        return self.code.ciphertexts(self.length)

    @property
    def sent_bytes(self) -> int:
        """Bytes that one institution uploads for it."""
        return self.ciphertexts * FRAME_BYTES

    def cut(self, words: bytes) -> dict[str, bytes]:
        """Part name to its own words, of the words of all: little-endian bytes."""
        found: dict[str, bytes] = {}
        at = 0
        for part in self.parts:
            found[part.name] = words[at : at + part.bytes]
            at += part.bytes
        return found


def packs(parts: Iterable[Part]) -> tuple[Pack, ...]:
    """The packs of a sum's parts, or of those that one institution uploads, in the order of their first parts."""
    found: dict[tuple[object, ...], list[Part]] = {}
    for part in parts:
        key = (part.contributors, part.ring, part.together, part.quantity, part.pieces)
        found.setdefault(key, []).append(part)
    return tuple(Pack(tuple(each)) for each in found.values())


def encrypted(which: Sum) -> Sum:
    """The same sum, encrypted: this is where a sum is given its machine. Bytes of a pack count to its first part."""
    sizes = {pack.name: pack.sent_bytes for pack in packs(which.parts)}
    return Sum(which.name, tuple(replace(p, ciphertext_bytes=sizes.get(p.name, 0)) for p in which.parts))
