"""A figure by round of one or several runs: an SVG that notebooks show, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from security.errors import ConfigurationError
from studies.charts import Frame, Line, line_chart
from studies.figures import standalone

if TYPE_CHECKING:
    from studies.api import FederationResult


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        svg: the whole file.
    """

    svg: str

    def _repr_svg_(self) -> str:
        """What Jupyter shows."""
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Writes it as an .svg file."""
        target = Path(path)
        target.write_text(self.svg, encoding="utf-8")
        return target


def curves(results: Mapping[str, FederationResult], metric: str = "auroc") -> Figure:
    """A figure of all validation patients by round, a line for each run.

    Args:
        results: what to call each run, to what it came to; at least one.
        metric: a column of `history`.

    Raises:
        ConfigurationError: no run, or no such figure.
    """
    lines: list[Line] = []
    for name, result in results.items():
        if metric not in result.history or metric == "exported":
            known = ", ".join(c for c in result.history if c != "exported")
            raise ConfigurationError(f"there is no figure {metric!r}.", remedy=f"Use: {known}.", place="metric")
        values = result.history[metric].items()
        points = [(int(k), None if math.isnan(v) else float(v)) for k, v in values]
        lines.append(Line(name, points, len(lines)))
    if not lines or not any(v is not None for line in lines for _, v in line.points):
        raise ConfigurationError(
            "there is nothing to draw.", remedy="Give a run whose history has this figure.", place="results"
        )
    words = metric.replace("_", " ")
    frame = Frame(f"{words} of all validation patients", ", ".join(results), "round", words, 640, 320)
    return Figure(standalone(line_chart(frame, lines, least_span=0.02)))
