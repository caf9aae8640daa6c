"""The committed rows of the bench as tables of docs/performance.md: `python -m deploy.bench_docs` puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.bench import RESULTS, read_rows
from deploy.bench_rows import Row, sent
from deploy.bench_scaling import RESULTS as SCALING
from deploy.bench_scaling import read_rows as read_scaling
from security.errors import ConfigurationError
from security.user_errors import user_errors
from studies.scaling import ScalingRow

PAGE: Final = Path("docs/performance.md")
BEGIN: Final = "<!-- rows of bench/results.json, put here by `make docs` -->"
END: Final = "<!-- end of the rows -->"
BEGIN_SCALING: Final = "<!-- rows of bench/scaling.json, put here by `make docs` -->"
END_SCALING: Final = "<!-- end of the scaling rows -->"
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


def scaling_markdown(rows: Sequence[ScalingRow]) -> str:
    """The rows of `deploy.bench_scaling` as a Markdown table."""
    headings = (
        *("institutions", "parameters", "neighbours", "shares to open"),
        *("key phase, ms per institution and key pair", "masking, s each", "list and opening, ms each"),
        *("Shamir and mask keys, s", "unmasking, s", "expanded, GB", "÷ floor"),
        *("KiB up beside the words", "KiB down"),
    )
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for r in rows:
        cells = (
            *(str(r.institutions), f"{r.parameters:,}", str(r.neighbours), str(r.share_threshold)),
            *(f"{r.key_ms:.1f}", f"{r.mask_seconds:.3f}", f"{r.list_ms:.1f}"),
            *(f"{r.shamir_seconds:.3f}", f"{r.unmask_seconds:.2f}", f"{r.expanded_bytes / 1e9:.1f}", f"{r.ratio:.2f}"),
            *(f"{(r.bytes_up - 4 * r.parameters) / 1024:.0f}", f"{r.bytes_down / 1024:.0f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_rows(page: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with one table exchanged.

    Args:
        page: its text.
        table: in Markdown.
        begin, end: the lines that it stands between.

    Raises:
        ConfigurationError: the page has no place for it.
    """
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ConfigurationError(
            "the page has no place for the bench's rows.", remedy=f"Put these lines into it: {begin} and {end}"
        )
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def updated(page: str) -> str:
    """The page with the committed rows of both files."""
    page = with_rows(page, markdown(read_rows(RESULTS)))
    return with_rows(page, scaling_markdown(read_scaling(SCALING)), BEGIN_SCALING, END_SCALING)


@user_errors()
def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(updated(PAGE.read_text()))


if __name__ == "__main__":
    main()
