"""The institution's part of the model, in torch: encoders, its classifier, its heads.

Shape of the network (the paper says fully connected, ReLU, dropout 0.2 and leaves the seams open): encoder and
classifier read as one stack. Every linear layer but a classifier's last is followed by the activation and then by
dropout, an encoder's last layer too: without an activation there, the clinical encoder of the paper (11-16) and the
classifier behind it would be one linear map written twice. GELU is the tanh form, which `inference` repeats in numpy.

A uni-modal head reads the *detached* encoding: its loss trains the head alone (METHOD.md, "Uni-modal heads").

All parameters live in one flat buffer in layout order, all gradients in another; the linear layers hold views. Loading,
storing, clipping and stepping are a few operations on flat vectors, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from federation import names
from federation.layout import Component, Layout
from federation.plan import Modality, Plan
from federation.plan_encoders import MLP
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import WeightsError
from institution_node.own_encoder import OwnEncoder, build, no_code
from security.errors import ConfigurationError, LocalMisuseError
from security.privacy.randomness import Randomness

_DROPOUT_STEPS: Final = 1 << 16


class DropoutMasks:
    """Dropout masks from the institution's own generator, already divided by the chance of staying.

    Not torch's dropout: that draws from a generator shared by the whole process, so two trainers in one process would
    depend on each other, and cpu and cuda would differ. The chance is a multiple of 2^-16.

    Args:
        rng: where the masks come from.
        dropout: chance that a unit is dropped, in [0, 1).
        device: of the masks.
    """

    def __init__(self, rng: Randomness, dropout: float, device: torch.device) -> None:
        self._rng = rng
        self._threshold = round(dropout * _DROPOUT_STEPS)
        self._scale = np.float32(_DROPOUT_STEPS / (_DROPOUT_STEPS - self._threshold))
        self._device = device
        self._mask: torch.Tensor | None = None
        self._used = 0

    def draw(self, patients: int, units: int) -> None:
        """Draws all masks of one batch at once: `units` is the sum of the widths that `apply` will be called with."""
        if self._threshold == 0:
            return
        self.hold(torch.from_numpy(self.drawn(patients, units)).to(self._device))

    def drawn(self, patients: int, units: int) -> npt.NDArray[np.float32]:
        """float32[patients, units]: the next masks, for whoever puts several institutions' side by side."""
        words = np.frombuffer(self._rng.bytes(2 * patients * units), dtype="<u2")
        return ((words >= self._threshold) * self._scale).reshape(patients, units)

    def hold(self, masks: torch.Tensor) -> None:
        """Takes masks, … × units, for the calls of `apply` that follow."""
        self._mask, self._used = masks, 0

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (… × width) with the next `width` columns of the masks applied."""
        if self._mask is None:
            return values
        width = values.shape[-1]
        mask = self._mask[..., self._used : self._used + width]
        self._used += width
        return values * mask


class Stack(nn.Module):
    """Fully connected layers of one component.

    Args:
        component: whose tensors are `k.weight`, `k.bias` for k = 0, 1, … (`federation.layout.linear_tensors`).
        activation: `relu`, `gelu` or `tanh`.
        open_end: a classifier: nothing follows the last layer.
    """

    def __init__(self, component: Component, activation: str, *, open_end: bool) -> None:
        super().__init__()
        self.component = component
        shapes = [tensor.shape for tensor in component.tensors if tensor.name.endswith(".weight")]
        # Built on the meta device: the parameters become views of the model's flat buffer.
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out, device="meta") for fan_out, fan_in in shapes)
        self.activation = activation
        self.open_end = open_end

    @property
    def dropped_units(self) -> int:
        """Sum of the widths that dropout applies to."""
        widths = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        return sum(widths[:-1] if self.open_end else widths)

    def bind(self, tensor: str, parameter: nn.Parameter) -> None:
        """Puts a parameter in a tensor's place."""
        layer, _, part = tensor.partition(".")
        setattr(self.layers[int(layer)], part, parameter)

    def forward(self, values: torch.Tensor, masks: DropoutMasks | None) -> torch.Tensor:
        """Patients × in to patients × out; `masks` is None in evaluation."""
        last = len(self.layers) - 1
        for k, layer in enumerate(self.layers):
            values = layer(values)
            if k == last and self.open_end:
                break
            values = activate(values, self.activation)
            if masks is not None:
                values = masks.apply(values)
        return values


def activate(values: torch.Tensor, activation: str) -> torch.Tensor:
    """The plan's activation function, elementwise.

    Raises:
        ConfigurationError: an unknown activation.
    """
    if activation == "relu":
        return functional.relu(values)
    if activation == "gelu":
        return functional.gelu(values, approximate="tanh")
    if activation == "tanh":
        return torch.tanh(values)
    raise ConfigurationError(
        f"unknown activation {activation!r}.", remedy="Use relu, gelu or tanh.", place="model.activation"
    )


class InstitutionModel(nn.Module):
    """Everything that one institution trains.

    Args:
        plan: a checked plan.
        layout: of the plan and its feature schema.
        institution: one of the plan's.
        device: torch's name of the device.
        encoders: factories of the kinds, other than `mlp`, that the institution's modalities are of.

    Attributes:
        components: names of the components, in layout order.
        combinations: that the institution's patients come in, smallest first.
        combination: the last of them; the institution's own, where it has one.
        modalities: all of the institution's, in plan order.
        heads: modalities with a head that trains no encoder, on the detached encoding; empty at a uni-modal
            institution, whose classifier of that modality is its own and trains the encoder.
        parameters_flat: float32[sum of sizes], all parameters in layout order.
        gradients_flat: float32 of the same shape.
        slices: component to its part of the flat vectors.
    """

    def __init__(
        self, plan: Plan, layout: Layout, institution: str, device: str = "cpu", encoders: Encoders = NO_ENCODERS
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.components = layout.owned(institution)
        self.combinations = layout.combinations[institution]
        self.combination = self.combinations[-1]
        self.modalities = tuple(
            names.component_subset(c) for c in self.components if names.component_kind(c) == "encoder"
        )
        self.heads = tuple(
            m for m in self.modalities if m not in self.combinations and names.classifier(m) in self.components
        )
        self.head_gradient = plan.training.head_gradient
        # Of a patient's subsets the combination itself comes first; the others are on detached encodings.
        self._subsets = {c: (c, *_smaller(layout, institution, c)) for c in self.combinations}
        self._stacks: dict[str, Stack | OwnEncoder] = {}
        kinds = {names.encoder(m.name): m for m in plan.modalities if m.kind != MLP}
        self.slices: dict[str, slice] = {}
        start = 0
        for name in self.components:
            component = layout.components[name]
            if name in kinds:
                self._stacks[name] = _own(component, kinds[name], layout, plan.model.encoding_width, encoders)
            else:
                open_end = names.component_kind(name) == "classifier"
                self._stacks[name] = Stack(component, plan.model.activation, open_end=open_end)
            self.slices[name] = slice(start, start + component.size)
            start += component.size
        # A ModuleDict would refuse modalities called "keys" or "items".
        self.stacks = nn.ModuleList(self._stacks.values())
        self.parameters_flat = torch.zeros(start, dtype=torch.float32, device=self.device)
        self.gradients_flat = torch.zeros_like(self.parameters_flat)
        self._bind()
        self._units = {
            c: sum(self._stacks[name].dropped_units for name in self.components_of(c)) for c in self.combinations
        }
        self.dropped_units = self._units[self.combination]
        self.held: frozenset[str] = frozenset()

    def _bind(self) -> None:
        for name, stack in self._stacks.items():
            start = self.slices[name].start
            for tensor in stack.component.tensors:
                size = int(np.prod(tensor.shape))
                parameter = nn.Parameter(self.parameters_flat[start : start + size].view(tensor.shape))
                parameter.grad = self.gradients_flat[start : start + size].view(tensor.shape)
                stack.bind(tensor.name, parameter)
                start += size

    def stack(self, component: str) -> Stack:
        """The layers of one component.

        Raises:
            LocalMisuseError: it is an encoder of another kind, which has no layers that are known here.
        """
        found = self._stacks[component]
        if not isinstance(found, Stack):
            raise LocalMisuseError(f"{component} is no stack of layers.")
        return found

    def hold(self, held: frozenset[str]) -> None:
        """Leaves some components without a gradient; `gradients_flat` stays zero there."""
        self.held = held
        self.train_only(frozenset(self.components))

    def train_only(self, used: frozenset[str]) -> None:
        """Until `hold` or this is called again, only those of `used` have a gradient that are not held."""
        for name, stack in self._stacks.items():
            stack.requires_grad_(name in used and name not in self.held)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zeroes the gradients in place; they stay views of `gradients_flat`, whatever `set_to_none` says."""
        self.gradients_flat.zero_()

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Copies weights in, bit for bit; components that the institution does not own are ignored.

        Args:
            weights: component to float32[component size].

        Raises:
            WeightsError: a component is missing, or has another size or type.
        """
        for name in self.components:
            vector = weights.get(name)
            if vector is None:
                raise WeightsError(
                    f"the weights of {name} are missing.", remedy="Fetch every component that the institution owns."
                )
            part = self.parameters_flat[self.slices[name]]
            if vector.dtype != np.float32 or vector.shape != tuple(part.shape):
                raise WeightsError(
                    f"the weights of {name} are {vector.dtype}{list(vector.shape)}, not float32[{part.shape[0]}].",
                    remedy="Use the plan and the feature schema that the weights were made for.",
                    place=name,
                )
            part.copy_(_tensor(vector))

    def store(self) -> dict[str, npt.NDArray[np.float32]]:
        """Component to float32[component size]: copies, bit for bit what `load` was given if nothing was trained."""
        flat = self.parameters_flat.cpu().numpy()
        return {name: flat[part].copy() for name, part in self.slices.items()}

    def encode(
        self, features: Sequence[torch.Tensor], masks: DropoutMasks | None, combination: str = ""
    ) -> list[torch.Tensor]:
        """Encodings (patients × encoding width), in modality order, of features in modality order."""
        held = names.modalities_of(combination or self.combination)
        return [self._stacks[names.encoder(m)](x, masks) for m, x in zip(held, features, strict=True)]

    def components_of(self, combination: str) -> frozenset[str]:
        """What the patients of a combination train."""
        encoders = map(names.encoder, names.modalities_of(combination))
        return frozenset((*encoders, *map(names.classifier, self._subsets[combination])))

    def forward(
        self, features: Sequence[torch.Tensor], masks: DropoutMasks | None = None, combination: str = ""
    ) -> dict[str, torch.Tensor]:
        """Logits (patients × classes) of every subset that patients of one combination have: the combination itself,
        and what of it the institution has classifiers of, on detached encodings.

        Args:
            features: float32 patients × width, per modality of the combination, in order.
            masks: dropout; None in evaluation.
            combination: of these patients; the institution's own, where it has one.
        """
        own = combination or self.combination
        modalities = names.modalities_of(own)
        if masks is not None:
            masks.draw(features[0].shape[0], self._units[own])
        encodings = dict(zip(modalities, self.encode(features, masks, own), strict=True))
        logits: dict[str, torch.Tensor] = {}
        for subset in self._subsets[own]:
            parts = [encodings[m] for m in names.modalities_of(subset)]
            if subset != own:
                parts = [partly_detached(encoding, self.head_gradient) for encoding in parts]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            logits[subset] = self._stacks[names.classifier(subset)](joined, masks)
        return logits


def _smaller(layout: Layout, institution: str, combination: str) -> tuple[str, ...]:
    """The subsets of less than a combination whose classifiers its patients train too, in layout order."""
    subsets = [names.component_subset(c) for c in layout.owned(institution) if names.component_kind(c) == "classifier"]
    return tuple(
        s for s in subsets if s != combination and combination in layout.trained_by(institution, names.classifier(s))
    )


def partly_detached(encoding: torch.Tensor, share: float) -> torch.Tensor:
    """The encoding itself, through which only this share of a gradient goes back."""
    if share == 0.0:
        return encoding.detach()
    return encoding.detach() + share * (encoding - encoding.detach())


def _own(component: Component, modality: Modality, layout: Layout, width: int, encoders: Encoders) -> OwnEncoder:
    factory = encoders.get(modality.kind)
    if factory is None:
        raise no_code(modality)
    return build(component, modality, layout.inputs[modality.name], width, factory)


def _tensor(vector: npt.NDArray[np.float32]) -> torch.Tensor:
    """The vector as a tensor; read-only arrays (views of received bytes) are copied, torch cannot hold them."""
    return torch.from_numpy(vector if vector.flags.writeable else vector.copy())
