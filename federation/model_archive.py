"""A finished model as files: `pack` makes their bytes, `unpack` believes none of them.

| file | holds |
|---|---|
| `model.safetensors` | every tensor, named `encoder/mrna/0.weight`, float32 |
| `schema.json` | the feature schema's bytes: what turns raw tables into inputs |
| `plan.bin` | the plan's exact bytes, whose SHA-256 is the run's digest |
| `manifest.json` | format, run, round, classes, digests of the files above, temperatures |
| `MODEL_CARD.md` | prose for people; the only file that may be edited |

The manifest is in one encoding and names everything else by digest, so its own digest names the model: what a plan
writes as `initial_model`. Whoever has that digest from elsewhere passes it to `unpack`; without it, files that were
all replaced together are believed. Reading and writing folders is left to the node and to the operator's command.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from federation import names
from federation.features import FeatureSchema
from federation.initialisation import BLOCK
from federation.layout import Component, Layout, layout
from federation.model_card import Groups, model_card
from federation.plan import Plan, digest
from federation.tensor_file import TensorFile, whole
from security.errors import ConsiliumError

FORMAT: Final = 1
WEIGHTS: Final = "model.safetensors"
SCHEMA: Final = "schema.json"
PLAN: Final = "plan.bin"
MANIFEST: Final = "manifest.json"
CARD: Final = "MODEL_CARD.md"

_AGAIN: Final = "Export the model again, or fetch it again."

_KEYS: Final = frozenset(
    {"format", "run", "round", "data", "classes", "schema", "components", "private", "temperatures"}
)


class ModelArchiveError(ConsiliumError):
    """A model's files are missing, damaged, altered, or do not belong together. `place` is the file."""

    code = "model-archive"


@dataclass(frozen=True)
class Model:
    """A model and what is needed to use it.

    Attributes:
        plan: of the run that trained it.
        schema: turns raw tables into inputs.
        components: component to float32[size], flat in layout order; those that are not shared stay with their owner.
        round: the round whose weights these are; 0 is untrained.
        temperatures: subset to the temperature of its classifier, above 0; one per classifier in `components`.
        private: components that are one institution's own, merged in at that institution; not to be passed on.
    """

    plan: Plan
    schema: FeatureSchema
    components: Mapping[str, npt.NDArray[np.float32]]
    round: int
    temperatures: Mapping[str, float]
    private: tuple[str, ...] = ()

    @cached_property
    def layout(self) -> Layout:
        """What the components are made of."""
        return layout(self.plan, self.schema.widths)

    def tensors(self, component: str) -> dict[str, npt.NDArray[np.float32]]:
        """Tensor name (`0.weight`) to a view of its values, in the component's order."""
        return split(self.layout.components[component], self.components[component])


def with_private(
    model: Model, components: Mapping[str, npt.NDArray[np.float32]], temperatures: Mapping[str, float]
) -> Model:
    """A shared model with one institution's own components merged in, for that institution alone.

    Args:
        model: the shared model.
        components: the institution's private components; one that `model` has already is replaced.
        temperatures: subset to temperature, for the classifiers among them; 1.0 where none is given.
    """
    own = {names.component_subset(n) for n in components if names.component_kind(n) == "classifier"}
    merged = {**model.components, **components}
    return replace(
        model,
        components={n: merged[n] for n in model.layout.components if n in merged},
        temperatures={**model.temperatures, **{s: float(temperatures.get(s, 1.0)) for s in own}},
        private=tuple(sorted({*model.private, *components})),
    )


def split(component: Component, vector: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensor name to a view, shaped, of its part of the flat float32[component.size]."""
    parts: dict[str, npt.NDArray[np.float32]] = {}
    start = 0
    for tensor in component.tensors:
        parts[tensor.name] = vector[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
    return parts


def component_digest(vector: npt.NDArray[np.float32]) -> str:
    """SHA-256 of the little-endian bytes of a flat component, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()


def manifest_digest(files: Mapping[str, bytes]) -> str:
    """The name of a packed model: SHA-256 of its manifest, 64 hex digits.

    Raises:
        ModelArchiveError: the manifest is missing.
    """
    return hashlib.sha256(_file(files, MANIFEST)).hexdigest()


def pack(model: Model, figures: Mapping[str, Mapping[str, float]] | None = None, chosen: str = "") -> dict[str, bytes]:
    """`pack_files` with every file as its bytes: for models that fit in memory several times."""
    return {name: whole(data) for name, data in pack_files(model, figures, chosen).items()}


def pack_files(
    model: Model,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    chosen: str = "",
    subgroups: tuple[int, Groups] = (0, {}),
) -> dict[str, bytes | TensorFile]:
    """The model's files, by name; the weights are made as they are written. Equal models have equal bytes.

    Args:
        model: all of it is checked as `unpack` checks it.
        figures: subset to metric to value, of the federation's own validation, for the model card.
        chosen: why this round, for the model card; empty: not said.
        subgroups: the round that counted them last, and its figures, for the model card.

    Raises:
        ModelArchiveError: the parts do not belong together.
    """
    made = model.layout
    _check_components(made, model.components)
    tensors = {
        f"{name}/{part}": values
        for name in sorted(model.components)
        for part, values in split(made.components[name], model.components[name]).items()
    }
    plan = model.plan.to_bytes()
    schema = model.schema.to_bytes()
    manifest = {
        "format": FORMAT,
        "run": digest(plan).hex(),
        "round": model.round,
        "data": model.plan.data,
        "classes": list(model.plan.class_names),
        "schema": hashlib.sha256(schema).hexdigest(),
        "components": {name: component_digest(vector) for name, vector in model.components.items()},
        "private": sorted(model.private),
        "temperatures": {subset: float(value) for subset, value in model.temperatures.items()},
    }
    _check_manifest(manifest, model.plan, made)
    return {
        WEIGHTS: TensorFile(tensors),
        SCHEMA: schema,
        PLAN: plan,
        MANIFEST: _encode(manifest),
        CARD: model_card(model.plan, model.schema, manifest, figures or {}, chosen, subgroups).encode(),
    }


def unpack(files: Mapping[str, bytes], expected: str = "") -> Model:
    """Reads what `pack` wrote; `MODEL_CARD.md` and foreign files are not looked at.

    Args:
        files: file name to bytes.
        expected: the manifest's digest, 64 hex digits, from the run's report; empty: not compared.

    Raises:
        ModelArchiveError: a file is missing or damaged, or does not match the manifest, the plan or `expected`.
        PlanError: `plan.bin` matches the manifest but is not a plan of this release.
        SchemaError: the same of `schema.json`.
    """
    if expected and manifest_digest(files) != expected.lower():
        raise ModelArchiveError(
            f"the manifest's digest is {manifest_digest(files)}, not {expected}.",
            remedy="Fetch the model again: this is another model, or its manifest was altered.",
            place=MANIFEST,
        )
    manifest = _decode(_file(files, MANIFEST))
    plan_bytes, schema_bytes = _file(files, PLAN), _file(files, SCHEMA)
    if digest(plan_bytes).hex() != manifest["run"]:
        raise _altered(PLAN)
    if hashlib.sha256(schema_bytes).hexdigest() != manifest["schema"]:
        raise _altered(SCHEMA)
    plan = Plan.from_bytes(plan_bytes)
    schema = FeatureSchema.from_bytes(schema_bytes)
    if set(schema.modalities) != set(plan.modality_order):
        raise ModelArchiveError("the schema's modalities are not the plan's.", remedy=_AGAIN, place=SCHEMA)
    made = layout(plan, schema.widths)
    _check_manifest(manifest, plan, made)
    components = _components(_file(files, WEIGHTS), made, manifest["components"])
    _check_components(made, components)
    for name, vector in components.items():
        if component_digest(vector) != manifest["components"][name]:
            raise _altered(WEIGHTS, name)
    temperatures = {subset: float(value) for subset, value in manifest["temperatures"].items()}
    return Model(plan, schema, components, manifest["round"], temperatures, tuple(manifest["private"]))


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    data = files.get(name)
    if data is None:
        raise ModelArchiveError(f"{name} is missing.", remedy="Give the whole folder that was exported.", place=name)
    return data


def _altered(file: str, what: str = "the file") -> ModelArchiveError:
    return ModelArchiveError(f"{what} is not what the manifest names: altered or damaged.", remedy=_AGAIN, place=file)


def _encode(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise ModelArchiveError(
                f"the manifest has format {found!r}, not {FORMAT}.",
                remedy="Use the release that exported the model.",
                place=MANIFEST,
            )
        # One encoding, so that one model has one digest.
        if _encode(manifest) != data or set(manifest) != _KEYS:
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelArchiveError(
            "this is not a manifest as `export` writes it.", remedy=_AGAIN, place=MANIFEST
        ) from error
    return manifest


def _check_manifest(manifest: Mapping[str, Any], plan: Plan, made: Layout) -> None:
    digests, temperatures, private = manifest["components"], manifest["temperatures"], manifest["private"]
    sound = (
        type(manifest["round"]) is int
        and 0 <= manifest["round"] <= plan.rounds
        and manifest["data"] == plan.data
        and manifest["classes"] == list(plan.class_names)
        and isinstance(digests, dict)
        and isinstance(temperatures, dict)
        and isinstance(private, list)
        and all(isinstance(name, str) and name in digests for name in private)
        and len(set(private)) == len(private)
    )
    if not sound:
        raise ModelArchiveError(
            "round, classes, data, components, private or temperatures do not fit the plan.",
            remedy=_AGAIN,
            place=MANIFEST,
        )
    unknown = sorted(set(digests) - set(made.components))
    if unknown or not digests:
        what = f"{unknown[0]} is no component of the plan." if unknown else "the model has no components."
        raise ModelArchiveError(what, remedy=_AGAIN, place=MANIFEST)
    subsets = {names.component_subset(n) for n in digests if names.component_kind(n) == "classifier"}
    if set(temperatures) != subsets or not all(
        type(t) is float and math.isfinite(t) and t > 0 for t in temperatures.values()
    ):
        raise ModelArchiveError(
            f"there must be one temperature above 0 for each of: {', '.join(sorted(subsets))}.",
            remedy="Use 1.0 where none was fitted.",
            place=MANIFEST,
        )


def _components(data: bytes, made: Layout, digests: Mapping[str, str]) -> dict[str, npt.NDArray[np.float32]]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelArchiveError("this is not a safetensors file.", remedy=_AGAIN, place=WEIGHTS) from error
    wanted = {f"{name}/{tensor.name}": tensor.shape for name in digests for tensor in made.components[name].tensors}
    if set(tensors) != set(wanted):
        odd = sorted(set(tensors) ^ set(wanted))[0]
        verb = "is missing" if odd in wanted else "is not in the manifest"
        raise ModelArchiveError(f"tensor {odd} {verb}.", remedy=_AGAIN, place=WEIGHTS)
    for name, shape in wanted.items():
        if tensors[name].shape != shape or tensors[name].dtype != np.float32:
            raise ModelArchiveError(
                f"tensor {name} is {tensors[name].dtype}{list(tensors[name].shape)}, not float32{list(shape)}.",
                remedy=_AGAIN,
                place=WEIGHTS,
            )
    return {
        name: np.concatenate([tensors.pop(f"{name}/{t.name}").ravel() for t in made.components[name].tensors])
        for name in made.components
        if name in digests
    }


def _check_components(made: Layout, components: Mapping[str, npt.NDArray[np.float32]]) -> None:
    for name, vector in components.items():
        component = made.components.get(name)
        if component is None or vector.dtype != np.float32 or vector.shape != (component.size,):
            wanted = "no component of the plan" if component is None else f"not float32[{component.size}]"
            raise ModelArchiveError(f"{name} is {wanted}.", remedy=_AGAIN, place=WEIGHTS)
        if not all(np.isfinite(vector[k : k + BLOCK]).all() for k in range(0, len(vector), BLOCK)):
            raise ModelArchiveError(f"{name} holds NaN or infinity.", remedy="Export an earlier round.", place=WEIGHTS)
