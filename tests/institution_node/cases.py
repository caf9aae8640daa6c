"""A small institution for the tests of this package: plan, layout, generated patients, weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from federation.layout import Layout, layout
from federation.plan import Plan
from tests.plans import example_plan

# Threads cost more than they save on models this small, and tests share the machine.
torch.set_num_threads(1)

WIDTHS = {"mrna": 6, "image": 4, "clinical": 3}


@dataclass(frozen=True)
class Case:
    """One institution, ready to be given to a trainer."""

    plan: Plan
    layout: Layout
    institution: str
    features: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    weights: dict[str, npt.NDArray[np.float32]]


def case(institution: str = "brca-1", patients: int = 30, seed: int = 0, **changes: Any) -> Case:
    """Patients whose class is to be seen in every modality, and the weights of round 0."""
    plan = example_plan(**changes)
    made = layout(plan, WIDTHS)
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, patients)
    features = {
        m: (generator.normal(size=(patients, w)) + labels[:, None]).astype(np.float32) for m, w in WIDTHS.items()
    }
    weights = {name: made.components[name].initial(plan.seed) for name in made.owned(institution)}
    return Case(plan, made, institution, features, labels, weights)
