"""The two loops in which masks cost, alone, against their floors: a masked upload, and opening a sum."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.bench_rates import BLOCK, expander, hasher
from federation.content_hash import ContentHash
from federation.fixed_point import ModelEncoding
from federation.in_memory import MemoryReader
from institution_node.encoding import UpdateWords
from institution_node.updates import ArrayUpdate
from security.secure_sum.fold import fold
from security.secure_sum.masks import Masker, SignedKey
from security.secure_sum.messages import Signed
from security.secure_sum.recover import PartOpening
from security.secure_sum.spec import Part
from security.secure_sum.upload import MaskedUpload, Segment

INSTITUTIONS: Final = 9
GONE: Final = 3
WORDS: Final = 1 << 20


def _keys(count: int) -> tuple[SignedKey, ...]:
    return tuple(SignedKey(1 if k % 2 else -1, secrets.token_bytes(32)) for k in range(count))


def _part() -> Part:
    return Part("encoder/vector", 32, WORDS, frozenset(f"node-{k}" for k in range(INSTITUTIONS)))


def _processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _floor(keystreams: int, hashed: int) -> Callable[[], None]:
    """Expands that many keystreams of a vector and hashes that many vectors: what cannot be left out."""
    expand, digest = expander(), hasher()
    vector = 4 * WORDS

    def work() -> None:
        done = 0
        while done < keystreams * vector:
            done += expand()
        for _ in range(hashed * vector // BLOCK):
            digest()

    return work


def upload_to_floor() -> float:
    """Processor time of one of nine institutions' masked upload, encoded, masked and hashed, over that of its nine
    keystreams and one hash."""
    rng = np.random.default_rng(1)
    delta = rng.standard_normal(WORDS - 1, np.float32) * np.float32(0.01)
    source = UpdateWords(ArrayUpdate(delta), 0.1, ModelEncoding(0.1, 1.0, INSTITUTIONS))
    segments = [Segment(_part(), source, Masker(_keys(INSTITUTIONS)))]

    def upload() -> None:
        digest = ContentHash()
        for chunk in MaskedUpload(Signed("upload", b"", b""), segments).chunks():
            digest.update(chunk)

    floor = _processor_seconds(_floor(INSTITUTIONS, 1))
    return _processor_seconds(upload) / floor


def opening_to_floor() -> float:
    """Processor time of opening a sum of six survivors of nine, over that of the keystreams to take off."""
    alive = INSTITUTIONS - GONE
    keystreams = alive + GONE * alive
    uploads = {f"node-{k}": (MemoryReader(secrets.token_bytes(4 * WORDS)), 0) for k in range(alive)}
    opening = PartOpening(_part(), tuple(uploads), _keys(keystreams))
    floor = _processor_seconds(_floor(keystreams, 0))
    return _processor_seconds(lambda: fold(opening, uploads, lambda chunk: None)) / floor


def signature_seconds(count: int) -> float:
    """Processor seconds that so many signatures take to make and to check: what messages cost at least."""
    key = ec.generate_private_key(ec.SECP256R1())
    how, message = ec.ECDSA(hashes.SHA256()), secrets.token_bytes(256)

    def work() -> None:
        for _ in range(count):
            key.public_key().verify(key.sign(message, how), message, how)

    return _processor_seconds(work)
