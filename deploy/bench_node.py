"""A node of the bench: the real link, loop, session and sums, on generated vectors instead of training. No torch.

`python -m deploy.bench_node run --config node.toml`; CONSILIUM_BENCH_VANISH=1 makes it vanish from every round after
the key phase, where recovering it costs most.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import FrameType

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from deploy.bench_plan import PATIENTS
from federation.layout import Layout
from federation.plan import Plan
from federation.tables import RawTable
from institution_node.config import NodeConfig, load_node_config
from institution_node.data import InstitutionData
from institution_node.errors import NonFiniteTrainingError
from institution_node.local_run import LocalRun
from institution_node.memory import FolderMemory
from institution_node.model_files import ModelShelf, weights_folder
from institution_node.node import Assignment, Node
from institution_node.observe import NodeObserver
from institution_node.policy import NodeIdentity, load_policy
from institution_node.recorder import Recorder
from institution_node.service import AUDIT_LOG, RUNS
from institution_node.session import RoundWork
from institution_node.trainer import Evaluation, SubsetLosses, Trajectory
from institution_node.updates import Update
from monitoring.allocation import keep_freed_memory
from monitoring.logging import configure_logging
from monitoring.metrics import NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.privacy.randomness import Randomness, SystemRandomness, numpy_generator
from security.signing import public_key_text
from security.tls import TlsFiles, load

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
BLOCK = 1 << 16


class GeneratedUpdate:
    """An update made from a counter as it is read: a model of any size takes no room.

    Args:
        size: parameters.
        round_: another update every round and block: the same would give the same opened sum, which nobody fetches
            twice.
        block: float32[BLOCK], what every block of it is a multiple of.
    """

    def __init__(self, size: int, round_: int, block: Float32) -> None:
        self.size, self._round, self._block = size, round_, block

    def read(self, start: int, out: Float32) -> None:
        """See Update."""
        done = 0
        while done < len(out):
            k, within = divmod(start + done, BLOCK)
            count = min(BLOCK - within, len(out) - done)
            factor = np.float32(0.01 * (1.0 - ((31 * self._round + k) % 1021) / 2042))
            np.multiply(self._block[within : within + count], factor, out=out[done : done + count])
            done += count


class GeneratedVectors:
    """A trainer that trains nothing: generated updates of the right sizes."""

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
        del features, train_rows, device, combinations
        self.patients = PATIENTS
        self._labels = labels[validation_rows]
        self._subsets = [s for s, who in layout.subsets.items() if institution in who]
        self._combination = layout.combinations[institution][-1]
        self._classes = len(plan.label.classes)
        self._rounds = 0
        self._sizes = {name: layout.components[name].size for name in layout.owned(institution)}
        self._block = np.random.default_rng(sum(institution.encode())).standard_normal(BLOCK, np.float32)

    @property
    def vanishes(self) -> bool:
        """Whether this institution leaves every round after the key phase."""
        return bool(os.environ.get("CONSILIUM_BENCH_VANISH"))

    def train(
        self,
        weights: Mapping[str, Float32],
        step_factors: Mapping[str, float],
        learning_rate: float,
        rng: Randomness,
        held: frozenset[str] = frozenset(),
    ) -> Trajectory[Float32 | Update]:
        """The generated update of this round."""
        if self.vanishes:
            raise NonFiniteTrainingError("this institution vanishes here, as the bench wants it.")
        self._rounds += 1
        made = {name: GeneratedUpdate(size, self._rounds, self._block) for name, size in self._sizes.items()}
        return Trajectory(made, 0.0, 1)

    def evaluate(self, weights: Mapping[str, Float32]) -> Evaluation:
        """Made-up losses and logits."""
        logits = np.zeros((len(self._labels), self._classes), np.float32)
        losses = {s: SubsetLosses(0.7, 0.7) for s in self._subsets}
        return Evaluation(self._combination, losses, dict.fromkeys(losses, logits), self._labels)


def generated_patients(plan: Plan, institution: str, rng: Randomness) -> InstitutionData:
    """A few patients with the plan's numeric columns, so that round 0 has something to sum."""
    generator, held = numpy_generator(rng), plan.institution(institution).modalities
    ids = tuple(f"p{k:03}" for k in range(PATIENTS))
    tables: dict[str, RawTable] = {}
    for modality in (m for m in plan.modalities if m.name in held):
        values = generator.standard_normal((len(modality.columns), PATIENTS))
        tables[modality.name] = RawTable(ids, {c.name: values[k] for k, c in enumerate(modality.columns)}, {})
    return InstitutionData(ids, tables, np.arange(PATIENTS, dtype=np.int64) % 2, "generated")


@contextmanager
def _work(a: Assignment, config: NodeConfig, recorder: Recorder) -> Iterator[RoundWork]:
    folder = weights_folder(config.state, a.run)
    with closing(ModelShelf(folder, slots=config.disk.optimiser_slots)) as shelf:
        yield LocalRun(
            a.plan_bytes,
            a.institution,
            a.data,
            a.library,
            a.memory,
            a.randomness,
            recorder=recorder,
            make_trainer=GeneratedVectors,
            shelf=shelf,
        )


def main(config_path: Path) -> None:
    """Runs until it is told to stop."""
    from institution_node.grpc_link import GrpcLink

    keep_freed_memory()
    configure_logging(level=logging.INFO, json=True)
    config = load_node_config(config_path)
    policy = load_policy(config.policy)
    files = TlsFiles(config.tls.certificate, config.tls.key, config.tls.authority, config.tls.revocations)
    material = load(files, datetime.now(UTC))
    key = material.identity_key()
    stop = Event()

    def end(signum: int, frame: FrameType | None) -> None:
        stop.set()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    own = NodeIdentity(config.federation, config.institution, public_key_text(key.public), tuple(config.data.tables))
    rng = SystemRandomness()
    # What a node writes down is part of what it costs: an entry of the audit log is flushed to the disk.
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    audit = AuditLog(config.state / AUDIT_LOG, datetime.now(UTC))
    registries = NodeShareableMetrics(CollectorRegistry()), NodeLocalMetrics(CollectorRegistry())
    observer = NodeObserver(config.institution, *registries, audit)
    link = GrpcLink(config.coordinator, files, stop=stop, watcher=observer)
    node = Node(
        link,
        own,
        key,
        lambda: policy,
        FolderMemory(config.state / RUNS),
        rng,
        lambda plan: generated_patients(plan, config.institution, rng),
        lambda assignment: _work(assignment, config, observer),
        watcher=observer,
    )
    ready = os.environ.get("CONSILIUM_BENCH_READY")
    while True:
        done = node.step(20.0)
        if ready:  # the coordinator has answered: whoever measures may read what an idle node takes
            Path(ready).touch()
            ready = None
        if not done:
            stop.wait(0.25)


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--config") + 1]))
