"""SGD, momentum and Adam on one flat vector with a learning rate per component.

torch's own optimisers take a parameter group per component and a list of tensors per group; on small models that
overhead is most of a step. The rules are torch's (a test compares them), made anew for every round: no state
outlives a round, so a restarted institution continues as one that never stopped.

Blending scales the *step*, not the gradient: Adam divides a scaled gradient by its own scale (METHOD.md, "DGB").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from security.errors import ConfigurationError

BETA1: Final = 0.9
BETA2: Final = 0.999
ADAM_EPSILON: Final = 1e-8


class FlatOptimiser:
    """One round's optimiser.

    Args:
        kind: `sgd`, `momentum` or `adam`.
        weights: float32[d], changed in place by `step`.
        rates: disjoint slices of `weights` with their learning rates, all at least 0.
        momentum: of `momentum`, in [0, 1).
        weight_decay: λ, at least 0: each step first takes rate·λ·w off (decoupled, as in AdamW).
        proximal: FedProx μ of μ·(w − w(t)), added to the gradient, at least 0 (Li et al. 2020, equation 2).

    Raises:
        ConfigurationError: an unknown kind.
    """

    def __init__(
        self,
        kind: str,
        weights: torch.Tensor,
        rates: Sequence[tuple[slice, float]],
        *,
        momentum: float,
        weight_decay: float,
        proximal: float,
    ) -> None:
        if kind not in ("sgd", "momentum", "adam"):
            raise ConfigurationError(
                f"unknown optimiser {kind!r}.", remedy="Use sgd, momentum or adam.", place="training.optimiser"
            )
        self._kind = kind
        self._weights = weights
        self._rates = rates
        self._momentum = momentum
        self._decay = weight_decay
        self._proximal = proximal
        self._start = weights.clone() if proximal > 0.0 else None
        self._first = torch.zeros_like(weights) if kind != "sgd" else None
        self._second = torch.zeros_like(weights) if kind == "adam" else None
        self._steps = 0

    def step(self, gradient: torch.Tensor) -> None:
        """One step along −`gradient` (float32[d], overwritten); decay and proximity come on top, never clipped."""
        self._steps += 1
        if self._start is not None:
            gradient.add_(self._weights, alpha=self._proximal).sub_(self._start, alpha=self._proximal)
        scale = 1.0
        direction = gradient
        if self._first is not None and self._second is not None:
            self._first.mul_(BETA1).add_(gradient, alpha=1.0 - BETA1)
            self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
            scale = 1.0 / (1.0 - BETA1**self._steps)
            root = torch.sqrt(self._second, out=gradient)
            root.div_(math.sqrt(1.0 - BETA2**self._steps)).add_(ADAM_EPSILON)
            direction = torch.div(self._first, root, out=root)
        elif self._first is not None:
            direction = self._first.mul_(self._momentum).add_(gradient)
        for part, rate in self._rates:
            if rate > 0.0:
                if self._decay > 0.0:
                    self._weights[part].mul_(1.0 - rate * self._decay)
                self._weights[part].sub_(direction[part], alpha=rate * scale)
