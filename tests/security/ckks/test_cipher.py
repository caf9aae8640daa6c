"""TenSEAL behind its wrapper: exact folds, the noise that the encoding counts on, bytes that nobody should parse."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.ckks.cipher import PublicKey, SecretKey, key_id, make_key, matches
from security.ckks.encoding import MAX_CIPHERTEXT_BYTES, NOISE, SLOTS, DamagedCiphertextError, SlotCode
from security.secure_sum.errors import MalformedMessageError
from security.secure_sum.masks import word_type
from security.secure_sum.spec import Ring
from tests.security.ckks.forged import minus, zero_ciphertext

PUBLIC, SECRET = make_key()
PUBLIC_KEY, SECRET_KEY = PublicKey(PUBLIC), SecretKey(SECRET)
CODE = SlotCode.of(32, 9)
RINGS: tuple[Ring, ...] = (16, 32, 64)


def ciphertext(words: object = range(10)) -> bytes:
    return PUBLIC_KEY.encrypt(CODE.to_slots(np.asarray(words, dtype=np.uint32)), CODE.scale)


def opened(*blobs: bytes, secret: SecretKey = SECRET_KEY, length: int = 10) -> list[int]:
    total = None
    for blob in blobs:
        total = secret.add(total, secret.parse(blob, CODE.scale))
    return CODE.from_slots(secret.decrypt(total), length, len(blobs)).tolist()  # type: ignore[no-any-return]


@settings(max_examples=10, deadline=None)
@given(ring=st.sampled_from(RINGS), members=st.sampled_from((1, 3, 9, 16, 40)), seed=st.integers(0, 2**32))
def test_whole_words_at_both_ends_of_the_ring_add_up_exactly(ring: Ring, members: int, seed: int) -> None:
    code = SlotCode.of(ring, members)
    rng = np.random.default_rng(seed)
    kind = word_type(ring)
    vectors = [rng.integers(0, 2**ring, code.words, dtype=kind) for _ in range(members)]
    vectors[0][:], vectors[-1][::2] = 2**ring - 1, 0
    total = None
    for vector in vectors:
        total = SECRET_KEY.add(
            total, SECRET_KEY.parse(PUBLIC_KEY.encrypt(code.to_slots(vector), code.scale), code.scale)
        )
    expected = np.sum(vectors, axis=0, dtype=kind)
    assert code.from_slots(SECRET_KEY.decrypt(total), code.words, members).tolist() == expected.tolist()


def test_the_noise_is_what_the_encoding_counts_on() -> None:
    values = np.zeros(SLOTS)
    deviations = [
        np.std(SECRET_KEY.decrypt(SECRET_KEY.parse(PUBLIC_KEY.encrypt(values, 2.0**17), 2.0**17)) * 2.0**17)
        for _ in range(40)
    ]
    assert 0.9 * NOISE < float(np.mean(deviations)) < NOISE


def test_two_encryptions_of_the_same_words_differ() -> None:
    assert ciphertext() != ciphertext()
    assert len(ciphertext()) < MAX_CIPHERTEXT_BYTES


def test_a_ciphertext_of_another_key_is_found_in_the_fold() -> None:
    other = PublicKey(make_key()[0]).encrypt(CODE.to_slots(np.arange(10, dtype=np.uint32)), CODE.scale)
    with pytest.raises(DamagedCiphertextError):
        opened(ciphertext(), other)


def test_keys_that_do_not_belong_together_are_told_apart() -> None:
    assert matches(PUBLIC_KEY, SECRET_KEY)
    assert not matches(PUBLIC_KEY, SecretKey(make_key()[1]))
    assert key_id(PUBLIC) == PUBLIC_KEY.id


def test_the_secret_key_does_not_print() -> None:
    assert repr(SECRET_KEY) == "SecretKey(omitted)"


def _resized(blob: bytes) -> bytes:
    return blob[:8] + struct.pack("<Q", len(blob)) + blob[16:]


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda b: b"",
    "a header alone": lambda b: _resized(b[:16]),
    "cut short": lambda b: b[:-1],
    "cut short, with a fitting header": lambda b: _resized(b[:1000]),
    "longer than any": lambda b: _resized(b + bytes(200_000)),
    "text": lambda b: b"not a ciphertext " * 100,
    "TenSEAL's own wrapper around it": lambda b: b"\x0a\x02\x80\x10\x12" + b,
    "the other kind of key's bytes": lambda b: PUBLIC if b is not PUBLIC else SECRET,
    "zeros with a header": lambda b: _resized(b[:16] + bytes(1000)),
}


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE)
def test_bytes_that_are_none_are_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(MalformedMessageError):
        SECRET_KEY.parse(spoil(ciphertext()), CODE.scale)
    with pytest.raises(MalformedMessageError):
        PublicKey(spoil(PUBLIC))
    with pytest.raises(MalformedMessageError):
        SecretKey(spoil(SECRET))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_end_the_process_and_never_open_another_sum_unseen(data: st.DataObject) -> None:
    blob = bytearray(ciphertext())
    where = st.one_of(st.integers(0, 200), st.integers(0, 61_000))
    for place in data.draw(st.lists(where, min_size=1, max_size=4)):
        blob[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedMessageError, DamagedCiphertextError):
        assert opened(bytes(blob)) == list(range(10))  # bits that nobody reads


def test_a_ciphertext_of_another_scale_is_refused() -> None:
    other = PUBLIC_KEY.encrypt(CODE.to_slots(np.arange(10, dtype=np.uint32)), 2 * CODE.scale)
    with pytest.raises(MalformedMessageError, match="other parameters"):
        SECRET_KEY.parse(other, CODE.scale)


def test_a_ciphertext_out_of_ntt_form_is_refused_before_it_is_added() -> None:
    zero = SECRET_KEY.parse(zero_ciphertext(CODE.scale, ntt_form=True), CODE.scale)
    total = SECRET_KEY.add(zero, SECRET_KEY.parse(ciphertext(), CODE.scale))
    assert CODE.from_slots(SECRET_KEY.decrypt(total), 10, 1).tolist() == list(range(10))  # so it is the form alone:
    with pytest.raises(MalformedMessageError, match="other parameters"):
        SECRET_KEY.parse(zero_ciphertext(CODE.scale, ntt_form=False), CODE.scale)


def test_ciphertexts_that_do_not_add_up_name_nobody() -> None:
    blob = ciphertext()
    total = SECRET_KEY.parse(minus(blob, SECRET_KEY, CODE.scale), CODE.scale)
    with pytest.raises(DamagedCiphertextError) as refused:
        SECRET_KEY.add(total, SECRET_KEY.parse(blob, CODE.scale))
    assert refused.value.culprits == ()


def test_ciphertexts_can_be_taken_off_a_fold_without_any_key_as_the_threat_model_says() -> None:
    one, other = ciphertext(range(10)), ciphertext(range(10, 20))
    assert opened(one, other, minus(other, SECRET_KEY, CODE.scale)) == list(range(10))
