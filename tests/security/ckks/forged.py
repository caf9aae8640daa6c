"""Ciphertexts that no honest institution makes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from security.ckks.cipher import PublicKey, SecretKey, _fields, make_key
from security.ckks.encoding import DEGREE, SLOTS

_HEADER = b"\x5e\xa1\x10"
_ZEROS = np.zeros(SLOTS)


def zero_ciphertext(scale: float, *, ntt_form: bool) -> bytes:
    """A ciphertext with zeros for coefficients, as SEAL 4 lays it out; it adds nothing to a fold. Needs no key."""
    public, secret = make_key()
    (honest,) = SecretKey(secret).parse(PublicKey(public).encrypt(_ZEROS, scale), scale).ciphertext()
    data = struct.pack("<Q", 2 * DEGREE) + bytes(2 * DEGREE * 8)
    data = _HEADER + b"\4\3\0\0\0" + struct.pack("<Q", 16 + len(data)) + data
    body = struct.pack("<4Q?3QdQ", *honest.parms_id(), ntt_form, 2, DEGREE, 1, scale, 1) + data
    packed = zlib.compress(body)
    return _HEADER + b"\4\3\1\0\0" + struct.pack("<Q", 16 + len(packed)) + packed


def minus(blob: bytes, parser: SecretKey, scale: float) -> bytes:
    """What takes a ciphertext off a fold again. Computed of the ciphertext alone: `parser` is whoever's."""
    wrapped: bytes = parser.parse(blob, scale).neg_().serialize()
    return bytes(_fields(wrapped)[2])
