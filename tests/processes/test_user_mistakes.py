"""What people get wrong at the command lines, as processes of their own: two lines and exit code 2, no traceback."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.local_federation import free_port
from tests.processes.local import say, user_error
from tests.processes.trained import Trained

pytestmark = pytest.mark.processes

CONSILIUM, NODE, COORDINATOR = "deploy.cli", "institution_node.cli", "coordinator.cli"
Command = Callable[[Trained, Path], CompletedProcess[str]]


def changed_plan(made: Trained, folder: Path, old: str, new: str) -> Path:
    file = folder / f"plan-{secrets.token_hex(8)}.toml"  # mistakes are made side by side
    text = made.plan_file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def unknown_key(made: Trained, folder: Path) -> CompletedProcess[str]:
    file = changed_plan(made, folder, "[training]\n", "[training]\nlocal_stepz = 3\n")
    return say(CONSILIUM, "plan", "check", str(file))


def not_toml(made: Trained, folder: Path) -> CompletedProcess[str]:
    return made.operator("run", "start", str(changed_plan(made, folder, "[training]", "[training")))


def other_federation(made: Trained, folder: Path) -> CompletedProcess[str]:
    return made.operator("run", "start", str(changed_plan(made, folder, '"demo"', '"other"')))


def not_empty(made: Trained, folder: Path) -> CompletedProcess[str]:
    full = folder / "full"
    full.mkdir(exist_ok=True)
    (full / "mine.txt").write_text("do not overwrite")
    return made.operator("export", str(full))


def node_with(made: Trained, folder: Path, old: str, new: str, *words: str) -> CompletedProcess[str]:
    """A command at toy-1 with something changed in its node.toml."""
    copy = folder / f"node-{secrets.token_hex(8)}"
    shutil.copytree(made.local.folder("toy-1"), copy, ignore=shutil.ignore_patterns("state"))
    file = copy / "node.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return say(NODE, *words, "--config", str(file))


def open_key(made: Trained, folder: Path) -> CompletedProcess[str]:
    copy = folder / "careless"
    shutil.copytree(made.local.folder("operator"), copy)
    os.chmod(copy / "key.pem", 0o644)
    return made.operator("run", "status", identity=str(copy))


def second_coordinator(made: Trained, folder: Path) -> CompletedProcess[str]:
    """On the state folder of the one that runs."""
    file = made.local.folder("coordinator") / "coordinator.toml"
    return say(COORDINATOR, "serve", "--config", str(file))


def predicted(made: Trained, folder: Path, *tables: str, model: Path | None = None) -> CompletedProcess[str]:
    return say(NODE, "predict", "--model", str(model or made.model), *tables)


MISTAKES: dict[str, tuple[Command, tuple[str, ...]]] = {
    "a plan with an unknown key": (unknown_key, ("local_stepz", "local_steps", ".toml:")),
    "a plan that is no TOML": (not_toml, (".toml:",)),
    "a plan that is not there": (lambda m, f: say(CONSILIUM, "plan", "check", str(f / "no.toml")), ("no.toml",)),
    "a plan of another federation": (other_federation, ("'other'", "'demo'")),
    "a plan that ran before": (
        lambda m, f: m.operator("run", "start", str(m.plan_file)),
        ("run-exists", "another run name"),
    ),
    "an address where nobody is": (
        lambda m, f: m.operator("run", "status", coordinator=f"127.0.0.1:{free_port()}"),
        ("no coordinator answers at 127.0.0.1:",),
    ),
    "an address without a port": (lambda m, f: m.operator("nodes", coordinator="127.0.0.1"), ("127.0.0.1",)),
    "a folder without a certificate": (lambda m, f: m.operator("run", "status", identity=str(f)), (".pem",)),
    "an institution's certificate": (
        lambda m, f: m.operator("run", "status", identity=str(m.local.folder("toy-1"))),
        ("operator",),
    ),
    "a key that others may read": (open_key, ("key.pem", "chmod")),
    "a run that is not there": (lambda m, f: m.operator("run", "watch", "feedface"), ("'feedface'", "toy")),
    "figures to nowhere": (lambda m, f: m.operator("run", "metrics"), ("--csv", "--tensorboard")),
    "figures over figures": (
        lambda m, f: m.operator("run", "metrics", "--tensorboard", str(m.folder / "board")),
        ("event files already",),
    ),
    "no run to stop": (lambda m, f: m.operator("run", "stop", "feedface"), ("'feedface'",)),
    "an export over files": (not_empty, ("not empty",)),
    "a round that is not kept": (
        lambda m, f: m.operator("export", str(f / "m"), "--run", m.run, "--round", "9"),
        ("round 9 are not kept",),
    ),
    "no node.toml": (lambda m, f: say(NODE, "run", "--config", str(f / "node.toml")), ("node.toml",)),
    "a key of node.toml misspelt": (
        lambda m, f: node_with(m, f, "[compute]\n", "[compute]\ntreads = 2\n", "run"),
        ("treads", "threads", "node.toml:"),
    ),
    "another institution's name": (lambda m, f: node_with(m, f, '"toy-1"', '"toy-2"', "run"), ("'toy-2'", "'toy-1'")),
    "a model that is not there": (
        lambda m, f: predicted(m, f, *m.tables(m.folder / "data/test/TOY"), model=f / "none"),
        ("none",),
    ),
    "a table that is not there": (lambda m, f: predicted(m, f, "--table", f"mrna={f / 'no.parquet'}"), ("no.parquet",)),
    "a modality that is not there": (lambda m, f: predicted(m, f, "--table", "xray=x.csv"), ("xray", "mrna")),
    "a state folder in use": (second_coordinator, ("another coordinator",)),
    "no coordinator.toml": (lambda m, f: say(COORDINATOR, "serve", "--config", str(f / "no.toml")), ("no.toml",)),
}


@pytest.fixture(scope="module")
def results(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, CompletedProcess[str] | BaseException]:
    """All mistakes, two at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    with ThreadPoolExecutor(2) as pool:
        made: dict[str, Future[CompletedProcess[str]]] = {
            name: pool.submit(command, trained, folder) for name, (command, _) in MISTAKES.items()
        }
    return {name: future.exception() or future.result() for name, future in made.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_two_lines(
    results: dict[str, CompletedProcess[str] | BaseException], mistake: str
) -> None:
    result = results[mistake]
    assert isinstance(result, CompletedProcess), result
    said = user_error(result)
    for words in MISTAKES[mistake][1]:
        assert words in said, said
