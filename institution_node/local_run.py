"""One run's work at one institution: features, training, proximity, losses. Everything of patients stays behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from consilium.v1 import round_pb2 as pb

from federation import names, statistics
from federation.blending import advance, step_weights
from federation.feature_sums import FEATURE_SUMS, counts_vector, means_vector, sensitivity, squares_vector
from federation.features import FeatureSchema
from federation.fixed_point import ModelEncoding
from federation.layout import Layout, layout
from federation.losses import LossSums
from federation.plan import Plan
from federation.proximity import ComponentDots, component_dots, proximity
from federation.rounds import (
    UPDATES,
    WEIGHTS,
    Cohorts,
    ComponentDigests,
    Figures,
    RoundError,
    Setup,
    digest,
)
from federation.settings import blending_settings, proximity_settings
from federation.setup import FeatureSums, feature_encoding, patient_encoding
from institution_node.data import InstitutionData, split, split_each
from institution_node.encoding import UpdateWords, clip_update
from institution_node.global_model import GlobalModel, Library
from institution_node.memory import Memory, RunMemory
from institution_node.noise import Charges, add_noise
from institution_node.schedule import learning_rate
from institution_node.statistics import (
    Divisors,
    Encoded,
    LossPair,
    encode_clipped,
    encode_losses,
    encode_metrics,
    rescaled,
)
from institution_node.trainer import TrainerFactory, trainer_for
from security.privacy.ledger import PrivacyLedger
from security.privacy.mechanisms import count_event, noised_count
from security.privacy.randomness import Randomness, SeededRandomness
from security.secure_sum.errors import TranscriptError
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part, Sum
from security.secure_sum.upload import ArrayWords, WordSource

Float32 = npt.NDArray[np.float32]


class Recorder:
    """Hears local figures, for the hospital's own metrics; keeps nothing. Nothing of it is ever sent."""

    def trained(self, round_: int, seconds: float, mean_loss: float, factors: Mapping[str, float]) -> None:
        """K local steps were taken."""

    def updated(self, component: str, norm: float, clipped: int) -> None:
        """A trajectory was encoded."""

    def weighed(self, component: str, alpha: float) -> None:
        """α_i of a trajectory in its sum."""

    def evaluated(self, subset: str, training: float, validation: float | None) -> None:
        """Losses at the published model."""

    def near(self, subset: str, proximity: float) -> None:
        """p_i of a subset."""

    def spent(self, epsilon: float, limit: float) -> None:
        """The privacy ledger moved."""


@dataclass
class _Round:
    """What is computed once in a round and then stands."""

    number: int
    opening: bytes
    sums: tuple[Sum, ...]
    start: pb.RoundStart
    figures: Figures = field(default_factory=lambda: Figures({}, None))
    features: FeatureSums | None = None
    sources: dict[str, Mapping[str, WordSource]] = field(default_factory=dict)
    updates: dict[str, Float32] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    dots: dict[str, ComponentDots] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    private: Mapping[str, Float32] = field(default_factory=dict)


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
    ) -> None:
        self.plan = Plan.from_bytes(plan_bytes)
        self.run = digest(plan_bytes)
        self.institution = institution
        self._data, self._library, self._memory = data, library, memory
        # By the run's name and not its digest, which every new key would change: seeds repeat a study or a demo.
        self._randomness = randomness.child(f"run/{self.plan.run}")
        self._device = device
        self._ledger = ledger
        self._charges = Charges(ledger, self.run.hex(), self.plan.differential_privacy.epsilon)
        self._recorder = recorder or Recorder()
        self._cohorts = Cohorts(self.plan)
        self._round: _Round | None = None
        self._schema_digest = ""
        self._layout: Layout | None = None
        self._make_trainer = make_trainer
        self._trainer: Any = None
        self._global: GlobalModel | None = None
        self._private_plan = self.plan.differential_privacy.enabled
        if self._private_plan and ledger is None:
            raise RoundError("a plan with differential privacy needs a privacy ledger.")
        remembered = self._recall()
        if not remembered.split_key:
            remembered = replace(remembered, split_key=self._randomness.child("split").bytes(32))
            self._remember(remembered)
        # The division must outlive a restart, so it follows from a stored secret and not from a fresh draw.
        # Under differential privacy no patient may move another one: each is drawn by itself.
        divide = split_each if self._private_plan else split
        self._train_rows, self._validation_rows = divide(
            data, self.plan.training.validation_fraction, SeededRandomness(remembered.split_key, "split")
        )

    # -- RoundWork ----------------------------------------------------------------------------------------------

    def open_round(self, start: pb.RoundStart, round_start: bytes) -> tuple[Sum, ...]:
        """See RoundWork."""
        opening = digest(round_start)
        if self._round is not None and self._round.opening == opening:
            return self._round.sums  # another attempt of the same round: the same vectors under new masks
        if start.round == 0:
            sums = self._cohorts.setup_sums()
            features = FeatureSums(self.plan, {s.name: s for s in sums})
            self._round = _Round(0, opening, sums, start, features=features)
            return sums
        setup = Setup.from_proto(start.setup)
        self._check_setup(setup)
        self._prepare(setup)
        assert self._layout is not None
        assert self._global is not None
        sizes = {name: self._layout.components[name].size for name in self._cohorts.summed(setup)}
        states = ComponentDigests.all_from(start.components)
        if set(states) != set(sizes) or len(start.components) != len(sizes):
            raise RoundError("the opening of a round does not name the plan's summed components.")
        figures = Figures.from_bytes(start.figures)
        models = self._left_behind(states)
        self._global.load(start.round, states, self._recall())
        self._remember(replace(self._recall(), models=models))
        sums = self._cohorts.training_sums(sizes, setup)
        self._round = _Round(start.round, opening, sums, start, figures)
        return sums

    def sources(self, which: Sum, uploads: tuple[Part, ...]) -> Mapping[str, WordSource]:
        """See RoundWork."""
        state = self._current()
        made = state.sources.get(which.name)
        # Another attempt has another cohort, and so perhaps parts that were below the floor before.
        missing = tuple(p for p in uploads if made is None or p.name not in made)
        if made is None or missing:
            if which.name in FEATURE_SUMS:
                added = self._feature_sources(which, missing)
            elif which.name == WEIGHTS:
                added = self._weight_sources(missing)
            elif which.name == UPDATES:
                added = self._update_sources(missing)
            else:
                added = self._statistics_sources(missing)
            made = state.sources[which.name] = {**(made or {}), **added}
        return {p.name: made[p.name] for p in uploads}

    def take_opened(self, which: Sum, opened: pb.OpenedSum, listed: SurvivorList) -> None:
        """See RoundWork."""
        state = self._current()
        if which.name in FEATURE_SUMS:
            assert state.features is not None
            state.features.take(which.name, self._opened_words(opened))
            if state.features.schema is not None:
                self._remember(replace(self._recall(), schema=state.features.schema.digest))
        elif which.name == UPDATES:
            self._take_updates(opened, listed)

    # -- round 0 ------------------------------------------------------------------------------------------------

    def _feature_sources(self, which: Sum, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        features = self._current().features
        assert features is not None
        made: dict[str, WordSource] = {}
        for part in uploads:
            modality = part.name.removeprefix("features/")
            table = self._data.tables[modality].select(self._train_rows.tolist())
            if which.name == "counts":
                vector = counts_vector(self.plan, modality, table)
            elif features.counts is None or modality not in features.counts.modalities:
                # Its counts stayed shut (rule 9), so nothing more is told of it; its features follow from the plan.
                vector = np.zeros(part.length)
            elif which.name == "means":
                vector = means_vector(self.plan, features.counts, modality, table)
            else:
                assert features.means is not None
                vector = squares_vector(self.plan, features.counts, features.means, modality, table)
            how = feature_encoding(self.plan, which.name, modality, len(part.contributors))  # type: ignore[arg-type]
            words = statistics.encode(vector, how)
            if self._private_plan:
                moved = sensitivity(self.plan, which.name, modality)  # type: ignore[arg-type]  # a FeatureSum
                multiplier = self.plan.differential_privacy.feature_noise
                rng = self._randomness.child(f"noise/0/{which.name}/{part.name}")
                self._charges.spend(f"{which.name}/{part.name}", 0, add_noise(words, how, moved, multiplier, rng))
            made[part.name] = ArrayWords(words)
        return made

    def _weight_sources(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        noised = self._noised_patients()
        made: dict[str, WordSource] = {}
        for part in uploads:
            made[part.name] = ArrayWords(
                statistics.encode(np.array([float(noised)]), patient_encoding(part.contributors))
            )
        return made

    def _noised_patients(self) -> int:
        """ñ_i: drawn once per run and kept (METHOD.md, "Objects")."""
        memory = self._recall()
        if memory.noised_patients:
            return memory.noised_patients
        n, scale = len(self._train_rows), Fraction(self.plan.training.count_noise)
        if scale > 0:
            self._charges.spend("patients", 0, count_event(scale))
            n = noised_count(n, scale, self._randomness.child("patients"))
        n = min(max(1, n), statistics.MAX_PATIENTS)
        self._remember(replace(memory, noised_patients=n))
        return n

    # -- the run's setup ----------------------------------------------------------------------------------------

    def _check_setup(self, setup: Setup) -> None:
        memory = self._recall()
        # Whoever is in the setup followed round 0 to its last sum and knows the schema; a coordinator that leaves round
        # 0 out, or ends it early, could otherwise invent one, whose columns are below the floors.
        if memory.schema != setup.schema:
            raise TranscriptError("the feature schema is not what the opened sums gave here.")
        if memory.setup not in (None, setup):
            raise TranscriptError("the run's setup is not the one that this institution helped to make.")
        if self.institution not in setup.institutions:
            raise RoundError("this institution has no part in the run's setup.")
        # Against what everybody knows, at least one patient each, and never against this institution's own patients: a
        # coordinator that tries one total after the other would learn them from which it refuses.
        for name, cohort in self._cohorts.patients.items():
            if setup.patients.get(name, len(cohort)) < len(cohort & setup.institutions):
                raise TranscriptError("a total of patients is smaller than its number of institutions.")
        if memory.setup is None:
            self._remember(replace(memory, setup=setup))

    def _left_behind(self, states: Mapping[str, ComponentDigests]) -> tuple[str, ...]:
        """The models of `RunMemory.models` with this round's. A model is never trained on again once it was left: two
        sums from one model over two cohorts would differ by a few institutions' updates (rule 9). The last one may
        come again, where its round was burnt."""
        listed = [f"{name}={states[name].weights}" for name in sorted(states)]
        model = digest("\n".join(listed).encode()).hex()[:32]
        models = self._recall().models
        if model in models[:-1]:
            raise TranscriptError(
                "the round begins with the model of an earlier round.",
                remedy="The coordinator was restored from an old state: its operator must start a new run.",
            )
        return models if models[-1:] == (model,) else (*models, model)

    def _prepare(self, setup: Setup) -> None:
        if self._schema_digest == setup.schema:
            return  # it is the run's for good
        schema = FeatureSchema.from_bytes(bytes(self._library.fetch(setup.schema)))
        made = layout(self.plan, schema.widths)
        held = names.modalities_of(made.combinations[self.institution])
        features = {m: schema.transform(m, self._data.tables[m]) for m in held}
        arguments = (
            self.plan,
            made,
            self.institution,
            features,
            self._data.labels,
            self._train_rows,
            self._validation_rows,
            self._device,
        )
        self._trainer = self._make_trainer(*arguments)
        summed = self._cohorts.summed(setup)
        owned = made.owned(self.institution)
        self._schema_digest, self._layout = setup.schema, made
        self._global = GlobalModel(self.plan, made, tuple(n for n in owned if n in summed), self._library)

    @property
    def _setup(self) -> Setup:
        return Setup.from_proto(self._current().start.setup)

    # -- sum A --------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Float32]:
        assert self._layout is not None
        assert self._global is not None
        private = self._recall().private
        return {
            name: self._global.weights[name]
            if name in self._global.weights
            else private.get(name, self._layout.components[name].initial(self.plan.seed))
            for name in self._layout.owned(self.institution)
        }

    def _update_sources(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        state, weights = self._current(), self._weights()
        if not state.updates:
            factors = self._step_factors()
            if self._private_plan:
                from institution_node.private_training import planned_event

                self._charges.spend("updates", state.number, planned_event(self.plan, self._trainer.patients))
            eta = learning_rate(self.plan.training, state.number - 1, max(self.plan.rounds, state.number))
            rng = self._randomness.child(f"round/{state.number}")
            trajectory = self._trainer.train(weights, factors, eta, rng)
            self._recorder.trained(state.number, 0.0, trajectory.mean_loss, factors)
            state.updates = trajectory.checked(weights)
            state.private = {
                name: weights[name] + delta for name, delta in state.updates.items() if name not in self._shared
            }
        made: dict[str, WordSource] = {}
        for part in uploads:
            delta = state.updates[part.name]
            if part.name not in state.clipped:
                state.clipped[part.name] = clip_update(delta, self.plan.secure_sum.clip)
                self._recorder.updated(part.name, float(np.linalg.norm(delta)), state.clipped[part.name])
            alpha = self._alpha(part.name)
            self._recorder.weighed(part.name, alpha)
            made[part.name] = UpdateWords(delta, alpha, self._model_encoding(part))
        return made

    @property
    def _shared(self) -> frozenset[str]:
        assert self._global is not None
        return frozenset(self._global.weights)

    def _model_encoding(self, part: Part) -> ModelEncoding:
        s = self.plan.secure_sum
        return ModelEncoding(s.clip, s.headroom, len(part.contributors))

    def _alpha(self, component: str) -> float:
        """α_i = ñ_i / N_c (METHOD.md, "One round", step 4)."""
        cohort = self._cohorts.name_of(self._cohorts.shared[component].owners)
        assert cohort is not None
        return self._share(cohort)

    def _share(self, cohort: str) -> float:
        """ñ_i over a cohort's total. 1 where a coordinator understates it: an error would tell by how much."""
        return min(1.0, self._recall().noised_patients / self._setup.patients[cohort])

    def _step_factors(self) -> dict[str, float]:
        """κ·v of each component (METHOD.md, "DGB")."""
        assert self._layout is not None
        state, memory = self._current(), self._recall()
        local = self.plan.blending.kind == "local"
        scores: dict[str, float | None] = {} if local else dict(state.figures.scores)
        subsets = self._layout.subsets_of(self.institution)
        settings = blending_settings(self.plan)
        # Under differential privacy the institution's own losses may not steer what it releases: a subset that the
        # federation has no score of stays uniform.
        if not self._private_plan:
            median = None if local else state.figures.median_squared_overfitting
            _, figures = advance(memory.blending, {}, settings, median)
            own = figures.scores()
            for subset in subsets:
                if scores.get(subset) is None:
                    scores[subset] = own.get(subset)
        v = step_weights(scores, subsets, settings, state.number - 1)
        return {name: v.get(names.component_subset(name), 1.0) for name in self._layout.owned(self.institution)}

    def _take_updates(self, opened: pb.OpenedSum, listed: SurvivorList) -> None:
        state = self._current()
        assert self._global is not None
        words = {p.part: p.words for p in opened.parts}
        states = ComponentDigests.all_from(opened.components)
        if set(words) != set(states):
            raise TranscriptError("the opened updates and the components made of them are not the same.")
        for name in sorted(self._shared & set(words)):
            part = next(p for p in self._sums_part(UPDATES) if p.name == name)
            total, mean = self._global.advance(name, words[name], self._model_encoding(part), states[name])
            if name in state.updates:
                state.dots[name] = component_dots(state.updates[name], mean)
                in_sum = self.institution in listed.alive
                state.shares[name] = min(1.0, self._alpha(name) / total) if in_sum else 0.0
        # Private components follow their own round, which stands once the others' is open.
        memory = self._recall()
        memory = replace(memory, known=self._global.digests(), known_round=state.number)
        if state.private:
            memory = replace(memory, private={**memory.private, **state.private})
        self._remember(memory)

    def _sums_part(self, name: str) -> tuple[Part, ...]:
        return next(s for s in self._current().sums if s.name == name).parts

    # -- sum B --------------------------------------------------------------------------------------------------

    def _statistics_sources(self, uploads: tuple[Part, ...]) -> dict[str, WordSource]:
        state, memory = self._current(), self._recall()
        evaluation = self._trainer.evaluate(self._weights())
        last = dict(memory.last_losses)
        trained, held = self._trainer.patients, len(evaluation.labels)
        divisors = Divisors(trained, max(1, held))
        if self._private_plan:
            divisors = Divisors.of_noised(memory.noised_patients, self.plan.training.validation_fraction)
        losses = rescaled(evaluation.losses, trained, held, divisors)
        encoded: dict[str, Encoded] = {}
        for part in uploads:
            kind, _, name = part.name.partition("/")
            n = len(part.contributors)
            if kind == "losses":
                p = self._proximity(name)
                self._recorder.near(name, p)
                encoded[part.name] = encode_losses(
                    self.plan,
                    losses[name],
                    evaluation.logits[name],
                    evaluation.labels,
                    p,
                    last.get(name),
                    divisors,
                    n,
                )
            elif kind == "metrics":
                encoded[part.name] = encode_metrics(self.plan, evaluation.labels, evaluation.probabilities, n)
            else:
                components = self._cohorts.clip_groups(self._setup)[name]
                encoded[part.name] = encode_clipped([state.clipped.get(c, 0) for c in components], n)
        made: dict[str, WordSource] = {n: ArrayWords(self._with_noise(n, e)) for n, e in encoded.items()}
        self._keep_losses(losses, memory)
        return made

    def _with_noise(self, part: str, e: Encoded) -> npt.NDArray[np.uint64]:
        if self._private_plan and e.sensitivity > 0:
            number = self._current().number
            multiplier = self.plan.differential_privacy.statistics_noise
            rng = self._randomness.child(f"noise/{number}/{part}")
            event = add_noise(e.words, e.encoding, e.sensitivity, multiplier, rng)
            self._charges.spend(part, number, event)
        if self._ledger is not None:
            self._recorder.spent(self._ledger.spent()[0], self._ledger.spent()[0] + self._ledger.left())
        return e.words

    def _proximity(self, subset: str) -> float:
        """p_i of a subset (METHOD.md, "PCW")."""
        state = self._current()
        components = [names.encoder(m) for m in names.modalities_of(subset)] + [names.classifier(subset)]
        size = 0.0
        if self.plan.proximity.kind == "size":
            assert self._layout is not None
            cohort = self._cohorts.name_of(self._layout.subsets[subset])
            size = self._share(cohort) if cohort else 0.0
        return proximity(proximity_settings(self.plan), state.dots, state.shares, components, size)

    def _keep_losses(self, by_subset: Mapping[str, LossPair], memory: RunMemory) -> None:
        """Remembers the losses for the next ΔL, and advances this institution's own blending."""
        largest = self.plan.proximity.loss_max
        own: dict[str, LossSums] = {}
        kept = dict(memory.last_losses)
        for subset, losses in by_subset.items():
            self._recorder.evaluated(subset, losses.training, losses.validation)
            if losses.validation is None:
                continue
            own[subset] = LossSums.contribution(1.0, losses.training, losses.validation, kept.get(subset), largest)
            kept[subset] = (min(losses.training, largest), min(losses.validation, largest))
        settings = replace(blending_settings(self.plan), weight_floor=0.0)
        blending, _ = advance(memory.blending, own, settings)
        self._remember(replace(self._recall(), last_losses=kept, blending=blending))

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened_words(self, opened: pb.OpenedSum) -> dict[str, npt.NDArray[np.uint64]]:
        lengths = {p.name: p.bytes for p in self._sums_part(opened.sum)}
        words: dict[str, npt.NDArray[np.uint64]] = {}
        for part in opened.parts:
            data = self._library.fetch(part.words)
            if len(data) != lengths.get(part.part):
                raise RoundError("an opened part is not one of the plan's, or has not its length.")
            words[part.part] = np.frombuffer(data, np.dtype("<u8"))
        return words

    def _current(self) -> _Round:
        if self._round is None:
            raise RoundError("no round was opened here.")
        return self._round

    def _recall(self) -> RunMemory:
        return self._memory.load(self.run.hex())

    def _remember(self, memory: RunMemory) -> None:
        self._memory.save(self.run.hex(), memory)
