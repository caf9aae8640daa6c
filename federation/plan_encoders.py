"""Encoders of other kinds than the fully connected one, as a plan declares them (docs/encoders.md).

Their code is installed at the institutions and never sent. The plan declares each parameter's name, shape and first
values, so that the coordinator, which has no such code and no torch, knows the layout and makes round 0; institutions
hold what their code makes against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Annotated, Final, Literal

from federation.initialisation import TensorSpec
from federation.plan_fields import U32, Number, PlanTable, Range, about
from federation.plan_problems import Path, Problem

if TYPE_CHECKING:
    from federation.plan_tables import Modality

MLP: Final = "mlp"
"""The kind that every release has."""

MOST_OPTIONS: Final = 32
MOST_TENSORS: Final = 1000
MOST_AXES: Final = 6
LONGEST_TEXT: Final = 200
_TENSOR_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,199}")


class EncoderOption(PlanTable):
    """One thing that an encoder of another kind is told: a number, or a text where one is written."""

    name: Annotated[str, about("Name of the option.")]
    number: Annotated[Number, Range(-1e9, 1e9), about("Its value.")] = 0.0
    text: Annotated[str, about("Its value where it is no number: up to 200 characters.")] = ""

    @property
    def value(self) -> float | str:
        """What the encoder is given."""
        return self.text or self.number


class EncoderTensor(PlanTable):
    """One parameter of an encoder of another kind."""

    name: Annotated[str, about("Its name in the module, `score.weight`.")]
    shape: Annotated[
        tuple[U32, ...],
        Range(0, 2**31 - 1),
        about("Its shape; 0 stands for the modality's number of inputs, which the feature schema settles."),
    ]
    init: Annotated[
        Literal["uniform_fan_in", "zeros", "ones"],
        about("First values: uniform in ±1/√fan_in from the plan's seed, or constant."),
    ] = "uniform_fan_in"
    fan_in: Annotated[
        U32, Range(0, 2**31 - 1), about("Of `uniform_fan_in`; 0 stands for the modality's number of inputs.")
    ] = 0

    def spec(self, inputs: int) -> TensorSpec:
        """The tensor where the modality has so many inputs, at least 1."""
        shape = tuple(size or inputs for size in self.shape)
        return TensorSpec(self.name, shape, self.init, self.fan_in or inputs)


def own_tensors(modality: Modality, inputs: int) -> tuple[TensorSpec, ...]:
    """Tensors of an encoder of another kind."""
    return tuple(tensor.spec(inputs) for tensor in modality.tensors)


def encoder_problems(modality: Modality, path: Path, most_parameters: int) -> Iterator[Problem]:
    """What is wrong with a modality's kind, options and tensors; ranges of single numbers are not looked at.

    Args:
        modality: of a plan.
        path: its place in the plan.
        most_parameters: of one encoder.
    """
    if modality.kind == MLP:
        for field in ("options", "tensors"):
            if getattr(modality, field):
                yield Problem((*path, field), "the encoder `mlp` has none.", "Take them out, or name another kind.")
        return
    if not 0 < len(modality.tensors) <= MOST_TENSORS:
        remedy = f"Declare 1 to {MOST_TENSORS}, as `consilium-node encoders --kind {modality.kind[:64]}` prints them."
        yield Problem((*path, "tensors"), f"{len(modality.tensors)} tensors.", remedy)
    if len(modality.options) > MOST_OPTIONS:
        yield Problem((*path, "options"), f"{len(modality.options)} options.", f"Use at most {MOST_OPTIONS}.")
    for i, option in enumerate(modality.options):
        if len(option.text) > LONGEST_TEXT or not option.text.isprintable():
            remedy = f"Use at most {LONGEST_TEXT} printable characters."
            yield Problem((*path, "options", i, "text"), "the text cannot be shown.", remedy)
        if option.text and option.number:
            yield Problem((*path, "options", i), "a number and a text.", "Write one of them.")
    for i, tensor in enumerate(modality.tensors):
        if not _TENSOR_NAME.fullmatch(tensor.name):
            remedy = "Use the parameter's name in the module: letters, digits, `_` and `.`."
            yield Problem((*path, "tensors", i, "name"), f"{tensor.name[:200]!r} is no name of a parameter.", remedy)
        if len(tensor.shape) > MOST_AXES:
            yield Problem((*path, "tensors", i, "shape"), f"{len(tensor.shape)} axes.", f"Use at most {MOST_AXES}.")
    parameters = sum(prod(size or modality.widest_input for size in t.shape) for t in modality.tensors)
    if parameters > most_parameters:
        yield Problem((*path, "tensors"), f"an encoder of {parameters:,} parameters.", "Declare a smaller one.")
