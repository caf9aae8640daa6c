"""Methods by name: what each changes in a plan, and that it changes nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from federation import plan_check
from studies.federation import StudyError
from studies.methods import FEDERATED, METHODS, changed, check_methods, plan_of
from tests.studies.small_study import small_plan


def test_ours_is_the_plan_itself() -> None:
    plan = small_plan()
    assert plan_of("dgb+pcw", plan) is plan
    assert (plan.blending.kind, plan.proximity.kind, plan.preset) == ("dgb", "cosine", "default")


@pytest.mark.parametrize(
    ("method", "blending", "proximity"), [("dgb", "dgb", "size"), ("cm-fl", "off", "size"), ("hgb", "local", "size")]
)
def test_the_others_differ_in_blending_and_proximity_alone(method: str, blending: str, proximity: str) -> None:
    plan = small_plan()
    other = plan_of(method, plan)
    plan_check.check(other)
    assert (other.blending.kind, other.proximity.kind, other.preset) == (blending, proximity, "custom")
    back = {"blending": {"kind": "dgb"}, "proximity": {"kind": "cosine"}, "preset": "default"}
    assert changed(other, back).to_bytes() == plan.to_bytes()


def test_only_federated_methods_have_a_plan() -> None:
    for method in set(METHODS) - set(FEDERATED):
        with pytest.raises(StudyError, match="no federated method"):
            plan_of(method, small_plan())
    with pytest.raises(StudyError, match="fedprox"):
        check_methods(("dgb", "fedprox"))


def test_a_changed_plan_forgets_what_the_old_one_had_worked_out() -> None:
    plan = small_plan()
    assert len(plan.roster) == 6  # cached now
    first = plan.institutions[:1]
    assert changed(plan, {"institutions": first}).roster == (first[0].name,)
    with pytest.raises(ValidationError):
        changed(plan, {"training": {"no_such_field": 1}})
