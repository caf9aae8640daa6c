"""A case of the bench over real processes: certificates once a federation, fresh processes for every case."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from deploy.bench_floors import ComponentLoad, Rates, loads_of, median_rates, owned_parameters, round_bytes
from deploy.bench_plan import COLUMNS, MODALITY, bench_plan
from deploy.bench_rates import RateMeter
from deploy.bench_rows import Case, Measured
from deploy.bench_watch import Watch
from deploy.cli import app, connect
from deploy.local_federation import LocalFederation, LocalInstitution
from deploy.operator_link import OperatorLink
from federation.plan import Plan, digest
from security.errors import ConsiliumError
from security.secure_sum.graph import MAX_COMPLETE_GRAPH

FEDERATION: Final = "bench"
NODE: Final = "deploy.bench_node"
ENDED: Final = ("finished", "failed", "stopped")
READY_SECONDS: Final = 300.0
"""Until all nodes have started: on two cores each takes a second or two."""


class BenchError(ConsiliumError):
    """A run of the bench did not finish."""

    code = "bench"


@dataclass(frozen=True)
class RoundReading:
    """One committed training round, as the coordinator's store has it.

    Attributes:
        number: from 1.
        committed: wall clock, seconds since the epoch.
        up, down: payload bytes of all institutions.
    """

    number: int
    committed: float
    up: int
    down: int


class BenchFederation(LocalFederation):
    """A federation whose certificates are made by the commands' own code, in this process."""

    _turn = threading.Lock()

    def _pki(self, *arguments: str) -> None:
        # What the commands print is for people at a terminal; and typer's runner is not for two threads at once.
        with self._turn, contextlib.redirect_stdout(io.StringIO()):
            app(["pki", *arguments], standalone_mode=False)

    def set_up(self, names: Sequence[str]) -> dict[str, str]:
        """Certificates and the coordinator's configuration; returns the nodes' `p256:` lines."""
        self.make_authority()
        self.enrol("coordinator", ["coordinator"])
        self.enrol("operator", ["operator"])
        self.enrol("institution", names)
        self.configure_coordinator()
        return {name: self.public_key(name) for name in names}

    def accept(
        self, names: Sequence[str], plan: Plan, modalities: Mapping[str, Sequence[str]], resting: int | None = None
    ) -> bytes:
        """Writes the nodes' configuration and policy for one plan; returns the plan's digest.

        Args:
            names: of the nodes.
            plan: that they are to accept.
            modalities: of each.
            resting: how many vectors of the server optimiser's state rest at a node; None: all.
        """
        run = digest(plan.to_bytes())
        for name in names:
            nowhere = self.folder(name) / "generated"
            institution = LocalInstitution(name, dict.fromkeys(modalities[name], nowhere), nowhere)
            self.configure_node(institution, [run.hex()])
            if resting is not None:
                with (self.folder(name) / "node.toml").open("a") as configuration:
                    configuration.write(f"\n[disk]\noptimiser_slots = {resting}\n")
            if plan.secure_sum.ckks:
                with (self.folder(name) / "policy.toml").open("a") as policy:
                    policy.write("allow_ckks = true\n")
        return run

    def start_all(self, names: Sequence[str], environment: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
        """Starts coordinator and nodes on empty state, waits until each has found the coordinator.

        Args:
            names: of the nodes.
            environment: node to variables of its process.

        Returns:
            Party to process id.
        """
        for party in ("coordinator", *names):
            shutil.rmtree(self.folder(party) / "state", ignore_errors=True)
        self.start_coordinator()
        ready = {name: self.folder(name) / "ready" for name in names}
        for name, path in ready.items():
            path.unlink(missing_ok=True)
            variables = {"CONSILIUM_BENCH_READY": str(path), **environment.get(name, {})}
            self.start_node(name, variables, module=NODE)
        for name, path in ready.items():
            self.processes[name].wait_for(path, READY_SECONDS)
        return {party: process.pid for party, process in self.processes.items()}

    def stop_all(self) -> None:
        """Ends all processes, the coordinator last."""
        self.__exit__()
        self.processes.clear()

    @contextmanager
    def operator(self) -> Iterator[OperatorLink]:
        """The operator's link."""
        with connect(self.address, self.folder("operator")) as link:
            yield link

    def run_to_end(self, plan: Plan, seconds: float) -> None:
        """Starts a run and waits for its end.

        Raises:
            BenchError: it failed, or lasts longer than `seconds`.
            ProcessFailedError: a process ended.
        """
        with self.operator() as link:
            run, end = link.start(plan.to_bytes()), time.monotonic() + seconds
            while (summary := link.status(run).summary).status not in ENDED:
                self.check_alive()
                if time.monotonic() > end:
                    raise BenchError(f"the bench's run stands in round {summary.round} after {seconds:.0f} s.")
                time.sleep(0.5)
        if summary.status != "finished":
            raise BenchError(f"the bench's run ended as {summary.status}: {summary.reason}.")

    def rounds(self, run: bytes) -> list[RoundReading]:
        """The committed training rounds of a run."""
        from coordinator.store import Store

        store = Store(f"sqlite:///{self.folder('coordinator') / 'state' / 'state.sqlite'}")
        try:
            found = [(r.round, r.at.timestamp(), json.loads(r.record)["bytes"]) for r in store.rounds(run.hex())]
        finally:
            store.close()
        return [RoundReading(n, at, traffic["up"], traffic["down"]) for n, at, traffic in found if n >= 1]


@contextmanager
def bench_federation(root: Path, institutions: int) -> Iterator[tuple[BenchFederation, dict[str, str]]]:
    """A federation of so many nodes with their public keys; no process of it is left when the block ends."""
    names = [f"node-{k + 1}" for k in range(institutions)]
    federation = BenchFederation(root, FEDERATION, seed=1)
    with federation:
        yield federation, federation.set_up(names)


def measure(
    federation: BenchFederation,
    keys: Mapping[str, str],
    case: Case,
    rounds: int,
    meter: RateMeter,
    seconds: float,
    complete_graph_up_to: int = MAX_COMPLETE_GRAPH,
) -> Measured:
    """Runs one case on fresh processes.

    Args:
        federation: of at least the case's institutions.
        keys: their public keys, by name.
        case: what to run.
        rounds: counted ones; one more goes before them.
        meter: reads the machine's rates before and after.
        seconds: until the run is given up.
        complete_graph_up_to: as in the plan: more institutions mask over a graph that is drawn.
    """
    chosen = dict(list(keys.items())[: case.institutions])
    plan = bench_plan(chosen, case, rounds + 1, FEDERATION)
    shut = plan.secure_sum.model_copy(update={"complete_graph_up_to": complete_graph_up_to})
    plan = plan.model_copy(update={"secure_sum": shut})
    names = list(chosen)
    run = federation.accept(names, plan, dict.fromkeys(names, (MODALITY,)))
    vanishing = {name: {"CONSILIUM_BENCH_VANISH": "1"} for name in names[: case.dropouts]}
    before = meter.measure()
    pids = federation.start_all(names, vanishing)
    try:
        # Reading fifty processes takes this one's time from them.
        with Watch(pids, 0.02 if len(pids) <= 12 else 0.2, federation.root) as watch:
            federation.run_to_end(plan, seconds)
        loads = loads_of(plan, {MODALITY: COLUMNS}, vanishing)
        return reading(loads, watch, federation.rounds(run), median_rates([before, meter.measure()]))
    finally:
        federation.stop_all()


def reading(loads: Sequence[ComponentLoad], watch: Watch, rounds: Sequence[RoundReading], rates: Rates) -> Measured:
    """What was measured of a run on fresh processes.

    Args:
        loads: of a round.
        watch: of the whole run, the coordinator among its processes.
        rounds: the first of them is not counted.
        rates: read beside the run.
    """
    usage = watch.usage
    first, last, counted = rounds[0].committed, rounds[-1].committed, rounds[1:]
    cpu = {party: u.cpu_between(first, last) / len(counted) for party, u in usage.items()}
    nodes = [party for party in usage if party != "coordinator"]
    return Measured(
        work=round_bytes(loads),
        owned=owned_parameters(loads),
        seconds=tuple(b.committed - a.committed for a, b in pairwise(rounds)),
        cpu_coordinator=cpu["coordinator"],
        cpu_institution=statistics.mean(cpu[name] for name in nodes),
        coordinator_peak=usage["coordinator"].peak_bytes,
        node_peak=max(usage[name].peak_bytes - usage[name].idle_bytes for name in nodes),
        all_peaks=sum(u.peak_bytes for u in usage.values()),
        disk_peak=watch.disk_peak_bytes,
        up=statistics.median(r.up for r in counted),
        down=statistics.median(r.down for r in counted),
        rates=rates,
    )
