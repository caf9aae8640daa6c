"""The model without torch: a forward pass in numpy, so that `predict` starts at once and needs no node extra.

Equal to `models.InstitutionModel` in evaluation mode (a test compares the two): float32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from federation import names
from federation.model_archive import Model

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def activate(values: Float32, activation: str) -> Float32:
    """`relu`, `gelu` (tanh form) or `tanh`, elementwise; see `models.activate`."""
    if activation == "relu":
        return np.maximum(values, np.float32(0.0))
    if activation == "tanh":
        return np.tanh(values)
    # float32 scalars keep the arithmetic in float32
    cube = values * values * values * np.float32(0.044715)
    inner = (values + cube) * np.float32(math.sqrt(2.0 / math.pi))
    return np.asarray(values * np.float32(0.5) * (np.tanh(inner) + np.float32(1.0)), dtype=np.float32)


def log_softmax(logits: npt.NDArray[np.floating]) -> Float64:
    """float64[patients, classes]: log-probabilities, in float64."""
    values = logits.astype(np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


class NumpyModel:
    """A model ready to be used.

    Args:
        model: from `model_archive.unpack`.

    Attributes:
        modalities: those that it has an encoder for, in plan order.
        subsets: those that it has a classifier for.
    """

    def __init__(self, model: Model) -> None:
        self._activation = model.plan.model.activation
        self._temperatures = model.temperatures
        self._layers: dict[str, list[tuple[Float32, Float32]]] = {}
        for component in model.components:
            tensors = model.tensors(component)
            self._layers[component] = [(tensors[f"{k}.weight"], tensors[f"{k}.bias"]) for k in range(len(tensors) // 2)]
        self.modalities = tuple(m for m in model.plan.modality_order if names.encoder(m) in self._layers)
        self.subsets = tuple(names.component_subset(c) for c in self._layers if names.component_kind(c) == "classifier")

    def encode(self, modality: str, features: Float32) -> Float32:
        """float32[patients, encoding width] of float32[patients, input width]; the modality must have an encoder."""
        values = features
        for weight, bias in self._layers[names.encoder(modality)]:
            values = activate(values @ weight.T + bias, self._activation)
        return values

    def logits(self, subset: str, encodings: Mapping[str, Float32]) -> Float32:
        """float32[patients, classes] by the subset's classifier, which must be there, before any temperature.

        Args:
            subset: one of `subsets`.
            encodings: modality to float32[patients, encoding width], for at least the subset's modalities.
        """
        values = np.concatenate([encodings[m] for m in names.modalities_of(subset)], axis=1)
        layers = self._layers[names.classifier(subset)]
        for k, (weight, bias) in enumerate(layers):
            values = values @ weight.T + bias
            if k < len(layers) - 1:
                values = activate(values, self._activation)
        return values

    def log_probabilities(self, subset: str, encodings: Mapping[str, Float32]) -> Float64:
        """float64[patients, classes]: calibrated by the classifier's temperature."""
        return log_softmax(self.logits(subset, encodings) / np.float32(self._temperatures[subset]))

    def blend(self, subsets: Sequence[str], encodings: Mapping[str, Float32]) -> Float64:
        """float64[patients, classes]: the mean of the subsets' calibrated log-probabilities, renormalised."""
        mean = np.mean([self.log_probabilities(subset, encodings) for subset in subsets], axis=0)
        return log_softmax(mean)
