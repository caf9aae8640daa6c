"""Every transition of the two machines, in two tables. Whatever is not here is refused and changes nothing."""

from __future__ import annotations

from enum import Enum
from typing import Final


class MemberPhase(Enum):
    """Where an institution stands in an attempt. `READY` to `OPENED` repeat for each sum."""

    NEW = "new"
    KEYED = "keyed"
    REVEALED = "revealed"
    DEALT = "dealt"
    ACCEPTED = "accepted"
    READY = "ready"
    MASKED = "masked"
    SIGNED = "signed"
    OPENED = "opened"
    CLOSED = "closed"


class MemberStep(Enum):
    """What an institution does."""

    MAKE_KEYS = "make keys"
    REVEAL = "reveal"
    DEAL = "deal shares"
    ACCEPT = "accept shares"
    ENTER = "enter a sum"
    MASK = "mask"
    SIGN = "sign the survivor list"
    OPEN = "open shares"
    WITHDRAW = "withdraw"


_P, _S = MemberPhase, MemberStep

MEMBER: Final[dict[tuple[MemberPhase, MemberStep], MemberPhase]] = {
    (_P.NEW, _S.MAKE_KEYS): _P.KEYED,
    (_P.KEYED, _S.DEAL): _P.DEALT,  # where the mask graph is complete
    (_P.KEYED, _S.REVEAL): _P.REVEALED,  # where it is drawn
    (_P.REVEALED, _S.DEAL): _P.DEALT,
    (_P.DEALT, _S.ACCEPT): _P.ACCEPTED,
    (_P.ACCEPTED, _S.ENTER): _P.READY,
    (_P.READY, _S.MASK): _P.MASKED,
    (_P.READY, _S.SIGN): _P.SIGNED,  # a shareholder with nothing to upload, or one that was too late
    (_P.MASKED, _S.SIGN): _P.SIGNED,
    (_P.SIGNED, _S.OPEN): _P.OPENED,
    # The others may have gone on without us: a later sum can be entered from anywhere, an earlier one never again.
    (_P.READY, _S.ENTER): _P.READY,
    (_P.MASKED, _S.ENTER): _P.READY,
    (_P.SIGNED, _S.ENTER): _P.READY,
    (_P.OPENED, _S.ENTER): _P.READY,
} | {(phase, _S.WITHDRAW): _P.CLOSED for phase in MemberPhase}


class AggregatorPhase(Enum):
    """Where the coordinator stands in an attempt. `UPLOADS` to `OPENINGS` repeat for each sum."""

    KEYS = "keys"
    REVEALS = "reveals"
    SHARES = "shares"
    UPLOADS = "uploads"
    SIGNATURES = "signatures"
    OPENINGS = "openings"
    DONE = "done"


BEFORE_SUMS: Final = frozenset({AggregatorPhase.KEYS, AggregatorPhase.REVEALS, AggregatorPhase.SHARES})
"""Phases that an attempt has once, before its sums."""


class AggregatorStep(Enum):
    """What the coordinator takes or does."""

    TAKE_KEYS = "take a key message"
    CLOSE_KEYS = "close the keys"
    ASK_REVEALS = "close the commitments"
    TAKE_REVEAL = "take a revealed value"
    CLOSE_REVEALS = "close the reveals"
    TAKE_SHARES = "take shares"
    CLOSE_SHARES = "close the shares"
    TAKE_UPLOAD = "take an upload"
    CLOSE_UPLOADS = "close the uploads"
    TAKE_SIGNATURE = "take a signature"
    DECIDE = "hold the list as signed"
    TAKE_OPENING = "take an opening"
    CLOSE_SUM = "close the sum"


_A, _T = AggregatorPhase, AggregatorStep

AGGREGATOR: Final[dict[tuple[AggregatorPhase, AggregatorStep], AggregatorPhase]] = {
    (_A.KEYS, _T.TAKE_KEYS): _A.KEYS,
    (_A.KEYS, _T.CLOSE_KEYS): _A.SHARES,  # where the mask graph is complete
    (_A.KEYS, _T.ASK_REVEALS): _A.REVEALS,  # where it is drawn
    (_A.REVEALS, _T.TAKE_REVEAL): _A.REVEALS,
    (_A.REVEALS, _T.CLOSE_REVEALS): _A.SHARES,
    (_A.SHARES, _T.TAKE_SHARES): _A.SHARES,
    (_A.SHARES, _T.CLOSE_SHARES): _A.UPLOADS,
    (_A.UPLOADS, _T.TAKE_UPLOAD): _A.UPLOADS,
    (_A.UPLOADS, _T.CLOSE_UPLOADS): _A.SIGNATURES,
    (_A.SIGNATURES, _T.TAKE_SIGNATURE): _A.SIGNATURES,
    (_A.SIGNATURES, _T.DECIDE): _A.OPENINGS,
    (_A.OPENINGS, _T.TAKE_SIGNATURE): _A.OPENINGS,
    (_A.OPENINGS, _T.TAKE_OPENING): _A.OPENINGS,
    (_A.OPENINGS, _T.CLOSE_SUM): _A.UPLOADS,  # DONE after the last sum
}
