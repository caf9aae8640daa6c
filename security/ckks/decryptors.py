"""Who decrypts an encrypted sum: two holders of the key, each by itself, and the sum counts where they say the same.

One that decrypts alone could say any sum. Results are exact after rounding, so two honest holders say the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from security.ckks.messages import Decryption
from security.secure_sum import derive
from security.secure_sum.errors import SecureSumError
from security.secure_sum.spec import Attempt
from security.secure_sum.verify import sha256

DECRYPTIONS: Final = 2
"""Holders whose words have to be equal before a sum counts."""


class DecryptionsDifferError(SecureSumError):
    """Two holders of the key say that one fold decrypts to different words. One of them lies; both are named."""

    code = "decryptions-differ"


def to_ask(attempt: Attempt, list_digest: bytes, living: Sequence[str], answered: Collection[str]) -> frozenset[str]:
    """Which holders are to decrypt now.

    The first of the living, and a second one drawn by the digest of the survivor list, in which are the transcript and
    everybody's signed ciphertexts: who lies alone cannot foresee who checks it.

    Args:
        attempt: the attempt.
        list_digest: of the list that was signed.
        living: holders who answered or may still do so, in their order.
        answered: those of them whose decryption is there.

    Returns:
        As many as are missing; nobody, where so many are not left: what nobody could check is not decrypted.
    """

    def place(name: str) -> bytes:
        return sha256(derive.bind("decryptor", attempt.context, list_digest, name))

    waiting = [name for name in (*living[:1], *sorted(living[1:], key=place)) if name not in answered]
    missing = DECRYPTIONS - len(answered)
    return frozenset(waiting[:missing] if 0 < missing <= len(waiting) else ())


def contradiction(decrypted: Mapping[str, Decryption]) -> DecryptionsDifferError | None:
    """What holders of the key contradict each other in, naming them; None: they agree, as far as they have answered."""
    names = tuple(decrypted)
    if len({decrypted[name].parts for name in names}) < 2:
        return None
    return DecryptionsDifferError(
        f"{' and '.join(map(repr, names))} decrypt one fold to different words.",
        remedy="One of them lies or is damaged, and nobody else can tell which: the sum does not count. Compare their "
        "audit logs, and leave out of the next plan who is found at fault.",
        culprits=names,
    )
