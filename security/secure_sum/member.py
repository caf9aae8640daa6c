"""The institution's side of the secure sum. Every rule is enforced here, by refusing to sign or to open.

Sans-I/O: each step takes relayed messages and returns what to send. A step that raises has changed nothing; a step
repeated with the same input returns the same bytes. Keys, seeds and shares live in this object only: a restarted
node has none, so it can never mask a second vector under them (rule 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.errors import ProtocolError
from security.privacy.randomness import Randomness
from security.secure_sum import derive
from security.secure_sum.complaints import Complaint
from security.secure_sum.errors import (
    BadShareError,
    ContradictoryListError,
    MalformedMessageError,
    MemberMisuseError,
    TranscriptError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.graph import Graph
from security.secure_sum.keys import (
    mask_private_key,
    pair_mask_key,
    pair_sign,
    part_key,
    seed_commitment,
    self_mask_key,
)
from security.secure_sum.lists import check_list, check_opened
from security.secure_sum.masks import Masker, SignedKey
from security.secure_sum.meeting import Meeting
from security.secure_sum.member_state import CurrentSum, Secrets
from security.secure_sum.messages import (
    KeyMessage,
    OpenedShare,
    Opening,
    PartKey,
    ShareKind,
    ShareMessage,
    Signed,
    SurvivorList,
    UploadHeader,
)
from security.secure_sum.phases import MEMBER, MemberPhase, MemberStep
from security.secure_sum.reveals import REVEAL_BYTES, agreed_digest, reveal_commitment
from security.secure_sum.sealing import HeldShares, PartId, PartSecrets, deal_shares, open_boxes
from security.secure_sum.shares import SECRET_BYTES
from security.secure_sum.signatures import check_signatures
from security.secure_sum.spec import Attempt, Part
from security.secure_sum.upload import MaskedUpload, Segment, Upload, WordSource
from security.secure_sum.verify import (
    check_members,
    check_signed,
    check_uploads,
    open_message,
    sha256,
)
from security.signing import IdentityKey

Fetch = Callable[[str, int], "bytes | bytearray"]
"""Content by its hash (BLAKE3) in hex, checked; and the most bytes that it may have."""


def nothing_to_fetch(digest: str, at_most: int) -> bytes:
    """Where no sum is encrypted."""
    raise MemberMisuseError("an encrypted sum is opened with the uploads that its list names.")


class Member:
    """One institution in one attempt.

    Args:
        attempt: from the plan, never from a relayed message.
        name: this institution.
        identity: its certified key.
        randomness: where keys and seeds come from.
    """

    def __init__(self, attempt: Attempt, name: str, identity: IdentityKey, randomness: Randomness) -> None:
        if attempt.roster.get(name) != identity.public:
            raise MemberMisuseError(f"{name!r} with this key is not in the plan's roster.")
        self.attempt = attempt
        self.name = name
        self.phase = MemberPhase.NEW
        self.complaints: tuple[ProtocolError, ...] = ()
        self.complaint: Signed | None = None  # about the same, for the coordinator
        self._identity = identity
        self._randomness = randomness
        self._secrets: Secrets | None = None
        self._own_keys: Signed | None = None
        self._meeting: Meeting | None = None
        self._dealt: Mapping[str, Signed] = {}
        self._cohort: frozenset[str] = frozenset()
        self._current: CurrentSum | None = None
        self._opened_cohorts: dict[str, list[frozenset[str]]] = {}
        self.encryption_key: Signed | None = None  # what this institution deals beside its shares; masks need nothing

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.phase.value}, secrets omitted)"

    # -- phase 1: keys ------------------------------------------------------------------------------------------

    def make_keys(self) -> Signed:
        """Fresh keys and seeds for every sum and part (rule 4). Returns the key message."""
        if self._own_keys is not None and self.phase is not MemberPhase.CLOSED:
            return self._own_keys
        after = self._after(MemberStep.MAKE_KEYS)
        parts: dict[PartId, PartSecrets] = {}
        for sum_name, part in self.attempt.keyed_parts(self.name) if self.attempt.masked else ():
            mask_secret = self._randomness.bytes(SECRET_BYTES)
            key = mask_private_key(self.attempt, sum_name, part.name, self.name, mask_secret)
            parts[sum_name, part.name] = PartSecrets(self._randomness.bytes(SECRET_BYTES), mask_secret, key)
        share_key = X25519PrivateKey.from_private_bytes(self._randomness.bytes(32))
        reveal = self._randomness.bytes(REVEAL_BYTES) if self._draws else b""
        secrets = Secrets(share_key, parts, reveal)
        message = KeyMessage(
            context=self.attempt.context,
            sender=self.name,
            share_key=secrets.share_key.public_key().public_bytes_raw(),
            parts=tuple(
                PartKey(
                    sum_name,
                    part,
                    s.mask_key.public_key().public_bytes_raw(),
                    seed_commitment(self.attempt, sum_name, part, self.name, s.seed),
                )
                for (sum_name, part), s in parts.items()
            ),
            graph_commitment=reveal_commitment(self.attempt.context, self.name, reveal) if self._draws else b"",
        )
        self._own_keys = self._sign(derive.TAG_KEYS, message.encode())
        self._secrets, self.phase = secrets, after
        return self._own_keys

    # -- between: the graph, where it is not complete -----------------------------------------------------------

    def reveal(self, relayed: Sequence[Signed]) -> bytes:
        """Looks at every relayed key message, and shows the value that ours committed to: no commitment can follow now.

        Raises:
            As `deal` does; but signatures are checked by `deal_around`, those that matter.
        """
        if not self._draws:
            raise MemberMisuseError("the mask graph of this attempt is complete: there is nothing to reveal.")
        if self._meeting is None or not self._meeting.is_of(relayed):
            after = self._after(MemberStep.REVEAL)
            self._meeting, self.phase = Meeting.of(self.attempt, self._own_keys, relayed), after
        assert self._secrets is not None
        return self._secrets.reveal

    # -- phase 2: shares ----------------------------------------------------------------------------------------

    def deal(self, relayed: Sequence[Signed]) -> Mapping[str, Signed]:
        """Checks every relayed key message and deals shares of this institution's secrets to all their senders.

        Args:
            relayed: the key messages of the attempt, this institution's own among them.

        Returns:
            Share messages by receiver, this institution excepted.

        Raises:
            TamperedKeysError: ours is missing or changed, somebody's comes twice, or two show one key.
            BadSignatureError, WrongContextError, UnknownMemberError, MalformedMessageError: as they say.
            TooFewMembersError: fewer than `threshold`.
        """
        if self._dealt and self._meeting is not None and self._meeting.is_of(relayed):
            return self._dealt
        after = self._after(MemberStep.DEAL)
        if self._draws:
            raise MemberMisuseError("the mask graph of this attempt is drawn: values are revealed first.")
        return self._deal(Meeting.of(self.attempt, self._own_keys, relayed), after)

    def deal_around(self, reveals: Mapping[str, bytes]) -> Mapping[str, Signed]:
        """Draws the graph of all revealed values, and deals shares of this institution's secrets to its neighbours.

        Args:
            reveals: the values of the attempt by institution, this one's own among them.

        Returns:
            Share messages by receiver.

        Raises:
            RevealError, BadSignatureError, UnknownMemberError, TooFewMembersError: see `Meeting.drawn`.
        """
        meeting = self._meeting
        if self._dealt and meeting is not None and meeting.agreed == agreed_digest(meeting.keys_digest, reveals):
            return self._dealt
        after = self._after(MemberStep.DEAL)
        if meeting is None:
            raise MemberMisuseError("nothing was revealed yet.")
        return self._deal(meeting.drawn(self.name, reveals), after)

    def _deal(self, meeting: Meeting, after: MemberPhase) -> Mapping[str, Signed]:
        secrets, graph = self._secrets, meeting.graph
        assert secrets is not None
        assert graph is not None
        messages, own = deal_shares(
            self.attempt, self.name, secrets.share_key, secrets.parts, meeting.keys, graph, meeting.agreed
        )
        dealt = {m.receiver: self._sign(derive.TAG_SHARES, m.encode()) for m in messages}
        secrets.held.update(own)
        self._meeting, self._dealt, self.phase = meeting, dealt, after
        return dealt

    def accept(self, cohort: Sequence[str], relayed: Sequence[Signed], encryption_key: Signed | None = None) -> None:
        """Takes the shares that the cohort dealt to this institution. The cohort is fixed from here on.

        A share that does not open or does not match its commitment is no reason to stop, `threshold` others hold the
        rest: its dealer is named in `complaints`, and to the coordinator in `complaint`; nothing of it is opened here.

        Args:
            cohort: who dealt to all its shareholders, by the coordinator's word; it goes into every mask and every
                signed list.
            relayed: one share message from each of them that has this institution for a shareholder.
            encryption_key: where a sum is encrypted (`security.ckks`).

        Raises:
            UnknownMemberError: the cohort has members without keys, or the messages are not exactly theirs.
            WrongContextError: a message to somebody else, or made for other key messages.
            TooFewMembersError: fewer than `threshold` in the cohort.
        """
        members = frozenset(cohort)
        if self.phase is MemberPhase.ACCEPTED and members == self._cohort:
            return
        after = self._after(MemberStep.ACCEPT)
        meeting, graph = self._met()
        if not members <= graph.members:
            raise UnknownMemberError("the cohort has institutions whose keys were never shown.")
        check_members(self.attempt, members, "dealt shares")
        senders = [s.signer for s in relayed]
        if sorted(senders) != sorted(members & self._dealers()):
            raise UnknownMemberError("the relayed shares are not one message from each dealer of the cohort.")
        assert self._secrets is not None
        held: dict[tuple[str, PartId], HeldShares] = {}
        complaints: list[ProtocolError] = []
        refused: list[Signed] = []
        for envelope in relayed:
            # A share that opens is its dealer's: nobody else has the key of its box. Signatures are for the others.
            message = open_message(self.attempt, envelope, ShareMessage.decode)
            if message.receiver != self.name or message.keys_digest != meeting.agreed:
                raise WrongContextError(
                    f"shares of {message.sender!r} are for somebody else, or for other keys than were shown here.",
                    remedy="The coordinator showed institutions different keys.",
                    place=message.sender,
                )
            try:
                share_key = self._secrets.share_key
                held |= open_boxes(self.attempt, self.name, share_key, meeting.keys[message.sender].share_key, message)
            except (BadShareError, MalformedMessageError) as error:
                check_signed(self.attempt, envelope, derive.TAG_SHARES)  # nobody is named without proof
                complaints.append(error)
                refused.append(envelope)
        if refused:
            about = Complaint.about(self.attempt.context, self.name, refused)
            self.complaint = self._sign(derive.TAG_COMPLAINT, about.encode())
        self._secrets.held.update(held)
        self.complaints, self._cohort, self.phase = tuple(complaints), members, after

    # -- phases 3 to 5, once per sum ----------------------------------------------------------------------------

    @property
    def cohort(self) -> frozenset[str]:
        """Who dealt shares in this attempt; empty before `accept`."""
        return self._cohort

    def enter(self, sum_name: str, consumed: bytes) -> None:
        """Turns to a sum. An earlier one can never be entered again; the same one only with the same transcript.

        Args:
            sum_name: one of the attempt's sums.
            consumed: digest of whatever this sum's values are computed from beyond the round's opening (rule 6).

        Raises:
            MemberMisuseError: the sum is unknown or lies behind.
            TranscriptError: it was entered before with another transcript.
        """
        order = [s.name for s in self.attempt.sums]
        if sum_name not in order:
            raise MemberMisuseError(f"the attempt has no sum {sum_name!r}.")
        transcript = self._transcript(sum_name, consumed)
        if self._current is not None and self._current.name == sum_name:
            if self._current.transcript != transcript:
                raise TranscriptError(
                    f"sum {sum_name!r} was entered with another transcript.",
                    remedy="The coordinator now shows something else than before: do not go on with it.",
                )
            return
        after = self._after(MemberStep.ENTER)
        if self._current is not None and order.index(sum_name) <= order.index(self._current.name):
            raise MemberMisuseError(f"sum {sum_name!r} lies behind {self._current.name!r}.")
        self._current, self.phase = CurrentSum(sum_name, transcript), after

    def _transcript(self, sum_name: str, consumed: bytes) -> bytes:
        return derive.transcript(self.attempt.context, self._keys_digest, self._cohort, sum_name, consumed)

    @property
    def uploads(self) -> tuple[Part, ...]:
        """The parts of the current sum that this institution uploads, in order; empty: nothing to upload."""
        if self.name not in self._cohort:
            return ()
        return self.attempt.uploaded_parts(self._sum().name, self._cohort, self.name)

    def mask(self, sources: Mapping[str, WordSource]) -> Upload:
        """The upload of the current sum. Asked again, the same upload: one vector under one mask (rule 8).

        Args:
            sources: exactly the parts of `uploads`, encoded.

        Raises:
            MemberMisuseError: other parts, or nothing to upload.
        """
        current = self._sum()
        if current.upload is not None:
            return current.upload
        after = self._after(MemberStep.MASK)
        parts = self.uploads
        if not parts or set(sources) != {p.name for p in parts}:
            raise MemberMisuseError("an upload has exactly the parts that this institution uploads.")
        current.upload = self._make_upload(current, parts, sources)
        self.phase = after
        return current.upload

    def _make_upload(self, current: CurrentSum, parts: Sequence[Part], sources: Mapping[str, WordSource]) -> Upload:
        segments = [Segment(p, sources[p.name], Masker(self._mask_keys(current, p))) for p in parts]
        return MaskedUpload(self._announce(current, sum(p.bytes for p in parts)), segments)

    def _announce(self, current: CurrentSum, length: int, content_hash: bytes = b"") -> Signed:
        header = UploadHeader(self.attempt.context, current.name, self.name, current.transcript, length, content_hash)
        return self._sign(derive.TAG_UPLOAD, header.encode())

    def _mask_keys(self, current: CurrentSum, part: Part) -> list[SignedKey]:
        if not self.attempt.masked:
            return []
        assert self._secrets is not None
        secrets = self._secrets.parts[current.name, part.name]
        where = (self.attempt, current.name, part.name, self.name)
        keys = [SignedKey(1, self_mask_key(*where, secrets.seed, current.transcript))]
        meeting, graph = self._met()
        peers = graph.circle(part.contributors & self._cohort).neighbours(self.name)
        meeting.check(peers)
        for peer in sorted(peers):
            public = part_key(meeting.keys[peer], current.name, part.name).public_key
            key = pair_mask_key(*where, secrets.mask_key, peer, public, current.transcript)
            keys.append(SignedKey(pair_sign(self.name, peer), key))
        return keys

    def sign(self, payload: bytes) -> Signed:
        """Signs the coordinator's survivor list, if it may be opened. One list per sum, ever.

        The caller makes the high-water mark durable before the signature leaves (rule 7).

        Args:
            payload: the list's exact bytes.

        Raises:
            ContradictoryListError: not an exact partition of the cohort, or a second list (rule 5).
            TranscriptError: the list's transcript is not this institution's (rule 6).
            BelowFloorError: no part of it keeps `k_min` survivors (rule 9) whose masks hold them together (rule 10).
            DifferencingError: beside lists signed before in this round it would open too much (rule 9).
            UnprovenUploadError: somebody listed as alive did not upload for this transcript (rule 6).
        """
        current = self._sum()
        if current.signed is not None:
            if current.signed_payload == payload:
                return current.signed
            raise ContradictoryListError(
                f"a second survivor list for sum {current.name!r} was shown after the first was signed.",
                remedy="The coordinator shows two lists: report it to the federation.",
            )
        after = self._after(MemberStep.SIGN)
        listed = self._check_list(payload, current)
        alive = frozenset(listed.alive)
        if self.name in alive and current.upload is None:
            raise ContradictoryListError("the list says that this institution is alive, but it sent nothing.")
        opened = check_opened(
            self.attempt, current.name, self.opened_parts(current.name, alive), alive, self._opened_cohorts
        )
        check_uploads(self.attempt, listed, self._cohort, alive & self._dealers())
        signed = self._sign(derive.TAG_LIST, payload)
        for quantity, cohorts in opened.items():
            self._opened_cohorts.setdefault(quantity, []).extend(cohorts)
        current.signed_payload, current.signed, self.phase = payload, signed, after
        return signed

    def _check_list(self, payload: bytes, current: CurrentSum) -> SurvivorList:
        return check_list(self.attempt, payload, current.name, current.transcript, self._cohort)

    def open(self, signatures: Sequence[Signed], fetch: Fetch = nothing_to_fetch) -> Signed:
        """Opens this institution's shares for the list that it signed, once `threshold` others signed it identically.

        For one victim and one part either the share of the seed (alive) or of the mask key (gone), never both; nothing
        of parts that fell below the floor, so they stay shut (rules 5, 9, 10).

        Args:
            signatures: of the list, by shareholders; ours may be among them.
            fetch: where the sum is encrypted (`security.ckks`): the uploads that the list names, by their hash.

        Raises:
            MissingSignaturesError: fewer than `threshold` valid ones; those missing are named.
            EquivocationError: one shareholder signed two lists; the error holds both.
        """
        current = self._sum()
        if current.opening is not None:
            return current.opening
        after = self._after(MemberStep.OPEN)
        assert current.signed_payload is not None
        check_signatures(self.attempt, current.signed_payload, signatures, self._met()[1].members)
        listed = SurvivorList.decode(current.signed_payload)
        current.opening = self._make_opening(listed, sha256(current.signed_payload), fetch)
        self.phase = after
        return current.opening

    def _make_opening(self, listed: SurvivorList, list_digest: bytes, fetch: Fetch) -> Signed:
        alive = frozenset(listed.alive)
        opened: list[OpenedShare] = []
        for part in self.opened_parts(listed.sum, alive) if self.attempt.masked else ():
            for victim in sorted(part.contributors & self._cohort & (self._dealers() | {self.name})):
                held = self._held(victim, (listed.sum, part.name))
                if held is not None:
                    kind: ShareKind = "seed" if victim in alive else "mask-key"
                    share = held.seed if victim in alive else held.mask_key
                    opened.append(OpenedShare(victim, part.name, kind, share))
        message = Opening(self.attempt.context, listed.sum, self.name, list_digest, tuple(opened))
        return self._sign(derive.TAG_OPENING, message.encode())

    def _held(self, victim: str, part: PartId) -> HeldShares | None:
        assert self._secrets is not None
        return self._secrets.held.get((victim, part))

    def withdraw(self) -> None:
        """Ends the attempt here: keys, seeds, shares and masks are forgotten (rule 7)."""
        self._secrets, self._own_keys, self._current = None, None, None
        self._meeting, self._dealt = None, {}
        self.phase = MemberPhase.CLOSED

    def opened_parts(self, sum_name: str, alive: frozenset[str]) -> tuple[Part, ...]:
        """The parts of a sum that may be opened over these survivors; see `Attempt.opened_parts`."""
        return self.attempt.opened_parts(sum_name, self._cohort, alive, self._met()[1])

    # -- inside -------------------------------------------------------------------------------------------------

    def _after(self, step: MemberStep) -> MemberPhase:
        after = MEMBER.get((self.phase, step))
        if after is None:
            raise MemberMisuseError(f"cannot {step.value} in phase {self.phase.value!r}.")
        return after

    @property
    def _draws(self) -> bool:
        return self.attempt.sparse is not None

    @property
    def _keys(self) -> Mapping[str, KeyMessage]:
        return {} if self._meeting is None else self._meeting.keys

    @property
    def _keys_digest(self) -> bytes:
        """Of everything that was agreed before the shares."""
        return b"" if self._meeting is None else self._meeting.agreed

    def _met(self) -> tuple[Meeting, Graph]:
        if self._meeting is None or self._meeting.graph is None:
            raise MemberMisuseError("no shares were dealt: there is no mask graph yet.")
        return self._meeting, self._meeting.graph

    def _dealers(self) -> frozenset[str]:
        """Of whom this institution is a shareholder, itself left out: ties are mutual."""
        return frozenset(self._met()[1].shareholders(self.name)) - {self.name}

    def _sum(self) -> CurrentSum:
        if self._current is None:
            raise MemberMisuseError("no sum was entered.")
        return self._current

    def _sign(self, tag: str, payload: bytes) -> Signed:
        return Signed(self.name, payload, self._identity.sign(tag, payload))
