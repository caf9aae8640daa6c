"""The node as a process: its files opened, its ports wired, its signals heard."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Final

import structlog
from consilium.v1 import service_pb2 as pb
from prometheus_client import CollectorRegistry

from federation.plan import Plan
from institution_node.config import NodeConfig
from institution_node.data import InstitutionData, load_institution_data
from institution_node.encoder_kinds import installed_kinds, kinds_of, load_encoders
from institution_node.final_model import FETCHING, keep_final_model
from institution_node.grpc_link import GrpcLink
from institution_node.local_run import LocalRun
from institution_node.memory import FolderMemory
from institution_node.model_files import ModelShelf, weights_folder
from institution_node.model_folder import sweep_models
from institution_node.node import Assignment, Node, run_until_stopped
from institution_node.observe import NodeObserver
from institution_node.policy import NodeIdentity, Policy, load_policy
from institution_node.session import RoundWork
from institution_node.trainer import check_precision, trainer_for
from monitoring.allocation import keep_freed_memory
from monitoring.exposition import MetricsServer
from monitoring.metrics import NODE_FREE_DISK, Metrics, NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.certificates import Identity, Role
from security.errors import ConfigurationError
from security.pki import CertificateIdentityError
from security.privacy.ledger import PrivacyLedger
from security.privacy.randomness import Randomness, SeededRandomness, SystemRandomness
from security.signing import public_key_text
from security.tls import TlsFiles, require_tls13_environment

AUDIT_LOG: Final = "audit.jsonl"
LEDGER: Final = "privacy-ledger.jsonl"
RUNS: Final = "runs"
MODELS: Final = "models"

_log = structlog.get_logger("consilium.node")

MakeWork = Callable[[Assignment, NodeObserver], AbstractContextManager[RoundWork]]


def tls_files(config: NodeConfig) -> TlsFiles:
    """Where the node's certificate and what belongs to it are."""
    tls = config.tls
    return TlsFiles(tls.certificate, tls.key, tls.authority, tls.revocations)


def identity_in(config: NodeConfig, certificate: Identity) -> NodeIdentity:
    """Who this node is, where certificate and configuration say the same.

    Raises:
        CertificateIdentityError: they do not.
    """
    if certificate.role is not Role.INSTITUTION:
        raise CertificateIdentityError(
            f"this certificate is of the role {certificate.role.value}, a node needs one of role institution.",
            remedy="Let the authority sign with `--role institution`.",
            place=str(config.tls.certificate),
        )
    for key, said, certified in (
        ("institution", config.institution, certificate.name),
        ("federation", config.federation, certificate.federation),
    ):
        if said != certified:
            raise CertificateIdentityError(
                f"node.toml has {key} = {said!r}, the certificate says {certified!r}.",
                remedy=f"Write {key} = {certified!r} in node.toml, or use the certificate of {said!r}.",
                place=str(config.tls.certificate),
            )
    return NodeIdentity(
        config.federation,
        config.institution,
        public_key_text(certificate.public),
        tuple(config.data.tables),
        installed_kinds(),
    )


def node_randomness(seed: int | None, institution: str) -> Randomness:
    """The source of an institution's keys, batches and noise.

    Args:
        seed: None: the operating system's generator. Otherwise for tests, studies and the demo, which is the same for
            all institutions of a federation.
        institution: whose.
    """
    return SystemRandomness() if seed is None else SeededRandomness(seed, f"node/{institution}")


def load_patients(config: NodeConfig, plan: Plan) -> InstitutionData:
    """The patients that a plan asks this institution for; raises as `load_institution_data`."""
    data = config.data
    return load_institution_data(plan, config.institution, data.tables, data.labels, data.id_column, data.subgroups)


def local_work(config: NodeConfig) -> MakeWork:
    """Makes the real work of a run: local training on the device of the configuration."""

    @contextmanager
    def make(a: Assignment, observer: NodeObserver) -> Iterator[RoundWork]:
        device = prepare_device(config)
        check_precision(a.plan, config.compute.precision)
        encoders = load_encoders(kinds_of(a.plan, a.institution), a.policy.allow_encoders)
        if encoders:
            from institution_node.own_encoder import check_encoders

            check_encoders(a.plan, a.institution, encoders)
        with ExitStack() as stack:
            ledger = None
            if a.plan.differential_privacy.enabled:
                # One ledger over all runs: its limit is the institution's, where it has one, or this plan's.
                limit = a.policy.epsilon_max or a.plan.differential_privacy.epsilon
                ledger = PrivacyLedger(
                    config.state / LEDGER, limit_epsilon=limit, delta=a.plan.differential_privacy.delta
                )
                stack.callback(ledger.close)
            shelf = stack.enter_context(
                closing(ModelShelf(weights_folder(config.state, a.run), slots=config.disk.optimiser_slots))
            )
            yield LocalRun(
                a.plan_bytes,
                a.institution,
                a.data,
                a.library,
                a.memory,
                a.randomness,
                device,
                ledger,
                observer,
                partial(trainer_for, encoders=encoders, precision=config.compute.precision),
                shelf=shelf,
            )

    return make


def prepare_device(config: NodeConfig) -> str:
    """Name of torch's device; sets the number of its threads.

    Raises:
        ConfigurationError: `cuda` is asked for and there is none, or it cannot do the precision asked for.
    """
    import torch

    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    there = torch.cuda.is_available()
    if config.compute.device == "cuda" and not there:
        raise ConfigurationError(
            "this machine has no CUDA device that torch can use.",
            remedy='Write device = "cpu" (or "auto") in [compute] of node.toml, or mend the driver.',
            place="node.toml, compute.device",
        )
    device = "cuda" if there and config.compute.device != "cpu" else "cpu"
    if device == "cuda" and config.compute.precision == "mixed" and not torch.cuda.is_bf16_supported():
        raise ConfigurationError(
            "this machine's CUDA device has no bfloat16.",
            remedy='Write precision = "float32" in [compute] of node.toml.',
            place="node.toml, compute.precision",
        )
    return device


def serve(config: NodeConfig, *, accept_new_data: bool = False, make_work: MakeWork | None = None) -> None:
    """Runs the node until SIGTERM or SIGINT.

    Args:
        config: from node.toml.
        accept_new_data: the engineer confirmed that the tables changed since the run began.
        make_work: what computes; the real training by default, something lighter in the bench.

    Raises:
        ConsiliumError: a file, certificate, policy or address is wrong, and how to mend it; or the tables changed.
    """
    require_tls13_environment()
    keep_freed_memory()
    stop = threading.Event()
    policy = _NewestPolicy(config.policy)
    make = make_work or local_work(config)
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        # First: its lock keeps a second node out of the state folder.
        audit = stack.enter_context(AuditLog(config.state / AUDIT_LOG, datetime.now(UTC)))
        sweep_models(config.state / MODELS)
        shutil.rmtree(config.state / MODELS / FETCHING, ignore_errors=True)
        shareable, local = NodeShareableMetrics(CollectorRegistry()), NodeLocalMetrics(CollectorRegistry())
        observer = NodeObserver(config.institution, shareable, local, audit)
        link = GrpcLink(config.coordinator, tls_files(config), stop=stop, watcher=observer)
        stack.callback(link.close)
        own = identity_in(config, link.material.identity)
        randomness = node_randomness(config.testing.seed, config.institution)
        policy().check_randomness(randomness)
        groups: tuple[tuple[Metrics, object], ...] = (
            (shareable, config.metrics.shareable),
            (local, config.metrics.local),
        )
        shareable.watch_disk(NODE_FREE_DISK, config.state)
        for metrics, address in groups:
            if isinstance(address, tuple):
                stack.enter_context(MetricsServer(metrics, address[0], address[1], config.metrics.access))
        node = Node(
            link,
            own,
            link.material.identity_key(),
            policy,
            FolderMemory(config.state / RUNS),
            randomness,
            lambda plan: load_patients(config, plan),
            lambda assignment: make(assignment, observer),
            finish=lambda assignment, ended: _keep(config.state, assignment, ended),
            watcher=observer,
            accept_new_data=accept_new_data,
        )
        observer.started(release(), link.material.identity.fingerprint, link.material.identity.not_after)
        stack.callback(observer.stopped)
        with stopping(stop):
            run_until_stopped(node, stop)


def release() -> str:
    """Version of this program."""
    try:
        return version("consilium")
    except PackageNotFoundError:  # run from its source tree
        return "source"


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT set `stop`; a second one ends the process at once.

    SIGHUP, which service managers send for "reload", changes nothing: certificates and policy are read whenever they
    are used.
    """

    def hear(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    def reload(_number: int, _frame: FrameType | None) -> None:
        _log.info("certificates and policy.toml are read anew at their next use")

    before: dict[int, Any] = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _NewestPolicy:
    """`policy.toml` as it is now; while it cannot be read, what it last said stays in force."""

    def __init__(self, path: Path) -> None:
        self._path, self._bad = path, False
        self._policy = load_policy(path)

    def __call__(self) -> Policy:
        try:
            self._policy = load_policy(self._path)
            self._bad = False
        except ConfigurationError as error:
            if not self._bad:
                self._bad = True
                _log.error("policy.toml cannot be read; the old policy stays", code=error.code, place=error.place)
        return self._policy


def _keep(state: Path, assignment: Assignment, ended: pb.RunEnded) -> None:
    try:
        written = keep_final_model(state / MODELS, assignment, ended)
        _log.info("the final model is here", path=written)
    finally:
        shutil.rmtree(weights_folder(state, assignment.run), ignore_errors=True)
