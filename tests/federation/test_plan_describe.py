"""What people are shown before they accept a plan."""

from __future__ import annotations

from federation.plan import ComponentRule
from federation.plan_toml import describe
from tests.plans import example_plan


def test_the_description_says_who_takes_part_what_is_summed_and_what_stays() -> None:
    text = describe(example_plan())
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["brca-2"].split() == ["brca-2", "x", "x", "-"]
    assert lines["columns"].split() == ["columns", "4", "3", "3"]
    assert lines["encoder/mrna"].split() == ["encoder/mrna", "6", "216", "summed"]
    assert lines["classifier/mrna+image"].endswith("stays at its institution (brca-2)")
    assert "stands 1 colluding and 3 dropped out" in text
    assert "losses of mrna, image, clinical, mrna+image+clinical" in text
    assert "scale 2.14748e+09" in text
    # brca-1: three encoders, three heads and the classifier of all three, 4 bytes a parameter
    assert f"up to {4 * (216 + 200 + 144 + 3 * 306 + 818):,} a round from one institution (brca-1)" in text
    assert "Differential privacy: off" in text


def test_the_description_says_how_the_drawn_graph_follows_from_the_plan() -> None:
    whole = describe(example_plan())
    assert "graph      complete: everybody masks with everybody" in whole
    assert "6 of 9 open a sum and sign for it" in whole
    drawn = describe(example_plan(secure_sum={"complete_graph_up_to": 8, "graph_failure_bits": 30}))
    assert "6 of 9 sign for a sum" in drawn
    told = " ".join(line.strip() for line in drawn.splitlines())
    assert "as there are more than 8 institutions: each has 6 neighbours to mask with, of whom 3 open" in told
    assert "stands 3 dropped out, but for a chance of 2^-30" in told
    assert "graph  " not in describe(example_plan(secure_sum={"backend": "none"}))


def test_the_description_of_a_plan_that_encrypts_says_which_sums_and_to_whom_they_are_open() -> None:
    text = describe(example_plan(secure_sum={"ckks": ("weights", "statistics"), "coordinator_colludes": False}))
    assert "encrypted  weights, statistics (CKKS): open to a coordinator that colludes with one of them" in text


def test_the_description_of_a_private_plan_names_its_budget() -> None:
    text = describe(
        example_plan(differential_privacy={"enabled": True, "epsilon": 3.0}, training={"class_weights": "none"})
    )
    assert "at most ε = 3 at δ = 1e-05" in text


def test_the_description_says_what_is_sent_of_a_component_and_when() -> None:
    rules = (
        ComponentRule(name="encoder/mrna", every=5, fraction=0.1),
        ComponentRule(name="encoder/image", every=0),
        ComponentRule(name="classifier/mrna+image", every=3),
    )
    text = describe(example_plan(components=rules, secure_sum={"half_words": True}))
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["encoder/mrna"].endswith("a part of 0.1 summed, another each time, in rounds 1, 6, 11, …")
    assert lines["encoder/image"].endswith("frozen: never trained, never sent")
    assert lines["classifier/mrna+image"].endswith("stays at its institution (brca-2)")
    # 216 parameters are 14 runs of 16, of which a tenth is 2; the image encoder's 200 are never sent
    assert f"up to {2 * (32 + 144 + 3 * 306 + 818):,} a round from one institution (brca-1), 2 a parameter" in text
