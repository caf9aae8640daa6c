"""Bits by position: however they are read, they are one stream; another key gives another."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from security.privacy.positioned_bits import PositionedBits

KEY = bytes(range(32))
WHOLE = PositionedBits(KEY).words(0, 5000).copy()


@settings(deadline=None)
@given(start=st.integers(0, 4900), count=st.integers(0, 100))
def test_any_reading_is_part_of_one_stream(start: int, count: int) -> None:
    assert np.array_equal(PositionedBits(KEY).words(start, count), WHOLE[start : start + count])


def test_the_stream_is_aes_ctr_under_the_key() -> None:
    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(bytes(16))
    assert WHOLE[:8].tobytes() == block


def test_other_keys_give_other_bits_and_the_key_is_not_shown() -> None:
    other = PositionedBits(bytes(32))
    assert not np.array_equal(other.words(0, 100), WHOLE[:100])
    assert repr(other) == "PositionedBits(key omitted)"
