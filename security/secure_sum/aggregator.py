"""The coordinator's side of the secure sum: relays, collects, and says which keystreams unmask the sum.

Its checks are a courtesy that finds faults early; privacy rests on the members' refusals. Sans-I/O: vectors never pass
through here, only their headers. `journal` holds every accepted input, so that a restarted coordinator is where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from security.errors import ProtocolError
from security.secure_sum import derive
from security.secure_sum.errors import (
    BadShareError,
    MalformedMessageError,
    OutOfPhaseError,
    SecondUploadError,
    TooFewMembersError,
    TranscriptError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.graph import Graph
from security.secure_sum.keys import share_commitment
from security.secure_sum.messages import (
    KeyMessage,
    OpenedShare,
    Opening,
    ShareMessage,
    Signed,
    SurvivorList,
    UploadHeader,
)
from security.secure_sum.phases import AGGREGATOR, AggregatorPhase, AggregatorStep
from security.secure_sum.recover import PartOpening, open_part
from security.secure_sum.reveals import agreed_digest, check_reveal, drawn_graph
from security.secure_sum.signatures import check_signatures, equivocation, take_signature
from security.secure_sum.spec import Attempt
from security.secure_sum.sum_state import SumState
from security.secure_sum.verify import (
    DistinctKeys,
    check_keys,
    check_members,
    keys_digest,
    open_signed,
    sha256,
    upload_lengths,
)


class Aggregator:
    """One attempt at the coordinator.

    Args:
        attempt: from the plan.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.phase = AggregatorPhase.KEYS
        self.keys: dict[str, Signed] = {}
        self.reveals: dict[str, bytes] = {}
        self.graph: Graph | None = None
        self.shares: dict[str, dict[str, Signed]] = {}
        self.cohort: frozenset[str] = frozenset()
        self.current = SumState(attempt.sums[0].name)
        self.finished: dict[str, SumState] = {}
        self.blamed: dict[str, str] = {}
        self.encryption_key: Signed | None = None  # masks need none
        self._key_messages: dict[str, KeyMessage] = {}
        self._distinct = DistinctKeys()
        self._share_messages: dict[tuple[str, str], ShareMessage] = {}
        self._keys_digest = b""
        self._agreed = b""
        self._upload_lengths: dict[str, dict[str, int]] = {}

    @property
    def members(self) -> frozenset[str]:
        """Who can go on: who sent keys and, once values were revealed, whose value is there."""
        return frozenset(self.keys) if self.graph is None else self.graph.members

    # -- keys and shares ----------------------------------------------------------------------------------------

    def take_keys(self, signed: Signed) -> None:
        """Takes one institution's key message; the same again changes nothing.

        Raises:
            EquivocationError: a second, different one.
            OutOfPhaseError: the keys are closed.
            BadSignatureError, WrongContextError, UnknownMemberError, MalformedMessageError: as they say.
        """
        known = self.keys.get(signed.signer)
        if known == signed:
            return
        self._after(AggregatorStep.TAKE_KEYS)
        message = open_signed(self.attempt, signed, derive.TAG_KEYS, KeyMessage.decode)
        if known is not None:
            if known.payload == signed.payload:
                return  # signed twice, said once
            raise equivocation(known, signed)
        check_keys(self.attempt, message)
        if message.encode() != signed.payload:
            raise MalformedMessageError("a key message is not in its one encoding.", culprits=(signed.signer,))
        self._distinct.add(signed.signer, message)
        self.keys[signed.signer] = signed
        self._key_messages[signed.signer] = message

    def close_keys(self) -> None:
        """Fixes the keys: no commitment can follow. Where the mask graph is complete, the shareholders are known.

        Raises:
            TooFewMembersError: fewer than `threshold`.
        """
        drawn = self.attempt.sparse is not None
        after = self._after(AggregatorStep.ASK_REVEALS if drawn else AggregatorStep.CLOSE_KEYS)
        check_members(self.attempt, self.keys, "sent keys")
        self._keys_digest, self.phase = keys_digest(self.keys), after
        if not drawn:
            self._agreed, self.graph = self._keys_digest, Graph(self.attempt.roster, self.keys, None)

    def take_reveal(self, sender: str, value: bytes) -> None:
        """Takes the value that one institution committed to; the same again changes nothing.

        Raises:
            RevealError: it committed to another.
            OutOfPhaseError, UnknownMemberError: as they say.
        """
        if value and self.reveals.get(sender) == value:
            return
        self._after(AggregatorStep.TAKE_REVEAL)
        if sender not in self.keys:
            raise UnknownMemberError(f"{sender!r} reveals a value without having sent keys in this attempt.")
        check_reveal(self.attempt, self._key_messages[sender], value)
        self.reveals[sender] = value

    def close_reveals(self) -> None:
        """Draws the mask graph of those who revealed: they are the members from here on.

        Raises:
            TooFewMembersError: fewer than `threshold`.
        """
        after = self._after(AggregatorStep.CLOSE_REVEALS)
        check_members(self.attempt, self.reveals, "revealed their values")
        self._agreed = agreed_digest(self._keys_digest, self.reveals)
        self.graph, self.phase = drawn_graph(self.attempt, self._agreed, self.reveals), after

    def take_shares(self, sender: str, messages: Iterable[Signed], encryption_key: Signed | None = None) -> None:
        """Takes one dealer's share messages, all or none; the same again changes nothing.

        Args:
            sender: the dealer.
            messages: one to each other shareholder.
            encryption_key: of who makes it, where a sum is encrypted (`security.ckks`).

        Raises:
            EquivocationError: other messages than before.
            MalformedMessageError: not one for each other shareholder, or not for the dealer's parts.
            OutOfPhaseError, UnknownMemberError, BadSignatureError, WrongContextError: as they say.
        """
        by_receiver: dict[str, Signed] = {}
        decoded: dict[tuple[str, str], ShareMessage] = {}
        envelopes = list(messages)
        known = self.shares.get(sender)
        if known is not None and sorted(e.payload for e in known.values()) == sorted(e.payload for e in envelopes):
            return
        self._after(AggregatorStep.TAKE_SHARES)
        if encryption_key is not None and not self.attempt.encrypted:
            raise MalformedMessageError(
                f"{sender!r} deals an encryption key, and no sum needs one.", culprits=(sender,)
            )
        graph = self._graph()
        if sender not in graph.members:
            raise UnknownMemberError(f"{sender!r} dealt shares without having sent keys in this attempt.")
        expected = [(s, p.name) for s, p in self.attempt.keyed_parts(sender)] if self.attempt.masked else []
        for envelope in envelopes:
            message = open_signed(self.attempt, envelope, derive.TAG_SHARES, ShareMessage.decode)
            if message.sender != sender:
                raise MalformedMessageError("shares were sent under another's name.", culprits=(sender,))
            if message.keys_digest != self._agreed:
                raise WrongContextError("shares were dealt for other keys than were relayed.", place=sender)
            if [(s.sum, s.part) for s in message.shares] != expected:
                raise MalformedMessageError(f"{sender!r} did not deal its parts in plan order.", culprits=(sender,))
            by_receiver[message.receiver] = envelope
            decoded[sender, message.receiver] = message
        if set(by_receiver) != set(graph.shareholders(sender)) - {sender} or len(envelopes) != len(by_receiver):
            raise MalformedMessageError(f"{sender!r} did not deal to every shareholder once.", culprits=(sender,))
        if known is not None:
            receiver = next(r for r in known if known[r].payload != by_receiver[r].payload)
            raise equivocation(known[receiver], by_receiver[receiver])
        self.shares[sender] = by_receiver
        self._share_messages |= decoded

    def close_shares(self) -> None:
        """Fixes the cohort: who dealt to everybody.

        Raises:
            TooFewMembersError: fewer than `threshold`.
        """
        after = self._after(AggregatorStep.CLOSE_SHARES)
        check_members(self.attempt, self.shares, "dealt shares")
        self.cohort, self.phase = frozenset(self.shares), after

    def shares_for(self, receiver: str) -> tuple[Signed, ...]:
        """The share messages that the cohort dealt to one shareholder."""
        dealers = self.cohort & set(self._graph().shareholders(receiver))  # ties are mutual
        return tuple(self.shares[sender][receiver] for sender in sorted(dealers) if sender != receiver)

    # -- one sum after the other --------------------------------------------------------------------------------

    def begin_sum(self, consumed: bytes) -> None:
        """Says what the current sum is computed from (see `Member.enter`); before that no upload is taken.

        Raises:
            TranscriptError: it was begun with something else.
        """
        if self.phase is not AggregatorPhase.UPLOADS:
            raise OutOfPhaseError(f"no sum can begin in phase {self.phase.value!r}.")
        name = self.current.name
        transcript = self._transcript(name, consumed)
        if self.current.transcript not in (b"", transcript):
            raise TranscriptError(f"sum {name!r} was begun with another transcript.")
        self.current.transcript = transcript

    def _transcript(self, sum_name: str, consumed: bytes) -> bytes:
        return derive.transcript(self.attempt.context, self._agreed, self.cohort, sum_name, consumed)

    def take_header(self, signed: Signed) -> UploadHeader:
        """Admits an upload; the same header again re-admits it, to resume.

        Raises:
            SecondUploadError: another header of the same institution (rule 8).
            TranscriptError: the sender consumed something else (rule 6).
            MalformedMessageError: the length is not the plan's.
            OutOfPhaseError, UnknownMemberError, BadSignatureError, WrongContextError: as they say.
        """
        self._after(AggregatorStep.TAKE_UPLOAD)
        header = open_signed(self.attempt, signed, derive.TAG_UPLOAD, UploadHeader.decode)
        current, sender = self.current, signed.signer
        if header.sum != current.name:
            raise OutOfPhaseError(f"{sender!r} uploads for sum {header.sum!r} while {current.name!r} is made.")
        known = current.headers.get(sender)
        if known is not None and known.payload != signed.payload:
            raise SecondUploadError(f"{sender!r} announces a second, different upload.", culprits=(sender,))
        if not current.transcript:
            raise OutOfPhaseError(f"sum {current.name!r} has not begun here.")
        if header.transcript != current.transcript:
            raise TranscriptError(f"{sender!r} consumed something else for this sum.", place=sender)
        if sender not in self.cohort:
            raise UnknownMemberError(f"{sender!r} is not in the cohort of this attempt.")
        if header.length != self.upload_length(sender):
            raise MalformedMessageError(f"the upload of {sender!r} has not the plan's length.", culprits=(sender,))
        if bool(header.content_hash) != self.attempt.sum(current.name).encrypted:
            raise MalformedMessageError(f"{sender!r} names a hash where it should not.", culprits=(sender,))
        if header.encode() != signed.payload:  # members make the bytes themselves and look for this signature of them
            raise MalformedMessageError(f"the upload of {sender!r} is not announced as agreed.", culprits=(sender,))
        current.headers.setdefault(sender, signed)
        return header

    def upload_length(self, institution: str) -> int:
        """Bytes that an institution uploads for the current sum; 0: it has nothing to upload."""
        return self._lengths().get(institution, 0)

    def uploaders(self) -> frozenset[str]:
        """Who has something to upload for the current sum."""
        return frozenset(self._lengths())

    def _lengths(self) -> dict[str, int]:
        """Bytes that each uploads for the current sum."""
        name = self.current.name
        if name not in self._upload_lengths and self.cohort:
            self._upload_lengths[name] = upload_lengths(self.attempt, name, self.cohort)
        return self._upload_lengths.get(name, {})

    def complete_upload(self, sender: str) -> None:
        """Counts an upload whose last byte is spooled and whose trailer's hash held (rule 8)."""
        self._after(AggregatorStep.TAKE_UPLOAD)
        if sender not in self.current.headers:
            raise OutOfPhaseError(f"{sender!r} completes an upload that it never announced.")
        self.current.completed.add(sender)

    def close_uploads(self) -> bytes:
        """Fixes the survivors: whoever's upload is complete, and shareholders with nothing to upload.

        Returns:
            The survivor list's payload, for the shareholders to sign.

        Raises:
            TooFewMembersError: no part keeps `k_min` survivors.
        """
        after = self._after(AggregatorStep.CLOSE_UPLOADS)
        current = self.current
        alive = frozenset(current.completed)
        parts = self.attempt.opened_parts(current.name, self.cohort, alive, self.graph)
        if not parts:
            raise TooFewMembersError(
                f"no part of sum {current.name!r} keeps {self.attempt.k_min} uploads, tied to each other by masks.",
                remedy="Wait for more institutions; the coordinator opens another round.",
            )
        listed = SurvivorList(
            self.attempt.context,
            current.name,
            current.transcript,
            tuple(sorted(alive)),
            tuple(sorted(self.cohort - alive)),
            tuple(current.headers[name].signature for name in sorted(alive)),
            self._hashes(alive),
        )
        current.alive, current.payload, self.phase = alive, listed.encode(), after
        current.parts = parts
        current.lacking = {
            (victim, part.name): self.attempt.share_threshold
            for part in (parts if self.attempt.masked else ())
            for victim in part.contributors & self.cohort
        }
        return current.payload

    def _hashes(self, alive: Iterable[str]) -> tuple[bytes, ...]:
        headers = (UploadHeader.decode(self.current.headers[name].payload) for name in sorted(alive))
        return tuple(header.content_hash for header in headers if header.content_hash)

    def take_signature(self, signed: Signed) -> None:
        """Takes one shareholder's signature of the list; the same again changes nothing.

        Raises:
            EquivocationError: the signer signed another list of this sum; the error holds both.
            MissingSignaturesError: the signature is of another list.
            OutOfPhaseError, UnknownMemberError, BadSignatureError, WrongContextError: as they say.
        """
        self._after(AggregatorStep.TAKE_SIGNATURE)
        current = self.current
        known = current.signatures.get(signed.signer)
        if known == signed:
            return
        take_signature(self.attempt, current.payload, signed, self.members, known)
        current.signatures.setdefault(signed.signer, signed)

    @property
    def decidable(self) -> bool:
        """Whether `threshold` shareholders signed the list."""
        return len(self.current.signatures) >= self.attempt.threshold

    def decide(self) -> None:
        """Holds the list as signed: from here on there is no other (the first durable point of the sum).

        Raises:
            MissingSignaturesError: fewer than `threshold`.
        """
        after = self._after(AggregatorStep.DECIDE)
        check_signatures(self.attempt, self.current.payload, tuple(self.current.signatures.values()), self.members)
        self.phase = after

    def take_opening(self, signed: Signed, gone: Set[str] = frozenset()) -> None:
        """Takes the shares that one shareholder opens; wrong ones are refused, and named in `blamed`.

        Args:
            signed: the shares.
            gone: as for `asked`. Under masks every shareholder is asked, whoever else is gone.

        Raises:
            BadShareError: a share is not what its dealer committed to: the shareholder is the culprit.
            EquivocationError: a second, different opening.
            OutOfPhaseError, UnknownMemberError, BadSignatureError, WrongContextError: as they say.
        """
        self._after(AggregatorStep.TAKE_OPENING)
        current, sender = self.current, signed.signer
        known = current.openings.get(sender)
        if known == signed:
            return
        opening = open_signed(self.attempt, signed, derive.TAG_OPENING, Opening.decode)
        if sender not in self.members:
            raise UnknownMemberError(f"{sender!r} holds no shares.")
        if opening.sum != current.name or opening.list_digest != sha256(current.payload):
            raise WrongContextError(f"{sender!r} opens for another survivor list.", place=sender)
        if known is not None:
            if known.payload == signed.payload:
                return
            raise equivocation(known, signed)
        try:
            for share in opening.shares:
                self._check_share(sender, share)
        except ProtocolError as error:
            self.blamed[sender] = error.code
            raise
        current.openings[sender], current.opened[sender] = signed, opening
        for secret in {(share.victim, share.part) for share in opening.shares}:
            if current.lacking.get(secret, 0) > 1:
                current.lacking[secret] -= 1
            else:
                current.lacking.pop(secret, None)

    def _check_share(self, sender: str, share: OpenedShare) -> None:
        kind = "seed" if share.victim in self.current.alive else "mask-key"
        if share.kind != kind or share.victim not in self.cohort:
            raise BadShareError(f"{sender!r} opens what the signed list does not ask for.", culprits=(sender,))
        if sender not in self._graph().shareholders(share.victim):
            raise BadShareError(f"{sender!r} opens a share that nobody dealt to it.", culprits=(sender,))
        if share.victim == sender:
            return  # a dealer sends its own share to nobody, so no commitment binds it: the reconstruction decides
        message = self._share_messages[share.victim, sender]
        for sealed in message.shares:
            if (sealed.sum, sealed.part) == (self.current.name, share.part):
                expected = sealed.seed_share_commitment if kind == "seed" else sealed.key_share_commitment
                where = (self.attempt, share.kind, self.current.name, share.part, share.victim, sender)
                if expected != share_commitment(*where, share.share):
                    raise BadShareError(f"{sender!r} opens a share that its dealer never dealt.", culprits=(sender,))
                return
        raise BadShareError(f"{sender!r} opens a part that its dealer does not have.", culprits=(sender,))

    def asked(self, gone: Set[str] = frozenset()) -> frozenset[str]:
        """Who is to open the current sum now: under masks, every shareholder.

        Args:
            gone: who has left the attempt.
        """
        return frozenset(self.keys) - gone

    def pass_on(self, gone: Set[str] = frozenset()) -> bool:
        """Asks others, if there are any, where those who were asked did not answer; whether there are."""
        return False

    def shown(self) -> Mapping[str, str]:
        """Uploads that those who are asked may fetch to open the sum: content hash in hex to uploader. Masked: none."""
        return {}

    @property
    def openable(self) -> bool:
        """Whether every secret that is needed has `threshold` shares; a culprit among the dealers may need more."""
        current = self.current
        if self.attempt.sparse is None and len(current.opened) < self.attempt.threshold:
            return False
        return self.phase is AggregatorPhase.OPENINGS and not current.lacking

    def unmask(self) -> tuple[PartOpening, ...]:
        """Which keystreams to take off which uploads, part by part, for every part that may be opened.

        Raises:
            BadShareError: a secret's shares do not give it back; its dealer is named.
            TooFewMembersError: fewer than `threshold` shares of a secret were opened so far.
        """
        if self.phase is not AggregatorPhase.OPENINGS:
            raise OutOfPhaseError(f"nothing can be unmasked in phase {self.phase.value!r}.")
        current = self.current
        graph = self._graph()
        by_part: dict[str, dict[str, dict[int, bytes]]] = {part.name: {} for part in current.parts}
        for sender, opening in current.opened.items():
            for share in opening.shares:
                if share.part in by_part:
                    x = graph.shareholders(share.victim)[sender]
                    by_part[share.part].setdefault(share.victim, {})[x] = share.share
        return tuple(
            open_part(
                self.attempt,
                current.name,
                current.transcript,
                part,
                self.cohort,
                current.alive,
                self._key_messages,
                graph,
                by_part[part.name],
            )
            for part in current.parts
        )

    def close_sum(self) -> None:
        """Ends the current sum and turns to the next, if there is one."""
        after = self._after(AggregatorStep.CLOSE_SUM)
        done = self.current
        self.finished[done.name] = done
        order = [s.name for s in self.attempt.sums]
        following = order.index(done.name) + 1
        if following == len(order):
            self.phase = AggregatorPhase.DONE
            return
        self.current, self.phase = SumState(order[following]), after

    def _graph(self) -> Graph:
        if self.graph is None:
            raise OutOfPhaseError(f"there is no mask graph yet in phase {self.phase.value!r}.")
        return self.graph

    def _after(self, step: AggregatorStep) -> AggregatorPhase:
        after = AGGREGATOR.get((self.phase, step))
        if after is None:
            raise OutOfPhaseError(
                f"cannot {step.value} in phase {self.phase.value!r}.",
                remedy="The attempt has moved on; ask for the next directive.",
            )
        return after
