"""When a survivor list is decided: `threshold` shareholders signed these exact bytes (rule 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from security.errors import ProtocolError
from security.secure_sum import derive
from security.secure_sum.errors import (
    EquivocationError,
    MissingSignaturesError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.messages import Signed, SurvivorList
from security.secure_sum.spec import Attempt
from security.secure_sum.verify import open_signed


def check_signatures(
    attempt: Attempt, payload: bytes, signatures: Sequence[Signed], shareholders: Iterable[str]
) -> None:
    """Passes if at least `threshold` distinct shareholders signed `payload`.

    Raises:
        EquivocationError: one shareholder's valid signatures stand under two different lists of this sum.
        MissingSignaturesError: too few; names the shareholders whose valid signature over `payload` is missing.
    """
    holders = frozenset(shareholders)
    signed: dict[str, Signed] = {}
    ours = SurvivorList.decode(payload)

    def decode(data: bytes) -> SurvivorList:
        return ours if data == payload else SurvivorList.decode(data)

    for envelope in signatures:
        try:
            other = open_signed(attempt, envelope, derive.TAG_LIST, decode)
        except ProtocolError:
            continue  # counts as missing
        if envelope.signer not in holders or other.sum != ours.sum:
            continue
        known = signed.setdefault(envelope.signer, envelope)
        if known.payload != envelope.payload:
            raise equivocation(known, envelope)
    good = {name for name, envelope in signed.items() if envelope.payload == payload}
    if len(good) < attempt.threshold:
        raise MissingSignaturesError(
            f"{len(good)} of {attempt.threshold} needed signatures stand under this survivor list.",
            remedy="The coordinator must relay the signatures of the institutions named; nothing was opened.",
            culprits=tuple(sorted(holders - good)),
        )


def take_signature(
    attempt: Attempt, payload: bytes, envelope: Signed, shareholders: Iterable[str], known: Signed | None
) -> None:
    """Checks one signature of the list `payload`.

    Raises:
        UnknownMemberError: the signer holds no shares.
        EquivocationError: the signer signed another list of this sum; the error holds both messages.
        BadSignatureError, WrongContextError, MalformedMessageError: as they say.
    """
    if envelope.signer not in set(shareholders):
        raise UnknownMemberError("a survivor list is signed by an institution that holds no shares.")
    other = open_signed(attempt, envelope, derive.TAG_LIST, SurvivorList.decode)
    if other.sum != SurvivorList.decode(payload).sum:
        # Signing a list of each sum contradicts nothing: a late or replayed signature convicts nobody.
        raise WrongContextError("a signature is of another sum's list.", place=envelope.signer)
    if known is not None and known.payload != envelope.payload:
        raise equivocation(known, envelope)
    if envelope.payload != payload:
        raise MissingSignaturesError(
            f"{envelope.signer!r} signed another survivor list than the one shown.", culprits=(envelope.signer,)
        )


def equivocation(first: Signed, second: Signed) -> EquivocationError:
    """The error that convicts a signer of two contradictory messages."""
    return EquivocationError(
        f"{first.signer!r} signed two contradictory messages.",
        signer=first.signer,
        evidence=(first.payload + first.signature, second.payload + second.signature),
        remedy="Keep both messages: they convict the signer.",
    )
