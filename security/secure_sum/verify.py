"""Checks that both machines make of a message before they look at what it says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, TypeVar

from security.errors import ProtocolError
from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
    TamperedKeysError,
    TooFewMembersError,
    UnknownMemberError,
    UnprovenUploadError,
    WrongContextError,
)
from security.secure_sum.keys import check_public_key
from security.secure_sum.messages import KeyMessage, Signed, SurvivorList, UploadHeader
from security.secure_sum.spec import Attempt, Context
from security.signing import verify


class Contextual(Protocol):
    """Any message of the secure sum."""

    @property
    def context(self) -> Context: ...


M = TypeVar("M", bound=Contextual)


def open_signed(attempt: Attempt, signed: Signed, tag: str, decode: Callable[[bytes], M]) -> M:
    """The message in a signed envelope, if its signer is in the roster, the signature holds and the context is ours.

    Raises:
        UnknownMemberError: the signer is not in the plan's roster.
        BadSignatureError: the signature is not the signer's over these bytes with this tag.
        MalformedMessageError: the payload does not parse.
        WrongContextError: it belongs to another federation, run, round, attempt or opening.
    """
    public = attempt.roster.get(signed.signer)
    if public is None:
        raise UnknownMemberError("a message is signed by somebody who is not in the plan's roster.")
    try:
        verify(public, tag, signed.payload, signed.signature)
    except ProtocolError as error:
        error.place = f"signed as {signed.signer!r}"  # by whom, nobody knows: no culprit is named without proof
        raise
    message = decode(signed.payload)
    check_context(attempt, message.context, signed.signer)
    if getattr(message, "sender", signed.signer) != signed.signer:
        raise MalformedMessageError("the sender named inside a message is not its signer.", culprits=(signed.signer,))
    return message


def check_context(attempt: Attempt, context: Context, signer: str) -> None:
    """Raises WrongContextError unless `context` is the attempt's own; the first field that differs is named."""
    for field in ("federation", "run", "round", "attempt", "opening"):
        if getattr(context, field) != getattr(attempt.context, field):
            raise WrongContextError(
                f"a message belongs to another {field}.",
                remedy="If it is the opening that differs, institutions were shown different plans, schemas or models."
                if field == "opening"
                else "A replayed or misrouted message; nothing was changed.",
                place=f"signed as {signer!r}",  # who replayed or misrouted it is not proven
            )


def check_keys(attempt: Attempt, message: KeyMessage) -> None:
    """Raises MalformedMessageError unless the keys are good ones, all distinct, for exactly the sender's parts."""
    expected = [(s, p.name) for s, p in attempt.keyed_parts(message.sender)] if attempt.masked else []
    if [(k.sum, k.part) for k in message.parts] != expected:
        raise MalformedMessageError(
            "a key message is not for its sender's parts in plan order.", culprits=(message.sender,)
        )
    public = [k.public_key for k in message.parts] + [message.share_key]
    if len(set(public)) != len(public):
        raise MalformedMessageError("a key message uses one key twice.", culprits=(message.sender,))
    for key in public:
        check_public_key(key, message.sender)


def keys_digest(keys: Mapping[str, Signed]) -> bytes:
    """What was relayed as the attempt's key messages: names and payloads, by name."""
    return derive.digest_of("keys-digest", (derive.encode(name, keys[name].payload) for name in sorted(keys)))


def check_members(attempt: Attempt, members: Iterable[str], what: str) -> None:
    """Raises TooFewMembersError unless `threshold` members are there: fewer can neither sign nor open."""
    count = len(set(members))
    if count < attempt.threshold:
        raise TooFewMembersError(
            f"{count} institutions {what}, and {attempt.threshold} are needed.",
            remedy="Wait for more institutions; the coordinator opens another attempt.",
        )


def check_distinct_keys(keys: Mapping[str, KeyMessage]) -> None:
    """Raises TamperedKeysError if two members show the same public key: one copied the other, who cannot be told."""
    seen: dict[bytes, str] = {}
    for name, message in keys.items():
        for public in (message.share_key, *(k.public_key for k in message.parts)):
            if public in seen:
                raise TamperedKeysError(f"{seen[public]!r} and {name!r} show the same public key.")
            seen[public] = name


def check_uploads(attempt: Attempt, listed: SurvivorList, cohort: frozenset[str], whose: Collection[str]) -> None:
    """Raises UnprovenUploadError unless each living one of `whose` signed an upload for the list's transcript (rule 6).

    What is opened of the living takes off every mask but those between two of them. Whoever was shown another cohort
    masked with others: all its masks would come off, if the list could count it as alive.
    """
    lengths: Counter[str] = Counter()
    for part in attempt.sent_parts(listed.sum, cohort):
        lengths.update(dict.fromkeys(part.contributors & cohort, part.sent_bytes))
    hashes = listed.hashes or (b"",) * len(listed.alive)
    for name, signature, sha in zip(listed.alive, listed.uploads, hashes, strict=True):
        if name not in whose:
            continue
        header = UploadHeader(attempt.context, listed.sum, name, listed.transcript, lengths[name], sha)
        try:
            verify(attempt.roster[name], derive.TAG_UPLOAD, header.encode(), signature)
        except ProtocolError:
            raise UnprovenUploadError(
                f"{name!r} is listed as alive, but no upload of it for this sum and transcript is shown.",
                remedy="The coordinator shows institutions different cohorts or models; nothing was signed.",
            ) from None


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()
