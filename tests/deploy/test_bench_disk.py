"""What files of a federation live when: by hand, of the paper's model, and counted while a small federation runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.files import FileContentStore, FileSpool
from deploy.bench_disk import DiskBytes, disk_account, disk_peak, slots_that_fit
from deploy.bench_floors import ComponentLoad, loads_of
from deploy.bench_large import DISK_BYTES, resting_slots
from federation.content_hash import content_digest
from federation.features import FeatureSchema
from federation.plan import Modality, Plan
from federation.server_optimisers import Kind, state_slots
from federation.vectors import Buffer, ContentWriter
from institution_node.model_files import ModelShelf
from security.signing import public_key_text
from studies.memory_coordinator import MemoryCoordinator
from studies.paper_plan import COLUMNS, INSTITUTIONS, MRNA_PARAMETERS, paper_plan
from tests.plans import example_identity, example_plan
from tests.small_federation import SmallFederation, small_plan


def test_a_round_by_hand() -> None:
    load = ComponentLoad(parameters=9, owners=3, gone=1, slots=2, filed=True, passing=1)
    account = disk_account([load], chosen=1)
    assert account == {
        "between rounds": DiskBytes(36 * (3 + 1), 36 * 2 * 3),
        "uploads complete": DiskBytes(36 * (3 + 1) + 2 * 40, 36 * 2 * 3),
        "folded": DiskBytes(36 * (3 + 1) + 2 * 40 + 40, 36 * 2 * 3),
        "next model written": DiskBytes(36 * (3 + 1) + 40 + 36 * 3, 36 * 2 * 3),
    }
    assert disk_peak([load]) == account["next model written"].together
    assert disk_peak([replace(load, filed=False)], 0) == 36 * 3 + 40 + 36 * 3


def test_so_much_state_rests_at_the_nodes_as_the_disk_takes() -> None:
    def loads(resting: int) -> list[ComponentLoad]:
        return [ComponentLoad(parameters=9, owners=3, slots=2, filed=True, passing=2 - resting)]

    peaks = [disk_peak(loads(k)) for k in range(3)]
    assert peaks[0] < peaks[1] < peaks[2]
    assert [slots_that_fit(loads, 2, room) for room in (peaks[2], peaks[2] - 1, peaks[1] - 1, 0)] == [2, 1, 0, 0]


@pytest.mark.parametrize(("kind", "resting"), [("fedavg", 0), ("fedavgm", 1), ("fedadam", 1), ("fedyogi", 1)])
def test_the_papers_model_fits_under_50_gb_with_every_optimiser(kind: Kind, resting: int) -> None:
    keys = {name: public_key_text(example_identity(k).public) for k, name in enumerate(INSTITUTIONS)}
    plan = paper_plan(keys, 2, server_optimiser={"kind": kind})
    assert resting_slots(plan, MRNA_PARAMETERS) == resting
    assert disk_peak(loads_of(plan, COLUMNS, resting=resting), chosen=2) < DISK_BYTES == 50e9
    if len(state_slots(kind)) > resting:
        assert disk_peak(loads_of(plan, COLUMNS), chosen=0) > DISK_BYTES  # what it is for


# -- counted ------------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """Counts once its content is whole."""

    inner: ContentWriter
    count: Callable[[], None]

    def write(self, data: Buffer) -> None:
        self.inner.write(data)

    def commit(self) -> str:
        digest = self.inner.commit()
        self.count()
        return digest

    def abort(self) -> None:
        self.inner.abort()


class CountedContent(FileContentStore):
    """Content in files; everybody's files are counted whenever another one is whole."""

    def __init__(self, folder: Path, count: Callable[[], None]) -> None:
        super().__init__(folder)
        self._count = count

    def writer(self) -> ContentWriter:  # type: ignore[override]  # as the protocol has it
        return Writer(super().writer(), self._count)


class Killed(BaseException):
    """A process ends here."""


class OnDisk:
    """A federation whose vectors all rest in files, and what these took at most."""

    def __init__(self, plan: Plan, root: Path, resting: int | None) -> None:
        self.root, self.peak = root, 0
        self.federation = SmallFederation(
            plan,
            coordinator=lambda data, observer: MemoryCoordinator(
                data,
                observer,
                content=CountedContent(root / "content", self.count),
                spool=FileSpool(root / "spool"),
            ),
            shelf=lambda name: ModelShelf(root / name / "run", memory_bytes=0, slots=resting),
        )

    def count(self) -> None:
        def size(path: Path) -> int:
            try:
                return path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # renamed meanwhile: several contents are committed side by side
                return 0

        self.peak = max(self.peak, sum(size(path) for path in self.root.rglob("*")))

    def widths(self) -> Mapping[str, int]:
        """What the plan's tables came to."""
        federation = self.federation
        schema = federation.content(federation.run.state.setup.schema, np.uint8).tobytes()
        return FeatureSchema.from_bytes(schema).widths

    def run(self) -> None:
        self.federation.enrol()
        assert self.federation.run_to_end(after=self.count) == "finished"


def larger(kind: Kind) -> Plan:
    """Models beside which everything else on the disk is small."""
    hidden = {"mrna": (1024, 160), "image": (64,), "clinical": ()}
    modalities: tuple[Modality, ...] = tuple(
        m.model_copy(update={"hidden": hidden[m.name]}) for m in example_plan().modalities
    )
    return small_plan(modalities=modalities, server_optimiser={"kind": kind, "learning_rate": 0.01})


@pytest.mark.parametrize(
    ("kind", "resting"), [("fedavg", None), ("fedavgm", None), ("fedadam", None), ("fedadam", 1), ("fedyogi", 0)]
)
def test_the_files_of_a_federation_take_what_the_account_says(tmp_path: Path, kind: Kind, resting: int | None) -> None:
    found = OnDisk(larger(kind), tmp_path, resting)
    found.run()
    loads = [replace(load, filed=True) for load in loads_of(found.federation.plan, found.widths(), resting=resting)]
    assert 0.99 * disk_peak(loads, 0) <= found.peak <= 1.01 * disk_peak(loads, 1)


@pytest.mark.parametrize(("cut_off", "resting"), [("sum", None), ("sum", 1), ("v", 1)])
def test_a_node_killed_while_its_model_advances_is_in_the_next_round(
    tmp_path: Path, cut_off: str, resting: int | None
) -> None:
    """Its files are half of w(t) and half of w(t+1): what differs from the next opening is fetched."""
    found = OnDisk(larger("fedadam"), tmp_path, resting)
    federation, name = found.federation, "lusc-1"
    federation.enrol()
    link: Any = federation.participants[name].link
    whole = link.pieces

    def cut(run: bytes, digest: str, length: int, offset: int = 0) -> Iterator[memoryview]:
        state = federation.run.state.components["encoder/mrna"]
        size = federation.coordinator.content.size(state.weights)
        here = digest == state.slots["v"] if cut_off == "v" else length == size + 4
        for piece in whole(run, digest, length, offset):
            if here and not offset and federation.run.round == 2:
                yield piece[: len(piece) // 2]
                raise Killed
            yield piece

    link.pieces = cut
    with pytest.raises(Killed):
        federation.run_to_end()
    left = content_digest((tmp_path / name / "run" / "encoder.mrna.f32").read_bytes())
    assert left != federation.run.state.components["encoder/mrna"].weights
    federation.start(name)
    assert federation.run_to_end() == "finished"
    reached = federation.run.state.components["encoder/mrna"]
    folder = tmp_path / name / "run"
    assert content_digest((folder / "encoder.mrna.f32").read_bytes()) == reached.weights
    assert content_digest((folder / "encoder.mrna.m.f32").read_bytes()) == reached.slots["m"]
    assert (folder / "encoder.mrna.v.f32").exists() == (resting is None)
    assert federation.memory(name).known_round == federation.plan.rounds
