"""Every way in which a plan must not run, by name: the field that is named, and that nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from federation.plan import Column, Institution, LabelClass, Modality, Plan, PlanError
from federation.plan_check import check, find_problems, minimum_threshold
from federation.plan_fields import Range
from federation.plan_problems import path_text
from federation.plan_tables import SecureSumSettings
from federation.rounds import SETUP_SUMS, TRAINING_SUMS, Cohorts
from federation.settings import mask_graph
from federation.statistic_words import StatisticsEncoding
from security.ckks.encoding import FRAME_BYTES, SLOTS, SlotCode
from security.secure_sum.graph_bound import DROPOUT, neighbours_for
from security.secure_sum.messages import MAX_PAYLOAD_BYTES
from security.secure_sum.spec import Context
from tests.plans import example_institutions, example_plan


def column(**fields: Any) -> Plan:
    """The example with one more column in its last modality, `clinical` (number 3 there)."""
    modalities = example_plan().modalities
    last = modalities[2]
    more = Column(**{"name": "extra", "low": 0.0, "high": 1.0, **fields})
    return example_plan(modalities=(*modalities[:2], last.model_copy(update={"columns": (*last.columns, more)})))


def categorical(**fields: Any) -> Plan:
    return column(**{"kind": "categorical", "low": 0.0, "high": 0.0, "categories": ("a", "b"), **fields})


def classes(*each: tuple[str, tuple[str, ...]]) -> Plan:
    return example_plan(label={"classes": tuple(LabelClass(name=name, values=values) for name, values in each)})


def institution(index: int = 1, **fields: Any) -> Plan:
    roster = list(example_institutions(9))
    roster[index] = Institution(**{**dict(roster[index]), **fields})
    return example_plan(institutions=9).model_copy(update={"institutions": tuple(roster)})


def modality(index: int = 1, **fields: Any) -> Plan:
    modalities = list(example_plan().modalities)
    modalities[index] = Modality(**{**dict(modalities[index]), **fields})
    return example_plan(modalities=tuple(modalities))


def roster(count: int, **changes: Any) -> Plan:
    return example_plan(count, **changes)


def encrypting(*sums: str, **fields: Any) -> Plan:
    return example_plan(secure_sum={"ckks": sums, "coordinator_colludes": False, **fields})


KEYS = [institution.key for institution in example_institutions(9)]


@dataclass(frozen=True)
class Bad:
    name: str
    make: Callable[[], Plan]
    place: str
    said: str


BAD = [
    Bad("illegal-run-name", lambda: example_plan(run="Run 1"), "run", "not a legal name"),
    Bad("illegal-federation-name", lambda: example_plan(federation=""), "federation", "not a legal name"),
    Bad("initial-model-is-no-digest", lambda: example_plan(initial_model="ab"), "initial_model", "not the digest"),
    Bad("one-class", lambda: classes(("early", ("1",))), "label.classes", "1 classes"),
    Bad(
        "class-twice",
        lambda: classes(("early", ("1",)), ("early", ("2",))),
        "label.classes[1].name",
        "'early' occurs twice",
    ),
    Bad(
        "value-in-two-classes",
        lambda: classes(("early", ("1", "2")), ("late", ("3", "2"))),
        "label.classes[1].values[1]",
        "'2' occurs twice",
    ),
    Bad(
        "class-without-values",
        lambda: classes(("early", ("1",)), ("late", ())),
        "label.classes[1].values",
        "no value means this class",
    ),
    Bad(
        "empty-label-value",
        lambda: classes(("early", ("1",)), ("late", ("",))),
        "label.classes[1].values[0]",
        "cannot be told apart",
    ),
    Bad("illegal-label-column", lambda: example_plan(label={"column": "a\nb"}), "label.column", "cannot be told"),
    Bad("modality-without-columns", lambda: modality(columns=()), "modalities[1].columns", "no column"),
    Bad(
        "modality-that-nobody-holds",
        lambda: example_plan(
            modalities=(*example_plan().modalities, Modality(name="cnv", columns=(Column(name="c", high=1.0),)))
        ),
        "modalities[3].name",
        "no institution holds 'cnv'",
    ),
    Bad(
        "modality-twice",
        lambda: example_plan(modalities=(*example_plan().modalities, example_plan().modalities[0])),
        "modalities[3].name",
        "'mrna' occurs twice",
    ),
    Bad("encoder-too-large", lambda: modality(hidden=(131072, 131072)), "modalities[1].hidden", "parameters"),
    Bad("hidden-layer-of-no-width", lambda: modality(hidden=(8, 0)), "modalities[1].hidden[1]", "out of range"),
    Bad("column-twice", lambda: column(name="age"), "modalities[2].columns[3].name", "'age' occurs twice"),
    Bad("column-without-a-name", lambda: column(name=" "), "modalities[2].columns[3].name", "cannot be told"),
    Bad("low-not-below-high", lambda: column(low=1.0), "modalities[2].columns[3].low", "not below high 1"),
    Bad("range-too-wide", lambda: column(high=1e10), "modalities[2].columns[3].high", "beyond"),
    Bad("log1p-at-minus-1", lambda: column(low=-1.0, transform="log1p"), "modalities[2].columns[3].low", "log1p"),
    Bad(
        "numeric-with-categories",
        lambda: column(categories=("a",)),
        "modalities[2].columns[3].categories",
        "a numeric column has none",
    ),
    Bad("no-categories", lambda: categorical(categories=()), "modalities[2].columns[3].categories", "needs some"),
    Bad(
        "category-twice",
        lambda: categorical(categories=("a", "b", "a")),
        "modalities[2].columns[3].categories[2]",
        "'a' occurs twice",
    ),
    Bad(
        "empty-category",
        lambda: categorical(categories=("a", "")),
        "modalities[2].columns[3].categories[1]",
        "cannot be told",
    ),
    Bad(
        "categorical-with-a-range",
        lambda: categorical(high=2.0),
        "modalities[2].columns[3].high",
        "a categorical column has none",
    ),
    Bad(
        "categorical-with-a-transform",
        lambda: categorical(transform="log1p"),
        "modalities[2].columns[3].transform",
        "a categorical column has none",
    ),
    Bad("illegal-institution-name", lambda: institution(name="BRCA 2"), "institutions[1].name", "not a legal name"),
    Bad("institution-twice", lambda: institution(name="brca-1"), "institutions[1].name", "'brca-1' occurs twice"),
    Bad("key-twice", lambda: institution(key=KEYS[0]), "institutions[1].key", "the key of 'brca-1' again"),
    Bad("key-without-prefix", lambda: institution(key=KEYS[1][5:]), "institutions[1].key", "begin with `p256:`"),
    Bad("key-not-base64", lambda: institution(key="p256:??"), "institutions[1].key", "not a P-256 key"),
    Bad("key-not-on-the-curve", lambda: institution(key="p256:" + "A" * 44), "institutions[1].key", "not a P-256 key"),
    Bad("key-with-blanks", lambda: institution(key=KEYS[1] + " "), "institutions[1].key", "blanks"),
    Bad("unknown-modality", lambda: institution(modalities=("rna",)), "institutions[1].modalities[0]", "unknown"),
    Bad(
        "modality-held-twice",
        lambda: institution(modalities=("mrna", "mrna")),
        "institutions[1].modalities[1]",
        "'mrna' occurs twice",
    ),
    Bad("no-modality-held", lambda: institution(modalities=()), "institutions[1].modalities", "holds no modality"),
    Bad("too-many-institutions", lambda: roster(1001, secure_sum={"threshold": 600}), "institutions", "1001 instit"),
    Bad(
        "one-institution-under-masks",
        lambda: roster(1, secure_sum={"threshold": 1, "max_colluders": 0, "k_min": 1}),
        "institutions",
        "1 institutions",
    ),
    Bad("threshold-too-low", lambda: example_plan(secure_sum={"threshold": 5}), "secure_sum.threshold", "2·5 is below"),
    Bad("threshold-above-n", lambda: example_plan(secure_sum={"threshold": 10}), "secure_sum.threshold", "cannot sign"),
    Bad(
        "threshold-too-low-for-more-colluders",
        lambda: example_plan(secure_sum={"max_colluders": 3, "k_min": 5}),
        "secure_sum.threshold",
        "2·6 is below n + max_colluders + 1 = 13",
    ),
    Bad("k-min-below-colluders-2", lambda: example_plan(secure_sum={"k_min": 2}), "secure_sum.k_min", "fewer than two"),
    Bad("k-min-1-with-colluders", lambda: example_plan(secure_sum={"k_min": 1}), "secure_sum.k_min", "fewer than two"),
    Bad("nothing-to-sum", lambda: example_plan(secure_sum={"k_min": 7}), "secure_sum.k_min", "no modality has 7"),
    Bad("no-clip", lambda: example_plan(secure_sum={"clip": 1e7}), "secure_sum.clip", "out of range"),
    Bad(
        "encrypted-though-the-coordinator-may-collude",
        lambda: example_plan(secure_sum={"ckks": ("statistics",)}),
        "secure_sum.coordinator_colludes",
        "open to a coordinator that colludes",
    ),
    Bad(
        "vouched-for-though-nothing-is-encrypted",
        lambda: example_plan(secure_sum={"coordinator_colludes": False}),
        "secure_sum.coordinator_colludes",
        "nothing is encrypted",
    ),
    Bad(
        "encrypted-for-too-many",
        lambda: example_plan(101, secure_sum={"ckks": ("means",), "coordinator_colludes": False, "threshold": 60}),
        "secure_sum.ckks",
        "up to 100 institutions (complete_graph_up_to)",
    ),
    Bad(
        "encrypted-though-the-graph-is-drawn",
        lambda: encrypting("means", complete_graph_up_to=8),
        "secure_sum.ckks",
        "up to 8 institutions (complete_graph_up_to)",
    ),
    Bad(
        "a-drawn-graph-that-cannot-stand-so-many-colluders",
        lambda: example_plan(secure_sum={"complete_graph_up_to": 8, "max_colluders": 4, "k_min": 6, "threshold": 7}),
        "secure_sum.complete_graph_up_to",
        "no mask graph of 9 institutions stands 3 dropouts and 4 colluders",
    ),
    Bad(
        "graph-dropout-of-everybody",
        lambda: example_plan(secure_sum={"complete_graph_up_to": 8, "graph_dropout": 1.5}),
        "secure_sum.graph_dropout",
        "out of range",
    ),
    Bad("encrypted-twice", lambda: encrypting("means", "means"), "secure_sum.ckks[1]", "'means' occurs twice"),
    Bad("the-rest-in-clear", lambda: encrypting("means", backend="none"), "secure_sum.ckks", "in clear"),
    Bad(
        "encrypted-component-too-large",
        lambda: encrypting("counts", "updates", ckks_max_bytes=200_000),
        "secure_sum.ckks[1]",
        "has up to 247,808 bytes, of which 'encoder/mrna' 61,952; ckks_max_bytes allows 200,000",
    ),
    Bad(
        "feature-floor-below-k-min",
        lambda: example_plan(features={"min_institutions": 2}),
        "features.min_institutions",
        "below",
    ),
    Bad(
        "feature-floor-above-n",
        lambda: example_plan(features={"min_institutions": 10}),
        "features.min_institutions",
        "only 9",
    ),
    Bad("clamp-upside-down", lambda: example_plan(blending={"v_min": 4.0}), "blending.v_max", "below v_min"),
    Bad(
        "private-without-count-noise",
        lambda: example_plan(
            differential_privacy={"enabled": True}, training={"class_weights": "none", "count_noise": 0.0}
        ),
        "training.count_noise",
        "needs noise",
    ),
    Bad(
        "private-with-class-weights",
        lambda: example_plan(differential_privacy={"enabled": True}, training={"class_weights": "balanced"}),
        "training.class_weights",
        "exact counts",
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_plan_that_must_not_run(bad: Bad) -> None:
    problems = find_problems(bad.make())
    assert [path_text(problem.path) for problem in problems] == [bad.place]
    assert bad.said in problems[0].message
    assert problems[0].remedy
    with pytest.raises(PlanError, match="Remedy: "):
        check(bad.make())


def test_a_plan_without_modalities() -> None:
    problems = find_problems(example_plan(modalities=()))
    assert problems[0].path == ("modalities",)
    assert {problem.path[0] for problem in problems[1:]} == {"institutions"}  # what they hold is now unknown


def test_a_headroom_below_one_could_wrap_and_is_proved_to() -> None:
    problems = find_problems(example_plan(secure_sum={"headroom": 0.5}))
    assert {path_text(problem.path) for problem in problems} == {"secure_sum.headroom"}
    assert any("could wrap" in problem.message for problem in problems)


@pytest.mark.parametrize(
    "plan",
    [
        *(example_plan(n) for n in (3, 4, 9, 12, 99, 100)),
        example_plan(secure_sum={"k_min": 1, "max_colluders": 0}),
        example_plan(secure_sum={"threshold": 7, "max_colluders": 4, "k_min": 6}),
        example_plan(secure_sum={"complete_graph_up_to": 8}),
        example_plan(1, secure_sum={"backend": "none", "k_min": 1, "max_colluders": 0}),
        example_plan(differential_privacy={"enabled": True}, training={"class_weights": "none"}),
        example_plan(initial_model="0" * 64),
        example_plan(training={"gradient_clip": 1e6}, deadlines={"keys": 0.1}),
    ],
)
def test_a_plan_that_may_run(plan: Plan) -> None:
    assert find_problems(plan) == ()
    check(Plan.from_bytes(plan.to_bytes()))


def test_where_no_graph_can_be_drawn_the_remedy_is_one_that_helps() -> None:
    (few,) = find_problems(example_plan(7, secure_sum={"complete_graph_up_to": 6}))
    assert few.remedy.endswith("or set complete_graph_up_to to at least 7.")
    (many,) = find_problems(
        example_plan(102, secure_sum={"max_colluders": 49, "k_min": 51, "threshold": 76, "graph_dropout": 0.5})
    )
    assert "Lower secure_sum.max_colluders or secure_sum.graph_dropout." in many.remedy


@pytest.mark.parametrize(
    ("institutions", "settings", "expected"),
    [
        (100, {}, None),
        (101, {}, neighbours_for(101, 1)),
        (300, {}, neighbours_for(300, 1, Fraction(1, 3), 40)),
        (300, {"graph_dropout": 0.1}, neighbours_for(300, 1, Fraction(1, 10))),
        (300, {"graph_failure_bits": 20, "complete_graph_up_to": 50}, neighbours_for(300, 1, DROPOUT, 20, 50)),
    ],
)
def test_the_mask_graph_is_as_large_as_the_plan_says(institutions: int, settings: Any, expected: object) -> None:
    plan = example_plan(institutions, secure_sum=settings)
    assert mask_graph(plan) == expected
    context = Context(plan.federation, bytes(32), 0, 1, bytes(32))
    cohorts = Cohorts(plan)
    assert cohorts.attempt(context, cohorts.setup_sums()).sparse == expected


@given(st.integers(1, 100), st.integers(0, 49))
def test_the_smallest_threshold_is_the_smallest(n: int, colluders: int) -> None:
    t = minimum_threshold(n, colluders)
    assert 2 * t >= n + colluders + 1 > 2 * (t - 1)


def ranged(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Range, Any]]:
    found = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += ranged(annotation, (*path, name))
        for rule in field.metadata:
            if isinstance(rule, Range):
                found.append(((*path, name), rule, annotation))
    return found


def with_field(table: Any, path: tuple[str, ...], value: object) -> Any:
    """A copy with another value at a path."""
    changed = value if len(path) == 1 else with_field(getattr(table, path[0]), path[1:], value)
    return table.model_copy(update={path[0]: changed})


SCALARS = [each for each in ranged(Plan) if each[2] in (int, float)]


@pytest.mark.parametrize(("path", "rule", "kind"), SCALARS, ids=[".".join(each[0]) for each in SCALARS])
def test_every_number_has_both_its_limits(path: tuple[str, ...], rule: Range, kind: Any) -> None:
    def found(value: float) -> bool:
        value = int(value) if kind is int else float(value)
        plan = with_field(example_plan(), path, value)
        return any(problem.path == path and "out of range" in problem.message for problem in find_problems(plan))

    assert not found(rule.high)
    assert found(rule.high + 1)
    assert found(rule.low) == rule.above
    if rule.low > 0 or kind is float:  # what is below zero cannot be an unsigned number of the wire
        assert found(rule.low - 1)


def test_every_number_of_the_plan_has_a_range() -> None:
    numbers = {
        (*path, name)
        for path, model in [((), Plan), *(((name,), f.annotation) for name, f in Plan.model_fields.items())]
        if isinstance(model, type) and issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
        if field.annotation in (int, float)
    }
    assert numbers - {each[0] for each in SCALARS} == {("seed",)}


def test_statistics_of_the_round_cannot_wrap_at_the_ranges_ends() -> None:
    limits = {".".join(path): rule.high for path, rule, _ in SCALARS}
    largest = limits["proximity.bound"] * limits["proximity.loss_max"]
    StatisticsEncoding(bound=largest, contributors=100, resolution_bits=24)  # or RingOverflowError
    assert math.isfinite(largest)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        check(example_plan(rounds=0, run="A", secure_sum={"threshold": 2}))
    assert len(caught.value.problems) == 3
    assert "the plan has 3 problems" in str(caught.value)
    assert caught.value.code == "plan"


def test_a_problem_of_every_column_does_not_fill_the_screen() -> None:
    columns = tuple(Column(name=f"g{i}") for i in range(500))
    with pytest.raises(PlanError, match="and 470 more"):
        check(modality(columns=columns))


def test_every_sum_of_a_run_can_be_encrypted_by_its_name() -> None:
    every = (*SETUP_SUMS, *TRAINING_SUMS)
    check(encrypting(*every))
    assert find_problems(encrypting(*every, ckks_max_bytes=61_952))


def test_the_words_of_the_largest_encrypted_sum_fit_one_message() -> None:
    (allowed,) = (r for r in SecureSumSettings.model_fields["ckks_max_bytes"].metadata if isinstance(r, Range))
    words = allowed.high // FRAME_BYTES * SLOTS  # of 32 bits; of 64, half as many
    assert 4 * words + 64 * 1024 < MAX_PAYLOAD_BYTES
    assert max(SlotCode.of(ring, n).words * ring for ring in (16, 32, 64) for n in range(1, 300)) == 32 * SLOTS
