"""Dashboards and alerts use what is declared and parse in Prometheus' own tools; every alert has its page and tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import dashboards, metrics
from monitoring.grafana import grafana

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "monitoring" / "rules"
GUIDES = {"coordinator": "docs/operator-guide.md", "node": "docs/node-guide.md"}
NAMES = {
    name: set(metric.labels) | ({"le"} if suffix == "_bucket" else set())
    for metric in metrics.DECLARED
    for suffix in (("_bucket", "_sum", "_count") if metric.kind is metrics.Kind.HISTOGRAM else ("",))
    for name in [metric.name + suffix]
}
ANYWHERE = {"job", "instance"}


def alerts() -> Iterator[tuple[str, dict[str, Any]]]:
    for side in GUIDES:
        for group in yaml.safe_load((RULES / f"{side}.yml").read_text())["groups"]:
            for rule in group["rules"]:
                yield side, rule


def expressions() -> Iterator[tuple[str, str]]:
    for dashboard in dashboards.DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield f"{dashboard.title}: {panel.title}", query.expression
    for _, rule in alerts():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_only_declared_metrics_and_labels(where: str, expression: str) -> None:
    used = set(re.findall(r"\bconsilium_\w+", expression))
    assert used <= NAMES.keys(), where
    assert used or "up{" in expression, where
    labels = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression))
    grouped = {name.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(",")}
    known = set().union(*(NAMES[name] for name in used), ANYWHERE)
    assert labels | grouped <= known, where


def test_the_operator_sees_nothing_that_stays_in_a_hospital() -> None:
    local = {m.name for m in metrics.DECLARED if not m.shareable}
    for dashboard in dashboards.DASHBOARDS:
        text = json.dumps(grafana(dashboard))
        if dashboard.bundle == "operator":
            assert not {name for name in local if re.search(rf"\b{name}\b", text)}
    assert not {name for name in local if name in (RULES / "coordinator.yml").read_text()}


def test_the_committed_dashboards_are_those_of_the_table() -> None:
    written = {path.relative_to(ROOT / "monitoring") for path in (ROOT / "monitoring" / "dashboards").rglob("*.json")}
    assert written == dashboards.files().keys()
    for path, text in dashboards.files().items():
        assert (ROOT / "monitoring" / path).read_text() == text, "run python -m monitoring.dashboards"


def test_no_two_panels_share_a_place() -> None:
    for dashboard in dashboards.DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in grafana(dashboard)["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, (dashboard.title, panel["title"])
            taken |= cells


def test_every_metric_is_on_a_page() -> None:
    shown = set().union(*(re.findall(r"\bconsilium_\w+", expression) for _, expression in expressions()))
    unseen = {m.name for m in metrics.DECLARED if not {n for n in shown if n.startswith(m.name)}}
    assert unseen == {"consilium_info", "consilium_node_info"}


def test_every_alert_has_its_entry_in_the_guide_and_is_tested_loud_and_silent() -> None:
    for side, rule in alerts():
        name = rule["alert"]
        assert rule["annotations"]["runbook"] == f"{GUIDES[side]}#{name.lower()}"
        assert re.search(rf"^#+ {name}$", (ROOT / GUIDES[side]).read_text(), re.MULTILINE), name
        tests = yaml.safe_load((RULES / "tests" / f"{side}.test.yml").read_text())["tests"]
        asked = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
        assert any(case.get("exp_alerts") for case in asked), f"{name} never fires in a test"
        assert any(not case.get("exp_alerts") for case in asked), f"{name} is never silent in a test"


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None and "CONSILIUM_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("promtool is missing: apt-get install prometheus (`.ci/run` does, and requires it)")
    assert tool is not None
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_pass_promtool() -> None:
    promtool("check", "rules", *map(str, sorted(RULES.glob("*.yml"))))


def test_alerts_fire_and_are_silent_where_promtool_s_tests_say() -> None:
    promtool("test", "rules", *map(str, sorted((RULES / "tests").glob("*.yml"))))


def test_dashboards_expressions_parse(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{k}", "expr": expression.replace("$instance", ".*")}
        for k, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))
