"""The model of a run as files, for the operator: summed components only; what stays at institutions is not in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from coordinator.errors import ExportError
from coordinator.selection import BestRound, reason
from coordinator.state import RunState
from federation import names
from federation.features import FeatureSchema
from federation.layout import layout
from federation.model_archive import Model, pack_files
from federation.plan import Plan
from federation.rounds import ComponentDigests
from federation.tensor_file import TensorFile
from federation.vectors import ContentStore, VectorReader

_FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "calibration_error")


@dataclass(frozen=True)
class Choice:
    """The round that is exported.

    Attributes:
        round: its number; 0: the untrained model.
        components: its weights.
        temperatures: by subset; 1.0 where none was fitted.
        reason: why this one, for the model card.
    """

    round: int
    components: Mapping[str, ComponentDigests]
    temperatures: Mapping[str, float]
    reason: str


def choose(plan: Plan, state: RunState, committed: Sequence[int], wanted: int = 0) -> Choice:
    """The round to export.

    Args:
        plan: its `evaluation.select` decides where nothing is wanted.
        state: of the run.
        committed: the committed rounds.
        wanted: a round; 0: the plan's choice.

    Raises:
        ExportError: round 0 is not done, or that round's weights are not kept any more.
    """
    if state.setup is None or not committed:
        raise ExportError("the run has no model yet.", remedy="Wait until its first sums are open.")
    selection = state.selection
    last = Choice(committed[-1], state.components, state.temperatures, "the last round, as the plan asks")
    found = [_chosen(r, reason(plan, selection.by)) for r in (selection.chosen,) if r is not None]
    if not wanted:
        if plan.evaluation.select == "best":
            return found[0] if found else replace(last, reason="the last round, since none had a figure to compare")
        return last
    found += [_chosen(r, "") for r in (selection.best,) if r is not None]
    for choice in (*found, last):
        if choice.round == wanted:
            return replace(choice, reason="the operator asked for this round")
    kept = sorted({c.round for c in (last, *found)})
    raise ExportError(
        f"the weights of round {wanted} are not kept.",
        remedy=f"Export round {' or '.join(map(str, kept))}: the best, and the last.",
    )


def _chosen(best: BestRound, reason: str) -> Choice:
    return Choice(best.round, best.components, best.temperatures, reason)


def hold(content: ContentStore, state: RunState, choice: Choice) -> dict[str, VectorReader]:
    """Opens what `export` reads, by digest: it stays readable when the next round's weights replace it."""
    wanted = {c.weights for c in choice.components.values()}
    if state.setup is not None:
        wanted.add(state.setup.schema)
    return {digest: content.open(digest) for digest in wanted}


def export(
    plan: Plan, state: RunState, choice: Choice, held: Mapping[str, VectorReader], records: Sequence[str]
) -> dict[str, bytes | TensorFile]:
    """The model's files by name (see `federation.model_archive`). Reads all weights twice, and holds none of them.

    Args:
        plan: the plan.
        state: of the run, when `choice` was made.
        choice: from `choose`.
        held: from `hold`.
        records: of the committed rounds, for the model card.

    Raises:
        ExportError: the run has no schema yet.
        StorageError: the weights cannot be read.
        ModelArchiveError: they hold NaN or infinity.
    """
    if state.setup is None:
        raise ExportError("the run has no model yet.", remedy="Wait until its first sums are open.")
    schema = FeatureSchema.from_bytes(bytes(_read(held[state.setup.schema])))
    found = {name: _weights(held[c.weights]) for name, c in choice.components.items()}
    components = {name: found[name] for name in layout(plan, schema.widths).components if name in found}
    subsets = [names.component_subset(n) for n in components if names.component_kind(n) == "classifier"]
    temperatures = {subset: float(choice.temperatures.get(subset, 1.0)) for subset in subsets}
    model = Model(plan, schema, components, choice.round, temperatures)
    groups = _subgroups_at(choice.round, records)
    return pack_files(model, _figures(choice.round, records), choice.reason, groups)


def _weights(reader: VectorReader) -> npt.NDArray[np.float32]:
    return np.frombuffer(reader.view(), np.dtype("<f4")).astype(np.float32, copy=False)


def _read(reader: VectorReader) -> bytearray:
    data = bytearray(reader.length)
    reader.read_into(0, memoryview(data))
    return data


def _figures(round_number: int, records: Sequence[str]) -> dict[str, dict[str, float]]:
    for text in reversed(records):
        record: dict[str, Any] = json.loads(text)
        if record["round"] == round_number:
            rows: dict[str, dict[str, float | None]] = record.get("metrics", {})
            return {
                row: {name: value for name in _FIGURES if (value := scores.get(name)) is not None}
                for row, scores in rows.items()
            }
    return {}


def _subgroups_at(round_number: int, records: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The last round up to this one that counted subgroups, and its figures; 0 and none, where none did."""
    for text in reversed(records):
        record: dict[str, Any] = json.loads(text)
        if record["round"] <= round_number and record.get("subgroups"):
            return int(record["round"]), record["subgroups"]
    return 0, {}
