"""A small generated federation of six institutions, and its plan, for tests of whole studies.

Six and not nine: what a round in memory costs is the secure sum among all pairs. Holders of two modalities are the same
or differ by three, or the sums of one would stay shut (DESIGN.md, "Secure sum", rule 9).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from federation.plan import Plan
from studies.comparison import DemoPlans
from studies.synthetic import Shape, synthetic
from studies.tcga import Federation, federate

torch.set_num_threads(1)  # such small models only wait for each other

EVERYTHING = ("mrna", "image", "clinical")
KINDS = ((EVERYTHING, EVERYTHING, ("mrna",)), (EVERYTHING, ("mrna",), ("mrna",)))
SHAPE = Shape(
    stages=(("BRCA", (70, 220, 0, 0)), ("LUSC", (100, 80, 0, 0))),
    genes=16,
    image_features=12,
    signal=1.0,
)
TRAINING = {"local_steps": 3, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.0}
PLANS = DemoPlans(2, overrides={"training": TRAINING, "evaluation": {"bins": 10}, "secure_sum": {"clip": 1.0}})


@cache
def study(seed: int = 1) -> Federation:
    """The federation of a seed; its stages are planted plainly."""
    return federate(synthetic(seed, SHAPE), "synthetic", seed, KINDS)


def small_plan(seed: int = 1, rounds: int = 2, **training: Any) -> Plan:
    """The demo's plan with little training."""
    plans = DemoPlans(rounds, overrides={**PLANS.overrides, "training": {**TRAINING, **training}})
    return plans(study(seed), seed)
