"""The report of a run: one HTML file that needs nothing else, for a hospital's engineer and for a researcher.

Everything in it is an aggregate or a plan's public field; no figure of a single institution's patients is taken, so
none can be shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploy import report_plots as plots
from deploy.figures import UNCLAMPED, Record, losses_of_institutions, training_rounds
from deploy.summary import ALL, METRICS, OURS, PLAIN, Summary, summary_from
from deploy.verdicts import METHOD_NAMES, METHOD_NOTES, METRIC_NAMES, cautions, headline, sentence, value_text
from federation.blending import BlendingSettings
from federation.evaluation import confusion_counts
from federation.names import modalities_of
from federation.settings import blending_settings
from federation.subgroups import OTHER
from security.errors import ConsiliumError

if TYPE_CHECKING:
    from federation.plan import Plan

__all__ = ["Institution", "Prediction", "Protection", "ReportError", "ReportInput", "render_report", "write_report"]

METHOD_ORDER: Final = tuple(METHOD_NAMES)
PLAIN_BYTES: Final = 4.0
"""Bytes of a float32: what a parameter costs without any protection."""


class ReportError(ConsiliumError):
    """Input from which no report can be made."""

    code = "report"


@dataclass(frozen=True)
class Institution:
    """One row of the roster; never a patient count."""

    name: str
    combination: str
    """All of its modalities."""
    cohort: str
    combinations: tuple[str, ...] = ()
    """That its patients come in; empty: all have all of its modalities."""

    @property
    def held(self) -> tuple[str, ...]:
        """The combinations that its patients come in."""
        return self.combinations or (self.combination,)


@dataclass(frozen=True)
class Prediction:
    """The final model on one test patient, who is not named.

    Args:
        truth: the class, from 0.
        probabilities: one per class.
        cohort: of the patient.
    """

    truth: int
    probabilities: Sequence[float]
    cohort: str


@dataclass(frozen=True)
class Protection:
    """How the run was protected.

    Args:
        k_min: institutions that a sum needs before it opens.
        max_colluders: institutions that may help the coordinator without breaking it.
        backend: `masks`, `ckks` or `none`.
        epsilon: budget of differential privacy per institution; None: there was none.
        delta: its δ.
    """

    k_min: int
    max_colluders: int
    backend: str = "masks"
    epsilon: float | None = None
    delta: float | None = None

    @staticmethod
    def of(plan: Plan) -> Protection:
        """As a plan has it."""
        s, privacy = plan.secure_sum, plan.differential_privacy
        kept = (privacy.epsilon, privacy.delta) if privacy.enabled else (None, None)
        return Protection(s.k_min, s.max_colluders, s.backend, *kept)


@dataclass(frozen=True)
class ReportInput:
    """Everything that the report shows.

    Args:
        name: of the run.
        summary: the content of `summary.json`.
        records: of the committed rounds, parsed.
        institutions: the roster.
        protection: how the sums were protected.
        classes: names of the label's classes, in order.
        plan_summary: the plan in words or TOML, shown as it is.
        test_curve: method to `{"round": t, metric: {"mean": …, "std": …}}` by round, on the test patients.
        predictions: of the final model, on the test patients.
        blending: the plan's DGB settings, from which the weights follow; plain shares without them.
        created: when, for people.
    """

    name: str
    summary: Mapping[str, Any]
    records: Sequence[Record]
    institutions: Sequence[Institution]
    protection: Protection
    classes: Sequence[str]
    plan_summary: str = ""
    test_curve: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    predictions: Sequence[Prediction] = ()
    blending: BlendingSettings = UNCLAMPED
    created: str = ""

    @staticmethod
    def settings_of(plan: Plan) -> BlendingSettings:
        """The plan's DGB settings, for `blending`."""
        return blending_settings(plan)


def methods_in_order(summary: Summary) -> list[str]:
    """The summary's methods: ours, the others that are named, then any others."""
    known = [m for m in METHOD_ORDER if m in summary.methods]
    return known + sorted(set(summary.methods) - set(known))


def results_table(summary: Summary, cohort: str) -> list[dict[str, Any]]:
    """Rows of one cohort: method, note, and per metric `mean ± std` with the highest mean marked.

    Baselines compete too: where a constant guess has the best accuracy, the table says so.
    """
    best = {}
    for metric in METRICS:
        means = [s.mean for m in summary.methods if (s := summary.spread(m, metric, cohort)) and s.mean is not None]
        # Compared as shown: what prints alike is marked alike.
        best[metric] = max((value_text(metric, v) for v in means), key=lambda t: float(t.rstrip("%")), default="")
    rows = []
    for method in methods_in_order(summary):
        cells = []
        for metric in METRICS:
            found = summary.spread(method, metric, cohort)
            mean = value_text(metric, found.mean if found else None)
            std = value_text(metric, found.std).rstrip("%") if found and found.std is not None else ""
            cells.append({"mean": mean, "std": std, "best": bool(found) and mean == best[metric]})
        rows.append(
            {
                "name": METHOD_NAMES.get(method, method),
                "note": METHOD_NOTES.get(method, ""),
                "ours": method == OURS,
                "cells": cells,
            }
        )
    return rows


def _check(given: ReportInput) -> None:
    classes = len(given.classes)
    if classes < 2:
        raise ReportError(f"{classes} classes.", remedy="Name the classes of the label, in the model's order.")
    for index, prediction in enumerate(given.predictions):
        if len(prediction.probabilities) != classes or not 0 <= prediction.truth < classes:
            raise ReportError(
                f"it has class {prediction.truth} and {len(prediction.probabilities)} probabilities, "
                f"for {classes} classes.",
                remedy="Give each patient's class and a probability for every class.",
                place=f"prediction {index}",
            )


def _cohort_matrices(given: ReportInput, titled: Callable[[str], str]) -> list[str]:
    found = {ALL: list(given.predictions)}
    for prediction in given.predictions:
        found.setdefault(prediction.cohort, []).append(prediction)
    cohorts = [ALL, *sorted(set(found) - {ALL})] if given.predictions else []
    drawn = []
    for cohort in cohorts:
        labels = np.array([p.truth for p in found[cohort]], np.int64)
        probabilities = np.array([p.probabilities for p in found[cohort]], np.float64)
        counts = confusion_counts(labels, probabilities).tolist()
        name = "all" if cohort == ALL else cohort
        drawn.append(plots.confusion(titled(f"Confusion, {name}"), given.classes, counts))
    return drawn


def _facts(given: ReportInput, summary: Summary) -> list[tuple[str, str, str]]:
    combinations = len({c for i in given.institutions for c in i.held})
    return [
        ("Institutions", f"{summary.institutions}", f"in {combinations} combinations of modalities"),
        ("Rounds", f"{summary.rounds}", f"{summary.dropouts} dropouts" if summary.dropouts != 1 else "1 dropout"),
        ("Seeds", f"{summary.seeds}", "same splits and patients for every method"),
        ("Wall time", _duration(summary.wall_seconds), "comparisons included"),
        ("Coordinator memory", f"{summary.coordinator_peak_mib:,.0f} MiB", "at its peak"),
        (
            "Sent per parameter",
            f"{summary.bytes_up_per_parameter:.2f} bytes",
            f"{summary.bytes_up_per_parameter / PLAIN_BYTES:.2f}× unprotected float32",
        ),
        *_received(summary),
        *_chosen(given.records),
    ]


def _chosen(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Which round was taken, where the plan's metric could not choose it."""
    last = max(records, key=lambda r: int(r["round"]), default=None)
    said = (last or {}).get("selection") or {}
    words = {
        "loss": "by validation losses: the metric stayed shut, an institution being gone",
        "last": "the last: neither metric nor validation losses opened",
    }.get(str(said.get("by")), "")
    return [("Model of round", str(said.get("round")), words)] if words else []


def _received(summary: Summary) -> list[tuple[str, str, str]]:
    down = summary.bytes_down_per_parameter
    if down is None:
        return []
    return [("Received per parameter", f"{down:.2f} bytes", f"{down / PLAIN_BYTES:.2f}× unprotected float32")]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def render_report(given: ReportInput) -> str:
    """The report as one HTML document, without outside references or scripts.

    Raises:
        ReportError: predictions do not fit the classes.
        SummaryError: the summary has another shape.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    _check(given)
    summary = summary_from(given.summary, "ReportInput.summary")
    records = training_rounds(given.records)
    losses = losses_of_institutions(records)

    def titled(words: str) -> str:
        return f"SYNTHETIC · {words}" if summary.synthetic else words

    def svg(drawn: str | list[str]) -> Any:
        return [Markup(d) for d in drawn if d] if isinstance(drawn, list) else Markup(drawn)  # noqa: S704 (own SVG)

    names = [i.name for i in given.institutions]
    reliability, calibration = plots.reliability(titled, given.predictions, len(given.classes), records)
    templates = files("deploy") / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup((templates / "report.css").read_text(encoding="utf-8")),  # noqa: S704 (own file)
        given=given,
        summary=summary,
        facts=_facts(given, summary),
        metric_names=[METRIC_NAMES[m] for m in METRICS],
        headline=headline(summary),
        sentences=[s for m in METRICS if (s := sentence(summary, PLAIN, m))],
        others=_others(summary),
        cautions=cautions(summary),
        tables=[("All cohorts" if c == ALL else c, results_table(summary, c)) for c in summary.cohorts],
        modalities=list(dict.fromkeys(m for i in given.institutions for m in modalities_of(i.combination))),
        learning=svg(plots.learning(titled, records, given.test_curve)),
        loss_plots=svg(plots.losses(titled, records)),
        blending_plots=svg(
            plots.blending_figures(titled, records, {c for i in given.institutions for c in i.held}, given.blending)
        ),
        subgroups=subgroup_table(records),
        matrices=svg(_cohort_matrices(given, titled)),
        reliability=svg(reliability),
        calibration=calibration,
        presence=svg(plots.presence_by_round(titled, records, names)),
        losses=losses,
        burnt=plots.burnt_rounds(records),
        phases=svg(plots.phases(titled, records)),
        phase_rows=plots.phase_rows(records),
        memory=svg(plots.memory(titled, summary.processes)),
        round_rows=plots.round_rows(records),
        test_patients=len(given.predictions),
    )


def subgroup_table(records: Sequence[Record]) -> tuple[int, list[tuple[str, str, list[float | None]]]]:
    """The last round that counted patients by subgroup, and attribute, group, and the metrics of each; None: too few.

    `other` is the last group of its attribute.
    """
    counted = [r for r in training_rounds(records) if r.get("subgroups")]
    rows: list[tuple[str, str, list[float | None]]] = []
    for attribute, groups in (counted[-1]["subgroups"] if counted else {}).items():
        for group in sorted(groups, key=lambda g: (g == OTHER, g)):
            told = groups[group] or {}
            rows.append((attribute, group, [told.get(m) for m in ("patients", *METRICS)]))
    return (int(counted[-1]["round"]) if counted else 0), rows


def _others(summary: Summary) -> list[tuple[str, list[str]]]:
    found = []
    for method in methods_in_order(summary):
        if method not in (OURS, PLAIN):
            sentences = [s for m in METRICS if (s := sentence(summary, method, m))]
            if sentences:
                found.append((METHOD_NAMES.get(method, method), sentences))
    return found


def write_report(path: Path, given: ReportInput) -> None:
    """Writes the report in one step; raises as `render_report` does."""
    text = render_report(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
