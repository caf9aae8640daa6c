"""The local steps of many institutions at once: what `institution_node.training` does, batched over institutions.

Rows of a batch are institutions of one combination, of any run: other seeds, other methods, as long as model and
training are the same. Each draws its batches and dropout from its own stream in the loop's order, so that a row differs
from the loop by the order of float32 additions alone (`tests/studies/test_batched_training.py`), and is bit for bit the
same whoever else is in its batch. Institutions whose patients come in several combinations are no rows: they take the
loop's own steps, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from federation.plan_encoders import MLP
from institution_node.errors import NonFiniteTrainingError
from institution_node.models import DropoutMasks
from institution_node.optimisers import ADAM_EPSILON, BETA1, BETA2
from institution_node.trainer import Evaluation, SubsetLosses, Trainer, Trajectory
from institution_node.training import LocalTrainer, epochs
from institution_node.update_work import LocalTraining
from studies.federation import StudyError
from studies.stacked_models import StackedModels, Tensor

Float32 = npt.NDArray[np.float32]

ROWS: Final = 64
"""Institutions in one batch: their inputs, weights and optimiser state stay within a few dozen MiB."""


class BatchedTrainers:
    """Trains and evaluates on many institutions' patients; keeps the batches of the last call for the next one."""

    def __init__(self) -> None:
        self._batches: dict[tuple[int, ...], _Batch] = {}

    def train(self, trainings: Sequence[LocalTraining]) -> list[Trajectory[Float32]]:
        """Takes the local steps of all of these.

        Args:
            trainings: of `LocalTrainer`s; those of one combination have plans with one model and one training.

        Returns:
            What each one's `run` would, in the same order.

        Raises:
            NonFiniteTrainingError: a loss or an update is NaN or infinite.
            StudyError: another kind of trainer, or plans that cannot share a batch.
        """
        found: dict[int, Trajectory[Float32]] = {}
        for k, training in enumerate(trainings):
            if _several(training.trainer):
                found[k] = _local(training.trainer).train(
                    training.weights, training.step_factors, training.learning_rate, training.rng, training.held
                )
        for rows, batch in self._of([t.trainer for t in trainings]):
            found |= zip(rows, batch.train([trainings[k] for k in rows]), strict=True)
        return [found[k] for k in range(len(trainings))]

    def evaluate(self, trainers: Sequence[Trainer], weights: Sequence[Mapping[str, Float32]]) -> list[Evaluation]:
        """What each trainer's `evaluate` gives at its weights, in the same order; raises as `train` does."""
        found = {k: t.evaluate(weights[k]) for k, t in enumerate(trainers) if _several(t)}
        for rows, batch in self._of(trainers):
            found |= zip(rows, batch.evaluate([weights[k] for k in rows]), strict=True)
        return [found[k] for k in range(len(trainers))]

    def _of(self, trainers: Sequence[Trainer]) -> Iterator[tuple[list[int], _Batch]]:
        """Indices of trainers of one combination, at most `ROWS` at a time, with their batch."""
        local = [_local(t) for t in trainers]
        used: dict[tuple[int, ...], _Batch] = {}
        one = [k for k in range(len(local)) if not _several(local[k])]
        order = sorted(one, key=lambda k: local[k].model.combination)
        for _, same in groupby(order, key=lambda k: local[k].model.combination):
            rows = list(same)
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                key = tuple(id(local[k]) for k in some)  # the batch keeps them alive
                used[key] = self._batches.get(key) or _Batch([local[k] for k in some])
                yield some, used[key]
        self._batches = used


def _local(trainer: Trainer) -> LocalTrainer:
    if type(trainer) is not LocalTrainer:
        raise StudyError("only plain local training runs in batches.", remedy="Run this plan by itself.")
    return trainer


def _several(trainer: Trainer) -> bool:
    """Whether its patients come in several combinations."""
    return len(_local(trainer).model.combinations) > 1


class _Batch:
    """Rows of one combination."""

    def __init__(self, trainers: Sequence[LocalTrainer]) -> None:
        first = trainers[0]
        shared = (first.plan.model, first.plan.training, first.model.components)
        if any((t.plan.model, t.plan.training, t.model.components) != shared for t in trainers):
            raise StudyError(
                "plans with other models or training cannot share a batch.", remedy="Put such runs into another one."
            )
        if any(modality.kind != MLP for modality in first.plan.modalities):
            raise StudyError(
                "encoders of other kinds than `mlp` cannot be stacked.", remedy="Run this plan by itself (`PlainRun`)."
            )
        self._trainers, self._settings, self._dropout = trainers, first.plan.training, first.plan.model.dropout
        self._units = first.model.dropped_units
        self._combination = first.model.combination
        self._stacked = StackedModels([t.model for t in trainers], first.plan.model.activation)
        modalities = first.model.modalities
        self._training = [
            self._side_by_side([t.train_features[k] for t in trainers], self._stacked.input_width(m))
            for k, m in enumerate(modalities)
        ]
        self._validation = [
            self._side_by_side([t.validation_features[k] for t in trainers], self._stacked.input_width(m))
            for k, m in enumerate(modalities)
        ]
        self._labels = torch.zeros(len(trainers), max(t.patients for t in trainers), dtype=torch.int64)
        for row, trainer in enumerate(trainers):
            self._labels[row, : trainer.patients] = trainer.train_labels
        balance = [t.class_weights for t in trainers if t.class_weights is not None]
        self._balance = torch.stack(balance) if balance else None

    @staticmethod
    def _side_by_side(features: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        whole = torch.zeros(len(features), max(len(x) for x in features), width)
        for row, own in enumerate(features):
            whole[row, : own.shape[0], : own.shape[1]] = own
        return whole

    # -- training -----------------------------------------------------------------------------------------------

    def train(self, trainings: Sequence[LocalTraining]) -> list[Trajectory[Float32]]:
        settings, stacked = self._settings, self._stacked
        stacked.load([t.weights for t in trainings])
        optimiser = _Optimiser(stacked, settings, self._steps(trainings))
        held = [
            (tensor, torch.tensor([tensor.component not in t.held for t in trainings], dtype=torch.float32))
            for tensor in stacked.tensors
            if any(tensor.component in t.held for t in trainings)
        ]
        batches = [
            epochs(trainer.patients, settings.batch_size, t.rng.child("batches"))
            for trainer, t in zip(self._trainers, trainings, strict=True)
        ]
        dropout = [DropoutMasks(t.rng.child("dropout"), self._dropout, torch.device("cpu")) for t in trainings]
        total = torch.zeros(len(trainings))
        for _ in range(settings.local_steps):
            total += self._gradient([next(batch) for batch in batches], dropout)
            for tensor, moves in held:
                tensor.of(stacked.gradients).mul_(_each(moves, tensor))
            if settings.gradient_clip > 0.0:
                _clip(stacked, settings.gradient_clip)
            optimiser.step()
        return self._trajectories(trainings, total / settings.local_steps)

    def _steps(self, trainings: Sequence[LocalTraining]) -> dict[str, torch.Tensor]:
        """Component to float32[rows], the step sizes."""
        each = [
            trainer.rates(t.step_factors, t.learning_rate, t.held)
            for trainer, t in zip(self._trainers, trainings, strict=True)
        ]
        return {component: torch.tensor([rates[component] for rates in each]) for component in each[0]}

    def _gradient(self, chosen: Sequence[npt.NDArray[np.int64]], dropout: Sequence[DropoutMasks]) -> torch.Tensor:
        """Fills the gradients with those of every row's own batch; float32[rows], the batches' mean losses."""
        size = self._settings.batch_size  # of whole batches: a product's sums then do not depend on who else is there
        index, share = np.zeros((len(chosen), size), np.int64), np.zeros((len(chosen), size), np.float32)
        masks = np.zeros((len(chosen), size, self._units), np.float32) if self._dropout > 0.0 else None
        for row, own in enumerate(chosen):
            index[row, : len(own)], share[row, : len(own)] = own, 1.0 / len(own)
            if masks is not None:
                masks[row, : len(own)] = dropout[row].drawn(len(own), self._units)
        if masks is not None:
            dropout[0].hold(torch.from_numpy(masks))
        rows, at = torch.arange(len(chosen))[:, None], torch.from_numpy(index)
        targets, weights = self._labels[rows, at], torch.from_numpy(share)
        if self._balance is not None:
            weights = weights * self._balance.gather(1, targets)
        logits = self._stacked.forward([x[rows, at] for x in self._training], dropout[0])
        flat = torch.cat([each.flatten(0, 1) for each in logits.values()])
        each = functional.cross_entropy(flat, targets.flatten().repeat(len(logits)), reduction="none")
        means = (each.view(len(logits), *targets.shape).sum(dim=0) * weights).sum(dim=1)
        self._stacked.gradients.zero_()
        means.sum().backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        return means.detach()

    def _trajectories(self, trainings: Sequence[LocalTraining], losses: torch.Tensor) -> list[Trajectory[Float32]]:
        made = []
        for trainer, training, after, loss in zip(
            self._trainers, trainings, self._stacked.store(), losses.tolist(), strict=True
        ):
            updates = {name: np.subtract(w, training.weights[name], out=w) for name, w in after.items()}
            if not all(map(math.isfinite, (loss, *(float(u.sum(dtype=np.float64)) for u in updates.values())))):
                raise NonFiniteTrainingError(
                    f"training at {trainer.institution} diverged.",
                    remedy="Lower training.learning_rate, or set training.gradient_clip.",
                )
            made.append(Trajectory(updates, loss, self._settings.local_steps))
        return made

    # -- evaluation ---------------------------------------------------------------------------------------------

    def evaluate(self, weights: Sequence[Mapping[str, Float32]]) -> list[Evaluation]:
        self._stacked.load(weights)
        with torch.inference_mode():
            training = self._stacked.forward(self._training, None)
            validation = self._stacked.forward(self._validation, None)
        made = []
        for row, trainer in enumerate(self._trainers):
            held = len(trainer.validation_labels)
            labels = torch.from_numpy(trainer.validation_labels)
            losses: dict[str, SubsetLosses] = {}
            logits: dict[str, Float32] = {}
            for subset in training:
                own, other = training[subset][row, : trainer.patients], validation[subset][row, :held]
                logits[subset] = other.numpy().copy()
                loss = trainer.mean_loss(other, labels) if held else None
                losses[subset] = SubsetLosses(trainer.mean_loss(own, trainer.train_labels), loss)
            made.append(Evaluation(self._combination, losses, logits, trainer.validation_labels))
        return made


def _each(values: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """float32[rows], shaped so that it multiplies each row of a tensor."""
    return values.view(-1, *(1,) * len(tensor.shape))


def _clip(stacked: StackedModels, largest: float) -> None:
    """Each row's gradient, over all of its tensors, to at most this norm."""
    squares = torch.zeros(stacked.tensors[0].rows)
    for tensor in stacked.tensors:
        squares += tensor.of(stacked.gradients).flatten(1).square().sum(dim=1)
    factors = (largest / (squares.sqrt() + 1e-12)).clamp_(max=1.0)
    for tensor in stacked.tensors:
        tensor.of(stacked.gradients).mul_(_each(factors, tensor))


class _Optimiser:
    """`institution_node.optimisers.FlatOptimiser` for all rows, each with its own step sizes.

    Args:
        stacked: weights and gradients.
        settings: the plan's training.
        steps: component to float32[rows].
    """

    def __init__(self, stacked: StackedModels, settings: Any, steps: Mapping[str, torch.Tensor]) -> None:
        self._stacked, self._settings, self._steps = stacked, settings, steps
        weights = stacked.parameters
        self._first = torch.zeros_like(weights) if settings.optimiser != "sgd" else None
        self._second = torch.zeros_like(weights) if settings.optimiser == "adam" else None
        self._start = weights.clone() if settings.proximal > 0.0 else None
        self._taken = 0

    def step(self) -> None:
        """One step along the gradients, which are overwritten."""
        self._taken += 1
        weights, gradient, settings = self._stacked.parameters, self._stacked.gradients, self._settings
        if self._start is not None:
            gradient.add_(weights, alpha=settings.proximal).sub_(self._start, alpha=settings.proximal)
        scale, direction = 1.0, gradient
        if self._first is not None and self._second is not None:
            self._first.mul_(BETA1).add_(gradient, alpha=1.0 - BETA1)
            self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
            scale = 1.0 / (1.0 - BETA1**self._taken)
            root = torch.sqrt(self._second, out=gradient)
            root.div_(math.sqrt(1.0 - BETA2**self._taken)).add_(ADAM_EPSILON)
            direction = torch.div(self._first, root, out=root)
        elif self._first is not None:
            direction = self._first.mul_(settings.momentum).add_(gradient)
        for tensor in self._stacked.tensors:
            own, rates = tensor.of(weights), _each(self._steps[tensor.component], tensor)
            if settings.weight_decay > 0.0:
                own.mul_(1.0 - rates * settings.weight_decay)
            own.addcmul_(tensor.of(direction), rates, value=-scale)
