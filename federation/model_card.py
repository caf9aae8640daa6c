"""The text of a model card: what a model is, what it was trained on, what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from federation import names
from federation.features import FeatureSchema
from federation.plan import Plan
from federation.subgroups import groups_of

Groups = Mapping[str, Mapping[str, Mapping[str, Any] | None]]
"""Attribute to group to its figures; None: too few patients to be told of."""

_OF_GROUPS: Final = ("accuracy", "balanced_accuracy", "auroc")


def model_card(
    plan: Plan,
    schema: FeatureSchema,
    manifest: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
    chosen: str = "",
    subgroups: tuple[int, Groups] = (0, {}),
) -> str:
    """Markdown for people; nothing reads it back.

    Args:
        plan: of the run.
        schema: of the run.
        manifest: as `model_archive.pack` makes it.
        figures: subset to metric to value, over the institutions' validation patients; may be empty.
        chosen: why this round and no other; empty: not said.
        subgroups: the last round up to this one that counted patients by subgroup, and what it told.
    """
    components: list[str] = sorted(manifest["components"])
    classifiers = [names.component_subset(c) for c in components if names.component_kind(c) == "classifier"]
    encoders = [names.component_subset(c) for c in components if names.component_kind(c) == "encoder"]
    lines = [
        f"# {plan.run}",
        "",
        *_synthetic(plan),
        f"A staging model of the federation **{plan.federation}**, trained by Consilium in {len(plan.institutions)} "
        f"institutions for {manifest['round']} of {plan.rounds} rounds. No institution showed its patients or its "
        "update to anybody.",
        "",
        f"- Run (plan digest): `{manifest['run']}`",
        f"- Round: {manifest['round']}{f', {chosen}' if chosen else ''}",
        f"- Data: **{plan.data}**",
        f"- Predicts: {', '.join(plan.class_names)} (column `{plan.label.column}`)",
        f"- Components: {', '.join(f'`{c}`' for c in components)}",
    ]
    if manifest["private"]:
        private = ", ".join(f"`{c}`" for c in manifest["private"])
        lines.append(f"- **Private: {private}.** One institution alone trained them: do not pass this model on.")
    lines += ["", "## Inputs", "", "| modality | columns used | inputs | encoder |", "|---|---|---|---|"]
    for modality in plan.modality_order:
        there = "yes" if modality in encoders else "not in this model"
        lines.append(f"| {modality} | {len(schema.modalities[modality])} | {schema.width(modality)} | {there} |")
    lines += [
        "",
        "Raw columns, ranges and imputation are in `schema.json`; `consilium-node predict` applies them.",
        "",
        "## What a patient is staged from",
        "",
        "The classifier of exactly the patient's modalities where there is one: "
        f"{', '.join(f'`{c}`' for c in classifiers) or 'none'}. Otherwise the mean of the calibrated "
        "log-probabilities of the patient's single modalities.",
        "",
        "## Privacy",
        "",
        f"Updates and statistics were summed over at least {plan.secure_sum.k_min} institutions "
        f"({plan.secure_sum.backend}).",
        _privacy(plan),
        "",
        "## Figures",
        "",
        *_figures(figures),
        *_subgroups(plan, *subgroups),
        "",
        "## Limits",
        "",
        "For research. Not a medical device: it has not been tested prospectively, and its probabilities hold for "
        "patients like those it was trained on.",
        "Whoever passes the model on passes on what its weights remember of its patients; differential privacy "
        "bounds that, secure sums alone do not.",
    ]
    return "\n".join(lines) + "\n"


def _synthetic(plan: Plan) -> list[str]:
    if plan.data != "synthetic":
        return []
    return ["> **Synthetic data.** This model was trained on generated patients and says nothing about real ones.", ""]


def _privacy(plan: Plan) -> str:
    privacy = plan.differential_privacy
    if not privacy.enabled:
        return "Without differential privacy: what the published weights themselves reveal is not bounded."
    return (
        f"Differential privacy per patient: at most ε = {privacy.epsilon:g} at δ = {privacy.delta:g} at each "
        f"institution (noise multiplier {privacy.noise_multiplier:g}, clipping norm {privacy.max_gradient_norm:g})."
    )


def _figures(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not figures:
        return ["None were given when the model was exported."]
    metrics = list(dict.fromkeys(metric for row in figures.values() for metric in row))
    rows = [
        f"| {subset} | " + " | ".join(f"{row[m]:.3f}" if m in row else "–" for m in metrics) + " |"
        for subset, row in figures.items()
    ]
    head = ["On the institutions' validation patients, by secure sum:", ""]
    return [*head, f"| subset | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics), *rows]


def _subgroups(plan: Plan, counted: int, found: Groups) -> list[str]:
    attributes = [each for each in plan.evaluation.subgroups.by if each.name in found]
    if not attributes:
        return []
    lines = ["", f"By subgroup, in round {counted}; `–`: too few patients or institutions to be told of.", ""]
    lines += [f"| subgroup | patients | {' | '.join(_OF_GROUPS)} |", "|---|---|" + "---|" * len(_OF_GROUPS)]
    for attribute in attributes:
        for group in groups_of(attribute):
            told = found[attribute.name].get(group)
            values = [None if told is None else told.get(metric) for metric in _OF_GROUPS]
            cells = ["–" if value is None else f"{value:.3f}" for value in values]
            patients = "–" if told is None else str(told["patients"])
            lines.append(f"| {attribute.name}: {group} | {patients} | {' | '.join(cells)} |")
    return lines
