"""The committed page of the plan's fields is the one that the models make."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from federation.plan import Plan
from federation.plan_problems import model_at
from federation.plan_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "plan-reference.md"


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m federation.plan_reference > docs/plan-reference.md"
    )


def test_every_field_has_a_description() -> None:
    waiting: list[type[BaseModel]] = [Plan]
    while waiting:
        model = waiting.pop()
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            inner = model_at((name,), model)
            if inner is not None:
                waiting.append(inner)
            else:
                assert f"| `{name}` |" in reference()
