"""The units: what systemd itself says of them, and that they name what the documents tell people to make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
MOST_EXPOSED = 20  # of 100: ten times what `systemd-analyze security` prints; the node's with its GPU drop-in


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None and "CONSILIUM_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    assert tool is not None
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False, timeout=60)


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_it_hardly_exposed(unit: Path) -> None:
    said = systemd_analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager", str(unit))
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_one_line_less_of_hardening_can_be_too_much(unit: Path, tmp_path: Path) -> None:
    softer = tmp_path / unit.name
    kept = [line for line in unit.read_text().splitlines() if not line.startswith(("SystemCallFilter", "Protect"))]
    softer.write_text("\n".join(kept))
    assert systemd_analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(softer)).returncode != 0


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_knows_every_line(unit: Path, tmp_path: Path) -> None:
    """`verify` wants the program to be there: something that is, stands in for it."""
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"/opt/consilium/bin/\S+", "/bin/true", unit.read_text()))
    said = systemd_analyze("verify", "--man=no", str(copy))
    assert (said.returncode, re.findall(rf"{re.escape(unit.name)}.*", said.stderr)) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_starts_only_where_its_files_are_and_the_key_is_a_credential(unit: Path) -> None:
    found = settings(unit)
    (start,), (credential,), (reload,) = found["ExecStart"], found["LoadCredential"], found["ExecReload"]
    (configuration,) = re.findall(r"--config (\S+)", start)
    assert {configuration, "/etc/consilium/key.pem", "/etc/consilium/ca.pem"} <= set(found["ConditionPathExists"])
    assert credential == "key.pem:/etc/consilium/key.pem"
    assert f"/run/credentials/{unit.name}/key.pem" in unit.read_text()
    assert "HUP" in reload
    program = start.split()[0].rsplit("/", 1)[1]
    assert f'{program} = "' in (ROOT / "pyproject.toml").read_text()
    guide = "operator-guide.md" if "coordinator" in unit.name else "node-guide.md"
    text = (ROOT / "docs" / guide).read_text()
    assert unit.name in text
    assert f"/run/credentials/{unit.name}/key.pem" in text
