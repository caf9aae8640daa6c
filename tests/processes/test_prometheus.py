"""Debian's Prometheus fetches a real federation's metrics, and answers for every panel and every alert."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local_federation import free_port
from monitoring import dashboards
from tests.processes.local import until
from tests.processes.trained import Trained

RULES = Path(__file__).resolve().parents[2] / "monitoring" / "rules"
# Nobody was lost or refused, nothing was counted by subgroup: those series begin when something happens.
NOT_IN_THIS_RUN = {"Dropouts", "Refusals", "Refused", "Subgroups", "AUROC of subgroups"}

pytestmark = pytest.mark.processes


class Prometheus:
    """A server's HTTP interface."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query."""
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def scraped(self, targets: int) -> bool:
        try:
            return len(self.ask("count_over_time(up[5m]) >= 3 and up == 1")) == targets
        except (OSError, urllib.error.URLError):
            return False


@pytest.fixture(scope="module")
def prometheus(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None and "CONSILIUM_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("prometheus is missing: apt-get install prometheus (`.ci/run` does, and requires it)")
    assert program is not None
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    inside = [f"127.0.0.1:{number}" for number in trained.inside.values()]
    shareable = [f"127.0.0.1:{number}" for party, number in trained.shareable.items() if party != "coordinator"]
    jobs = [
        {
            "job_name": "consilium-coordinator",
            "scheme": "https",
            "tls_config": {"ca_file": str(trained.metrics_authority)},
            "authorization": {"credentials_file": str(trained.metrics_token)},
            "static_configs": [{"targets": [f"127.0.0.1:{trained.shareable['coordinator']}"]}],
        },
        {"job_name": "consilium-node", "static_configs": [{"targets": [*inside, *shareable]}]},
    ]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)
    try:
        until("Prometheus has fetched everything", lambda: server.scraped(1 + len(inside) + len(shareable)))
        yield server
    finally:
        process.terminate()
        process.wait(20)


def test_the_run_is_there_with_its_labels(prometheus: Prometheus, trained: Trained) -> None:
    (rounds,) = prometheus.ask("consilium_rounds_committed_total")
    assert float(rounds["value"][1]) == 1 + trained.plan.rounds  # round 0 agrees on the features
    seen = {s["metric"]["institution"] for s in prometheus.ask("consilium_institution_participating == 1")}
    assert seen == set(trained.names)
    losses = {(s["metric"]["subset"], s["metric"]["part"]) for s in prometheus.ask("consilium_loss")}
    assert {("mrna", "training"), ("mrna", "validation"), ("clinical", "training")} <= losses
    assert {s["metric"]["sum"] for s in prometheus.ask("consilium_participants")} >= {"updates", "statistics"}
    assert len(prometheus.ask('consilium_run_status{status="finished"} == 1')) == 1


def test_histograms_have_their_buckets(prometheus: Prometheus, trained: Trained) -> None:
    buckets = prometheus.ask('consilium_phase_duration_seconds_bucket{phase="uploads"}')
    counts = {float(s["metric"]["le"].replace("Inf", "inf")): float(s["value"][1]) for s in buckets}
    assert len(counts) > 8
    assert [counts[edge] for edge in sorted(counts)] == sorted(counts.values())
    assert max(counts.values()) >= trained.plan.rounds
    (median,) = prometheus.ask("histogram_quantile(0.5, sum by (le) (consilium_fold_duration_seconds_bucket))")
    assert 0 < float(median["value"][1]) < 60
    trainings = prometheus.ask("consilium_node_training_duration_seconds_count")
    assert {float(s["value"][1]) for s in trainings} == {float(trained.plan.rounds)}


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    empty = [
        f"{dashboard.title}: {panel.title}"
        for dashboard in dashboards.DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
        if panel.title not in NOT_IN_THIS_RUN and not prometheus.ask(query.expression.replace("$instance", ".*"))
    ]
    assert empty == []


def test_the_rules_are_loaded_and_a_run_that_went_well_alerts_nobody(prometheus: Prometheus) -> None:
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    written = [yaml.safe_load(path.read_text()) for path in RULES.glob("*.yml")]
    assert rules.keys() == {rule["alert"] for file in written for group in file["groups"] for rule in group["rules"]}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    # A laptop's disk may be nearly full, and certificates of a test are short-lived.
    machine = {"ConsiliumDiskFull", "ConsiliumNodeDisk", *(name for name in rules if "Certificate" in name)}
    assert {name for name, rule in rules.items() if rule["state"] != "inactive"} <= machine


def test_the_number_of_series_is_bounded(prometheus: Prometheus, trained: Trained) -> None:
    (count,) = prometheus.ask('count({__name__=~"consilium_.*", job="consilium-coordinator"})')
    # Some two hundred for phases, reasons and buckets, one for each institution, and a few for each name of the plan.
    assert float(count["value"][1]) < 400 + 2 * len(trained.names)
