"""The live table: what a person must see at any size, nothing that a liar could draw, plain lines in logs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from consilium.v1 import service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.history import History, RecordError
from deploy.live import at, watch
from deploy.log_lines import log_lines
from deploy.screen import render, sparkline
from deploy.status_words import clock, phase_words, plain
from tests.deploy.generated_run import COMBINATIONS, records


def status(rounds: int = 12, *, new: list[dict[str, Any]] | None = None, **changes: Any) -> pb.RunStatus:
    fields: dict[str, Any] = {
        "name": "tcga-nine",
        "status": "running",
        "round": rounds + 1,
        "rounds": 40,
        "data": "synthetic",
    }
    summary = {k: changes.pop(k) for k in list(changes) if k in (*fields, "reason")}
    people = {"lusc-3": ("late", ""), "brca-2": ("gone", "deadline")} | changes.pop("people", {})
    top: dict[str, Any] = {
        "summary": pb.RunSummary(**(fields | summary)), "attempt": 1, "phase": "updates: uploads",
        "elapsed_seconds": 95.0, "remaining_seconds": 43.0,
        "institutions": [
            pb.InstitutionStatus(name=n, combination=c, status=people.get(n, ("in", ""))[0],
                                 reason=people.get(n, ("", ""))[1])
            for n, c in COMBINATIONS.items()
        ],
        "records": [json.dumps(r) for r in (records(rounds) if new is None else new)],
    }  # fmt: skip
    return pb.RunStatus(**(top | changes))


def drawn(shown: pb.RunStatus, width: int = 140, height: int = 50, **console: Any) -> str:
    history = History()
    history.take(shown)
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, **console)
    with out.capture() as captured:
        out.print(render(shown, history))
    return captured.get()


@pytest.mark.parametrize(("width", "height"), [(200, 60), (140, 40), (110, 50), (80, 50), (80, 24)])
def test_everything_is_there_at_any_size(width: int, height: int) -> None:
    text = drawn(status(), width, height)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    wanted = ("tcga-nine", "SYNTHETIC DATA", "round 13/40", "elapsed 1:35", "about 0:43 left", "brca-2", "lusc-3",
              "late", "gone", "accuracy", "AUROC", "weight", "DOGR", "prox.", "training: institutions")  # fmt: skip
    for words in wanted:
        assert words in text, words
    last = records(12)[-1]
    assert f"{last['metrics']['all']['auroc']:.3f}" in text
    assert f"{last['blending']['image']['validation_loss']:.3f}" in text


def test_real_data_is_not_called_synthetic() -> None:
    assert "SYNTHETIC" not in drawn(status(data="real"))
    assert "real data" in drawn(status(data="real"))


def test_before_the_first_round_and_at_the_end() -> None:
    text = drawn(status(0, round=0, status="enrolling", phase="enrolling", new=[], remaining_seconds=0.0))
    assert "The first figures come with the first committed round" in text
    assert "time left unknown" in text
    text = drawn(status(status="failed", round=12, reason="only 4 institutions accept the plan"))
    assert "failed after round 12 of 40: only 4 institutions accept the plan" in text
    assert "left" not in text
    assert "attempt 2   1 dropout so far" in drawn(status(attempt=2))
    assert "No round has opened its losses yet" in drawn(status(1, new=[records(23)[-1]]))


def test_a_terminal_without_unicode_gets_ascii() -> None:
    history = History()
    shown = status()
    history.take(shown)
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100, height=50, color_system=None)
    with out.capture() as captured:
        out.print(render(shown, history))
    text = captured.get().replace("–", "-")
    assert text.isascii()
    assert "x gone" in text


def test_an_institution_whose_patients_come_in_several_combinations_shows_them() -> None:
    shown = status()
    shown.institutions[2].combinations.extend(["mrna", "mrna+image"])
    for width in (200, 110):
        assert "mrna, mrna+image" in drawn(shown, width, 60)
    assert "weights at mrna+image+clinical" in drawn(shown, 200, 60)
    shown.institutions[2].combinations.append(NASTY)
    assert not set(drawn(shown, 200, 60)) & {"\x1b", "\x07", "\r", "\u202e"}


NASTY = "\x1b[2J\x1b]0;owned\x07[red]\r\n\u202egone"


def test_a_lying_coordinator_cannot_draw() -> None:
    shown = status(name=NASTY, phase=NASTY, people={"lusc-1": (NASTY, NASTY)}, status="failed", reason=NASTY)
    shown.institutions[0].name = shown.institutions[1].combination = NASTY
    text = drawn(shown)
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "[red]" in text  # shown, not read as markup
    lines = log_lines(None, shown, [])
    assert lines
    assert all(line.isprintable() for line in lines)


def test_rounds_come_once_and_in_order() -> None:
    history = History()
    made = records(5)
    first = history.take(status(new=[made[2], made[1], made[1]]))
    assert [r["round"] for r in first] == [1, 2]
    assert [r["round"] for r in history.take(status(new=[made[1], made[3]]))] == [3]
    assert [r["round"] for r in history.records] == [1, 2, 3]


@pytest.mark.parametrize("change", [
    {"round": "one"}, {"metrics": {"all": {"accuracy": "high"}}}, {"metrics": [1]}, {"cohort": 3}, {"proximity": [1]},
    {"blending": {"mrna": 1}}, {"blending": {"mrna": {"score": -1.0}}}, {"sums": {"updates": {"alive": 1}}},
])  # fmt: skip
def test_a_record_of_nonsense(change: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        History().take(status(new=[records(2)[-1] | change]))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000])
def test_a_record_of_other_json(text: str) -> None:
    shown = status()
    shown.records.append(text)
    with pytest.raises(RecordError):
        History().take(shown)


def test_lines_say_what_changed_and_nothing_twice() -> None:
    made = records(5)
    first = status(0, new=made[:1], people={"lusc-3": ("in", ""), "brca-2": ("in", "")})
    second = status(1, new=made[1:2], phase="statistics: uploads")
    opening = log_lines(None, first, History().take(first))
    assert "synthetic data, 9 institutions, 40 rounds" in opening[0]
    assert "set-up committed" in opening[1]
    said = log_lines(first, second, History().take(second))
    assert [line.split(": ", 1)[1] for line in said[:2]] == ["brca-2 is gone (deadline)", "lusc-3 is late"]
    assert "round 1/40 committed, 9 institutions, accuracy 0." in said[2]
    assert said[3].endswith("round 2: evaluation: institutions compute and send, masked")
    assert all("SYNTHETIC" in line for line in opening + said)
    assert log_lines(second, second, []) == []
    back = log_lines(second, first, [])
    assert any("brca-2 is back" in line for line in back)
    ended = status(2, new=[], status="finished", round=40)
    assert log_lines(second, ended, [])[-1].endswith("finished after round 40 of 40")


def test_lines_tell_of_an_institution_only_when_it_leaves_or_returns() -> None:
    """A round takes everybody through "enrolled" and "in"; a dead one is "enrolled" while keys are awaited."""
    out = io.StringIO()
    course = [
        ("invited", ""), ("enrolled", ""), ("in", ""), ("enrolled", ""), ("in", ""), ("gone", "updates"),
        ("enrolled", ""), ("late", "keys"), ("enrolled", ""), ("late", "keys"), ("enrolled", ""), ("in", ""),
        ("enrolled", ""), ("refused", "k-min"), ("enrolled", ""), ("in", ""), ("sits out", "missed"),
    ]  # fmt: skip
    everybody = dict.fromkeys(COMBINATIONS, ("in", ""))
    statuses = (status(0, new=[], people=everybody | {"brca-2": standing}) for standing in course)
    watch(statuses, Console(file=out, width=40, force_terminal=False))
    told = [line.split(": ", 1)[1] for line in out.getvalue().splitlines() if ": brca-2 is " in line]
    assert told == [
        f"brca-2 is {words}" for words in (
            "gone (updates)", "late (keys)", "back", "refused (k-min)", "back", "sits out (missed)",
        )
    ]  # fmt: skip
    assert not [line for line in out.getvalue().splitlines() if " is " in line and "brca-2" not in line]


def stream() -> Iterator[pb.RunStatus]:
    made = records(4)
    for i in range(5):
        yield status(i, new=made[i : i + 1], round=i)
    yield status(4, new=[], status="finished", round=4)


def test_watch_without_a_terminal_prints_a_line_a_round() -> None:
    out = io.StringIO()
    last = watch(stream(), Console(file=out, width=40, force_terminal=False))
    text = out.getvalue()
    assert text.count("committed") == 5
    assert "\x1b" not in text
    assert all(line.startswith("[") for line in text.splitlines())  # long lines are not folded
    assert last is not None
    assert last.summary.status == "finished"
    assert watch([], Console(file=io.StringIO(), force_terminal=False)) is None


def test_watch_on_a_terminal_ends_on_the_last_status() -> None:
    out = io.StringIO()
    times = iter(range(1000))
    last = watch(stream(), Console(file=out, width=120, height=50, force_terminal=True), now=lambda: float(next(times)))
    assert last is not None
    assert "finished after round 4 of 40" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_time_runs_on_between_statuses_but_not_after_the_end() -> None:
    shown = status()
    later = at(shown, 50)
    assert (later.elapsed_seconds, later.remaining_seconds) == (145.0, 1.0)
    assert shown.elapsed_seconds == 95.0
    ended = status(status="stopped")
    assert at(ended, 50).elapsed_seconds == 95.0


def test_small_things() -> None:
    assert [clock(s) for s in (0, 65, 7384, -3)] == ["0:00", "1:05", "2:03:04", "0:00"]
    assert phase_words("features-counts: signatures").startswith("set-up, features-counts: institutions sign")
    assert phase_words("keys") == "exchanging keys"
    assert plain("a" * 300).endswith("…")
    assert len(plain("a" * 300)) == 160


@given(st.lists(st.none() | st.floats(-1e9, 1e9), max_size=30), st.integers(1, 20))
def test_sparklines_fit_and_keep_gaps(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    shown = values[-width:]
    assert len(line) == (len(shown) if any(v is not None for v in shown) else 0)
    assert all((c == " ") == (v is None) for c, v in zip(line, shown, strict=False))


# -- what chooses the model ----------------------------------------------------------------------------------------


def test_a_fallback_of_the_selection_is_told_once_in_lines_and_stands_on_the_screen() -> None:
    before, now = status(11, chosen_by="metric", chosen_round=9), status(12, chosen_by="loss", chosen_round=12)
    lines = log_lines(before, now, [])
    assert any("validation losses choose (now round 12)" in line for line in lines)
    assert not any("validation losses choose" in line for line in log_lines(now, now, []))
    assert not any("choose" in line for line in log_lines(None, before, []))
    history = History()
    history.take(now)
    console = Console(file=io.StringIO(), width=140, height=50, record=True)
    console.print(render(now, history))
    assert "validation losses choose" in console.export_text()
