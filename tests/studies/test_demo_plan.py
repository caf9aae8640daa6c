"""The demo's plan, and the same for people."""

from __future__ import annotations

from pathlib import Path

from federation.plan import Plan
from federation.plan_toml import load_plan
from studies import demo_plan
from studies.tcga import KINDS
from tests.studies.small_study import PLANS, study

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _example() -> Plan:
    text = (DOCS / "example-plan.toml").read_text(encoding="utf-8")
    return load_plan(text, path_label="example-plan.toml", read_relative=lambda n: (DOCS / n).read_text("utf-8"))


def test_the_example_plan_may_run() -> None:
    plan = _example()
    assert [i.modalities for i in plan.institutions] == [held for row in KINDS for held in row]
    assert plan.preset == "default"
    assert len(plan.modalities[0].columns) > 20
    assert all((c.low, c.high) == (-10.0, 10.0) for c in plan.modalities[0].columns)


def test_the_example_trains_as_the_demo_does() -> None:
    plan = _example()
    demo = demo_plan.demo_plan(study(), {i.name: i.key for i in PLANS(study(), 1).institutions}, 1)
    assert (plan.training, plan.evaluation, plan.model) == (demo.training, demo.evaluation, demo.model)
    assert (plan.rounds, plan.secure_sum.clip) == (demo.rounds, demo.secure_sum.clip)
    assert {m.hidden for m in plan.modalities} == {m.hidden for m in demo.modalities}
    assert (plan.blending, plan.proximity) == (demo.blending, demo.proximity)


def test_overrides_reach_single_fields() -> None:
    demo = PLANS(study(), 7)
    assert (demo.seed, demo.rounds, demo.training.local_steps) == (7, 2, 3)
    assert demo.training.schedule == demo_plan.TRAINING["schedule"]
    assert demo.roster == tuple(shard.name for shard in study().shards)
