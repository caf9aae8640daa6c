"""The coordinator's durable record of an attempt: every accepted input in order, replayed to restore it.

Replaying goes through the same checks as the first time, so a damaged record is refused, not believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final, TypeVar

from consilium.v1 import secure_sum_pb2 as pb
from google.protobuf.message import DecodeError

from security.errors import ConsiliumError
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.errors import MalformedMessageError, OutOfPhaseError
from security.secure_sum.messages import Signed
from security.secure_sum.phases import AggregatorPhase
from security.secure_sum.spec import Attempt

M = TypeVar("M", bound="JournalledAggregator")
_STEPS: Final = frozenset({"close_keys", "close_reveals", "close_shares", "close_uploads", "decide", "close_sum"})


class JournalledAggregator(Aggregator):
    """An aggregator that can write down what it accepted. Its steps are `Aggregator`'s."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._entries: list[pb.JournalEntry] = []
        self._noted: set[bytes] = set()

    def journal(self) -> bytes:
        """Everything accepted so far; `restore` makes the same machine of it."""
        return pb.AttemptJournal(entries=self._entries).SerializeToString(deterministic=True)

    def take_keys(self, signed: Signed) -> None:
        """See `Aggregator`."""
        repeated = signed.signer in self.keys
        super().take_keys(signed)
        if repeated:
            return
        self._note(pb.JournalEntry(keys=signed.to_proto()))

    def close_keys(self) -> None:
        """See `Aggregator`."""
        super().close_keys()
        self._note(pb.JournalEntry(close_keys=pb.CloseKeys()))

    def take_reveal(self, sender: str, value: bytes) -> None:
        """See `Aggregator`."""
        super().take_reveal(sender, value)
        self._note(pb.JournalEntry(reveal=pb.Reveal(sender=sender, value=value)))

    def close_reveals(self) -> None:
        """See `Aggregator`."""
        super().close_reveals()
        self._note(pb.JournalEntry(close_reveals=pb.CloseReveals()))

    def take_shares(self, sender: str, messages: Iterable[Signed], encryption_key: Signed | None = None) -> None:
        """See `Aggregator`."""
        envelopes = tuple(messages)
        repeated = sender in self.shares  # then nothing is new, or it is refused; only signatures could differ
        super().take_shares(sender, envelopes, encryption_key)
        if repeated:
            return
        dealt = pb.DealtShares(sender=sender, messages=[e.to_proto() for e in envelopes])
        if encryption_key is not None:
            dealt.encryption_key.CopyFrom(encryption_key.to_proto())
        self._note(pb.JournalEntry(shares=dealt))

    def close_shares(self) -> None:
        """See `Aggregator`."""
        super().close_shares()
        self._note(pb.JournalEntry(close_shares=pb.CloseShares()))

    def begin_sum(self, consumed: bytes) -> None:
        """See `Aggregator`."""
        super().begin_sum(consumed)
        self._note(pb.JournalEntry(begin_sum=pb.BeginSum(consumed=consumed)))

    def complete_upload(self, sender: str) -> None:
        """See `Aggregator`. The header is noted here: an upload that is not complete is not resumed by a restart."""
        super().complete_upload(sender)
        self._note(pb.JournalEntry(upload=self.current.headers[sender].to_proto()))

    def close_uploads(self) -> bytes:
        """See `Aggregator`."""
        payload = super().close_uploads()
        self._note(pb.JournalEntry(close_uploads=pb.CloseUploads()))
        return payload

    def take_signature(self, signed: Signed) -> None:
        """See `Aggregator`."""
        repeated = signed.signer in self.current.signatures
        super().take_signature(signed)
        if repeated:
            return
        self._note(pb.JournalEntry(signature=signed.to_proto()))

    def decide(self) -> None:
        """See `Aggregator`."""
        super().decide()
        self._note(pb.JournalEntry(decide=pb.Decide()))

    def take_opening(self, signed: Signed, gone: Set[str] = frozenset()) -> None:
        """See `Aggregator`."""
        repeated = signed.signer in self.current.openings
        super().take_opening(signed, gone)
        if repeated:
            return
        self._note(pb.JournalEntry(opening=signed.to_proto()))

    def pass_over(self, holders: Iterable[str]) -> None:
        """Notes who was asked and did not answer; under masks everybody is asked, and nobody passed over."""
        raise OutOfPhaseError("nobody is passed over where shares are opened.")

    @property
    def passed_over(self) -> Mapping[str, tuple[str, ...]]:
        """Sum to those who were asked to decrypt it and did not answer in time."""
        return {}

    @property
    def contradiction(self) -> ConsiliumError | None:
        """Why the current sum can never count, where openings contradict each other; it names who made them."""
        return None

    def close_sum(self) -> None:
        """See `Aggregator`."""
        super().close_sum()
        self._note(pb.JournalEntry(close_sum=pb.CloseSum()))

    def _note(self, entry: pb.JournalEntry) -> None:
        encoded = entry.SerializeToString(deterministic=True)
        # A repeated message is accepted and changes nothing; it need not be written twice.
        if entry.WhichOneof("entry") in _STEPS or encoded not in self._noted:
            self._noted.add(encoded)
            self._entries.append(entry)


def restore(machine: M, journal: bytes) -> M:
    """The machine that wrote `journal`.

    Args:
        machine: a new one of the same attempt.
        journal: what it wrote.

    Raises:
        ProtocolError: an entry does not hold any more; the journal is of another attempt or damaged.
    """
    try:
        entries = pb.AttemptJournal.FromString(journal).entries
    except DecodeError as error:
        raise MalformedMessageError("the record of an attempt does not parse.") from error
    for entry in entries:
        match entry.WhichOneof("entry"):
            case "keys":
                machine.take_keys(Signed.from_proto(entry.keys))
            case "close_keys":
                machine.close_keys()
            case "reveal":
                machine.take_reveal(entry.reveal.sender, entry.reveal.value)
            case "close_reveals":
                machine.close_reveals()
            case "shares":
                dealt = entry.shares
                key = Signed.from_proto(dealt.encryption_key) if dealt.HasField("encryption_key") else None
                machine.take_shares(dealt.sender, [Signed.from_proto(m) for m in dealt.messages], key)
            case "close_shares":
                machine.close_shares()
            case "begin_sum":
                machine.begin_sum(entry.begin_sum.consumed)
            case "upload":
                machine.take_header(Signed.from_proto(entry.upload))
                machine.complete_upload(entry.upload.signer)
            case "close_uploads":
                machine.close_uploads()
            case "signature":
                machine.take_signature(Signed.from_proto(entry.signature))
            case "decide":
                machine.decide()
            case "opening":
                machine.take_opening(Signed.from_proto(entry.opening))
            case "passed_over":
                machine.pass_over(entry.passed_over.holders)
            case "decryption":
                machine.take_opening(Signed.from_proto(entry.decryption.decryption), frozenset(entry.decryption.left))
            case "close_sum":
                machine.close_sum()
    assert isinstance(machine.phase, AggregatorPhase)
    return machine
