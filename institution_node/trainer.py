"""What a round asks of whatever trains: real patients on torch, or generated vectors in the bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from federation.layout import Layout
from federation.plan import Plan
from security.privacy.randomness import Randomness

if TYPE_CHECKING:  # these modules import torch, which takes seconds, and `--help` must not wait for it
    from institution_node.training import Evaluation, Trajectory

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Trainer(Protocol):
    """Trains and evaluates on one institution's patients."""

    @property
    def patients(self) -> int:
        """Training patients, n_i."""
        ...

    def train(
        self, weights: Mapping[str, Float32], step_factors: Mapping[str, float], learning_rate: float, rng: Randomness
    ) -> Trajectory:
        """K local steps from `weights`."""
        ...

    def evaluate(self, weights: Mapping[str, Float32]) -> Evaluation:
        """Losses and validation logits at `weights`."""
        ...


class TrainerFactory(Protocol):
    """Makes a trainer once the feature schema is known; the arguments are `LocalTrainer`'s."""

    def __call__(
        self,
        plan: Plan,
        layout: Layout,
        institution: str,
        features: Mapping[str, Float32],
        labels: Int64,
        train_rows: Int64,
        validation_rows: Int64,
        device: str,
    ) -> Trainer: ...


def trainer_for(
    plan: Plan,
    layout: Layout,
    institution: str,
    features: Mapping[str, Float32],
    labels: Int64,
    train_rows: Int64,
    validation_rows: Int64,
    device: str,
) -> Trainer:
    """The plan's trainer: DP-SGD where the plan has differential privacy."""
    arguments = (plan, layout, institution, features, labels, train_rows, validation_rows, device)
    if plan.differential_privacy.enabled:
        from institution_node.private_training import PrivateTrainer

        return PrivateTrainer(*arguments)
    from institution_node.training import LocalTrainer

    return LocalTrainer(*arguments)
