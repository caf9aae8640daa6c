"""Metrics by subgroup: validation patients counted by sex, by age group, in one secure sum an attribute. Pure.

An *attribute* (sex) divides the patients into *groups* that the plan declares (female, male), and `other` for everybody
else: no value, a value that the plan does not list, and groups that are too small to be counted by themselves. Every
patient is in exactly one group of an attribute, so that the groups of an attribute add up to the counts of all
patients, which the metrics tell anyway. A group that was left out instead would be all patients less the other groups.

Two floors, both of the plan:
- `min_patients`: an institution counts a group with fewer of its validation patients in `other`; and where `other` is
  then smaller than that itself, its next smallest group as well (`held_back`).
- `min_institutions`: with the patients of round 0 it is summed how many institutions count each group. A group that
  fewer have is closed: everybody counts it in `other`; and where `other` had too few as well, one more (`closed`).

So whatever is told of a group is told of at least `min_institutions` institutions with at least `min_patients` patients
each. Under differential privacy there are no floors, since the decision would itself tell of single patients: counts
are noised and charged, and what is below the floors then is not published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from federation import statistics
from federation.evaluation import (
    Scores,
    accuracy,
    auroc,
    balanced_accuracy,
    confusion_counts,
    macro_f1,
    score_histograms,
)
from federation.plan import Plan, Subgroup
from federation.statistic_words import StatisticsEncoding
from security.secure_sum.spec import Sum

OTHER: Final = "other"
PREFIX: Final = "subgroups/"
"""Of the parts that count them."""

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = Mapping[str, npt.NDArray[np.uint64]]


# ------------------------------------------------------------------------------------------------------ what there is


def attribute_of(plan: Plan, name: str) -> Subgroup:
    """The attribute of this name.

    Raises:
        KeyError: the plan has none.
    """
    for each in plan.evaluation.subgroups.by:
        if each.name == name:
            return each
    raise KeyError(name)


def groups_of(attribute: Subgroup) -> tuple[str, ...]:
    """Names of its groups, in order; `other` is the last."""
    if attribute.categories:
        return (*attribute.categories, OTHER)
    cuts = [f"{cut:.10g}" for cut in attribute.cuts]
    between = [f"{low} to {high}" for low, high in pairwise(cuts)]
    return (f"under {cuts[0]}", *between, f"{cuts[-1]} and over", OTHER)


def place_texts(attribute: Subgroup, texts: Sequence[str | None]) -> Int64:
    """int64[n]: index of each patient's group; None, and what the plan does not list, is `other`."""
    place = {category: k for k, category in enumerate(attribute.categories)}
    other = len(attribute.categories)
    return np.array([other if text is None else place.get(text, other) for text in texts], dtype=np.int64)


def place_numbers(attribute: Subgroup, values: npt.NDArray[np.float64]) -> Int64:
    """int64[n]: index of each patient's group; a cut belongs to the group above it, NaN to `other`."""
    places = np.searchsorted(np.array(attribute.cuts), values, side="right").astype(np.int64)
    places[np.isnan(values)] = len(attribute.cuts) + 1
    return places


def due(plan: Plan, round_: int) -> bool:
    """Whether subgroups are counted in a training round: in 1, 1 + every, 1 + 2·every, …, and in the last one."""
    return (round_ - 1) % plan.evaluation.subgroups.every == 0 or round_ == plan.rounds


def contributors(plan: Plan, metric_rows: Iterable[frozenset[str]]) -> dict[str, frozenset[str]]:
    """Attribute to the institutions that count by it: those that it lists, or all whose patients the metrics count."""
    counted = frozenset().union(*metric_rows)
    return {each.name: frozenset(each.institutions) or counted for each in plan.evaluation.subgroups.by}


# ------------------------------------------------------------------------------------------------- the two floors


def held_back(counts: Int64, floor: int) -> Bools:
    """Which groups an institution counts in `other`.

    Args:
        counts: int64[groups], its validation patients; `other` is the last.
        floor: `min_patients`.

    Returns:
        bool[groups]; never for `other` itself. Of what is counted, every group has no patient or at least `floor`;
        `other` as well, unless the institution has fewer in all.
    """
    named, back = counts[:-1], np.zeros(len(counts), dtype=np.bool_)
    back[:-1] = (named > 0) & (named < floor)
    other = int(counts[-1] + named[back[:-1]].sum())
    for k in sorted(np.flatnonzero((named > 0) & ~back[:-1]).tolist(), key=lambda k: (named[k], -k)):
        if not 0 < other < floor:
            break
        back[k], other = True, other + int(named[k])
    return back


def closed(holders: Sequence[int], floor: int) -> Bools:
    """Which groups everybody counts in `other`.

    Args:
        holders: institutions that count each group; `other` is the last.
        floor: `min_institutions`.

    Returns:
        bool[groups]; never for `other` itself. Every other group that stays has at least `floor` institutions, and so
        has `other`, or none.
    """
    counts = np.array(holders, dtype=np.int64)
    shut = np.zeros(len(counts), dtype=np.bool_)
    shut[:-1] = counts[:-1] < floor
    # `other` then has as many institutions as the largest of what is in it, at least.
    inside = int(max(counts[-1], counts[shut].max(initial=0)))
    if 0 < inside < floor and not shut[:-1].all():
        left = np.flatnonzero(~shut[:-1])
        shut[min(left.tolist(), key=lambda k: (counts[k], -k))] = True
    return shut


def moved(places: Int64, into_other: Bools) -> Int64:
    """The places of patients, those of some groups in `other`."""
    return np.where(into_other[places], len(into_other) - 1, places)


def tells(holders: Sequence[int], floor: int) -> bool:
    """Whether any group but `other` stays open."""
    return not bool(closed(holders, floor)[:-1].all())


# ---------------------------------------------------------------------------------------------------- what is summed


def length(plan: Plan, attribute: Subgroup) -> int:
    """Words of an attribute's counts."""
    classes, bins = len(plan.label.classes), plan.evaluation.subgroups.bins
    return len(groups_of(attribute)) * (classes * classes + classes * 2 * bins)


def counts_vector(
    plan: Plan, attribute: Subgroup, places: Int64, labels: Int64, probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """float64[length]: of each group the confusion matrix and, where the plan has `bins`, the score histograms.

    Args:
        plan: the plan.
        attribute: of the plan.
        places: int64[n], of validation patients, as they are counted.
        labels: int64[n].
        probabilities: float64[n, classes].
    """
    bins, parts = plan.evaluation.subgroups.bins, []
    for k in range(len(groups_of(attribute))):
        there = places == k
        parts.append(confusion_counts(labels[there], probabilities[there]).ravel())
        if bins:
            parts.append(score_histograms(labels[there], probabilities[there], bins).ravel())
    return np.concatenate(parts).astype(np.float64)


@dataclass(frozen=True)
class GroupFigures:
    """What is told of a group.

    Attributes:
        scores: of its validation patients; without the calibration error, and without AUROC where `bins` is 0.
        confusion: int64[C, C], true class by predicted class.
    """

    scores: Scores
    confusion: Int64


def figures(plan: Plan, attribute: Subgroup, values: npt.NDArray[np.float64]) -> dict[str, GroupFigures | None]:
    """Group to its figures, of an opened sum; None: it has nobody, or fewer than may be told of.

    Args:
        plan: the plan.
        attribute: of the plan.
        values: float64[length].
    """
    settings, classes = plan.evaluation.subgroups, len(plan.label.classes)
    counts = np.maximum(np.rint(values), 0).astype(np.int64)  # noise cannot make one negative
    found: dict[str, GroupFigures | None] = {}
    for name, row in zip(groups_of(attribute), counts.reshape(len(groups_of(attribute)), -1), strict=True):
        confusion = row[: classes * classes].reshape(classes, classes)
        histograms = row[classes * classes :].reshape(classes, 2, settings.bins)
        patients = int(confusion.sum())
        ranked = auroc(histograms) if settings.bins else None
        scores = Scores(patients, accuracy(confusion), balanced_accuracy(confusion), macro_f1(confusion), ranked, None)
        told = patients > 0 and patients >= settings.min_patients * settings.min_institutions
        found[name] = GroupFigures(scores, confusion) if told else None
    return found


def encoding(part_contributors: int) -> StatisticsEncoding:
    """How counts, and indicators of round 0, become words: whole ones come back exactly."""
    return statistics.count_encoding(part_contributors)


def holders_of(which: Sum, words: Words) -> dict[str, tuple[int, ...]]:
    """Attribute to the institutions that count each of its groups, from the opened sum `weights`; what stayed shut is
    missing."""
    found: dict[str, tuple[int, ...]] = {}
    for part in which.parts:
        if part.name.startswith(PREFIX) and part.name in words:
            counted = statistics.decode(words[part.name], encoding(len(part.contributors)))
            found[part.name.removeprefix(PREFIX)] = tuple(max(0, round(float(n))) for n in counted)
    return found
