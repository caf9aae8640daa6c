"""The plan as bytes: one plan, one encoding, one digest; anything else is refused."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest
from consilium.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from federation.plan import MAX_BYTES, Plan, PlanError, Training, digest
from tests.plans import example_identity, example_plan, example_private_key

EXAMPLE_DIGEST = "71b4490c485e0e4fa5e5f27e2189bc35282537922f18876e321cfe98f728bd3f"


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value that the type allows, sensible or not."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return st.builds(annotation, **{name: values_of_field(f) for name, f in annotation.model_fields.items()})
    if get_origin(annotation) is tuple:
        return st.lists(values_of(get_args(annotation)[0]), max_size=2).map(tuple)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_args(annotation):  # Annotated[int, …] inside a tuple
        return st.integers(0, 2**32 - 1)
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return st.booleans() if annotation is bool else st.text(max_size=4)


def values_of_field(field: FieldInfo) -> st.SearchStrategy[Any]:
    if field.annotation is not int:
        return values_of(field.annotation)
    highest = next(rule.le for rule in field.metadata if getattr(rule, "le", None) is not None)
    return st.integers(0, highest)


@settings(max_examples=40, deadline=None)
@given(values_of(Plan))
def test_every_plan_survives_its_encoding(plan: Plan) -> None:
    data = plan.to_bytes()
    again = Plan.from_bytes(data)
    assert again == plan
    assert again.to_bytes() == data


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_are_another_plan_with_another_digest(data: st.DataObject) -> None:
    original = example_plan(3).to_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        plan = Plan.from_bytes(bytes(changed))
    except PlanError:
        return
    assert plan != example_plan(3)
    assert plan.to_bytes() == bytes(changed)
    assert digest(bytes(changed)) != digest(original)


def test_the_fields_are_those_of_the_proto() -> None:
    def compare(descriptor: Any, model: type[BaseModel]) -> None:
        assert [field.name for field in descriptor.fields] == list(model.model_fields), descriptor.name
        for field in descriptor.fields:
            if field.message_type is not None:
                annotation: Any = model.model_fields[field.name].annotation
                compare(field.message_type, get_args(annotation)[0] if field.is_repeated else annotation)

    compare(plan_pb2.Plan.DESCRIPTOR, Plan)


def test_the_digest_of_a_plan_does_not_drift() -> None:
    # Until the first release a new field may change it. Afterwards, if this fails, every accepted digest in every
    # policy is void: keep the encoding, or raise FORMAT.
    assert digest(example_plan().to_bytes()).hex() == EXAMPLE_DIGEST


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data + b"\xa0\x06\x01", "unknown field number 100"),
        (lambda data: b"\x08\x02" + data[2:], "format 2"),
        (lambda data: data[:-1], "not a plan"),
        (lambda data: b"\xff\xff", "not a plan"),
        (lambda data: b"", "format 0"),
        (lambda data: b"\x08\x01" + data, "one encoding"),
        (lambda data: b"\x08\x81\x00" + data[2:], "one encoding"),
        (lambda data: bytes(MAX_BYTES + 1), f"more than {MAX_BYTES}"),
    ],
    ids=["unknown-field", "other-format", "cut", "noise", "empty", "field-twice", "long-varint", "too-long"],
)
def test_bytes_that_are_not_a_plan(change: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.from_bytes(change(example_plan().to_bytes()))


def test_an_unknown_field_deep_inside_is_named_with_its_place() -> None:
    message = plan_pb2.Plan()
    message.ParseFromString(example_plan().to_bytes())
    message.institutions[2].MergeFromString(b"\x38\x01")
    with pytest.raises(PlanError, match=r"institutions\[2\]: unknown field number 7"):
        Plan.from_bytes(message.SerializeToString(deterministic=True))


def test_an_absent_table_is_an_error_and_not_a_default() -> None:
    message = plan_pb2.Plan()
    message.ParseFromString(example_plan().to_bytes())
    message.ClearField("training")
    with pytest.raises(PlanError, match="training: this table is missing"):
        Plan.from_bytes(message.SerializeToString(deterministic=True))


def test_a_zero_on_the_wire_is_a_zero_and_not_the_default() -> None:
    plan = example_plan(training={"count_noise": 0.0, "momentum": 0.0})
    assert Plan.from_bytes(plan.to_bytes()).training.count_noise == 0.0


def test_a_word_that_the_plan_does_not_know() -> None:
    message = plan_pb2.Plan()
    message.ParseFromString(example_plan().to_bytes())
    message.blending.kind = "dgbb"
    message.deadlines.keys = float("nan")
    with pytest.raises(PlanError) as caught:
        Plan.from_bytes(message.SerializeToString(deterministic=True))
    assert [problem.path for problem in caught.value.problems] == [("blending", "kind"), ("deadlines", "keys")]
    assert "did you mean 'dgb'?" in str(caught.value)


def test_plans_are_frozen_and_strict() -> None:
    plan = example_plan()
    with pytest.raises(ValidationError):
        plan.rounds = 5
    with pytest.raises(ValidationError):
        Training(local_steps=2.0)  # type: ignore[arg-type]  # the wrong type is what is tested
    with pytest.raises(ValidationError):
        Training(steps=2)  # type: ignore[call-arg]  # the unknown field is what is tested


def test_conveniences() -> None:
    plan = example_plan()
    assert plan.roster == ("brca-1", "brca-2", "brca-3", "lusc-1", "lusc-2", "lusc-3", "lihc-1", "lihc-2", "lihc-3")
    assert plan.modality_order == ("mrna", "image", "clinical")
    assert plan.class_names == ("early", "late")
    assert plan.institution("lusc-2").modalities == ("image", "clinical")
    assert plan.combination("lihc-2") == "mrna+clinical"
    with pytest.raises(PlanError, match="'nobody' is not in the roster"):
        plan.institution("nobody")


def test_the_example_s_keys_can_sign_for_its_roster() -> None:
    from security.signing import parse_public_key_text, verify

    plan = example_plan(4)
    for index, institution in enumerate(plan.institutions):
        signature = example_identity(index).sign("test", b"x")
        verify(parse_public_key_text(institution.key), "test", b"x", signature)
    assert example_private_key(0).private_numbers() == example_private_key(0).private_numbers()
