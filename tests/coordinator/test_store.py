"""What is durable stays, whole, and once: also when the process is killed at any statement of any transaction."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from coordinator.store import (
    HOLDERS_PASSED,
    LIST_SIGNED,
    SUM_OPENED,
    AttemptError,
    Point,
    RecordConflictError,
    RunExistsError,
    SchemaVersionError,
    Store,
    StoreError,
    UnknownRunError,
)
from security.errors import ConfigurationError, LocalMisuseError

ROOT = Path(__file__).resolve().parents[2]
RUN = "ab" * 32
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made = Store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.sqlite")
    made.create_run(RUN, "demo", b"plan bytes", AT)
    return made


def test_a_run_is_kept_and_created_once(store: Store) -> None:
    run = store.run(RUN)
    assert (run.name, run.plan, run.status, run.round, run.attempt) == ("demo", b"plan bytes", "created", 0, -1)
    assert run.created_at == AT
    assert run.created_at.tzinfo is UTC
    with pytest.raises(RunExistsError):
        store.create_run(RUN, "other", b"plan bytes", AT)
    store.create_run("cd" * 32, "second", b"", AT + timedelta(seconds=1))
    store.set_status(RUN, "running", "", AT + timedelta(seconds=2))
    assert [(r.name, r.status) for r in store.runs()] == [("demo", "running"), ("second", "created")]


@pytest.mark.parametrize(
    "step",
    [
        lambda s: s.run("00"),
        lambda s: s.set_status("00", "running", "", AT),
        lambda s: s.begin_attempt("00", 0, 0, AT),
        lambda s: s.save_point("00", 0, 0, "A", LIST_SIGNED, b"", AT),
        lambda s: s.commit_round("00", 0, "{}", "{}", AT),
        lambda s: s.enrol("00", "north", "f", "admitted", "", AT),
        lambda s: s.add_event("00", "round-begun", {}, AT),
    ],
)
def test_an_unknown_run_is_told(store: Store, step: Callable[[Store], object]) -> None:
    with pytest.raises(UnknownRunError):
        step(store)


def test_times_know_their_zone(store: Store) -> None:
    with pytest.raises(LocalMisuseError):
        store.set_status(RUN, "running", "", datetime(2026, 1, 1))
    assert store.run(RUN).status == "created"
    store.set_status(RUN, "running", "", AT.astimezone(timezone(timedelta(hours=5))))
    assert store.run(RUN).updated_at == AT


def test_attempts_only_go_forward(store: Store) -> None:
    store.begin_attempt(RUN, 1, 0, AT)
    store.begin_attempt(RUN, 1, 2, AT)
    for round_number, attempt in [(1, 2), (1, 1), (0, 9), (1, -1), (-1, 0)]:
        with pytest.raises(AttemptError):
            store.begin_attempt(RUN, round_number, attempt, AT)
    store.begin_attempt(RUN, 2, 0, AT)
    with pytest.raises(AttemptError):
        store.begin_attempt(RUN, 1, 9, AT)
    assert (store.run(RUN).round, store.run(RUN).attempt) == (2, 0)


def test_a_signed_sum_has_no_other_attempt(store: Store) -> None:
    store.begin_attempt(RUN, 1, 0, AT)
    store.save_point(RUN, 1, 0, "A", LIST_SIGNED, b"list", AT)
    with pytest.raises(AttemptError):
        store.begin_attempt(RUN, 1, 1, AT)
    store.begin_attempt(RUN, 2, 0, AT)  # the round is burnt
    with pytest.raises(AttemptError):
        store.commit_round(RUN, 1, "{}", "{}", AT)


def test_a_point_is_saved_once(store: Store) -> None:
    store.begin_attempt(RUN, 1, 3, AT)
    store.save_point(RUN, 1, 3, "A", LIST_SIGNED, b"list", AT)
    store.save_point(RUN, 1, 3, "A", LIST_SIGNED, b"list", AT + timedelta(hours=1))
    with pytest.raises(RecordConflictError):
        store.save_point(RUN, 1, 3, "A", LIST_SIGNED, b"other list", AT)
    store.save_point(RUN, 1, 3, "A", SUM_OPENED, b"sum", AT)
    for round_number, attempt in [(1, 2), (1, 4), (2, 3)]:
        with pytest.raises(AttemptError):
            store.save_point(RUN, round_number, attempt, "A", LIST_SIGNED, b"late", AT)
    with pytest.raises(LocalMisuseError):
        store.save_point(RUN, 1, 3, "A", "made-up", b"", AT)
    assert store.points(RUN, 1) == (
        Point(3, "A", LIST_SIGNED, b"list", AT),
        Point(3, "A", SUM_OPENED, b"sum", AT),
    )
    assert store.points(RUN, 2) == ()


def test_of_those_passed_over_the_newest_record_stands(store: Store) -> None:
    store.begin_attempt(RUN, 1, 1, AT)
    for blob in (b"one", b"one", b"one and two"):
        store.save_point(RUN, 1, 1, "A", HOLDERS_PASSED, blob, AT)
    assert store.points(RUN, 1) == (Point(1, "A", HOLDERS_PASSED, b"one and two", AT),)
    store.begin_attempt(RUN, 2, 1, AT)
    with pytest.raises(AttemptError):
        store.save_point(RUN, 1, 1, "A", HOLDERS_PASSED, b"late", AT)


def test_committing_moves_the_run_and_clears_the_points(store: Store) -> None:
    assert store.latest_state(RUN) is None
    for number in (1, 2):
        store.begin_attempt(RUN, number, 0, AT)
        store.save_point(RUN, number, 0, "A", LIST_SIGNED, b"list", AT)
        store.commit_round(RUN, number, f'{{"round":{number}}}', f'{{"w":{number}}}', AT)
        store.commit_round(RUN, number, f'{{"round":{number}}}', f'{{"w":{number}}}', AT)
        assert store.points(RUN, number) == ()
        assert (store.run(RUN).round, store.run(RUN).attempt) == (number + 1, -1)
    for record, state in [("{}", '{"w":1}'), ('{"round":1}', "{}")]:
        with pytest.raises(RecordConflictError):
            store.commit_round(RUN, 1, record, state, AT)
    assert [r.round for r in store.rounds(RUN)] == [1, 2]
    latest = store.latest_state(RUN)
    assert latest is not None
    assert (latest.round, latest.state) == (2, '{"w":2}')
    with pytest.raises(AttemptError):
        store.begin_attempt(RUN, 2, 1, AT)


def test_enrolment_keeps_the_latest_standing(store: Store) -> None:
    store.enrol(RUN, "south", "f1", "admitted", "", AT)
    store.enrol(RUN, "north", "f2", "refused", "not in the roster", AT)
    store.enrol(RUN, "south", "f3", "admitted", "", AT)
    assert [(e.institution, e.fingerprint, e.status) for e in store.enrolments(RUN)] == [
        ("north", "f2", "refused"),
        ("south", "f3", "admitted"),
    ]


def test_events_are_numbered_without_gaps_by_any_number_of_threads(store: Store) -> None:
    def add() -> None:
        for _ in range(10):
            store.add_event(RUN, "phase", {"name": "A", "bytes": 12, "seconds": 0.5}, AT)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.seq for e in store.events(RUN)] == list(range(1, 41))
    assert [e.seq for e in store.events(RUN, after_seq=38)] == [39, 40]
    assert len(store.events(RUN, limit=3)) == 3
    assert store.events(RUN)[0].fields == {"name": "A", "bytes": 12, "seconds": 0.5}


def test_the_file_is_private_and_as_durable_as_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = Store(f"sqlite:///{path}")
    store.create_run(RUN, "demo", b"", AT)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    with store._read() as db:
        names = ("journal_mode", "synchronous", "foreign_keys")
        pragmas = {name: db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    Store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO schema_version VALUES (99)")
    db.close()
    with pytest.raises(SchemaVersionError) as error:
        Store(f"sqlite:///{path}")
    assert error.value.remedy


@pytest.mark.parametrize("url", ["not a url", "sqlite:////no/such/folder/state.sqlite", "unknown://host/db"])
def test_a_wrong_url_is_told(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Store(url)
    assert error.value.remedy


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError):
        Store(f"sqlite:///{path}")


# A process that is killed before its n-th statement, for every n: one child forks them all, each in its own folder.
KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from coordinator.store import LIST_SIGNED, SUM_OPENED, Store

AT = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "ab" * 32
folder = Path(sys.argv[1])

def work(place, killed_at):
    done = os.open(place / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    left = killed_at
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)
    store = Store(f"sqlite:///{place}/state.sqlite")
    for name, call in [
        ("create", lambda: store.create_run(RUN, "demo", b"plan", AT)),
        ("begin", lambda: store.begin_attempt(RUN, 1, 0, AT)),
        ("signed", lambda: store.save_point(RUN, 1, 0, "A", LIST_SIGNED, b"list", AT)),
        ("opened", lambda: store.save_point(RUN, 1, 0, "A", SUM_OPENED, b"sum", AT)),
        ("commit", lambda: store.commit_round(RUN, 1, "{}", "state", AT)),
        ("event", lambda: store.add_event(RUN, "round-committed", {"round": 1}, AT)),
    ]:
        call()
        os.write(done, (name + "\\n").encode())

for killed_at in range(1, 200):
    place = folder / str(killed_at)
    place.mkdir()
    child = os.fork()
    if child == 0:
        work(place, killed_at)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        sys.exit(0)
    if os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit("a child failed by itself")
sys.exit("never finished")
"""


def test_killed_at_any_statement_nothing_committed_is_lost_and_nothing_is_half(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    places = sorted(tmp_path.iterdir(), key=lambda p: int(p.name))
    assert len(places) > 20, "every statement of every step was a place to die at"
    outcomes = set()
    for place in places:
        returned = (place / "done").read_text().split()
        store = Store(f"sqlite:///{place}/state.sqlite")
        try:
            kept = [r.run for r in store.runs()] == [RUN]
            assert kept or "create" not in returned
            if not kept:
                continue
            run = store.run(RUN)
            kinds = tuple(p.kind for p in store.points(RUN, 1))
            committed = store.latest_state(RUN) is not None
            # Whole: either the round is there, its points gone and the run moved, or nothing of that.
            whole = (run.round, run.attempt, kinds, committed)
            assert whole in {
                (0, -1, (), False),
                (1, 0, (), False),
                (1, 0, (LIST_SIGNED,), False),
                (1, 0, (LIST_SIGNED, SUM_OPENED), False),
                (2, -1, (), True),
            }
            outcomes.add(whole)
            # Nothing lost: what had returned before the kill is there.
            assert "begin" not in returned or run.round >= 1
            assert "signed" not in returned or LIST_SIGNED in kinds or committed
            assert "opened" not in returned or SUM_OPENED in kinds or committed
            assert "commit" not in returned or committed
            assert "event" not in returned or len(store.events(RUN)) == 1
            # And it goes on from there.
            if kinds and not committed:
                store.commit_round(RUN, 1, "{}", "state", AT)
                assert store.points(RUN, 1) == ()
        finally:
            store.close()
    assert len(outcomes) == 5, "the kills hit every stage"
