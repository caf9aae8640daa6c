"""What federated methods are held against: each institution alone, all patients in one place, and two constants.

Same model, same local training, same rounds and steps, same η and schedule, plain steps (no blending), the same split
into training and validation patients, the same choice of the exported round. The feature schema is made the same way
from the tables at hand; floors that protect institutions from each other are lowered, since nobody else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from federation import names
from federation.evaluation import scores_exact
from federation.feature_sums import (
    FeatureCounts,
    FeatureHolders,
    FeatureMeans,
    counts_vector,
    holders_vector,
    means_vector,
    squares_vector,
)
from federation.features import FeatureSchema
from federation.layout import Layout, layout
from federation.model_archive import Model
from federation.plan import FeatureFloors, Plan
from federation.tables import RawTable
from institution_node.data import InstitutionData, split
from institution_node.schedule import learning_rate
from institution_node.trainer import Evaluation
from institution_node.training import LocalTrainer
from security.privacy.randomness import Randomness, SeededRandomness
from studies.federation import StudyError
from studies.methods import changed
from studies.pooled_training import Group, PooledTrainer
from studies.scoring import Probabilities, TestPatients, class_index, stacked
from studies.simulate import institution_data, institution_randomness
from studies.tcga import Federation

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Weights = Mapping[str, Float32]

POOLED_PARTY: Final = "pooled"
"""What the pooled party's randomness is called; the institutions' are called as they are."""


@dataclass(frozen=True)
class Patients:
    """An institution's patients as a seeded run would divide them.

    Attributes:
        data: all of them.
        training, validation: int64 rows, as `LocalRun` draws them.
    """

    data: InstitutionData
    training: Int64
    validation: Int64

    def training_table(self, modality: str) -> RawTable:
        """The table that a feature schema may be made from."""
        return self.data.tables[modality].select(self.training.tolist())


def run_randomness(plan: Plan, seed: int, name: str) -> SeededRandomness:
    """What `LocalRun` makes of a seeded institution's randomness."""
    return institution_randomness(seed, name).child(f"run/{plan.run}")


def check_comparable(plan: Plan) -> None:
    """Passes a plan in which every patient has all modalities of its institution: of others, `alone` and `pooled` are
    not made.

    Raises:
        StudyError: an institution's patients come in several combinations.
    """
    several = [name for name, held in plan.by_institution.items() if len(held) > 1]
    if several:
        raise StudyError(
            f"alone and pooled are of complete patients, and those of {', '.join(several)} come in several "
            "combinations.",
            remedy="Leave these baselines out of the study, or make them of the complete patients "
            "(studies.hidden.complete_only).",
            place="institutions",
        )


def patients_of(
    plan: Plan, federation: Federation, seed: int, institutions: Sequence[str] | None = None
) -> dict[str, Patients]:
    """Institution to its patients, divided as in a federated run of this plan's name and seed; None: all of them."""
    found: dict[str, Patients] = {}
    for shard in federation.shards:
        if institutions is not None and shard.name not in institutions:
            continue
        data = institution_data(shard, plan)
        secret = run_randomness(plan, seed, shard.name).child("split").bytes(32)
        rows = split(data, plan.training.validation_fraction, SeededRandomness(secret, "split"))
        found[shard.name] = Patients(data, *rows)
    return found


def schema_of(plan: Plan, tables: Mapping[str, RawTable]) -> FeatureSchema:
    """The feature schema of one party's training patients, by the same steps, without sums.

    Args:
        plan: its `features` floors apply as they are.
        tables: modality to table, for every modality of the plan.
    """
    holders = FeatureHolders.from_sums(plan, {m: holders_vector(plan, m, t) for m, t in tables.items()})
    counts = FeatureCounts.from_sums(plan, holders, {m: counts_vector(plan, holders, m, t) for m, t in tables.items()})
    means = FeatureMeans.from_sums(plan, counts, {m: means_vector(plan, counts, m, t) for m, t in tables.items()})
    squares = {m: squares_vector(plan, counts, means, m, t) for m, t in tables.items()}
    return FeatureSchema.build(plan, counts, means, squares)


def alone(plan: Plan, federation: Federation, seed: int, test: TestPatients) -> dict[str, Probabilities]:
    """Each institution by itself, on its own modalities.

    Returns:
        Institution to its exported model's predictions of the test patients.
    """
    return {name: alone_at(name, plan, federation, seed, test) for name in plan.roster}


def alone_at(name: str, plan: Plan, federation: Federation, seed: int, test: TestPatients) -> Probabilities:
    """One institution by itself, on its own modalities: its exported model's predictions of the test patients.

    Raises:
        StudyError: patients come in several combinations.
    """
    check_comparable(plan)
    patients = patients_of(plan, federation, seed, [name])[name]
    entry = plan.institution(name)
    held = names.modalities_of(plan.combination(name))
    # A column or category of a handful of patients tells nothing, but no floor between institutions applies.
    floors = FeatureFloors(min_institutions=1, min_patients=max(1, plan.features.rare_category), rare_category=0)
    own = changed(
        plan,
        {
            "institutions": (entry,),
            "modalities": tuple(m for m in plan.modalities if m.name in held),
            "features": floors,
        },
    )
    schema = schema_of(own, {m: patients.training_table(m) for m in held})
    made = layout(own, schema.widths)
    features = {m: schema.transform(m, patients.data.tables[m]) for m in held}
    trainer = LocalTrainer(own, made, name, features, patients.data.labels, patients.training, patients.validation)

    def train(weights: Weights, eta: float, rng: Randomness, trainer: LocalTrainer = trainer) -> Weights:
        updates = trainer.train(weights, {}, eta, rng).updates
        return {component: vector + updates[component] for component, vector in weights.items()}

    def evaluate(weights: Weights, trainer: LocalTrainer = trainer) -> list[Evaluation]:
        return [trainer.evaluate(weights)]

    model = _trained(own, made, schema, train, evaluate, run_randomness(plan, seed, name))
    return test.predict(model, held)


def pooled(plan: Plan, federation: Federation, seed: int) -> Model:
    """One party with everybody's patients, each with the modalities of the institution that it was at.

    Returns:
        The exported model; its `mrna+image+clinical` classifier is what is scored.

    Raises:
        StudyError: patients come in several combinations.
    """
    check_comparable(plan)
    patients = patients_of(plan, federation, seed)
    # What is too rare for a federation's categories is known here: whoever holds all tables needs no floor per table.
    floors = FeatureFloors(min_institutions=1, min_patients=plan.features.min_patients, rare_category=0)
    own = changed(plan, {"features": floors})
    holders = {m: [n for n in patients if m in plan.institution(n).modalities] for m in plan.modality_order}
    schema = schema_of(own, {m: stacked([patients[n].training_table(m) for n in h]) for m, h in holders.items()})
    made = layout(own, schema.widths)
    everybody = np.concatenate([p.data.labels[p.training] for p in patients.values()])
    groups: list[Group] = []
    for combination in dict.fromkeys(c for (c,) in made.combinations.values()):
        members = [n for n, (c,) in made.combinations.items() if c == combination]
        features = {
            m: np.concatenate([schema.transform(m, patients[n].data.tables[m]) for n in members])
            for m in names.modalities_of(combination)
        }
        starts = np.cumsum([0, *(len(patients[n].data) for n in members)])
        training = np.concatenate([patients[n].training + s for n, s in zip(members, starts, strict=False)])
        validation = np.concatenate([patients[n].validation + s for n, s in zip(members, starts, strict=False)])
        labels = np.concatenate([patients[n].data.labels for n in members])
        groups.append(Group(own, made, members[0], features, labels, training, validation, everybody))
    trainer = PooledTrainer(own, made, groups)
    return _trained(own, made, schema, trainer.train, trainer.evaluate, run_randomness(plan, seed, POOLED_PARTY))


def constant(plan: Plan, federation: Federation, test: TestPatients) -> Probabilities:
    """The majority class of all institutions' patients, for everybody."""
    counts = sum(_class_counts(plan, federation).values(), start=np.zeros(len(plan.label.classes), np.int64))
    chosen = np.zeros(len(counts))
    chosen[int(np.argmax(counts))] = 1.0
    return np.tile(chosen, (len(test.ids), 1))


def cohort_only(plan: Plan, federation: Federation, test: TestPatients) -> Probabilities:
    """The class frequencies of a patient's own cohort: the trap of pooled figures."""
    counts = _class_counts(plan, federation)
    return np.stack([counts[cohort] / counts[cohort].sum() for cohort in test.cohorts])


def _class_counts(plan: Plan, federation: Federation) -> dict[str, Int64]:
    counts: dict[str, Int64] = {}
    for shard in federation.shards:
        classes = [class_index(plan.label, stage) for stage in shard.stages.values()]
        own = np.bincount(classes, minlength=len(plan.label.classes)).astype(np.int64)
        counts[shard.cohort] = counts.get(shard.cohort, np.zeros_like(own)) + own
    return counts


def _trained(
    plan: Plan,
    made: Layout,
    schema: FeatureSchema,
    train: Callable[[Weights, float, Randomness], Weights],
    evaluate: Callable[[Weights], Sequence[Evaluation]],
    randomness: Randomness,
) -> Model:
    """All rounds of a plan with nobody else there; stops early and picks the round as a federated run does."""
    weights: Weights = {name: component.initial(plan.seed) for name, component in made.components.items()}
    kept, kept_round, best, last = weights, 0, -np.inf, 0
    for round_ in range(1, plan.rounds + 1):
        eta = learning_rate(plan.training, round_ - 1, plan.rounds)
        weights = train(weights, eta, randomness.child(f"round/{round_}"))
        last = round_
        score = _selection_score(evaluate(weights), plan.evaluation.metric)
        if score is not None and score > best:
            kept, kept_round, best = weights, round_, score
        if plan.evaluation.patience and round_ - kept_round >= plan.evaluation.patience:
            break
    if plan.evaluation.select == "last" or kept_round == 0:
        kept, kept_round = weights, last
    subsets = [names.component_subset(n) for n in kept if names.component_kind(n) == "classifier"]
    return Model(plan, schema, kept, kept_round, dict.fromkeys(subsets, 1.0))


def _selection_score(evaluations: Sequence[Evaluation], metric: str) -> float | None:
    """As `coordinator.results.selection_score`, from predictions that somebody rightly holds."""
    if metric == "loss":
        subsets = {s for e in evaluations for s in e.losses}
        losses = [_mean_validation_loss(evaluations, s) for s in subsets]
        known = [loss for loss in losses if loss is not None]
        return -sum(known) / len(known) if known else None
    labels = np.concatenate([e.labels for e in evaluations])
    score: float | None = getattr(scores_exact(labels, np.concatenate([e.probabilities for e in evaluations])), metric)
    return score


def _mean_validation_loss(evaluations: Sequence[Evaluation], subset: str) -> float | None:
    pairs = [(len(e.labels), e.losses[subset].validation) for e in evaluations if subset in e.losses]
    known = [(n, loss) for n, loss in pairs if loss is not None]
    patients = sum(n for n, _ in known)
    return sum(n * loss for n, loss in known) / patients if patients else None
