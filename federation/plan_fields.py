"""What the tables of a plan are made of: the base of all of them, the types of fields, and what numbers may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Range:
    """Numbers that `plan_check` allows in a field; with `above`, `low` itself is not among them."""

    low: float
    high: float
    unit: str = ""
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:.10g}"


U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def about(description: str) -> Any:
    """What `docs/plan-reference.md` says about a field."""
    return Field(description=description)


class PlanTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
