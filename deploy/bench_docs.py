"""The committed rows of the bench as a table of docs/performance.md: `python -m deploy.bench_docs` puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.bench import RESULTS, read_rows
from deploy.bench_rows import Row, sent
from security.errors import ConfigurationError
from security.user_errors import user_errors

PAGE: Final = Path("docs/performance.md")
BEGIN: Final = "<!-- rows of bench/results.json, put here by `make docs` -->"
END: Final = "<!-- end of the rows -->"
_HEADINGS: Final = (
    *("N", "parameters", "backend", "over", "sent", "gone", "rounds", "wall, s", "÷ none", "÷ floor", "floor"),
    *("CPU, s", "coordinator", "institution", "coordinator, MiB", "node, MiB", "bytes up", "down"),
)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(_HEADINGS)} |", "|" + "---|" * len(_HEADINGS)]
    for r in rows:
        cells = (
            str(r.institutions),
            f"{r.parameters:,}",
            r.backend,
            r.transport,
            sent(r),
            str(r.dropouts),
            str(r.rounds),
            f"{r.wall_seconds:.2f}",
            _known(r.ratio_to_none, 2),
            f"{r.ratio_to_floor:.1f}",
            r.floor,
            f"{r.cpu_seconds:.2f}",
            f"{r.cpu_seconds_coordinator:.2f}",
            f"{r.cpu_seconds_institution:.3f}",
            _known(r.coordinator_peak_mib, 0),
            _known(r.node_peak_mib, 0),
            f"{r.bytes_up_per_parameter:.2f}",
            f"{r.bytes_down_per_parameter:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _known(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def with_rows(page: str, rows: Sequence[Row]) -> str:
    """The page with its rows exchanged.

    Raises:
        ConfigurationError: the page has no place for them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigurationError(
            "the page has no place for the bench's rows.", remedy=f"Put these lines into it: {BEGIN} and {END}"
        )
    return f"{before}{begin}\n\n{markdown(rows)}\n\n{end}{after}"


@user_errors()
def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(with_rows(PAGE.read_text(), read_rows(RESULTS)))


if __name__ == "__main__":
    main()
