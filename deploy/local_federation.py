"""A whole federation on this machine: authority, coordinator and nodes as real processes over mTLS on loopback.

The demo, the bench and the process tests stand on it. Every certificate is made by the commands that a hospital types.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from deploy.processes import LocalProcess, ProcessFailedError
from security.certificates import identity_of
from security.signing import public_key_text

READY_SECONDS = 60.0


@dataclass(frozen=True)
class LocalInstitution:
    """One institution to set up.

    Attributes:
        name: as in the plan.
        tables: modality to file.
        labels: label table.
    """

    name: str
    tables: Mapping[str, Path]
    labels: Path


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class LocalFederation:
    """Folders, certificates, configuration and processes.

    Attributes:
        root: everything is in here.
        name: of the federation.
        seed: where not None, batches, keys and noise follow from it: demo, bench and tests only.
    """

    root: Path
    name: str
    seed: int | None = None
    port: int = field(default_factory=free_port)
    processes: dict[str, LocalProcess] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Of the coordinator."""
        return f"127.0.0.1:{self.port}"

    def folder(self, party: str) -> Path:
        """A party's folder: `coordinator`, `operator`, or `nodes/<institution>`."""
        return self.root / (party if party in ("authority", "coordinator", "operator") else f"nodes/{party}")

    # -- certificates ---------------------------------------------------------------------------------------------

    def make_authority(self) -> None:
        """The certificate authority."""
        self._pki("init", "--federation", self.name, "--out", str(self.folder("authority")))

    def enrol(self, role: str, parties: Sequence[str]) -> None:
        """Key and request at each party, signature at the authority; the private key stays in the party's folder."""

        def one(party: str) -> None:
            folder = self.folder(party)
            folder.mkdir(parents=True, exist_ok=True)
            where = ("--dns", "localhost", "--ip", "127.0.0.1") if role == "coordinator" else ()
            named = ("--role", role, "--name", party)
            self._pki("issue", "--federation", self.name, *named, "--out", str(folder), *where)
            authority = self.folder("authority")
            self._pki("sign", str(folder / "request.csr"), "--ca", str(authority), *named, "--yes")
            for file in ("ca.pem", "revoked.txt"):
                shutil.copy(authority / file, folder / file)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, parties))

    def public_key(self, party: str) -> str:
        """The `p256:` line of a party, for the plan."""
        return public_key_text(identity_of((self.folder(party) / "certificate.pem").read_bytes()).public)

    def _pki(self, *arguments: str) -> None:
        process = LocalProcess("consilium pki", ["deploy.cli", "pki", *arguments], self.root / "logs" / "authority.log")
        if process.wait(READY_SECONDS) != 0:
            raise ProcessFailedError(f"consilium pki {arguments[0]} failed:\n{process.tail()}", place=str(process.log))

    # -- configuration --------------------------------------------------------------------------------------------

    def configure_coordinator(self) -> None:
        """Writes coordinator.toml."""
        text = f"""\
federation = {json.dumps(self.name)}
address = "{self.address}"
state = "state"

[tls]
certificate = "certificate.pem"
key = "key.pem"
authority = "ca.pem"
revocations = "revoked.txt"
"""
        (self.folder("coordinator") / "coordinator.toml").write_text(text)

    def configure_node(self, institution: LocalInstitution, accepted: Sequence[str], threads: int = 1) -> None:
        """Writes node.toml and policy.toml of one institution, which accepts the plans of these digests."""
        folder = self.folder(institution.name)
        tables = "\n".join(
            f"{modality} = {json.dumps(str(path.resolve()))}" for modality, path in institution.tables.items()
        )
        testing = "" if self.seed is None else f"\n[testing]\nseed = {self.seed}\n"
        (folder / "node.toml").write_text(f"""\
federation = {json.dumps(self.name)}
institution = {json.dumps(institution.name)}
coordinator = "{self.address}"
state = "state"

[tls]
certificate = "certificate.pem"
key = "key.pem"
authority = "ca.pem"
revocations = "revoked.txt"

[data]
labels = {json.dumps(str(institution.labels.resolve()))}

[data.tables]
{tables}

[compute]
device = "cpu"
threads = {threads}
{testing}""")
        public = "" if self.seed is None else "data_is_public = true\nallow_seeded_randomness = true\n"
        (folder / "policy.toml").write_text(f"accepted_plans = {json.dumps(list(accepted))}\n{public}")

    # -- processes ------------------------------------------------------------------------------------------------

    def start_coordinator(self, environment: Mapping[str, str] | None = None) -> LocalProcess:
        """Starts the coordinator and waits until it serves."""
        folder = self.folder("coordinator")
        ready = folder / "ready"
        ready.unlink(missing_ok=True)
        arguments = ["coordinator.cli", "serve", "--config", str(folder / "coordinator.toml")]
        process = self._start("coordinator", [*arguments, "--ready-file", str(ready)], environment)
        process.wait_for(ready, READY_SECONDS)
        return process

    def start_node(
        self, name: str, environment: Mapping[str, str] | None = None, module: str = "institution_node.cli"
    ) -> LocalProcess:
        """Starts one node."""
        config = str(self.folder(name) / "node.toml")
        return self._start(name, [module, "run", "--config", config], environment)

    def _start(self, name: str, arguments: list[str], environment: Mapping[str, str] | None) -> LocalProcess:
        process = LocalProcess(name, arguments, self.root / "logs" / f"{name}.log", environment)
        self.processes[name] = process
        return process

    def check_alive(self) -> None:
        """Raises ProcessFailedError if a process ended that nobody asked to."""
        for process in self.processes.values():
            if not process.running:
                raise ProcessFailedError(f"{process.name} ended:\n{process.tail()}", place=str(process.log))

    def __enter__(self) -> LocalFederation:
        return self

    def __exit__(self, *exception: object) -> None:
        nodes = [p for name, p in self.processes.items() if name != "coordinator"]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(LocalProcess.stop, nodes))
        if "coordinator" in self.processes:
            self.processes["coordinator"].stop()
