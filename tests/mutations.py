"""Takes every check of the secure sum out, one at a time, and expects the attack test that guards it to fail.

`python tests/mutations.py` runs all entries, `python tests/mutations.py 5 9` those of rules 5 and 9. Each entry runs in
a copy of the package in a temporary folder; the working tree is not touched. The default test run only checks that the
table is not stale (tests/security/secure_sum/test_checks_bite.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_TESTS: Final = "tests/security/secure_sum/"
_CODE: Final = "security/secure_sum/"
_COPIED: Final = ("security", "proto", "tests/security/secure_sum", "tests/security/ckks", "pyproject.toml")
_ROOMS: Final = ("federation", "coordinator", "institution_node", "monitoring", "studies", "tests")
"""Beside these, for a check above security."""


@dataclass(frozen=True)
class Mutation:
    """One check and what guards it.

    Attributes:
        rule: number in DESIGN.md, "Secure sum".
        file: under security/secure_sum.
        check: source text that is there exactly once.
        without: what replaces it.
        test: node id under tests/security/secure_sum, of one test or class; must fail with the check gone.
    """

    rule: int
    file: str
    check: str
    without: str
    test: str

    @property
    def path(self) -> str:
        """Where the check is."""
        return _CODE + self.file

    @property
    def copied(self) -> tuple[str, ...]:
        """What the test needs."""
        if not self.file.startswith("../../"):
            return _COPIED
        return (*(name for name in _COPIED if not name.startswith("tests")), *_ROOMS)

    @property
    def node(self) -> str:
        """The test's whole id."""
        return _TESTS + self.test


MUTATIONS: Final = tuple(
    Mutation(**entry) for entry in tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]
)


def bites(mutation: Mutation) -> tuple[bool, str]:
    """Whether the test fails with the check gone, and what pytest said."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        for name in mutation.copied:
            source, target = ROOT / name, there / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        path = there / mutation.path
        text = path.read_text()
        if text.count(mutation.check) != 1:
            return False, "the check is not in the source exactly once"
        path.write_text(text.replace(mutation.check, mutation.without))
        compile(path.read_text(), str(path), "exec")
        command = [sys.executable, "-m", "pytest", mutation.node, "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(there / "proto")))}
        done = subprocess.run(command, cwd=there, env=environment, capture_output=True, text=True, check=False)
        # 1: tests ran and some failed. Anything else (nothing collected, an import error) proves nothing.
        return done.returncode == 1, done.stdout[-1500:]


def main(rules: Sequence[str]) -> int:
    """Runs the entries of `rules`, all without any; returns how many do not bite."""
    chosen = [m for m in MUTATIONS if not rules or str(m.rule) in rules]
    toothless = 0
    for mutation in chosen:
        good, said = bites(mutation)
        toothless += not good
        print(f"{'bites' if good else 'DOES NOT BITE':14} rule {mutation.rule:2} {mutation.file:14} {mutation.test}")  # noqa: T201  # a script's output
        if not good:
            print(f"    {mutation.check.strip()}\n{said}")  # noqa: T201
    print(f"{len(chosen) - toothless} of {len(chosen)} checks have a test that bites.")  # noqa: T201
    return min(toothless, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
