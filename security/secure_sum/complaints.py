"""Complaints of shareholders about sealed shares that do not open or do not match, and whom they convict.

Who lies, dealer or complainer, nobody else can see: to show it, the complainer would have to give away the key of its
boxes, and with it its shares of everybody's secrets. So complaints are counted, over the whole run. At most
`max_colluders` institutions lie; of a dealer and who complains of it one does. Whoever stands in such pairs with more
than `max_colluders` different institutions is therefore the liar in all of them, and nobody else is convicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consilium.v1 import secure_sum_pb2 as pb

from security.secure_sum import derive
from security.secure_sum.errors import MalformedMessageError, UnknownMemberError, WrongContextError
from security.secure_sum.messages import (
    Signed,
    context_from_proto,
    context_to_proto,
    parse,
    require,
    require_lengths,
)
from security.secure_sum.signatures import equivocation
from security.secure_sum.spec import Attempt, Context
from security.secure_sum.verify import open_signed

BAD_SHARES = "bad-shares"
"""Code of a dealer that more institutions complain of than may lie."""
FALSE_COMPLAINTS = "false-complaints"
"""Code of an institution that complains of more dealers than may lie."""


@dataclass(frozen=True)
class Complaint:
    """What one shareholder cannot open, once per attempt.

    Attributes:
        context: of the attempt (rule 7).
        sender: the shareholder.
        refused: dealer to the SHA-256 of its share message's payload, 32 bytes; at least one.
    """

    context: Context
    sender: str
    refused: Mapping[str, bytes]

    def __post_init__(self) -> None:
        require(bool(self.refused), "a complaint is about somebody")
        require_lengths(32, "a digest", *self.refused.values())

    @staticmethod
    def about(context: Context, sender: str, messages: Iterable[Signed]) -> Complaint:
        """The complaint about these share messages."""
        return Complaint(context, sender, {m.signer: m.digest for m in messages})

    def encode(self) -> bytes:
        """The payload to sign."""
        refused = [pb.RefusedShares(dealer=d, digest=digest) for d, digest in sorted(self.refused.items())]
        return pb.Complaint(
            context=context_to_proto(self.context), sender=self.sender, refused=refused
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> Complaint:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.Complaint(), payload)
        refused = {r.dealer: r.digest for r in m.refused}
        require(len(refused) == len(m.refused), "a complaint names a dealer twice")
        return Complaint(context_from_proto(m.context), m.sender, refused)


def check_complaint(
    attempt: Attempt, signed: Signed, relayed: Mapping[str, Mapping[str, Signed]], known: Signed | None
) -> Complaint:
    """The complaint in a signed envelope, if it is about shares of this attempt that were relayed to its signer.

    Args:
        attempt: the attempt.
        signed: the complaint.
        relayed: share messages of the cohort, by dealer and receiver.
        known: the signer's complaint of this attempt, if there was one.

    Raises:
        WrongContextError: it belongs to another attempt, or is about another message than was relayed.
        UnknownMemberError: the signer is not in the roster, or nobody dealt to it.
        EquivocationError: its second complaint in this attempt, and a different one.
        BadSignatureError, MalformedMessageError: as they say.
    """
    complaint = open_signed(attempt, signed, derive.TAG_COMPLAINT, Complaint.decode)
    if known is not None and known.payload != signed.payload:
        raise equivocation(known, signed)
    if not any(signed.signer in messages for messages in relayed.values()):
        raise UnknownMemberError(f"{signed.signer!r} complains of shares, and nobody dealt it any.")
    for dealer, digest in complaint.refused.items():
        message = relayed.get(dealer, {}).get(signed.signer)
        if message is None:
            raise MalformedMessageError(
                f"{signed.signer!r} complains of {dealer!r}, who dealt it nothing.", culprits=(signed.signer,)
            )
        if message.digest != digest:
            raise WrongContextError(f"{signed.signer!r} complains of shares that were not relayed to it.")
    return complaint


def convicted(pairs: Iterable[tuple[str, str]], max_colluders: int) -> dict[str, str]:
    """Who lies, whoever else does: institution to code.

    Args:
        pairs: (complainer, dealer), of all attempts of a run.
        max_colluders: how many institutions lie at most.
    """
    left, found = set(pairs), dict[str, str]()
    while left:
        dealt, spoke = Counter(dealer for _, dealer in left), Counter(complainer for complainer, _ in left)
        partners = Counter(one for pair in {frozenset(pair) for pair in left} for one in pair)
        # Whoever most disagree with goes first, and its pairs accuse nobody else.
        worst = max(partners, key=lambda name: (partners[name], dealt[name], name))
        if partners[worst] <= max_colluders:
            break
        found[worst] = BAD_SHARES if dealt[worst] >= spoke[worst] else FALSE_COMPLAINTS
        left = {pair for pair in left if worst not in pair}
    return found
