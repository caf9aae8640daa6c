"""A federation of a few dozen generated patients each, for tests of whole rounds: it starts and ends within a second.

The parties are the program's own; what is added here watches them (every message an institution sends, every vector it
encodes) and makes them vanish, restart or be lied to at a chosen place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from consilium.v1 import service_pb2 as pb

from coordinator.observer import Observer
from federation import plan_check
from federation.names import modalities_of
from federation.plan import Plan
from federation.subgroups import groups_of
from federation.tables import RawTable
from institution_node.data import InstitutionData, with_gaps
from institution_node.library import LinkLibrary
from institution_node.link import CoordinatorLink
from institution_node.local_run import LocalRun
from institution_node.memory import FolderMemory, Memory, RunMemory
from institution_node.model_files import ModelShelf
from institution_node.recorder import Recorder
from institution_node.session import Session, Watcher
from institution_node.subgroups import counts_by
from institution_node.updates import as_array
from security.errors import ConsiliumError
from security.privacy.ledger import PrivacyLedger
from security.privacy.randomness import Randomness, SeededRandomness
from security.secure_sum.masks import word_type
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import Upload, WordSource
from studies.federation import Participant
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from tests.plans import example_identity, example_institutions, example_plan

Float32 = npt.NDArray[np.float32]

torch.set_num_threads(1)  # such small models only wait for each other

TRAINING: Final = {"local_steps": 2, "batch_size": 8, "learning_rate": 0.01}
DEADLINES: Final = {"keys": 30.0, "upload": 60.0, "signatures": 30.0, "openings": 30.0, "enrolment": 60.0}
EVALUATION: Final = {"bins": 5}


def small_plan(institutions: int = 7, **changes: Any) -> Plan:
    """`tests.plans.example_plan`, checked, with little training and short deadlines; `changes` as there.

    Nine institutions are METHOD.md's. Fewer hold everything, but for the last three, who hold the first modality only:
    so no two cohorts differ by fewer than three, and all that can be summed is.
    """
    defaults: dict[str, dict[str, Any]] = {"training": TRAINING, "deadlines": DEADLINES, "evaluation": EVALUATION}
    merged: dict[str, Any] = dict(changes)
    for name, table in defaults.items():
        own = changes.get(name, {})
        merged[name] = {**table, **own} if isinstance(own, Mapping) else own
    plan = example_plan(institutions, **merged)
    if institutions != 9:
        kinds = [("mrna", "image", "clinical")] * (institutions - 3) + [("mrna",)] * 3
        named = zip(example_institutions(institutions), kinds, strict=True)
        plan = plan.model_copy(
            update={"institutions": tuple(i.model_copy(update={"modalities": held}) for i, held in named)}
        )
    plan_check.check(plan)
    return plan


def patients(plan: Plan, institution: str, seed: int = 0, count: int = 40) -> InstitutionData:
    """Patients whose later stage shifts every numeric column a little; some values are missing. Where the plan lists
    several combinations for the institution, patients have them in turn, two by two."""
    rng = np.random.default_rng([seed, *institution.encode()])
    count += plan.roster.index(institution)  # no two institutions are of one size
    ids = tuple(f"{institution}-patient-{i:03}" for i in range(count))
    labels = (np.arange(count) % 2).astype(np.int64)
    held = plan.institution(institution).modalities
    tables: dict[str, RawTable] = {}
    for modality in (m for m in plan.modalities if m.name in held):
        numeric: dict[str, npt.NDArray[np.float64]] = {}
        categorical: dict[str, tuple[str | None, ...]] = {}
        for column in modality.columns:
            if column.kind == "numeric":
                middle, half = (column.low + column.high) / 2, (column.high - column.low) / 2
                values = middle + half * np.clip(0.2 * rng.standard_normal(count) + 0.15 * labels, -0.9, 0.9)
                numeric[column.name] = np.where(rng.random(count) < 0.05, np.nan, values)
            else:
                codes = rng.integers(len(column.categories), size=count)
                categorical[column.name] = tuple(column.categories[k] for k in codes)
        tables[modality.name] = RawTable(ids, numeric, categorical)
    listed, own = plan.combinations(institution), tuple[str, ...]()
    if len(listed) > 1:
        own = tuple(listed[k // 2 % len(listed)] for k in range(count))  # both classes in each
        tables = {m: with_gaps(table, ids, [m in modalities_of(c) for c in own]) for m, table in tables.items()}
    data = InstitutionData(ids, tables, labels, f"fingerprint-of-{institution}", combinations=own)
    drawn = np.random.default_rng([seed, 1, *institution.encode()])
    attributes = counts_by(plan, institution)
    return data.with_subgroups({a.name: drawn.integers(len(groups_of(a)), size=count) for a in attributes})


class DictMemory:
    """What a process remembers until it ends."""

    def __init__(self) -> None:
        self.kept: dict[str, RunMemory] = {}

    def load(self, run: str) -> RunMemory:
        return self.kept.get(run) or RunMemory()

    def save(self, run: str, memory: RunMemory) -> None:
        self.kept[run] = memory

    note = save


class LinkContent(LinkLibrary):
    """Content by digest, straight over a link."""

    def __init__(self, link: CoordinatorLink, run: bytes) -> None:
        super().__init__(link, run, capacity=0)


@dataclass
class Told:
    """What one institution's watcher and recorder heard; none of it is ever sent."""

    joined: list[tuple[int, int]] = field(default_factory=list)
    refused: list[ConsiliumError] = field(default_factory=list)
    signed: list[str] = field(default_factory=list)
    similar: list[tuple[str, ...]] = field(default_factory=list)
    evaluated: list[tuple[str, float, float | None]] = field(default_factory=list)
    near: list[tuple[str, float]] = field(default_factory=list)
    factors: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Ears(Watcher, Recorder):
    """Writes down what it hears, and tells `also`, the program's own observer."""

    def __init__(self, told: Told, also: Any = None) -> None:
        self.told, self.also = told, also

    def _pass_on(self, event: str, *values: object) -> None:
        if self.also is not None:
            getattr(self.also, event)(*values)

    def joined(self, round_: int, attempt: int) -> None:
        self.told.joined.append((round_, attempt))
        self._pass_on("joined", round_, attempt)

    def signed(self, sum_name: str, alive: int, gone: int) -> None:
        self.told.signed.append(sum_name)
        self._pass_on("signed", sum_name, alive, gone)

    def similar_cohort(self, parts: tuple[str, ...]) -> None:
        self.told.similar.append(parts)
        self._pass_on("similar_cohort", parts)

    def refused(self, error: ConsiliumError) -> None:
        self.told.refused.append(error)
        self._pass_on("refused", error)

    def trained(self, round_: int, mean_loss: float, factors: Mapping[str, float]) -> None:
        self.told.factors.append(dict(factors))
        self.told.losses.append(mean_loss)
        self._pass_on("trained", round_, mean_loss, factors)

    def updated(self, component: str, norm: float, clipped: int) -> None:
        self._pass_on("updated", component, norm, clipped)

    def weighed(self, component: str, alpha: float) -> None:
        self._pass_on("weighed", component, alpha)

    def evaluated(self, subset: str, training: float, validation: float | None) -> None:
        self.told.evaluated.append((subset, training, validation))
        self._pass_on("evaluated", subset, training, validation)

    def near(self, subset: str, proximity: float) -> None:
        self.told.near.append((subset, proximity))
        self._pass_on("near", subset, proximity)

    def spent(self, epsilon: float, limit: float) -> None:
        self._pass_on("spent", epsilon, limit)


@dataclass
class Encoded:
    """What one institution put into one sum of one round, before any mask."""

    words: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    updates: dict[str, Float32] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)


class RecordingRun(LocalRun):
    """A `LocalRun` that writes down every vector it hands over."""

    recorded: dict[tuple[int, str], Encoded]

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        made = super().sources(which, uploads)
        state = self._current()
        kept = self.recorded.setdefault((state.number, which.name), Encoded())
        for part in uploads:
            words = np.empty(part.length, word_type(part.ring))
            made[part.name].fill(0, words)
            kept.words[part.name] = words
            if which.name == "updates":
                assert self._prepared is not None
                kept.alphas[part.name] = self._prepared.alpha(part.name)
        if state.updates is not None and which.name == "updates":
            kept.updates = {name: as_array(delta) for name, delta in state.updates.updates.items()}
        return made


@dataclass
class Sent:
    """One message that left an institution, as bytes."""

    institution: str
    round: int
    attempt: int
    kind: str
    data: bytes


class TappedLink(MemoryLink):
    """A link that keeps a copy of everything that leaves; `lie` changes directives on their way in."""

    def __init__(self, federation: SmallFederation, institution: str) -> None:
        super().__init__(federation.coordinator, institution)
        self._federation, self._name = federation, institution

    def _tap(self, kind: str, data: bytes) -> None:
        run = self._federation.coordinator.run
        attempt = 0 if run.attempt is None else run.attempt.number
        self._federation.sent.append(Sent(self._name, run.round, attempt, kind, data))

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        directive = super().next_directive(run, known, wait_seconds)
        lie = self._federation.lie
        if lie is not None:
            kind, content = directive.WhichOneof("kind"), directive.SerializeToString(deterministic=True)
            directive = pb.Directive.FromString(content)  # the coordinator's own is told to others as well
            lie(self._name, directive)
            if directive.SerializeToString(deterministic=True) != content:
                directive.serial ^= 1
                self._federation.lies.append((self._name, str(kind)))
        return directive

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        self._tap(str(request.WhichOneof("message")), request.SerializeToString())
        return super().submit(request)

    def upload(self, run: bytes, upload: Upload) -> None:
        self._tap("header", upload.header.payload + upload.header.signature)
        self._tap("upload", b"".join(upload.chunks()))
        super().upload(run, upload)


Acts = Callable[[str, pb.Directive], bool]
"""Whether an institution gets to act on a directive now."""


class SmallFederation:
    """All parties of one run.

    Args:
        plan: see `small_plan`.
        seed: of everybody's randomness and patients.
        folder: where nodes remember; None: in the process.
        observer: the coordinator's.
        epsilon: limits of ledgers by institution, where the plan is private (needs `folder`).
        also: makes a second observer for an institution.
        coordinator: makes it of the plan's bytes and the observer.
        shelf: where an institution's components rest; None: in the process.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        seed: int = 1,
        folder: Path | None = None,
        observer: Observer | None = None,
        epsilon: Mapping[str, float] | None = None,
        also: Callable[[str], Any] = lambda name: None,
        coordinator: Callable[[bytes, Observer | None], MemoryCoordinator] = MemoryCoordinator,
        shelf: Callable[[str], ModelShelf | None] = lambda name: None,
    ) -> None:
        self.plan, self.seed, self.folder = plan, seed, folder
        self.bytes = plan.to_bytes()
        self.coordinator, self._shelf = coordinator(self.bytes, observer), shelf
        self.data = {name: patients(plan, name, seed) for name in plan.roster}
        self.memories: dict[str, Memory] = {}
        self.works: dict[str, RecordingRun] = {}
        self.participants: dict[str, Participant] = {}
        self.told = {name: Told() for name in plan.roster}
        self.recorded: dict[str, dict[tuple[int, str], Encoded]] = {name: {} for name in plan.roster}
        self.ledgers: dict[str, PrivacyLedger] = {}
        self.epsilon = dict(epsilon or {})
        self._also = also
        self.sent: list[Sent] = []
        self.lie: Callable[[str, pb.Directive], None] | None = None
        self.lies: list[tuple[str, str]] = []
        self._starts = dict.fromkeys(plan.roster, 0)
        for name in plan.roster:
            self.start(name)

    @property
    def run(self) -> Any:
        return self.coordinator.run

    def memory(self, name: str) -> RunMemory:
        """What an institution remembers of the run."""
        return self.memories[name].load(self.run.key)

    def start(self, name: str) -> None:
        """Starts, or after a crash restarts, an institution's node: only its folder (or dictionary) is as before."""
        self._starts[name] += 1
        if self.folder is not None:
            self.memories[name] = FolderMemory(self.folder / name)
        elif name not in self.memories:
            self.memories[name] = DictMemory()
        rng: Randomness = SeededRandomness(self.seed, f"{name}/{self._starts[name]}")
        link = TappedLink(self, name)
        memory = self.memories[name]
        ears = Ears(self.told[name], self._also(name))
        if self.plan.differential_privacy.enabled:
            assert self.folder is not None
            if name in self.ledgers:
                self.ledgers[name].close()
            limit = self.epsilon.get(name, 1e6)
            self.ledgers[name] = PrivacyLedger(
                self.folder / name / "ledger", limit_epsilon=limit, delta=1e-5, clock=lambda: 0.0
            )
        content = LinkContent(link, self.coordinator.run.id)
        work = RecordingRun(
            self.bytes,
            name,
            self.data[name],
            content,
            memory,
            rng,
            ledger=self.ledgers.get(name),
            recorder=ears,
            shelf=self._shelf(name),
        )
        work.recorded = self.recorded[name]
        identity = example_identity(self.plan.roster.index(name))
        session = Session(
            self.bytes, name, identity, rng.child("session"), memory, work, watcher=ears, fetch=content.fetch
        )
        self.works[name], self.participants[name] = work, Participant(session, link)

    def enrol(self, *names: str) -> None:
        """Enrols these institutions, or all."""
        for name in names or self.plan.roster:
            self.participants[name].link.enrol(self.run.id, "")

    def run_to_end(
        self,
        acts: Acts = lambda name, directive: True,
        *,
        after: Callable[[], None] = lambda: None,
        patience: int = 400,
    ) -> str:
        """Drives everybody in turn until the run is over, or stands still.

        Args:
            acts: asked before an institution acts.
            after: called after everything that anybody did.
            patience: how often in a row time may pass without anything else happening.

        Returns:
            The run's status: `standing` where nothing happens any more.
        """
        idle, end = 0, self.coordinator.now + timedelta(hours=2)
        while not self.run.ended and self.coordinator.now < end:
            moved = False
            for name in self.plan.roster:
                participant = self.participants[name]
                directive = participant.link.next_directive(self.run.id, 0, 0.0)
                if directive.serial == participant.known or not acts(name, directive):
                    continue
                if participant.step():
                    moved = True
                after()
                if self.run.ended:
                    break
            worked = self.coordinator.work()
            if worked:
                after()
            if moved or worked:
                idle = 0
                continue
            idle += 1
            if idle > patience:
                return "standing"
            self.coordinator.pass_time(5.0)
        return str(self.run.status) if self.run.ended else "standing"

    # -- what happened ------------------------------------------------------------------------------------------

    def weights(self, component: str) -> Float32:
        """w of a component, as published now."""
        return self.content(self.run.state.components[component].weights, np.float32)

    def content(self, digest: str, dtype: Any) -> npt.NDArray[Any]:
        reader = self.coordinator.content.open(digest)
        data = bytearray(reader.length)
        reader.read_into(0, memoryview(data))
        return np.frombuffer(data, dtype)

    def withdrawals(self) -> list[tuple[str, int, str]]:
        """(institution, round, code) of every withdrawal that was sent."""
        found = []
        for message in self.sent:
            if message.kind == "withdrawal":
                w = pb.SubmitRequest.FromString(message.data).withdrawal
                found.append((message.institution, w.round, w.code))
        return found


def finished(plan: Plan, **options: Any) -> SmallFederation:
    """A federation after its run."""
    federation = SmallFederation(plan, **options)
    federation.enrol()
    status = federation.run_to_end()
    assert status == "finished", (status, federation.run.phase, federation.run.reason)
    return federation


__all__ = [
    "DictMemory",
    "Encoded",
    "SmallFederation",
    "finished",
    "patients",
    "small_plan",
]
