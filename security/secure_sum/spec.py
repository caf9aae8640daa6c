"""What an attempt sums: context, sums, parts, roster and thresholds. Values only; checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from security.errors import ConfigurationError
from security.secure_sum.cohorts import institution_of, subtracts_below
from security.secure_sum.graph import MAX_COMPLETE_GRAPH, MAX_ROSTER, Graph, SparseGraph

Ring = Literal[16, 32, 64]
"""Bits of a word."""


@dataclass(frozen=True)
class Context:
    """Where every message of an attempt belongs (rule 7).

    Attributes:
        federation: the federation's name.
        run: 32 bytes, the digest of the plan.
        round: 0 for the sums made once per run, then 1, 2, …
        attempt: 1, 2, … within the round.
        opening: 32 bytes, the digest of what opened the round: plan, schema, w(t), DGB figures (rule 6).
    """

    federation: str
    run: bytes
    round: int
    attempt: int
    opening: bytes

    def __post_init__(self) -> None:
        if len(self.run) != 32 or len(self.opening) != 32:
            raise ConfigurationError("a run and an opening are digests of 32 bytes.")
        if not (0 <= self.round < 2**32 and 1 <= self.attempt < 2**32):
            raise ConfigurationError("rounds count from 0 and attempts from 1, below 2^32.")

    @cached_property
    def _hash(self) -> int:
        return hash((self.federation, self.run, self.round, self.attempt, self.opening))

    def __hash__(self) -> int:  # once: every key and commitment of an attempt is derived within its context
        return self._hash


@dataclass(frozen=True)
class Part:
    """One vector that is summed over its own contributors, under its own keys (rule 4).

    Attributes:
        name: unique within its sum, `encoder/mrna`.
        ring: bits of a word, 32 or 16 for model vectors, 64 for statistics (rule 1).
        length: words.
        contributors: institutions that hold a vector for it.
        quantity: parts of one round with the same quantity are checked against each other for differencing (rule 9).
        pieces: `institution/combination` for each piece of the values of those contributors whose value is a sum of
            pieces that other parts of the quantity hold too; who is in none is one piece of itself.
        together: uploaded and opened only while all contributors are there. For what is much the same in every round,
            counts of the same patients: two rounds' sums, over cohorts that differ by one dropout, would differ by
            exactly the counts of who dropped out (rule 9).
        ciphertext_bytes: what travels in the vector's place where the sum is encrypted (`security.ckks`); 0: it shares
            the ciphertexts of a part before it. None: the vector's own bytes, masked.
    """

    name: str
    ring: Ring
    length: int
    contributors: frozenset[str]
    quantity: str = ""
    together: bool = False
    ciphertext_bytes: int | None = None
    pieces: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigurationError(f"part {self.name!r} has no words.")

    @property
    def bytes(self) -> int:
        """Bytes of one vector."""
        return self.length * self.ring // 8

    @property
    def sent_bytes(self) -> int:
        """Bytes that one institution uploads of it."""
        return self.bytes if self.ciphertext_bytes is None else self.ciphertext_bytes

    def opened_pieces(self, alive: frozenset[str]) -> frozenset[str]:
        """What the sum over the contributors among `alive` adds up: what differencing is checked on."""
        whole = self.contributors & alive
        if not self.pieces:
            return whole
        kept = {piece for piece in self.pieces if institution_of(piece) in whole}
        return frozenset(kept | (whole - {institution_of(piece) for piece in kept}))

    def there(self, institutions: frozenset[str], k_min: int) -> frozenset[str] | None:
        """The contributors among `institutions`; None where they are too few for this part."""
        found = self.contributors & institutions
        if len(found) < k_min or (self.together and found != self.contributors):
            return None
        return found


@dataclass(frozen=True)
class Sum:
    """Parts that are uploaded, signed and opened together: all or nothing (rule 8)."""

    name: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if len({part.name for part in self.parts}) != len(self.parts):
            raise ConfigurationError(f"sum {self.name!r} names a part twice.")
        if len({part.ciphertext_bytes is None for part in self.parts}) > 1:
            raise ConfigurationError(f"sum {self.name!r} is encrypted in part.")

    @property
    def encrypted(self) -> bool:
        """Whether ciphertexts travel instead of masked words."""
        return any(part.ciphertext_bytes is not None for part in self.parts)

    def part(self, name: str) -> Part:
        """The part of this name.

        Raises:
            KeyError: there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)


@dataclass(frozen=True)
class Attempt:
    """Everything that both machines must agree on before the first message.

    Attributes:
        context: bound into every message.
        roster: every institution of the plan, in plan order, to its 33-byte identity key. Fixes Shamir's x-coordinates.
        threshold: t, signatures that decide a list, and shares that open a secret where the mask graph is complete;
            `2t ≥ n + max_colluders + 1` (rule 5).
        max_colluders: institutions that may collude with the coordinator.
        k_min: fewest survivors whose sum may be opened; `≥ max_colluders + 2`, or 1 for science without privacy.
        sums: in the order in which they are opened.
        masked: False only for the bench's `none` backend, which policy allows on public data alone.
        sparse: the mask graph where it is drawn, as it must be above `MAX_COMPLETE_GRAPH`; None: complete (rule 10).
    """

    context: Context
    roster: Mapping[str, bytes]
    threshold: int
    max_colluders: int
    k_min: int
    sums: tuple[Sum, ...]
    masked: bool = True
    sparse: SparseGraph | None = None

    def __post_init__(self) -> None:
        n = len(self.roster)
        if n > MAX_ROSTER:
            raise ConfigurationError(
                f"{n} institutions are more than {MAX_ROSTER}.",
                remedy=f"Run with at most {MAX_ROSTER} institutions.",
            )
        if n > MAX_COMPLETE_GRAPH and self.sparse is None:
            raise ConfigurationError(f"more than {MAX_COMPLETE_GRAPH} institutions need a sparse mask graph.")
        if self.sparse is not None and self.sparse.share_threshold <= self.max_colluders:
            raise ConfigurationError(
                f"{self.sparse.share_threshold} shares open a secret, and {self.max_colluders} may collude.",
                remedy="Choose a share threshold above max_colluders.",
            )
        if self.sparse is not None and self.encrypted:
            raise ConfigurationError(
                "sums are encrypted only where the mask graph is complete.",
                remedy="Mask them: take them out of secure_sum.ckks.",
            )
        if len(set(self.roster.values())) != n:
            raise ConfigurationError(
                "the roster shows one identity key under two names.",
                remedy="One entry per legal institution: whoever has two counts twice in every threshold and floor.",
            )
        if self.max_colluders < 0:
            raise ConfigurationError("max_colluders cannot be negative.")
        if not (2 <= self.threshold <= n and 2 * self.threshold >= n + self.max_colluders + 1):
            raise ConfigurationError(
                f"threshold {self.threshold} is unsafe for {n} institutions and {self.max_colluders} colluders.",
                remedy="Choose 2t ≥ n + max_colluders + 1, so that two contradictory lists cannot both be signed.",
            )
        science = self.k_min == 1 and self.max_colluders == 0
        if self.k_min < self.max_colluders + 2 and not science:
            raise ConfigurationError(
                f"k_min {self.k_min} lets {self.max_colluders} colluders see one institution's values.",
                remedy="Choose k_min ≥ max_colluders + 2.",
            )
        if len({s.name for s in self.sums}) != len(self.sums) or not self.sums:
            raise ConfigurationError("an attempt needs sums of different names.")
        for s in self.sums:
            for part in s.parts:
                if not part.contributors <= set(self.roster):
                    raise ConfigurationError(f"part {part.name!r} has contributors outside the roster.")

    def sum(self, name: str) -> Sum:
        """The sum of this name.

        Raises:
            KeyError: there is none.
        """
        for s in self.sums:
            if s.name == name:
                return s
        raise KeyError(name)

    @property
    def encrypted(self) -> bool:
        """Whether any sum is encrypted, so that the attempt needs an encryption key."""
        return any(s.encrypted for s in self.sums)

    def keyed_parts(self, institution: str) -> tuple[tuple[str, Part], ...]:
        """(sum name, part) of every part that this institution masks, in plan order."""
        return tuple(each for each in self._masked_parts if institution in each[1].contributors)

    @cached_property
    def _masked_parts(self) -> tuple[tuple[str, Part], ...]:
        return tuple((s.name, p) for s in self.sums if not s.encrypted for p in s.parts)

    def uploaded_parts(self, sum_name: str, cohort: frozenset[str], institution: str) -> tuple[Part, ...]:
        """What an institution uploads for a sum, in plan order: parts with at least `k_min` contributors in the cohort.

        A part below the floor is not even masked: nobody sends it (METHOD.md, "The privacy floor").
        """
        return tuple(p for p in self.sent_parts(sum_name, cohort) if institution in p.contributors)

    def sent_parts(self, sum_name: str, cohort: frozenset[str]) -> tuple[Part, ...]:
        """What anybody uploads for a sum, in plan order."""
        return tuple(p for p in self.sum(sum_name).parts if p.there(cohort, self.k_min) is not None)

    @property
    def share_threshold(self) -> int:
        """Shares that open a secret."""
        return self.threshold if self.sparse is None else self.sparse.share_threshold

    def opened_parts(
        self, sum_name: str, cohort: frozenset[str], alive: frozenset[str], graph: Graph | None = None
    ) -> tuple[Part, ...]:
        """The parts that may be opened, in plan order: uploaded ones that keep `k_min` survivors (rule 9).

        Among parts of one quantity, one that could be subtracted from those before it stays shut as well. So does one
        whose survivors' mask graph falls apart without some `max_colluders` of them: each piece would open by itself
        (rule 10).

        Args:
            sum_name: the sum.
            cohort: who masked.
            alive: whose uploads count.
            graph: of the attempt; needed where it is sparse.
        """
        if graph is None and self.sparse is not None:
            raise ValueError("what a sparse attempt opens depends on its graph")
        opened: list[Part] = []
        for part in self.sum(sum_name).parts:
            survivors = part.there(alive, self.k_min)
            if survivors is None or part.there(cohort, self.k_min) is None:
                continue
            if graph is not None and not graph.circle(part.contributors & cohort).holds(survivors, self.max_colluders):
                continue
            beside = [p.opened_pieces(alive) for p in opened if part.quantity and p.quantity == part.quantity]
            if subtracts_below(self.k_min, [*beside, part.opened_pieces(alive)]) is None:
                opened.append(part)
        return tuple(opened)
