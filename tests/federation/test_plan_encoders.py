"""Encoders of other kinds in a plan: read, sent, checked, and laid out without their code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation.layout import layout
from federation.plan import EncoderOption, EncoderTensor, Plan
from federation.plan_check import find_problems
from federation.plan_toml import load_plan
from tests.own_encoders import OPTIONS, TENSORS, with_kind
from tests.plans import example_plan

WIDTHS = {"mrna": 6, "image": 4, "clinical": 3}


def test_the_layout_is_what_the_plan_declares() -> None:
    tensors = (EncoderTensor(name="mix.weight", shape=(3, 0)), EncoderTensor(name="mix.scale", shape=(0,), init="ones"))
    plan = with_kind(example_plan(), tensors=tensors)
    made = layout(plan, WIDTHS)
    component = made.components["encoder/image"]
    assert [(t.name, t.shape, t.init, t.fan_in) for t in component.tensors] == [
        ("mix.weight", (3, 4), "uniform_fan_in", 4),
        ("mix.scale", (4,), "ones", 4),
    ]
    first = component.initial(plan.seed)
    assert np.all(first[12:] == 1.0)
    assert np.abs(first[:12]).max() <= 0.5  # 1/√4
    assert len(set(first[:12].tolist())) == 12
    assert made.inputs == WIDTHS
    assert layout(example_plan(), WIDTHS).components["encoder/mrna"] == made.components["encoder/mrna"]


def test_a_plan_with_another_kind_is_sent_and_read() -> None:
    plan = with_kind(example_plan())
    assert find_problems(plan) == ()
    assert Plan.from_bytes(plan.to_bytes()) == plan
    assert {o.name: o.value for o in plan.modalities[1].options} == {"group": 2.0, "hidden": 4.0}


def test_it_is_written_as_toml() -> None:
    text = """
federation = "f"
run = "r"
data = "synthetic"
[label]
column = "stage"
classes = [{ name = "a", values = ["1"] }, { name = "b", values = ["2"] }]
[[modalities]]
name = "image"
columns = [{ name = "x", low = 0, high = 1 }]
kind = "gated-attention"
options = [{ name = "group", number = 4 }, { name = "pooling", text = "mean" }]
tensors = [
  { name = "embed.weight", shape = [16, 0], fan_in = 0 },
  { name = "embed.bias", shape = [16], init = "zeros" },
]
[secure_sum]
threshold = 3
"""
    entries = "".join(
        f'[[institutions]]\nname = "{i.name}"\nkey = "{i.key}"\nmodalities = ["image"]\n'
        for i in example_plan(3).institutions
    )
    plan = load_plan(text + entries, path_label="plan.toml", read_relative=str)
    assert plan.modalities[0].options == (
        EncoderOption(name="group", number=4.0),
        EncoderOption(name="pooling", text="mean"),
    )
    assert plan.modalities[0].tensors[1] == EncoderTensor(name="embed.bias", shape=(16,), init="zeros")


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"kind": "mlp", "options": ()}, "tensors", "has none"),
        ({"kind": "mlp", "tensors": ()}, "options", "has none"),
        ({"kind": "Not A Name"}, "kind", "legal name"),
        ({"tensors": ()}, "tensors", "0 tensors"),
        ({"tensors": (TENSORS[0], TENSORS[0])}, "tensors[1].name", "twice"),
        ({"tensors": (EncoderTensor(name="../etc", shape=(1,)),)}, "tensors[0].name", "no name of a parameter"),
        ({"tensors": (EncoderTensor(name="w", shape=(1,) * 7),)}, "tensors[0].shape", "7 axes"),
        ({"tensors": (EncoderTensor(name="w", shape=(60000, 60000)),)}, "tensors", "3,600,000,000 parameters"),
        ({"tensors": tuple(EncoderTensor(name=f"w{k}", shape=(1,)) for k in range(1001))}, "tensors", "1001 tensors"),
        ({"options": (OPTIONS[0], OPTIONS[0])}, "options[1].name", "twice"),
        ({"options": (EncoderOption(name="group", number=1e10),)}, "options[0].number", "out of range"),
        ({"options": (EncoderOption(name="group", text="a\nb"),)}, "options[0].text", "cannot be shown"),
        ({"options": (EncoderOption(name="group", text="a", number=1.0),)}, "options[0]", "a number and a text"),
        ({"options": tuple(EncoderOption(name=f"o{k}") for k in range(33))}, "options", "33 options"),
    ],
)
def test_what_a_plan_may_not_declare_is_told(fields: dict[str, Any], place: str, message: str) -> None:
    problems = find_problems(with_kind(example_plan(), **{"kind": "gated-attention", **fields}))
    assert any(message in p.message and str(p).startswith(f"modalities[1].{place}:") for p in problems), problems
    assert all(p.remedy for p in problems)
