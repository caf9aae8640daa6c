"""The plan of the demo and of the comparisons: the default preset, with training that suits a few dozen patients each.

How the training was chosen stands in docs/studies.md; `docs/example-plan.toml` is the same for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from federation import plan_check
from federation.plan import Institution, Plan, SecureSumSettings
from studies.methods import changed
from studies.tcga import Federation, plan_modalities

ROUNDS: Final = 40
HIDDEN: Final[tuple[int, ...]] = ()
"""One layer per encoder: a few hundred patients with 1,555 genes are fitted by heart by anything deeper."""

TRAINING: Final[Mapping[str, Any]] = {
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "weight_decay": 5.0,
    "class_weights": "none",  # probabilities keep the frequencies that calibration is measured against
}
EVALUATION: Final[Mapping[str, Any]] = {"metric": "auroc"}  # smoother than accuracy over some 160 validation patients
CLIP: Final = 0.06
"""Just above the largest update of one parameter that was seen (0.042): the finer the fixed point, the better."""


def demo_plan(
    federation: Federation,
    institutions: Mapping[str, str],
    seed: int,
    rounds: int = ROUNDS,
    run_name: str = "demo",
    **overrides: Any,
) -> Plan:
    """A checked plan for a federation of `studies.tcga`.

    Args:
        federation: its institutions, columns and kind of data.
        institutions: name to certified identity key, the `p256:…` text, for every one of the federation's.
        seed: of the model's initialisation.
        rounds: training rounds.
        run_name: for people; seeded institutions draw from it.
        overrides: top-level fields of the plan; a mapping changes only those fields of a table.

    Raises:
        PlanError: the federation or the overrides make no plan that may run.
    """
    roster = tuple(
        Institution(name=s.name, key=institutions[s.name], modalities=s.modalities, combinations=s.combinations)
        for s in federation.shards
    )
    plan = Plan(
        federation="demo",
        run=run_name,
        seed=seed,
        rounds=rounds,
        data=federation.data,
        label=federation.task.label,
        modalities=plan_modalities(federation, HIDDEN),
        institutions=roster,
        secure_sum=SecureSumSettings(threshold=max(1, plan_check.minimum_threshold(len(roster), 1)), clip=CLIP),
    )
    plan = changed(changed(plan, {"training": TRAINING, "evaluation": EVALUATION}), overrides)
    plan_check.check(plan)
    return plan
