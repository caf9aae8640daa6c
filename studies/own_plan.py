"""From one's own tables to a plan and to patients as a node holds them: what `studies.api` stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pydantic import ValidationError

from federation import plan_check
from federation.plan import EncoderOption, Label, LabelClass, Modality, Plan, SecureSumSettings
from federation.plan import Institution as RosterEntry
from federation.plan_problems import PlanError, problems_of
from federation.plan_toml import fill_preset
from federation.tables import RawTable
from institution_node.data import InstitutionData, align
from institution_node.encoder_kinds import EncoderFactory
from institution_node.own_encoder import declare
from institution_node.subgroups import counts_by, groups_in
from institution_node.table_files import LabelValueError
from security.errors import ConfigurationError
from security.signing import IdentityKey, public_key_text
from studies.frames import FrameError, Kind, agreed_kinds, place_of, raw_table, shared_columns
from studies.methods import changed


@dataclass(frozen=True)
class Institution:
    """One institution and its patients.

    Attributes:
        name: 1 to 63 lower-case letters, digits, `-` and `_`.
        tables: modality to a DataFrame indexed by patient; columns of numbers are numeric, texts, categories and truth
            values categorical. A patient takes part with all of the institution's modalities and a label.
        labels: Series indexed by patient (or a mapping of patients); a gap is a patient who takes no part.
        people: the columns that `evaluation.subgroups` counts by, indexed by patient; needed only there.
    """

    name: str
    tables: Mapping[str, pd.DataFrame]
    labels: pd.Series | Mapping[str, Any]
    people: pd.DataFrame | None = None


@dataclass(frozen=True)
class Encoder:
    """An encoder of one's own for a modality (docs/encoders.md).

    Attributes:
        kind: its name, as a plan would write it.
        factory: number of inputs, encoding width, options → a torch module of patients × inputs to patients × width.
        options: what the factory is told: numbers and texts.
    """

    kind: str
    factory: EncoderFactory
    options: Mapping[str, float | str] = field(default_factory=dict)


def check_institutions(institutions: Sequence[Institution]) -> None:
    seen: set[str] = set()
    for each in institutions:
        if not isinstance(each, Institution):
            raise FrameError(f"this is a {type(each).__name__}.", remedy="Give a list of `studies.api.Institution`.")
        if each.name in seen:
            raise FrameError("the institution comes twice.", remedy="Merge its tables.", place=each.name)
        seen.add(each.name)
        if not each.tables:
            raise FrameError(
                "the institution has no table.", remedy="Give it one of each modality it holds.", place=each.name
            )


def label_of(
    classes: Sequence[Any] | Mapping[str, Sequence[Any]] | None, labels: Mapping[str, Mapping[str, str]]
) -> Label:
    if classes is None:
        classes = sorted({text for own in labels.values() for text in own.values()})
    if not isinstance(classes, Mapping):
        classes = {str(each): (each,) for each in classes}
    made = tuple(LabelClass(name=str(each), values=tuple(map(str, values))) for each, values in classes.items())
    return Label(column="label", classes=made)


def read_tables(
    institutions: Sequence[Institution], hidden: Mapping[str, Sequence[int]], encoders: Mapping[str, Encoder]
) -> tuple[dict[str, dict[str, RawTable]], tuple[Modality, ...]]:
    """Institution to modality to its table; and the plan's modalities, in order of first appearance."""
    order = tuple(dict.fromkeys(modality for each in institutions for modality in each.tables))
    for argument, named in (("hidden", hidden), ("encoders", encoders)):
        for modality in named:
            if modality not in order:
                raise ConfigurationError(
                    f"no institution has a table {modality!r}.", remedy=f"Use: {', '.join(order)}.", place=argument
                )
    tables: dict[str, dict[str, RawTable]] = {each.name: {} for each in institutions}
    modalities: list[Modality] = []
    for modality in order:
        frames = {each.name: each.tables[modality] for each in institutions if modality in each.tables}
        kinds = agreed_kinds(modality, frames)
        read = {name: raw_table(frame, kinds, place_of(name, modality)) for name, frame in frames.items()}
        for name, table in read.items():
            tables[name][modality] = table
        columns = shared_columns(modality, read)
        layers = tuple(hidden.get(modality, Modality.model_fields["hidden"].default))
        modalities.append(Modality(name=modality, columns=columns, hidden=layers))
    return tables, tuple(modalities)


def with_encoders(plan: Plan, encoders: Mapping[str, Encoder]) -> Plan:
    """The plan with its encoders of other kinds declared."""
    for name, encoder in encoders.items():
        if any(other.kind == encoder.kind and other.factory is not encoder.factory for other in encoders.values()):
            raise ConfigurationError(
                f"two factories are called {encoder.kind!r}.",
                remedy="Give each its own kind.",
                place=f"encoders, {name}",
            )
    modalities = []
    for modality in plan.modalities:
        if modality.name in encoders:
            encoder = encoders[modality.name]
            inputs, width = modality.widest_input, plan.model.encoding_width
            tensors = declare(encoder.factory, inputs, width, encoder.options, encoder.kind)
            options = tuple(
                EncoderOption(name=n, text=v) if isinstance(v, str) else EncoderOption(name=n, number=float(v))
                for n, v in encoder.options.items()
            )
            named = {"kind": encoder.kind, "options": options, "tensors": tensors}
            modality = modality.model_copy(update=named)
        modalities.append(modality)
    return changed(plan, {"modalities": tuple(modalities)}) if encoders else plan


def plan_from(
    institutions: Sequence[Institution],
    keys: Mapping[str, IdentityKey],
    options: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Plan:
    """The plan, as its author would write it: `fixed` beside the tables of `options`."""
    for table in options:
        if table in fixed or table not in Plan.model_fields or table == "institutions":
            known = ", ".join(n for n in Plan.model_fields if n not in fixed and n != "institutions")
            raise ConfigurationError(
                f"{table!r} is no option.", remedy=f"Use: {known}; other things are arguments.", place="options"
            )
    values: dict[str, Any] = {**fixed, **{name: _as_tuples(value) for name, value in options.items()}}
    order = [modality.name for modality in fixed["modalities"]]
    values["institutions"] = tuple(
        RosterEntry(
            name=each.name,
            key=public_key_text(keys[each.name].public),
            modalities=tuple(m for m in order if m in each.tables),
        )
        for each in institutions
    )
    sums = values.get("secure_sum", {})
    if isinstance(sums, Mapping):
        colluders = sums.get("max_colluders", SecureSumSettings.model_fields["max_colluders"].default)
        least = plan_check.minimum_threshold(len(institutions), colluders) if isinstance(colluders, int) else 1
        values["secure_sum"] = {"threshold": least, **sums}
    fill_preset(values)
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise PlanError(problems_of(error, Plan)) from None


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(_as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def aligned_patients(
    institution: str, plan: Plan, tables: Mapping[str, RawTable], labels: Mapping[str, str], label: Label
) -> InstitutionData:
    place = f"{institution}, labels"
    meaning = {value: k for k, each in enumerate(label.classes) for value in each.values}
    for text in labels.values():
        if text not in meaning:
            accepted = "; ".join(f"{each.name}: {', '.join(each.values)}" for each in label.classes)
            raise LabelValueError(
                f"{text[:24]!r} is no value of a class.",
                remedy=f"Use one of ({accepted}), or None for a patient who takes no part; or name more `classes`.",
                place=place,
            )
    ordered = {m: tables[m] for m in plan.modality_order if m in tables}
    return align(ordered, {patient: meaning[text] for patient, text in labels.items()}, plan.class_names, place)


def with_groups(data: InstitutionData, plan: Plan, institution: Institution) -> InstitutionData:
    """The patients with the groups that the plan counts them by; raises as `raw_table` and `groups_in` do."""
    attributes, place = counts_by(plan, institution.name), place_of(institution.name, "people")
    kinds: dict[str, Kind] = {a.column: "categorical" if a.categories else "numeric" for a in attributes}
    table = RawTable((), {}, {}) if institution.people is None else raw_table(institution.people, kinds, place)
    return data.with_subgroups(groups_in(table, attributes, data.ids, institution.name, place))
