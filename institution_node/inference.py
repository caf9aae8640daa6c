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
from federation.plan_encoders import MLP
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import EncoderError

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
        encoders: factories of kinds of encoders other than `mlp`; these run in torch.

    Attributes:
        modalities: those that it has an encoder for, in plan order.
        subsets: those that it has a classifier for.
    """

    def __init__(self, model: Model, encoders: Encoders = NO_ENCODERS) -> None:
        self._model, self._encoders = model, encoders
        kinds = {names.encoder(m.name): m for m in model.plan.modalities if m.kind != MLP}
        self._own = {c: kinds[c] for c in model.components if c in kinds}
        self._activation = model.plan.model.activation
        self._temperatures = model.temperatures
        self._layers: dict[str, list[tuple[Float32, Float32]]] = {}
        for component in model.components:
            if component in self._own:
                continue
            tensors = model.tensors(component)
            self._layers[component] = [(tensors[f"{k}.weight"], tensors[f"{k}.bias"]) for k in range(len(tensors) // 2)]
        self.modalities = tuple(m for m in model.plan.modality_order if names.encoder(m) in model.components)
        self.subsets = tuple(names.component_subset(c) for c in self._layers if names.component_kind(c) == "classifier")

    def encode(self, modality: str, features: Float32) -> Float32:
        """float32[patients, encoding width] of float32[patients, input width]; the modality must have an encoder.

        Raises:
            EncoderError: an encoder of another kind whose code was not given, or is not what the model was made with.
        """
        if names.encoder(modality) in self._own:
            return self._by_torch(modality, features)
        values = features
        for weight, bias in self._layers[names.encoder(modality)]:
            values = activate(values @ weight.T + bias, self._activation)
        return values

    def _by_torch(self, modality: str, features: Float32) -> Float32:
        kind = self._own[names.encoder(modality)]
        if kind.kind not in self._encoders:
            raise EncoderError(
                f"the model's encoder of {modality} is of kind {kind.kind!r}, whose code is not in the model.",
                remedy="Install the package that offers it and give a policy.toml that allows it (--policy); or leave "
                f"the table of {modality} out.",
                place=modality,
            )
        from institution_node.own_encoder import encoded  # torch, for such models alone

        component = self._model.layout.components[names.encoder(modality)]
        return encoded(
            component,
            kind,
            self._model.plan.model.encoding_width,
            self._encoders[kind.kind],
            self._model.tensors(component.name),
            features,
        )

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
