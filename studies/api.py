"""A federation on one's own tables, in memory: pandas in, a trained model and its history out.

    from studies.api import Institution, run_federation

    result = run_federation([Institution("north", {"mrna": genes, "clinical": chart}, labels), …])
    result.history; result.predict({"mrna": new_genes}); result.save("model")

Institutions, rounds, sums and training are those of the service (`studies.simulate`); nothing travels, and no
privacy is claimed: all tables lie in one process. docs/python-api.md is the guide.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
from pydantic import ValidationError

from federation import names, plan_check
from federation.plan import Institution as RosterEntry
from federation.plan import Label, LabelClass, Modality, Plan, SecureSumSettings
from federation.plan_problems import PlanError, problems_of
from federation.plan_toml import fill_preset
from federation.tables import RawTable
from institution_node.data import InstitutionData, align
from institution_node.table_files import LabelValueError
from security.errors import ConfigurationError
from security.signing import IdentityKey, public_key_text
from studies.frames import FrameError, agreed_kinds, label_texts, place_of, raw_table, shared_columns
from studies.methods import DGB_PCW, plan_of
from studies.simulate import Record, SimulatedRun, simulate_data, simulate_plainly
from studies.trained_model import TrainedModel, load_model

__all__ = ["FederationResult", "FederationWarning", "Institution", "TrainedModel", "load_model", "run_federation"]

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "calibration_error", "patients")
LOSSES: Final = ("training_loss", "validation_loss", "overfitting", "generalisation", "score", "dogr")


class FederationWarning(UserWarning):
    """The run went on without a modality or an institution."""


@dataclass(frozen=True)
class Institution:
    """One institution and its patients.

    Attributes:
        name: 1 to 63 lower-case letters, digits, `-` and `_`.
        tables: modality to a DataFrame indexed by patient; columns of numbers are numeric, texts, categories and truth
            values categorical. A patient takes part with all of the institution's modalities and a label.
        labels: Series indexed by patient (or a mapping of patients); a gap is a patient who takes no part.
    """

    name: str
    tables: Mapping[str, pd.DataFrame]
    labels: pd.Series | Mapping[str, Any]


@dataclass(frozen=True)
class FederationResult:
    """What a run came to.

    Attributes:
        plan: as it ran; `plan.to_bytes()` is what would be sent.
        model: of the round that validation patients chose, or of the last one, as `evaluation.select` says.
        final: of the last round.
        sat_out: institutions that took no part, since nothing that they own was summed.
        records: of each round, round 0 first, as the coordinator keeps them.
    """

    plan: Plan
    model: TrainedModel
    final: TrainedModel
    sat_out: tuple[str, ...]
    records: tuple[Record, ...] = field(repr=False)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per training round, by number: figures of all validation patients together (`METRICS`; NaN where the
        sums stayed shut), and `exported`, whether the model is of this round."""
        rows = [{m: r.get("metrics", {}).get("all", {}).get(m) for m in METRICS} for r in self.records[1:]]
        index = pd.Index([r["round"] for r in self.records[1:]], name="round")
        frame = pd.DataFrame(rows, index=index, columns=list(METRICS), dtype="float64")
        frame["exported"] = index == self.model.round
        return frame

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Rows (round, subset): mean losses in nats, DGB's figures (`LOSSES`) and the mean PCW weight, `proximity`."""
        rows = {
            (r["round"], subset): {
                **{name: figures[name] for name in LOSSES},
                "proximity": r.get("proximity", {}).get(subset),
            }
            for r in self.records[1:]
            for subset, figures in r.get("blending", {}).items()
        }
        index = pd.MultiIndex.from_tuples(list(rows), names=["round", "subset"]) if rows else None
        return pd.DataFrame(list(rows.values()), index=index, columns=[*LOSSES, "proximity"], dtype="float64")

    def predict(self, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """`model.predict`."""
        return self.model.predict(tables)

    def score(self, tables: Mapping[str, pd.DataFrame], labels: pd.Series | Mapping[str, Any]) -> pd.Series:
        """`model.score`."""
        return self.model.score(tables, labels)

    def save(self, folder: str | Path) -> Path:
        """The model (`TrainedModel.save`), with `history.csv` and `losses.csv` beside it."""
        target = self.model.save(folder)
        self.history.to_csv(target / "history.csv")
        self.losses.to_csv(target / "losses.csv")
        return target


def run_federation(
    institutions: Sequence[Institution],
    *,
    classes: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    rounds: int = 40,
    seed: int = 1,
    masks: bool = False,
    method: str = DGB_PCW,
    hidden: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, Any] | None = None,
    data: Literal["real", "synthetic"] = "real",
    name: str = "own-tables",
    threads: int = 1,
    on_round: Callable[[Record], None] | None = None,
) -> FederationResult:
    """Runs a whole federation in this process.

    The same tables, arguments and seed give the same model, with or without masks.

    Args:
        institutions: at least two; three or more unless `options` lower `secure_sum.k_min`.
        classes: the labels' values in the order of the model's outputs; or class to the values that mean it. None: all
            values that occur, sorted.
        rounds: training rounds.
        seed: of the first weights, splits, batches and dropout.
        masks: True: keys, shares, masks and signatures as in the service. False: the same arithmetic without them,
            several times faster.
        method: of `studies.methods.FEDERATED`: `dgb+pcw`, `dgb`, `cm-fl`, `hgb`.
        hidden: modality to the widths of its encoder's hidden layers; the plan's default where none are given.
        options: what else the plan says (docs/plan-reference.md): `{"training": {"learning_rate": 1e-3}}`, or
            `{"preset": "paper"}`.
        data: what the model's files say that the tables are.
        name: of the run, for people; seeded institutions draw from it too.
        threads: of torch; small models are slower with more than one.
        on_round: told the record of each training round.

    Raises:
        FrameError, PatientIdError, DataColumnError, DataValueError, LabelValueError: a table or a label, and where.
        NoPatientError, OneClassError: an institution has nobody, or only one class, to train on.
        PlanError: names, options or numbers that make no plan.
        StudyError: the run failed.
    """
    entries = tuple(institutions)
    _check_names(entries)
    labels = {each.name: label_texts(each.labels, f"{each.name}, labels") for each in entries}
    plan_label = _label(classes, labels)
    tables, modalities = _tables(entries, hidden or {})
    keys = {each.name: IdentityKey.generate() for each in entries}
    fixed = {
        "federation": "in-memory",
        "run": name,
        "seed": seed,
        "rounds": rounds,
        "data": data,
        "label": plan_label,
        "modalities": modalities,
    }
    plan = plan_of(method, _plan(entries, keys, options or {}, fixed))
    plan_check.check(plan)
    if plan.differential_privacy.enabled:
        raise ConfigurationError(
            "a run in memory keeps no privacy ledger, so it cannot be differentially private.",
            remedy="Leave differential_privacy off here; nodes have a ledger.",
            place="differential_privacy.enabled",
        )
    patients = {
        each.name: _patients(each.name, plan, tables[each.name], labels[each.name], plan_label) for each in entries
    }

    def told(_: object, record: Record) -> None:
        if on_round is not None:
            on_round(record)

    heard = told if on_round is not None else None
    with _threads(threads):
        if masks:
            run = simulate_data(plan, patients, seed, heard, keys)
        else:
            run = simulate_plainly(plan, patients, seed, heard)
    _warn(run)
    return FederationResult(run.plan, TrainedModel(run.exported), TrainedModel(run.final), run.sat_out, run.records)


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warn(run: SimulatedRun) -> None:
    encoders = [names.encoder(modality) for modality in run.plan.modality_order]
    shut = [names.component_subset(encoder) for encoder in encoders if encoder not in run.final.components]
    if shut or run.sat_out:
        warnings.warn(
            f"not trained together: {', '.join(shut) or 'nothing'}; "
            f"took no part: {', '.join(run.sat_out) or 'nobody'}. "
            "A modality needs k_min institutions, and its holders are those of another modality or differ from them by "
            "at least max_colluders + 2 (docs/python-api.md).",
            FederationWarning,
            stacklevel=3,
        )


def _check_names(institutions: Sequence[Institution]) -> None:
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


def _label(
    classes: Sequence[Any] | Mapping[str, Sequence[Any]] | None, labels: Mapping[str, Mapping[str, str]]
) -> Label:
    if classes is None:
        classes = sorted({text for own in labels.values() for text in own.values()})
    if not isinstance(classes, Mapping):
        classes = {str(each): (each,) for each in classes}
    made = tuple(LabelClass(name=str(each), values=tuple(map(str, values))) for each, values in classes.items())
    return Label(column="label", classes=made)


def _tables(
    institutions: Sequence[Institution], hidden: Mapping[str, Sequence[int]]
) -> tuple[dict[str, dict[str, RawTable]], tuple[Modality, ...]]:
    """Institution to modality to its table; and the plan's modalities, in order of first appearance."""
    order = tuple(dict.fromkeys(modality for each in institutions for modality in each.tables))
    for modality in hidden:
        if modality not in order:
            raise ConfigurationError(
                f"no institution has a table {modality!r}.", remedy=f"Use: {', '.join(order)}.", place="hidden"
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
        layers = {"hidden": tuple(hidden[modality])} if modality in hidden else {}
        modalities.append(Modality(name=modality, columns=columns, **layers))
    return tables, tuple(modalities)


def _plan(
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


def _patients(
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
