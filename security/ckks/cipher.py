"""TenSEAL, and nothing else of it anywhere: keys, ciphertexts and folds as SEAL's own serialised bytes.

TenSEAL wraps SEAL's bytes in a message that it does not check: a missing field crashes the process (seen). So only
SEAL's part travels, whose own checks held against 12,000 mutations of it, and the wrapper is made here. All the same,
bytes are authenticated before they come here.

Keys and encryption noise come from SEAL's own cryptographic generator; a seed does not reach them. Sums are exact, so a
seeded run gives the same model bytes nevertheless.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import numpy as np
import tenseal as ts

from security.ckks.encoding import (
    DEGREE,
    MAX_CIPHERTEXT_BYTES,
    MODULI_BITS,
    SLOTS,
    DamagedCiphertextError,
    Slots,
)
from security.ckks.messages import MAX_KEY_BYTES
from security.secure_sum.errors import MalformedMessageError

_SEAL: Final = b"\x5e\xa1\x10"


def make_key() -> tuple[bytes, bytes]:
    """A fresh key pair: the public key (123 KB) and the secret key (62 KB), as SEAL writes them."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI_BITS))
    public = context.serialize(
        save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
    )
    secret = context.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    return _first_field(_fields(public)[2]), _first_field(_fields(secret)[3])


def key_id(public: bytes) -> bytes:
    """SHA-256 of a public key: names the key in every header."""
    return hashlib.sha256(public).digest()


class PublicKey:
    """Encrypts.

    Args:
        blob: from `make_key`.

    Raises:
        MalformedMessageError: no public key of these parameters.
    """

    def __init__(self, blob: bytes) -> None:
        _check_blob(blob, MAX_KEY_BYTES, "a public key")
        self._context = _load_context(_field(2, _field(1, blob) + _FLAGS))
        self.id = key_id(blob)

    def encrypt(self, slots: Slots, scale: float) -> bytes:
        """One ciphertext of float64[SLOTS], as SEAL's bytes."""
        vector = ts.ckks_vector(self._context, slots.tolist(), scale=scale)
        wrapped: bytes = vector.serialize()
        return bytes(_fields(wrapped)[2])


class SecretKey:
    """Decrypts folds. Prints as nothing.

    Args:
        blob: from `make_key`.

    Raises:
        MalformedMessageError: no secret key of these parameters.
    """

    def __init__(self, blob: bytes) -> None:
        _check_blob(blob, MAX_KEY_BYTES, "a secret key")
        self._context = _load_context(_field(2, _FLAGS) + _field(3, _field(1, blob)))

    def __repr__(self) -> str:
        return "SecretKey(omitted)"

    def parse(self, blob: bytes, scale: float) -> Any:
        """One ciphertext, for `add`. All that `add` needs is checked here, where it is known whose bytes they are.

        Raises:
            MalformedMessageError: no ciphertext of these parameters and this scale.
        """
        _check_blob(blob, MAX_CIPHERTEXT_BYTES, "a ciphertext")
        wrapped = _SIZES + _field(2, blob) + _SCALE + struct.pack("<d", scale)
        try:
            vector = ts.ckks_vector_from(self._context, wrapped)
            (inner,) = vector.ciphertext()
            shape = inner.size(), inner.coeff_modulus_size(), inner.is_ntt_form()
            sound = inner.scale == scale and shape == (2, 1, True)
        except Exception as error:  # whatever the C++ side throws
            raise MalformedMessageError("a ciphertext does not parse.") from error
        if not sound:
            raise MalformedMessageError("a ciphertext is of other parameters.")
        return vector

    def add(self, total: Any, ciphertext: Any) -> Any:
        """`total` (None: nothing yet) and one more parsed ciphertext.

        Raises:
            DamagedCiphertextError: they do not add up, as where one is minus the others. It names nobody: whoever is
                added last need not be who made the rest so.
        """
        try:
            return ciphertext if total is None else total.add_(ciphertext)
        except Exception as error:  # whatever the C++ side throws
            raise DamagedCiphertextError("the ciphertexts of a fold do not add up.") from error

    def decrypt(self, total: Any) -> Slots:
        """The numbers in a fold: float64[SLOTS]."""
        return np.array(total.decrypt(), dtype=np.float64)


def matches(public: PublicKey, secret: SecretKey) -> bool:
    """Whether what the one encrypts the other decrypts."""
    probe = np.arange(SLOTS, dtype=np.float64)
    scale = 2.0**30
    try:
        opened = secret.decrypt(secret.parse(public.encrypt(probe, scale), scale))
    except MalformedMessageError:
        return False
    return bool(np.all(np.abs(opened - probe) < 0.1))


# -- TenSEAL's wrapper (protocol buffers), made and read here so that nothing of it is believed ------------------------


def _check_blob(blob: bytes, largest: int, what: str) -> None:
    """SEAL's header: magic number, its own length, version, and the length of everything."""
    sound = 16 < len(blob) <= largest and blob.startswith(_SEAL)
    if not sound or int.from_bytes(blob[8:16], "little") != len(blob):
        raise MalformedMessageError(f"malformed message: {what} has not SEAL's header and length.")


def _load_context(keys: bytes) -> Any:
    try:
        return ts.context_from(_PARAMETERS + keys)
    except Exception as error:  # whatever the C++ side throws
        raise MalformedMessageError("an encryption key does not parse.") from error


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _fields(message: bytes) -> dict[int, bytes]:
    """Length-delimited fields of a message that TenSEAL made in this process, by number."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        number, kind = message[at] >> 3, message[at] & 7
        if kind == 2:
            size, shift = 0, 0
            while True:
                at += 1
                size |= (message[at] & 127) << shift
                shift += 7
                if message[at] < 128:
                    break
            found[number] = message[at + 1 : at + 1 + size]
            at += 1 + size
        else:  # 1: eight bytes; 0: all numbers of TenSEAL's wrappers are below 128
            at += 9 if kind == 1 else 2
    return found


def _first_field(message: bytes) -> bytes:
    return _fields(message)[1]


def _public_parameters() -> tuple[bytes, bytes]:
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI_BITS))
    bare = _fields(
        context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    )
    return _field(1, bare[1]), bare[2]


_PARAMETERS, _FLAGS = _public_parameters()
_SIZES: Final = _field(1, _varint(SLOTS))
_SCALE: Final = b"\x19"
