"""What the rooms of the house load at run time, also through others; and that nobody else owns their names.

`import-linter` reads the sources; this loads every module in a fresh process and looks at what came with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOMS = ("deploy", "studies", "coordinator", "institution_node", "federation", "monitoring", "security", "consilium")
LOAD = """
import importlib, json, pkgutil, sys
room = importlib.import_module(sys.argv[1])
names = [room.__name__, *(m.name for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}."))]
for name in names:
    importlib.import_module(name)
print(json.dumps([len(names), sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "opacus", "pandas", "pyarrow"}
SERVICE = {"grpc", "grpc_health", "sqlalchemy"}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("security", HEAVY | SERVICE | {"federation", "monitoring", "prometheus_client"}),
        ("monitoring", HEAVY | SERVICE | {"federation"}),
        ("federation", HEAVY | SERVICE | {"coordinator", "institution_node", "tenseal"}),
        ("coordinator", HEAVY | {"institution_node", "studies", "deploy", "tenseal"}),
        ("institution_node", {"coordinator", "studies", "deploy", "sqlalchemy", "tenseal"}),
        ("studies", {"grpc", "deploy"}),
    ],
)
def test_a_room_loads_nothing_that_it_must_not_know(room: str, forbidden: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, room], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    count, loaded = json.loads(done.stdout)
    assert count > 3
    assert room in loaded
    assert forbidden & set(loaded) == set()


def test_each_top_level_name_has_one_owner() -> None:
    """The names are generic: another distribution with one of them would be imported in its place, or overwrite it."""
    owners = packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, ())) <= {"consilium"}, room
        spec = find_spec(room)
        assert spec is not None
        found = {Path(place).resolve().parent for place in spec.submodule_search_locations or ()}
        assert len(found) == 1, room  # not a namespace that somebody else adds to
        (base,) = found
        assert ((base.parent if room == "consilium" else base) / "pyproject.toml").exists(), room  # these sources
    assert "consilium" not in owners.get("proto", ())  # a source root, not an import package
