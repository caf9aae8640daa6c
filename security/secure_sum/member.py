"""The institution's side of the secure sum. Every rule is enforced here, by refusing to sign or to open.

Sans-I/O: each step takes relayed messages and returns what to send. A step that raises has changed nothing; a step
repeated with the same input returns the same bytes. Keys, seeds and shares live in this object only: a restarted
node has none, so it can never mask a second vector under them (rule 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.errors import ProtocolError
from security.privacy.randomness import Randomness
from security.secure_sum import derive, shares
from security.secure_sum.cohorts import check_no_differencing
from security.secure_sum.errors import (
    BadShareError,
    BelowFloorError,
    ContradictoryListError,
    MalformedMessageError,
    MemberMisuseError,
    TamperedKeysError,
    TranscriptError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.keys import (
    agree,
    mask_private_key,
    pair_mask_key,
    pair_sign,
    part_key,
    seed_commitment,
    self_mask_key,
    share_commitment,
    share_info,
)
from security.secure_sum.masks import Masker, SignedKey
from security.secure_sum.messages import (
    KeyMessage,
    OpenedShare,
    Opening,
    PartKey,
    SealedShare,
    ShareKind,
    ShareMessage,
    Signed,
    SurvivorList,
    UploadHeader,
)
from security.secure_sum.phases import MEMBER, MemberPhase, MemberStep
from security.secure_sum.signatures import check_signatures
from security.secure_sum.spec import Attempt, Part
from security.secure_sum.upload import MaskedUpload, Segment, Upload, WordSource
from security.secure_sum.verify import (
    check_context,
    check_distinct_keys,
    check_keys,
    check_members,
    check_uploads,
    keys_digest,
    open_signed,
    sha256,
)
from security.signing import IdentityKey

PartId = tuple[str, str]
"""(sum, part)."""

Fetch = Callable[[str], "bytes | bytearray"]
"""Content by its hash (BLAKE3) in hex, checked."""


def nothing_to_fetch(digest: str) -> bytes:
    """Where no sum is encrypted."""
    raise MemberMisuseError("an encrypted sum is opened with the uploads that its list names.")


_NONCE = bytes(12)  # every AEAD key seals one box only


@dataclass(frozen=True, repr=False)
class _PartSecrets:
    """What one part of one sum hangs on: never used for another (rule 4)."""

    seed: bytes
    mask_secret: bytes
    mask_key: X25519PrivateKey


@dataclass(frozen=True, repr=False)
class _HeldShares:
    seed: bytes
    mask_key: bytes


@dataclass(repr=False)
class CurrentSum:
    """The sum that is being made."""

    name: str
    transcript: bytes
    upload: Upload | None = None
    signed_payload: bytes | None = None
    signed: Signed | None = None
    opening: Signed | None = None


@dataclass(repr=False)
class _Secrets:
    """Everything that is destroyed with the attempt."""

    share_key: X25519PrivateKey
    parts: Mapping[PartId, _PartSecrets]
    held: dict[tuple[str, PartId], _HeldShares] = field(default_factory=dict)


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
        self._identity = identity
        self._randomness = randomness
        self._secrets: _Secrets | None = None
        self._own_keys: Signed | None = None
        self._keys: dict[str, KeyMessage] = {}
        self._keys_digest = b""
        self._dealt: dict[str, Signed] = {}
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
        parts: dict[PartId, _PartSecrets] = {}
        for sum_name, part in self.attempt.keyed_parts(self.name) if self.attempt.masked else ():
            mask_secret = self._randomness.bytes(shares.SECRET_BYTES)
            key = mask_private_key(self.attempt, sum_name, part.name, self.name, mask_secret)
            parts[sum_name, part.name] = _PartSecrets(self._randomness.bytes(shares.SECRET_BYTES), mask_secret, key)
        secrets = _Secrets(X25519PrivateKey.from_private_bytes(self._randomness.bytes(32)), parts)
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
        )
        self._own_keys = self._sign(derive.TAG_KEYS, message.encode())
        self._secrets, self.phase = secrets, after
        return self._own_keys

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
        if self._dealt and keys_digest({s.signer: s for s in relayed}) == self._keys_digest:
            return self._dealt
        after = self._after(MemberStep.DEAL)
        signed = {s.signer: s for s in relayed}
        if len(signed) != len(relayed):
            raise TamperedKeysError("the relayed key messages name one institution twice.")
        if self._own_keys is None or signed.get(self.name) != self._own_keys:
            raise TamperedKeysError(
                "the relayed key messages do not hold this institution's own as it was sent.",
                remedy="The coordinator swapped or lost a key; do not go on with it.",
            )
        keys: dict[str, KeyMessage] = {}
        for name, envelope in signed.items():
            keys[name] = open_signed(self.attempt, envelope, derive.TAG_KEYS, KeyMessage.decode)
            check_keys(self.attempt, keys[name])
        check_distinct_keys(keys)
        check_members(self.attempt, keys, "sent keys")
        digest = keys_digest(signed)
        dealt, own = self._deal_to(keys, digest)
        assert self._secrets is not None
        self._secrets.held.update(own)
        self._keys, self._keys_digest, self._dealt, self.phase = keys, digest, dealt, after
        return dealt

    def _deal_to(
        self, keys: Mapping[str, KeyMessage], digest: bytes
    ) -> tuple[dict[str, Signed], dict[tuple[str, PartId], _HeldShares]]:
        assert self._secrets is not None
        position = {name: x for x, name in enumerate(self.attempt.roster)}
        n, t = len(position), self.attempt.threshold
        split = {
            part: (shares.split(s.seed, t, n), shares.split(s.mask_secret, t, n))
            for part, s in self._secrets.parts.items()
        }
        dealt: dict[str, Signed] = {}
        held: dict[tuple[str, PartId], _HeldShares] = {}
        for receiver in keys:
            x = position[receiver]
            if receiver == self.name:
                held |= {(self.name, part): _HeldShares(seeds[x], keys_[x]) for part, (seeds, keys_) in split.items()}
                continue
            shared = agree(self._secrets.share_key, keys[receiver].share_key, receiver)
            sealed: list[SealedShare] = []
            for (sum_name, part), (seeds, mask_keys) in split.items():
                info = share_info(self.attempt, sum_name, part, self.name, receiver, digest)
                box = AESGCM(derive.derive_key(shared, info)).encrypt(_NONCE, seeds[x] + mask_keys[x], info)
                sealed.append(
                    SealedShare(
                        sum_name,
                        part,
                        box,
                        share_commitment(self.attempt, "seed", sum_name, part, self.name, receiver, seeds[x]),
                        share_commitment(self.attempt, "mask-key", sum_name, part, self.name, receiver, mask_keys[x]),
                    )
                )
            message = ShareMessage(self.attempt.context, self.name, receiver, digest, tuple(sealed))
            dealt[receiver] = self._sign(derive.TAG_SHARES, message.encode())
        return dealt, held

    def accept(self, cohort: Sequence[str], relayed: Sequence[Signed], encryption_key: Signed | None = None) -> None:
        """Takes the shares that the cohort dealt to this institution. The cohort is fixed from here on.

        A share that does not open or does not match its commitment is no reason to stop, `threshold` others hold the
        rest: its dealer is named in `complaints` and nothing of it will be opened here.

        Args:
            cohort: who dealt to everybody, by the coordinator's word; it goes into every mask and every signed list.
            relayed: one share message from each of them, this institution excepted.
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
        if not members <= set(self._keys):
            raise UnknownMemberError("the cohort has institutions whose keys were never shown.")
        check_members(self.attempt, members, "dealt shares")
        senders = [s.signer for s in relayed]
        if sorted(senders) != sorted(members - {self.name}):
            raise UnknownMemberError("the relayed shares are not one message from each other member of the cohort.")
        held: dict[tuple[str, PartId], _HeldShares] = {}
        complaints: list[ProtocolError] = []
        for envelope in relayed:
            message = open_signed(self.attempt, envelope, derive.TAG_SHARES, ShareMessage.decode)
            if message.receiver != self.name or message.keys_digest != self._keys_digest:
                raise WrongContextError(
                    f"shares of {message.sender!r} are for somebody else, or for other keys than were shown here.",
                    remedy="The coordinator showed institutions different keys.",
                    place=message.sender,
                )
            try:
                held |= self._unseal(message)
            except (BadShareError, MalformedMessageError) as error:
                complaints.append(error)
        assert self._secrets is not None
        self._secrets.held.update(held)
        self.complaints, self._cohort, self.phase = tuple(complaints), members, after

    def _unseal(self, message: ShareMessage) -> dict[tuple[str, PartId], _HeldShares]:
        assert self._secrets is not None
        dealer = message.sender
        expected = [(s, p.name) for s, p in self.attempt.keyed_parts(dealer)] if self.attempt.masked else []
        if [(s.sum, s.part) for s in message.shares] != expected:
            raise MalformedMessageError(f"{dealer!r} did not deal its parts in plan order.", culprits=(dealer,))
        shared = agree(self._secrets.share_key, self._keys[dealer].share_key, dealer)
        held: dict[tuple[str, PartId], _HeldShares] = {}
        for s in message.shares:
            info = share_info(self.attempt, s.sum, s.part, dealer, self.name, self._keys_digest)
            try:
                opened = AESGCM(derive.derive_key(shared, info)).decrypt(_NONCE, s.box, info)
            except InvalidTag:
                raise BadShareError(f"a share of {dealer!r} does not open.", culprits=(dealer,)) from None
            seed, mask_key = opened[: shares.SHARE_BYTES], opened[shares.SHARE_BYTES :]
            commitments = (
                share_commitment(self.attempt, "seed", s.sum, s.part, dealer, self.name, seed),
                share_commitment(self.attempt, "mask-key", s.sum, s.part, dealer, self.name, mask_key),
            )
            if commitments != (s.seed_share_commitment, s.key_share_commitment):
                raise BadShareError(f"a share of {dealer!r} is not what it committed to.", culprits=(dealer,))
            held[dealer, (s.sum, s.part)] = _HeldShares(seed, mask_key)
        return held

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
        for peer in sorted(part.contributors & self._cohort - {self.name}):
            public = part_key(self._keys[peer], current.name, part.name).public_key
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
            BelowFloorError: no part of it keeps `k_min` survivors (rule 9).
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
        opened = self._check_floors(current.name, alive)
        check_uploads(self.attempt, listed, self._cohort, alive - {self.name})
        signed = self._sign(derive.TAG_LIST, payload)
        for quantity, cohorts in opened.items():
            self._opened_cohorts.setdefault(quantity, []).extend(cohorts)
        current.signed_payload, current.signed, self.phase = payload, signed, after
        return signed

    def _check_list(self, payload: bytes, current: CurrentSum) -> SurvivorList:
        listed = SurvivorList.decode(payload)
        check_context(self.attempt, listed.context, "the coordinator")
        if listed.sum != current.name:
            raise WrongContextError("the survivor list is of another sum.")
        if listed.transcript != current.transcript:
            raise TranscriptError(
                "the survivor list is of institutions that were shown something else.",
                remedy="The coordinator shows different keys, cohorts or models to different institutions.",
            )
        names = listed.alive + listed.gone
        if len(set(names)) != len(names) or set(names) != self._cohort:
            raise ContradictoryListError(
                "the survivor list is not an exact partition of the cohort.",
                remedy="An institution is both alive and gone, missing or unknown: nothing will be opened.",
            )
        if bool(listed.hashes) != self.attempt.sum(current.name).encrypted:
            raise ContradictoryListError(
                "a survivor list names the hashes of uploads if and only if they are encrypted."
            )
        return listed

    def _check_floors(self, sum_name: str, alive: frozenset[str]) -> dict[str, list[frozenset[str]]]:
        parts = self.attempt.opened_parts(sum_name, self._cohort, alive)
        if not parts:
            raise BelowFloorError(
                f"no part of sum {sum_name!r} keeps {self.attempt.k_min} survivors.",
                remedy="Wait for a round with more institutions.",
            )
        opened: dict[str, list[frozenset[str]]] = {}
        for part in parts:
            opened.setdefault(part.quantity or f"{sum_name}/{part.name}", []).append(part.contributors & alive)
        for quantity, cohorts in opened.items():
            check_no_differencing(quantity, [*self._opened_cohorts.get(quantity, []), *cohorts], self.attempt.k_min)
        return opened

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
        check_signatures(self.attempt, current.signed_payload, signatures, frozenset(self._keys))
        listed = SurvivorList.decode(current.signed_payload)
        current.opening = self._make_opening(listed, sha256(current.signed_payload), fetch)
        self.phase = after
        return current.opening

    def _make_opening(self, listed: SurvivorList, list_digest: bytes, fetch: Fetch) -> Signed:
        alive = frozenset(listed.alive)
        opened: list[OpenedShare] = []
        for part in self.attempt.opened_parts(listed.sum, self._cohort, alive) if self.attempt.masked else ():
            for victim in sorted(part.contributors & self._cohort):
                held = self._held(victim, (listed.sum, part.name))
                if held is not None:
                    kind: ShareKind = "seed" if victim in alive else "mask-key"
                    share = held.seed if victim in alive else held.mask_key
                    opened.append(OpenedShare(victim, part.name, kind, share))
        message = Opening(self.attempt.context, listed.sum, self.name, list_digest, tuple(opened))
        return self._sign(derive.TAG_OPENING, message.encode())

    def _held(self, victim: str, part: PartId) -> _HeldShares | None:
        assert self._secrets is not None
        return self._secrets.held.get((victim, part))

    def withdraw(self) -> None:
        """Ends the attempt here: keys, seeds, shares and masks are forgotten (rule 7)."""
        self._secrets, self._own_keys, self._current = None, None, None
        self._keys, self._dealt = {}, {}
        self.phase = MemberPhase.CLOSED

    # -- inside -------------------------------------------------------------------------------------------------

    def _after(self, step: MemberStep) -> MemberPhase:
        after = MEMBER.get((self.phase, step))
        if after is None:
            raise MemberMisuseError(f"cannot {step.value} in phase {self.phase.value!r}.")
        return after

    def _sum(self) -> CurrentSum:
        if self._current is None:
            raise MemberMisuseError("no sum was entered.")
        return self._current

    def _sign(self, tag: str, payload: bytes) -> Signed:
        return Signed(self.name, payload, self._identity.sign(tag, payload))
