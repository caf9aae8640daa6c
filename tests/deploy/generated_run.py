"""A run that never happened, of the shape of a real one: for the tests of what people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.report import Institution, Prediction, Protection, ReportInput
from deploy.summary import RunFacts, Summary, build_summary
from federation.evaluation import Scores, reliability_histogram

COHORTS = ("BRCA", "LUAD", "LUSC")
COMBINATIONS = {
    "brca-1": "mrna+image+clinical",
    "brca-2": "mrna+image",
    "brca-3": "mrna",
    "luad-1": "mrna+image+clinical",
    "luad-2": "mrna+clinical",
    "luad-3": "clinical",
    "lusc-1": "mrna+image+clinical",
    "lusc-2": "image+clinical",
    "lusc-3": "image",
}
SUBSETS = ("mrna", "image", "clinical", "mrna+image+clinical")
LEVELS = {
    "dgb+pcw": 0.62, "cm-fl": 0.60, "alone": 0.565, "pooled": 0.632, "constant": 0.591, "cohort-only": 0.605,
}  # fmt: skip


def scores(accuracy: float, patients: int = 120) -> Scores:
    return Scores(patients, accuracy, accuracy - 0.02, accuracy - 0.03, accuracy + 0.03, 0.08)


def facts(data: str = "synthetic", **changes: Any) -> RunFacts:
    processes = {"coordinator": 151.4} | {name: 412.0 + 9 * i for i, name in enumerate(COMBINATIONS)}
    fields: dict[str, Any] = {
        "data": data, "institutions": 9, "rounds": 40, "wall_seconds": 212.4, "bytes_up_per_parameter": 4.012,
        "bytes_down_per_parameter": 4.003, "dropouts": 2, "processes": processes,
    }  # fmt: skip
    return RunFacts(**(fields | changes))


def method_scores(seeds: int = 3, methods: Sequence[str] = tuple(LEVELS)) -> dict[str, list[dict[str, Scores]]]:
    rng = np.random.default_rng(5)
    luck = rng.normal(0, 0.015, (seeds, 4))
    return {
        method: [
            {
                cohort: scores(float(LEVELS[method] + luck[s, c] + rng.normal(0, 0.008)))
                for c, cohort in enumerate(("all", *COHORTS))
            }
            for s in range(seeds)
        ]
        for method in methods
    }


def summary(data: str = "synthetic", seeds: int = 3) -> Summary:
    return build_summary(facts(data), method_scores(seeds))


def record(number: int, rng: np.random.Generator, *, lost: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The record of a training round; `lost` leave before their statistics count."""
    lost = dict(lost or {})
    names = sorted(COMBINATIONS)
    rest = [n for n in names if n not in lost]
    fall = float(np.exp(-number / 14))
    figures = {}
    for i, subset in enumerate(SUBSETS):
        training = 0.45 + 0.05 * i + 0.26 * fall + float(rng.normal(0, 0.004))
        validation = 0.60 + 0.01 * i + 0.09 * fall + 0.0008 * number * (i == 0) + float(rng.normal(0, 0.008))
        known = number > 1
        g = max(0.0, float(rng.normal(0.002, 0.004)))
        o = float(rng.normal(0.003, 0.006))
        figures[subset] = {
            "training_loss": training, "validation_loss": validation, "fresh": True,
            "overfitting": o if known else None, "generalisation": g if known else None,
            "score": g / (o * o + 1e-6) if known else None, "dogr": abs(o) / (g + 0.01) if known else None,
        }  # fmt: skip
    accuracy = 0.63 - 0.10 * fall + float(rng.normal(0, 0.008))
    row = {
        "patients": 150, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.02, "macro_f1": accuracy - 0.03,
        "auroc": accuracy + 0.03, "calibration_error": 0.07,
    }  # fmt: skip
    labels = rng.integers(0, 2, 150)
    sure = rng.beta(4, 3, 150)
    p = np.stack([1 - sure, sure], 1)
    return {
        "round": number, "attempt": 1, "cohort": names,
        "sums": {"updates": {"alive": names}, "statistics": {"alive": rest}},
        "opened": ["updates", "statistics"], "withdrawn": lost,
        "seconds": {
            "keys": 0.02, "shares": 0.05, "uploads": 1.1 + float(rng.normal(0, 0.1)) + 3 * bool(lost),
            "signatures": 0.03, "openings": 0.05, "opening": 0.08,
        },
        "blending": figures,
        "proximity": {s: 0.3 + 0.1 * i + float(rng.normal(0, 0.03)) for i, s in enumerate(SUBSETS)},
        "metrics": {"mrna+image+clinical": row, "other": row, "all": row},
        "confusion": {"all": [[50, 30], [25, 45]]},
        "reliability": {"mrna+image+clinical": reliability_histogram(labels, p, 10).tolist()},
        "clipped": {"encoder/mrna": 0},
    }  # fmt: skip


def records(rounds: int = 40) -> list[dict[str, Any]]:
    """A set-up round, then training rounds with a few dropouts; round 17 was burnt, round 23 has no statistics."""
    rng = np.random.default_rng(7)
    names = sorted(COMBINATIONS)
    found: list[dict[str, Any]] = [
        {
            "round": 0, "attempt": 1, "cohort": names, "sums": {"weights": {"alive": names}}, "opened": ["weights"],
            "withdrawn": {}, "seconds": {"keys": 0.1, "uploads": 0.8},
        }
    ]  # fmt: skip
    for number in range(1, rounds + 1):
        made = record(number, rng, lost={"lusc-3": "deadline"} if number == 12 else None)
        if number == 17:
            continue
        if number == 23:
            made = {k: made[k] for k in ("round", "attempt", "cohort", "sums", "withdrawn", "seconds")}
            made |= {"opened": ["updates"], "sums": {"updates": made["sums"]["updates"]}}
        if number in (30, 31):
            gone = [n for n in names if n != "brca-2"]
            made["sums"] = {"updates": {"alive": gone}, "statistics": {"alive": gone}}
            made["cohort"] = names if number == 30 else gone
        found.append(made)
    return found


def predictions(count: int = 180) -> list[Prediction]:
    rng = np.random.default_rng(9)
    found = []
    for i in range(count):
        truth = int(rng.random() < 0.42)
        sure = float(np.clip(rng.normal(0.42 + 0.16 * truth, 0.16), 0.02, 0.98))
        found.append(Prediction(truth, (1 - sure, sure), COHORTS[i % 3]))
    return found


def curve(rounds: int = 40) -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(3)
    found: dict[str, list[dict[str, Any]]] = {}
    for method in ("dgb+pcw", "cm-fl", "pooled"):
        found[method] = []
        for t in range(1, rounds + 1):
            level = LEVELS[method] - 0.11 * float(np.exp(-t / 10)) + float(rng.normal(0, 0.006))
            rows = {"accuracy": level, "balanced_accuracy": level - 0.02, "auroc": level + 0.03}
            found[method].append({"round": t} | {m: {"mean": v, "std": 0.018} for m, v in rows.items()})
    return found


def report_input(data: str = "synthetic", **changes: Any) -> ReportInput:
    fields: dict[str, Any] = {
        "name": "tcga-nine", "summary": summary(data).model_dump(), "records": records(),
        "institutions": [Institution(n, c, n.split("-")[0].upper()) for n, c in COMBINATIONS.items()],
        "protection": Protection(3, 1), "classes": ("stage I", "stage II"),
        "plan_summary": "rounds = 40\n[secure_sum]\nk_min = 3\n", "test_curve": curve(), "predictions": predictions(),
        "created": "2026-11-23",
    }  # fmt: skip
    return ReportInput(**(fields | changes))
