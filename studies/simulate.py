"""One run in one process: the institutions of a study on the node's own session and work, and what comes of them.

Randomness is that of the demo's nodes, `institution_node.service.node_randomness` of the `[testing] seed` in
`node.toml`. So the same plan and seed give the same model bytes here and over gRPC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from coordinator.observer import Observer
from coordinator.results import RoundStatistics
from coordinator.run import Run
from coordinator.state import RunState
from federation.features import FeatureSchema
from federation.model_archive import Model
from federation.names import component_kind, component_subset
from federation.plan import Plan
from federation.rounds import ComponentDigests
from federation.tables import RawTable
from federation.vectors import ContentStore
from institution_node.data import InstitutionData, align
from institution_node.library import LinkLibrary
from institution_node.local_run import LocalRun
from institution_node.memory import RunMemory
from institution_node.session import Session, Watcher
from institution_node.subgroups import counts_by, groups_in
from institution_node.trainer import TrainerFactory, trainer_for
from security.errors import ConsiliumError
from security.privacy.randomness import SeededRandomness
from security.signing import IdentityKey, public_key_text
from studies.federation import Participant, StudyError, run_to_end
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from studies.methods import changed
from studies.plain_rounds import PlainRun
from studies.scoring import class_index
from studies.tcga import Federation, Shard

Record = Mapping[str, Any]
OnRound = Callable[[Model, Record], None]
"""Called after each training round with its model and its record."""


@dataclass(frozen=True)
class SimulatedRun:
    """What a run came to.

    Attributes:
        plan: as it ran, with the keys that signed.
        final: the model of the last round.
        best: the model of the best round (`coordinator.selection`); `final` if there was none.
        records: of every round, as the coordinator keeps them.
        sat_out: institutions that own nothing that is summed, and took no part.
    """

    plan: Plan
    final: Model
    best: Model
    records: tuple[Record, ...]
    sat_out: tuple[str, ...] = ()

    @property
    def exported(self) -> Model:
        """The one that the plan exports."""
        return self.best if self.plan.evaluation.select == "best" else self.final


def institution_randomness(seed: int, institution: str) -> SeededRandomness:
    """What a node with this seed draws from; written again here, since the node's own module knows gRPC."""
    return SeededRandomness(seed, f"node/{institution}")


def institution_data(shard: Shard, plan: Plan) -> InstitutionData:
    """A shard as a node reads it from the files of `studies.tcga.write_shards`: numbers rounded to float32."""
    ids = tuple(shard.stages)
    labels = np.array([class_index(plan.label, stage) for stage in shard.stages.values()], dtype=np.int64)
    tables = {m: _as_stored(shard.tables[m]) for m in plan.modality_order if m in shard.tables}
    people, attributes = shard.people or RawTable((), {}, {}), counts_by(plan, shard.name)
    data = InstitutionData(ids, tables, labels, "in-memory")
    if shard.combinations:
        classes = dict(zip(ids, labels.tolist(), strict=True))
        data = align(tables, classes, plan.class_names, shard.name, plan.combinations(shard.name))
        data = replace(data, fingerprint="in-memory")
    return data.with_subgroups(groups_in(people, attributes, data.ids, shard.name, f"the people of {shard.name}"))


def with_keys(plan: Plan) -> tuple[Plan, dict[str, IdentityKey]]:
    """The plan with fresh keys for everybody, and the keys."""
    keys = {name: IdentityKey.generate() for name in plan.roster}
    institutions = tuple(i.model_copy(update={"key": public_key_text(keys[i.name].public)}) for i in plan.institutions)
    return changed(plan, {"institutions": institutions}), keys


def simulate(
    plan: Plan,
    federation: Federation,
    seed: int,
    on_round: OnRound | None = None,
    identities: Mapping[str, IdentityKey] | None = None,
) -> SimulatedRun:
    """Runs a plan to its end.

    The model depends on the plan's fields, the patients and the seed; on the keys, whatever they are, it does not.

    Args:
        plan: a checked plan whose roster is the federation's.
        federation: the patients.
        seed: every institution's randomness.
        on_round: told of each training round.
        identities: the private keys of the plan's roster; None: fresh keys, written into the plan.

    Raises:
        StudyError: the roster does not fit, an institution refused something, or the run did not finish.
    """
    shards = {shard.name: shard for shard in federation.shards}
    if set(plan.roster) != set(shards):
        raise StudyError("the plan's roster is not the federation's.", remedy="Make the plan from this federation.")
    data = {name: institution_data(shards[name], plan) for name in plan.roster}
    return simulate_data(plan, data, seed, on_round, identities)


def simulate_data(
    plan: Plan,
    data: Mapping[str, InstitutionData],
    seed: int,
    on_round: OnRound | None = None,
    identities: Mapping[str, IdentityKey] | None = None,
    make_trainer: TrainerFactory = trainer_for,
) -> SimulatedRun:
    """`simulate` of patients as a node holds them.

    Args:
        plan: a checked plan.
        data: institution to its patients, for the plan's whole roster.
        seed, on_round, identities: as of `simulate`.
        make_trainer: what trains.

    Raises:
        StudyError: an institution refused something, or the run did not finish.
    """
    if identities is None:
        plan, identities = with_keys(plan)
    plan_bytes = plan.to_bytes()
    observer = _Rounds(plan, on_round)
    coordinator = MemoryCoordinator(plan_bytes, observer)
    observer.run = coordinator.run
    participants: dict[str, Participant] = {}
    for name in plan.roster:
        link, memory = MemoryLink(coordinator, name), StudyMemory()
        randomness = institution_randomness(seed, name)
        library = LinkLibrary(link, coordinator.run.id, capacity=0)
        work = LocalRun(plan_bytes, name, data[name], library, memory, randomness, make_trainer=make_trainer)
        session = Session(
            plan_bytes,
            name,
            identities[name],
            randomness.child("secure-sum"),
            memory,
            work,
            watcher=_Strict(name),
            fetch=library.fetch,
        )
        participants[name] = Participant(session, link)
    run_to_end(coordinator, participants)
    run = coordinator.run
    records = tuple(json.loads(record) for record in run.records())
    # The run counted on to a round that it no longer began.
    return _ended(plan, run.content, run.state, run.round - 1, records)


def simulate_plainly(
    plan: Plan,
    data: Mapping[str, InstitutionData],
    seed: int,
    on_round: OnRound | None = None,
    make_trainer: TrainerFactory = trainer_for,
) -> SimulatedRun:
    """`simulate_data` without keys and masks: the same model bytes and figures, in a fraction of the time.

    Records tell nothing of parties, bytes and times.

    Raises:
        NonFiniteTrainingError and others: of the institution's work, as they come.
    """
    run = PlainRun(plan, data, lambda name: institution_randomness(seed, name), make_trainer=make_trainer)
    schema: FeatureSchema | None = None
    records: list[Record] = []
    while not run.ended:
        records.append(run.step())
        if on_round is not None and len(records) > 1:
            now = _Now(run.round - 1, run.state.components, run.state.temperatures)
            model = _model(plan, run.content, run.state, now, schema)
            schema = model.schema
            on_round(model, records[-1])
    return _ended(plan, run.content, run.state, run.round - 1, tuple(records))


def _ended(plan: Plan, content: ContentStore, state: RunState, last: int, records: tuple[Record, ...]) -> SimulatedRun:
    final = _model(plan, content, state, _Now(last, state.components, state.temperatures))
    chosen = state.selection.chosen
    best = final if chosen is None else _model(plan, content, state, chosen)
    assert state.setup is not None
    sat_out = tuple(name for name in plan.roster if name not in state.setup.institutions)
    return SimulatedRun(plan, final, best, records, sat_out)


# ------------------------------------------------------------------------------------------------- a run's models


class _Weights(Protocol):
    """Where the weights of some round are; `coordinator.selection.BestRound` is one."""

    @property
    def round(self) -> int: ...
    @property
    def components(self) -> Mapping[str, ComponentDigests]: ...
    @property
    def temperatures(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class _Now:
    round: int
    components: Mapping[str, ComponentDigests]
    temperatures: Mapping[str, float]


def _model(
    plan: Plan, content: ContentStore, state: RunState, at: _Weights, schema: FeatureSchema | None = None
) -> Model:
    assert state.setup is not None
    read = schema or FeatureSchema.from_bytes(bytes(_read(content, state.setup.schema)))
    vectors = {name: np.frombuffer(_read(content, c.weights), np.dtype("<f4")) for name, c in at.components.items()}
    subsets = [component_subset(name) for name in vectors if component_kind(name) == "classifier"]
    temperatures = {s: float(at.temperatures.get(s, 1.0)) for s in subsets}
    return Model(plan, read, vectors, at.round, temperatures)


def _read(content: ContentStore, digest: str) -> bytearray:
    reader = content.open(digest)
    data = bytearray(reader.length)
    reader.read_into(0, memoryview(data))
    return data


# ------------------------------------------------------------------------------------------------ an institution


class StudyMemory:
    """A `Memory` that lasts as long as the run."""

    def __init__(self) -> None:
        self._runs: dict[str, RunMemory] = {}

    def load(self, run: str) -> RunMemory:
        return self._runs.get(run) or RunMemory()

    def save(self, run: str, memory: RunMemory) -> None:
        self._runs[run] = memory

    note = save


class _Strict(Watcher):
    """Ends the study at the first refusal: here nobody lies, so it is a mistake of ours or a training that diverged."""

    def __init__(self, institution: str) -> None:
        self._institution = institution

    def refused(self, error: ConsiliumError) -> None:
        raise StudyError(f"{self._institution} left the run: {error}", place=self._institution) from error


class _Rounds(Observer):
    """Hands each training round on."""

    def __init__(self, plan: Plan, on_round: OnRound | None) -> None:
        self._plan, self._on_round = plan, on_round
        self._schema: FeatureSchema | None = None
        self.run: Run | None = None

    def committed(self, record: str, result: RoundStatistics | None) -> None:
        run = self.run
        if self._on_round is None or run is None or run.round == 0:
            return
        at = _Now(run.round, run.state.components, run.state.temperatures)
        model = _model(self._plan, run.content, run.state, at, self._schema)
        self._schema = model.schema  # parsed once: 20,000 columns take a moment
        self._on_round(model, json.loads(record))


def _as_stored(table: RawTable) -> RawTable:
    numeric = {name: values.astype(np.float32).astype(np.float64) for name, values in table.numeric.items()}
    return RawTable(table.ids, numeric, table.categorical)
