"""The paper's own model and institutions as a plan: its mRNA encoder alone has 513,695,440 parameters (METHOD.md).

METHOD.md, "The paper's set-ups": nine institutions, of whom six own each encoder; encoders 20531-16384-…-16,
150-64-64-16 and 11-16, fully connected with biases and without normalisation layers, which is what the number counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from federation import plan_check
from federation.plan import (
    Column,
    Deadlines,
    Evaluation,
    FeatureFloors,
    Institution,
    Modality,
    Plan,
    SecureSumSettings,
    Training,
)
from studies.methods import changed
from studies.tasks import STAGE_I_II
from studies.tcga import KINDS

COLUMNS: Final[Mapping[str, int]] = {"mrna": 20_531, "image": 150, "clinical": 11}
HIDDEN: Final[Mapping[str, tuple[int, ...]]] = {
    "mrna": (16_384, 8_192, 4_096, 2_048, 512, 128, 64),
    "image": (64, 64),
    "clinical": (),
}
MRNA_PARAMETERS: Final = 513_695_440
INSTITUTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    f"{cohort}-{k + 1}": held
    for cohort, kinds in zip(("brca", "lusc", "lihc"), KINDS, strict=True)
    for k, held in enumerate(kinds)
}
"""Institution to its modalities, METHOD.md's table."""

_LARGE: Final = Deadlines(keys=300.0, upload=1800.0, signatures=300.0, openings=900.0, enrolment=300.0)


def paper_plan(
    keys: Mapping[str, str],
    rounds: int,
    *,
    federation: str = "paper",
    run_name: str = "paper",
    hidden: Sequence[int] = HIDDEN["mrna"],
    **overrides: Any,
) -> Plan:
    """A checked plan of the paper's model.

    Args:
        keys: each of `INSTITUTIONS` to its `p256:…` line.
        rounds: training rounds.
        federation: its name.
        run_name: for people.
        hidden: hidden layers of the mRNA encoder, for a smaller one.
        overrides: top-level fields of the plan; a mapping changes only those fields of a table.

    Raises:
        PlanError: the overrides make no plan that may run.
    """
    layers = {**HIDDEN, "mrna": tuple(hidden)}
    plan = Plan(
        federation=federation,
        run=run_name,
        seed=1,
        rounds=rounds,
        data="synthetic",
        label=STAGE_I_II.label,
        modalities=tuple(
            Modality(
                name=name,
                columns=tuple(Column(name=f"{name}-{k:05}", low=-10.0, high=10.0) for k in range(count)),
                hidden=layers[name],
            )
            for name, count in COLUMNS.items()
        ),
        institutions=tuple(Institution(name=n, key=keys[n], modalities=held) for n, held in INSTITUTIONS.items()),
        secure_sum=SecureSumSettings(threshold=plan_check.minimum_threshold(len(INSTITUTIONS), 1), clip=0.1),
        training=Training(local_steps=1),
        evaluation=Evaluation(select="last", patience=0),
        features=FeatureFloors(min_institutions=3, min_patients=10),
        deadlines=_LARGE,
    )
    plan = changed(plan, overrides)
    plan_check.check(plan)
    return plan
