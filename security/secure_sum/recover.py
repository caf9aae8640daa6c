"""Reconstructs what the signed list lets the coordinator reconstruct, and lists the keystreams to take off (rule 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import Final

from security.secure_sum import shares
from security.secure_sum.errors import BadShareError, TooFewMembersError
from security.secure_sum.graph import Graph
from security.secure_sum.keys import (
    mask_private_key,
    pair_mask_key,
    pair_sign,
    part_key,
    seed_commitment,
    self_mask_key,
)
from security.secure_sum.masks import SignedKey
from security.secure_sum.messages import KeyMessage, PartKey
from security.secure_sum.spec import Attempt, Part

MAX_TRIES: Final = 200
"""Sets of shares that are tried for one secret before its dealer is blamed."""


@dataclass(frozen=True, repr=False)
class PartOpening:
    """How one part's sum is opened: add the uploads of `alive`, then every keystream with its sign.

    Attributes:
        part: the part.
        alive: whose uploads are summed.
        keystreams: what unmasks the sum; secret until the sum is public.
        words: the sum itself, where somebody decrypted it: there is nothing to add up.
    """

    part: Part
    alive: tuple[str, ...]
    keystreams: tuple[SignedKey, ...]
    words: bytes | None = None

    def __repr__(self) -> str:
        return f"PartOpening({self.part.name!r}, {len(self.alive)} alive, keystreams omitted)"


def open_part(
    attempt: Attempt,
    sum_name: str,
    transcript: bytes,
    part: Part,
    cohort: frozenset[str],
    alive: frozenset[str],
    keys: Mapping[str, KeyMessage],
    graph: Graph,
    opened: Mapping[str, Mapping[int, bytes]],
) -> PartOpening:
    """The keystreams that unmask one part.

    Args:
        attempt: the attempt.
        sum_name: the sum of which `part` is one.
        transcript: of the sum.
        part: what is opened.
        cohort: who masked.
        alive: whose uploads count.
        keys: checked key messages by institution.
        graph: who masked with whom.
        opened: victim to shares by x-coordinate: of the seed where it is alive, of the mask key where it is gone.

    Raises:
        BadShareError: no `share_threshold` shares give a secret that matches; the dealer is named.
        TooFewMembersError: fewer than `share_threshold` shares of a secret were opened; nobody is named.
    """
    contributors = sorted(part.contributors & cohort)
    survivors = [name for name in contributors if name in alive]
    circle = graph.circle(part.contributors & cohort)
    keystreams: list[SignedKey] = []
    for name in contributors if attempt.masked else ():
        announced = part_key(keys[name], sum_name, part.name)
        where = (attempt, sum_name, part.name, name)
        if name in alive:
            seed = _reconstruct(
                attempt,
                name,
                opened.get(name, {}),
                partial(_seed_matches, where, announced),
            )
            keystreams.append(SignedKey(-1, self_mask_key(*where, seed, transcript)))
            continue
        secret = _reconstruct(
            attempt,
            name,
            opened.get(name, {}),
            partial(_mask_key_matches, where, announced),
        )
        private = mask_private_key(*where, secret)
        for survivor in circle.neighbours(name):
            if survivor not in alive:
                continue
            public = part_key(keys[survivor], sum_name, part.name).public_key
            key = pair_mask_key(*where, private, survivor, public, transcript)
            # The survivor applied the mask with its own sign; take that off.
            keystreams.append(SignedKey(-1 if pair_sign(survivor, name) > 0 else 1, key))
    return PartOpening(part, tuple(survivors), tuple(keystreams))


_Where = tuple[Attempt, str, str, str]
"""Attempt, sum, part, owner."""


def _seed_matches(where: _Where, announced: PartKey, secret: bytes) -> bool:
    return seed_commitment(*where, secret) == announced.seed_commitment


def _mask_key_matches(where: _Where, announced: PartKey, secret: bytes) -> bool:
    return mask_private_key(*where, secret).public_key().public_bytes_raw() == announced.public_key


def _reconstruct(attempt: Attempt, dealer: str, opened: Mapping[int, bytes], matches: Callable[[bytes], bool]) -> bytes:
    threshold = attempt.share_threshold
    if len(opened) < threshold:
        # Nobody is to blame: shareholders vanished, or held no good share of this dealer.
        raise TooFewMembersError(
            f"{len(opened)} shares of {dealer!r} were opened, and {threshold} are needed.",
            remedy="Wait for more openings, or burn the round number.",
        )
    for chosen in islice(_choices(sorted(opened), threshold), MAX_TRIES):
        secret = shares.combine({x: opened[x] for x in chosen})
        if matches(secret):
            return secret
    raise BadShareError(
        f"the shares of {dealer!r} do not give back what it committed to.",
        remedy="Its shares were dealt wrongly; the round number is burnt.",
        culprits=(dealer,),
    )


def _choices(xs: Sequence[int], threshold: int) -> Iterator[tuple[int, ...]]:
    """Sets of shares to try: every window of the circle first, so that one wrong share is soon left out."""
    circle = [*xs, *xs]
    yield from (tuple(circle[start : start + threshold]) for start in range(len(xs)))
    yield from combinations(xs, threshold)
