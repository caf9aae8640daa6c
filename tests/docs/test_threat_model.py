"""docs/threat-model.md names, for every rule of the secure sum, checks that are in the source and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text()
ROOMS = ("secure_sum", "ckks")
"""The table of each room; that of encrypted sums has `ckks` in place of a rule's number."""


def rows() -> list[tuple[str, list[str], list[str]]]:
    """(rule, places, tests) of every row of the tables; the room of a place or test stands before its file."""
    found = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (cells[0].isdigit() or cells[0] in ROOMS):
            room = cells[0] if cells[0] in ROOMS else ROOMS[0]
            places, tests = ([f"{room}/{each}" for each in re.findall(r"`([^`]+)`", cell)] for cell in cells[2:])
            found.append((cells[0], places, tests))
    return found


def functions(path: Path) -> set[str]:
    """`name` and `Class::name` of every function in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def test_every_rule_has_a_row_with_a_place_and_a_test() -> None:
    assert {rule for rule, _, _ in rows()} == {*map(str, range(1, 12)), "ckks"}
    assert all(places and tests for _, places, tests in rows())


@pytest.mark.parametrize("place", sorted({p for _, places, _ in rows() for p in places}))
def test_the_place_of_a_check_exists(place: str) -> None:
    file, _, function = place.partition(":")
    assert function in functions(ROOT / "security" / file)


@pytest.mark.parametrize("test", sorted({t for _, _, tests in rows() for t in tests}))
def test_a_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert name in functions(ROOT / "tests" / "security" / file)


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(test_\w+\.py::[^`]+)`", TEXT))))
def test_a_test_named_anywhere_on_the_page_exists(test: str) -> None:
    file, _, name = test.partition("::")
    rooms = [ROOT / "tests" / "security" / room / file for room in ROOMS]
    assert any(name in functions(path) for path in rooms if path.exists())


def test_what_is_not_protected_is_said() -> None:
    limits = TEXT[TEXT.index("## What this does not protect against") :]
    for words in ("Poisoned updates", "differential privacy", "coordinator's word", "Denial of service"):
        assert words in limits
