"""Which round would be exported, and by what it was chosen. Pure; the same figures always choose the same round.

The plan's metric is of every institution's validation patients or of none (`Part.together`): once one institution has
left for good, it never opens again. So there are three criteria, in this order:

1. `metric`: the plan's `evaluation.metric`. Best is the first round with the highest figure.
2. `loss`: after `evaluation.fallback_after` committed rounds in a row without that figure. Best is the first round with
   the lowest validation losses, among the rounds from then on: figures from before are of other institutions. Two
   rounds are compared by the mean over the subsets whose losses both have; where there are none, the later one wins.
3. `last`: after as many committed rounds in a row without losses either. Each round replaces the one before.

A figure of the metric that opens again counts at once, against the best round by that metric, which is kept meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from federation.plan import Plan
from federation.rounds import ComponentDigests

Criterion = Literal["metric", "loss", "last"]
METRIC: Final = "metric"
LOSS: Final = "loss"
LAST: Final = "last"


@dataclass(frozen=True)
class BestRound:
    """A round that would be exported.

    Attributes:
        round: its number.
        score: what chose it, larger is better: the plan's metric, or the mean validation loss negated; 0 of `last`.
        components: its weights.
        temperatures: by subset.
        losses: validation loss by subset, where losses chose it.
    """

    round: int
    score: float
    components: Mapping[str, ComponentDigests]
    temperatures: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What was chosen so far. Immutable.

    Attributes:
        by: the criterion in force.
        best: best round by the plan's metric; None before its first figure.
        instead: what another criterion chose while it is in force.
        unscored: committed rounds in a row without the plan's metric.
        lossless: committed rounds in a row without any validation loss.
        without_gain: rounds with a figure, in a row, that were no better, by the criterion in force.
    """

    by: Criterion = METRIC
    best: BestRound | None = None
    instead: BestRound | None = None
    unscored: int = 0
    lossless: int = 0
    without_gain: int = 0

    @property
    def chosen(self) -> BestRound | None:
        """The round that would be exported as the best; None where no round has a figure yet."""
        return self.best if self.by == METRIC else self.instead

    def after(self, now: BestRound, score: float | None, losses: Mapping[str, float], patience: int) -> Selection:
        """The selection after one more committed training round.

        Args:
            now: the round with its model; its score and losses are not read.
            score: the plan's metric, larger is better; None where it did not open.
            losses: validation loss by subset, of those that opened in this round.
            patience: the plan's `evaluation.fallback_after`; 0: the metric alone chooses.
        """
        counted = replace(
            self,
            unscored=0 if score is not None else self.unscored + 1,
            lossless=0 if losses else self.lossless + 1,
        )
        if score is not None:
            here = replace(now, score=score, losses={})
            began = replace(counted, without_gain=0) if self.by != METRIC else counted
            return _kept(replace(began, by=METRIC, instead=None), here, self.best is None or score > self.best.score)
        if not patience or counted.unscored < patience:
            return counted
        if losses:
            here = replace(now, score=-_mean(losses, losses), losses=dict(losses))
            if self.by != LOSS:
                return replace(counted, by=LOSS, instead=here, without_gain=0)
            return _kept(counted, here, self.instead is None or _lower(losses, self.instead.losses))
        if counted.lossless < patience:
            return counted
        return replace(counted, by=LAST, instead=replace(now, score=0.0, losses={}), without_gain=0)

    def said(self) -> dict[str, Any]:
        """For the round's record: the criterion in force, and what it chose."""
        return {"by": self.by, "round": None if self.chosen is None else self.chosen.round}


def reason(plan: Plan, by: Criterion) -> str:
    """Why a round was chosen, for people."""
    metric = plan.evaluation.metric.replace("_", " ")
    if by == METRIC:
        return f"the best {metric} on validation patients"
    lost = f"the {metric} did not open for {plan.evaluation.fallback_after} rounds, since an institution was missing"
    if by == LOSS:
        return f"the lowest validation losses of the institutions that were left: {lost}"
    return f"the last round: {lost}, nor did validation losses"


def _kept(selection: Selection, here: BestRound, better: bool) -> Selection:
    if not better:
        return replace(selection, without_gain=selection.without_gain + 1)
    if selection.by == METRIC:
        return replace(selection, best=here, without_gain=0)
    return replace(selection, instead=here, without_gain=0)


def _lower(losses: Mapping[str, float], before: Mapping[str, float]) -> bool:
    both = losses.keys() & before.keys()
    return not both or _mean(losses, both) < _mean(before, both)


def _mean(losses: Mapping[str, float], subsets: Any) -> float:
    chosen = sorted(subsets)  # sums of floats depend on their order
    return sum(losses[s] for s in chosen) / len(chosen)
