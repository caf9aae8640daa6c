"""What is wrong with a plan, told field by field, so that every problem is seen at once and in its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from security.errors import ConfigurationError

Path = tuple[str | int, ...]

SAME_RELEASE: Final = "Make the plan with `consilium plan check` of the same release as this program."


def path_text(path: Path) -> str:
    """`("institutions", 2, "key")` as `institutions[2].key`; entries of a list count from 0."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a plan.

    Attributes:
        path: the field, from the plan's root.
        message: what is wrong, a sentence.
        remedy: what to do about it, a sentence.
        place: where its author wrote it, `plan.toml:12: [training] local_steps`; empty: the path says it.
    """

    path: Path
    message: str
    remedy: str
    place: str = ""

    def __str__(self) -> str:
        place = self.place or path_text(self.path)
        text = f"{self.message} Remedy: {self.remedy}"
        return f"{place}: {text}" if place else text

    def at(self, place: str) -> Problem:
        """The same problem, seen at `place`."""
        return replace(self, place=place)


SHOWN: Final = 30  # a wrong range can be wrong in each of 20,000 columns


class PlanError(ConfigurationError):
    """A plan that nothing may run by. `problems` lists all of them, at least one."""

    code: ClassVar[str] = "plan"

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        if len(problems) == 1:
            message, remedy, place = first.message, first.remedy, first.place or path_text(first.path)
        else:
            lines = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
            if len(problems) > SHOWN:
                lines += f"\n  … and {len(problems) - SHOWN} more"
            message, remedy, place = f"the plan has {len(problems)} problems:\n{lines}", "", ""
        super().__init__(message, remedy=remedy, place=place)
        self.problems = tuple(problems)

    @classmethod
    def one(cls, message: str, remedy: str, *, path: Path = (), place: str = "") -> PlanError:
        """A plan error of a single problem."""
        return cls((Problem(path, message, remedy, place),))


def problems_of(error: ValidationError, model: type[BaseModel]) -> tuple[Problem, ...]:
    """Pydantic's findings about a `model` in our words; of what the author wrote only names are repeated."""
    items = error.errors(include_url=False)
    return tuple(_problem(tuple(item["loc"]), item["type"], item, model) for item in items)


def did_you_mean(wrong: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, with its leading blank, or nothing where no candidate is near."""
    near = difflib.get_close_matches(wrong, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def model_at(path: Path, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model class that the value at `path` belongs to; None where it is not a table of the plan."""
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = _table_type(model.model_fields[part].annotation)
    return model


def _table_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _table_type(argument)
        if found is not None:
            return found
    return None


_KINDS = {
    "string": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list in [ ]",
    "model": "a table",
    "finite_number": "a finite number",
}


def _problem(path: Path, kind: str, item: Any, root: type[BaseModel]) -> Problem:
    context = item.get("ctx", {})
    table = model_at(path, root)
    if kind == "missing":
        what = "field" if table is None else "list" if _is_list(path, root) else "table"
        return Problem(path, f"this {what} is missing.", f"Write it: {_description(path, root)}")
    if kind == "extra_forbidden":
        owner = model_at(path[:-1], root)
        near = did_you_mean(str(path[-1]), owner.model_fields if owner else ())
        what = "table" if isinstance(item["input"], dict) else "field"
        remedy = f"Take it out, or correct its name{near}; docs/plan-reference.md lists every field."
        return Problem(path, f"there is no such {what}.", remedy)
    if kind == "literal_error":
        near = did_you_mean(str(item["input"]), re.findall(r"'([^']*)'", str(context["expected"])))
        return Problem(path, "not one of the words allowed here.", f"Write {context['expected']}{near}.")
    if kind in ("greater_than_equal", "less_than_equal"):
        relation, limit = ("below", context.get("ge")) if "ge" in context else ("above", context.get("le"))
        return Problem(path, f"the number is {relation} {limit}.", "Choose one that is not.")
    if kind == "tuple_type" and table:
        return Problem(path, "must be a list of tables.", f"Begin each entry with [[{path[-1]}]].")
    for prefix, wanted in _KINDS.items():
        if kind.startswith(prefix):
            return Problem(path, f"must be {wanted}.", f"Write {wanted}.")
    return Problem(path, f"{item['msg']}.", "See docs/plan-reference.md.")


def _field(path: Path, root: type[BaseModel]) -> FieldInfo | None:
    owner = model_at(path[:-1], root)
    return owner.model_fields.get(str(path[-1])) if owner else None


def _is_list(path: Path, root: type[BaseModel]) -> bool:
    field = _field(path, root)
    return field is not None and get_origin(field.annotation) is tuple


def _description(path: Path, root: type[BaseModel]) -> str:
    field = _field(path, root)
    return (field.description if field else None) or "see docs/plan-reference.md."
