"""Which files of a federation live when, in bytes: what its disks take while a round goes on.

Pure arithmetic on sizes, as `deploy/bench_floors.py`. A component's owners keep w and so many vectors of the server
optimiser's state; the coordinator w and all of them, the uploads until they are folded, the opened sum until the round
is committed. Plans, schemas, the store and what is small at a node are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from deploy.bench_floors import ComponentLoad

PHASES: Final = ("between rounds", "uploads complete", "folded", "next model written")


@dataclass(frozen=True)
class DiskBytes:
    """Bytes of files in one phase.

    Attributes:
        coordinator: of its content and spool.
        nodes: of all institutions' models together.
    """

    coordinator: int
    nodes: int

    @property
    def together(self) -> int:
        """Of all parties: what one disk holds where they share it."""
        return self.coordinator + self.nodes


def disk_account(loads: Iterable[ComponentLoad], chosen: int = 1) -> dict[str, DiskBytes]:
    """Phase to what its files take.

    Args:
        loads: of a round.
        chosen: how many earlier rounds' weights the coordinator keeps for export: 0 where the last round is the best
            so far, 1 where it is not, 2 where losses or the order choose for a while instead of the metric.
    """
    found = list(loads)
    model, kept = sum(load.model for load in found), chosen * sum(4 * load.parameters for load in found)
    uploads, opened = sum(load.alive * load.upload for load in found), sum(load.vector for load in found)
    nodes = sum(load.owners * (load.model - load.passing_bytes) for load in found if load.filed)
    beyond = (0, uploads, uploads + opened, opened + model)
    return {phase: DiskBytes(kept + model + more, nodes) for phase, more in zip(PHASES, beyond, strict=True)}


def disk_peak(loads: Iterable[ComponentLoad], chosen: int = 1) -> int:
    """Bytes of the fullest phase, all parties on one disk; see `disk_account`."""
    return max(phase.together for phase in disk_account(loads, chosen).values())


def slots_that_fit(loads: Callable[[int], list[ComponentLoad]], slots: int, room: int) -> int:
    """How many of the server optimiser's vectors may rest at the nodes of one disk: as many as fit; 0 where none do.

    Args:
        loads: of a round whose nodes keep so many.
        slots: that the optimiser has.
        room: bytes.
    """
    return next((k for k in range(slots, 0, -1) if disk_peak(loads(k)) <= room), 0)
