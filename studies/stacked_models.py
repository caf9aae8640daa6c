"""The models of many institutions of one combination side by side: every layer is one batched matrix product.

All numbers lie in one flat vector, tensor by tensor, and within a tensor row by row (institution by institution), so
that an optimiser sees one vector and autograd sees contiguous leaves. Where one row's input is narrower than another's,
it is padded with zeros: a zero input has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from federation import names
from institution_node.models import DropoutMasks, InstitutionModel, activate, partly_detached

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tensor:
    """One tensor of all rows.

    Attributes:
        component: whose it is.
        name: `0.weight`.
        shape: of one row, padded.
        begin: of the first row in the flat vector.
        rows: institutions.
    """

    component: str
    name: str
    shape: tuple[int, ...]
    begin: int
    rows: int

    @property
    def size(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """rows × shape: this tensor in a flat vector, as a view."""
        return flat[self.begin : self.begin + self.rows * self.size].view(self.rows, *self.shape)


class StackedModels:
    """Models of one combination and one plan of model; the width of their inputs may differ.

    Args:
        models: at least one; one a row.
        activation: of the plan's model.

    Attributes:
        tensors: in layout order.
        parameters, gradients: flat vectors of the same layout.
    """

    def __init__(self, models: Sequence[InstitutionModel], activation: str) -> None:
        self._first, self._activation, rows = models[0], activation, len(models)
        self.tensors: list[Tensor] = []
        self._where: list[dict[str, list[npt.NDArray[np.int64]]]] = [{} for _ in models]
        begin = 0
        for component in self._first.components:
            stacks = [m.stack(component).component.tensors for m in models]
            for same in zip(*stacks, strict=True):
                shape = tuple(max(sizes) for sizes in zip(*(t.shape for t in same), strict=True))
                made = Tensor(component, same[0].name, shape, begin, rows)
                self.tensors.append(made)
                places = np.arange(made.size).reshape(shape)
                for row, tensor in enumerate(same):
                    own = places[tuple(slice(0, n) for n in tensor.shape)].ravel()
                    self._where[row].setdefault(component, []).append(begin + row * made.size + own)
                begin += rows * made.size
        self._positions = [{c: np.concatenate(parts) for c, parts in where.items()} for where in self._where]
        self.parameters = torch.zeros(begin)
        self.gradients = torch.zeros(begin)
        self._leaves: dict[tuple[str, str], torch.Tensor] = {}
        for tensor in self.tensors:
            leaf = tensor.of(self.parameters).detach().requires_grad_()
            leaf.grad = tensor.of(self.gradients)
            self._leaves[tensor.component, tensor.name] = leaf

    def input_width(self, modality: str) -> int:
        """Of the widest row."""
        return self._leaves[names.encoder(modality), "0.weight"].shape[2]

    def load(self, weights: Sequence[Mapping[str, Float32]]) -> None:
        """Component to float32[size] of each row."""
        flat = self.parameters.numpy()
        for positions, own in zip(self._positions, weights, strict=True):
            for component, places in positions.items():
                flat[places] = own[component]

    def store(self) -> list[dict[str, Float32]]:
        """What `load` would take, as it is now; copies."""
        flat = self.parameters.numpy()
        return [{component: flat[places] for component, places in own.items()} for own in self._positions]

    def forward(self, inputs: Sequence[torch.Tensor], masks: DropoutMasks | None) -> dict[str, torch.Tensor]:
        """`InstitutionModel.forward` of all rows, in its order, since dropout is drawn in it.

        Args:
            inputs: by modality of the combination, in order: rows × patients × width.
            masks: that hold rows × patients × dropped units; None in evaluation.

        Returns:
            Subset to rows × patients × classes.
        """
        model = self._first
        encodings = [self._run(names.encoder(m), x, masks) for m, x in zip(model.modalities, inputs, strict=True)]
        joined = encodings[0] if len(encodings) == 1 else torch.cat(encodings, dim=2)
        logits = {model.combination: self._run(names.classifier(model.combination), joined, masks)}
        for modality, encoding in zip(model.modalities, encodings, strict=True):
            if modality in model.heads:
                read = partly_detached(encoding, model.head_gradient)
                logits[modality] = self._run(names.classifier(modality), read, masks)
        return logits

    def _run(self, component: str, values: torch.Tensor, masks: DropoutMasks | None) -> torch.Tensor:
        stack = self._first.stack(component)
        last = len(stack.layers) - 1
        for k in range(last + 1):
            weight, bias = self._leaves[component, f"{k}.weight"], self._leaves[component, f"{k}.bias"]
            values = torch.baddbmm(bias[:, None, :], values, weight.transpose(1, 2))
            if k == last and stack.open_end:
                break
            values = activate(values, self._activation)
            if masks is not None:
                values = masks.apply(values)
        return values
