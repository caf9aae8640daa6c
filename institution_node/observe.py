"""What a node does, as metrics, log lines and audit entries show it. Nothing here is ever sent to the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Final

import structlog

from federation.layout import layout
from federation.plan import Plan
from federation.rounds import UPDATES
from institution_node.link import CoordinatorRefusalError, LinkError, LinkWatcher
from institution_node.node import NodeWatcher
from institution_node.policy import PolicyRefusal
from institution_node.recorder import Recorder
from monitoring import metrics as m
from security.audit import AuditLog, FieldValue
from security.errors import ConsiliumError, ProtocolError

_WORD_BYTES: Final = 4


class NodeObserver(NodeWatcher, LinkWatcher, Recorder):
    """Hears the loop, the session, the link and the work of one node.

    Args:
        institution: this one.
        shareable: the metrics that may leave the hospital.
        local: those that may not.
        audit: the log of who did what; an entry that cannot be written stops the step that it is about.
        now: the time, timezone-aware.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        institution: str,
        shareable: m.NodeShareableMetrics,
        local: m.NodeLocalMetrics,
        audit: AuditLog,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = structlog.get_logger("consilium.node").bind(institution=institution)
        self._shareable, self._local = shareable, local
        self._audit, self._now, self._clock = audit, now, clock
        self._subject: dict[str, FieldValue] = {}  # run and plan, for audit entries
        self._phase, self._since = "", clock()
        self._turn = Lock()  # uploads are made in a thread of gRPC's
        self._away = False
        shareable.set(m.NODE_UP, 1)

    def started(self, version: str, fingerprint: str, expiry: datetime) -> None:
        """The node runs, with this certificate."""
        self._shareable.set(m.NODE_INFO, 1, version=version)
        self.certified(expiry)
        self._record("node-started", version=version, fingerprint=fingerprint)
        self._log.info("node started", version=version, fingerprint=fingerprint, not_after=expiry.isoformat())

    def certified(self, expiry: datetime) -> None:
        """When the certificate in use ends."""
        self._shareable.set(m.NODE_CERTIFICATE_EXPIRY, expiry.timestamp())

    def stopped(self) -> None:
        """The node ends."""
        self._shareable.set(m.NODE_UP, 0)
        self._record("node-stopped")
        self._log.info("node stopped")

    # -- the loop -----------------------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        """See NodeWatcher."""
        if name == self._phase:
            return
        self._phase, self._since = name, self._clock()
        self._shareable.choose(m.NODE_PHASE, phase=name)
        self._shareable.add(m.NODE_PHASES_ENTERED, phase=name)
        self._log.debug("phase", phase=name)

    def accepted(self, plan: Plan, run: bytes) -> None:
        """See NodeWatcher."""
        made = layout(plan, {each.name: 1 for each in plan.modalities})  # names do not depend on widths
        for metric in (
            *(m.NODE_LOSS, m.NODE_UPDATE_NORM, m.NODE_PROXIMITY, m.NODE_BLENDING_WEIGHT),
            *(m.NODE_AGGREGATION_WEIGHT, m.NODE_CLIPPED),
        ):
            self._local.forget(metric)
        self._local.allow("component", made.components)
        self._local.allow("subset", made.subsets)
        self._subject = {"run": plan.run, "plan": run.hex()}
        self._record("plan-accepted")
        self._log.info("plan accepted", run=plan.run, digest=run.hex(), data=plan.data, rounds=plan.rounds)

    def rejected(self, run: bytes, error: ConsiliumError) -> None:
        """See NodeWatcher."""
        rule = error.rule.replace("_", "-") if isinstance(error, PolicyRefusal) else error.code
        self._subject = {"plan": run.hex()}
        self._shareable.add(m.NODE_REFUSALS, reason=rule)
        self._record("plan-refused", rule=rule)
        # The policy's words name rules and digests; those of other errors may quote what a table says.
        remedy = error.remedy if isinstance(error, PolicyRefusal) else "Run `consilium-node check` to see why."
        self._log.warning("plan refused", digest=run.hex(), rule=rule, place=error.place[:300], remedy=remedy[:300])

    def data_changed(self, run: bytes, before: str, now: str, confirmed: bool) -> None:
        """See NodeWatcher."""
        self._record("data-changed", plan=run.hex(), data_digest=now, confirmed=confirmed)
        self._log.warning("the tables changed since the run began", digest=run.hex(), fingerprint=now)

    def enrolled(self, run: bytes) -> None:
        """See NodeWatcher."""
        self._record("enrolled")
        self._log.info("enrolled", digest=run.hex())

    def sits_out(self, run: bytes, code: str) -> None:
        """See NodeWatcher."""
        self._record("sits-out", plan=run.hex(), reason=_code(code))
        self._log.warning("this institution sits the run out", digest=run.hex(), reason=_code(code))

    def withdrawn(self, round_: int, attempt: int, code: str) -> None:
        """See NodeWatcher."""
        self._record("withdrawn", round=round_, attempt=attempt, reason=_code(code))
        self._log.warning("withdrew from the attempt", round=round_, attempt=attempt, reason=_code(code))

    def failed(self, error: ConsiliumError) -> None:
        """See NodeWatcher."""
        self._shareable.add(m.NODE_REFUSALS, reason=error.code)
        self._tell("a step failed", error)

    def ended(self, run: bytes, status: str) -> None:
        """See NodeWatcher."""
        self._record("run-ended", plan=run.hex(), reason=_code(status))
        self._log.info("run ended", digest=run.hex(), status=status)

    # -- the session --------------------------------------------------------------------------------------------

    def joined(self, round_: int, attempt: int) -> None:
        """See Watcher."""
        self._shareable.set(m.NODE_CURRENT_ROUND, round_)
        self._record("joined", round=round_, attempt=attempt)
        self._log.info("joined an attempt", round=round_, attempt=attempt)

    def signed(self, sum_name: str, alive: int, gone: int) -> None:
        """See Watcher."""
        self._record("signed", sum=sum_name, count=alive)
        self._log.info("signed a survivor list", sum=sum_name, survivors=alive, dropouts=gone)

    def similar_cohort(self, parts: tuple[str, ...]) -> None:
        """See Watcher."""
        self._local.add(m.NODE_SIMILAR_COHORTS)
        self._record("similar-cohort", count=len(parts))
        self._log.warning("signs for a cohort that differs little from a recent one", components=len(parts))

    def complained(self, errors: tuple[ProtocolError, ...]) -> None:
        """See Watcher."""
        for error in errors:
            self._record("bad-share", reason=_code(error.code), culprits=error.culprits)
            self._log.warning("a share does not open", code=error.code, culprits=error.culprits)

    def refused(self, error: ConsiliumError) -> None:
        """See Watcher."""
        self._shareable.add(m.NODE_REFUSALS, reason=error.code)
        self._record("refused", reason=_code(error.code), culprits=error.culprits)
        self._tell("refused", error)

    # -- the work: local figures --------------------------------------------------------------------------------

    def trained(self, round_: int, mean_loss: float, factors: Mapping[str, float]) -> None:
        """See Recorder."""
        self._local.observe(m.NODE_TRAINING_SECONDS, self._clock() - self._since)
        for component, factor in factors.items():
            kind, _, subset = component.partition("/")
            if kind == "classifier":
                self._local.set(m.NODE_BLENDING_WEIGHT, factor, subset=subset)

    def updated(self, component: str, norm: float, clipped: int) -> None:
        """See Recorder."""
        self._local.set(m.NODE_UPDATE_NORM, norm, component=component)
        self._local.add(m.NODE_CLIPPED, clipped, component=component)

    def weighed(self, component: str, alpha: float) -> None:
        """See Recorder."""
        self._local.set(m.NODE_AGGREGATION_WEIGHT, alpha, component=component)

    def evaluated(self, subset: str, training: float, validation: float | None) -> None:
        """See Recorder."""
        self._local.set(m.NODE_LOSS, training, subset=subset, part="training")
        if validation is not None:
            self._local.set(m.NODE_LOSS, validation, subset=subset, part="validation")

    def near(self, subset: str, proximity: float) -> None:
        """See Recorder."""
        self._local.set(m.NODE_PROXIMITY, proximity, subset=subset)

    def spent(self, epsilon: float, limit: float) -> None:
        """See Recorder."""
        self._local.set(m.NODE_EPSILON_SPENT, epsilon)
        self._local.set(m.NODE_EPSILON_LIMIT, limit)

    # -- the link -----------------------------------------------------------------------------------------------

    def sent(self, kind: str, count: int) -> None:
        """See LinkWatcher."""
        self._shareable.add(m.NODE_SENT_BYTES, count, kind=kind)

    def received(self, kind: str, count: int) -> None:
        """See LinkWatcher."""
        self._shareable.add(m.NODE_RECEIVED_BYTES, count, kind=kind)

    def answered(self) -> None:
        """See LinkWatcher."""
        self._shareable.set(m.NODE_LAST_CONTACT, self._now().timestamp())
        if self._away:
            self._away = False
            self._log.info("the coordinator answers again")

    def unreachable(self, error: LinkError, wait_seconds: float) -> None:
        """See LinkWatcher."""
        if not self._away:  # once, not at every attempt of a night
            self._away = True
            self._log.warning("the coordinator does not answer", code=error.code, wait_seconds=wait_seconds)

    def masked(self, sum_name: str, count: int, seconds: float) -> None:
        """See LinkWatcher."""
        if sum_name == UPDATES and seconds > 0:  # all of it is words of 32 bits
            self._shareable.set(m.NODE_MASKED_WORDS, count / _WORD_BYTES / seconds)

    # -- inside -------------------------------------------------------------------------------------------------

    def _tell(self, event: str, error: ConsiliumError) -> None:
        said = {"place": error.place[:300]} if error.place else {}
        if isinstance(error, CoordinatorRefusalError):
            said["reason"] = _code(error.reason)
        self._log.warning(event, exc_info=error, **said)
        if error.__cause__ is not None:
            self._log.warning("its cause", exc_info=error.__cause__)

    def _record(self, event: str, **fields: FieldValue) -> None:
        with self._turn:
            self._audit.append(event, {**self._subject, **fields}, self._now())


def _code(code: str) -> str:
    """A code from the coordinator, fit for the audit log."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in code.lower())[:63].strip("-")
    return kept if kept[:1].isalpha() else "other"
