"""The certified identity key of one party and its signatures (DESIGN.md, "Secure sum" rule 7, "Identity").

One key serves three purposes: the TLS 1.3 handshake, the certificate request and the protocol's own messages.
They cannot be confused: what is signed here begins with a zero byte (see `signed_bytes`), what a handshake
signs with 0x20 (RFC 8446, 4.4.3), and a certificate request with 0x30 (DER SEQUENCE).
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import Final, NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from security.errors import ConfigurationError, LocalMisuseError, ProtocolError

PUBLIC_BYTES: Final = 33
SIGNATURE_BYTES: Final = 64
PUBLIC_TEXT_PREFIX: Final = "p256:"

_CURVE: Final = ec.SECP256R1()
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SP 800-186
# Deterministic nonces (RFC 6979): a machine restored from a snapshot cannot repeat a nonce and lose its key.
_ECDSA: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class BadSignatureError(ProtocolError):
    """A signature, or the public key that it should verify under, is not valid."""

    code = "bad-signature"


class IdentityKey:
    """An ECDSA P-256 / SHA-256 private key. Prints as `(omitted)` and refuses to be pickled or copied."""

    __slots__ = ("_key", "_public")

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        """Wraps a private key.

        Raises:
            ConfigurationError: the key is on another curve.
        """
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise ConfigurationError(
                f"the key is on the curve {private_key.curve.name}, not P-256 (secp256r1).",
                remedy=_MAKE_A_KEY,
            )
        self._key = private_key
        self._public = compressed_point(private_key.public_key())

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the operating system's generator."""
        return cls(ec.generate_private_key(_CURVE))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads an unencrypted private key in PEM.

        Raises:
            ConfigurationError: not PEM, encrypted, or not a P-256 key; the message holds no part of it.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except TypeError:
            raise ConfigurationError(
                "the private key is encrypted with a passphrase.",
                remedy="Decrypt it once with `openssl pkey` and protect the file with `chmod 600` instead.",
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigurationError("this is not a private key in PEM form.", remedy=_MAKE_A_KEY) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationError("the private key is not an elliptic-curve key.", remedy=_MAKE_A_KEY)
        return cls(key)

    def to_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM; the caller keeps the file at mode 0600."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public(self) -> bytes:
        """The public key as a 33-byte compressed point (SEC 1, 2.3.3)."""
        return self._public

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The private key itself, for making certificate requests."""
        return self._key

    def sign(self, tag: str, payload: bytes) -> bytes:
        """Signs `payload` under the domain `tag`.

        Args:
            tag: what is signed, 1 to 255 printable ASCII characters, for example `consilium/v1/survivors`.
            payload: any bytes.

        Returns:
            64 bytes: r then s, big-endian, s in the lower half of the order. One signature, one encoding.

        Raises:
            LocalMisuseError: the tag is empty, too long or not printable ASCII.
        """
        r, s = decode_dss_signature(self._key.sign(signed_bytes(tag, payload), _ECDSA))
        s = min(s, P256_ORDER - s)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def __repr__(self) -> str:
        return f"IdentityKey(public={public_key_text(self._public)!r}, private=(omitted))"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise LocalMisuseError(
            "an identity key cannot be pickled or copied.",
            remedy="Write to_pem() to a file of mode 0600 instead.",
        )


def verify(public: bytes, tag: str, payload: bytes, signature: bytes) -> None:
    """Checks a signature made by `IdentityKey.sign`; returns nothing, so that no result can be forgotten.

    Args:
        public: 33-byte compressed point.
        tag: the domain tag that the message must have been signed under.
        payload: the bytes that must have been signed.
        signature: 64 bytes.

    Raises:
        BadSignatureError: wrong key, tag, payload or signature, or a malformed key or signature.
        LocalMisuseError: the tag is not one that `sign` would take (tags are ours, never a peer's).
    """
    message = signed_bytes(tag, payload)
    if len(signature) != SIGNATURE_BYTES:
        raise _bad(f"the signature has {len(signature)} bytes, not {SIGNATURE_BYTES}.")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < P256_ORDER and 0 < s <= P256_ORDER // 2):
        raise _bad("the signature is not in its one allowed encoding.")
    key = _load_point(bytes(public))
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise _bad("the signature does not verify under the sender's key.") from None


def signed_bytes(tag: str, payload: bytes) -> bytes:
    """What is really signed: two length bytes (big-endian, so the first is zero), the tag, the payload.

    Raises:
        LocalMisuseError: the tag is empty, longer than 255 characters or not printable ASCII.
    """
    if not (0 < len(tag) <= 255 and tag.isascii() and tag.isprintable()):
        raise LocalMisuseError(f"{tag!r} is not a domain tag.", remedy="Use 1 to 255 printable ASCII characters.")
    return len(tag).to_bytes(2, "big") + tag.encode("ascii") + payload


def compressed_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The 33-byte form of a P-256 public key (SEC 1, 2.3.3)."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def public_key_text(public: bytes) -> str:
    """A public key as plans write it: `p256:` and 44 base64 characters.

    Raises:
        BadSignatureError: `public` is not a compressed point of P-256.
    """
    _load_point(bytes(public))
    return PUBLIC_TEXT_PREFIX + base64.b64encode(public).decode("ascii")


def parse_public_key_text(text: str) -> bytes:
    """The 33 bytes behind `public_key_text`; surrounding blanks are forgiven.

    Raises:
        ConfigurationError: the prefix, the base64 or the point is wrong.
    """
    text = text.strip()
    remedy = "Copy the whole `p256:…` line that `consilium pki show` prints for the certificate."
    if not text.startswith(PUBLIC_TEXT_PREFIX):
        raise ConfigurationError("the public key does not begin with `p256:`.", remedy=remedy)
    try:
        public = base64.b64decode(text.removeprefix(PUBLIC_TEXT_PREFIX), validate=True)
        _load_point(public)
    except (binascii.Error, ValueError, BadSignatureError):
        raise ConfigurationError("the public key is not a P-256 key in base64.", remedy=remedy) from None
    return public


@lru_cache(maxsize=4096)  # decompressing costs a square root; a round verifies many messages under few keys
def _load_point(public: bytes) -> ec.EllipticCurvePublicKey:
    if len(public) != PUBLIC_BYTES:
        raise _bad(f"the public key has {len(public)} bytes, not {PUBLIC_BYTES}.")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
    except ValueError:
        raise _bad("the public key is not a point of P-256.") from None


def _bad(message: str) -> BadSignatureError:
    return BadSignatureError(message, remedy="Refuse the message; compare the sender's key with the plan's roster.")


_MAKE_A_KEY: Final = "Make one with `consilium pki issue`."
