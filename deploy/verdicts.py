"""What a summary's numbers say, as sentences made from them. Pure; no claim stands here that a number could refute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from deploy.summary import ALL, ALONE, COHORT_ONLY, CONSTANT, METRICS, OURS, PLAIN, POOLED, Spread, Summary

METHOD_NAMES: Final = {
    OURS: "DGB + PCW",
    PLAIN: "CM-FL",
    ALONE: "Each alone",
    POOLED: "All data pooled",
    CONSTANT: "Constant guess",
    COHORT_ONLY: "Cancer type alone",
}
METHOD_NOTES: Final = {
    OURS: "this federation: blending by modality, weighting by proximity",
    PLAIN: "conventional multi-modal federated learning, averaged by size",
    ALONE: "each institution on its own patients and modalities; mean over institutions",
    POOLED: "every patient in one place: what sharing the data itself would give, without privacy",
    CONSTANT: "always the most common stage",
    COHORT_ONLY: "the most common stage of the patient's cancer type, no measurements",
}
METRIC_NAMES: Final = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}

Outcome = Literal["above", "within, above", "equal", "within, below", "below", "unknown"]


@dataclass(frozen=True)
class Comparison:
    """`dgb+pcw` against another method, in one metric and cohort.

    Attributes:
        ours, other: means and spreads.
        gap: mean difference; positive: ours is higher.
        spread: how far the difference varies between seeds; None with one seed.
        paired: whether `spread` is that of the paired differences, else the larger of both methods' own.
        higher, seeds: in how many of how many seeds ours is higher; 0 of 0 where that is not known.
    """

    metric: str
    ours: Spread
    other: Spread
    gap: float
    spread: float | None
    paired: bool
    higher: int
    seeds: int

    @property
    def outcome(self) -> Outcome:
        """Whether the gap exceeds the spread, and on which side."""
        if abs(self.gap) < 5e-7:
            return "equal"
        if self.spread is None:
            return "unknown"
        beyond = abs(self.gap) > self.spread
        if self.gap > 0:
            return "above" if beyond else "within, above"
        return "below" if beyond else "within, below"


def compare(summary: Summary, other: str, metric: str, cohort: str = ALL) -> Comparison | None:
    """The comparison, or None where one of both has no such figure."""
    a, b = summary.spread(OURS, metric, cohort), summary.spread(other, metric, cohort)
    if a is None or b is None or a.mean is None or b.mean is None:
        return None
    paired = summary.differences.get(other, {}).get(cohort, {}).get(metric)
    if paired is not None and paired.mean is not None:
        return Comparison(metric, a, b, paired.mean, paired.std, True, paired.higher, paired.seeds)
    spread = None if a.std is None or b.std is None else max(a.std, b.std)
    return Comparison(metric, a, b, a.mean - b.mean, spread, False, 0, 0)


def value_text(metric: str, value: float | None) -> str:
    """61.2% for an accuracy, 0.634 for an AUROC, – for none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if metric == "auroc" else f"{value * 100:.1f}%"


def gap_text(metric: str, gap: float) -> str:
    """A difference without its sign: 1.8 points, or 0.018."""
    return f"{abs(gap):.3f}" if metric == "auroc" else f"{abs(gap) * 100:.1f} points"


def sentence(summary: Summary, other: str, metric: str, cohort: str = ALL) -> str:
    """One honest sentence on `dgb+pcw` against another method; empty where there is nothing to compare."""
    c = compare(summary, other, metric, cohort)
    if c is None:
        return ""
    name = METRIC_NAMES[metric]
    ours, theirs = METHOD_NAMES[OURS], METHOD_NAMES.get(other, other)
    means = f"{name[0].upper()}{name[1:]}: {value_text(metric, c.ours.mean)} for {ours}, "
    means += f"{value_text(metric, c.other.mean)} for {theirs}; "
    if c.outcome == "equal":
        return f"{means}no difference."
    means += f"{ours} is {gap_text(metric, c.gap)} {'higher' if c.gap > 0 else 'lower'} on average"
    if c.seeds:
        means += f", higher in {c.higher} of {c.seeds} {'seed' if c.seeds == 1 else 'seeds'}"
    if c.spread is None:
        return f"{means}. One seed has no spread: this says nothing about another split of the patients."
    kind = "the difference varies by" if c.paired else "the methods themselves vary by up to"
    between = f"{kind} ±{gap_text(metric, c.spread)} between seeds"
    if c.outcome in ("above", "below"):
        return f"{means}. That exceeds the spread ({between})."
    return f"{means}. That does not exceed the spread ({between}): no difference is shown."


def headline(summary: Summary) -> str:
    """The main comparison in one sentence: `dgb+pcw` against `cm-fl`, over all patients, in the three metrics."""
    found = {m: c.outcome for m in METRICS if (c := compare(summary, PLAIN, m)) is not None}
    if not found:
        return "This run has no comparison with conventional federated learning."
    ours, theirs = METHOD_NAMES[OURS], METHOD_NAMES[PLAIN]
    if "unknown" in found.values():
        return f"With one seed there is no spread, so this run cannot tell {ours} from {theirs}."
    parts = []
    for words, wanted in (
        ("higher by more than the spread between seeds in", {"above"}),
        ("lower by more than the spread between seeds in", {"below"}),
        ("not distinguishable in", {"within, above", "within, below", "equal", "unknown"}),
    ):
        names = [METRIC_NAMES[m] for m, outcome in found.items() if outcome in wanted]
        if names:
            parts.append(f"{words} {_listed(names)}")
    against = f"Over {summary.seeds} seeds, against conventional federated learning ({theirs})"
    return f"{against}, {ours} is {'; '.join(parts)}."


def cautions(summary: Summary) -> list[str]:
    """What keeps a reader from taking the figures for more than they are."""
    found = []
    ours = summary.spread(OURS, "accuracy")
    for baseline in (CONSTANT, COHORT_ONLY):
        base = summary.spread(baseline, "accuracy")
        if base is None or ours is None or base.mean is None or ours.mean is None:
            continue
        gap = ours.mean - base.mean
        relation = "reaches" if abs(gap) < 5e-7 else "stays below" if gap < 0 else "exceeds"
        by = f" by {gap_text('accuracy', gap)}" if relation != "reaches" else ""
        found.append(
            f"{METHOD_NAMES[baseline]} ({METHOD_NOTES[baseline]}) has an accuracy of "
            f"{value_text('accuracy', base.mean)}; the federation's model {relation} it{by}."
        )
    auroc = summary.spread(OURS, "auroc")
    if auroc is not None and auroc.mean is not None and auroc.std is not None and auroc.mean - auroc.std <= 0.5:
        found.append(f"An AUROC of {auroc.mean:.3f} ± {auroc.std:.3f} cannot be told from 0.5, the toss of a coin.")
    if summary.seeds < 10:
        seeds = "One seed" if summary.seeds == 1 else f"{summary.seeds} seeds"
        found.append(f"{seeds} can show large effects only: a repeated split of so few patients moves every figure.")
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
