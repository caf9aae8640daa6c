"""What a node remembers over restarts: written whole or not at all, and never believed where it is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.blending import BlendingState, advance, default_settings
from federation.losses import LossSums
from federation.rounds import Setup
from institution_node.memory import FolderMemory, MemoryDamagedError, ProcessMemory, RunMemory
from institution_node.similar_cohorts import Waiting
from security.secure_sum.cohorts import CohortHistory
from security.secure_sum.high_water import HighWaterMark

RUN = "ab" * 32


def full() -> RunMemory:
    losses = {"mrna": LossSums.contribution(1.0, 0.7, 0.8, None, 5.0)}
    blending, _ = advance(BlendingState(), losses, default_settings())
    return RunMemory(
        mark=HighWaterMark(3, 2, {"updates": b"\x01" * 32}),
        fingerprint="f" * 64,
        split_key=bytes(range(32)),
        noised_patients=41,
        noised_by_combination={"mrna": 40, "mrna+image": 1},
        schema="ef" * 32,
        setup=Setup("a" * 64, {"encoder/mrna": 300}, frozenset({"one", "two"})),
        known={"encoder/mrna": "b" * 64},
        known_round=3,
        models=("c" * 32, "d" * 32),
        last_losses={"mrna": (0.25, 1 / 3)},
        last_model="ab" * 16,
        blending=blending,
        history=CohortHistory({"updates/encoder/mrna": (frozenset({"one", "two", "three"}),)}),
        waiting=Waiting(frozenset({"one", "two"}), 2, 3, 1),
        private={"classifier/mrna+image": np.array([1.5, -0.0, np.float32(1e-45)], np.float32)},
    )


def same(a: RunMemory, b: RunMemory) -> bool:
    arrays = [np.array_equal(a.private[k].view(np.uint32), b.private[k].view(np.uint32)) for k in a.private]
    return a.private.keys() == b.private.keys() and all(arrays) and replace(a, private={}) == replace(b, private={})


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    FolderMemory(tmp_path).save(RUN, full())
    assert same(FolderMemory(tmp_path).load(RUN), full())
    assert FolderMemory(tmp_path).load("cd" * 32) == RunMemory()
    assert oct((tmp_path / f"{RUN}.json").stat().st_mode & 0o777) == oct(0o600)


def test_every_field_is_written() -> None:
    """Who adds a field and forgets the codec loses it at the first restart."""
    kept, empty = full(), RunMemory()
    for name in RunMemory.__dataclass_fields__:
        assert repr(getattr(kept, name)) != repr(getattr(empty, name)), name


def test_the_private_components_are_written_only_when_they_change(tmp_path: Path) -> None:
    memory = FolderMemory(tmp_path)
    memory.save(RUN, full())
    file = tmp_path / f"{RUN}.safetensors"
    before = file.stat().st_ino
    memory.save(RUN, replace(memory.load(RUN), known_round=4))
    assert file.stat().st_ino == before
    memory.save(RUN, replace(memory.load(RUN), private={"classifier/mrna+image": np.ones(3, np.float32)}))
    assert file.stat().st_ino != before
    again = FolderMemory(tmp_path).load(RUN)
    assert again.known_round == 4
    assert np.array_equal(again.private["classifier/mrna+image"], np.ones(3, np.float32))


def test_what_is_noted_is_written_with_the_next_save_and_not_before(tmp_path: Path) -> None:
    memory = FolderMemory(tmp_path)
    memory.save(RUN, full())
    ones = {"classifier/mrna+image": np.ones(3, np.float32)}
    memory.note(RUN, replace(memory.load(RUN), known_round=4, private=ones))
    assert memory.load(RUN).known_round == 4
    assert same(FolderMemory(tmp_path).load(RUN), full())
    memory.save(RUN, replace(memory.load(RUN), schema="cd" * 32))
    again = FolderMemory(tmp_path).load(RUN)
    assert (again.known_round, again.schema) == (4, "cd" * 32)
    assert np.array_equal(again.private["classifier/mrna+image"], np.ones(3, np.float32))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\x00"])
def test_a_damaged_record_is_refused_and_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    FolderMemory(tmp_path).save(RUN, full())
    (tmp_path / f"{RUN}.json").write_text(text)
    with pytest.raises(MemoryDamagedError) as refused:
        FolderMemory(tmp_path).load(RUN)
    assert "never an older one" in refused.value.remedy


@pytest.mark.parametrize("key", ["mark", "split_key", "models", "setup", "private", "format"])
def test_a_record_without_a_field_is_refused(tmp_path: Path, key: str) -> None:
    FolderMemory(tmp_path).save(RUN, full())
    path = tmp_path / f"{RUN}.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    with pytest.raises(MemoryDamagedError):
        FolderMemory(tmp_path).load(RUN)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 64])
def test_damaged_private_components_are_refused(tmp_path: Path, data: bytes) -> None:
    FolderMemory(tmp_path).save(RUN, full())
    (tmp_path / f"{RUN}.safetensors").write_bytes(data)
    with pytest.raises(MemoryDamagedError):
        FolderMemory(tmp_path).load(RUN)
    (tmp_path / f"{RUN}.safetensors").unlink()
    with pytest.raises(MemoryDamagedError):
        FolderMemory(tmp_path).load(RUN)


def test_a_write_that_did_not_end_leaves_the_record_before(tmp_path: Path) -> None:
    memory = FolderMemory(tmp_path)
    memory.save(RUN, full())
    (tmp_path / f"{RUN}.json.part").write_text("{half")
    assert same(FolderMemory(tmp_path).load(RUN), full())


def test_a_process_remembers_until_it_ends() -> None:
    memory = ProcessMemory()
    assert memory.load(RUN) == RunMemory()
    memory.save(RUN, full())
    assert same(memory.load(RUN), full())
