"""Generated tables of six institutions, as a researcher would have them in pandas."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from studies.api import FederationResult, Institution, run_federation

HELD = {
    "north": ("blood", "chart"),
    "south": ("blood", "chart"),
    "east": ("blood", "chart"),
    "west": ("blood",),
    "hill": ("blood",),
    "lake": ("blood",),
}
OPTIONS = {"training": {"local_steps": 3, "batch_size": 8, "learning_rate": 0.01}, "evaluation": {"bins": 10}}


def patients(name: str, held: tuple[str, ...], n: int = 50) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """Tables and labels of one institution; late patients are shifted in both modalities."""
    rng = np.random.default_rng(list(name.encode()))
    ids = pd.Index([f"{name}-{k:03}" for k in range(n)], name="patient")
    late = np.arange(n) % 2
    blood = pd.DataFrame(
        rng.standard_normal((n, 5)) + late[:, None], index=ids, columns=["crp", "hb", "ldh", "alb", "psa"]
    )
    chart = pd.DataFrame(
        {
            "age": np.rint(55 + 10 * late + 6 * rng.standard_normal(n)),
            "sex": rng.choice(["f", "m"], n),
            "smoker": rng.random(n) < 0.3 + 0.4 * late,
        },
        index=ids,
    )
    tables = {"blood": blood, "chart": chart}
    return {m: tables[m] for m in held}, pd.Series(np.where(late == 1, "late", "early"), index=ids)


def institutions() -> list[Institution]:
    return [Institution(name, *patients(name, held)) for name, held in HELD.items()]


@cache
def run(masks: bool = False, method: str = "dgb+pcw") -> FederationResult:
    """Three rounds."""
    return run_federation(institutions(), rounds=3, masks=masks, method=method, options=OPTIONS, data="synthetic")
