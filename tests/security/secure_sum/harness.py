"""Drives N members and one aggregator back to back in memory, honestly or not, and knows what an adversary can derive.

`World` holds one attempt. Each phase is a method, so that a test can stop between two of them and lie; `schedules.run`
drives them all with a schedule of absences.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from security.privacy.randomness import SeededRandomness
from security.secure_sum import derive
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.fold import fold
from security.secure_sum.graph import SparseGraph
from security.secure_sum.masks import word_type
from security.secure_sum.member import Member
from security.secure_sum.messages import Signed, SurvivorList
from security.secure_sum.phases import AggregatorPhase, MemberPhase
from security.secure_sum.spec import Attempt, Context, Part, Ring, Sum
from security.secure_sum.upload import ArrayWords, Upload
from security.signing import IdentityKey

Words = npt.NDArray[Any]
Absences = Collection[tuple[str, str]]
"""(institution, step) that it misses; steps are `keys`, `reveals`, `shares`, `accept` and `<sum>/upload|sign|open`."""

NAMES: Final = ("north", "south", "east", "west", "upper", "lower", "inner", "outer", "middle")
"""Not in alphabetical order, so that the plan's order and the sorted one are never confused."""


DRAWN = False
"""Whether attempts draw their mask graph where a test does not say; see conftest.py."""


@cache
def identity(name: str) -> IdentityKey:
    """One key per name for the whole test session."""
    return IdentityKey.generate()


def context(
    round_: int = 1, attempt: int = 1, *, federation: str = "test", run: bytes = b"\1" * 32, opening: bytes = b"\2" * 32
) -> Context:
    """A context; the defaults are the attempt that most tests play."""
    return Context(federation, run, round_, attempt, opening)


def safe_threshold(n: int, max_colluders: int) -> int:
    """The smallest t with 2t ≥ n + max_colluders + 1."""
    return max(2, (n + max_colluders + 2) // 2)


def part(name: str, contributors: Iterable[str], *, ring: Ring = 32, length: int = 5, quantity: str = "") -> Part:
    """A part with short defaults."""
    return Part(name, ring, length, frozenset(contributors), quantity)


def make_attempt(
    names: Sequence[str] = NAMES[:6],
    *,
    sums: Sequence[Sum] | None = None,
    max_colluders: int = 1,
    threshold: int | None = None,
    k_min: int | None = None,
    at: Context | None = None,
    masked: bool = True,
    sparse: SparseGraph | None = None,
) -> Attempt:
    """An attempt over `names`; by default sums A (32 bit) and B (64 bit), one part each over everybody."""
    return Attempt(
        context=at or context(),
        roster={n: identity(n).public for n in names},
        threshold=safe_threshold(len(names), max_colluders) if threshold is None else threshold,
        max_colluders=max_colluders,
        k_min=max_colluders + 2 if k_min is None else k_min,
        sums=tuple(sums)
        if sums is not None
        else (Sum("A", (part("encoder/mrna", names),)), Sum("B", (part("loss/mrna", names, ring=64, length=3),))),
        masked=masked,
        sparse=sparse or (SparseGraph(4, max(2, max_colluders + 1), complete_up_to=4) if DRAWN else None),
    )


class Spooled:
    """One completed upload, as the fold reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` from `offset` on."""
        out[:] = self._data[offset : offset + len(out)]


@dataclass
class World:
    """One attempt: its members, its aggregator and what each institution wants summed.

    Attributes:
        attempt: what is summed.
        seed: of every key, value and shuffle.
        shuffle: deliver in a random order, and everything twice.
    """

    attempt: Attempt
    seed: int = 0
    shuffle: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    values: dict[tuple[str, str, str], Words] = field(default_factory=dict)
    uploads: dict[tuple[str, str], bytes] = field(default_factory=dict)
    openings: dict[str, list[Signed]] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = random.Random(self.seed)
        self.aggregator = Aggregator(self.attempt)
        numbers = np.random.default_rng(self.seed)
        for name in self.attempt.roster:
            source = SeededRandomness(self.seed, f"{name}/{self.attempt.context.attempt}/{self.attempt.context.round}")
            self.members[name] = Member(self.attempt, name, identity(name), source)
            for s, p in self.attempt.keyed_parts(name):
                self.values[name, s, p.name] = numbers.integers(0, 2**p.ring, p.length, dtype=word_type(p.ring))

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def deliveries(self, names: Iterable[str]) -> list[str]:
        """`names` as the network delivers them: in order, or shuffled with repeats."""
        found = list(names)
        if self.shuffle:
            found += [n for n in found if self.order.random() < 0.5]
            self.order.shuffle(found)
        return found

    # -- phases -------------------------------------------------------------------------------------------------

    def send_keys(self, names: Iterable[str] | None = None) -> list[Signed]:
        """Everybody in `names` sends keys; the aggregator fixes the shareholders. Returns what is relayed."""
        for name in self.deliveries(self.members if names is None else names):
            self.aggregator.take_keys(self[name].make_keys())
        self.aggregator.close_keys()
        relayed = list(self.aggregator.keys.values())
        self.order.shuffle(relayed)
        return relayed

    def reveal(self, relayed: Sequence[Signed], names: Iterable[str] | None = None) -> None:
        """Where the mask graph is drawn: everybody in `names` reveals; the aggregator draws it."""
        if self.attempt.sparse is None:
            return
        for name in self.deliveries(self.aggregator.keys if names is None else names):
            late = self[name].phase is not MemberPhase.KEYED  # it was shown something else before
            value = self.own_values([name])[name] if late else self[name].reveal(relayed)
            self.aggregator.take_reveal(name, value)
        self.aggregator.close_reveals()

    def dealt(self, name: str, relayed: Sequence[Signed]) -> Mapping[str, Signed]:
        """What one institution deals once it was shown these keys, over whichever graph."""
        if self.attempt.sparse is None:
            return self[name].deal(relayed)
        if self[name].phase is MemberPhase.KEYED:
            self[name].reveal(relayed)
        found = self.aggregator.graph is not None
        return self[name].deal_around(self.aggregator.reveals if found else self.own_values(s.signer for s in relayed))

    def meets(self, name: str) -> Callable[[Sequence[Signed]], object]:
        """The step in which an institution looks at the others' keys."""
        return self[name].deal if self.attempt.sparse is None else self[name].reveal

    def own_values(self, names: Iterable[str]) -> dict[str, bytes]:
        """What everybody will reveal."""
        secrets = {name: self[name]._secrets for name in names}
        return {name: held.reveal for name, held in secrets.items() if held is not None}

    def deal(self, relayed: Sequence[Signed], names: Iterable[str] | None = None) -> None:
        """Everybody in `names` deals; the aggregator fixes the cohort."""
        if self.aggregator.phase is AggregatorPhase.REVEALS:
            self.reveal(relayed)
        for name in self.deliveries(self.aggregator.members if names is None else names):
            self.aggregator.take_shares(name, self.dealt(name, relayed).values())
        self.aggregator.close_shares()

    def accept(self, names: Iterable[str] | None = None) -> None:
        """Everybody in `names` takes its shares."""
        for name in self.deliveries(self.aggregator.cohort if names is None else names):
            relayed = list(self.aggregator.shares_for(name))
            self.order.shuffle(relayed)
            self[name].accept(sorted(self.aggregator.cohort), relayed)

    def ready(self) -> World:
        """Everybody through keys and shares."""
        self.deal(self.send_keys())
        self.accept()
        return self

    def enter(self, sum_name: str, names: Iterable[str], consumed: bytes | None = None) -> None:
        """The aggregator begins a sum and everybody in `names` enters it."""
        seen = sum_name.encode() if consumed is None else consumed
        self.aggregator.begin_sum(seen)
        for name in self.deliveries(names):
            self[name].enter(sum_name, seen)

    def mask(self, sum_name: str, name: str) -> Upload:
        """One institution's upload of its planned values."""
        sources = {p.name: ArrayWords(self.values[name, sum_name, p.name].copy()) for p in self[name].uploads}
        return self[name].mask(sources)

    def upload(self, sum_name: str, name: str) -> bytes:
        """One institution uploads everything; the bytes are spooled."""
        made = self.mask(sum_name, name)
        self.aggregator.take_header(made.header)
        data = b"".join(made.chunks())
        assert len(data) == made.length
        self.uploads[sum_name, name] = data
        self.aggregator.complete_upload(name)
        return data

    def sign(self, payload: bytes, names: Iterable[str]) -> list[Signed]:
        """Signatures of `names` under a list, straight from the members."""
        return [self[name].sign(payload) for name in names]

    def list_of(self, sum_name: str, alive: Iterable[str], gone: Iterable[str], **changes: Any) -> bytes:
        """Any survivor list that a lying coordinator may write, with the sum's transcript."""
        living = sorted(alive)
        listed = SurvivorList(
            self.attempt.context,
            sum_name,
            self.transcript(sum_name),
            tuple(living),
            tuple(sorted(gone)),
            tuple(self.upload_signature(sum_name, name) for name in living),
        )
        return replace(listed, **changes).encode()

    def upload_signature(self, sum_name: str, name: str) -> bytes:
        """An institution's signature under its upload's header; 64 zeros where it made none for this sum."""
        current = self.members[name]._current if name in self.members else None
        if current is None or current.name != sum_name or current.upload is None:
            return bytes(64)
        return current.upload.header.signature

    def transcript(self, sum_name: str, consumed: bytes | None = None) -> bytes:
        """The transcript of a sum that consumed what `enter` says by default."""
        return derive.transcript(
            self.attempt.context,
            self.aggregator._agreed,
            self.aggregator.cohort,
            sum_name,
            sum_name.encode() if consumed is None else consumed,
        )

    def upload_all(self, sum_name: str, names: Iterable[str] | None = None) -> bytes:
        """Everybody in `names` enters and uploads; returns the survivor list."""
        chosen = list(self.aggregator.cohort) if names is None else list(names)
        self.enter(sum_name, chosen)
        for name in self.deliveries(n for n in chosen if self[n].uploads):
            self.upload(sum_name, name)
        self.lists[sum_name] = self.aggregator.close_uploads()
        return self.lists[sum_name]

    def sign_and_open(self, sum_name: str, signers: Iterable[str], openers: Iterable[str]) -> None:
        """`signers` sign the aggregator's list, `openers` open."""
        for name in self.deliveries(signers):
            self.aggregator.take_signature(self[name].sign(self.aggregator.current.payload))
        self.aggregator.decide()
        signatures = list(self.aggregator.current.signatures.values())
        for name in self.deliveries(openers):
            self.order.shuffle(signatures)
            opening = self[name].open(signatures)
            self.openings.setdefault(sum_name, []).append(opening)
            self.aggregator.take_opening(opening)

    def finish_sum(self, sum_name: str, threads: int = 2) -> dict[str, bytes]:
        """Unmasks, folds and closes the current sum. Returns the opened bytes by part."""
        opened = self.fold(sum_name, threads)
        self.aggregator.close_sum()
        return opened

    def fold(self, sum_name: str, threads: int = 2) -> dict[str, bytes]:
        """The opened bytes of every part that opens."""
        found: dict[str, bytes] = {}
        for opening in self.aggregator.unmask():
            readers = {
                n: (Spooled(self.uploads[sum_name, n]), self.offset(sum_name, n, opening.part)) for n in opening.alive
            }
            chunks: list[bytes] = []
            fold(opening, readers, lambda view, into=chunks: into.append(bytes(view)), threads)  # type: ignore[misc]  # a default binds this loop's list
            found[opening.part.name] = b"".join(chunks)
        return found

    def whole_sum(self, sum_name: str, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """One sum from entering to closing, by everybody in `names`."""
        chosen = sorted(self.aggregator.cohort) if names is None else sorted(names)
        self.upload_all(sum_name, chosen)
        self.sign_and_open(sum_name, chosen, chosen)
        return self.finish_sum(sum_name)

    # -- what should come out -----------------------------------------------------------------------------------

    def offset(self, sum_name: str, name: str, wanted: Part) -> int:
        """Where a part begins in an institution's upload, by the plan's order."""
        position = 0
        for p in self.attempt.sum(sum_name).parts:
            if p.name == wanted.name:
                return position
            if name in p.contributors and len(p.contributors & self.aggregator.cohort) >= self.attempt.k_min:
                position += p.bytes
        raise AssertionError(wanted.name)

    def tied(self, contributors: frozenset[str], lives: Collection[str]) -> bool:
        """Whether the living stay connected by masks, whichever `max_colluders` of them are taken out; by trying."""
        sparse = self.attempt.sparse
        if sparse is None or len(contributors) <= max(sparse.complete_up_to, sparse.neighbours + 1):
            return True
        graph = self.aggregator.graph
        assert graph is not None
        circle = [name for name in graph.circle(self.aggregator.members).order if name in contributors]
        near = {*range(1, sparse.neighbours // 2 + 1)} | {-x for x in range(1, sparse.neighbours // 2 + 1)}
        tied = {n: {circle[(x + d) % len(circle)] for d in near} for x, n in enumerate(circle)}
        return all(
            _connected(set(lives) - set(out), tied)
            for size in range(self.attempt.max_colluders + 1)
            for out in combinations(sorted(lives), size)
        )

    def plain(self, sum_name: str, part_name: str, who: Iterable[str]) -> bytes:
        """The plaintext ring sum of `who`, little-endian."""
        p = self.attempt.sum(sum_name).part(part_name)
        total = np.zeros(p.length, dtype=word_type(p.ring))
        for name in who:
            total += self.values[name, sum_name, part_name]
        return total.tobytes()

    def expected(self, sum_name: str, alive: Collection[str]) -> dict[str, bytes]:
        """What must open, from the rules alone.

        Parts with `k_min` contributors in the cohort and among the living, whose masks hold the living together.
        """
        found: dict[str, bytes] = {}
        for p in self.attempt.sum(sum_name).parts:
            dealt, lives = p.contributors & self.aggregator.cohort, p.contributors & set(alive)
            if len(dealt) >= self.attempt.k_min and len(lives) >= self.attempt.k_min and self.tied(dealt, lives):
                found[p.name] = self.plain(sum_name, p.name, lives)
        return found


def _connected(alive: set[str], tied: Mapping[str, set[str]]) -> bool:
    rest = set(alive)
    walk = [rest.pop()] if rest else []
    while walk:
        near = rest & tied[walk.pop()]
        rest -= near
        walk += near
    return not rest
