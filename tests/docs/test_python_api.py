"""The guide of the Python API and its notebook run as they stand, without Jupyter."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = json.loads((DOCS / "notebooks" / "own_tables.ipynb").read_text())


def _blocks(page: str) -> list[tuple[int, str]]:
    """Code of a page's Python blocks, with the line that each begins in."""
    text = (DOCS / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, each.start(1)) + 1, each[1]) for each in found]


def _run(code: str, name: str, line: int, namespace: dict[str, Any]) -> Any:
    """Runs code as a cell does: the value of a last expression is what it shows."""
    tree = ast.increment_lineno(ast.parse(code), line - 1)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), namespace)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def test_every_block_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = _blocks("python-api.md")
    assert len(blocks) >= 9
    for line, code in blocks:
        _run(code, "python-api.md", line, namespace)
    shown = capsys.readouterr().out
    assert "classifier/chart" in shown
    assert "data-patient-id | south, table 'blood'" in shown


def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    shown = [
        _run("".join(cell["source"]), f"cell {k}", 1, namespace)
        for k, cell in enumerate(NOTEBOOK["cells"])
        if cell["cell_type"] == "code"
    ]
    curve = next(each for each in shown if getattr(each, "columns", None) is not None and "cm-fl" in each.columns)
    assert curve.index.tolist() == list(range(1, 13))
    assert "model.safetensors" in shown[-1]
    assert any("<svg" in each._repr_svg_() for each in shown if hasattr(each, "_repr_svg_"))


def test_the_notebook_is_kept_without_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
