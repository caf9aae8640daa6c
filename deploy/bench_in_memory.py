"""A case of the bench on the in-memory transport: every institution and the coordinator in turn, in one process.

The same sessions, sums, spool and coordinator's run as over gRPC, without sockets and without a disk; for more
institutions than one machine has room for as processes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from consilium.v1 import service_pb2 as pb

from coordinator.observer import Observer
from coordinator.results import RoundStatistics
from deploy.bench_federation import FEDERATION
from deploy.bench_floors import ComponentLoad, Rates, loads_of, median_rates, owned_parameters, round_bytes
from deploy.bench_node import GeneratedVectors, generated_patients
from deploy.bench_plan import COLUMNS, MODALITY, bench_plan
from deploy.bench_rates import RateMeter
from deploy.bench_rows import Case, Measured
from federation.in_memory import MemorySpool
from federation.vectors import Buffer, Spool, UploadKey
from institution_node.library import LinkLibrary
from institution_node.local_run import LocalRun
from institution_node.session import Session
from security.privacy.randomness import SystemRandomness
from security.signing import IdentityKey, public_key_text
from studies.federation import Participant, run_to_end
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from studies.simulate import StudyMemory


class _Account:
    """Processor seconds of the coordinator, with its threads."""

    def __init__(self) -> None:
        self.spent = 0.0

    @contextmanager
    def coordinator(self) -> Iterator[None]:
        begun = time.process_time()
        try:
            yield
        finally:
            self.spent += time.process_time() - begun


class _CountedSpool:
    """The coordinator's spool; what it does with an upload's bytes is the coordinator's time, making them is not."""

    def __init__(self, spool: Spool, account: _Account) -> None:
        self._spool, self._account = spool, account

    def append(self, key: UploadKey, offset: int, data: Buffer) -> None:
        with self._account.coordinator():
            self._spool.append(key, offset, data)

    def complete(self, key: UploadKey, digest: str, length: int) -> None:
        with self._account.coordinator():
            self._spool.complete(key, digest, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)


class _Link(MemoryLink):
    """The in-memory link; directives and messages are the coordinator's time."""

    def __init__(self, coordinator: _Coordinator, institution: str) -> None:
        super().__init__(coordinator, institution)
        self._account = coordinator.account

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        with self._account.coordinator():
            return super().next_directive(run, known, wait_seconds)

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        with self._account.coordinator():
            return super().submit(request)


class _Coordinator(MemoryCoordinator):
    """The in-memory coordinator, which knows what it spent."""

    def __init__(self, plan_bytes: bytes, observer: Observer) -> None:
        super().__init__(plan_bytes, observer)
        self.account = _Account()
        self.spool = cast(MemorySpool, _CountedSpool(self.spool, self.account))

    def work(self) -> bool:
        with self.account.coordinator():
            return super().work()


@dataclass(frozen=True)
class _Moment:
    wall: float
    cpu: float
    coordinator: float


class _Rounds(Observer):
    """When each training round was committed, and what it moved."""

    def __init__(self) -> None:
        self.moments: list[_Moment] = []
        self.traffic: list[Mapping[str, int]] = []
        self.account: _Account | None = None

    def committed(self, record: str, result: RoundStatistics | None) -> None:
        found = json.loads(record)
        if found["round"] >= 1 and self.account is not None:
            self.moments.append(_Moment(time.perf_counter(), time.process_time(), self.account.spent))
            self.traffic.append(found["bytes"])


class _Vanishing(GeneratedVectors):
    """Vanishes from every round after the key phase."""

    @property
    def vanishes(self) -> bool:
        return True


def measure(case: Case, rounds: int, meter: RateMeter) -> Measured:
    """Runs one case.

    Args:
        case: what to run.
        rounds: counted ones; one more goes before them.
        meter: reads the machine's rates before and after.
    """
    names = [f"node-{k + 1}" for k in range(case.institutions)]
    identities = {name: IdentityKey.generate() for name in names}
    keys = {name: public_key_text(key.public) for name, key in identities.items()}
    plan = bench_plan(keys, case, rounds + 1, FEDERATION)
    plan_bytes, observer, rng = plan.to_bytes(), _Rounds(), SystemRandomness()
    before = meter.measure()
    coordinator = _Coordinator(plan_bytes, observer)
    observer.account = coordinator.account
    participants: dict[str, Participant] = {}
    for k, name in enumerate(names):
        link, memory = _Link(coordinator, name), StudyMemory()
        library = LinkLibrary(link, coordinator.run.id, capacity=0)
        trainer = _Vanishing if k < case.dropouts else GeneratedVectors
        work = LocalRun(
            plan_bytes, name, generated_patients(plan, name, rng), library, memory, rng, make_trainer=trainer
        )
        session = Session(plan_bytes, name, identities[name], rng, memory, work, fetch=library.fetch)
        participants[name] = Participant(session, link)
    run_to_end(coordinator, participants)
    loads = loads_of(plan, {MODALITY: COLUMNS}, names[: case.dropouts])
    return _measured(case, loads, observer, median_rates([before, meter.measure()]))


def _measured(case: Case, loads: Sequence[ComponentLoad], seen: _Rounds, rates: Rates) -> Measured:
    first, last, counted = seen.moments[0], seen.moments[-1], len(seen.moments) - 1
    coordinator = (last.coordinator - first.coordinator) / counted
    return Measured(
        work=round_bytes(loads, "memory"),
        owned=owned_parameters(loads),
        seconds=tuple(b.wall - a.wall for a, b in pairwise(seen.moments)),
        cpu_coordinator=coordinator,
        cpu_institution=((last.cpu - first.cpu) / counted - coordinator) / case.institutions,
        coordinator_peak=None,
        node_peak=None,
        all_peaks=None,
        disk_peak=None,
        up=statistics.median(t["up"] for t in seen.traffic[1:]),
        down=statistics.median(t["down"] for t in seen.traffic[1:]),
        rates=rates,
    )
