"""A run's figures in files: read back, they are the records'; what is missing stays missing."""

from __future__ import annotations

import csv
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coordinator.scalars import scalars
from studies.metric_files import ExtraMissingError, MetricFileError, write_csv, write_tensorboard
from tests.deploy.generated_run import records
from tests.small_federation import SmallFederation, finished, small_plan

ROUNDS = 3


@pytest.fixture(scope="module")
def ran() -> SmallFederation:
    return finished(small_plan(7, rounds=ROUNDS))


@pytest.fixture(scope="module")
def run_records(ran: SmallFederation) -> list[dict[str, Any]]:
    return [json.loads(record) for record in ran.run.records()]


def read_csv(path: Path) -> dict[int, dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {
            int(row["round"]): {name: float(text) for name, text in row.items() if name != "round" and text}
            for row in csv.DictReader(file)
        }


def read_events(folder: Path) -> dict[int, dict[str, float]]:
    """As TensorBoard itself reads them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(event.step, {})[tag] = event.value
    return found


def test_the_csv_reads_back_as_what_the_rounds_committed(run_records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert write_csv(tmp_path / "new" / "run.csv", run_records) == ROUNDS
    found = read_csv(tmp_path / "new" / "run.csv")
    assert list(found) == [1, 2, 3]  # round 0 trains nothing
    for record in run_records[1:]:
        figures = found[record["round"]]
        for row, scores in record["metrics"].items():
            for name, value in scores.items():
                assert figures[f"metrics/{row}/{name}"] == value
        for subset, blended in record["blending"].items():
            assert figures[f"loss/{subset}/validation"] == blended["validation_loss"]
            assert figures[f"loss/{subset}/training"] == blended["training_loss"]
            assert (f"blending/{subset}/dogr" in figures) == (blended["dogr"] is not None)
            assert figures[f"proximity/{subset}"] == record["proximity"][subset]
        assert figures["institutions/statistics"] == len(record["sums"]["statistics"]["alive"])
        assert figures["bytes/up"] == record["bytes"]["up"] > 0
        assert figures["clipped/encoder/mrna"] == record["clipped"]["encoder/mrna"]
        kinds = {name.split("/")[0] for name in figures} - {"seconds", "blending"}
        assert kinds == {"metrics", "loss", "proximity", "institutions", "bytes", "clipped"}
    assert any(name.startswith("blending/") for name in found[ROUNDS])


def test_tensorboard_reads_the_same_figures(run_records: list[dict[str, Any]], tmp_path: Path) -> None:
    write_csv(tmp_path / "run.csv", run_records)
    assert write_tensorboard(tmp_path / "board", run_records, now=1.0) == ROUNDS
    single = {
        number: {name: float(np.float32(value)) for name, value in figures.items()}
        for number, figures in read_csv(tmp_path / "run.csv").items()
    }
    assert read_events(tmp_path / "board") == single


def test_rounds_without_statistics_have_gaps_and_no_zeros(tmp_path: Path) -> None:
    made = records(25)  # round 17 was burnt, round 23 has no statistics, round 1 no DGB figures yet
    assert write_csv(tmp_path / "run.csv", made) == 24
    write_tensorboard(tmp_path / "board", made)
    for found in (read_csv(tmp_path / "run.csv"), read_events(tmp_path / "board")):
        assert 17 not in found
        assert not any(name.startswith(("metrics/", "loss/")) for name in found[23])
        assert "institutions/updates" in found[23]
        assert "blending/mrna/dogr" not in found[1]
        assert "loss/mrna/training" in found[1]


def test_losses_that_only_stand_are_not_the_rounds_own() -> None:
    record = records(3)[-1]
    figures = {**record["blending"]["image"], "fresh": False}
    found = scalars({**record, "blending": {**record["blending"], "image": figures}})
    assert "loss/image/training" not in found
    assert "loss/mrna/training" in found


def test_no_tensorboard_is_told_with_the_extras_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)  # as where it is not installed
    with pytest.raises(ExtraMissingError, match=r"consilium\[tensorboard\]"):
        write_tensorboard(tmp_path / "board", records(2))
    assert not (tmp_path / "board").exists()


def test_two_runs_are_not_drawn_as_one(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, records(2))
    with pytest.raises(MetricFileError, match="already"):
        write_tensorboard(tmp_path, records(2))


@pytest.mark.parametrize("write", [write_csv, write_tensorboard])
def test_a_run_without_a_round_has_nothing_to_write(write: Any, tmp_path: Path) -> None:
    with pytest.raises(MetricFileError, match="no figures yet"):
        write(tmp_path / "none", records(0))
    assert not (tmp_path / "none").exists()


NAMES = st.text(min_size=1, max_size=12)
FIGURES: st.SearchStrategy[Mapping[str, Any]] = st.dictionaries(
    NAMES, st.none() | st.floats() | st.integers(-(10**6), 10**6), max_size=4
)


@given(st.dictionaries(NAMES, FIGURES, max_size=3), FIGURES)
def test_a_csv_of_any_names_and_numbers_reads_back(metrics: dict[str, Any], clipped: Mapping[str, Any]) -> None:
    record = {"round": 1, "metrics": metrics, "clipped": clipped}
    figures = scalars(record)
    assert all(math.isfinite(value) for value in figures.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.csv"
        write_csv(path, [record])
        assert read_csv(path) == {1: figures}
