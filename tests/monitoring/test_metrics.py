"""Each metric is declared once, by Prometheus' conventions, and shows only what and where it may."""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import trustme
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import metrics as m
from monitoring.exposition import Access, MetricsAddressError, MetricsServer, check_address
from monitoring.memory import PeakSampler, rss_anon_bytes
from monitoring.reference import reference
from security.errors import LocalMisuseError

ROOT = Path(__file__).resolve().parents[2]
GROUPS: tuple[type[m.Metrics], ...] = (m.CoordinatorMetrics, m.NodeShareableMetrics, m.NodeLocalMetrics)


def make(group: type[m.Metrics]) -> m.Metrics:
    return group(CollectorRegistry())


def page(metrics: m.Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def samples(metrics: m.Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page(metrics))
        for sample in family.samples
    }


@pytest.mark.parametrize("metric", m.DECLARED, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: m.Metric) -> None:
    assert re.fullmatch(r"consilium_[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert metric.name.startswith("consilium_node_") is (metric.side is m.Side.NODE)
    assert metric.name.endswith("_total") is (metric.kind is m.Kind.COUNTER)
    if metric.kind is m.Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|mib|percent|count|sum|bucket|created)(_|$)", metric.name)
    if "timestamp" in metric.name:
        assert metric.name.endswith("_timestamp_seconds")
    if "bytes" in metric.name:
        assert metric.name.endswith(("_bytes", "_bytes_total"))
    assert metric.help
    assert not metric.help.endswith(".")
    assert set(metric.labels) <= set(m.LABELS)
    if metric.shareable and metric.side is m.Side.NODE:
        assert set(metric.labels) <= {"phase", "kind", "reason", "version"}, "no names of the plan leave the hospital"


def test_each_is_declared_once_and_by_one_group_only() -> None:
    names = [metric.name for metric in m.DECLARED]
    assert len(names) == len(set(names))
    shown = [family for group in GROUPS for family in _families(make(group))]
    assert sorted(shown) == sorted(names), "what is shown is what is declared, and nothing else"
    assert not any(family.name.startswith("consilium") for family in REGISTRY.collect())


def _families(metrics: m.Metrics) -> list[str]:
    return re.findall(r"^# TYPE (\S+) ", page(metrics), re.MULTILINE)


def test_the_shareable_group_is_this_allow_list() -> None:
    shown = _families(make(m.NodeShareableMetrics))
    assert {name.removeprefix("consilium_node_") for name in shown} == {
        "info", "up", "last_contact_timestamp_seconds", "current_round", "phase", "phases_entered_total",
        "received_bytes_total", "sent_bytes_total", "refusals_total", "masked_words_per_second",
        "certificate_expiry_timestamp_seconds", "process_rss_anon_bytes", "free_disk_bytes",
    }  # fmt: skip


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == reference(), "run python -m monitoring.reference"


def test_room_on_the_disk_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    metrics = make(m.CoordinatorMetrics)
    metrics.watch_disk(m.FREE_DISK, tmp_path)
    shown = metrics.registry.get_sample_value(m.FREE_DISK.name)
    assert shown is not None
    assert shown == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_counters_gauges_and_histograms_show_what_they_were_given() -> None:
    metrics = make(m.CoordinatorMetrics)
    metrics.allow("subset", ["mrna", "mrna+image"])
    metrics.add(m.ROUNDS_COMMITTED)
    metrics.add(m.RECEIVED_BYTES, 4096, kind="uploads")
    metrics.set(m.LOSS, 0.5, subset="mrna+image", part="validation")
    metrics.observe(m.PHASE_SECONDS, 0.25, phase="keys")
    metrics.choose(m.RUN_STATUS, status="running")
    metrics.choose(m.RUN_STATUS, status="finished")
    shown = samples(metrics)
    assert shown["consilium_rounds_committed_total", ()] == 1
    assert shown["consilium_received_bytes_total", (("kind", "uploads"),)] == 4096
    assert shown["consilium_loss", (("part", "validation"), ("subset", "mrna+image"))] == 0.5
    assert shown["consilium_phase_duration_seconds_sum", (("phase", "keys"),)] == 0.25
    statuses = {labels[0][1]: value for (name, labels), value in shown.items() if name == "consilium_run_status"}
    assert statuses == {status: float(status == "finished") for status in m.STATUSES}
    metrics.forget(m.LOSS)
    assert "mrna" not in page(metrics)


def test_two_groups_of_a_process_do_not_mix() -> None:
    one, two = make(m.CoordinatorMetrics), make(m.CoordinatorMetrics)
    one.add(m.ROUNDS_COMMITTED)
    assert samples(two)["consilium_rounds_committed_total", ()] == 0


def test_a_private_metric_cannot_be_set_on_the_shareable_group() -> None:
    shareable, local = make(m.NodeShareableMetrics), make(m.NodeLocalMetrics)
    for metrics in (shareable, local):
        metrics.allow("subset", ["mrna"])
    local.set(m.NODE_LOSS, 31415.0, subset="mrna", part="training")
    local.set(m.NODE_EPSILON_SPENT, 31415.0)
    for metric, labels in ((m.NODE_LOSS, {"subset": "mrna", "part": "training"}), (m.NODE_EPSILON_SPENT, {})):
        with pytest.raises(LocalMisuseError):
            shareable.set(metric, 31415.0, **labels)
    assert "31415" in page(local)
    assert "31415" not in page(shareable)


def test_the_wrong_kind_or_label_is_refused() -> None:
    metrics = make(m.CoordinatorMetrics)
    with pytest.raises(LocalMisuseError):
        metrics.set(m.ROUNDS_COMMITTED, 3)
    with pytest.raises(LocalMisuseError):
        metrics.add(m.CURRENT_ROUND)
    with pytest.raises(LocalMisuseError):
        metrics.set(m.CURRENT_ROUND, 3, phase="keys")
    with pytest.raises(LocalMisuseError):
        metrics.add(m.DROPOUTS)
    with pytest.raises(LocalMisuseError):
        metrics.allow("phase", ["made-up"])


def test_labels_say_only_what_is_listed_or_in_the_plan() -> None:
    metrics = make(m.CoordinatorMetrics)
    with pytest.raises(LocalMisuseError) as error:
        metrics.add(m.DROPOUTS, phase="canary")
    assert "canary" not in str(error.value)
    with pytest.raises(LocalMisuseError):
        metrics.set(m.PARTICIPATING, 1, institution="north")
    metrics.allow("institution", ["north"])
    metrics.set(m.PARTICIPATING, 1, institution="north")
    assert samples(metrics)["consilium_institution_participating", (("institution", "north"),)] == 1


def test_codes_from_peers_fill_neither_memory_nor_page() -> None:
    metrics = make(m.CoordinatorMetrics)
    metrics.add(m.REFUSALS, reason="upload-offset")
    for value in ("loss=0.31415", "x" * 500, "", "Näme", "patient-31415", "a\nb"):
        metrics.add(m.REFUSALS, reason=value)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for first in letters:
        for second in letters:
            metrics.add(m.REFUSALS, reason=f"made-{first}{second}")
    reasons = {labels[0][1]: v for (name, labels), v in samples(metrics).items() if name == "consilium_refusals_total"}
    assert reasons["upload-offset"] == 1
    assert reasons["other"] > 500
    assert len(reasons) <= 120
    assert "31415" not in page(metrics)


def fetch(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=context) as response:
        text: bytes = response.read()
    return text.decode()


def test_each_group_is_served_alone_and_the_port_is_freed() -> None:
    shareable, local = make(m.NodeShareableMetrics), make(m.NodeLocalMetrics)
    with MetricsServer(shareable, "127.0.0.1", 0) as out, MetricsServer(local, "localhost", 0) as inside:
        assert "consilium_node_up" in fetch(f"http://127.0.0.1:{out.port}/metrics")
        assert "epsilon" not in fetch(f"http://127.0.0.1:{out.port}/metrics")
        assert "consilium_node_epsilon_spent" in fetch(f"http://127.0.0.1:{inside.port}/metrics")
        with pytest.raises(MetricsAddressError) as error:
            MetricsServer(local, "127.0.0.1", out.port)
        assert error.value.remedy
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", out.port), timeout=5)


def test_https_with_tls_1_3(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in issued.cert_chain_pems:
        chain.write_bytes(blob.bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    old = ssl.create_default_context()
    authority.configure_trust(old)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with MetricsServer(make(m.CoordinatorMetrics), "127.0.0.1", 0, Access((chain, key))) as server:
        assert "consilium_current_round" in fetch(f"https://127.0.0.1:{server.port}/metrics", context)
        with pytest.raises(OSError, match=r"(?i)ssl|protocol|version|reset"):
            fetch(f"https://127.0.0.1:{server.port}/metrics", old)
    with pytest.raises(MetricsAddressError):
        MetricsServer(make(m.CoordinatorMetrics), "127.0.0.1", 0, Access((tmp_path / "none.pem", key)))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "8.8.8.8", "2001:db8::1", "169.254.1.1", "100.64.0.1", "::ffff:8.8.8.8"]
)
def test_local_metrics_stay_inside(host: str) -> None:
    with pytest.raises(MetricsAddressError) as error:
        MetricsServer(make(m.NodeLocalMetrics), host, 0)
    assert error.value.remedy
    assert check_address(host, inside_only=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1", "localhost"])
def test_private_addresses_are_inside(host: str) -> None:
    assert check_address(host, inside_only=True)


@pytest.mark.parametrize("host", ["", "hospital.example", "127.0.0.1:9000"])
def test_a_host_that_is_no_address_is_told(host: str) -> None:
    with pytest.raises(MetricsAddressError):
        check_address(host, inside_only=False)


def test_anonymous_memory_grows_with_what_is_held_and_its_peak_stays() -> None:
    pid = os.getpid()
    with PeakSampler([pid], interval=0.001) as sampler:
        before = rss_anon_bytes()
        held = np.ones(8_000_000)  # 64 MB, touched
        sampler.sample()
        assert rss_anon_bytes() > before + 50e6
        del held
    assert sampler.peak_bytes(pid) > before + 50e6
    assert sampler.peaks().keys() == {pid}


def test_a_process_that_is_gone_has_no_memory_but_keeps_its_peak() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with PeakSampler(interval=0.001) as sampler:
        sampler.add(child.pid)
        sampler.sample()
        child.communicate(b"\n")
        sampler.sample()
    assert math.isnan(rss_anon_bytes(child.pid))
    assert sampler.peak_bytes(child.pid) > 0


def test_process_memory_is_read_when_it_is_fetched() -> None:
    assert samples(make(m.CoordinatorMetrics))[m.PROCESS_MEMORY.name, ()] > 1e6
    assert samples(make(m.NodeShareableMetrics))[m.NODE_PROCESS_MEMORY.name, ()] > 1e6
