"""What an institution knows of the others once the keys were relayed: their key messages, and the graph they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from security.secure_sum import derive
from security.secure_sum.errors import RevealError, TamperedKeysError, UnknownMemberError
from security.secure_sum.graph import Graph
from security.secure_sum.messages import KeyMessage, Signed
from security.secure_sum.reveals import agreed_digest, check_reveal, drawn_graph
from security.secure_sum.spec import Attempt
from security.secure_sum.verify import (
    check_distinct_keys,
    check_keys,
    check_members,
    check_signed,
    keys_digest,
    open_message,
)


@dataclass(frozen=True, repr=False)
class Meeting:
    """The members of one attempt as one institution was shown them.

    Attributes:
        attempt: the attempt.
        keys: everybody's key message.
        keys_digest: of what was relayed as such.
        agreed: digest of all that the graph follows from; goes into every box, mask and list.
        graph: None while values are to be revealed.
    """

    attempt: Attempt
    keys: Mapping[str, KeyMessage]
    keys_digest: bytes
    agreed: bytes
    graph: Graph | None
    _unchecked: dict[str, Signed] = field(default_factory=dict)

    @staticmethod
    def of(attempt: Attempt, own: Signed | None, relayed: Sequence[Signed]) -> Meeting:
        """Checks the relayed key messages, `own` among them.

        Raises:
            TamperedKeysError: ours is missing or changed, somebody's comes twice, or two show one key.
            BadSignatureError, WrongContextError, UnknownMemberError, MalformedMessageError: as they say. Where a graph
                is drawn, signatures are checked once it is known whose matter (see `check`).
            TooFewMembersError: fewer than `threshold`.
        """
        signed = {s.signer: s for s in relayed}
        if len(signed) != len(relayed):
            raise TamperedKeysError("the relayed key messages name one institution twice.")
        if own is None or signed.get(own.signer) != own:
            raise TamperedKeysError(
                "the relayed key messages do not hold this institution's own as it was sent.",
                remedy="The coordinator swapped or lost a key; do not go on with it.",
            )
        drawn = attempt.sparse is not None
        keys: dict[str, KeyMessage] = {}
        for name, envelope in signed.items():
            if not drawn:
                check_signed(attempt, envelope, derive.TAG_KEYS)
            keys[name] = open_message(attempt, envelope, KeyMessage.decode)
            check_keys(attempt, keys[name])
        check_distinct_keys(keys)
        check_members(attempt, keys, "sent keys")
        digest = keys_digest(signed)
        if drawn:
            return Meeting(attempt, keys, digest, b"", None, signed)
        return Meeting(attempt, keys, digest, digest, Graph(attempt.roster, keys, None))

    def is_of(self, relayed: Sequence[Signed]) -> bool:
        """Whether these are the key messages that were looked at."""
        return keys_digest({s.signer: s for s in relayed}) == self.keys_digest

    def drawn(self, name: str, reveals: Mapping[str, bytes]) -> Meeting:
        """The meeting with the graph that all revealed values draw, as `name` sees it.

        Raises:
            RevealError: a value is not what was committed to, or our own is missing.
            UnknownMemberError: a value of somebody without keys.
            BadSignatureError: a neighbour's key message is not signed by it.
            TooFewMembersError: fewer than `threshold`.
        """
        if name not in reveals:
            raise RevealError("this institution's own value was left out of the mask graph.")
        for sender, value in reveals.items():
            if sender not in self.keys:
                raise UnknownMemberError("a value is of an institution whose keys were never shown.")
            check_reveal(self.attempt, self.keys[sender], value)
        check_members(self.attempt, reveals, "revealed their values")
        agreed = agreed_digest(self.keys_digest, reveals)
        graph = drawn_graph(self.attempt, agreed, reveals)
        self.check(graph.shareholders(name))
        return replace(self, agreed=agreed, graph=graph)

    def check(self, names: Iterable[str]) -> None:
        """Checks the signatures of the key messages of those with whom this institution shares something.

        Where the graph is complete that is everybody, and was done. In a large one the others' say nothing to it: no
        share is sealed for them, and no mask is theirs. Called for the shareholders before shares are sealed, and for
        the mask peers of each part before it is masked: without the second, the coordinator could show a key of its own
        as a peer's and take the mask with that peer off. The proofs of uploads do not replace it, for only an
        institution's shareholders look at its proof (rule 6).

        Raises:
            BadSignatureError: one was not made by the institution that it names.
        """
        for name in sorted(self._unchecked.keys() & frozenset(names)):
            check_signed(self.attempt, self._unchecked[name], derive.TAG_KEYS)
            del self._unchecked[name]
