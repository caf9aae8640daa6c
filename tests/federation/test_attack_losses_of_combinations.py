"""Rule 9 for losses where patients come in several combinations: a coordinator that chooses the model."""

from __future__ import annotations

import pytest

from federation.plan import Plan
from federation.plan_check import check
from federation.rounds import Cohorts, Setup
from security.secure_sum.spec import Attempt, Context
from tests.plans import with_combinations
from tests.small_federation import small_plan

FULL = "mrna+image+clinical"


def some_lack_everything_but_mrna(kind: str) -> Plan:
    """Seven institutions with all modalities. The first three also have patients with mrna alone."""
    plan = small_plan(7, proximity={"kind": kind}, secure_sum={"threshold": 5})
    everywhere = tuple(i.model_copy(update={"modalities": plan.modality_order}) for i in plan.institutions)
    plan = plan.model_copy(update={"institutions": everywhere})
    plan = with_combinations(plan, dict.fromkeys(plan.roster[:3], ("mrna", FULL)))
    check(plan)
    return plan


def attempt_of(plan: Plan) -> Attempt:
    cohorts = Cohorts(plan)
    setup = Setup("", dict.fromkeys(cohorts.counted, 1000), frozenset(plan.roster))
    sizes = dict.fromkeys(cohorts.shared, 10)
    return cohorts.attempt(Context("f", bytes(32), 1, 1, bytes(32)), cohorts.training_sums(sizes, setup, 1))


@pytest.mark.parametrize("kind", ["cosine", "size"])
def test_the_losses_of_few_institutions_second_combination_cannot_be_subtracted(kind: str) -> None:
    """With a model whose classifiers look at mrna alone and a δ_G of zeros, losses over the same survivors differ by
    those of who has patients with mrna alone: three may be told, two after a dropout not."""
    plan = some_lack_everything_but_mrna(kind)
    attempt, roster = attempt_of(plan), plan.roster
    everybody = frozenset(roster)
    whole = {p.name for p in attempt.opened_parts("statistics", everybody, everybody)}
    assert {"losses/mrna", f"losses/{FULL}"} <= whole
    few = everybody - {roster[0]}  # two are left who have patients with mrna alone
    opened = {p.name for p in attempt.opened_parts("statistics", everybody, few)}
    assert "losses/mrna" in opened
    assert not opened & {"losses/image", "losses/clinical", f"losses/{FULL}"}


@pytest.mark.parametrize("kind", ["cosine", "inner", "size"])
def test_one_weight_over_all_of_an_institution_s_combinations_is_one_quantity(kind: str) -> None:
    """Four with mrna alone and with everything, three with mrna alone, of whom one is gone. By patients the two losses
    differ by six institutions; `inner` gives each one p_i, and Σp by the two."""
    plan = small_plan(7, proximity={"kind": kind}, secure_sum={"threshold": 5})
    plan = with_combinations(plan, dict.fromkeys(plan.roster[:4], ("mrna", FULL)))
    attempt, everybody = attempt_of(plan), frozenset(plan.roster)
    opened = {p.name for p in attempt.opened_parts("statistics", everybody, everybody - {plan.roster[6]})}
    assert "losses/mrna" in opened
    assert (f"losses/{FULL}" in opened) == (kind != "inner")
