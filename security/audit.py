"""The append-only audit log: who did what when, as hash-chained JSON lines (DESIGN.md, "State and failure").

Each line is one entry in canonical JSON and holds the hash of the line before it, so that a changed, removed or
inserted line shows. What the file alone cannot show is that its end was cut off, or that somebody wrote everything
after a change anew: for that, compare `verify`'s head with one noted elsewhere.

An entry says only what `FIELDS` allows: names, codes, digests and counts of protocol objects. There is no kind for a
fraction or free text, so no loss, weight, measurement or patient identifier can be written by accident.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from security.errors import ConfigurationError, ConsiliumError, LocalMisuseError

FieldValue = str | int | bool | tuple[str, ...]

VERSION: Final = 1
GENESIS: Final = "0" * 64
RECOVERED: Final = "audit-log-recovered"

_LARGEST_LINE: Final = 64 * 2**10
_LARGEST_TUPLE: Final = 1000
_HASH_TAG: Final = b"consilium/v1/audit\n"
_EVENT: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+){0,9}")


def _text(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_is_name = _text(r"[a-z0-9][a-z0-9_-]{0,62}")
_is_code = _text(r"[a-z][a-z0-9-]{0,62}")
_is_digest = _text(r"[0-9a-f]{64}")
_is_subset = _text(r"[a-z0-9][a-z0-9_+-]{0,254}")
_is_component = _text(r"[a-z]{1,16}/[a-z0-9][a-z0-9_+-]{0,254}")
_is_address = _text(r"[A-Za-z0-9.:\[\]_-]{1,255}")
_is_version = _text(r"[A-Za-z0-9.+_-]{1,63}")


def _tuple_of(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and len(value) <= _LARGEST_TUPLE and all(kind(item) for item in value)


# Every field that an entry may have. Add here, and nowhere else, what a new event needs; never a kind for values.
FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "address": _is_address,
    "attempt": _is_count,
    "bytes": _is_count,
    "cohort": _tuple_of(_is_name),
    "component": _is_component,
    "components": _tuple_of(_is_component),
    "confirmed": _is_flag,
    "count": _is_count,
    "culprits": _tuple_of(_is_name),
    "data_digest": _is_digest,
    "federation": _is_name,
    "fingerprint": _is_digest,
    "institution": _is_name,
    "missing": _tuple_of(_is_name),
    "model_digest": _is_digest,
    "operator": _is_name,
    "peer": _is_name,
    "phase": _is_code,
    "plan": _is_digest,
    "policy_digest": _is_digest,
    "reason": _is_code,
    "role": _is_code,
    "round": _is_count,
    "rule": _is_code,
    "run": _is_name,
    "subset": _is_subset,
    "sum": _is_code,
    "survivors": _tuple_of(_is_name),
    "transcript": _is_digest,
    "version": _is_version,
}


class AuditLogBrokenError(ConsiliumError):
    """A line of the log is not what was written, or is missing."""

    code = "audit-log-broken"


class AuditLogLockedError(ConfigurationError):
    """Another process writes this log."""

    code = "audit-log-locked"


class AuditLogWriteError(ConsiliumError):
    """An entry could not be made durable. What it would have recorded must not be done."""

    code = "audit-log-write"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `sequence` counts from 0; `previous` and `hash` are SHA-256 in hex."""

    sequence: int
    time: str
    event: str
    fields: Mapping[str, FieldValue]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends: how many entries, and the hash of the last (`GENESIS` for none)."""

    entries: int
    hash: str


class AuditLog:
    """The one writer of a log. Open it with `with`, or call `close`. Safe to use from several threads."""

    def __init__(self, path: Path, now: datetime) -> None:
        """Opens or creates the log, checks all of it, and mends a last line that a crash tore.

        Args:
            path: the log file; its folder must exist. Its mode becomes 0600.
            now: timezone-aware; the time of the entry that records a recovery.

        Raises:
            AuditLogLockedError: another process has it open.
            AuditLogBrokenError: a line does not verify; nothing is appended to a broken log.
            ConfigurationError: the path cannot be opened as a file of one's own.
        """
        self.path = path
        self._lock = threading.Lock()
        self._usable = True
        self._file = _open(path)
        try:
            os.fchmod(self._file, 0o600)
            content = _content(self._file)
            lines, torn = _split(content)
            self._head = _check_lines(lines, path)
            self._size = len(content) - len(torn)
            if torn:
                os.ftruncate(self._file, self._size)
                os.fsync(self._file)
                self.append(RECOVERED, {"bytes": len(torn)}, now)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def head(self) -> Head:
        """Where the log ends now."""
        return self._head

    def append(self, event: str, fields: Mapping[str, FieldValue], now: datetime) -> Entry:
        """Writes one entry and returns when it is on the disk.

        Args:
            event: a short kebab-case code, for example `plan-refused`.
            fields: only names and kinds of `FIELDS`.
            now: timezone-aware.

        Raises:
            LocalMisuseError: the event, a field or the time is not allowed; nothing is written.
            AuditLogWriteError: the disk refused; the log is as before, or refuses all further entries.
        """
        _check_entry(event, fields)
        if now.tzinfo is None:
            raise LocalMisuseError("`now` has no time zone.", remedy="Pass datetime.now(UTC).")
        with self._lock:
            if not self._usable:
                raise AuditLogWriteError("the audit log is closed.", remedy=_MEND_DISK, place=str(self.path))
            entry, line = _entry(self._head, now, event, fields)
            try:
                self._write(line)
            except OSError as error:
                raise AuditLogWriteError(
                    f"the entry could not be written: {error.strerror}.", remedy=_MEND_DISK, place=str(self.path)
                ) from None
            self._size += len(line)
            self._head = Head(entry.sequence + 1, entry.hash)
            return entry

    def close(self) -> None:
        """Releases the lock. Further entries are refused."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._usable = -1, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            try:
                os.ftruncate(self._file, self._size)  # a full disk leaves half a line
            except OSError:
                self._usable = False
            raise
        try:
            os.fsync(self._file)
        except OSError:
            # After a failed fsync the kernel may forget the page: what the disk holds is known only after reopening.
            self._usable = False
            raise


def verify(path: Path) -> Head:
    """Checks every line of a log, also while it is being written by another process.

    Returns:
        Where it ends; compare it with a head noted elsewhere to see whether entries were cut off the end.

    Raises:
        AuditLogBrokenError: names the first line that is wrong, or a torn last line.
        ConfigurationError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unopened(path, error) from None
    lines, torn = _split(content)
    head = _check_lines(lines, path)
    if torn:
        raise AuditLogBrokenError(
            "the last line is not complete.",
            remedy="Start the program that writes this log: it removes the rest of the line and records that.",
            place=f"{path}, line {len(lines) + 1}",
        )
    return head


def _check_lines(lines: list[bytes], path: Path) -> Head:
    head = Head(0, GENESIS)
    for number, line in enumerate(lines, start=1):
        fault = _line_fault(line, head)
        if isinstance(fault, str):
            raise AuditLogBrokenError(
                fault,
                remedy="Keep this file as evidence, move it aside, and find out who changed it.",
                place=f"{path}, line {number}",
            )
        head = fault
    return head


def _line_fault(line: bytes, head: Head) -> str | Head:
    """What is wrong with a line after `head`, or the head after it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "this is not an entry."
    if not isinstance(entry, dict) or _canonical(entry) != line:
        return "this is not an entry in the form that the log writes."
    claimed = entry.pop("hash", None)
    if entry.get("previous") != head.hash or entry.get("sequence") != head.entries:
        return f"entry {head.entries} is not here: lines were removed, inserted or moved."
    if claimed != _hash(entry):
        return "this entry was changed after it was written."
    return Head(head.entries + 1, claimed)


def _entry(head: Head, now: datetime, event: str, fields: Mapping[str, FieldValue]) -> tuple[Entry, bytes]:
    body: dict[str, object] = {
        "event": event,
        "fields": {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
        "previous": head.hash,
        "sequence": head.entries,
        "time": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "version": VERSION,
    }
    own = _hash(body)
    line = _canonical({**body, "hash": own}) + b"\n"
    if len(line) > _LARGEST_LINE:
        raise LocalMisuseError(f"an audit entry of {len(line)} bytes is too long.", remedy="Record less in it.")
    return Entry(head.entries, str(body["time"]), event, dict(fields), head.hash, own), line


def _check_entry(event: str, fields: Mapping[str, FieldValue]) -> None:
    if not (_EVENT.fullmatch(event) and len(event) <= 63):
        raise LocalMisuseError("an audit event is a short code like `plan-refused`.", remedy="Shorten it.")
    for name, value in fields.items():
        kind = FIELDS.get(name)
        if kind is None:
            raise LocalMisuseError(
                f"an audit entry has no field {name!r}.", remedy="Declare it in security.audit.FIELDS, if it may be."
            )
        if not kind(value):  # the value itself stays out of the message: it may be a patient's
            raise LocalMisuseError(
                f"the audit field {name!r} does not take this {type(value).__name__}.",
                remedy="See security.audit.FIELDS for what it takes.",
            )


def _canonical(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _hash(body: Mapping[str, object]) -> str:
    return hashlib.sha256(_HASH_TAG + _canonical(body)).hexdigest()


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # or a crash loses the file with all its entries
            finally:
                os.close(folder)
        except FileExistsError:
            file = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        raise _unopened(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigurationError("the audit log is not a file.", remedy="Move it aside.", place=str(path))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise AuditLogLockedError(
            "another process writes this audit log.",
            remedy="Stop the other process, or give this one a state folder of its own.",
            place=str(path),
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file


def _content(file: int) -> bytes:
    content = b""
    while part := os.pread(file, os.fstat(file).st_size - len(content), len(content)):
        content += part
    return content


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """The complete lines, and what stands after the last of them."""
    *lines, torn = content.split(b"\n")
    return lines, torn


def _unopened(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the audit log cannot be opened: {error.strerror}.",
        remedy="Make its folder, and let the user that runs this program write there.",
        place=str(path),
    )


_MEND_DISK: Final = "Free space on the disk or mend it, then restart."
