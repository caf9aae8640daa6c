"""A running federation, watched: a live table in a terminal, plain lines elsewhere.

Nothing from the wire is read as markup or reaches the terminal as a control character: a coordinator may lie, and must
not be able to draw.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

from consilium.v1 import service_pb2 as pb
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from deploy.figures import UNCLAMPED
from deploy.history import History
from deploy.log_lines import log_lines
from deploy.screen import render
from deploy.status_words import ENDED
from federation.blending import BlendingSettings


def watch(
    statuses: Iterable[pb.RunStatus],
    console: Console | None = None,
    *,
    settings: BlendingSettings = UNCLAMPED,
    now: Callable[[], float] = time.monotonic,
) -> pb.RunStatus | None:
    """Shows a run until its statuses end: a live table on a terminal, lines elsewhere.

    Args:
        statuses: in order, each with the records since the one before.
        console: where to; standard output by default.
        settings: the plan's DGB settings, where they are known.
        now: a clock in seconds, so that the elapsed time runs on between statuses.

    Returns:
        The last status; None if there was none.
    """
    console = console or Console(file=sys.stdout)
    history = History(settings)
    last: pb.RunStatus | None = None
    if not console.is_terminal:
        away: dict[str, str] = {}
        for status in statuses:
            for line in log_lines(last, status, history.take(status), away):
                console.print(Text(line), soft_wrap=True)
            last = status
        return last
    came = now()

    def current() -> RenderableType:
        return Text("waiting for the coordinator …", "dim") if last is None else render(at(last, now() - came), history)

    with Live(console=console, get_renderable=current, refresh_per_second=4, vertical_overflow="crop") as live:
        for status in statuses:
            history.take(status)
            last, came = status, now()
            live.refresh()
    return last


def at(status: pb.RunStatus, seconds: float) -> pb.RunStatus:
    """The status as it stands some seconds later, while nothing new has come."""
    if status.summary.status in ENDED or seconds <= 0:
        return status
    later = pb.RunStatus()
    later.CopyFrom(status)
    later.elapsed_seconds += seconds
    if later.remaining_seconds > 0:
        later.remaining_seconds = max(1.0, later.remaining_seconds - seconds)
    return later
