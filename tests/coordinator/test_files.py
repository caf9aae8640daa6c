"""Both spools and both stores, in memory and on disk, keep the same promises."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.files import FileContentStore, FileSpool
from federation.in_memory import MemoryContentStore, MemorySpool
from federation.vectors import (
    ContentStore,
    Spool,
    UnknownContentError,
    UploadConflictError,
    UploadKey,
    UploadLengthError,
    UploadMismatchError,
    UploadMissingError,
    UploadOffsetError,
)
from security.errors import ConsiliumError, LocalMisuseError
from tests.coordinator.uploading import RUN, key, read, sha, upload


@pytest.fixture(params=["memory", "disk"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Spool:
    return MemorySpool() if request.param == "memory" else FileSpool(tmp_path / "spool")


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ContentStore:
    return MemoryContentStore() if request.param == "memory" else FileContentStore(tmp_path / "content")


def test_an_upload_counts_when_complete_and_never_in_part(spool: Spool) -> None:
    data = os.urandom(1000)
    assert spool.begin(key(), 1000) == 0
    spool.append(key(), 0, memoryview(data)[:600])
    assert not spool.is_complete(key())
    assert spool.completed(RUN, 1, 0, "A") == ()
    with pytest.raises(UploadMissingError):
        spool.open(key())
    assert spool.begin(key(), 1000) == 600, "a cut connection goes on where it stopped"
    spool.append(key(), 600, np.frombuffer(data, dtype="<u4")[150:].data)
    spool.complete(key(), sha(data), 1000)
    assert spool.is_complete(key())
    assert spool.completed(RUN, 1, 0, "A") == ("north",)
    assert read(spool.open(key())) == data
    assert spool.offset(key()) == spool.begin(key(), 1000) == 1000


def test_a_chunk_elsewhere_changes_nothing_and_names_the_offset(spool: Spool) -> None:
    spool.begin(key(), 10)
    spool.append(key(), 0, b"abcd")
    for offset in (0, 3, 5):
        with pytest.raises(UploadOffsetError) as error:
            spool.append(key(), offset, b"x")
        assert error.value.expected == spool.offset(key()) == 4
    with pytest.raises(UploadLengthError):
        spool.append(key(), 4, b"1234567")
    spool.append(key(), 4, b"efghij")
    spool.complete(key(), sha(b"abcdefghij"), 10)


@pytest.mark.parametrize(("digest", "length"), [("0" * 64, 3), (sha(b"abc"), 4), (sha(b"abc"), 2), ("", 3)])
def test_a_trailer_that_differs_discards_the_upload(spool: Spool, digest: str, length: int) -> None:
    spool.begin(key(), 3)
    spool.append(key(), 0, b"abc")
    with pytest.raises(UploadMismatchError):
        spool.complete(key(), digest, length)
    assert spool.offset(key()) == 0
    with pytest.raises(UploadMissingError):
        spool.append(key(), 3, b"")
    upload(spool, key(), b"abc")


def test_an_unfinished_upload_cannot_be_completed(spool: Spool) -> None:
    spool.begin(key(), 4)
    spool.append(key(), 0, b"abc")
    with pytest.raises(UploadMismatchError):
        spool.complete(key(), sha(b"abc"), 3)
    assert not spool.is_complete(key())


def test_one_key_takes_one_vector(spool: Spool) -> None:
    spool.begin(key(), 3)
    with pytest.raises(UploadConflictError):
        spool.begin(key(), 4)
    spool.append(key(), 0, b"abc")
    spool.complete(key(), sha(b"abc"), 3)
    spool.complete(key(), sha(b"abc"), 3)  # idempotent
    for again in (
        lambda: spool.begin(key(), 4),
        lambda: spool.append(key(), 0, b"xyz"),
        lambda: spool.append(key(), 3, b"d"),
        lambda: spool.complete(key(), sha(b"xyz"), 3),
        lambda: spool.complete(key(), sha(b"abc"), 4),
    ):
        with pytest.raises(UploadConflictError):
            again()
    assert read(spool.open(key())) == b"abc"


def test_keys_do_not_touch_each_other(spool: Spool) -> None:
    keys = [
        key("north"),
        key("north-2"),
        key("north", attempt=1),
        key("north", sum_name="B"),
        key("north", round_number=2),
        UploadKey("cd" * 32, 1, 0, "A", "north"),
    ]
    for number, one in enumerate(keys):
        upload(spool, one, bytes([number]) * 5)
    for number, one in enumerate(keys):
        assert read(spool.open(one)) == bytes([number]) * 5
    assert spool.completed(RUN, 1, 0, "A") == ("north", "north-2")
    spool.discard(keys[1])
    assert spool.completed(RUN, 1, 0, "A") == ("north",)
    spool.begin(key("south"), 3)
    spool.discard_round(RUN, 1, except_attempt=1)
    assert [spool.is_complete(one) for one in keys] == [False, False, True, False, True, True]
    with pytest.raises(UploadMissingError):
        spool.append(key("south"), 0, b"abc")
    spool.discard_round(RUN, 1)
    spool.discard_round(RUN, 7)
    assert [spool.is_complete(one) for one in keys] == [False, False, False, False, True, True]
    upload(spool, keys[0], b"again")


def test_a_reader_outlives_its_upload(spool: Spool) -> None:
    upload(spool, key(), b"abcdef")
    reader = spool.open(key())
    spool.discard_round(RUN, 1)
    assert read(reader) == b"abcdef"
    with pytest.raises(LocalMisuseError):
        reader.read_into(4, memoryview(bytearray(3)))


def test_an_empty_vector_is_an_upload_too(spool: Spool) -> None:
    upload(spool, key(), b"")
    assert spool.completed(RUN, 1, 0, "A") == ("north",)
    assert spool.open(key()).length == 0


def test_threads_racing_with_the_same_bytes_make_one_upload(spool: Spool) -> None:
    data = os.urandom(64 * 1024)
    errors: list[ConsiliumError] = []

    def send() -> None:
        try:
            spool.begin(key(), len(data))
            while not spool.is_complete(key()):
                at = spool.offset(key())
                try:
                    spool.append(key(), at, memoryview(data)[at : at + 4096])
                    if at + 4096 >= len(data):
                        spool.complete(key(), sha(data), len(data))
                except (UploadOffsetError, UploadConflictError):
                    continue  # another thread was quicker
            spool.complete(key(), sha(data), len(data))
        except ConsiliumError as error:
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read(spool.open(key())) == data


def test_content_is_named_by_what_it_is(store: ContentStore) -> None:
    data = os.urandom(5000)
    digest = store.put(data)
    writer = store.writer()
    writer.write(memoryview(data)[:1234])
    writer.write(data[1234:])
    assert writer.commit() == digest == sha(data)
    assert store.has(digest)
    assert store.size(digest) == 5000
    assert read(store.open(digest)) == data
    with pytest.raises(LocalMisuseError):
        writer.write(b"more")
    with pytest.raises(LocalMisuseError):
        writer.commit()
    writer.abort()
    assert store.has(digest)


def test_unknown_content_is_told(store: ContentStore) -> None:
    for digest in ("0" * 64, "../../etc/passwd", ""):
        with pytest.raises(UnknownContentError):
            store.open(digest)
        with pytest.raises(UnknownContentError):
            store.size(digest)
    assert not store.has("0" * 64)


def test_aborted_content_was_never_there(store: ContentStore) -> None:
    writer = store.writer()
    writer.write(b"abc")
    writer.abort()
    writer.abort()
    assert not store.has(sha(b"abc"))
    assert store.collect(set()) == 0


def test_collecting_keeps_what_is_named_and_what_is_being_written(store: ContentStore) -> None:
    kept, dropped = store.put(b"kept"), store.put(b"dropped")
    writer = store.writer()
    writer.write(b"wri")
    reader = store.open(dropped)
    assert store.collect({kept, "f" * 64}) == 1
    writer.write(b"ting")
    assert writer.commit() == sha(b"writing")
    assert [store.has(d) for d in (kept, dropped, sha(b"writing"))] == [True, False, True]
    assert read(reader) == b"dropped"


class Lockstep(RuleBasedStateMachine):
    """The spool on disk does what the spool in memory does, step by step, errors included."""

    keys = st.builds(
        UploadKey,
        st.just(RUN),
        st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from("AB"),
        st.sampled_from(["north", "south"]),
    )

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk: Spool = FileSpool(self.folder / "spool")
        self.memory: Spool = MemorySpool()

    def both(self, step: Callable[[Spool], object]) -> None:
        results = []
        for spool in (self.memory, self.disk):
            try:
                results.append(step(spool))
            except ConsiliumError as error:
                results.append((error.code, getattr(error, "expected", None)))
        assert results[0] == results[1]

    @rule(where=keys, length=st.integers(0, 3))
    def begin(self, where: UploadKey, length: int) -> None:
        self.both(lambda spool: spool.begin(where, length))

    @rule(where=keys, offset=st.integers(0, 3), size=st.integers(0, 3))
    def append(self, where: UploadKey, offset: int, size: int) -> None:
        self.both(lambda spool: spool.append(where, offset, b"abc"[offset : offset + size]))

    @rule(where=keys, length=st.integers(0, 3))
    def finish(self, where: UploadKey, length: int) -> None:
        def step(spool: Spool) -> None:
            spool.begin(where, length)
            at = spool.offset(where)
            spool.append(where, at, b"abc"[at:length])
            spool.complete(where, sha(b"abc"[:length]), length)

        self.both(step)

    @rule(where=keys, length=st.integers(0, 3), wrong=st.booleans())
    def complete(self, where: UploadKey, length: int, wrong: bool) -> None:
        self.both(lambda spool: spool.complete(where, sha(b"x" if wrong else b"abc"[:length]), length))

    @rule(where=keys)
    def discard(self, where: UploadKey) -> None:
        self.both(lambda spool: spool.discard(where))

    @rule(round_number=st.integers(0, 1), attempt=st.none() | st.integers(0, 1))
    def discard_round(self, round_number: int, attempt: int | None) -> None:
        self.both(lambda spool: spool.discard_round(RUN, round_number, attempt))

    @rule(where=keys)
    def look(self, where: UploadKey) -> None:
        self.both(lambda spool: (spool.is_complete(where), spool.offset(where)))
        self.both(lambda spool: read(spool.open(where)))

    @invariant()
    def the_same_uploads_count(self) -> None:
        self.both(lambda spool: spool.completed(RUN, 0, 0, "A"))
        self.both(lambda spool: spool.completed(RUN, 1, 1, "B"))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestLockstep = Lockstep.TestCase
TestLockstep.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
