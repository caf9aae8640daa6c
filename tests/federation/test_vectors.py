"""What identifies and measures an upload, and the spool in memory against the plain meaning of its promises."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.content_hash import content_digest
from federation.in_memory import MemoryContentStore, MemoryReader, MemorySpool
from federation.vectors import (
    ContentStore,
    Receipt,
    Spool,
    UnknownContentError,
    UploadKey,
    UploadLengthError,
    UploadMismatchError,
    UploadOffsetError,
    check_digest,
)
from security.errors import ConsiliumError, LocalMisuseError

RUN = "ab" * 32


def key(institution: str = "north", attempt: int = 0, sum_name: str = "A", round_number: int = 1) -> UploadKey:
    return UploadKey(RUN, round_number, attempt, sum_name, institution)


@pytest.mark.parametrize(
    ("run", "round_number", "attempt", "sum_name", "institution"),
    [
        ("../etc", 0, 0, "A", "north"),
        ("AB" * 32, 0, 0, "A", "north"),
        ("", 0, 0, "A", "north"),
        (RUN, -1, 0, "A", "north"),
        (RUN, 0, 1 << 32, "A", "north"),
        (RUN, 0, 0, "A/B", "north"),
        (RUN, 0, 0, "..", "north"),
        (RUN, 0, 0, "", "north"),
        (RUN, 0, 0, "A", "../north"),
        (RUN, 0, 0, "A", "north.part"),
        (RUN, 0, 0, "A", "north\n"),
        (RUN, 0, 0, "A", "north\0"),
    ],
)
def test_a_key_that_could_leave_its_folder_is_refused(
    run: str, round_number: int, attempt: int, sum_name: str, institution: str
) -> None:
    with pytest.raises(ConsiliumError):
        UploadKey(run, round_number, attempt, sum_name, institution)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_only_a_digest_names_content(digest: str) -> None:
    with pytest.raises(UnknownContentError):
        check_digest(digest)


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_a_receipt_knows_the_hash_of_any_chunking(data: bytes, cuts: list[int]) -> None:
    receipt = Receipt(len(data))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for low, high in pairwise(edges):
        receipt.check_append(low, high - low)
        receipt.advance(memoryview(data[low:high]))
    digest = content_digest(data)
    assert receipt.check_complete(digest, len(data)) == digest
    with pytest.raises(UploadMismatchError):
        receipt.check_complete("0" * 64, len(data))
    with pytest.raises(UploadMismatchError):
        receipt.check_complete(digest, len(data) + 1)


def test_a_receipt_is_incomplete_until_the_declared_length() -> None:
    receipt = Receipt(4)
    receipt.advance(memoryview(b"abc"))
    with pytest.raises(UploadMismatchError):
        receipt.check_complete(content_digest(b"abc"), 3)
    with pytest.raises(UploadOffsetError) as error:
        receipt.check_append(0, 1)
    assert error.value.expected == 3
    with pytest.raises(UploadLengthError):
        receipt.check_append(3, 2)
    with pytest.raises(UploadLengthError):
        Receipt(-1)


def test_spool_and_store_in_memory_are_what_the_protocols_say() -> None:
    spool: Spool = MemorySpool()
    data = b"masked words"
    assert spool.begin(key(), len(data)) == 0
    spool.append(key(), 0, data)
    spool.complete(key(), content_digest(data), len(data))
    out = bytearray(6)
    spool.open(key()).read_into(7, memoryview(out)[:5])
    assert bytes(out[:5]) == b"words"

    store: ContentStore = MemoryContentStore()
    digest = store.put(data)
    assert digest == content_digest(data)
    assert store.size(digest) == len(data)


@given(data=st.binary(max_size=64), offset=st.integers(-2, 70), size=st.integers(0, 70))
def test_a_reader_reads_inside_its_vector_only(data: bytes, offset: int, size: int) -> None:
    reader = MemoryReader(data)
    out = bytearray(size)
    if offset < 0 or offset + size > len(data):
        with pytest.raises(LocalMisuseError):
            reader.read_into(offset, memoryview(out))
    else:
        reader.read_into(offset, memoryview(out))
        assert bytes(out) == data[offset : offset + size]
