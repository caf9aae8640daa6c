"""A run, as metrics, log lines, events and audit entries show it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from coordinator.failpoints import hit
from coordinator.folding import FoldJob
from coordinator.observer import Observer
from coordinator.records import Recorder
from coordinator.results import RoundStatistics
from federation.plan import Plan
from federation.rounds import OTHER, SETUP_SUMS, TRAINING_SUMS, Cohorts
from federation.subgroups import groups_of
from monitoring import metrics as m

_PHASES: Final = frozenset(m.PHASES)
_FAILPOINTS: Final = {"shares": "after-keys", "signatures": "after-uploads"}
_SCORES: Final = {
    "accuracy": m.ACCURACY,
    "balanced_accuracy": m.BALANCED_ACCURACY,
    "macro_f1": m.MACRO_F1,
    "auroc": m.AUROC,
    "calibration_error": m.CALIBRATION_ERROR,
}
_OF_GROUPS: Final = {"balanced_accuracy": m.SUBGROUP_BALANCED_ACCURACY, "auroc": m.SUBGROUP_AUROC}
ALL: Final = "all"


class RunObserver(Observer):
    """Tells of one run.

    Args:
        run: its digest, hex.
        plan: its plan.
        metrics: the coordinator's.
        recorder: events and audit.
        committed: called with the record of each round that is committed.
        now: wall clock, Unix seconds.
    """

    def __init__(
        self,
        run: str,
        plan: Plan,
        metrics: m.CoordinatorMetrics,
        recorder: Recorder,
        committed: Callable[[str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._plan, self._metrics, self._recorder = run, plan, metrics, recorder
        self._on_committed, self._now = committed, now
        self._log = structlog.get_logger("consilium.coordinator.run").bind(run=plan.run)
        self._joined: set[str] = set()
        self._listed = False
        self._fold_seconds = 0.0
        made = Cohorts(plan).ownership
        metrics.allow("institution", plan.roster)
        metrics.allow("subset", made.subsets)
        metrics.allow("combination", {*plan.occurring, OTHER, ALL})
        metrics.allow("component", made.components)
        metrics.allow("subgroup", (f"{a.name}: {g}" for a in plan.evaluation.subgroups.by for g in groups_of(a)))
        metrics.allow("sum", (*SETUP_SUMS, *TRAINING_SUMS))
        metrics.forget(m.UPDATE_NORM)
        metrics.set(m.PLANNED_ROUNDS, plan.rounds)
        metrics.set(m.REQUIRED, plan.secure_sum.threshold)
        metrics.set(m.ATTEMPT_LIMIT, attempt_limit(plan))

    def loaded(self, status: str, enrolled: Mapping[str, str]) -> None:
        """The run as it was found."""
        self._joined = {i for i, refusal in enrolled.items() if not refusal}
        self._metrics.set(m.ENROLLED, len(self._joined))
        self._metrics.set(m.LAST_COMMIT, self._now())
        self.status(status)

    def status(self, status: str) -> None:
        """The run's status is this now."""
        self._metrics.choose(m.RUN_STATUS, status=status)

    def event(self, kind: str, **fields: int | str) -> None:
        """See `Observer`."""
        if kind == "waiting-for-room":
            self._metrics.set(m.WAITING_FOR_ROOM, 1)
        self._log.info("run event", kind=kind, **{k: v for k, v in fields.items() if k != "kind"})
        self._recorder.event(self._run, kind, fields)

    def enrolled(self, institution: str, refusal: str) -> None:
        """See `Observer`."""
        if refusal:
            self._joined.discard(institution)
            self._metrics.add(m.REFUSALS, reason=refusal)
            self.event("refused", institution=institution, reason=refusal)
            self._recorder.audit("plan-refused", institution=institution, rule=refusal, plan=self._run)
        else:
            self._joined.add(institution)
            self.event("enrolled", institution=institution)
            self._recorder.audit("institution-enrolled", institution=institution, plan=self._run)
        self._metrics.set(m.ENROLLED, len(self._joined))

    def withdrew(self, institution: str, code: str) -> None:
        """See `Observer`."""
        self._metrics.add(m.REFUSALS, reason=code)
        self.event("withdrew", institution=institution, reason=code)

    def dropped(self, institution: str, phase: str, reason: str) -> None:
        """See `Observer`."""
        self._metrics.add(m.DROPOUTS, phase=phase if phase in _PHASES else "uploads")
        self.event("dropped", institution=institution, phase=phase, reason=reason)

    def phase(self, round_: int, phase: str) -> None:
        """See `Observer`."""
        self._metrics.set(m.CURRENT_ROUND, round_)
        self._metrics.set(m.WAITING_FOR_ROOM, 0)
        sum_name, _, short = phase.rpartition(": ")
        if short == "keys":
            self._listed = False
            self.status("running")
        elif short == "signatures":
            self._listed = True
        self._log.info("phase", round=round_, phase=phase)
        if short in _FAILPOINTS:
            hit(_FAILPOINTS[short], round_, sum_name)
        elif short == "uploads" and not self._listed:
            hit("after-shares", round_, sum_name)

    def phase_took(self, phase: str, seconds: float) -> None:
        """See `Observer`."""
        self._metrics.observe(m.PHASE_SECONDS, max(0.0, seconds), phase=phase if phase in _PHASES else "waiting")

    def attempt_failed(self, round_: int, attempt: int, code: str) -> None:
        """See `Observer`."""
        if not self._listed:
            self._metrics.add(m.ATTEMPTS_BURNT)
        self.event("attempt-failed", round=round_, attempt=attempt, code=code)

    def burnt(self, round_: int, code: str) -> None:
        """See `Observer`."""
        self._metrics.add(m.ROUNDS_BURNT)
        self.event("round-burnt", round=round_, code=code)

    def blamed(self, culprits: tuple[str, ...], code: str) -> None:
        """See `Observer`."""
        self._metrics.add(m.REFUSALS, reason=code)
        self._log.warning("blamed", culprits=culprits, code=code)
        self._recorder.audit("institution-blamed", culprits=culprits, reason=code, plan=self._run)

    def complained(self, institution: str, dealer: str) -> None:
        """See `Observer`."""
        self._metrics.add(m.REFUSALS, reason="share-complaint")
        self.event("share-complaint", institution=institution, dealer=dealer)
        self._recorder.audit("share-complaint", institution=institution, peer=dealer, plan=self._run)

    def expelled(self, institution: str, code: str) -> None:
        """See `Observer`."""
        self.event("expelled", institution=institution, reason=code)
        self.blamed((institution,), code)

    def fold_took(self, seconds: float) -> None:
        """The next sum to be told `opened` took this long to add and unmask."""
        self._fold_seconds = seconds
        self._metrics.observe(m.FOLD_SECONDS, seconds)

    def opened(self, job: FoldJob, masked_words: int) -> None:
        """See `Observer`."""
        if self._fold_seconds > 0:
            self._metrics.set(m.UNMASKED_WORDS, masked_words / self._fold_seconds)
        self._metrics.set(m.PARTICIPANTS, len(job.uploads), sum=job.sum)
        self._log.info("sum opened", sum=job.sum, survivors=len(job.uploads), words=masked_words)

    def moved(self, norms: Mapping[str, float]) -> None:
        """See `Observer`."""
        for component, norm in norms.items():
            self._metrics.set(m.UPDATE_NORM, norm, component=component)

    def committed(self, record: str, result: RoundStatistics | None) -> None:
        """See `Observer`."""
        self._on_committed(record)
        said: dict[str, Any] = json.loads(record)
        alive = {i for s in said["sums"].values() for i in s["alive"]}
        self._metrics.add(m.ROUNDS_COMMITTED)
        self._metrics.set(m.LAST_COMMIT, self._now())
        for institution in self._plan.roster:
            self._metrics.set(m.PARTICIPATING, float(institution in alive), institution=institution)
        self._metrics.choose(m.CHOSEN_BY, criterion=said["selection"]["by"])
        if result is not None:
            self._statistics(result)
        self.event("round-committed", round=said["round"], attempt=said["attempt"], survivors=len(alive))

    def run_ended(self, status: str, reason: str) -> None:
        """See `Observer`."""
        self.status(status)
        self.event("run-ended", status=status, reason=reason)
        self._recorder.audit(f"run-{status}", plan=self._run)

    def _statistics(self, result: RoundStatistics) -> None:
        metrics, figures = self._metrics, result.figures.subsets
        total = sum(f.score for f in figures.values() if f.score is not None)
        for subset, f in figures.items():
            metrics.set(m.LOSS, f.training_loss, subset=subset, part="training")
            metrics.set(m.LOSS, f.validation_loss, subset=subset, part="validation")
            if f.score is not None:
                metrics.set(m.BLENDING_SCORE, f.score, subset=subset)
                if total > 0:
                    metrics.set(m.BLENDING_WEIGHT, f.score / total, subset=subset)
            if f.dogr is not None:
                metrics.set(m.DOGR, f.dogr, subset=subset)
        for subset, proximity in result.proximity.items():
            metrics.set(m.MEAN_PROXIMITY, proximity, subset=subset)
        for row, scores in result.rows.items():
            for name, metric in _SCORES.items():
                value = getattr(scores, name)
                if value is not None:
                    metrics.set(metric, value, combination=row)
        for attribute, groups in result.subgroups.items():
            for group, told in groups.items():
                for name, metric in _OF_GROUPS.items():
                    value = None if told is None else getattr(told.scores, name)
                    if value is not None:
                        metrics.set(metric, value, subgroup=f"{attribute}: {group}")


def attempt_limit(plan: Plan) -> float:
    """Longest that an attempt of a training round may take by its plan's deadlines, seconds."""
    limits = plan.deadlines
    once = 3 * limits.keys  # keys, revealed values, shares
    return once + len(TRAINING_SUMS) * (limits.upload + limits.signatures + limits.openings)
