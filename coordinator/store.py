"""The coordinator's memory of its runs: a database in which a round is committed or not, never in between.

SQLite by default, PostgreSQL by URL. Every method is one transaction, durable when it returns, and may be called
from any thread. The three durable points of a round (DESIGN.md, "State and failure") are two kinds of *point*,
`list-signed` and `sum-opened`, and the committed round itself. Times are arguments; they must know their zone.

A run's `round` and `attempt` are the last ones begun: (0, -1) at first, (r + 1, -1) once round r is committed. They
only ever grow, so nothing that was burnt comes back.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from coordinator import tables as t
from security.errors import ConfigurationError, ConsiliumError, LocalMisuseError

LIST_SHOWN: Final = "list-shown"  # round 0 only, which cannot be burnt
LIST_SIGNED: Final = "list-signed"
HOLDERS_PASSED: Final = "holders-passed"  # of an encrypted sum: who was asked to decrypt and did not answer; it grows
SUM_FOLDED: Final = "sum-folded"  # updates only: the words are content, the uploads may go, the next model is to come
SUM_OPENED: Final = "sum-opened"
POINT_KINDS: Final = (LIST_SHOWN, LIST_SIGNED, HOLDERS_PASSED, SUM_FOLDED, SUM_OPENED)  # in the order of a sum's life

Field = str | int | float | bool | None


class StoreError(ConsiliumError):
    """The database failed. Nothing of the step was kept."""

    code = "store"


class SchemaVersionError(StoreError):
    """The database was made by a newer Consilium."""

    code = "schema-version"


class UnknownRunError(StoreError):
    """No run of this digest."""

    code = "unknown-run"


class RunExistsError(StoreError):
    """A run of this plan was created before."""

    code = "run-exists"


class AttemptError(StoreError):
    """The step belongs to an attempt or a round that the run has left, or may not leave."""

    code = "attempt"


class RecordConflictError(StoreError):
    """Something else was made durable under the same name; the first stands."""

    code = "record-conflict"


@dataclass(frozen=True)
class Run:
    """One run. `plan` is the exact bytes whose SHA-256 is `run`; `round` and `attempt` are the last begun."""

    run: str
    name: str
    plan: bytes
    status: str
    reason: str
    round: int
    attempt: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Enrolment:
    """An institution's latest standing in a run. `fingerprint` is its certificate's."""

    institution: str
    fingerprint: str
    status: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Point:
    """A durable point of one sum: `blob` is the signed list with its signatures, or the opened sum's record."""

    attempt: int
    sum: str
    kind: str
    blob: bytes
    at: datetime


@dataclass(frozen=True)
class CommittedRound:
    """A committed round. `record` and `state` are JSON texts: what happened, and what the next round begins from."""

    round: int
    record: str
    state: str
    at: datetime


@dataclass(frozen=True)
class Event:
    """Something worth showing an operator. `seq` counts from 1 in each run, without gaps."""

    seq: int
    at: datetime
    kind: str
    fields: Mapping[str, Field]


class Store:
    """All runs of one coordinator.

    Args:
        url: an SQLAlchemy URL, `sqlite:///folder/state.sqlite` or `postgresql+psycopg://…`; `sqlite://` keeps it in
            memory.

    Raises:
        ConfigurationError: the URL or its driver is wrong.
        SchemaVersionError: made by a newer version.
        StoreError: the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._lock = threading.RLock()  # SQLite has one writer; waiting here beats waiting in its busy loop
        self._engine = _engine(url)
        with self._write() as db:
            t.metadata.create_all(db)
            version = db.execute(sa.select(sa.func.max(t.schema_version.c.version))).scalar()
            if version is None:
                db.execute(t.schema_version.insert().values(version=t.SCHEMA_VERSION))
            elif version > t.SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"the database has schema version {version}, this program knows {t.SCHEMA_VERSION}.",
                    remedy="Start the Consilium that made it, or a newer one.",
                )

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    # Runs

    def create_run(self, run: str, name: str, plan: bytes, at: datetime) -> None:
        """Begins a run with status `created`. Raises RunExistsError if its plan ran before."""
        with self._write() as db:
            if db.execute(sa.select(t.runs.c.run).where(t.runs.c.run == run)).first() is not None:
                raise RunExistsError(
                    "a run of this very plan exists.", remedy="Give the plan another run name to repeat it.", place=run
                )
            times = {"created_at": at, "updated_at": at}
            db.execute(
                t.runs.insert().values(
                    run=run, name=name, plan=plan, status="created", reason="", round=0, attempt=-1, **times
                )
            )

    def run(self, run: str) -> Run:
        """Raises UnknownRunError where there is none."""
        with self._read() as db:
            return _run(db, run)

    def runs(self) -> tuple[Run, ...]:
        """All runs, oldest first."""
        with self._read() as db:
            rows = db.execute(sa.select(t.runs).order_by(t.runs.c.created_at, t.runs.c.run))
            return tuple(Run(**row) for row in rows.mappings())

    def set_status(self, run: str, status: str, reason: str, at: datetime) -> None:
        """Moves a run to another status. `reason` is for people; empty where there is nothing to explain."""
        with self._write() as db:
            _run(db, run)
            db.execute(_update_run(run).values(status=status, reason=reason, updated_at=at))

    # Rounds

    def begin_attempt(self, run: str, round_number: int, attempt: int, at: datetime) -> None:
        """Makes (round, attempt) the current one, before anybody hears of it.

        Raises:
            AttemptError: not beyond the last one begun; or the round has a durable point, so that its sum has been
                signed for and no other attempt of it may exist (DESIGN.md, "Secure sum", rule 7).
        """
        with self._write() as db:
            current = _run(db, run)
            if round_number < 0 or attempt < 0 or (round_number, attempt) <= (current.round, current.attempt):
                raise AttemptError(
                    f"round {round_number}, attempt {attempt} is not beyond round {current.round}, "
                    f"attempt {current.attempt}, the last begun.",
                    remedy="Begin a higher attempt or the next round.",
                    place=run,
                )
            in_round = (t.points.c.run == run) & (t.points.c.round == round_number)
            if db.execute(sa.select(t.points.c.kind).where(in_round)).first() is not None:
                raise AttemptError(
                    f"a survivor list of round {round_number} has been signed.",
                    remedy="Resume that attempt, or burn the round and begin the next.",
                    place=run,
                )
            db.execute(_update_run(run).values(round=round_number, attempt=attempt, updated_at=at))

    def save_point(
        self, run: str, round_number: int, attempt: int, sum_name: str, kind: str, blob: bytes, at: datetime
    ) -> None:
        """Makes a point of the current attempt durable. The same blob again changes nothing; of `holders-passed` the
        newest stands.

        Args:
            kind: one of `POINT_KINDS`.

        Raises:
            RecordConflictError: another blob is saved under the same name.
            AttemptError: (round, attempt) is not the current one.
        """
        if kind not in POINT_KINDS:
            raise LocalMisuseError(f"no such kind of point: {kind!r}.", remedy=f"Use one of {POINT_KINDS}.")
        named = {"run": run, "round": round_number, "attempt": attempt, "sum": sum_name, "kind": kind}
        with self._write() as db:
            current = _run(db, run)
            same = sa.and_(*(t.points.c[column] == value for column, value in named.items()))
            saved = db.execute(sa.select(t.points.c.blob).where(same)).first()
            if saved is not None:
                if bytes(saved.blob) == blob:
                    return
                if kind != HOLDERS_PASSED:
                    raise _conflict(f"another {kind} of sum {sum_name}, round {round_number} is durable.", run)
            if (round_number, attempt) != (current.round, current.attempt):
                raise AttemptError(
                    f"round {round_number}, attempt {attempt} is over.", remedy="Drop its messages.", place=run
                )
            if saved is not None:
                db.execute(t.points.update().where(same).values(blob=blob, at=at))
            else:
                db.execute(t.points.insert().values(blob=blob, at=at, **named))

    def points(self, run: str, round_number: int) -> tuple[Point, ...]:
        """The durable points of a round that is not committed yet, in the order (attempt, sum, kind)."""
        c = t.points.c
        with self._read() as db:
            rows = db.execute(
                sa.select(c.attempt, c.sum, c.kind, c.blob, c.at)
                .where(c.run == run, c.round == round_number)
                .order_by(c.attempt, c.sum, c.kind)
            )
            return tuple(Point(**row) for row in rows.mappings())

    def commit_round(self, run: str, round_number: int, record: str, state: str, at: datetime) -> None:
        """Commits a round: the round is there, its points are gone and the run stands at the next one, or none of it.

        The same round with the same texts again changes nothing. Points of burnt rounds before it go as well.

        Raises:
            RecordConflictError: the round is committed with other texts.
            AttemptError: the run has left this round without committing it.
        """
        c = t.rounds.c
        with self._write() as db:
            current = _run(db, run)
            row = db.execute(sa.select(c.record, c.state).where(c.run == run, c.round == round_number)).first()
            if row is not None:
                if (row.record, row.state) != (record, state):
                    raise _conflict(f"round {round_number} is committed with another outcome.", run)
                return
            if round_number < current.round:
                raise AttemptError(
                    f"round {round_number} was burnt; the run stands at round {current.round}.",
                    remedy="Drop the round's result.",
                    place=run,
                )
            db.execute(t.rounds.insert().values(run=run, round=round_number, record=record, state=state, at=at))
            db.execute(t.points.delete().where(t.points.c.run == run, t.points.c.round <= round_number))
            db.execute(_update_run(run).values(round=round_number + 1, attempt=-1, updated_at=at))

    def rounds(self, run: str) -> tuple[CommittedRound, ...]:
        """Committed rounds, in order. Burnt ones are missing."""
        with self._read() as db:
            return tuple(CommittedRound(**row) for row in db.execute(_rounds(run)).mappings())

    def latest_state(self, run: str) -> CommittedRound | None:
        """The last committed round; None before the first."""
        with self._read() as db:
            query = _rounds(run).order_by(None).order_by(t.rounds.c.round.desc()).limit(1)
            row = db.execute(query).mappings().first()
            return CommittedRound(**row) if row is not None else None

    # Institutions and events

    def enrol(self, run: str, institution: str, fingerprint: str, status: str, reason: str, at: datetime) -> None:
        """Keeps the institution's latest standing; a rotated certificate replaces its fingerprint."""
        values = {"fingerprint": fingerprint, "status": status, "reason": reason, "at": at}
        with self._write() as db:
            _run(db, run)
            here = (t.enrolments.c.run == run) & (t.enrolments.c.institution == institution)
            if db.execute(t.enrolments.update().where(here).values(**values)).rowcount == 0:
                db.execute(t.enrolments.insert().values(run=run, institution=institution, **values))

    def enrolments(self, run: str) -> tuple[Enrolment, ...]:
        """All standings in a run, by institution."""
        c = t.enrolments.c
        with self._read() as db:
            columns = sa.select(c.institution, c.fingerprint, c.status, c.reason, c.at)
            rows = db.execute(columns.where(c.run == run).order_by(c.institution))
            return tuple(Enrolment(**row) for row in rows.mappings())

    def add_event(self, run: str, kind: str, fields: Mapping[str, Field], at: datetime) -> int:
        """Adds to the run's events; returns its `seq`. Fields carry sizes, names and codes, never values."""
        text = json.dumps(dict(fields), sort_keys=True, allow_nan=False)
        with self._write() as db:
            _run(db, run)
            last = db.execute(sa.select(sa.func.max(t.events.c.seq)).where(t.events.c.run == run)).scalar()
            seq = (last or 0) + 1
            db.execute(t.events.insert().values(run=run, seq=seq, at=at, kind=kind, fields=text))
            return seq

    def events(self, run: str, after_seq: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Events after `after_seq`, in order, `limit` at most."""
        c = t.events.c
        with self._read() as db:
            columns = sa.select(c.seq, c.at, c.kind, c.fields)
            rows = db.execute(columns.where(c.run == run, c.seq > after_seq).order_by(c.seq).limit(limit))
            return tuple(Event(seq, at, kind, json.loads(text)) for seq, at, kind, text in rows)

    @contextlib.contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._lock, _store_errors(), self._engine.connect() as connection:
            db = connection.execution_options(consilium_write=True)
            with db.begin():
                yield db

    @contextlib.contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._reading(), _store_errors(), self._engine.connect() as db, db.begin():
            yield db

    def _reading(self) -> contextlib.AbstractContextManager[object]:
        # In memory there is one connection for all threads; on disk, readers never wait for the writer.
        return self._lock if isinstance(self._engine.pool, StaticPool) else contextlib.nullcontext()


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        # A ConsiliumError raised while parameters were bound arrives wrapped.
        cause = getattr(error, "orig", None)
        if isinstance(cause, ConsiliumError):
            raise cause from None
        raise StoreError(
            f"the database failed ({type(cause or error).__name__}).",
            remedy="Check that it is reachable, writable and not full; the step can be repeated.",
        ) from error


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
        options: dict[str, Any] = {"connect_args": {"timeout": 30.0, "check_same_thread": False}}
        if parsed.database in (None, "", ":memory:"):
            options["poolclass"] = StaticPool
        else:
            Path(str(parsed.database)).touch(mode=0o600)
        engine = sa.create_engine(parsed, **options)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(
            f"the database URL cannot be used ({type(error).__name__}).",
            remedy="Write sqlite:///PATH, or postgresql+psycopg://HOST/NAME with that driver installed.",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            "the database file cannot be made.",
            remedy="Make its folder, and give this user the right to write there.",
            place=str(parsed.database),
        ) from error
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are ours: the driver would begin them too late
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(db: sa.Connection) -> None:
    # IMMEDIATE takes the write lock at once: what a step reads is still true when it writes.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("consilium_write") else "BEGIN")


def _run(db: sa.Connection, run: str) -> Run:
    """The run's row, locked for the transaction where the database locks rows."""
    query = sa.select(t.runs).where(t.runs.c.run == run)
    if db.get_execution_options().get("consilium_write"):
        query = query.with_for_update()
    row = db.execute(query).mappings().first()
    if row is None:
        raise UnknownRunError("there is no such run.", remedy="List the runs, or start it.", place=run)
    return Run(**row)


def _update_run(run: str) -> sa.Update:
    return t.runs.update().where(t.runs.c.run == run)


def _rounds(run: str) -> sa.Select[Any]:
    c = t.rounds.c
    return sa.select(c.round, c.record, c.state, c.at).where(c.run == run).order_by(c.round)


def _conflict(message: str, run: str) -> RecordConflictError:
    return RecordConflictError(message, remedy="The first one stands; resume from it.", place=run)
