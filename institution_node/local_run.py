"""One run's work at one institution: what a session asks of it, round by round. Patients' data stays behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as pb

from federation.feature_sums import FEATURE_SUMS
from federation.features import FeatureSchema, largest_schema
from federation.layout import layout
from federation.plan import Plan
from federation.rounds import UPDATES, Cohorts, ComponentDigests, Figures, RoundError, Setup, digest
from institution_node.data import InstitutionData, split, split_each
from institution_node.global_model import GlobalModel, Library
from institution_node.memory import Memory
from institution_node.model_files import ModelShelf
from institution_node.noise import Charges
from institution_node.prepared import Prepared
from institution_node.recorder import Recorder
from institution_node.run_context import RunContext
from institution_node.setup_work import SetupWork
from institution_node.statistics_work import StatisticsWork
from institution_node.subgroups import CountedGroups, check_groups
from institution_node.trainer import TrainerFactory, trainer_for
from institution_node.update_work import UpdateWork
from security.privacy.ledger import PrivacyLedger
from security.privacy.randomness import Randomness, SeededRandomness
from security.secure_sum.errors import TranscriptError
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import WordSource

Features = tuple[Mapping[str, int], Mapping[str, npt.NDArray[np.float32]]]
"""Widths of all modalities of a feature schema, and an institution's own modalities to float32[patients, width]."""

ReadFeatures = Callable[[bytes, InstitutionData], Features]


def features_of(schema: bytes, data: InstitutionData) -> Features:
    """An institution's patients by a feature schema's bytes.

    Raises:
        SchemaError: these are no schema's bytes.
        FeatureTableError: a column is of another kind than the schema says.
    """
    read = FeatureSchema.from_bytes(schema)
    return read.widths, {m: read.transform(m, table) for m, table in data.tables.items()}


@dataclass
class _Round:
    """A round that is open here, and what does its work: `setup` in round 0, the other two in every other."""

    number: int
    opening: bytes
    sums: tuple[Sum, ...]
    setup: SetupWork | None = None
    updates: UpdateWork | None = None
    statistics: StatisticsWork | None = None
    sources: dict[str, Mapping[str, WordSource]] = field(default_factory=dict)

    def work(self, which: Sum) -> SetupWork | UpdateWork | StatisticsWork:
        """Who makes the words of a sum."""
        found = self.setup or (self.updates if which.name == UPDATES else self.statistics)
        if found is None:
            raise RoundError(f"the round has no sum {which.name!r}.")
        return found


class LocalRun:
    """A `RoundWork` on real patients.

    Args:
        plan_bytes: the plan's exact bytes.
        institution: this one.
        data: its patients.
        library: content by digest.
        memory: what survives a restart.
        randomness: the node's own generator.
        device: torch's name of the device.
        ledger: privacy budget; None only where the plan has no differential privacy.
        recorder: told local figures.
        make_trainer: what trains; another one only in the bench.
        read_features: turns the patients' tables into inputs; studies keep its outcome over many runs.
        shelf: where the global components rest; None: in memory.
    """

    def __init__(
        self,
        plan_bytes: bytes,
        institution: str,
        data: InstitutionData,
        library: Library,
        memory: Memory,
        randomness: Randomness,
        device: str = "cpu",
        ledger: PrivacyLedger | None = None,
        recorder: Recorder | None = None,
        make_trainer: TrainerFactory = trainer_for,
        read_features: ReadFeatures = features_of,
        shelf: ModelShelf | None = None,
    ) -> None:
        plan = Plan.from_bytes(plan_bytes)
        run = digest(plan_bytes)
        if plan.differential_privacy.enabled and ledger is None:
            raise RoundError("a plan with differential privacy needs a privacy ledger.")
        self._context = RunContext(
            plan,
            run,
            institution,
            Cohorts(plan),
            library,
            memory,
            # By the run's name and not its digest, which every new key would change: seeds repeat a study or a demo.
            randomness.child(f"run/{plan.run}"),
            Charges(ledger, run.hex(), plan.differential_privacy.epsilon),
            recorder or Recorder(),
        )
        self._data, self._device, self._make_trainer = data, device, make_trainer
        self._read_features = read_features
        self._shelf = shelf or ModelShelf()
        self._prepared: Prepared | None = None
        self._round: _Round | None = None
        remembered = self._context.recall()
        if not remembered.split_key:
            remembered = replace(remembered, split_key=self._context.randomness.child("split").bytes(32))
            self._context.remember(remembered)
        # The division must outlive a restart, so it follows from a stored secret and not from a fresh draw.
        # Under differential privacy no patient may move another one: each is drawn by itself.
        divide = split_each if self._context.private else split
        self._train_rows, self._validation_rows = divide(
            data, plan.training.validation_fraction, SeededRandomness(remembered.split_key, "split")
        )
        self._groups = CountedGroups(plan, institution, data.subgroups, self._validation_rows)

    # -- RoundWork ----------------------------------------------------------------------------------------------

    def open_round(self, start: pb.RoundStart, round_start: bytes) -> tuple[Sum, ...]:
        """See RoundWork."""
        opening = digest(round_start)
        if self._round is not None and self._round.opening == opening:
            if self._prepared is not None and start.round > 0:
                # What was shown since, an opened sum that nobody signed, must not be what this round trains on.
                states = ComponentDigests.all_from(start.components)
                self._prepared.model.load(start.round, states, self._context.recall())
            return self._round.sums  # another attempt of the same round: the same vectors under new masks
        self._round = None  # an opening that fails may have moved the model: no round stands on it
        if start.round == 0:
            sums = self._context.cohorts.setup_sums()
            data, rows = self._data, self._train_rows
            tables = {m: table.select(data.rows_with(m, rows).tolist()) for m, table in data.tables.items()}
            work = SetupWork(self._context, tables, data.counted(rows), sums, self._groups.counted)
            self._round = _Round(0, opening, sums, setup=work)
            return sums
        setup = Setup.from_proto(start.setup)
        self._check_setup(setup)
        prepared = self._prepare(setup)
        sizes = {name: prepared.layout.components[name].size for name in self._context.cohorts.summed(setup)}
        states = ComponentDigests.all_from(start.components)
        if set(states) != set(sizes) or len(start.components) != len(sizes):
            raise RoundError("the opening of a round does not name the plan's summed components.")
        figures = Figures.from_bytes(start.figures)
        models = self._left_behind(states)
        prepared.model.load(start.round, states, self._context.recall())
        self._context.note(replace(self._context.recall(), models=models))  # durable before the keys leave
        sums = self._context.cohorts.training_sums(sizes, setup, start.round)
        updates = UpdateWork(prepared, start.round, figures)
        statistics = StatisticsWork(prepared, start.round, updates)
        self._round = _Round(start.round, opening, sums, updates=updates, statistics=statistics)
        return sums

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        """See RoundWork."""
        state = self._current()
        made = state.sources.get(which.name, {})
        # Another attempt has another cohort, and so perhaps parts that were below the floor before.
        missing = tuple(p for p in uploads if p.name not in made)
        if missing or which.name not in state.sources:
            work = state.work(which)
            added = work.sources(which, missing) if isinstance(work, SetupWork) else work.sources(missing)
            made = state.sources[which.name] = {**made, **added}
        return {p.name: made[p.name] for p in uploads}

    def take_opened(self, which: Sum, opened: pb.OpenedSum, listed: SurvivorList) -> None:
        """See RoundWork."""
        state = self._current()
        # What follows from it was perhaps made before, of what another attempt showed to this institution alone.
        place = [s.name for s in state.sums].index(which.name)
        for later in state.sums[place + 1 :]:
            state.sources.pop(later.name, None)
        if state.setup is not None and which.name in FEATURE_SUMS:
            state.setup.take(which, self._opened_words(which, opened))
        elif state.updates is not None and which.name == UPDATES:
            state.updates.take(which, opened, listed)

    # -- the run's setup ----------------------------------------------------------------------------------------

    def _check_setup(self, setup: Setup) -> None:
        memory = self._context.recall()
        # Whoever is in the setup followed round 0 to its last sum and knows the schema; a coordinator that leaves round
        # 0 out, or ends it early, could otherwise invent one, whose columns are below the floors.
        if memory.schema != setup.schema:
            raise TranscriptError("the feature schema is not what the opened sums gave here.")
        if memory.setup not in (None, setup):
            raise TranscriptError("the run's setup is not the one that this institution helped to make.")
        if self._context.institution not in setup.institutions:
            raise RoundError("this institution has no part in the run's setup.")
        # Against what everybody knows, at least one patient each, and never against this institution's own patients: a
        # coordinator that tries one total after the other would learn them from which it refuses.
        for name, cohort in self._context.cohorts.patients.items():
            if setup.patients.get(name, len(cohort)) < len(cohort & setup.institutions):
                raise TranscriptError("a total of patients is smaller than its number of institutions.")
        check_groups(self._context.cohorts, setup)
        if memory.setup is None:
            self._context.remember(replace(memory, setup=setup))

    def _left_behind(self, states: Mapping[str, ComponentDigests]) -> tuple[str, ...]:
        """The models of `RunMemory.models` with this round's. A model is never trained on again once it was left: two
        sums from one model over two cohorts would differ by a few institutions' updates (rule 9). The last one may
        come again, where its round was burnt."""
        listed = [f"{name}={states[name].weights}" for name in sorted(states)]
        model = digest("\n".join(listed).encode()).hex()[:32]
        models = self._context.recall().models
        if model in models[:-1]:
            raise TranscriptError(
                "the round begins with the model of an earlier round.",
                remedy="The coordinator was restored from an old state: its operator must start a new run.",
            )
        return models if models[-1:] == (model,) else (*models, model)

    def _prepare(self, setup: Setup) -> Prepared:
        if self._prepared is not None:
            return self._prepared  # `_check_setup` lets no second one through
        context = self._context
        plan = context.plan
        schema = context.library.fetch(setup.schema, largest_schema(plan))
        widths, features = self._read_features(bytes(schema), self._data)
        made = layout(plan, widths)
        trainer = self._make_trainer(
            plan,
            made,
            context.institution,
            features,
            self._data.labels,
            self._train_rows,
            self._validation_rows,
            self._device,
            combinations=self._data.combinations,
        )
        summed = context.cohorts.summed(setup)
        owned = tuple(n for n in made.owned(context.institution) if n in summed)
        model = GlobalModel(plan, made, owned, context.library, self._shelf)
        self._prepared = Prepared(context, setup, made, trainer, model, self._groups.of(setup))
        return self._prepared

    # -- for studies, which train and evaluate many institutions at once ------------------------------------------

    @property
    def validation_ids(self) -> tuple[str, ...]:
        """Patients that are kept for validation."""
        return tuple(self._data.ids[row] for row in self._validation_rows)

    @property
    def updates(self) -> UpdateWork:
        """Sum A of the open training round."""
        found = self._current().updates
        if found is None:
            raise RoundError("round 0 trains nothing.")
        return found

    @property
    def statistics(self) -> StatisticsWork:
        """Sum B of the open training round."""
        found = self._current().statistics
        if found is None:
            raise RoundError("round 0 evaluates nothing.")
        return found

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened_words(self, which: Sum, opened: pb.OpenedSum) -> dict[str, npt.NDArray[np.uint64]]:
        lengths = {p.name: p.bytes for p in which.parts}
        words: dict[str, npt.NDArray[np.uint64]] = {}
        for part in opened.parts:
            length = lengths.get(part.part)
            if length is None:
                raise RoundError("an opened part is not one of the plan's.")
            data = self._context.library.fetch(part.words, length)
            if len(data) != length:
                raise RoundError("an opened part has not the plan's length.")
            words[part.part] = np.frombuffer(data, np.dtype("<u8"))
        return words

    def _current(self) -> _Round:
        if self._round is None:
            raise RoundError("no round was opened here.")
        return self._round
