"""Every metric by name, each declared once: the table below, and nothing else, makes what `/metrics` shows.

Three groups, each in a registry of its own (DESIGN.md, "What a node shows"):
- the coordinator's: what it knows anyway, opened sums and its own work;
- a node's *shareable* ones: an allow-list that tells nothing of patients, for the federation's own Prometheus;
- a node's *local* ones: computed from patients, for the hospital's own network only.
A metric cannot be set through another group than its own, and label values come from fixed lists, from the plan
(`allow`), or are capped: no label can carry a value or grow without bound.

`docs/metrics.md` is made from this table by `python -m monitoring.reference`.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from monitoring.memory import gpu_bytes, rss_anon_bytes
from security.errors import LocalMisuseError

disable_created_metrics()  # type: ignore[no-untyped-call] # their `_created` series would be metrics nobody declared

Side = Enum("Side", {"COORDINATOR": "coordinator", "NODE": "node"})
Kind = Enum("Kind", {"COUNTER": "counter", "GAUGE": "gauge", "HISTOGRAM": "histogram"})


@dataclass(frozen=True)
class Metric:
    """One metric. Frozen; `DECLARED` holds all of them.

    Attributes:
        name: `consilium_…` at the coordinator, `consilium_node_…` at a node; base units, counters end in `_total`.
        kind: counter, gauge or histogram.
        help: one sentence without a full stop.
        labels: names, each of `LABELS`.
        side: who shows it.
        shareable: may leave the hospital. The coordinator's all may leave it for the federation's Prometheus.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    side: Side
    shareable: bool


PHASES: Final = (
    *("enrolment", "keys", "reveals", "shares", "training", "uploads"),
    *("signatures", "openings", "commit", "waiting", "done"),
)
STATUSES: Final = ("created", "enrolling", "running", "finished", "stopped", "failed")
TRAFFIC: Final = ("control", "messages", "uploads", "downloads")
PARTS: Final = ("training", "validation")
CRITERIA: Final = ("metric", "loss", "last")
OTHER: Final = "other"

_PLAN: Final[frozenset[str]] = frozenset()
# Fixed lists; an empty one is filled from the plan with `allow`. `reason` and `version` are checked by form instead.
LABELS: Final[Mapping[str, frozenset[str]]] = {
    "phase": frozenset(PHASES),
    "status": frozenset(STATUSES),
    "kind": frozenset(TRAFFIC),
    "part": frozenset(PARTS),
    "criterion": frozenset(CRITERIA),
    "sum": _PLAN,
    "subset": _PLAN,
    "combination": _PLAN,
    "component": _PLAN,
    "subgroup": _PLAN,
    "institution": _PLAN,
    "reason": frozenset({OTHER}),
    "version": frozenset({OTHER}),
}
_FORMS: Final = {"reason": re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,5}"), "version": re.compile(r"[0-9A-Za-z.+]{1,32}")}
_MOST_VALUES: Final = 120  # of a label that is checked by form: more become `other`
_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


def _coordinator(name: str, kind: Kind, text: str, *labels: str) -> Metric:
    return Metric(f"consilium_{name}", kind, text, labels, Side.COORDINATOR, shareable=True)


def _shareable(name: str, kind: Kind, text: str, *labels: str) -> Metric:
    return Metric(f"consilium_node_{name}", kind, text, labels, Side.NODE, shareable=True)


def _local(name: str, kind: Kind, text: str, *labels: str) -> Metric:
    return Metric(f"consilium_node_{name}", kind, text, labels, Side.NODE, shareable=False)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# The coordinator: its run.
INFO = _coordinator("info", _G, "Always 1; the label tells the version", "version")
ROUNDS_COMMITTED = _coordinator("rounds_committed_total", _C, "Rounds committed")
ROUNDS_BURNT = _coordinator("rounds_burnt_total", _C, "Rounds given up after a survivor list was signed")
ATTEMPTS_BURNT = _coordinator("attempts_burnt_total", _C, "Attempts given up before a survivor list was signed")
CURRENT_ROUND = _coordinator("current_round", _G, "Number of the round in progress")
PLANNED_ROUNDS = _coordinator("planned_rounds", _G, "Rounds that the plan asks for")
RUN_STATUS = _coordinator("run_status", _G, "1 for the status that the run has, 0 for the others", "status")
LAST_COMMIT = _coordinator(
    "last_commit_timestamp_seconds", _G, "When a round was last committed or the run taken up, as a Unix time"
)
ATTEMPT_LIMIT = _coordinator(
    "attempt_limit_seconds", _G, "Longest that an attempt of a round may take, by the plan's deadlines"
)
CHOSEN_BY = _coordinator(
    "chosen_by", _G, "1 for what chooses the best round: metric, or loss or last while that stays shut", "criterion"
)
PHASE_SECONDS = _coordinator("phase_duration_seconds", _H, "How long each phase of a round took", "phase")
ENROLLED = _coordinator("enrolled_institutions", _G, "Institutions admitted to the run")
REQUIRED = _coordinator("required_institutions", _G, "Fewest institutions that can open a sum, by the plan")
PARTICIPANTS = _coordinator("participants", _G, "Survivors of the last sum of this name", "sum")
PARTICIPATING = _coordinator(
    "institution_participating", _G, "1 if the institution survived the last committed round, else 0", "institution"
)
DROPOUTS = _coordinator("dropouts_total", _C, "Institutions lost, by the phase that missed them", "phase")
REFUSALS = _coordinator("refusals_total", _C, "Calls and institutions refused, by error code", "reason")
# The coordinator: its work.
RECEIVED_BYTES = _coordinator("received_bytes_total", _C, "Payload received from institutions", "kind")
SENT_BYTES = _coordinator("sent_bytes_total", _C, "Payload sent to institutions", "kind")
UNMASKED_WORDS = _coordinator("masked_words_per_second", _G, "Speed of removing masks in the last sum, in words")
FOLD_SECONDS = _coordinator("fold_duration_seconds", _H, "How long adding and unmasking the uploads of a sum took")
HANDSHAKES = _coordinator("handshakes_total", _C, "Connections that began a TLS handshake, refused ones among them")
CONNECTIONS = _coordinator(
    "connections_admitted_total", _C, "Connections whose certificate was accepted and may call something"
)
WAITING_FOR_ROOM = _coordinator("waiting_for_room", _G, "1 while an attempt waits for room on the disk, else 0")
FREE_DISK = _coordinator("free_disk_bytes", _G, "Room that is left on the disk of the state folder")
CERTIFICATE_EXPIRY = _coordinator(
    "certificate_expiry_timestamp_seconds", _G, "When the coordinator's certificate ends, as a Unix time"
)
PROCESS_MEMORY = _coordinator("process_rss_anon_bytes", _G, "Anonymous memory that the process holds")
# The coordinator: opened sums.
UPDATE_NORM = _coordinator("update_norm", _G, "L2 norm of the last mean trajectory of a component", "component")
LOSS = _coordinator("loss", _G, "Mean loss of the last committed round, weighted by proximity", "subset", "part")
BLENDING_SCORE = _coordinator("blending_score", _G, "Generalisation over squared overfitting, smoothed", "subset")
DOGR = _coordinator("dogr", _G, "Overfitting-to-generalisation ratio", "subset")
BLENDING_WEIGHT = _coordinator("blending_weight", _G, "Share of the blending scores of all subsets", "subset")
MEAN_PROXIMITY = _coordinator("mean_proximity", _G, "Mean proximity of local to global trajectories", "subset")
ACCURACY = _coordinator("accuracy", _G, "Share of validation patients staged correctly", "combination")
BALANCED_ACCURACY = _coordinator("balanced_accuracy", _G, "Mean recall over the classes, validation", "combination")
MACRO_F1 = _coordinator("macro_f1", _G, "Mean F1 score over the classes, validation", "combination")
AUROC = _coordinator("auroc", _G, "Area under the receiver operating curve, validation", "combination")
CALIBRATION_ERROR = _coordinator("calibration_error", _G, "Expected calibration error, validation", "combination")
SUBGROUP_BALANCED_ACCURACY = _coordinator(
    "subgroup_balanced_accuracy", _G, "Mean recall over the classes in a subgroup, when last counted", "subgroup"
)
SUBGROUP_AUROC = _coordinator(
    "subgroup_auroc", _G, "Area under the receiver operating curve in a subgroup, when last counted", "subgroup"
)

# A node, shareable. An allow-list: what stands here tells nothing of patients.
NODE_INFO = _shareable("info", _G, "Always 1; the label tells the version", "version")
NODE_UP = _shareable("up", _G, "1 while the node's loop runs")
NODE_LAST_CONTACT = _shareable(
    "last_contact_timestamp_seconds", _G, "When the coordinator last answered, as a Unix time"
)
NODE_CURRENT_ROUND = _shareable("current_round", _G, "Number of the round that the node takes part in")
NODE_PHASE = _shareable("phase", _G, "1 for the phase that the node is in, 0 for the others", "phase")
NODE_PHASES_ENTERED = _shareable("phases_entered_total", _C, "Phases entered", "phase")
NODE_RECEIVED_BYTES = _shareable("received_bytes_total", _C, "Payload received from the coordinator", "kind")
NODE_SENT_BYTES = _shareable("sent_bytes_total", _C, "Payload sent to the coordinator", "kind")
NODE_REFUSALS = _shareable("refusals_total", _C, "What the node refused to sign, open or do, by error code", "reason")
NODE_MASKED_WORDS = _shareable("masked_words_per_second", _G, "Speed of masking the last upload, in words")
NODE_CERTIFICATE_EXPIRY = _shareable(
    "certificate_expiry_timestamp_seconds", _G, "When the node's certificate ends, as a Unix time"
)
NODE_PROCESS_MEMORY = _shareable("process_rss_anon_bytes", _G, "Anonymous memory that the process holds")
NODE_FREE_DISK = _shareable("free_disk_bytes", _G, "Room that is left on the disk of the state folder")

# A node, local: computed from patients.
NODE_GPU_MEMORY = _local("gpu_memory_bytes", _G, "GPU memory that training holds; 0 without a GPU")
NODE_LOSS = _local("loss", _G, "Mean loss of the institution's own patients", "subset", "part")
NODE_UPDATE_NORM = _local("update_norm", _G, "L2 norm of the last update", "component")
NODE_PROXIMITY = _local("proximity", _G, "Proximity of the local to the global trajectory", "subset")
NODE_BLENDING_WEIGHT = _local("blending_weight", _G, "Blending weight at this institution", "subset")
NODE_AGGREGATION_WEIGHT = _local("aggregation_weight", _G, "Weight of the institution's update in the sum", "component")
NODE_CLIPPED = _local("clipped_values_total", _C, "Values of updates clipped before masking", "component")
NODE_EPSILON_SPENT = _local("epsilon_spent", _G, "Privacy spent so far, as ε")
NODE_EPSILON_LIMIT = _local("epsilon_limit", _G, "Largest ε that local policy allows")
NODE_TRAINING_SECONDS = _local("training_duration_seconds", _H, "How long the local steps of a round took")
NODE_SIMILAR_COHORTS = _local(
    "similar_cohorts_signed_total", _C, "Lists signed whose cohort differs from a recent one by few members"
)

DECLARED: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Metrics:
    """One group of metrics in one registry. Thread-safe. Use a subclass.

    Args:
        registry: fresh; never prometheus-client's global one.
    """

    side: ClassVar[Side]
    shareable: ClassVar[bool]

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._lock = threading.Lock()
        self._allowed = {label: set(values) for label, values in LABELS.items()}
        self._instruments: dict[str, Any] = {}
        for metric in DECLARED:
            if metric.side is self.side and metric.shareable is self.shareable:
                self._instruments[metric.name] = _instrument(metric, registry)
        for name in self._instruments.keys() & {PROCESS_MEMORY.name, NODE_PROCESS_MEMORY.name}:
            self._instruments[name].set_function(rss_anon_bytes)
        if NODE_GPU_MEMORY.name in self._instruments:
            self._instruments[NODE_GPU_MEMORY.name].set_function(gpu_bytes)

    def watch_disk(self, metric: Metric, folder: Path) -> None:
        """Reads a gauge off the disk of a folder whenever somebody asks."""
        self._instrument_of(metric, Kind.GAUGE).set_function(lambda: float(shutil.disk_usage(folder).free))

    def allow(self, label: str, values: Iterable[str]) -> None:
        """Adds names of the plan to what a label may say: institutions, subsets, combinations, components, subgroups,
        sums."""
        if LABELS.get(label) is not _PLAN:
            raise LocalMisuseError(f"label {label!r} does not take names of the plan.", remedy="Extend LABELS.")
        with self._lock:
            self._allowed[label].update(values)

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Counts `amount`, at least 0, more."""
        self._of(metric, Kind.COUNTER, labels).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._of(metric, Kind.GAUGE, labels).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Adds an observation, in seconds, to a histogram."""
        self._of(metric, Kind.HISTOGRAM, labels).observe(value)

    def choose(self, metric: Metric, **label: str) -> None:
        """Sets 1 for this value of a gauge's only label, and 0 for every other that is allowed."""
        ((name, chosen),) = label.items()
        self._of(metric, Kind.GAUGE, label)
        for value in sorted(self._allowed[name]):
            self.set(metric, float(value == chosen), **{name: value})

    def forget(self, metric: Metric) -> None:
        """Drops all series of a labelled metric: those of the run before."""
        self._instrument_of(metric, metric.kind).clear()

    def _of(self, metric: Metric, kind: Kind, labels: Mapping[str, str]) -> Any:
        instrument = self._instrument_of(metric, kind)
        if set(labels) != set(metric.labels):
            raise LocalMisuseError(f"{metric.name} has the labels {metric.labels}.", remedy="Give exactly these.")
        if not labels:
            return instrument
        return instrument.labels(**{name: self._checked(name, value) for name, value in labels.items()})

    def _instrument_of(self, metric: Metric, kind: Kind) -> Any:
        instrument = self._instruments.get(metric.name)
        if instrument is None or metric.kind is not kind:
            raise LocalMisuseError(
                f"{metric.name} is no {kind.value} of {type(self).__name__}.",
                remedy="Use the group and the method that monitoring/metrics.py declares it for.",
            )
        return instrument

    def _checked(self, label: str, value: str) -> str:
        form = _FORMS.get(label)
        with self._lock:
            allowed = self._allowed[label]
            if value in allowed:
                return value
            if form is None:
                # The value stays out of the message: it may be anything.
                raise LocalMisuseError(
                    f"that is no value of label {label!r}.", remedy="Use a listed one, or `allow` the plan's first."
                )
            # Codes also arrive from peers: a peer must be able to fill neither the memory nor the page.
            if form.fullmatch(value) and len(allowed) < _MOST_VALUES:
                allowed.add(value)
                return value
            return OTHER


class CoordinatorMetrics(Metrics):
    """What the coordinator shows."""

    side = Side.COORDINATOR
    shareable = True


class NodeShareableMetrics(Metrics):
    """What a node may show outside its hospital."""

    side = Side.NODE
    shareable = True


class NodeLocalMetrics(Metrics):
    """What a node shows inside its hospital only; `monitoring.exposition` refuses any other address."""

    side = Side.NODE
    shareable = False


def _instrument(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind is Kind.COUNTER:
        return Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.kind is Kind.GAUGE:
        return Gauge(metric.name, metric.help, metric.labels, registry=registry)
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=_SECONDS)
