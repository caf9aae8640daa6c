"""A node of the process tests: real link, loop, session, log and audit on generated vectors; and places where it dies.

`python -m tests.processes.generating_node run --config node.toml`. CONSILIUM_TEST_DIE=place/round makes it end there as
by `kill -9`, once: `keys` and `shares` before they leave, `training`, `upload-SUM` when the coordinator has a part of
it, `signed-SUM` once it has signed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import cast

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import service_pb2 as pb
from prometheus_client import CollectorRegistry

from deploy.bench_node import GeneratedVectors, generated_patients
from federation.layout import Layout
from federation.plan import Plan
from institution_node.config import load_node_config
from institution_node.grpc_link import GrpcLink
from institution_node.local_run import LocalRun
from institution_node.memory import FolderMemory
from institution_node.node import Assignment, Node, run_until_stopped
from institution_node.observe import NodeObserver
from institution_node.policy import load_policy
from institution_node.service import AUDIT_LOG, RUNS, identity_in, stopping, tls_files
from institution_node.session import RoundWork
from institution_node.trainer import Trajectory
from monitoring.logging import configure_logging
from monitoring.metrics import NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.privacy.randomness import Randomness, SystemRandomness
from security.secure_sum.upload import Upload
from security.tls import require_tls13_environment

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
VARIABLE = "CONSILIUM_TEST_DIE"


def generated_update(institution: str, component: str, weights: Float32) -> Float32:
    """The update of an institution in the round that begins with `weights`: a test can make it again from outside."""
    rng = np.random.default_rng([zlib.crc32(f"{institution}/{component}".encode()), zlib.crc32(weights.tobytes())])
    return rng.standard_normal(weights.size, np.float32) * np.float32(0.02)


class Doom:
    """Where this process dies."""

    def __init__(self) -> None:
        self.round = -1
        self.sum = ""
        self._wanted = os.environ.get(VARIABLE, "")

    def waits_at(self, place: str) -> bool:
        return self._wanted == f"{place}/{self.round}"

    def at(self, place: str) -> None:
        if self.waits_at(place):
            os.kill(os.getpid(), signal.SIGKILL)


DOOM = Doom()


class DyingLink(GrpcLink):
    """The node's link, with the places."""

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        return self._noted(super().next_directive(run, known, wait_seconds))

    @staticmethod
    def _noted(directive: pb.Directive) -> pb.Directive:
        if directive.HasField("make_keys"):
            DOOM.round = rounds_pb.RoundStart.FromString(directive.make_keys.round_start).round
        elif directive.HasField("contribute"):
            DOOM.sum = directive.contribute.sum
        return directive

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        kind = request.WhichOneof("message")
        if kind in ("keys", "shares"):
            DOOM.at(kind)
        if kind == "opening":  # the others' signatures sufficed: this node signed for itself, and sends its shares
            DOOM.at(f"signed-{DOOM.sum}")
        if kind == "signature" and DOOM.waits_at(f"signed-{DOOM.sum}"):
            request.wait_seconds = 0  # it dies with its own signature sent, not once the list is decided
        directive = super().submit(request)
        if kind == "signature":
            DOOM.at(f"signed-{DOOM.sum}")
        return self._noted(directive)

    def upload(self, run: bytes, upload: Upload) -> None:
        dying = DOOM.waits_at(f"upload-{DOOM.sum}")
        super().upload(run, cast(Upload, _BreakingUpload(self, run, upload)) if dying else upload)

    def arrived(self, run: bytes, upload: Upload) -> int:
        where = pb.GetUploadRequest(run=run, header=upload.header.to_proto())
        return int(self._unary("control", lambda s: s.GetUpload, where).offset)


class _BreakingUpload:
    """Ends the process between two chunks, once the first is at the coordinator."""

    def __init__(self, link: DyingLink, run: bytes, upload: Upload) -> None:
        self.header, self.length = upload.header, upload.length
        self._link, self._run, self._upload = link, run, upload

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        for chunk in self._upload.chunks(offset):
            half = len(chunk) // 2
            yield chunk[:half]
            while self._link.arrived(self._run, self._upload) == 0:
                pass
            DOOM.at(f"upload-{DOOM.sum}")


class FollowingVectors(GeneratedVectors):
    """Trains nothing: the update follows from institution and model alone, whatever was restarted in between."""

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        institution: str,
        features: Mapping[str, Float32],
        labels: Int64,
        train_rows: Int64,
        validation_rows: Int64,
        device: str,
        combinations: Sequence[str] = (),
    ) -> None:
        super().__init__(plan, layout, institution, features, labels, train_rows, validation_rows, device, combinations)
        self._institution = institution

    def train(
        self,
        weights: Mapping[str, Float32],
        step_factors: Mapping[str, float],
        learning_rate: float,
        rng: Randomness,
        held: frozenset[str] = frozenset(),
    ) -> Trajectory[Float32]:
        DOOM.at("training")
        return Trajectory({c: generated_update(self._institution, c, w) for c, w in weights.items()}, 0.0, 1)


@contextmanager
def _work(a: Assignment) -> Iterator[RoundWork]:
    yield LocalRun(
        a.plan_bytes, a.institution, a.data, a.library, a.memory, a.randomness, make_trainer=FollowingVectors
    )


def main(config_path: Path) -> None:
    require_tls13_environment()
    configure_logging(level=logging.INFO, json=True)
    config = load_node_config(config_path)
    rng, stop = SystemRandomness(), Event()
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        audit = stack.enter_context(AuditLog(config.state / AUDIT_LOG, datetime.now(UTC)))
        shareable, local = NodeShareableMetrics(CollectorRegistry()), NodeLocalMetrics(CollectorRegistry())
        observer = NodeObserver(config.institution, shareable, local, audit)
        link = DyingLink(config.coordinator, tls_files(config), stop=stop, watcher=observer)
        stack.callback(link.close)
        node = Node(
            link,
            identity_in(config, link.material.identity),
            link.material.identity_key(),
            lambda: load_policy(config.policy),
            FolderMemory(config.state / RUNS),
            rng,
            lambda plan: generated_patients(plan, config.institution, rng),
            _work,
            watcher=observer,
        )
        with stopping(stop):
            run_until_stopped(node, stop, idle_seconds=0.1)


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--config") + 1]))
