"""How the words of a ring become the numbers in a ciphertext, and come back exactly.

CKKS adds real numbers with a small error. The numbers here are whole and so large that the error never reaches half of
one: rounding takes it off, the opened sum equals the plaintext sum bit for bit, and what is published depends on the
words alone. That is also why no flooding noise is added: there is no approximation left that could tell about the key
(Li and Micciancio, Eurocrypt 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from security.secure_sum.errors import SecureSumError
from security.secure_sum.masks import Words, word_type
from security.secure_sum.spec import Part, Ring

DEGREE: Final = 4096
MODULI_BITS: Final = (54, 55)
"""The first carries the data; the second serves key switching, which sums do not need, and encryption."""
SLOTS: Final = DEGREE // 2
FRAME_BYTES: Final = 61_952
"""Room for one ciphertext of `SLOTS` numbers, so that an upload's length follows from the plan: two polynomials of 4096
coefficients of 54 bits, compressed, have 61,722 bytes and a standard deviation of 14; and their own length."""
MAX_CIPHERTEXT_BYTES: Final = FRAME_BYTES - 2

NOISE: Final = 700.0
"""Standard deviation of a slot of one fresh ciphertext: √(N/2 · (1 + 2N/3)/12) = 683, the rounding of the switch from
both moduli to the first; a few for how many coefficients of the key are not zero."""
_HEADROOM_BITS: Final = 52
"""Sums stay below 2^52, half of what the first modulus holds."""
_TOLERANCE: Final = 0.375
_DEVIATIONS: Final = 12
"""`_TOLERANCE` of a unit is at least so many standard deviations of a fold: passed with probability 2^-100."""

Slots = npt.NDArray[np.float64]


class DamagedCiphertextError(SecureSumError):
    """A fold does not decrypt to whole numbers in range: a ciphertext of another key, or none at all."""

    code = "damaged-ciphertext"


@dataclass(frozen=True)
class SlotCode:
    """How words of one ring, summed over at most `members`, lie in slots: in `digits` digits of `bits` bits each.

    Attributes:
        ring: bits of a word.
        members: most institutions whose words are added.
        digits: slots of a word.
        bits: bits of a digit.
        scale: what a unit of a digit is multiplied with; a power of two.
    """

    ring: Ring
    members: int
    digits: int
    bits: int
    scale: float

    @staticmethod
    def of(ring: Ring, members: int) -> SlotCode:
        """The code with the fewest slots a word.

        Args:
            ring: 16, 32 or 64.
            members: at least 1.
        """
        for digits in range(1, ring + 1):
            bits = -(-ring // digits)
            scale = 2.0 ** math.floor(_HEADROOM_BITS - (bits - 1) - math.log2(members))
            if _TOLERANCE * scale >= _DEVIATIONS * NOISE * math.sqrt(members):
                return SlotCode(ring, members, digits, bits, scale)
        raise ValueError("so many institutions cannot be summed in one ciphertext")

    @staticmethod
    def for_part(part: Part) -> SlotCode:
        """The code of a part's words."""
        return SlotCode.of(part.ring, len(part.contributors))

    @property
    def words(self) -> int:
        """Words of one ciphertext."""
        return SLOTS // self.digits

    def ciphertexts(self, length: int) -> int:
        """Ciphertexts of `length` words."""
        return -(-length // self.words)

    def to_slots(self, words: Words) -> Slots:
        """The numbers that one ciphertext holds: digit by digit, each within ±2^(bits − 1), then zeros.

        Args:
            words: at most `self.words` of the ring.

        Returns:
            float64[SLOTS].
        """
        slots = np.zeros(SLOTS)
        rest, half = words.astype(np.uint64), np.float64(2 ** (self.bits - 1))
        for digit in range(self.digits):
            lowest = rest & np.uint64(2**self.bits - 1)
            slots[digit * len(words) : (digit + 1) * len(words)] = lowest.astype(np.float64) - half
            rest = rest >> np.uint64(self.bits) if self.bits < 64 else np.zeros_like(rest)
        return slots

    def from_slots(self, slots: Slots, length: int, summed: int) -> Words:
        """The sum modulo the ring, exactly.

        Args:
            slots: float64[SLOTS], the decrypted fold.
            length: words that the ciphertexts hold.
            summed: how many ciphertexts were added.

        Raises:
            DamagedCiphertextError: the slots are not what `summed` honest ciphertexts of one key give.
        """
        used = self.digits * length
        whole = np.rint(slots)
        off = np.abs(slots - whole)
        digits = whole[:used] + summed * 2.0 ** (self.bits - 1)
        # Written so that NaN fails. Under another key every slot is a random number, and one in four would be caught.
        sound = bool(np.all(off <= _TOLERANCE)) and not whole[used:].any()
        if not sound or not bool(np.all((digits >= 0) & (digits <= summed * (2.0**self.bits - 1)))):
            raise DamagedCiphertextError(
                "a fold of ciphertexts does not decrypt to whole numbers.",
                remedy="A ciphertext was made under another key, or is damaged; nothing was opened.",
            )
        total = np.zeros(length, dtype=np.uint64)
        for digit in range(self.digits):
            part = digits[digit * length : (digit + 1) * length].astype(np.uint64)
            total += part << np.uint64(self.bits * digit)  # modulo 2^64, and so modulo any smaller ring
        return (total & np.uint64(2**self.ring - 1)).astype(word_type(self.ring))


def ciphertext_bytes(part: Part) -> int:
    """Bytes that one institution uploads of an encrypted part that shares its ciphertexts with no other."""
    return SlotCode.for_part(part).ciphertexts(part.length) * FRAME_BYTES
