"""The content hash is BLAKE3, whatever the package underneath."""

from __future__ import annotations

import numpy as np
import pytest

from federation.content_hash import ContentHash, content_digest

PUBLISHED = {  # test_vectors.json of BLAKE3-team/BLAKE3: input length to the first 32 bytes of `hash`
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
}


@pytest.mark.parametrize("length", PUBLISHED)
def test_digests_are_the_published_ones(length: int) -> None:
    data = bytes(k % 251 for k in range(length))
    assert content_digest(data) == PUBLISHED[length]


def test_pieces_hash_as_the_whole() -> None:
    data, running = bytes(range(256)) * 40, ContentHash()
    for start in range(0, len(data), 333):
        running.update(data[start : start + 333])
    assert running.hexdigest() == content_digest(data)


def test_any_elements_are_hashed_as_their_bytes() -> None:
    words = np.arange(12, dtype="<u4").reshape(3, 4)
    assert content_digest(words.data) == content_digest(words.tobytes())
    assert content_digest(words[:0].data) == PUBLISHED[0]
