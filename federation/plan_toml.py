"""Plans as people write them: TOML to a checked `Plan`, every problem with its line and remedy.

Sections and keys are the fields of the plan. Beyond them, for the writer's sake:
- `preset = "default" | "paper" | "paper-code"` fills what the writer leaves out (`federation.plan_presets`);
- in `[[modalities]]`: `columns_file = "genes.txt"`, one column a line, tab-separated: name, and optionally kind,
  low, high, transform, categories joined by `|`; `default_column = {…}` fills what a column of its kind leaves
  out; an entry of `columns` may be just a name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from federation.plan import Column, Plan
from federation.plan_check import find_problems
from federation.plan_describe import describe
from federation.plan_presets import PRESETS
from federation.plan_problems import Path, PlanError, Problem, did_you_mean, model_at, path_text, problems_of
from federation.toml_lines import key_lines

__all__ = ["describe", "load_plan"]

_SYNTAX_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_DEEPEST: Final = 20  # a path of the plan has at most 6 parts
_FILE_FIELDS: Final = ("name", "kind", "low", "high", "transform", "categories")
_DEFAULT_FIELDS: Final = _FILE_FIELDS[1:]


def load_plan(text: str, *, path_label: str, read_relative: Callable[[str], str]) -> Plan:
    """Reads and checks a plan.

    Args:
        text: the TOML.
        path_label: what to call the text in messages, `plan.toml`.
        read_relative: reads the text of a file named in the plan, relative to it; may raise OSError or
            ValueError.

    Returns:
        A plan that has passed `plan_check.check`.

    Raises:
        PlanError: every problem as `plan.toml:LINE: [section] key: problem. Remedy: …`.
    """
    text = text.removeprefix("\ufeff")  # some editors begin a file with a byte order mark
    values, lines = _parse(text, path_label)
    writer = _Writing(path_label, lines, text.count("\n", 0, len(text.rstrip())) + 1)
    fill_preset(values)
    for i, modality in enumerate(_entries(values, "modalities")):
        if isinstance(modality, dict):
            _expand_columns(modality, ("modalities", i), writer, read_relative)
    try:
        plan = Plan.model_validate(_as_tuples(values))
    except ValidationError as error:
        found = (writer.locate(problem, written=True) for problem in problems_of(error, Plan))
        raise PlanError(_distinct([*writer.problems, *found])) from None
    found = (writer.locate(problem) for problem in find_problems(plan))
    problems = _distinct([*writer.problems, *found])
    if problems:
        raise PlanError(problems)
    return plan


@dataclass
class _Writing:
    """Where the author wrote what, and the problems of the shorthand."""

    label: str
    lines: Mapping[Path, int]
    last_line: int
    files: dict[Path, str] = field(default_factory=dict)  # columns that come from a file: `genes.txt:12`
    defaults: dict[Path, Path] = field(default_factory=dict)  # a column's field to the default that filled it
    problems: list[Problem] = field(default_factory=list)

    def report(self, path: Path, message: str, remedy: str) -> None:
        """Adds a problem of the shorthand."""
        self.problems.append(self.locate(Problem(path, message, remedy)))

    def locate(self, problem: Problem, *, written: bool = False) -> Problem:
        """The problem at its place; with `written`, at the default that the value was written in."""
        path = self.defaults.get(problem.path, problem.path) if written else problem.path
        for end in range(len(path), 0, -1):
            if path[:end] in self.files:
                rest = path_text(path[end:])
                return problem.at(f"{self.files[path[:end]]}: {rest}" if rest else self.files[path[:end]])
        return problem.at(f"{self.label}:{self._line(path)}: {_section_and_key(path)}")

    def _line(self, path: Path) -> int:
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        # Absent from the text: a table can be added at its end, a key of the root only before the first table.
        return self.last_line if model_at(path, Plan) is not None else 1


def _section_and_key(path: Path) -> str:
    section = path[:1]
    if model_at(section, Plan) is None:
        return path_text(path)
    entry = len(path) > 1 and isinstance(path[1], int)
    key = path_text(path[2:] if entry else path[1:])
    head = f"[[{section[0]}]]" if entry else f"[{section[0]}]"
    return f"{head} {key}" if key else head


def _parse(text: str, label: str) -> tuple[dict[str, Any], dict[Path, int]]:
    try:
        values, lines = tomllib.loads(text), key_lines(text)
        if any(len(path) > _DEEPEST for path in lines):
            raise RecursionError
        return values, lines
    except (ValueError, RecursionError) as error:  # beside syntax: numbers of thousands of digits, endless lists
        told = _SYNTAX_PLACE.search(str(error))
        line = told.group(1) if told and told.group(1) else text.count("\n", 0, len(text.rstrip())) + 1
        what = _SYNTAX_PLACE.sub("", str(error)) if isinstance(error, tomllib.TOMLDecodeError) else "beyond all limits"
        remedy = "Mend the line; texts stand in quotes, lists in [ ], one `key = value` a line."
        raise PlanError.one(f"not valid TOML: {what}.", remedy, place=f"{label}:{line}") from None


def _entries(table: Mapping[str, Any], name: str) -> list[Any]:
    value = table.get(name)
    return value if isinstance(value, list) else []


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    return list({(problem.place, problem.message): problem for problem in problems}.values())


def fill_preset(values: dict[str, Any]) -> None:
    """What is written wins; a written value that a preset fixes otherwise makes the plan `custom`."""
    preset = values.get("preset", "default")
    if not isinstance(preset, str) or preset not in PRESETS:
        return  # said by the model, with the words that are allowed
    for section, fields in PRESETS[preset].items():
        written = values.get(section, {})
        if isinstance(written, dict):
            if any(written[name] != value for name, value in fields.items() if name in written):
                values["preset"] = "custom"
            values[section] = {**fields, **written}


# ------------------------------------------------------------------------------------------ columns of a modality


def _expand_columns(
    modality: dict[str, Any], path: Path, writer: _Writing, read_relative: Callable[[str], str]
) -> None:
    default, listed = modality.pop("default_column", {}), modality.get("columns", [])
    if not isinstance(default, dict):
        writer.report((*path, "default_column"), "must be a table.", "Write { low = -10, high = 10 }.")
        default = {}
    for name in [name for name in default if name not in _DEFAULT_FIELDS]:
        remedy = f"Use: {', '.join(_DEFAULT_FIELDS)}{did_you_mean(name, _DEFAULT_FIELDS)}."
        writer.report((*path, "default_column", name), "there is no such field.", remedy)
        del default[name]
    file = modality.pop("columns_file", None)
    if not isinstance(listed, list) or (file is None and "columns" not in modality):
        return
    columns: list[Any] = [{"name": entry} if isinstance(entry, str) else entry for entry in listed]
    if file is not None:
        for line, column in _columns_in_file(file, (*path, "columns_file"), writer, read_relative):
            writer.files[(*path, "columns", len(columns))] = f"{file}:{line}"
            columns.append(column)
    modality["columns"] = [
        _with_default(column, default, path, k, writer) if isinstance(column, dict) else column
        for k, column in enumerate(columns)
    ]


def _with_default(column: dict[str, Any], default: dict[str, Any], path: Path, k: int, writer: _Writing) -> Any:
    kinds = [table.get("kind", Column.model_fields["kind"].default) for table in (column, default)]
    if "kind" in column and kinds[0] != kinds[1]:
        return column
    for name in default.keys() - column.keys():
        writer.defaults[(*path, "columns", k, name)] = (*path, "default_column", name)
    return {**default, **column}


def _columns_in_file(
    file: Any, path: Path, writer: _Writing, read_relative: Callable[[str], str]
) -> list[tuple[int, dict[str, Any]]]:
    if not isinstance(file, str):
        writer.report(path, "must be a text in quotes.", "Write the name of a file beside the plan.")
        return []
    try:
        text = read_relative(file)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no such name, or not UTF-8"
        writer.report(path, f"{file!r} cannot be read: {why}.", "Correct the name; it is relative to the plan.")
        return []
    columns = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            columns.append((number, _column_in_line(line, f"{file}:{number}", writer)))
    if not columns:
        writer.report(path, f"{file!r} has no columns.", "Write one column name a line.")
    return columns


def _column_in_line(line: str, place: str, writer: _Writing) -> dict[str, Any]:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) > len(_FILE_FIELDS):
        remedy = f"Write, separated by tabs, at most: {', '.join(_FILE_FIELDS)}."
        writer.problems.append(Problem((), f"{len(cells)} cells.", remedy, place))
    column: dict[str, Any] = {}
    for name, cell in zip(_FILE_FIELDS, cells, strict=False):
        if name in ("low", "high") and cell:
            try:
                column[name] = float(cell)
            except ValueError:
                remedy = "Write a number like -2.5, with a point."
                writer.problems.append(Problem((), f"{cell!r} is not a number.", remedy, f"{place}: {name}"))
        elif name == "categories" and cell:
            column[name] = [category.strip() for category in cell.split("|")]
        elif cell or name == "name":
            column[name] = cell
    return column
