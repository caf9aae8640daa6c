"""`docs/metrics.md`, from the table of `monitoring/metrics.py`: `python -m monitoring.reference` prints it."""

from __future__ import annotations

import sys

from monitoring.metrics import DECLARED, LABELS, Metric, Side

_HEAD = """# Metrics

<!-- Made by `python -m monitoring.reference > docs/metrics.md`; a test compares. -->

Three registries. The coordinator's shows its own work and opened sums. A node has two: the *shareable* one is an
allow-list that tells nothing of patients; the *local* one is computed from patients, and is served on loopback or
private addresses only.
"""


def reference() -> str:
    """The page, as Markdown."""
    groups = (
        ("The coordinator", [m for m in DECLARED if m.side is Side.COORDINATOR]),
        ("A node, shareable", [m for m in DECLARED if m.side is Side.NODE and m.shareable]),
        ("A node, local", [m for m in DECLARED if m.side is Side.NODE and not m.shareable]),
    )
    parts = [_HEAD]
    for title, metrics in groups:
        parts.append(f"\n## {title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n")
        parts.extend(_row(metric) for metric in metrics)
    parts.append("\n## Labels\n\n| label | values |\n|---|---|\n")
    parts.extend(f"| `{label}` | {_values(label)} |\n" for label in LABELS)
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |\n"


def _values(label: str) -> str:
    if label == "reason":
        return "an error's code; codes beyond the first 120, and whatever is no code, are `other`"
    if label == "version":
        return "version of the program"
    values = LABELS[label]
    return ", ".join(f"`{value}`" for value in sorted(values)) if values else "names of the plan"


if __name__ == "__main__":
    sys.stdout.write(reference())
