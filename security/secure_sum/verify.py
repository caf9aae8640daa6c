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
    check_signed(attempt, signed, tag)
    return open_message(attempt, signed, decode)


def check_signed(attempt: Attempt, signed: Signed, tag: str) -> None:
    """Raises UnknownMemberError or BadSignatureError unless a member of the roster signed this."""
    public = attempt.roster.get(signed.signer)
    if public is None:
        raise UnknownMemberError("a message is signed by somebody who is not in the plan's roster.")
    try:
        verify(public, tag, signed.payload, signed.signature)
    except ProtocolError as error:
        error.place = f"signed as {signed.signer!r}"  # by whom, nobody knows: no culprit is named without proof
        raise


def open_message(attempt: Attempt, signed: Signed, decode: Callable[[bytes], M]) -> M:
    """`open_signed` without the signature: whoever the message names may never have seen it.

    Raises:
        As `open_signed`, but for the signature.
    """
    if signed.signer not in attempt.roster:
        raise UnknownMemberError("a message is signed by somebody who is not in the plan's roster.")
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
    if bool(message.graph_commitment) != (attempt.sparse is not None):
        raise MalformedMessageError(
            "a key message commits to a value of the mask graph exactly where that is drawn.",
            culprits=(message.sender,),
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


class DistinctKeys:
    """The public keys seen so far: one that two members show was copied by one of them, who cannot be told."""

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}

    def add(self, name: str, message: KeyMessage) -> None:
        """Takes a member's keys.

        Raises:
            TamperedKeysError: another member shows one of them; nothing was taken.
        """
        public = (message.share_key, *(k.public_key for k in message.parts))
        for key in public:
            if self._owners.get(key, name) != name:
                raise TamperedKeysError(f"{self._owners[key]!r} and {name!r} show the same public key.")
        self._owners.update(dict.fromkeys(public, name))


def check_distinct_keys(keys: Mapping[str, KeyMessage]) -> None:
    """Raises TamperedKeysError if two members show the same public key."""
    seen = DistinctKeys()
    for name, message in keys.items():
        seen.add(name, message)


def upload_lengths(attempt: Attempt, sum_name: str, cohort: frozenset[str]) -> dict[str, int]:
    """Bytes that each member of a cohort uploads for a sum; whoever uploads nothing is left out."""
    lengths: Counter[str] = Counter()
    for part in attempt.sent_parts(sum_name, cohort):
        lengths.update(dict.fromkeys(part.contributors & cohort, part.sent_bytes))
    return dict(lengths)


def check_uploads(attempt: Attempt, listed: SurvivorList, cohort: frozenset[str], whose: Collection[str]) -> None:
    """Raises UnprovenUploadError unless each living one of `whose` signed an upload for the list's transcript (rule 6).

    What is opened of the living takes off every mask but those between two of them. Whoever was shown another cohort
    masked with others: all its masks would come off, if the list could count it as alive.
    """
    lengths = upload_lengths(attempt, listed.sum, cohort)
    hashes = listed.hashes or (b"",) * len(listed.alive)
    for name, signature, sha in zip(listed.alive, listed.uploads, hashes, strict=True):
        if name not in whose:
            continue
        header = UploadHeader(attempt.context, listed.sum, name, listed.transcript, lengths.get(name, 0), sha)
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
