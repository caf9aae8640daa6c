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
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from federation import names, plan_check
from federation.plan import Plan
from institution_node.own_encoder import check_encoders
from institution_node.trainer import trainer_for
from security.errors import ConfigurationError
from security.signing import IdentityKey
from studies.curves import curves
from studies.frames import label_texts
from studies.methods import DGB_PCW, plan_of
from studies.own_plan import (
    Encoder,
    Institution,
    aligned_patients,
    check_institutions,
    label_of,
    plan_from,
    read_tables,
    with_encoders,
    with_groups,
)
from studies.simulate import Record, SimulatedRun, simulate_data, simulate_plainly
from studies.trained_model import TrainedModel, load_model

__all__ = [
    "Encoder",
    "FederationResult",
    "FederationWarning",
    "Institution",
    "TrainedModel",
    "curves",
    "load_model",
    "run_federation",
]

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "calibration_error", "patients")
LOSSES: Final = ("training_loss", "validation_loss", "overfitting", "generalisation", "score", "dogr")


class FederationWarning(UserWarning):
    """The run went on without a modality or an institution."""


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

    @cached_property
    def subgroups(self) -> pd.DataFrame:
        """Rows (round, attribute, group) of the rounds that count validation patients by subgroup
        (`evaluation.subgroups`): the figures of `history`, but for the calibration; NaN where a group is too small."""
        names = [metric for metric in METRICS if metric != "calibration_error"]
        rows = {
            (r["round"], attribute, group): {name: (told or {}).get(name) for name in names}
            for r in self.records[1:]
            for attribute, groups in r.get("subgroups", {}).items()
            for group, told in groups.items()
        }
        index = pd.MultiIndex.from_tuples(list(rows), names=["round", "attribute", "group"]) if rows else None
        return pd.DataFrame(list(rows.values()), index=index, columns=names, dtype="float64").sort_index()

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
    encoders: Mapping[str, Encoder] | None = None,
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
        encoders: modality to an encoder of one's own, in place of fully connected layers.
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
        EncoderError: an encoder of one's own that cannot be federated, and why.
        StudyError: the run failed.
    """
    entries = tuple(institutions)
    check_institutions(entries)
    labels = {each.name: label_texts(each.labels, f"{each.name}, labels") for each in entries}
    plan_label = label_of(classes, labels)
    own = dict(encoders or {})
    tables, modalities = read_tables(entries, hidden or {}, own)
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
    plan = plan_of(method, with_encoders(plan_from(entries, keys, options or {}, fixed), own))
    plan_check.check(plan)
    if plan.differential_privacy.enabled:
        raise ConfigurationError(
            "a run in memory keeps no privacy ledger, so it cannot be differentially private.",
            remedy="Leave differential_privacy off here; nodes have a ledger.",
            place="differential_privacy.enabled",
        )
    patients = {
        each.name: with_groups(
            aligned_patients(each.name, plan, tables[each.name], labels[each.name], plan_label), plan, each
        )
        for each in entries
    }

    def told(_: object, record: Record) -> None:
        if on_round is not None:
            on_round(record)

    heard = told if on_round is not None else None
    factories = {encoder.kind: encoder.factory for encoder in own.values()}
    make_trainer = partial(trainer_for, encoders=factories)
    with _threads(threads):
        for each in entries:
            check_encoders(plan, each.name, factories)
        if masks:
            run = simulate_data(plan, patients, seed, heard, keys, make_trainer)
        else:
            run = simulate_plainly(plan, patients, seed, heard, make_trainer)
    _warn(run)
    exported, final = (TrainedModel(model, factories) for model in (run.exported, run.final))
    return FederationResult(run.plan, exported, final, run.sat_out, run.records)


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
