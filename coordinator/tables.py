"""The coordinator's database tables, alike in SQLite and PostgreSQL; `coordinator/store.py` gives their meaning."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

from security.errors import LocalMisuseError

SCHEMA_VERSION: Final = 1


class UtcTime(TypeDecorator[datetime]):
    """An instant, kept as UTC to the microsecond: SQLite forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses local times: nobody could say later which instant they were."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise LocalMisuseError("a time without a zone cannot be stored.", remedy="Pass an aware datetime.")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Always aware, in UTC."""
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata: Final = MetaData()


def _run(*, primary_key: bool = True) -> Column[str]:
    return Column("run", String(128), ForeignKey("runs.run"), primary_key=primary_key)


schema_version: Final = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

runs: Final = Table(
    "runs",
    metadata,
    Column("run", String(128), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("status", String(63), nullable=False),
    Column("reason", Text, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

enrolments: Final = Table(
    "enrolments",
    metadata,
    _run(),
    Column("institution", String(63), primary_key=True),
    Column("fingerprint", String(128), nullable=False),
    Column("status", String(63), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

points: Final = Table(
    "points",
    metadata,
    _run(),
    Column("round", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    Column("sum", String(63), primary_key=True),
    Column("kind", String(63), primary_key=True),
    Column("blob", LargeBinary, nullable=False),
    Column("at", UtcTime, nullable=False),
)

rounds: Final = Table(
    "rounds",
    metadata,
    _run(),
    Column("round", BigInteger, primary_key=True, autoincrement=False),
    Column("record", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

events: Final = Table(
    "events",
    metadata,
    _run(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("kind", String(63), nullable=False),
    Column("fields", Text, nullable=False),
)
