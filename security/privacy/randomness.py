"""Where an institution's randomness comes from, as an argument that every function takes.

A node draws batches, noise and keys from `SystemRandomness`. The plan's seed is never used here: it is public
to the coordinator, which could then repeat the noise and subtract it (DESIGN.md, "Randomness").
`SeededRandomness` serves tests, studies and the demo; it says so (`seeded`), and a node outside them refuses
it.
"""

from __future__ import annotations

import builtins
import hashlib
import os
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_Bytes = builtins.bytes  # the classes below have a method of that name
_KEY_DOMAIN: Final = b"consilium/v1/seeded-randomness"


class Randomness(Protocol):
    """A stream of uniform random bytes."""

    @property
    def seeded(self) -> bool:
        """Whether somebody who knows a seed can repeat the stream. A node outside tests refuses such a
        source."""
        ...

    def bytes(self, n: int) -> _Bytes:
        """The next `n` bytes of the stream, `n >= 0`."""
        ...

    def child(self, label: str) -> Randomness:
        """A stream independent of this one and of every child with another label."""
        ...


class SystemRandomness:
    """The operating system's generator. The only source that protects patients."""

    seeded: Final = False

    def bytes(self, n: int) -> _Bytes:
        """`n` fresh bytes from the kernel."""
        return os.urandom(n)

    def child(self, label: str) -> SystemRandomness:
        """The kernel's generator again: its outputs are independent already."""
        return SystemRandomness()


class SeededRandomness:
    """A repeatable AES-256-CTR keystream, for tests, studies and the demo only.

    Two reads of 3 and 5 bytes give the same as one of 8. A child's stream depends on its label and its
    ancestors, never on how much was read before.

    Args:
        seed: bytes of any length, or any integer; `7` and `b"7"` are different seeds.
        label: what the stream is for; streams of different labels are independent.
    """

    seeded: Final = True

    def __init__(self, seed: _Bytes | int, label: str) -> None:
        kind, value = ("int", str(seed).encode()) if isinstance(seed, int) else ("bytes", seed)
        self._key = _derive(_KEY_DOMAIN, kind, label, value)
        self._label = label
        self._keystream = Cipher(AES(self._key), CTR(builtins.bytes(16))).encryptor()

    def bytes(self, n: int) -> _Bytes:
        """The next `n` bytes of the keystream."""
        return self._keystream.update(builtins.bytes(n))

    def child(self, label: str) -> SeededRandomness:
        """The stream of this one's key and `label`."""
        # The key is expanded once more under another kind, so that no child meets a stream made from a seed.
        return SeededRandomness(_derive(_KEY_DOMAIN, "child", label, self._key), f"{self._label}/{label}")

    def __repr__(self) -> str:
        return f"SeededRandomness(seed=(omitted), label={self._label!r})"


def _derive(domain: _Bytes, kind: str, label: str, secret: _Bytes) -> _Bytes:
    """A 32-byte key; every part is written with its length, so that no two lists of parts read the same."""
    digest = hashlib.sha3_256()
    for part in (domain, kind.encode(), label.encode(), secret):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def uniform64(rng: Randomness, count: int) -> npt.NDArray[np.uint64]:
    """`count` independent uniform 64-bit words, shape `(count,)`."""
    return np.frombuffer(rng.bytes(8 * count), dtype="<u8").astype(np.uint64)


def randint_below(rng: Randomness, n: int) -> int:
    """A uniform integer in `[0, n)`, of any size, without modulo bias.

    Raises:
        ValueError: `n < 1` (a mistake of our own code; no outside value reaches this unchecked).
    """
    if n < 1:
        raise ValueError(f"there is no integer in [0, {n})")
    bits = (n - 1).bit_length()
    if bits == 0:
        return 0
    size = (bits + 7) // 8
    while True:  # fewer than two tries on average
        value = int.from_bytes(rng.bytes(size), "little") >> (8 * size - bits)
        if value < n:
            return value


def integers_below(rng: Randomness, n: int, count: int) -> npt.NDArray[np.int64]:
    """`count` uniform integers in `[0, n)`, `1 <= n <= 2**62`, without modulo bias; shape `(count,)`."""
    if not 1 <= n <= 2**62:
        raise ValueError(f"n must lie in [1, 2**62], not {n}")
    bits = (n - 1).bit_length()
    if bits == 0:
        return np.zeros(count, dtype=np.int64)
    shift = np.uint64(64 - bits)
    found = np.empty(count, dtype=np.int64)
    have = 0
    while have < count:
        words = (uniform64(rng, count - have) >> shift).astype(np.int64)
        kept = words[words < n]
        found[have : have + kept.size] = kept
        have += kept.size
    return found


def permutation(rng: Randomness, n: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of `0 … n-1`, shape `(n,)`: the order of distinct uniform keys."""
    while True:
        keys = uniform64(rng, n)
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        # A tie would favour one order: draw again (a chance of about n² / 2^65).
        if not np.any(ranked[1:] == ranked[:-1]):
            return order.astype(np.int64)


def poisson_sample(rng: Randomness, n: int, sampling_rate: float) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the members of `0 … n-1` that a Poisson batch takes, each with `sampling_rate`.

    The batch may be empty. The chance is rounded down to a multiple of 2^-64, never above the rate that is
    charged. Amplification by sampling holds only while the batch is secret, so it is drawn from the
    cryptographic stream itself.

    Raises:
        ValueError: `sampling_rate` is not in `(0, 1]`.
    """
    if not 0.0 < sampling_rate <= 1.0:
        raise ValueError(f"the sampling rate must lie in (0, 1], not {sampling_rate}")
    if sampling_rate == 1.0:
        return np.arange(n, dtype=np.int64)
    threshold = np.uint64(int(sampling_rate * 2.0**64))  # exact: scaling by a power of two rounds nothing
    return np.flatnonzero(uniform64(rng, n) < threshold).astype(np.int64)


def numpy_generator(rng: Randomness) -> np.random.Generator:
    """A fast numpy generator for bulk draws that protect nobody: shuffles, synthetic data, bootstrap.

    Its Philox gets 384 fresh bits as key (128) and counter (256). Philox is not a cipher: neither noise nor
    the batches that privacy rests on come from here; take `mechanisms` and `poisson_sample`.
    """
    words = uniform64(rng, 6)
    return np.random.Generator(np.random.Philox(key=words[:2], counter=words[2:]))
