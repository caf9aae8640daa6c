"""One institution's part of a round: K local steps, and the losses at published weights (METHOD.md, "One round")."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from federation import names
from federation.layout import Layout
from federation.plan import Plan
from institution_node.combinations import Several, grouped
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import NonFiniteTrainingError, TrainingDataError
from institution_node.models import DropoutMasks, InstitutionModel
from institution_node.optimisers import FlatOptimiser
from institution_node.trainer import Combinations, Evaluation, Precision, SubsetLosses, Trajectory
from security.errors import LocalMisuseError
from security.privacy.randomness import Randomness, permutation

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_LARGEST_RATE: Final = 1e30  # far below float32's largest, which torch would refuse with an error of its own


class LocalTrainer:
    """Trains and evaluates on one institution's patients. Holds the patients, and no state from round to round.

    Args:
        plan: a checked plan.
        layout: of the plan and its feature schema.
        institution: one of the plan's.
        features: modality to float32[n, width]; row k of every modality is the same patient.
        labels: int64[n], class indices.
        train_rows: rows to train on, at least one.
        validation_rows: rows to validate on; none in common with `train_rows`.
        device: torch's name of the device.
        encoders: factories of the kinds, other than `mlp`, that the institution's modalities are of.
        precision: `mixed`: a step multiplies in bfloat16; weights, gradients, optimiser and evaluation stay float32.
        combinations: n names, each patient's; empty: all have all of the institution's modalities. What a patient does
            not have of `features` is not looked at.

    Attributes:
        model: what it trains; its parameters are whatever was loaded last.
        train_features, validation_features: per modality of the institution, float32[patients, width] on the device.
        train_labels: int64[patients] on the device.
        validation_labels: int64[patients].
        class_weights: float32[classes] on the device; None: all are 1.

    Raises:
        TrainingDataError: the arrays do not fit each other, the plan or the layout, or hold NaN or infinity.
        EncoderError: an encoder of another kind is not what the plan declares.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        institution: str,
        features: Mapping[str, Float32],
        labels: Int64,
        train_rows: Sequence[int] | Int64,
        validation_rows: Sequence[int] | Int64,
        device: str = "cpu",
        combinations: Sequence[str] = (),
        encoders: Encoders = NO_ENCODERS,
        precision: Precision = "float32",
    ) -> None:
        training = np.asarray(train_rows, dtype=np.int64)
        validation = np.asarray(validation_rows, dtype=np.int64)
        _check_patients(plan, layout, institution, features, labels, training, validation, combinations)
        self.plan = plan
        self.institution = institution
        self._mixed = precision == "mixed"
        self.model = InstitutionModel(plan, layout, institution, device, encoders)
        self._classes = len(plan.label.classes)
        self.train_features = self._to_device(features, training)
        self.train_labels = torch.from_numpy(labels[training]).to(self.model.device)
        self.validation_features = self._to_device(features, validation)
        self.validation_labels = labels[validation]
        self._own = Several.of(self.model, combinations, training, validation)
        self.class_weights = self._balance(labels[training]) if plan.training.class_weights == "balanced" else None

    def autocast(self) -> torch.autocast:
        """Where a step's losses are computed: in bfloat16 what may be, with mixed precision."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    @property
    def patients(self) -> int:
        """Number of training patients, n_i."""
        return int(self.train_labels.shape[0])

    def train(
        self,
        weights: Mapping[str, Float32],
        step_factors: Mapping[str, float],
        learning_rate: float,
        rng: Randomness,
        held: frozenset[str] = frozenset(),
    ) -> Trajectory[Float32]:
        """Takes the plan's K steps from `weights`. The same arguments and a seeded `rng` give the same bits on one
        device.

        Args:
            weights: component to float32[size] w(t), for every component that the institution owns.
            step_factors: κ·v per component, at least 0; a component without one is stepped with 1. A head's own
                step is the plan's, unscaled, whatever stands here for it (METHOD.md, "Uni-modal heads").
            learning_rate: η of this round (`schedule.learning_rate`).
            rng: draws batches and dropout (and, in private training, noise).
            held: components that stay as they are: they have no gradient, and no part in a clipping norm. At least
                one of the institution's is not among them.

        Raises:
            WeightsError: `weights` do not fit.
            NonFiniteTrainingError: a loss or the update is NaN or infinite; nothing is returned.
        """
        self.model.load(weights)
        self.model.hold(held)
        settings = self.plan.training
        rates = self.rates(step_factors, learning_rate, held)
        optimiser = FlatOptimiser(
            settings.optimiser,
            self.model.parameters_flat,
            [(self.model.slices[name], rate) for name, rate in rates.items()],
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal=settings.proximal,
        )
        total = torch.zeros((), device=self.model.device)
        counted = 0
        with self._gradients(rng) as gradient:
            for _ in range(settings.local_steps):
                loss = gradient()
                if loss is not None:
                    total += loss
                    counted += 1
                optimiser.step(self.model.gradients_flat)
        mean_loss = float(total) / counted if counted else math.nan
        after = self.model.store()
        updates = {name: np.subtract(vector, weights[name], out=vector) for name, vector in after.items()}
        if counted and not math.isfinite(mean_loss):
            raise _diverged("the training loss", self.institution)
        for name, update in updates.items():
            # A sum is finite only if all its terms are, and it makes no mask as large as the model; a finite update
            # whose float64 sum overflows does not exist in float32.
            with np.errstate(invalid="ignore"):
                total_update = float(update.sum(dtype=np.float64))
            if not math.isfinite(total_update):
                raise _diverged(f"the update of {name}", self.institution)
        return Trajectory(updates, mean_loss, settings.local_steps)

    def evaluate(self, weights: Mapping[str, Float32]) -> Evaluation:
        """Losses and validation logits at `weights`, in evaluation mode (no dropout, no class weights).

        Raises:
            WeightsError: `weights` do not fit.
            NonFiniteTrainingError: a prediction is NaN or infinite.
        """
        self.model.load(weights)
        if self._own is not None:
            return self._evaluate_each(self._own)
        with torch.inference_mode():
            training = self.model(self.train_features)
            validation = self.model(self.validation_features)
        losses: dict[str, SubsetLosses] = {}
        logits: dict[str, Float32] = {}
        for subset, values in training.items():
            logits[subset] = validation[subset].cpu().numpy()
            own = self.mean_loss(values, self.train_labels)
            held = None
            if self.validation_labels.size:
                labels = torch.from_numpy(self.validation_labels).to(self.model.device)
                held = self.mean_loss(validation[subset], labels)
            losses[subset] = SubsetLosses(own, held)
        return Evaluation(self.model.combination, losses, logits, self.validation_labels)

    def _evaluate_each(self, own: Several) -> Evaluation:
        """Combination by combination; each subset's losses are over all patients who have it."""
        with torch.inference_mode():
            training, trained = self._logits(own.training, self.train_features)
            validation, held = self._logits(own.validation, self.validation_features)
        losses: dict[str, SubsetLosses] = {}
        labels = torch.from_numpy(self.validation_labels).to(self.model.device)
        for subset in own.subsets:
            there, other = torch.from_numpy(trained[subset]), torch.from_numpy(held[subset])
            loss = self.mean_loss(training[subset], self.train_labels[there]) if len(there) else 0.0
            losses[subset] = SubsetLosses(
                loss, self.mean_loss(validation[subset], labels[other]) if len(other) else None
            )
        logits = {subset: validation[subset].cpu().numpy() for subset in own.subsets}
        counts = {subset: len(rows) for subset, rows in trained.items()}
        several = Combinations(own.validation, held, counts)
        return Evaluation(self.model.combination, losses, logits, self.validation_labels, several)

    def _logits(
        self, own: Sequence[str], features: Sequence[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Int64]]:
        """Subset to the logits of the patients who have it, and to their rows, ascending."""
        assert self._own is not None
        rows: dict[str, list[Int64]] = {subset: [np.zeros(0, np.int64)] for subset in self._own.subsets}
        values = {subset: [torch.zeros(0, self._classes, device=self.model.device)] for subset in self._own.subsets}
        for combination, some in grouped(own, np.arange(len(own))):
            index = torch.from_numpy(some).to(self.model.device)
            inputs = [features[k].index_select(0, index) for k in self._own.places[combination]]
            for subset, logits in self.model(inputs, None, combination).items():
                rows[subset].append(some)
                values[subset].append(logits)
        found, placed = {}, {}
        for subset, parts in rows.items():
            whole = np.concatenate(parts)
            order = np.argsort(whole)
            placed[subset] = whole[order]
            found[subset] = torch.cat(values[subset])[torch.from_numpy(order)]
        return found, placed

    def mean_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        """Mean cross-entropy of patients (logits: patients × classes), each clipped at the plan's `loss_max`.

        Raises:
            NonFiniteTrainingError: one is NaN or infinite.
        """
        per_patient = functional.cross_entropy(logits, labels, reduction="none")
        # Checked before the clip, which would turn an infinite loss into an innocent one.
        if not bool(torch.isfinite(per_patient).all()):
            raise _diverged("a patient's loss", self.institution)
        return float(per_patient.double().clamp_(max=self.plan.proximity.loss_max).mean())

    def _gradients(self, rng: Randomness) -> GradientSource:
        """How one step's gradient is made; private training has its own."""
        return BatchGradients(self, rng)

    def rates(self, step_factors: Mapping[str, float], learning_rate: float, held: frozenset[str]) -> dict[str, float]:
        """The step size of each component: 0 where it is held; a head's is the plan's, unscaled.

        Raises:
            LocalMisuseError: one is negative, infinite or NaN.
        """
        heads = {names.classifier(m) for m in self.model.heads}
        rates: dict[str, float] = {}
        for name in self.model.slices:
            factor = self.plan.component(name).step if name in heads else step_factors.get(name, 1.0)
            rate = 0.0 if name in held else learning_rate * factor
            if not 0.0 <= rate <= _LARGEST_RATE:  # NaN fails this too
                raise LocalMisuseError(f"the step size of {name} is {rate}.", remedy="Give finite factors, at least 0.")
            rates[name] = rate
        return rates

    def _to_device(self, features: Mapping[str, Float32], rows: Int64) -> list[torch.Tensor]:
        return [
            torch.from_numpy(np.ascontiguousarray(features[m][rows], dtype=np.float32)).to(self.model.device)
            for m in self.model.modalities
        ]

    def _balance(self, labels: Int64) -> torch.Tensor:
        """float32[classes]: n / (classes present · n_class), so that the mean weight of a patient is 1."""
        counts = np.bincount(labels, minlength=self._classes)
        present = int(np.count_nonzero(counts))
        weights = np.where(counts > 0, labels.size / (present * np.maximum(counts, 1)), 0.0)
        return torch.from_numpy(weights.astype(np.float32)).to(self.model.device)

    def by_combination(self, rows: Int64) -> list[tuple[str, Int64]]:
        """Some of the training patients by combination, smallest first: what `batch` and `patient_losses` take."""
        if self._own is None:
            return [(self.model.combination, rows)]
        return grouped(self._own.training, rows)

    def scale_gradients(self) -> None:
        """Makes of the mean over a batch's patients, for each component, the mean over those of them who train it, as
        many as are to be expected: so each of an institution's patients counts alike for a component, as in α_i."""
        if self._own is not None:
            for name, factor in self._own.scales.items():
                self.model.gradients_flat[self.model.slices[name]].mul_(factor)

    def batch(self, rows: Int64, combination: str = "") -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features per modality and labels of some of the training patients, who are of one combination."""
        index = torch.from_numpy(rows).to(self.model.device)
        features = self.train_features
        if self._own is not None:
            features = [features[k] for k in self._own.places[combination]]
        return [x.index_select(0, index) for x in features], self.train_labels.index_select(0, index)

    def patient_losses(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        masks: DropoutMasks | None,
        combination: str = "",
    ) -> torch.Tensor:
        """float32[patients]: the classifier's cross-entropy plus that of each subset of less, times the patient's class
        weight; the patients are of one combination."""
        logits = list(self.model(features, masks, combination).values())
        subsets = len(logits)
        if subsets == 1:
            losses = functional.cross_entropy(logits[0], labels, reduction="none")
        else:
            # One call for all subsets: on small models the calls cost more than the arithmetic.
            losses = functional.cross_entropy(torch.cat(logits), labels.repeat(subsets), reduction="none")
            losses = losses.view(subsets, -1).sum(dim=0)
        return losses if self.class_weights is None else losses * self.class_weights[labels]


class GradientSource(ABC):
    """Makes the gradient of each step of one round; a context, for what has to be put away afterwards."""

    def __enter__(self) -> Callable[[], torch.Tensor | None]:
        return self.gradient

    def __exit__(self, *exception: object) -> None:
        return None

    @abstractmethod
    def gradient(self) -> torch.Tensor | None:
        """Fills the model's `gradients_flat` for one step; returns the batch's mean loss, None if it is empty."""


class BatchGradients(GradientSource):
    """Mean gradients of batches drawn without replacement, clipped as a whole if the plan says so."""

    def __init__(self, trainer: LocalTrainer, rng: Randomness) -> None:
        self._trainer = trainer
        self._model = trainer.model
        self._batches = epochs(trainer.patients, trainer.plan.training.batch_size, rng.child("batches"))
        self._masks = DropoutMasks(rng.child("dropout"), trainer.plan.model.dropout, self._model.device)
        self._clip = trainer.plan.training.gradient_clip

    def gradient(self) -> torch.Tensor:
        """See GradientSource."""
        trainer = self._trainer
        groups = trainer.by_combination(next(self._batches))
        with trainer.autocast():
            losses = [trainer.patient_losses(*trainer.batch(rows, c), self._masks, c) for c, rows in groups]
            loss = (losses[0] if len(losses) == 1 else torch.cat(losses)).mean()
        self._model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        trainer.scale_gradients()
        if self._clip > 0.0:
            flat = self._model.gradients_flat
            flat.mul_((self._clip / (torch.linalg.vector_norm(flat) + 1e-12)).clamp_(max=1.0))
        return loss.detach()


def epochs(patients: int, batch_size: int, rng: Randomness) -> Iterator[Int64]:
    """Batches without end: every patient once an epoch, in a new order each.

    An epoch is cut into the fewest batches of at most `batch_size`, as equal as can be: a last batch of one patient
    would weigh that patient as much as sixteen others.

    Args:
        patients: at least 1.
        batch_size: at least 1; more than there are patients gives batches of all.
        rng: draws the orders.

    Yields:
        int64[≤ batch_size] row numbers in [0, patients).
    """
    count = math.ceil(patients / batch_size)
    while True:
        yield from np.array_split(permutation(rng, patients), count)


def _diverged(what: str, institution: str) -> NonFiniteTrainingError:
    return NonFiniteTrainingError(
        f"{what} at {institution} is not finite; nothing is sent this round.",
        remedy="Lower training.learning_rate, set training.gradient_clip, look for outliers in the columns' ranges.",
    )


def _check_patients(
    plan: Plan,
    layout: Layout,
    institution: str,
    features: Mapping[str, Float32],
    labels: Int64,
    training: Int64,
    validation: Int64,
    combinations: Sequence[str],
) -> None:
    if institution not in layout.combinations:
        raise TrainingDataError(
            f"{institution} is not in the plan.", remedy=f"The plan has {', '.join(layout.combinations)}."
        )
    n = labels.shape[0]
    classes = len(plan.label.classes)
    if labels.ndim != 1 or (n and (labels.min() < 0 or labels.max() >= classes)):
        raise TrainingDataError(
            f"labels must be class indices in [0, {classes}).", remedy="Read them with the plan's label."
        )
    if len(layout.combinations[institution]) > 1 and len(combinations) != n:
        raise TrainingDataError(
            f"{institution} has several combinations, and {len(combinations)} of {n} patients say which is theirs.",
            remedy="Give the combination of every patient.",
        )
    for modality in dict.fromkeys(m for c in layout.combinations[institution] for m in names.modalities_of(c)):
        width = layout.inputs[modality]
        values = features.get(modality)
        if values is None or values.shape != (n, width):
            found = "missing" if values is None else f"shaped {values.shape}"
            raise TrainingDataError(
                f"the features of {modality} are {found}; {(n, width)} are expected.",
                remedy="Transform every table with the run's feature schema, and align the patients.",
                place=modality,
            )
        # One cheap pass: a NaN or an infinity anywhere makes the sum NaN or infinite.
        if not math.isfinite(float(values.sum(dtype=np.float64))):
            raise TrainingDataError(
                f"the features of {modality} hold NaN or infinity.",
                remedy="Transform the table with the run's feature schema, which imputes missing values.",
                place=modality,
            )
    if training.size == 0:
        raise TrainingDataError(
            f"{institution} has no training patients.", remedy="Check the tables, the ids and the label's values."
        )
    rows = np.concatenate([training, validation])
    if np.unique(rows).size != rows.size or rows.min() < 0 or rows.max() >= n:
        raise TrainingDataError(
            "training and validation rows must be distinct rows of the features.", remedy="Split every patient once."
        )
