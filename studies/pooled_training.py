"""Training where all patients are in one place, each with the modalities of the institution that it was at.

One step is what a federated round's step would be without walls: one batch drawn from everybody, of as many patients as
the institutions' batches together, one gradient, one optimiser for the whole model. Per combination a `LocalTrainer`
computes losses; the parameters are the pooled party's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from federation.layout import Layout
from federation.plan import Plan
from institution_node.models import DropoutMasks
from institution_node.optimisers import FlatOptimiser
from institution_node.trainer import Evaluation
from institution_node.training import LocalTrainer, epochs
from security.privacy.randomness import Randomness

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Group(LocalTrainer):
    """The patients of one combination; `LocalTrainer` says what the arguments are.

    Args:
        institution: one of the plan's with this combination, for its part of the model.
        everybody: int64, labels of all training patients of all groups: what class weights are balanced over.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        institution: str,
        features: Mapping[str, Float32],
        labels: Int64,
        train_rows: Int64,
        validation_rows: Int64,
        everybody: Int64,
    ) -> None:
        super().__init__(plan, layout, institution, features, labels, train_rows, validation_rows)
        if self.class_weights is not None:
            self.class_weights = self._balance(everybody)


class PooledTrainer:
    """The whole model on everybody's patients.

    Args:
        plan: the federation's.
        layout: of the plan and the pooled schema.
        groups: one per combination.
    """

    def __init__(self, plan: Plan, layout: Layout, groups: Sequence[Group]) -> None:
        self._plan, self._layout, self._groups = plan, layout, tuple(groups)
        self._slices: Final[dict[str, slice]] = {}
        start = 0
        for name, component in layout.components.items():
            self._slices[name] = slice(start, start + component.size)
            start += component.size
        self._flat, self._gradient = torch.zeros(start), torch.zeros(start)
        self._group_of = np.repeat(np.arange(len(self._groups)), [g.patients for g in self._groups])
        self._row_of = np.concatenate([np.arange(g.patients) for g in self._groups])

    def train(self, weights: Mapping[str, Float32], learning_rate: float, rng: Randomness) -> dict[str, Float32]:
        """The plan's K steps; component to its weights after them.

        Args:
            weights: component to float32[size].
            learning_rate: η of this round.
            rng: draws batches and dropout.
        """
        settings = self._plan.training
        for name, part in self._slices.items():
            self._flat[part] = torch.from_numpy(np.asarray(weights[name]))
        optimiser = FlatOptimiser(
            settings.optimiser,
            self._flat,
            [(slice(0, len(self._flat)), learning_rate)],
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal=settings.proximal,
        )
        batches = epochs(len(self._group_of), settings.batch_size * len(self._plan.institutions), rng.child("batches"))
        masks = DropoutMasks(rng.child("dropout"), self._plan.model.dropout, torch.device("cpu"))
        for _ in range(settings.local_steps):
            self._step(next(batches), masks)
            optimiser.step(self._gradient)
        after = self._flat.numpy()
        return {name: after[part].copy() for name, part in self._slices.items()}

    def _step(self, batch: Int64, masks: DropoutMasks) -> None:
        self._gradient.zero_()
        for index, group in enumerate(self._groups):
            rows = self._row_of[batch[self._group_of[batch] == index]]
            if rows.size == 0:
                continue
            model = group.model
            for name, part in model.slices.items():
                model.parameters_flat[part] = self._flat[self._slices[name]]
            features, labels = group.batch(rows)
            model.zero_grad()
            loss = group.patient_losses(features, labels, masks).sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
            for name, part in model.slices.items():
                self._gradient[self._slices[name]] += model.gradients_flat[part]
        clip = self._plan.training.gradient_clip
        if clip > 0.0:
            norm = torch.linalg.vector_norm(self._gradient)
            self._gradient.mul_((clip / (norm + 1e-12)).clamp_(max=1.0))

    def evaluate(self, weights: Mapping[str, Float32]) -> list[Evaluation]:
        """Each group's, at these weights."""
        return [group.evaluate(weights) for group in self._groups]
