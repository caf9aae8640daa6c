"""A federation of real processes for tests: certificates made once, parties killed and started again, always reaped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from consilium.v1 import service_pb2 as pb
from typer.testing import CliRunner

from coordinator.failpoints import TESTING, VARIABLE
from coordinator.state import RunState
from coordinator.store import CommittedRound, Point, Store
from deploy import bench_plan
from deploy.bench_rows import Case
from deploy.cli import app, connect
from deploy.local_federation import LocalFederation, LocalInstitution
from deploy.operator_link import OperatorLink
from deploy.pki_cli import CA_CERTIFICATE, CA_KEY
from deploy.processes import LocalProcess
from federation.plan import Plan, digest
from institution_node.service import AUDIT_LOG
from security.pki import create_authority
from tests.processes.generating_node import VARIABLE as DIE

NODE = "tests.processes.generating_node"
SECONDS = 60.0  # until a test gives up; a machine with nothing else to do needs one or two
ENDED = frozenset({"finished", "failed", "stopped"})


class InProcessPki(LocalFederation):
    """The same commands as people type, without a process for each."""

    _turn = threading.Lock()

    def make_authority(self) -> None:
        """As `consilium pki init`, but 60 days ago: so there can be certificates of it that have expired."""
        folder = self.folder("authority")
        folder.mkdir(parents=True)
        key, certificate = create_authority(self.name, datetime.now(UTC) - timedelta(days=60), 3650)
        (folder / CA_KEY).touch(0o600)
        (folder / CA_KEY).write_bytes(key)
        (folder / CA_CERTIFICATE).write_bytes(certificate)
        (folder / "revoked.txt").write_text("")

    def _pki(self, *arguments: str) -> None:
        with self._turn:
            result = CliRunner().invoke(app, ["pki", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output


def say(*arguments: str, folder: Path | None = None, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs a command line of the product as a process of its own, to its end: `python -m` and what follows."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=folder, check=False)


def user_error(result: subprocess.CompletedProcess[str]) -> str:
    """What a command said that a user's mistake ended: one error and one remedy, exit code 2, never a traceback."""
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr + result.stdout
    assert result.stderr.startswith("error: "), result.stderr
    assert "\nremedy: " in result.stderr, result.stderr
    return result.stderr


def until(what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Waits for something that another process does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


class Bench:
    """Nine nodes that train nothing and one coordinator; every run is another plan on the same processes.

    Args:
        root: folder of the federation.
        size: how many nodes.
    """

    def __init__(self, root: Path, size: int = 9) -> None:
        self.local = InProcessPki(root, "processes")
        self.names = [f"node-{k + 1}" for k in range(size)]
        self._runs = 0
        self.local.make_authority()
        self.local.enrol("coordinator", ["coordinator"])
        self.local.enrol("operator", ["operator"])
        self.local.enrol("institution", self.names)
        self.local.configure_coordinator()
        self.keys = {name: self.local.public_key(name) for name in self.names}
        for name in self.names:
            self.configure(name)

    def configure(self, name: str, accepted: tuple[str, ...] = ()) -> None:
        nowhere = self.local.folder(name) / "generated"
        self.local.configure_node(LocalInstitution(name, {bench_plan.MODALITY: nowhere}, nowhere), accepted)

    # -- processes ----------------------------------------------------------------------------------------------

    def process(self, party: str) -> LocalProcess:
        return self.local.processes[party]

    def start_coordinator(self, failpoint: str = "") -> LocalProcess:
        """Starts it, or ends it and starts it again, to be killed at `failpoint`."""
        if "coordinator" in self.local.processes:
            self.process("coordinator").stop()
        return self.local.start_coordinator({TESTING: "1", VARIABLE: failpoint} if failpoint else {})

    def start_node(self, name: str, dies: str = "") -> LocalProcess:
        if name in self.local.processes:
            self.process(name).stop()
        return self.local.start_node(name, {DIE: dies} if dies else {}, module=NODE)

    def wait_killed(self, party: str) -> None:
        """Waits until a party has died of SIGKILL."""
        assert self.process(party).wait(SECONDS) == -signal.SIGKILL, self.process(party).tail()

    def tidy(self) -> None:
        """After a test, whatever became of it: no run goes on, and everybody lives."""
        if not self.local.processes["coordinator"].running:
            self.start_coordinator()
        for run in self.runs():
            if run.status not in ENDED:
                with self.operator() as link:
                    link.stop(run.run, "the test is over")
        for name in self.names:
            if not self.process(name).running:
                self.start_node(name)

    # -- runs ---------------------------------------------------------------------------------------------------

    @contextmanager
    def operator(self) -> Iterator[OperatorLink]:
        with connect(self.local.address, self.local.folder("operator")) as link:
            yield link

    def plan(
        self,
        rounds: int = 3,
        parameters: int = 1000,
        encrypted: tuple[str, ...] = (),
        complete_graph_up_to: int = 100,
        **deadlines: float,
    ) -> Plan:
        """A plan of another run, which all nodes accept."""
        self._runs += 1
        plan = bench_plan.bench_plan(self.keys, Case(len(self.keys), parameters), rounds, self.local.name)
        waits = plan.deadlines.model_copy(update={"keys": 30.0, "upload": 40.0, **deadlines})
        chosen = {"ckks": encrypted, "coordinator_colludes": not encrypted}
        shut = plan.secure_sum.model_copy(update={**chosen, "complete_graph_up_to": complete_graph_up_to})
        plan = plan.model_copy(update={"run": f"{plan.run}-{self._runs}", "deadlines": waits, "secure_sum": shut})
        run = digest(plan.to_bytes()).hex()
        for name in self.names:
            policy = self.local.folder(name) / "policy.toml"
            new = policy.with_suffix(".new")
            new.write_text(f"accepted_plans = {json.dumps([run])}\nallow_ckks = {json.dumps(bool(encrypted))}\n")
            os.replace(new, policy)
        return plan

    def begin(self, plan: Plan) -> bytes:
        with self.operator() as link:
            return link.start(plan.to_bytes())

    def runs(self) -> list[pb.RunSummary]:
        with self.operator() as link:
            return link.runs()

    def status(self, run: bytes) -> pb.RunStatus:
        with self.operator() as link:
            return link.status(run)

    def wait_ended(self, run: bytes) -> pb.RunSummary:
        """Waits for the end of a run."""
        with self.operator() as link:
            until("the run's end", lambda: link.status(run).summary.status in ENDED)
            return link.status(run).summary

    def export(self, run: bytes) -> dict[str, bytes]:
        with self.operator() as link:
            return link.export(run)

    # -- what is durable ----------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        return self.local.folder("coordinator") / "state"

    @contextmanager
    def _store(self) -> Iterator[Store]:
        store = Store(f"sqlite:///{self.state / 'state.sqlite'}")
        try:
            yield store
        finally:
            store.close()

    def committed(self, run: bytes) -> list[CommittedRound]:
        with self._store() as store:
            return list(store.rounds(run.hex()))

    def points(self, run: bytes, round_number: int) -> tuple[Point, ...]:
        with self._store() as store:
            return store.points(run.hex(), round_number)

    def enrolled_with(self, run: bytes) -> dict[str, str]:
        """Institution to the fingerprint it enrolled with."""
        with self._store() as store:
            return {e.institution: e.fingerprint for e in store.enrolments(run.hex())}

    def audit(self, name: str) -> list[dict[str, Any]]:
        """Entries of a party's audit log."""
        file = self.state / "audit.log" if name == "coordinator" else self.local.folder(name) / "state" / AUDIT_LOG
        return [json.loads(line) for line in file.read_text().splitlines()]

    def wait_for_audit(self, name: str, event: str, run: bytes) -> None:
        """Waits until a party has written an event about a run."""
        wanted = (event, run.hex())
        until(f"{event} at {name}", lambda: wanted in [(e["event"], e["fields"].get("plan")) for e in self.audit(name)])

    def noised_patients(self, run: bytes, name: str) -> int:
        memory = json.loads((self.local.folder(name) / "state" / "runs" / f"{run.hex()}.json").read_text())
        return int(memory["noised_patients"])


def records_of(committed: list[CommittedRound]) -> dict[int, dict[str, Any]]:
    return {c.round: json.loads(c.record) for c in committed}


def states_of(committed: list[CommittedRound]) -> dict[int, RunState]:
    return {c.round: RunState.from_json(c.state) for c in committed}


def alive(record: Mapping[str, Any], sum_name: str) -> set[str]:
    return set(record["sums"][sum_name]["alive"])
