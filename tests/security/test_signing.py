"""Signatures verify exactly where they should, and secrets stay inside the key."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import ConfigurationError, LocalMisuseError
from security.signing import (
    BadSignatureError,
    IdentityKey,
    parse_public_key_text,
    public_key_text,
    signed_bytes,
    verify,
)

KEY = IdentityKey.generate()
OTHER = IdentityKey.generate()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
UNCOMPRESSED = KEY.private_key.public_key().public_bytes(
    serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
)
TAGS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)


@settings(max_examples=60)
@given(TAGS, st.binary(max_size=300))
def test_what_is_signed_verifies(tag: str, payload: bytes) -> None:
    signature = KEY.sign(tag, payload)
    assert len(signature) == 64
    verify(KEY.public, tag, payload, signature)


@settings(max_examples=60)
@given(TAGS, st.binary(max_size=40), st.data())
def test_any_changed_bit_is_refused(tag: str, payload: bytes, data: st.DataObject) -> None:
    good = [KEY.public, payload, KEY.sign(tag, payload)]
    which = data.draw(st.sampled_from([0, 1, 2] if payload else [0, 2]))
    bit = data.draw(st.integers(0, 8 * len(good[which]) - 1))
    changed = bytearray(good[which])
    changed[bit // 8] ^= 1 << (bit % 8)
    good[which] = bytes(changed)
    with pytest.raises(BadSignatureError):
        verify(good[0], tag, good[1], good[2])


@given(TAGS, st.binary(max_size=40), TAGS, st.binary(max_size=40))
def test_signed_bytes_are_injective(tag: str, payload: bytes, tag2: str, payload2: bytes) -> None:
    assert (signed_bytes(tag, payload) == signed_bytes(tag2, payload2)) == ((tag, payload) == (tag2, payload2))


def test_a_tag_cannot_run_into_its_payload() -> None:
    signature = KEY.sign("keys", b"hello")
    for tag, payload in [("key", b"shello"), ("keysh", b"ello"), ("shares", b"hello")]:
        with pytest.raises(BadSignatureError):
            verify(KEY.public, tag, payload, signature)


def test_signed_bytes_cannot_be_a_handshake_or_a_certificate_request() -> None:
    assert signed_bytes("t" * 255, b"")[0] == 0


def test_the_mirrored_signature_is_refused() -> None:
    signature = KEY.sign("keys", b"hello")
    s = int.from_bytes(signature[32:], "big")
    with pytest.raises(BadSignatureError, match="encoding"):
        verify(KEY.public, "keys", b"hello", signature[:32] + (ORDER - s).to_bytes(32, "big"))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\0" * 64,
        b"\xff" * 64,
        KEY.sign("keys", b"hello")[:63],
        KEY.sign("keys", b"hello") + b"\0",
        KEY.sign("keys", b"hello")[:32] + b"\0" + KEY.sign("keys", b"hello")[32:],
        OTHER.sign("keys", b"hello"),
    ],
    ids=["empty", "zeros", "ones", "short", "long", "padded", "other-key"],
)
def test_bad_signatures_give_one_typed_error(signature: bytes) -> None:
    with pytest.raises(BadSignatureError) as caught:
        verify(KEY.public, "keys", b"hello", signature)
    assert caught.value.code == "bad-signature"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "public",
    [
        b"",
        UNCOMPRESSED,
        b"\x02" * 32,
        b"\0" * 33,
        b"\x02" + b"\xff" * 32,
        b"\x04" + KEY.public[1:],
        KEY.public + b"\0",
        b"\x04" + b"\1" * 64,
    ],
    ids=["empty", "uncompressed", "short", "infinity", "past-the-field", "wrong-form", "long", "off-curve"],
)
def test_malformed_points_give_the_same_error(public: bytes) -> None:
    with pytest.raises(BadSignatureError):
        verify(public, "keys", b"hello", KEY.sign("keys", b"hello"))
    with pytest.raises(BadSignatureError):
        public_key_text(public)


@pytest.mark.parametrize("tag", ["", "t" * 256, "a\n", "é"])
def test_bad_tags_are_our_own_misuse(tag: str) -> None:
    with pytest.raises(LocalMisuseError):
        KEY.sign(tag, b"")
    with pytest.raises(LocalMisuseError):
        verify(KEY.public, tag, b"", b"\1" * 64)


def test_signing_is_deterministic() -> None:
    assert KEY.sign("keys", b"hello") == KEY.sign("keys", b"hello")
    assert KEY.sign("keys", b"hello") != KEY.sign("keys", b"hallo")


def test_pem_round_trip() -> None:
    again = IdentityKey.from_pem(KEY.to_pem())
    assert again.public == KEY.public
    assert KEY.to_pem().startswith(b"-----BEGIN PRIVATE KEY-----")
    verify(KEY.public, "keys", b"x", again.sign("keys", b"x"))


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        (b"", "not a private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key"),
        (_pem(ed25519.Ed25519PrivateKey.generate()), "elliptic-curve"),
        (_pem(ec.generate_private_key(ec.SECP384R1())), "secp384r1"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "passphrase"),
    ],
    ids=["empty", "garbage", "ed25519", "p384", "encrypted"],
)
def test_other_keys_are_refused_with_a_remedy(pem: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        IdentityKey.from_pem(pem)
    assert caught.value.remedy


def test_the_secret_is_not_printed_pickled_or_copied() -> None:
    secret = KEY.private_key.private_numbers().private_value
    for text in (repr(KEY), str(KEY)):
        assert "(omitted)" in text
        assert str(secret) not in text
        assert f"{secret:x}" not in text
    refused: list[Callable[[IdentityKey], object]] = [pickle.dumps, copy.copy, copy.deepcopy]
    for copier in refused:
        with pytest.raises(LocalMisuseError):
            copier(KEY)


def test_public_key_text_round_trip() -> None:
    text = public_key_text(KEY.public)
    assert text.startswith("p256:")
    assert len(text) == 5 + 44
    assert parse_public_key_text(f"  {text}\n") == KEY.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p256:",
        KEY.public.hex(),
        "p384:" + public_key_text(KEY.public)[5:],
        public_key_text(KEY.public)[:-1],
        public_key_text(KEY.public)[:-4],
        "p256:" + "A" * 44,
        "p256:é",
        public_key_text(KEY.public).replace("p256:", "p256:!"),
    ],
    # Names, since the key is another one in every process of a parallel run.
    ids=["empty", "nothing", "hex", "p384", "short", "unpadded", "no-point", "not-ascii", "not-base64"],
)
def test_bad_public_key_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_public_key_text(text)
    assert "pki show" in caught.value.remedy
