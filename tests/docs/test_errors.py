"""docs/errors.md has a row for every bad input of the issue; its tests, codes and metrics exist."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.metrics import DECLARED
from security.errors import ConsiliumError

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
HEADER, _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")
]
TESTS = sorted({test for row in ROWS for test in re.findall(r"`([^`]+)`", row[5])})


def functions(path: Path) -> set[str]:
    """`name` and `Class::name` of every function in a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def every(kind: type[ConsiliumError]) -> Iterator[type[ConsiliumError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every(child)


@pytest.mark.parametrize("test", TESTS)
def test_a_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert name in functions(ROOT / file)


def test_every_code_is_one_of_an_error() -> None:
    for room in ("coordinator", "federation", "institution_node", "security", "monitoring"):
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            if module.name.rpartition(".")[2] != "cli":
                importlib.import_module(module.name)
    known = {kind.code for kind in every(ConsiliumError)}
    for row in ROWS:
        assert set(re.findall(r"`([^`]+)`", row[2])) <= known, row[0]


def test_every_metric_is_declared() -> None:
    names = {metric.name for metric in DECLARED}
    assert set(re.findall(r"consilium_\w+", TEXT)) <= names


@pytest.mark.parametrize(
    "words",
    [
        *("another authority", "another role", "TLS 1.2", "malformed", "larger than any", "replayed", "out of phase"),
        *("unknown component", "wrong shape", "NaN", "without ids", "patient twice", "stage that the plan does not"),
        *("one class", "no patients", "unknown key"),
    ],
)
def test_every_bad_input_has_a_row_with_an_answer_a_count_and_a_test(words: str) -> None:
    rows = [row for row in ROWS if words in row[0]]
    assert rows
    assert len(HEADER) == 6
    for row in rows:
        assert len(row) == 6
        assert row[1]
        assert row[4]
        assert "::" in row[5]
