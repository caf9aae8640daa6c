"""The institution's own rules: what they refuse, by which rule, and that they never loosen a plan."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.plan import Plan, Subgroup, Subgroups, digest
from institution_node.encoder_kinds import InstalledKind
from institution_node.policy import NodeIdentity, Policy, PolicyRefusal, load_policy
from institution_node.toml_files import NodeFileError
from security.privacy.randomness import SeededRandomness, SystemRandomness
from tests.own_encoders import KIND, PIN, with_kind
from tests.plans import example_plan

PRIVATE = {"enabled": True, "epsilon": 4.0}
INSTALLED = InstalledKind(KIND, "example-encoders", "0.1.0")
OTHER_KIND = with_kind(example_plan()).modalities


def by_sex(*institutions: str, **settings: int) -> dict[str, Any]:
    sex = Subgroup(name="sex", column="sex", categories=("female", "male"), institutions=institutions)
    return {"evaluation": {"subgroups": Subgroups(by=(sex,), **settings)}}


BY_SEX = by_sex()


def own(plan: Plan, **changed: Any) -> NodeIdentity:
    first = plan.institutions[0]
    fields: dict[str, Any] = {
        "federation": plan.federation,
        "institution": first.name,
        "key": first.key,
        "modalities": first.modalities,
    }
    return NodeIdentity(**{**fields, **changed})


def accepting(plan: Plan, **fields: Any) -> tuple[Policy, bytes]:
    name = digest(plan.to_bytes())
    return Policy(accepted_plans=(name.hex(),), **fields), name


@pytest.mark.parametrize(
    "fields",
    [{}, {"k_min": 3}, {"similar_cohorts": "withhold"}, {"data_is_public": True, "allow_seeded_randomness": True}],
)
def test_an_accepted_plan_may_run(fields: dict[str, Any]) -> None:
    plan = example_plan()
    policy, name = accepting(plan, **fields)
    policy.check(plan, name, own(plan))
    policy.check(plan, name, own(plan, modalities=("clinical", "image", "mrna", "more")))


def test_a_plan_that_encrypts_runs_where_the_institution_says_so() -> None:
    plan = example_plan(secure_sum={"ckks": ("statistics",), "coordinator_colludes": False})
    policy, name = accepting(plan, allow_ckks=True)
    policy.check(plan, name, own(plan))


@pytest.mark.parametrize(
    ("rule", "plan", "fields", "changed"),
    [
        ("federation", {}, {}, {"federation": "another"}),
        ("roster", {}, {}, {"institution": "stranger"}),
        ("key", {}, {}, {"key": "p256:AAAA"}),
        ("modalities", {}, {}, {"modalities": ("mrna", "image")}),
        ("k_min", {}, {"k_min": 4}, {}),
        ("k_min", {"secure_sum": {"k_min": 2, "max_colluders": 0}}, {}, {}),
        ("backend", {"secure_sum": {"backend": "none"}}, {}, {}),
        ("allow_ckks", {"secure_sum": {"ckks": ("statistics",), "coordinator_colludes": False}}, {}, {}),
        (
            "allow_ckks",
            {"secure_sum": {"ckks": ("statistics",), "coordinator_colludes": False}},
            {"data_is_public": True},
            {},
        ),
        ("encoders", {"modalities": OTHER_KIND}, {"allow_encoders": (PIN,)}, {}),
        ("allow_encoders", {"modalities": OTHER_KIND}, {}, {"encoders": (INSTALLED,)}),
        (
            "allow_encoders",
            {"modalities": OTHER_KIND},
            {"allow_encoders": ("example-encoders==0.2.0",)},
            {"encoders": (INSTALLED,)},
        ),
        ("allow_subgroups", BY_SEX, {}, {}),
        ("allow_subgroups", BY_SEX, {"data_is_public": True}, {}),
        ("subgroup_min_patients", BY_SEX, {"allow_subgroups": True, "subgroup_min_patients": 6}, {}),
        ("subgroup_min_patients", by_sex(min_patients=4), {"allow_subgroups": True}, {}),
        ("differential_privacy", {}, {"epsilon_max": 8.0}, {}),
        ("epsilon_max", {"differential_privacy": PRIVATE}, {"epsilon_max": 3.9}, {}),
        ("delta_max", {"differential_privacy": {**PRIVATE, "delta": 0.1}}, {"epsilon_max": 8.0}, {}),
        ("delta_max", {"differential_privacy": PRIVATE}, {"epsilon_max": 8.0, "delta_max": 1e-6}, {}),
    ],
)
def test_each_rule_refuses_alone(
    rule: str, plan: dict[str, Any], fields: dict[str, Any], changed: dict[str, Any]
) -> None:
    received = example_plan(**plan)
    policy, name = accepting(received, **fields)
    with pytest.raises(PolicyRefusal) as caught:
        policy.check(received, name, own(received, **changed))
    assert caught.value.rule == rule
    assert caught.value.remedy
    assert [refusal.rule for refusal in policy.refusals(received, name, own(received, **changed))] == [rule]


def test_subgroups_are_counted_where_the_institution_says_so() -> None:
    plan = example_plan(**BY_SEX)
    policy, name = accepting(plan, allow_subgroups=True)
    policy.check(plan, name, own(plan))
    # One that refuses takes part in a plan that leaves it out of them.
    without_us = example_plan(**by_sex(*(n for n in plan.roster if n != plan.roster[0])))
    policy, name = accepting(without_us)
    policy.check(without_us, name, own(without_us))
    # Under differential privacy no floor protects, but noise.
    private = example_plan(**by_sex(min_patients=1), differential_privacy=PRIVATE)
    policy, name = accepting(private, allow_subgroups=True)
    policy.check(private, name, own(private))


def test_only_public_data_may_have_a_smaller_floor_of_subgroups() -> None:
    with pytest.raises(ValueError, match="subgroup_min_patients below 5"):
        Policy(subgroup_min_patients=4)
    assert Policy(subgroup_min_patients=4, data_is_public=True).smallest_subgroup == 4
    assert Policy().smallest_subgroup == 5


def test_only_the_very_bytes_that_were_accepted_may_run() -> None:
    plan = example_plan()
    policy, _ = accepting(plan)
    other = example_plan(rounds=4)
    for accepted in (policy, Policy()):
        with pytest.raises(PolicyRefusal) as caught:
            accepted.check(other, digest(other.to_bytes()), own(other))
        assert caught.value.rule == "accepted_plans"
        assert digest(other.to_bytes()).hex() in caught.value.remedy


def test_public_data_may_be_summed_in_the_open() -> None:
    plan = example_plan(secure_sum={"backend": "none", "k_min": 1, "max_colluders": 0})
    policy, name = accepting(plan, data_is_public=True)
    policy.check(plan, name, own(plan))
    strict, name = accepting(plan, data_is_public=True, k_min=3)
    with pytest.raises(PolicyRefusal):
        strict.check(plan, name, own(plan))


def test_every_broken_rule_is_listed() -> None:
    plan = example_plan(secure_sum={"backend": "none"})
    rules = [r.rule for r in Policy(k_min=5, epsilon_max=1.0).refusals(plan, b"\0" * 32, own(plan, federation="x"))]
    assert rules == ["federation", "accepted_plans", "backend", "k_min", "differential_privacy"]


@given(
    k_min=st.integers(1, 9),
    plan_k_min=st.integers(1, 9),
    public=st.booleans(),
    epsilon_max=st.none() | st.floats(0.1, 20),
    epsilon=st.floats(0.1, 20),
    withhold=st.booleans(),
    plan_withholds=st.booleans(),
)
def test_a_policy_only_tightens(
    k_min: int,
    plan_k_min: int,
    public: bool,
    epsilon_max: float | None,
    epsilon: float,
    withhold: bool,
    plan_withholds: bool,
) -> None:
    words = {True: "withhold", False: "log"}
    plan = example_plan(
        secure_sum={"k_min": plan_k_min, "similar_cohorts": words[plan_withholds]},
        differential_privacy={"enabled": True, "epsilon": epsilon},
    )
    policy = Policy.model_validate(
        {
            "k_min": k_min if public else max(3, k_min),
            "data_is_public": public,
            "epsilon_max": epsilon_max,
            "similar_cohorts": words[withhold],
        }
    )
    refused = {refusal.rule for refusal in policy.refusals(plan, digest(plan.to_bytes()), own(plan))}
    assert ("k_min" in refused) == (plan_k_min < policy.smallest_sum)
    assert policy.smallest_sum >= k_min
    assert ("epsilon_max" in refused) == (epsilon > (epsilon_max or inf))
    assert policy.similar_cohorts_of(plan) == words[withhold or plan_withholds]


def test_seeded_randomness_is_for_public_data() -> None:
    seeded = SeededRandomness(1, "test")
    Policy().check_randomness(SystemRandomness())
    for policy in (Policy(), Policy(data_is_public=True)):
        with pytest.raises(PolicyRefusal) as caught:
            policy.check_randomness(seeded)
        assert caught.value.rule == "allow_seeded_randomness"
    Policy(data_is_public=True, allow_seeded_randomness=True).check_randomness(seeded)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("k_min = 2\n", "", "needs data_is_public"),
        ("allow_seeded_randomness = true\n", "", "needs data_is_public"),
        ('\naccepted_plans = ["ab"]\n', ":2", "not the digest of a plan"),
        ("epsilon_max = 0\n", ":1", "out of range"),
        ("k_min = 3\nepsilon = 1.0\n", ":2", "there is no key epsilon (did you mean 'epsilon_max'?)"),
        ('similar_cohorts = "allow"\n', ":1", "'log' or 'withhold'"),
    ],
)
def test_a_wrong_policy_is_told_with_its_line(tmp_path: Path, text: str, line: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(NodeFileError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}{line}: ")
    assert message in str(caught.value)


def test_a_policy_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'accepted_plans = ["{"0a" * 32}"]\nk_min = 4\nepsilon_max = 3\n')
    policy = load_policy(path)
    assert (policy.accepted_plans, policy.smallest_sum, policy.epsilon_max) == (("0a" * 32,), 4, 3.0)
    path.write_text("")
    assert load_policy(path).smallest_sum == 3
