"""What a round asks of whatever trains: real patients on torch, or generated vectors in the bench."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from federation.layout import Layout
from federation.plan import Plan
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import WeightsError
from institution_node.updates import Update, as_update
from security.errors import ConfigurationError
from security.privacy.randomness import Randomness

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Precision = Literal["float32", "mixed"]
Delta = TypeVar("Delta", bound=Float32 | Update, covariant=True)


@dataclass(frozen=True)
class Trajectory(Generic[Delta]):
    """What a round of local training did.

    Attributes:
        updates: component to float32[size], δ = w(K) − w(t), for every component that the institution owns; or to what
            makes it block by block, where it is too large to hold.
        mean_loss: mean over the steps of the batch losses, heads included; local knowledge, never sent. Over the
            steps with patients; NaN if there was none (empty Poisson batches).
        steps: K.
    """

    updates: Mapping[str, Delta]
    mean_loss: float
    steps: int

    def checked(self, weights: Mapping[str, Float32]) -> dict[str, Update]:
        """The updates, if they are of exactly these components and sizes: one word fewer, and the weight behind them
        would stand in a parameter's place in everybody's sum.

        Raises:
            WeightsError: they are not.
        """
        updates = {name: as_update(delta) for name, delta in self.updates.items()}
        if {name: delta.size for name, delta in updates.items()} != {name: w.size for name, w in weights.items()}:
            raise WeightsError(
                "the trainer returned updates of other components or sizes than it was given.",
                remedy="Report this as a fault of the trainer; the node joins the next round.",
            )
        return updates


@dataclass(frozen=True)
class SubsetLosses:
    """Mean per-patient cross-entropy of one subset, each patient's clipped at the plan's `proximity.loss_max`.

    Attributes:
        training: over the training patients who have the subset, evaluation mode; 0 where there is none.
        validation: over the validation patients who have it; None where there is none.
    """

    training: float
    validation: float | None


@dataclass(frozen=True)
class Combinations:
    """Who is who where patients of one institution come in several combinations.

    Attributes:
        own: of each validation patient.
        rows: subset to the validation patients who have it, int64, ascending.
        trained: subset to the number of training patients who have it.
    """

    own: tuple[str, ...]
    rows: Mapping[str, Int64]
    trained: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """The model at some weights, on one institution's patients.

    Attributes:
        combination: the institution's own; the largest where its patients come in several.
        losses: every subset that the institution can evaluate (its combinations; each modality that it has a head
        for).
        logits: the same subsets to float32[validation patients, classes], before any temperature.
        labels: int64[validation patients].
        several: where its patients come in several combinations; None: all have `combination`.
    """

    combination: str
    losses: Mapping[str, SubsetLosses]
    logits: Mapping[str, Float32]
    labels: Int64
    several: Combinations | None = None

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """float64[validation patients, classes]: each patient's by the classifier of its own combination."""
        if self.several is None:
            return _softmax(self.logits[self.combination])
        found = np.zeros((len(self.labels), next(iter(self.logits.values())).shape[1]))
        for combination in sorted(set(self.several.own)):
            rows = self.several.rows[combination]
            among = [k for k, row in enumerate(rows) if self.several.own[row] == combination]
            found[rows[among]] = _softmax(self.logits[combination])[among]
        return found

    def labels_of(self, subset: str) -> Int64:
        """int64: of the validation patients whose logits of a subset there are."""
        return self.labels if self.several is None else self.labels[self.several.rows[subset]]

    def held(self, subset: str) -> int:
        """Validation patients who have a subset."""
        return len(self.labels_of(subset))

    def trained(self, subset: str, patients: int) -> int:
        """Training patients who have a subset, of so many."""
        return patients if self.several is None else self.several.trained[subset]

    def rows_of(self, combinations: Collection[str]) -> Int64:
        """Validation patients whose own combination is one of these; all of them where there is one combination."""
        if self.several is None:
            return np.arange(len(self.labels))
        return np.array([k for k, own in enumerate(self.several.own) if own in combinations], dtype=np.int64)


def _softmax(logits: Float32) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True, initial=-math.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Trainer(Protocol):
    """Trains and evaluates on one institution's patients."""

    @property
    def patients(self) -> int:
        """Training patients, n_i."""
        ...

    def train(
        self,
        weights: Mapping[str, Float32],
        step_factors: Mapping[str, float],
        learning_rate: float,
        rng: Randomness,
        held: frozenset[str] = frozenset(),
    ) -> Trajectory[Float32 | Update]:
        """K local steps from `weights`; the components of `held` stay as they are, and at least one is not held."""
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
        combinations: Sequence[str] = (),
    ) -> Trainer: ...


def check_precision(plan: Plan, precision: Precision) -> None:
    """Passes a precision that a plan may be trained in.

    Raises:
        ConfigurationError: mixed precision under differential privacy.
    """
    if plan.differential_privacy.enabled and precision != "float32":
        raise ConfigurationError(
            "in mixed precision the norms that clipping rests on are rounded, and so is the bound on one patient.",
            remedy='Write precision = "float32" in [compute] of node.toml for plans with differential privacy.',
            place="node.toml, compute.precision",
        )


def trainer_for(
    plan: Plan,
    layout: Layout,
    institution: str,
    features: Mapping[str, Float32],
    labels: Int64,
    train_rows: Int64,
    validation_rows: Int64,
    device: str,
    combinations: Sequence[str] = (),
    encoders: Encoders = NO_ENCODERS,
    precision: Precision = "float32",
) -> Trainer:
    """The plan's trainer: DP-SGD where the plan has differential privacy."""
    arguments = (
        plan,
        layout,
        institution,
        features,
        labels,
        train_rows,
        validation_rows,
        device,
        combinations,
        encoders,
        precision,
    )
    if plan.differential_privacy.enabled:
        from institution_node.private_training import PrivateTrainer

        return PrivateTrainer(*arguments)
    # torch takes seconds to import, and `--help` must not wait for it
    from institution_node.training import LocalTrainer

    return LocalTrainer(*arguments)
