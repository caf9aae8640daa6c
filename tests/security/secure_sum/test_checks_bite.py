"""The table of tests/mutations.py is not stale: each check is in the source once, each guarding test exists.

`make mutations` takes the checks out for real.
"""

from __future__ import annotations

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


def node_ids(path: str) -> set[str]:
    """Node ids of a test file without parameters, by its syntax tree."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(f"{path}::{node.name}")
        if isinstance(node, ast.ClassDef):
            found |= {f"{path}::{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.rule}-{m.file}-{MUTATIONS.index(m)}")
def test_the_check_is_in_the_source_once_and_its_test_exists(mutation: Mutation) -> None:
    text = (ROOT / mutation.path).read_text()
    assert text.count(mutation.check) == 1
    changed = text.replace(mutation.check, mutation.without)
    assert changed != text
    compile(changed, mutation.path, "exec")
    assert mutation.node in node_ids(mutation.node.partition("::")[0])


def test_every_rule_has_checks() -> None:
    assert {m.rule for m in MUTATIONS} == set(range(1, 12))
