"""What a plan's model is made of: components, their tensors, who owns them, which subsets there are.

A component travels and rests as one flat float32 vector: its tensors in `Component.tensors` order, each row-major.
Round 0 is made in numpy from the plan's seed, so the coordinator needs no torch (DESIGN.md, "The house").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from federation import names
from federation.initialisation import BLOCK, TensorSpec, initial_blocks
from federation.plan import Plan
from federation.plan_encoders import MLP, own_tensors


@dataclass(frozen=True)
class Component:
    """One encoder or classifier.

    Attributes:
        name: `encoder/mrna`, `classifier/mrna+image`.
        tensors: in the order of the flat vector; linear layer k has `k.weight` (out × in) and `k.bias` (out), and an
            encoder of another kind what the plan declares.
        owners: institutions of the roster that train it, in roster order.
        shared: enough owners to be summed (METHOD.md, "The privacy floor"); otherwise it stays at its institution.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    owners: tuple[str, ...]
    shared: bool

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def initial_blocks(self, seed: int, block: int = BLOCK) -> Iterator[npt.NDArray[np.float32]]:
        """The component in round 0, in order, in new arrays of at most `block` parameters: the same for any `block`."""
        for tensor in self.tensors:
            yield from initial_blocks(seed, self.name, tensor, block)

    def initial(self, seed: int) -> npt.NDArray[np.float32]:
        """float32[size]: the component in round 0, whole. For components that fit in memory."""
        whole = np.empty(self.size, np.float32)
        start = 0
        for piece in self.initial_blocks(seed):
            whole[start : start + piece.size] = piece
            start += piece.size
        return whole


@dataclass(frozen=True)
class Layout:
    """Everything that follows from a plan and the widths of its inputs.

    Attributes:
        components: by name: encoders in modality order, then classifiers (heads first) by name of their subset.
        subsets: what DGB scores, to the institutions that can evaluate each, in roster order.
        combinations: institution to the combinations that its patients come in, smallest first.
        heads: whether patients also train the classifiers of less than they have (METHOD.md, "Uni-modal heads").
        inputs: modality to the number of its encoder's inputs.
    """

    components: Mapping[str, Component]
    subsets: Mapping[str, tuple[str, ...]]
    combinations: Mapping[str, tuple[str, ...]]
    heads: bool = True
    inputs: Mapping[str, int] = field(default_factory=dict)

    def owned(self, institution: str) -> tuple[str, ...]:
        """The components that an institution trains, in layout order."""
        return tuple(name for name, component in self.components.items() if institution in component.owners)

    def subsets_of(self, institution: str) -> tuple[str, ...]:
        """S_i of METHOD.md: its modalities and its combinations; one element for a uni-modal institution."""
        held = self.combinations[institution]
        modalities = [m for m in self.subsets if any(m in names.modalities_of(c) for c in held)]
        return (*modalities, *(c for c in held if "+" in c))

    def trained_by(self, institution: str, component: str) -> tuple[str, ...]:
        """The combinations of an institution whose patients train a component that it owns.

        An encoder: all with its modality. A classifier: its own; with heads also every larger one, on the detached
        encodings. They are also the patients whose losses the classifier's subset has.
        """
        subset = set(names.modalities_of(names.component_subset(component)))
        larger = self.heads or names.component_kind(component) == "encoder"
        return tuple(
            c
            for c in self.combinations[institution]
            if subset == set(names.modalities_of(c)) or (larger and subset < set(names.modalities_of(c)))
        )

    def pieces(self, component: str, institutions: Iterable[str]) -> frozenset[str]:
        """Whose patients a number of patients adds up, of those who train a component: `institution/combination`, and
        the institution alone where it has one combination, so that the number is the same for all of its components."""
        found: set[str] = set()
        for name in institutions:
            several = len(self.combinations[name]) > 1
            found |= {f"{name}/{c}" for c in self.trained_by(name, component)} if several else {name}
        return frozenset(found)


def subsets_of(combination: str) -> tuple[str, ...]:
    """What the steps of one combination's patients are divided over: its modalities and itself; of one, one."""
    modalities = names.modalities_of(combination)
    return modalities if len(modalities) == 1 else (*modalities, combination)


def linear_tensors(widths: tuple[int, ...]) -> tuple[TensorSpec, ...]:
    """Tensors of a fully connected stack: widths[0] inputs to widths[-1] outputs."""
    tensors: list[TensorSpec] = []
    for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
        tensors.append(TensorSpec(f"{k}.weight", (fan_out, fan_in), "uniform_fan_in", fan_in))
        tensors.append(TensorSpec(f"{k}.bias", (fan_out,), "uniform_fan_in", fan_in))
    return tuple(tensors)


def layout(plan: Plan, input_widths: Mapping[str, int]) -> Layout:
    """The layout of a plan whose feature schema gives each modality an input width.

    Args:
        plan: a checked plan.
        input_widths: modality to number of input features (`FeatureSchema.width`), at least 1.
    """
    order = tuple(modality.name for modality in plan.modalities)
    combinations = plan.by_institution
    holders = {m: tuple(i.name for i in plan.institutions if m in i.modalities) for m in order}
    classes = len(plan.label.classes)
    floor = plan.secure_sum.k_min
    components: dict[str, Component] = {}
    for modality in plan.modalities:
        inputs = input_widths[modality.name]
        if modality.kind == MLP:
            tensors = linear_tensors((inputs, *modality.hidden, plan.model.encoding_width))
        else:
            tensors = own_tensors(modality, inputs)
        owners = holders[modality.name]
        if owners:
            name = names.encoder(modality.name)
            components[name] = Component(name, tensors, owners, len(owners) >= floor)
    subsets = [m for m in order if holders[m]] + [c for c in plan.occurring if "+" in c]
    evaluators: dict[str, tuple[str, ...]] = {}
    for subset in subsets:
        exact = tuple(n for n, held in combinations.items() if subset in held)
        single = "+" not in subset
        owners = holders[subset] if single and plan.model.heads else exact
        if owners:
            widths = (
                plan.model.encoding_width * len(names.modalities_of(subset)),
                *plan.model.classifier_hidden,
                classes,
            )
            name = names.classifier(subset)
            components[name] = Component(name, linear_tensors(widths), owners, len(owners) >= floor)
        evaluators[subset] = exact if plan.blending.losses_from == "combination" else owners
    return Layout(components, evaluators, combinations, plan.model.heads, {m: input_widths[m] for m in order})
