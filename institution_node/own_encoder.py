"""An encoder of another kind in the model: built by code of the institution's own, held against the plan's tensors.

What such a module must be, so that everybody's sums mean the same thing:
- its parameters are the plan's tensors, no more and no fewer, float32, each used; their values come from the layout's
  flat vector, so whatever its code initialised is overwritten;
- nothing else in it may decide what it computes: no buffers (BatchNorm's running figures), no constants drawn when it
  was built, no dropout or other randomness of its own (the plan's dropout is applied to its encoding);
- a patient's encoding depends on no other patient of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from federation import names
from federation.layout import Component, layout
from federation.plan import Modality, Plan
from federation.plan_encoders import MLP, EncoderTensor
from institution_node.encoder_kinds import EncoderFactory, Encoders
from institution_node.errors import EncoderError

_PROBED: Final = 5  # patients
_SEEDS: Final = (1, 2)
_TOLERANCE: Final = 1e-4  # of float32 sums in another order

T = TypeVar("T")


class OwnEncoder(nn.Module):
    """Turns patients × inputs into patients × encoding width; stands where a `Stack` would.

    Args:
        component: the encoder's, with the plan's tensors.
        module: made by a factory, its parameters checked; `bind` replaces them.
        width: of the encoding.
    """

    def __init__(self, component: Component, module: nn.Module, width: int) -> None:
        super().__init__()
        self.component, self.module, self._width = component, module, width

    @property
    def dropped_units(self) -> int:
        """Sum of the widths that dropout applies to."""
        return self._width

    def bind(self, tensor: str, parameter: nn.Parameter) -> None:
        """Puts a parameter in a tensor's place."""
        owner, _, name = tensor.rpartition(".")
        setattr(self.module.get_submodule(owner), name, parameter)

    def forward(self, values: torch.Tensor, masks: Any) -> torch.Tensor:
        """See `Stack.forward`; of no patients, no encodings."""
        if values.shape[0] == 0:
            return values.new_zeros((0, self._width))
        encoded: torch.Tensor = self.module(values)
        return encoded if masks is None else masks.apply(encoded)


def build(component: Component, modality: Modality, inputs: int, width: int, factory: EncoderFactory) -> OwnEncoder:
    """An encoder by its factory, checked.

    Args:
        component: of the layout.
        modality: of the plan.
        inputs: number of features.
        width: of the encoding.
        factory: of the modality's kind.

    Raises:
        EncoderError: its code failed, or it is not what the plan declares and the module's docstring demands.
    """
    options = {option.name: option.value for option in modality.options}
    modules = [_made(factory, inputs, width, options, seed, modality.kind) for seed in _SEEDS]
    for module in modules:
        _check_module(module, modality.kind)
        _check_parameters(module, {t.name: t.shape for t in component.tensors}, modality.kind)
    encoder, other = (OwnEncoder(component, module, width) for module in modules)
    for each in (encoder, other):
        start, values = 0, torch.from_numpy(_probe_weights(component))
        for tensor in component.tensors:
            each.bind(tensor.name, nn.Parameter(values[start : start + tensor.size].view(tensor.shape).clone()))
            start += tensor.size
    before = {name: value.detach().clone() for name, value in _kept(encoder.module).items()}
    _check_outputs(encoder, other, inputs, width, modality.kind)
    # What its code writes there would be sent as an update: neither clipped nor noised under differential privacy.
    after = _kept(encoder.module)
    if after.keys() != before.keys() or not all(torch.equal(before[name], value) for name, value in after.items()):
        raise _wrong(
            modality.kind, "it changes what it keeps where it encodes.", "Let only training change parameters."
        )
    encoder.train()  # the mode that Opacus listens in; it computes the same in either
    return encoder


def check_encoders(plan: Plan, institution: str, encoders: Encoders) -> None:
    """Passes a plan whose kinds of encoders an institution can run by these factories: before it joins the run.

    The number of inputs is not settled yet; they are built for the most that there can be.

    Raises:
        EncoderError: one cannot.
    """
    widths = {m.name: m.widest_input for m in plan.modalities}
    components = layout(plan, widths).components
    held = plan.institution(institution).modalities
    for modality in plan.modalities:
        if modality.kind == MLP or modality.name not in held:
            continue
        width, factory = plan.model.encoding_width, encoders.get(modality.kind)
        if factory is None:
            raise no_code(modality)
        encoder = build(components[names.encoder(modality.name)], modality, widths[modality.name], width, factory)
        if plan.differential_privacy.enabled:
            from institution_node.private_training import check_supported  # opacus takes seconds to import

            check_supported(encoder)


def no_code(modality: Modality) -> EncoderError:
    """That the code of a modality's encoder was not given."""
    return EncoderError(
        f"the encoder of {modality.name} is of kind {modality.kind!r}, whose code was not given.",
        remedy="Install the kind and allow it in policy.toml (docs/encoders.md).",
        place=modality.kind,
    )


def encoded(
    component: Component,
    modality: Modality,
    width: int,
    factory: EncoderFactory,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    features: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """float32[patients, width]: encodings of float32[patients, inputs] by trained tensors; raises as `build` does."""
    encoder = build(component, modality, features.shape[1], width, factory)
    for name, values in tensors.items():
        encoder.bind(name, nn.Parameter(torch.from_numpy(values.copy())))
    with torch.inference_mode():
        made: npt.NDArray[np.float32] = encoder(torch.from_numpy(features), None).numpy()
    return made


def declare(
    factory: EncoderFactory, inputs: int, width: int, options: Mapping[str, float | str], kind: str = "own"
) -> tuple[EncoderTensor, ...]:
    """The tensors that a plan declares for a factory: weights uniform by their fan-in, scales of one axis 1, other
    single axes 0. A plan's author may write other first values.

    Args:
        factory: of the kind.
        inputs: any number of inputs that it can be built for; it is built for twice as many too.
        width: of the encoding.
        options: of the plan.
        kind: for messages.

    Raises:
        EncoderError: its code failed, or a shape depends on the number of inputs otherwise than by being it.
    """
    once, twice = (_made(factory, n, width, options, _SEEDS[0], kind) for n in (inputs, 2 * inputs))
    _check_module(once, kind)
    larger = dict(twice.named_parameters())
    declared = []
    for name, parameter in once.named_parameters():
        shape = []
        for size, other in zip(parameter.shape, larger[name].shape if name in larger else (), strict=False):
            if size != other and (size, other) != (inputs, 2 * inputs):
                raise _wrong(kind, f"{name} is neither of a fixed size nor as long as there are inputs.")
            shape.append(0 if size != other else size)
        if len(shape) != parameter.ndim:
            raise _wrong(kind, f"{name} is there or not, or has other axes, by the number of inputs.")
        if parameter.ndim >= 2:
            fan_in = 0 if 0 in shape[1:] else int(np.prod(shape[1:]))
            declared.append(EncoderTensor(name=name, shape=tuple(shape), fan_in=fan_in))
        else:
            init = "ones" if name.rpartition(".")[2] == "weight" else "zeros"
            declared.append(EncoderTensor(name=name, shape=tuple(shape), init=init))  # type: ignore[arg-type]  # one of both words
    return tuple(declared)


# -- checks -------------------------------------------------------------------------------------------------------


def _wrong(
    kind: str, what: str, remedy: str = "Ask the author of the encoder or of the plan to mend it."
) -> EncoderError:
    return EncoderError(f"the encoder {kind!r}: {what}", remedy=remedy, place=kind)


def _ran(kind: str, step: Callable[[], T]) -> T:
    try:
        return step()
    except Exception as error:  # code of the package
        raise _wrong(kind, f"its code failed: {type(error).__name__}: {str(error)[:200]}.") from error


def _made(
    factory: EncoderFactory, inputs: int, width: int, options: Mapping[str, float | str], seed: int, kind: str
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # whatever it draws is overwritten, and moves no other generator
        torch.manual_seed(seed)
        module: object = _ran(kind, lambda: factory(inputs, width, dict(options)))
    if not isinstance(module, nn.Module):
        raise _wrong(kind, f"its factory returns a {type(module).__name__}, not a torch module.")
    return module


def _check_module(module: nn.Module, kind: str) -> None:
    buffer = next((name for name, _ in module.named_buffers()), None)
    if buffer is not None:
        raise _wrong(
            kind,
            f"it keeps {buffer!r}, which no sum covers.",
            "Normalise by LayerNorm or GroupNorm instead of BatchNorm; make constants in `forward`.",
        )
    if any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules()):
        raise _wrong(
            kind, "it has dropout of its own.", "Take it out: the plan's model.dropout is applied to the encoding."
        )


def _kept(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_parameters(module: nn.Module, declared: Mapping[str, tuple[int, ...]], kind: str) -> None:
    found = dict(module.named_parameters(remove_duplicate=False))
    if len({id(parameter) for parameter in found.values()}) != len(found):
        raise _wrong(kind, "two of its parameters are one and the same.", "Hold the shared one under one name.")
    for name, parameter in found.items():
        if parameter.dtype != torch.float32 or not parameter.requires_grad:
            raise _wrong(
                kind, f"{name} is {parameter.dtype} or not trained.", "Make every parameter float32 and trained."
            )
    shapes = {name: tuple(parameter.shape) for name, parameter in found.items()}
    if shapes != dict(declared):
        name = sorted(n for n in shapes.keys() | declared.keys() if shapes.get(n) != declared.get(n))[0]
        raise _wrong(
            kind,
            f"{name} is {shapes.get(name, 'absent')} here and {declared.get(name, 'absent')} in the plan.",
            "Install the version that the plan was made with; `consilium-node encoders --kind` prints its tensors.",
        )


def _probe_weights(component: Component) -> npt.NDArray[np.float32]:
    """As in round 0, and not constant where the plan begins with constants."""
    values = component.initial(0)
    values += np.resize(np.linspace(-0.05, 0.05, 101, dtype=np.float32), values.shape)
    return values


def _check_outputs(encoder: OwnEncoder, other: OwnEncoder, inputs: int, width: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    patients = torch.randn(_PROBED, inputs, generator=generator)
    with torch.random.fork_rng(devices=[]):
        encoder.train()
        first = _ran(kind, lambda: encoder(patients, None))
        if first.shape != (_PROBED, width) or first.dtype != torch.float32:
            raise _wrong(
                kind, f"of {_PROBED} patients it makes {first.dtype}{list(first.shape)}, not {[_PROBED, width]}."
            )
        if not bool(torch.isfinite(first).all()):
            raise _wrong(kind, "its encodings are NaN or infinite.")
        # Gradients before anything else: what is not used never trains, and Opacus would refuse it.
        encoder.zero_grad()
        _ran(kind, lambda: (first * torch.linspace(0.5, 1.5, width)).sum().backward())
        for name, parameter in encoder.module.named_parameters():
            if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()):
                raise _wrong(kind, f"{name} has no finite gradient.", "Use every parameter in `forward`.")
        with torch.inference_mode():
            again = _ran(kind, lambda: encoder(patients, None))
            encoder.eval()
            evaluated = _ran(kind, lambda: encoder(patients, None))
            elsewhere = _ran(kind, lambda: other(patients, None))
            alone = torch.cat([_ran(kind, partial(encoder, patients[k : k + 1], None)) for k in range(_PROBED)])
    for what, values, remedy in (
        ("it draws at random.", again, "Take all randomness out of `forward`."),
        ("it computes otherwise in evaluation.", evaluated, "Compute the same in training and evaluation."),
        ("built twice, it computes two things.", elsewhere, "Keep nothing drawn outside of its parameters."),
        ("a patient's encoding depends on the others.", alone, "Normalise within a patient, never over the batch."),
    ):
        if not torch.allclose(first, values, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise _wrong(kind, what, remedy)
