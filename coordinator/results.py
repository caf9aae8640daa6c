"""What an opened sum B means: DGB and PCW figures and the federated metrics. Pure: vectors in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from federation import statistics, subgroups
from federation.blending import BlendingFigures, BlendingState, advance
from federation.evaluation import Scores, scores_from_counts
from federation.plan import Plan
from federation.settings import blending_settings, proximity_settings
from federation.statistics import LossRow, MetricRow
from federation.subgroups import GroupFigures
from security.secure_sum.spec import Sum

Words = Mapping[str, npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class RoundStatistics:
    """Everything that a round's sum B tells.

    Attributes:
        blending: DGB's memory after the round.
        figures: DGB's figures by subset.
        proximity: mean `p_i` by subset.
        temperatures: calibration temperature by subset, where losses were opened.
        rows: metrics by row, and over all rows together under `all`; without it where a row stayed shut.
        counts: the summed counts behind the metrics, by row.
        clipped: clipped values by component.
        subgroups: attribute to group to its figures, in rounds that count them; None: not enough patients.
        held: subsets whose model the plan held fixed in this round: their last losses are this round's too.
    """

    blending: BlendingState
    figures: BlendingFigures
    proximity: Mapping[str, float]
    temperatures: Mapping[str, float]
    rows: Mapping[str, Scores]
    counts: Mapping[str, MetricRow]
    clipped: Mapping[str, int]
    held: frozenset[str] = frozenset()
    subgroups: Mapping[str, Mapping[str, GroupFigures | None]] = field(default_factory=dict)


def read_statistics(
    plan: Plan,
    which: Sum,
    alive: frozenset[str],
    words: Words,
    blending: BlendingState,
    clip_groups: Mapping[str, tuple[str, ...]],
) -> RoundStatistics:
    """Decodes an opened sum B and advances DGB by it (METHOD.md, "One round", steps 6 and 7).

    Args:
        plan: the plan.
        which: sum B of the attempt.
        alive: its survivors.
        words: part to opened words; parts that stayed shut are missing.
        blending: DGB's memory before the round.
        clip_groups: of the run (`Cohorts.clip_groups`).
    """
    weight = proximity_settings(plan).largest
    classes, bins = len(plan.label.classes), plan.evaluation.bins
    losses: dict[str, LossRow] = {}
    proximity: dict[str, float] = {}
    counts: dict[str, MetricRow] = {}
    clipped: dict[str, int] = {}
    by_group: dict[str, Mapping[str, GroupFigures | None]] = {}
    for part in which.parts:
        if part.name not in words:
            continue
        kind, _, name = part.name.partition("/")
        n = len(part.contributors)
        if kind == "losses":
            how = statistics.loss_encoding(n, weight, plan.proximity.loss_max)
            losses[name] = LossRow.from_vector(statistics.decode(words[part.name], how))
            proximity[name] = losses[name].sums.weight / max(1, len(part.contributors & alive))
        elif kind == "metrics":
            vector = statistics.decode(words[part.name], statistics.count_encoding(n))
            counts[name] = MetricRow.from_vector(vector, classes, bins)
        elif kind == "subgroups":
            vector = statistics.decode(words[part.name], subgroups.encoding(n))
            by_group[name] = subgroups.figures(plan, subgroups.attribute_of(plan, name), vector)
        else:
            how = statistics.clipped_encoding(n)
            counted = statistics.decode(words[part.name], how)
            clipped |= {c: round(float(value)) for c, value in zip(clip_groups[name], counted, strict=True)}
    state, figures = advance(blending, {s: row.sums for s, row in losses.items()}, blending_settings(plan))
    rows = {name: _scores(row) for name, row in counts.items()}
    # Of other patients than in other rounds, figures would not compare: only where every row is open.
    if counts and all(part.name in words for part in which.parts if part.name.startswith("metrics/")):
        whole = next(iter(counts.values()))
        for row in list(counts.values())[1:]:
            whole = whole + row
        rows["all"] = _scores(whole)
    temperatures = {s: t for s, row in losses.items() if (t := row.temperature) is not None}
    summed = {part.name for part in which.parts}
    held = frozenset(s for s in figures.subsets if f"losses/{s}" not in summed)
    return RoundStatistics(state, figures, proximity, temperatures, rows, counts, clipped, held, by_group)


def _scores(row: MetricRow) -> Scores:
    return scores_from_counts(row.confusion, row.histograms, row.reliability)


def figures_json(figures: BlendingFigures) -> dict[str, Any]:
    """Figures by subset as plain values."""
    return {
        s: {
            "training_loss": f.training_loss,
            "validation_loss": f.validation_loss,
            "overfitting": f.overfitting,
            "generalisation": f.generalisation,
            "score": f.score,
            "dogr": f.dogr,
            "fresh": f.fresh,
        }
        for s, f in figures.subsets.items()
    }


def scores_json(scores: Scores) -> dict[str, Any]:
    """Metrics of one row as plain values."""
    return {
        "patients": scores.patients,
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "auroc": scores.auroc,
        "calibration_error": scores.calibration_error,
    }


def subgroups_json(found: Mapping[str, Mapping[str, GroupFigures | None]]) -> dict[str, Any]:
    """Attribute to group to its metrics and confusion matrix, as plain values; None: not enough patients."""
    return {
        name: {
            group: None if told is None else scores_json(told.scores) | {"confusion": told.confusion.tolist()}
            for group, told in groups.items()
        }
        for name, groups in found.items()
    }


def fresh_losses(result: RoundStatistics) -> dict[str, float]:
    """Validation loss by subset, of those that opened in this round or whose model was held fixed in it."""
    return {s: f.validation_loss for s, f in result.figures.subsets.items() if f.fresh or s in result.held}


def selection_score(result: RoundStatistics, metric: str) -> float | None:
    """What picks the exported round: larger is better; None where the round has no such figure.

    Args:
        result: of the round.
        metric: the plan's `evaluation.metric`; `loss` is the mean validation loss over subsets, negated.
    """
    if metric == "loss":
        losses = fresh_losses(result)
        return -sum(losses.values()) / len(losses) if losses else None
    scores = result.rows.get("all")
    return None if scores is None else getattr(scores, metric)
