"""A lying coordinator with its colluders: gathers every share and secret that reaches it, and says what it can read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.secure_sum import shares
from security.secure_sum.keys import mask_private_key, pair_mask_key, pair_sign, seed_commitment, self_mask_key
from security.secure_sum.masks import Masker, SignedKey, word_type
from security.secure_sum.member import Member
from security.secure_sum.messages import KeyMessage, Opening, Signed
from tests.security.secure_sum.harness import World

Secret = tuple[str, str, str, str]
"""(kind, sum, part, owner)."""


class Adversary:
    """A lying coordinator and its colluders: all they were sent, all they hold, and what follows from it.

    Args:
        world: the attempt; uploads are taken from `world.uploads`.
        colluders: who hands over its secrets and shares.
    """

    def __init__(self, world: World, colluders: Iterable[str] = ()) -> None:
        self.world = world
        self.colluders = frozenset(colluders)
        self._shares: dict[Secret, dict[int, bytes]] = {}
        self._derived: dict[tuple[str, str], tuple[dict[str, bytes], dict[str, X25519PrivateKey]]] = {}
        self.keys: dict[str, KeyMessage] = {n: KeyMessage.decode(s.payload) for n, s in world.aggregator.keys.items()}
        for name in self.colluders:
            self._corrupt(world[name])

    def _corrupt(self, member: Member) -> None:
        secrets = member._secrets
        if secrets is None:
            return
        for (owner, (s, p)), held in secrets.held.items():
            self.add(("seed", s, p, owner), member.name, held.seed)
            self.add(("mask-key", s, p, owner), member.name, held.mask_key)

    def add(self, secret: Secret, holder: str, share: bytes) -> None:
        """Takes one share, however it was come by."""
        graph = self.world.aggregator.graph
        assert graph is not None
        self._shares.setdefault(secret, {})[graph.shareholders(secret[3])[holder]] = share
        self._derived.clear()

    def hear(self, openings: Iterable[Signed]) -> Adversary:
        """Takes openings that members made, whatever list they were for."""
        for signed in openings:
            opening = Opening.decode(signed.payload)
            for s in opening.shares:
                self.add((s.kind, opening.sum, s.part, s.victim), signed.signer, s.share)
        return self

    def secrets(self) -> dict[Secret, bytes]:
        """Every secret that `threshold` gathered shares give, and the colluders' own."""
        t = self.world.attempt.share_threshold
        found = {
            secret: shares.combine(dict(sorted(held.items())[:t]))
            for secret, held in self._shares.items()
            if len(held) >= t
        }
        for name in self.colluders:
            own = self.world[name]._secrets
            for (s, p), made in own.parts.items() if own is not None else ():
                found["seed", s, p, name], found["mask-key", s, p, name] = made.seed, made.mask_secret
        return found

    def seeds(self, sum_name: str, part_name: str) -> dict[str, bytes]:
        """Owner to seed for one part, whichever gathered secret of the owner it was found in."""
        return self._derive(sum_name, part_name)[0]

    def mask_keys(self, sum_name: str, part_name: str) -> dict[str, X25519PrivateKey]:
        """Owner to private mask key for one part, whichever gathered secret of the owner it was found in."""
        return self._derive(sum_name, part_name)[1]

    def _derive(self, sum_name: str, part_name: str) -> tuple[dict[str, bytes], dict[str, X25519PrivateKey]]:
        if (sum_name, part_name) in self._derived:
            return self._derived[sum_name, part_name]
        seeds: dict[str, bytes] = {}
        keys: dict[str, X25519PrivateKey] = {}
        for (_, _, _, owner), secret in self.secrets().items():
            announced = self._announced(owner, sum_name, part_name)
            if announced is None:
                continue
            where = (self.world.attempt, sum_name, part_name, owner)
            if seed_commitment(*where, secret) == announced[1]:
                seeds[owner] = secret
            key = mask_private_key(*where, secret)
            if key.public_key().public_bytes_raw() == announced[0]:
                keys[owner] = key
        self._derived[sum_name, part_name] = seeds, keys
        return seeds, keys

    def _announced(self, owner: str, sum_name: str, part_name: str) -> tuple[bytes, bytes] | None:
        for k in self.keys[owner].parts if owner in self.keys else ():
            if (k.sum, k.part) == (sum_name, part_name):
                return k.public_key, k.seed_commitment
        return None

    def stripped(
        self,
        sum_name: str,
        part_name: str,
        who: Collection[str],
        transcripts: Mapping[str, bytes] | None = None,
        cohorts: Mapping[str, Collection[str]] | None = None,
    ) -> bytes:
        """The sum of the uploads of `who` less every mask that follows from what the adversary has.

        `transcripts` and `cohorts` say who was shown others than everybody.
        """
        world, attempt = self.world, self.world.attempt
        p = attempt.sum(sum_name).part(part_name)
        total = np.zeros(p.length, dtype=word_type(p.ring))
        seeds, private = self.seeds(sum_name, part_name), self.mask_keys(sum_name, part_name)
        taken: list[SignedKey] = []
        graph = world.aggregator.graph
        assert graph is not None
        for name in who:
            at = world.offset(sum_name, name, p)
            total += np.frombuffer(world.uploads[sum_name, name][at : at + p.bytes], dtype=total.dtype)
            transcript = (transcripts or {}).get(name, world.transcript(sum_name))
            where = (attempt, sum_name, part_name, name)
            if name in seeds:
                taken.append(SignedKey(-1, self_mask_key(*where, seeds[name], transcript)))
            masked = p.contributors & frozenset((cohorts or {}).get(name, world.aggregator.cohort))
            for peer in graph.circle(masked).neighbours(name):
                sign: Literal[1, -1] = -1 if pair_sign(name, peer) > 0 else 1
                mine, theirs = self._announced(name, sum_name, part_name), self._announced(peer, sum_name, part_name)
                assert mine is not None
                assert theirs is not None
                if name in private:
                    taken.append(SignedKey(sign, pair_mask_key(*where, private[name], peer, theirs[0], transcript)))
                elif peer in private:
                    key = pair_mask_key(attempt, sum_name, part_name, peer, private[peer], name, mine[0], transcript)
                    taken.append(SignedKey(sign, key))
        Masker(taken).apply(total, 0)
        return total.tobytes()

    def reads(
        self,
        transcripts: Mapping[str, bytes] | None = None,
        cohorts: Mapping[str, Collection[str]] | None = None,
    ) -> set[tuple[str, str, frozenset[str]]]:
        """(sum, part, honest institutions) of every plaintext sum that the adversary can read.

        Every set of honest uploads is tried, with and without the colluders' own. This is what must stay empty, or be
        exactly the sum that everybody agreed to open.
        """
        found: set[tuple[str, str, frozenset[str]]] = set()
        for s in self.world.attempt.sums:
            for p in s.parts:
                sent = {n for (name, n) in self.world.uploads if name == s.name and n in p.contributors}
                sent = {
                    n for n in sent if len(p.contributors & self.world.aggregator.cohort) >= self.world.attempt.k_min
                }
                honest, bought = sorted(sent - self.colluders), sorted(sent & self.colluders)
                for size in range(1, len(honest) + 1):
                    for chosen in combinations(honest, size):
                        for who in {chosen, (*chosen, *bought)}:
                            stripped = self.stripped(s.name, p.name, who, transcripts, cohorts)
                            if stripped == self.world.plain(s.name, p.name, who):
                                found.add((s.name, p.name, frozenset(chosen)))
        return found
