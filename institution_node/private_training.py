"""DP-SGD at one institution: per-patient clipping by Opacus, noise and Poisson batches from the node's own generator.

One patient's gradient is that of its summed loss (classifier and heads) over *all* components of the institution, and
it is clipped as one vector: one patient moves the noise-free sum of a step by at most `max_gradient_norm` (Abadi et
al. 2016, algorithm 1). Norms come from ghost clipping (Li et al. 2022; Opacus' fast gradient clipping): activations
and back-propagated signals give the norm of a linear layer's gradient without the gradient. A first backward pass
finds the norms, a second one, of the losses weighted by the clipping coefficients, the clipped sum.

What differs from Opacus' own loop, and why:
- the noise is `security.privacy.mechanisms.add_gaussian`'s. torch's CPU generator keeps 32 bits of its seed, so its
  noise can be found by trying all seeds, and subtracted; Opacus' `secure_mode` needs a package that does not exist;
- patients of several combinations pass one combination after the other; each patient's components are all in one pass,
  and the sum is not divided by how many train a component, which would tell their number;
- batches are drawn by `poisson_sample` from the same source, and an empty one still takes a step of noise;
- the optimiser is plain training's: the noised gradient enters it once, so DGB's step sizes, momentum, weight decay
  and FedProx are post-processing. Neither of the last two touches patients, so they stay outside of clipping.

`training.gradient_clip` is not applied: every patient is clipped already, and what is left is mostly noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from federation.layout import Layout
from federation.plan import Plan
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import EncoderError, TrainingDataError
from institution_node.models import DropoutMasks
from institution_node.own_encoder import OwnEncoder
from institution_node.trainer import Precision, check_precision
from institution_node.training import GradientSource, LocalTrainer
from security.errors import ConfigurationError
from security.privacy.events import SampledGaussian
from security.privacy.mechanisms import add_gaussian
from security.privacy.randomness import Randomness, poisson_sample

# torch says so whenever the first layer's input needs no gradient, which is how it should be: Opacus reads the
# gradient of the layer's output alone.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")


def planned_event(plan: Plan, patients: int) -> SampledGaussian:
    """What a round of `PrivateTrainer.train` costs: the caller charges it to the ledger *before* it trains.

    Args:
        plan: a checked plan with differential privacy enabled.
        patients: training patients, n.

    Returns:
        K steps at sampling rate min(1, batch_size / n), noise multiplier σ.

    Raises:
        TrainingDataError: no patients.
    """
    if patients < 1:
        raise TrainingDataError("there are no training patients.", remedy="Check the tables, ids and labels.")
    rate = min(1.0, plan.training.batch_size / patients)
    return SampledGaussian(plan.differential_privacy.noise_multiplier, rate, plan.training.local_steps)


class PrivateTrainer(LocalTrainer):
    """A LocalTrainer whose every training step is differentially private at the level of patients.

    `evaluate` is as in LocalTrainer: exact values, to be noised and charged by whoever releases them.

    Args:
        plan: a checked plan with differential privacy enabled; others as in LocalTrainer.

    Raises:
        ConfigurationError: precision is mixed; or the plan does not enable differential privacy, or balances classes:
            those weights depend on all patients, and so would every gradient on every patient.
        TrainingDataError, EncoderError: as LocalTrainer; or an encoder of another kind has layers whose gradients per
            patient Opacus does not know.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        institution: str,
        features: Mapping[str, npt.NDArray[np.float32]],
        labels: npt.NDArray[np.int64],
        train_rows: Sequence[int] | npt.NDArray[np.int64],
        validation_rows: Sequence[int] | npt.NDArray[np.int64],
        device: str = "cpu",
        combinations: Sequence[str] = (),
        encoders: Encoders = NO_ENCODERS,
        precision: Precision = "float32",
    ) -> None:
        check_precision(plan, precision)
        if not plan.differential_privacy.enabled:
            raise ConfigurationError(
                "the plan does not enable differential privacy.",
                remedy="Set differential_privacy.enabled, or train with LocalTrainer.",
                place="differential_privacy.enabled",
            )
        if plan.training.class_weights != "none":
            raise ConfigurationError(
                "class weights from all patients undo the bound on one patient's influence.",
                remedy='Set class_weights = "none" in a plan with differential privacy.',
                place="training.class_weights",
            )
        super().__init__(
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
        )
        for encoder in self.model.stacks:
            if isinstance(encoder, OwnEncoder):
                check_supported(encoder)

    def _gradients(self, rng: Randomness) -> GradientSource:
        return PrivateGradients(self, rng)


def check_supported(encoder: OwnEncoder) -> None:
    """Passes an encoder all of whose layers Opacus knows the gradients per patient of.

    Raises:
        EncoderError: one it does not know: a guess by other means could be wrong, and so the promised privacy.
    """
    for layer in encoder.module.modules():
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if own and type(layer) not in GradSampleHooksFastGradientClipping.GRAD_SAMPLERS:
            raise EncoderError(
                f"{encoder.component.name}: Opacus does not know {type(layer).__name__}, which holds "
                f"{', '.join(own)}, so no differential privacy can be promised.",
                remedy="Build it of Linear, Conv1d, LayerNorm, GroupNorm or Embedding; or use a plan without "
                "differential privacy.",
                place=encoder.component.name,
            )


class PrivateGradients(GradientSource):
    """Noised sums of clipped per-patient gradients, divided by the plan's batch size (public, unlike the batch's).

    Args:
        trainer: whose model and patients.
        rng: draws batches, dropout and noise.
    """

    def __init__(self, trainer: LocalTrainer, rng: Randomness) -> None:
        privacy = trainer.plan.differential_privacy
        self._trainer = trainer
        self._model = trainer.model
        self._rate = planned_event(trainer.plan, trainer.patients).sampling_rate
        self._batches = rng.child("batches")
        self._noise = rng.child("noise")
        self._masks = DropoutMasks(rng.child("dropout"), trainer.plan.model.dropout, self._model.device)
        self._norm = privacy.max_gradient_norm
        self._sigma = privacy.noise_multiplier * privacy.max_gradient_norm
        self._hooks: GradSampleHooksFastGradientClipping | None = None

    def __enter__(self) -> Callable[[], torch.Tensor | None]:
        self._hooks = GradSampleHooksFastGradientClipping(
            self._model, loss_reduction="mean", max_grad_norm=self._norm, use_ghost_clipping=True
        )
        return self.gradient

    def __exit__(self, *exception: object) -> None:
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None

    def gradient(self) -> torch.Tensor | None:
        """See GradientSource."""
        rows = poisson_sample(self._batches, self._trainer.patients, self._rate)
        loss = self.clipped_sum(rows)
        flat = self._model.gradients_flat
        if flat.device.type == "cpu":
            add_gaussian(flat.numpy(), self._sigma, self._noise)
        else:
            noised = flat.cpu().numpy()
            add_gaussian(noised, self._sigma, self._noise)
            flat.copy_(torch.from_numpy(noised))
        flat.div_(self._trainer.plan.training.batch_size)
        return loss

    def clipped_sum(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Fills `gradients_flat` with the noise-free sum of the rows' clipped gradients; returns the mean loss.

        No rows give a sum of zero and no loss.
        """
        if self._hooks is None:
            raise RuntimeError("gradients are made inside the context")
        self._model.zero_grad()
        if rows.size == 0:
            return None
        losses: list[torch.Tensor] = []
        total = torch.zeros_like(self._model.gradients_flat)
        for combination, some in self._trainer.by_combination(rows):
            self._model.zero_grad()
            # Opacus takes a patient's norm over the parameters that it lists: of what these patients use.
            self._model.train_only(self._model.components_of(combination))
            self._hooks.trainable_parameters = [p for p in self._model.parameters() if p.requires_grad]
            features, labels = self._trainer.batch(some, combination)
            losses.append(self._trainer.patient_losses(features, labels, self._masks, combination))
            DPTensorFastGradientClipping(self._hooks, self._model, losses[-1], "mean").backward()
            total += self._model.gradients_flat
        self._model.gradients_flat.copy_(total)
        return torch.cat([each.detach() for each in losses]).mean()
