"""Plans of the bench: one modality, one encoder of the wanted size, owned by everybody."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from deploy.bench_rows import Case
from federation.names import encoder
from federation.plan import (
    Column,
    ComponentRule,
    Deadlines,
    Evaluation,
    FeatureFloors,
    Institution,
    Label,
    LabelClass,
    Modality,
    Model,
    Plan,
    SecureSumSettings,
    Training,
)
from federation.plan_check import minimum_threshold

MODALITY = "vector"
COLUMNS = 10
PATIENTS = 20


def bench_plan(keys: Mapping[str, str], case: Case, rounds: int, federation: str) -> Plan:
    """A plan whose encoder has about the case's parameters: 10·h + h, h·h + h, h·16 + 16.

    Args:
        keys: institution to its `p256:` line.
        case: its backend `none` runs the same transport, spool and hash without masks; `ckks` encrypts sum A and masks
            sum B.
        rounds: training rounds.
        federation: its name.
    """
    hidden = isqrt(case.parameters) - 14
    thinned = ComponentRule(name=encoder(MODALITY), fraction=case.fraction)
    return Plan(
        federation=federation,
        run=f"bench-{case.parameters}-{case.backend}-{case.word_bits}-{round(1000 * case.fraction)}",
        seed=1,
        rounds=rounds,
        data="synthetic",
        label=Label(
            column="stage", classes=(LabelClass(name="I", values=("1",)), LabelClass(name="II", values=("2",)))
        ),
        modalities=(
            Modality(
                name=MODALITY,
                columns=tuple(Column(name=f"c{k}", low=-10.0, high=10.0) for k in range(COLUMNS)),
                hidden=(hidden, hidden),
            ),
        ),
        institutions=tuple(Institution(name=n, key=k, modalities=(MODALITY,)) for n, k in keys.items()),
        model=Model(),
        # What is measured is a round with both of its sums, also where somebody drops out.
        secure_sum=_secure_sum(case, len(keys)),
        training=Training(local_steps=1),
        evaluation=Evaluation(select="last", patience=0),
        components=(thinned,) if case.fraction < 1 else (),
        features=FeatureFloors(min_institutions=3, min_patients=10),
        deadlines=Deadlines(keys=60.0, upload=120.0, signatures=60.0, openings=60.0, enrolment=120.0),
    )


def _secure_sum(case: Case, institutions: int) -> SecureSumSettings:
    made = SecureSumSettings(threshold=minimum_threshold(institutions, 1), clip=0.1, similar_statistics="log")
    chosen: dict[str, Any] = {"half_words": case.word_bits == 16}
    if case.backend == "ckks":
        chosen |= {"ckks": ("updates",), "ckks_max_bytes": 31_000_000, "coordinator_colludes": False}
    else:
        chosen |= {"backend": case.backend}
    return made.model_copy(update=chosen)
