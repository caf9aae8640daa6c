"""Following the model: w(t+1) streamed into the place of w(t), and what is left when that goes wrong."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.content_hash import content_digest
from federation.fixed_point import ModelEncoding, encode_update, mean_trajectory, weight_vector
from federation.initialisation import TensorSpec
from federation.layout import Component, Layout
from federation.plan import Plan
from federation.proximity import BLOCK, component_dots
from federation.rounds import ComponentDigests
from federation.server_optimisers import Kind, apply, initial_value, state_slots
from federation.settings import optimiser_settings
from federation.vectors import StorageFullError
from institution_node.global_model import GlobalModel
from institution_node.link import ContentMismatchError, CoordinatorUnreachableError
from institution_node.memory import RunMemory
from institution_node.model_files import ModelShelf
from institution_node.updates import ArrayUpdate
from security.secure_sum.errors import TranscriptError
from tests.small_federation import small_plan

Float32 = npt.NDArray[np.float32]
NAME = "encoder/mrna"
ENCODING = ModelEncoding(0.1, 1.0, 3)
KINDS: tuple[Kind, ...] = ("fedavg", "fedavgm", "fedadam", "fedyogi")


@dataclass
class Contents:
    """A `Library` that hands content on in pieces of any size, counts, and breaks off or lies where a test says."""

    held: dict[str, bytes] = field(default_factory=dict)
    piece: int = 1 << 20
    breaks_at: int = -1
    tail: bytes = b""
    fetched: list[str] = field(default_factory=list)
    lies: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes) -> str:
        digest = content_digest(data)
        self.held[digest] = data
        return digest

    def fetch(self, digest: str, at_most: int) -> bytearray:
        return bytearray(self.held[digest])

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        assert len(self.held[digest]) == length
        return self.tail or self.held[digest][offset:]

    def pieces(self, digest: str, length: int) -> Generator[memoryview]:
        self.fetched.append(digest)
        data = self.lies.get(digest, self.held[digest])
        assert len(data) == length
        for start in range(0, length, self.piece):
            if 0 <= self.breaks_at <= start:
                raise CoordinatorUnreachableError("cut.")
            yield memoryview(data)[start : start + self.piece]
        if content_digest(data) != digest:
            raise ContentMismatchError("another content.")


@dataclass
class Case:
    """One component, in the clear beside the model under test."""

    plan: Plan
    layout: Layout
    contents: Contents
    weights: Float32
    slots: dict[str, Float32]

    @property
    def now(self) -> ComponentDigests:
        add = self.contents.add
        return ComponentDigests(add(self.weights.tobytes()), {n: add(v.tobytes()) for n, v in self.slots.items()})

    @property
    def known(self) -> dict[str, str]:
        now = self.now
        return {NAME: now.weights, **{f"{NAME}.{slot}": digest for slot, digest in now.slots.items()}}

    def model(self, shelf: ModelShelf) -> GlobalModel:
        return GlobalModel(self.plan, self.layout, (NAME,), self.contents, shelf)

    def opened(self, seed: int) -> tuple[str, Float32, Float32, float]:
        """Another sum: digest of its words, δ_i, δ_G and Σα; the case goes on to w(t+1)."""
        own = (np.random.default_rng(seed).standard_normal(len(self.weights)) * 0.01).astype(np.float32)
        words = np.empty(len(own) + 1, np.uint32)
        encode_update(own, 0.7, ENCODING, words[:-1])
        words[-1:] = weight_vector(0.7, ENCODING)
        mean = mean_trajectory(words[:-1], int(words[-1]), ENCODING, np.empty(len(own), np.float32))
        apply(optimiser_settings(self.plan), self.weights, mean, self.slots)
        return self.contents.add(words.tobytes()), own, mean, int(words[-1]) / ENCODING.weight_scale


def made(size: int, kind: Kind = "fedavgm", seed: int = 3) -> Case:
    plan = small_plan(seed=seed, server_optimiser={"kind": kind})
    component = Component(NAME, (TensorSpec("0.weight", (size,), "uniform_fan_in", 7),), (), True)
    how = optimiser_settings(plan)
    slots = {slot: np.full(size, initial_value(how, slot), np.float32) for slot in state_slots(kind)}
    return Case(plan, Layout({NAME: component}, {}, {}), Contents(), component.initial(seed), slots)


def in_files(folder: Path, slots: int | None = None) -> ModelShelf:
    return ModelShelf(folder, memory_bytes=0, slots=slots)


def load(model: GlobalModel, round_: int, now: ComponentDigests, known: Mapping[str, str] | None = None) -> None:
    memory = RunMemory() if known is None else RunMemory(known=known, known_round=round_ - 1)
    model.load(round_, {NAME: now}, memory)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]),
    st.integers(1, 1 << 19).filter(lambda n: n > 3000 or n % 4),
    st.sampled_from([None, 0, 1, 2, "memory"]),
)
def test_streamed_in_any_pieces_it_is_the_plain_server_step(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, size: int, piece: int, resting: int | str | None
) -> None:
    """Whatever rests where: files for all, for so many of the optimiser's vectors, or none."""
    case = made(size, kind)
    case.contents.piece = max(piece, size // 50)
    slots = resting if isinstance(resting, int) else None
    folder = tmp_path_factory.mktemp("w") / "aa"
    model = case.model(ModelShelf() if resting == "memory" else in_files(folder, slots))
    load(model, 1, case.now)
    assert np.array_equal(model.weights[NAME], case.weights)
    passing = state_slots(kind)[slots:] if slots is not None else ()
    expected: list[str] = []
    for round_ in (1, 2):
        expected += [case.now.slots[slot] for slot in passing]
        words, own, mean, total = case.opened(round_)
        expected.append(words)
        found, dots = model.advance(NAME, words, ENCODING, case.now, ArrayUpdate(own))
        assert found == total
        assert dots == component_dots(own, mean)
        assert model.weights[NAME].tobytes() == case.weights.tobytes()
        assert model.digests() == case.known
        load(model, round_ + 1, case.now, case.known)
    assert sorted(case.contents.fetched) == sorted(expected)
    if resting != "memory":
        assert len(list(folder.iterdir())) == 1 + len(state_slots(kind)) - len(passing)
    words, _, _, total = case.opened(9)
    assert model.advance(NAME, words, ENCODING, case.now) == (total, None)


@pytest.mark.parametrize("breaks_at", [0, 1 << 10, 5 << 16])
def test_after_a_stream_that_breaks_off_for_good_nothing_half_done_is_believed(tmp_path: Path, breaks_at: int) -> None:
    case = made(2 * BLOCK)
    model = case.model(in_files(tmp_path / "aa"))
    load(model, 1, case.now)
    words, _, _, _ = case.opened(1)
    case.contents.breaks_at, case.contents.piece = breaks_at, 1 << 10
    with pytest.raises(CoordinatorUnreachableError):
        model.advance(NAME, words, ENCODING, case.now)
    assert model.digests() == {}
    case.contents.breaks_at = -1
    case.contents.fetched.clear()
    load(model, 2, case.now)
    assert model.weights[NAME].tobytes() == case.weights.tobytes()
    assert sorted(case.contents.fetched) == sorted([case.now.weights, case.now.slots["momentum"]])


def test_a_sum_that_does_not_give_the_coordinators_model_leaves_none(tmp_path: Path) -> None:
    case = made(BLOCK)
    model = case.model(in_files(tmp_path / "aa"))
    load(model, 1, case.now)
    case.opened(1)
    claimed = case.now
    with pytest.raises(TranscriptError, match="opened sum"):
        model.advance(NAME, case.opened(2)[0], ENCODING, claimed)
    assert model.digests() == {}
    load(model, 2, case.now)
    words, _, _, _ = case.opened(3)
    model.advance(NAME, words, ENCODING, case.now)


def test_a_weight_that_is_not_the_streams_is_refused(tmp_path: Path) -> None:
    """Σα is asked for first. Whoever lies there and publishes the model of the lie would choose everybody's step."""
    case = made(10)
    model = case.model(in_files(tmp_path / "aa"))
    load(model, 1, case.now)
    before = case.weights.copy()
    words, _, _, _ = case.opened(1)
    half = np.frombuffer(case.contents.held[words], np.uint32).copy()
    half[-1] //= 2
    mean = mean_trajectory(half[:-1], int(half[-1]), ENCODING, np.empty(10, np.float32))
    case.weights[:], case.slots["momentum"][:] = before, 0
    apply(optimiser_settings(case.plan), case.weights, mean, case.slots)
    case.contents.tail = half[-1:].tobytes()
    with pytest.raises(TranscriptError):
        model.advance(NAME, words, ENCODING, case.now)


@pytest.mark.parametrize("killed_at", [BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("slots", [None, 1, 0])
def test_a_node_killed_in_the_middle_of_a_step_goes_on_from_what_it_fetches(
    tmp_path: Path, killed_at: int, slots: int | None
) -> None:
    """Half of its files are of w(t+1). Nothing of them is believed, whichever of the two models is wanted next."""
    case = made(4 * BLOCK, "fedadam")
    killed = tmp_path / "killed" / "aa"
    model = case.model(in_files(killed, slots))
    load(model, 1, case.now)
    before = case.now
    words, _, _, _ = case.opened(1)
    case.contents.piece, case.contents.breaks_at = 1 << 12, 4 * killed_at
    with pytest.raises(CoordinatorUnreachableError):  # the process ends here, in the middle of its writing
        model.advance(NAME, words, ENCODING, case.now)
    case.contents.breaks_at = -1
    left = content_digest((killed / "encoder.mrna.f32").read_bytes())
    assert left not in (before.weights, case.now.weights)
    for state in (before, case.now):
        folder = tmp_path / state.weights[:8] / "aa"
        shutil.copytree(killed, folder)
        after = case.model(in_files(folder, slots))
        load(after, 2, state)
        assert content_digest(after.weights[NAME].tobytes()) == state.weights
    words, _, _, _ = case.opened(2)
    after.advance(NAME, words, ENCODING, case.now)
    assert after.weights[NAME].tobytes() == case.weights.tobytes()


def test_a_state_that_passes_by_and_is_another_one_leaves_no_model(tmp_path: Path) -> None:
    """The coordinator sends another state than its digest says, and names the model that follows from it."""
    case = made(2 * BLOCK, "fedadam")
    model = case.model(in_files(tmp_path / "aa", slots=1))
    load(model, 1, case.now)
    honest, weights, state = case.now, case.weights.copy(), {n: v.copy() for n, v in case.slots.items()}
    case.slots["v"] += np.float32(1.0)
    case.contents.lies[honest.slots["v"]] = case.slots["v"].tobytes()
    words, _, _, _ = case.opened(1)
    with pytest.raises(ContentMismatchError):
        model.advance(NAME, words, ENCODING, case.now)
    assert model.digests() == {}
    case.contents.lies.clear()
    case.weights[:] = weights
    case.slots.update(state)
    load(model, 1, honest)
    words, _, _, _ = case.opened(1)
    model.advance(NAME, words, ENCODING, case.now)


@pytest.mark.parametrize("slots", [None, 1, 0])
@pytest.mark.parametrize("slot", ["m", "v"])
def test_attack_another_optimiser_state_between_two_rounds(tmp_path: Path, slots: int | None, slot: str) -> None:
    """The weights are right; the state that the next step rests on is of the coordinator's choice, for everybody."""
    case = made(100, "fedadam")
    model = case.model(in_files(tmp_path / "aa", slots))
    load(model, 1, case.now)
    words, _, _, _ = case.opened(1)
    model.advance(NAME, words, ENCODING, case.now)
    known = case.known
    case.slots[slot] += np.float32(0.5)
    with pytest.raises(TranscriptError, match="optimiser's state"):
        load(model, 2, case.now, known)


@pytest.mark.parametrize("slots", [None, 1, 0])
@pytest.mark.parametrize("slot", ["m", "v"])
def test_attack_another_optimiser_state_before_the_first_round(tmp_path: Path, slots: int | None, slot: str) -> None:
    case = made(BLOCK + 1, "fedyogi")
    case.slots[slot][-1] += np.float32(0.5)
    with pytest.raises(TranscriptError, match="begins with"):
        load(case.model(in_files(tmp_path / "aa", slots)), 1, case.now)


@pytest.mark.parametrize("damage", ["", "weights", "momentum", "gone"])
def test_a_restarted_node_fetches_only_what_is_not_there(tmp_path: Path, damage: str) -> None:
    case = made(BLOCK + 5)
    shelf = in_files(tmp_path / "aa")
    model = case.model(shelf)
    load(model, 1, case.now)
    words, _, _, _ = case.opened(1)
    model.advance(NAME, words, ENCODING, case.now)
    shelf.close()
    files = {"weights": "encoder.mrna.f32", "momentum": "encoder.mrna.momentum.f32", "gone": "encoder.mrna.f32"}
    if damage:
        path = tmp_path / "aa" / files[damage]
        path.write_bytes(path.read_bytes()[:-1] + b"\x55") if damage != "gone" else path.unlink()
    case.contents.fetched.clear()
    after = case.model(in_files(tmp_path / "aa"))
    load(after, 2, case.now, case.known)
    assert after.weights[NAME].tobytes() == case.weights.tobytes()
    wanted = {"": [], "momentum": [case.now.slots["momentum"]]}.get(damage, [case.now.weights])
    assert case.contents.fetched == wanted
    words, _, _, _ = case.opened(2)
    after.advance(NAME, words, ENCODING, case.now)


def test_a_disk_without_room_for_the_model_is_found_before_anything_is_fetched(tmp_path: Path) -> None:
    case = made(10)
    huge = Component(NAME, (TensorSpec("0.weight", (1 << 46,), "uniform_fan_in", 7),), (), True)
    model = GlobalModel(case.plan, Layout({NAME: huge}, {}, {}), (NAME,), case.contents, in_files(tmp_path / "aa"))
    with pytest.raises(StorageFullError):
        load(model, 2, case.now)
    assert case.contents.fetched == []


@pytest.mark.parametrize("slots", [None, 1])
def test_no_step_holds_a_model(tmp_path: Path, slots: int | None) -> None:
    case = made(4 << 20, "fedadam")
    start = case.now
    words, own, _, _ = case.opened(1)
    model, expected = case.model(in_files(tmp_path / "aa", slots)), case.now
    tracemalloc.start()
    try:
        load(model, 2, start)  # fetched
        model.advance(NAME, words, ENCODING, expected, ArrayUpdate(own))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20  # of 16 MiB a vector, three of them
