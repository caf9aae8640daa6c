"""The committed stubs are what the `.proto` files say, made by the pinned generator."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which `proto/generate.sh` wrote everything once more."""
    folder = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        ["sh", str(PROTO / "generate.sh"), str(folder)],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        capture_output=True,
        timeout=100,
    )
    return folder


def stubs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*_pb2*.py*") if p.suffix != ".pyc"}


def test_regenerating_changes_nothing(made: Path) -> None:
    fresh, committed = stubs(made), stubs(PROTO)
    assert len(fresh) >= 10
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `make proto` and commit"


def test_only_services_have_grpc_stubs(made: Path) -> None:
    """Otherwise federation/ and security/, which read messages, would load gRPC."""
    assert {Path(name).name for name in stubs(made) if "_grpc" in name} == {
        "service_pb2_grpc.py",
        "service_pb2_grpc.pyi",
    }


def test_the_generator_is_the_pinned_one() -> None:
    pinned = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "grpcio-tools==" in line)
    assert f"grpcio-tools=={version('grpcio-tools')}" in pinned
