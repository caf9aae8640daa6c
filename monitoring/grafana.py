"""Panels and dashboards, and how Grafana's file provisioning takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_WIDTH: Final = 24  # of Grafana's grid
_TALL: Final = 8
_LOW: Final = 4

Kind = Literal["timeseries", "stat", "state-timeline", "bargauge", "gauge"]
Unit = Literal["short", "s", "bytes", "Bps", "percentunit", "dateTimeFromNow", "none", "wps"]


@dataclass(frozen=True)
class Query:
    """One expression and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: a few words.
        says: what it tells and what to look for, a sentence or two.
        queries: its series.
        unit: Grafana's name of the unit.
        kind: of the panel.
        width: in 24ths of the page.
        most: upper end of its axis; None: as the data have it.
    """

    title: str
    says: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    kind: Kind = "timeseries"
    width: int = 12
    most: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One page. `job` is Prometheus' name of what it shows."""

    uid: str
    title: str
    bundle: Literal["operator", "hospital"]
    job: str
    panels: tuple[Panel, ...]


def stat(title: str, says: str, expression: str, unit: Unit = "none", width: int = 4) -> Panel:
    """One number."""
    return Panel(title, says, (Query(expression),), unit, "stat", width)


def of(metric: str, **labels: str) -> str:
    """A metric of the chosen instances."""
    chosen = "".join(f',{name}="{value}"' for name, value in labels.items())
    return f'{metric}{{instance=~"$instance"{chosen}}}'


def hourly(metric: str, by: str = "") -> Query:
    """A counter's growth within an hour, by a label."""
    grown = f"increase({of(metric)}[1h])"
    return Query(f"sum by ({by}) ({grown})", f"{{{{{by}}}}}") if by else Query(grown)


def quantiles(metric: str) -> tuple[Query, ...]:
    """Of a histogram's last hour."""
    buckets = f"sum by (le) (increase({of(metric + '_bucket')}[1h]))"
    return (
        Query(f"histogram_quantile(0.5, {buckets})", "median"),
        Query(f"histogram_quantile(0.9, {buckets})", "slowest tenth"),
    )


def median_by(metric: str, label: str) -> Query:
    """Median of a histogram's last hour, by a label."""
    buckets = f"sum by ({label}, le) (increase({of(metric + '_bucket')}[1h]))"
    return Query(f"histogram_quantile(0.5, {buckets})", f"{{{{{label}}}}}")


def traffic(prefix: str) -> tuple[Query, ...]:
    """In above the axis, out below."""
    received, sent = of(prefix + "received_bytes_total"), of(prefix + "sent_bytes_total")
    return (
        Query(f"sum by (kind) (rate({received}[5m]))", "in: {{kind}}"),
        Query(f"- sum by (kind) (rate({sent}[5m]))", "out: {{kind}}"),
    )


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana's file provisioning takes it (schema 39)."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["consilium", dashboard.bundle],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "instance",
                    "type": "query",
                    "label": "Instance",
                    "datasource": _SOURCE,
                    "query": f'label_values(up{{job="{dashboard.job}"}}, instance)',
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "panels": list(_placed(dashboard.panels)),
    }


_SOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${datasource}"}


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = row = 0
    for number, panel in enumerate(panels, start=1):
        height = _LOW if panel.kind in ("stat", "gauge") and panel.width < 12 else _TALL
        if x + panel.width > _WIDTH:
            x, y, row = 0, y + row, 0
        yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height})
        x, row = x + panel.width, max(row, height)


def _panel(number: int, panel: Panel, place: Mapping[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + k),
                "expr": query.expression,
                "legendFormat": query.legend or panel.title,
                "datasource": _SOURCE,
            }
            for k, query in enumerate(panel.queries)
        ],
    }
