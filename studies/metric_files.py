"""The figures of a run in files that other programs read: CSV, and TensorBoard's event files.

For the records of a run over gRPC (`consilium run metrics`), of `studies.simulate` and of `studies.plain_rounds` alike.
What the figures are called: `coordinator.scalars`.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coordinator.scalars import scalars
from security.errors import ConfigurationError


class MetricFileError(ConfigurationError):
    """Figures cannot be written there."""

    code = "metric-file"


class ExtraMissingError(ConfigurationError):
    """A library that only one of the optional parts needs is not installed."""

    code = "extra-missing"


def rounds_of(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Training round to its figures by name, in order.

    Raises:
        TypeError, ValueError, KeyError, AttributeError, OverflowError: one of them is not a record.
    """
    found = {int(record["round"]): scalars(record) for record in records}
    return {number: found[number] for number in sorted(found) if number > 0}


def write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """One line a round, one column a figure; what a round does not have is an empty cell. Written in one step.

    Args:
        path: of the file; its folder is made if it is not there.
        records: of a run.

    Returns:
        Rounds written.

    Raises:
        MetricFileError: there is no committed round yet.
        OSError: it cannot be written.
    """
    rounds = rounds_of(records)
    if not rounds:
        raise _nothing(path)
    columns = sorted({name for figures in rounds.values() for name in figures})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["round", *columns])
    for number, figures in rounds.items():
        # repr of a float: the shortest text that reads back as the same number
        table.writerow([number, *(repr(figures[c]) if c in figures else "" for c in columns)])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)
    return len(rounds)


def write_tensorboard(folder: Path, records: Iterable[Mapping[str, Any]], now: float | None = None) -> int:
    """An event file with one scalar a figure, at the step of its round: `tensorboard --logdir FOLDER` shows it.

    Args:
        folder: made if it is not there; it must hold no event file, or two runs would be drawn as one.
        records: of a run.
        now: Unix time that the events bear; None: the clock's.

    Returns:
        Rounds written.

    Raises:
        ExtraMissingError: `tensorboard` is not installed.
        MetricFileError: there is no committed round yet, or the folder holds event files.
        OSError: it cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise ExtraMissingError(
            "TensorBoard's event files need the package `tensorboard`.",
            remedy="Install Consilium with its extra `tensorboard`: pip install 'consilium[tensorboard]'.",
        ) from error
    rounds = rounds_of(records)
    if not rounds:
        raise _nothing(folder)
    if any(folder.glob("events.out.tfevents.*")):
        raise MetricFileError(
            "there are event files already.", remedy="Name a folder that is not there yet.", place=str(folder)
        )
    at = time.time() if now is None else now
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    try:
        for number, figures in rounds.items():
            values = [Summary.Value(tag=name, simple_value=value) for name, value in sorted(figures.items())]
            writer.add_event(Event(wall_time=at, step=number, summary=Summary(value=values)))
    finally:
        writer.close()
    return len(rounds)


def _nothing(place: Path) -> MetricFileError:
    return MetricFileError(
        "the run has no figures yet.", remedy="Wait until its first training round is committed.", place=str(place)
    )
