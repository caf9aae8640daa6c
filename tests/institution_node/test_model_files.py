"""Vectors on the shelf: the same in memory and in files, and nothing believed of what a file holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from federation.proximity import BLOCK
from federation.vectors import StorageError, StorageFullError
from institution_node.model_files import FileVector, MemoryVector, ModelShelf, ModelVector, digest_of

SIZE = 2 * BLOCK + 7


@pytest.fixture(params=["memory", "file"])
def vector(request: pytest.FixtureRequest, tmp_path: Path) -> ModelVector:
    return MemoryVector(SIZE) if request.param == "memory" else FileVector(tmp_path / "x.f32", SIZE)


def test_what_is_put_is_read_block_by_block_and_as_a_whole(vector: ModelVector) -> None:
    values = np.random.default_rng(1).standard_normal(SIZE, np.float32)
    for start in range(0, SIZE, BLOCK):
        vector.put(start, values[start : start + BLOCK])
    assert np.array_equal(vector.array(), values)
    block = vector.block(BLOCK, 10)
    block += 1
    vector.put(BLOCK, block)
    values[BLOCK : BLOCK + 10] += 1
    assert np.array_equal(vector.array(), values)
    assert digest_of(vector) == digest_of(_of(values))
    with pytest.raises(ValueError, match="read-only"):
        vector.array()[0] = 1


def _of(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> MemoryVector:
    vector = MemoryVector(len(values))
    vector.put(0, values)
    return vector


@pytest.mark.parametrize("value", [0.0, 1e-6])
def test_filled_every_element_has_the_value(vector: ModelVector, value: float) -> None:
    vector.put(5, np.ones(9, np.float32))
    vector.fill(value)
    assert np.array_equal(vector.array(), np.full(SIZE, value, np.float32))


def test_an_array_shows_the_file_and_stays_readable_when_it_is_closed(tmp_path: Path) -> None:
    vector = FileVector(tmp_path / "x.f32", SIZE)
    array = vector.array()
    vector.put(SIZE - 2, np.array([3, 4], np.float32))
    vector.close()
    assert array[-2:].tolist() == [3, 4]


def test_small_vectors_stay_in_memory_and_the_rest_goes_to_files(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "aa"
    shelf = ModelShelf(folder, memory_bytes=4 * 1000)
    first, second = shelf.vector("encoder/mrna", 900), shelf.vector("encoder/image", 101)
    third = shelf.vector("classifier/mrna+image", 100)
    assert [type(v) for v in (first, second, third)] == [MemoryVector, FileVector, MemoryVector]
    (file,) = folder.iterdir()
    assert file.name == "encoder.image.f32"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_blocks * 512 >= 4 * 101  # its room is taken
    assert type(ModelShelf(None, memory_bytes=0).vector("encoder/mrna", 900)) is MemoryVector


def test_only_so_many_state_vectors_rest_in_files(tmp_path: Path) -> None:
    before = ModelShelf(tmp_path / "aa", memory_bytes=4 * 10)
    assert [before.slot("encoder/mrna", slot, k, 100) is None for k, slot in enumerate("mv")] == [False, False]
    before.close()
    shelf = ModelShelf(tmp_path / "aa", memory_bytes=4 * 10, slots=1)
    assert type(shelf.vector("encoder/mrna", 100)) is FileVector
    assert type(shelf.slot("encoder/mrna", "m", 0, 100)) is FileVector
    assert shelf.slot("encoder/mrna", "v", 1, 100) is None
    assert not list((tmp_path / "aa").glob("*.v.f32"))  # what the earlier process kept of it takes no room
    assert type(shelf.slot("encoder/image", "v", 1, 10)) is MemoryVector  # small ones take no disk


def test_what_an_earlier_process_left_is_found_if_it_has_the_size(tmp_path: Path) -> None:
    before = ModelShelf(tmp_path / "aa", memory_bytes=0)
    before.vector("encoder/mrna", 5).put(0, np.arange(5, dtype=np.float32))
    before.close()
    after = ModelShelf(tmp_path / "aa", memory_bytes=0)
    assert after.vector("encoder/mrna", 5).found
    other = ModelShelf(tmp_path / "aa", memory_bytes=0).vector("encoder/mrna", 6)
    assert not other.found
    assert not other.array().any()


def test_a_new_run_takes_the_place_of_an_old_one_and_a_finished_one_leaves_nothing(tmp_path: Path) -> None:
    ModelShelf(tmp_path / "old", memory_bytes=0).vector("encoder/mrna", 5)
    shelf = ModelShelf(tmp_path / "new", memory_bytes=0)
    shelf.vector("encoder/mrna", 5)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    shelf.remove()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_a_typed_error_that_leaves_no_file(tmp_path: Path) -> None:
    shelf = ModelShelf(tmp_path / "aa", memory_bytes=0)
    with pytest.raises(StorageFullError, match=r"no room for 281475\.0 GB") as refused:
        shelf.vector("encoder/mrna", 1 << 46)
    assert "Free space" in refused.value.remedy
    assert not list((tmp_path / "aa").iterdir())
    open_files = os.listdir("/proc/self/fd")
    with pytest.raises(StorageFullError):
        shelf.vector("encoder/mrna", 1 << 46)
    assert os.listdir("/proc/self/fd") == open_files  # a descriptor left open keeps the room taken
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        ModelShelf(tmp_path / "file" / "aa", memory_bytes=0).vector("encoder/mrna", 5)


@pytest.mark.parametrize("memory_bytes", [0, 4 * 5])
def test_a_vector_that_is_asked_for_again_is_the_open_one(tmp_path: Path, memory_bytes: int) -> None:
    """A round that begins again and again on a full disk opens each file once."""
    shelf = ModelShelf(tmp_path / "aa", memory_bytes=memory_bytes)
    first = shelf.vector("encoder/mrna", 5)
    assert all(shelf.vector("encoder/mrna", 5) is first for _ in range(4))
    other = shelf.vector("encoder/mrna", 6)
    assert other is not first
    assert other.size == 6
    shelf.close()


def test_what_a_run_left_goes_when_the_next_begins_also_if_that_one_is_small(tmp_path: Path) -> None:
    ModelShelf(tmp_path / "old", memory_bytes=0).vector("encoder/mrna", 5)
    ModelShelf(tmp_path / "new").vector("encoder/mrna", 5)
    assert not list(tmp_path.iterdir())
