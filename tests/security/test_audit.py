"""The audit log: tampering shows, crashes are mended and recorded, and no value of a patient fits in."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.audit import (
    FIELDS,
    GENESIS,
    RECOVERED,
    AuditLog,
    AuditLogBrokenError,
    AuditLogLockedError,
    AuditLogWriteError,
    FieldValue,
    Head,
    verify,
)
from security.errors import ConfigurationError, LocalMisuseError

NOW = dt.datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def write(path: Path, entries: int = 5) -> Head:
    with AuditLog(path, NOW) as log:
        for number in range(entries):
            log.append("round-joined", {"round": number, "survivors": ("brca-1", "lusc-2")}, NOW)
        return log.head


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_chained_lines_of_json(path: Path) -> None:
    head = write(path, 3)
    entries = [json.loads(line) for line in lines_of(path)]
    assert [entry["sequence"] for entry in entries] == [0, 1, 2]
    assert [entry["previous"] for entry in entries] == [GENESIS, entries[0]["hash"], entries[1]["hash"]]
    assert entries[1]["fields"] == {"round": 1, "survivors": ["brca-1", "lusc-2"]}
    assert entries[1]["time"] == "2025-03-01T12:00:00.123+00:00"
    assert verify(path) == head == Head(3, entries[2]["hash"])


def test_times_are_written_in_utc(path: Path) -> None:
    zone = dt.timezone(dt.timedelta(hours=2))
    with AuditLog(path, NOW) as log:
        assert log.append("node-started", {}, NOW.astimezone(zone)).time == "2025-03-01T12:00:00.123+00:00"
        with pytest.raises(LocalMisuseError):
            log.append("node-started", {}, NOW.replace(tzinfo=None))


def test_reopening_goes_on_with_the_chain(path: Path) -> None:
    write(path, 2)
    head = write(path, 2)
    assert head.entries == 4
    assert verify(path) == head


def test_an_empty_log_verifies(path: Path) -> None:
    write(path, 0)
    assert verify(path) == Head(0, GENESIS)


def test_only_the_owner_may_read_it(path: Path) -> None:
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_bit_shows_at_its_line(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        write(path, 3)
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        line = bytes(content).count(b"\n", 0, bit // 8) + 1
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
        with pytest.raises(AuditLogBrokenError) as caught:
            verify(path)
        assert caught.value.place == f"{path}, line {line}"
        assert caught.value.remedy


def test_removed_moved_repeated_and_inserted_lines_show(path: Path) -> None:
    write(path)
    a, b, c, d, e = lines_of(path)
    for lines, broken in (
        ([b, c, d, e], 1),
        ([a, b, d, e], 3),
        ([a, c, b, d, e], 2),
        ([a, b, b, c, d, e], 3),
        ([a, b, b"\n", c, d, e], 3),
        ([b"\n", a, b, c, d, e], 1),
        ([a, b, c, b'{"a":1}\n', d, e], 4),
        ([a, b, b"[" * 100_000 + b"\n"], 3),
    ):
        path.write_bytes(b"".join(lines))
        with pytest.raises(AuditLogBrokenError) as caught:
            verify(path)
        assert caught.value.place == f"{path}, line {broken}"
        with pytest.raises(AuditLogBrokenError):
            AuditLog(path, NOW)
        assert path.read_bytes() == b"".join(lines)


def test_a_rewritten_entry_shows_at_the_next(path: Path) -> None:
    """Somebody who recomputes the changed entry's own hash is caught by the entry after it."""
    write(path)
    original = lines_of(path)
    other = path.with_name("other.jsonl")
    with AuditLog(other, NOW) as log:
        log.append("round-joined", {"round": 7}, NOW)
    path.write_bytes(b"".join([*lines_of(other), *original[1:]]))
    with pytest.raises(AuditLogBrokenError, match="entry 1 is not here") as caught:
        verify(path)
    assert caught.value.place.endswith("line 2")


def test_another_form_of_the_same_entry_shows(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"sequence":1,', b'"sequence": 1,'))
    with pytest.raises(AuditLogBrokenError, match="form") as caught:
        verify(path)
    assert caught.value.place.endswith("line 2")


def test_a_wrong_number_shows_even_under_right_hashes(path: Path) -> None:
    write(path, 1)
    entry = json.loads(path.read_bytes())
    del entry["hash"]
    entry["sequence"] = 4
    body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    entry["hash"] = hashlib.sha256(b"consilium/v1/audit\n" + body).hexdigest()
    path.write_bytes(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(AuditLogBrokenError, match="entry 0 is not here"):
        verify(path)


def test_an_end_that_was_cut_off_shows_against_a_head_noted_elsewhere(path: Path) -> None:
    head = write(path)
    path.write_bytes(b"".join(lines_of(path)[:-1]))
    assert verify(path) != head


def test_a_crash_at_every_byte_of_the_last_line_is_mended_and_recorded(path: Path) -> None:
    write(path, 3)
    lines = lines_of(path)
    whole = b"".join(lines[:2])
    for cut in range(1, len(lines[2])):
        path.write_bytes(whole + lines[2][:cut])
        with pytest.raises(AuditLogBrokenError, match="not complete") as caught:
            verify(path)
        assert caught.value.place == f"{path}, line 3"
        with AuditLog(path, NOW) as log:
            assert log.head.entries == 3
        recovered = json.loads(lines_of(path)[2])
        assert (recovered["event"], recovered["fields"]) == (RECOVERED, {"bytes": cut})
        assert lines_of(path)[:2] == lines[:2]
        assert verify(path).entries == 3


def test_one_writer_in_another_process(path: Path) -> None:
    program = (
        "import datetime, pathlib, sys; from security.audit import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]), datetime.datetime.now(datetime.UTC))\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(AuditLogLockedError) as caught:
            AuditLog(path, NOW)
        assert caught.value.place == str(path)
        assert verify(path).entries == 0
    finally:
        process.kill()
        process.communicate()
    assert write(path, 1).entries == 1  # the lock died with its holder


def test_one_writer_in_this_process(path: Path) -> None:
    with AuditLog(path, NOW), pytest.raises(AuditLogLockedError):
        AuditLog(path, NOW)


@pytest.mark.parametrize("event", ["", "Round", "round_joined", "round joined", "patient-" + "a" * 70])
def test_events_are_codes(path: Path, event: str) -> None:
    with AuditLog(path, NOW) as log, pytest.raises(LocalMisuseError):
        log.append(event, {}, NOW)


BAD_FIELDS: list[dict[str, object]] = [
    {"loss": 0.7},
    {"patient": "tcga-bh-a0b3"},
    {"round": 0.5},
    {"round": -1},
    {"round": True},
    {"round": 2**63},
    {"round": None},
    {"count": "7"},
    {"reason": "patient Smith, 63, has a bad table"},
    {"reason": "a" * 64},
    {"institution": "brca 1"},
    {"plan": "ab" * 31},
    {"survivors": ["brca-1"]},
    {"survivors": ("brca-1",) * 1001},
    {"survivors": ("brca-1", 0.5)},
    {"address": "a" * 256},
    {"component": "encoder/mrna\n"},
    {"confirmed": 1},
]


@pytest.mark.parametrize("fields", BAD_FIELDS)
def test_nothing_but_allowed_kinds_is_written(path: Path, fields: dict[str, FieldValue]) -> None:
    with AuditLog(path, NOW) as log:
        with pytest.raises(LocalMisuseError) as caught:
            log.append("plan-refused", fields, NOW)
        assert "Smith" not in str(caught.value)
        assert log.head.entries == 0
    assert path.read_bytes() == b""


def test_no_field_takes_a_fraction_or_free_text() -> None:
    for name, kind in FIELDS.items():
        for value in (0.5, "two words", b"x", {"a": 1}, ("two words",), None, "é"):
            assert not kind(value), name


def test_an_entry_that_is_too_long_is_refused(path: Path) -> None:
    with AuditLog(path, NOW) as log, pytest.raises(LocalMisuseError, match="too long"):
        log.append("survivors-signed", {"survivors": tuple("a" * 60 + str(n) for n in range(1000))}, NOW)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """A limit on the size of files, as a full disk would set one: a real OSError from a real write."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_log_whole(path: Path) -> None:
    with AuditLog(path, NOW) as log:
        log.append("round-joined", {"round": 0}, NOW)
        before = path.read_bytes()
        with pytest.raises(AuditLogWriteError, match=os.strerror(errno.EFBIG)) as caught:
            log.append("round-joined", {"survivors": tuple(f"brca-{n}" for n in range(60))}, NOW)
        assert caught.value.remedy
        assert path.read_bytes() == before
        log.append("round-joined", {}, NOW)
        assert verify(path) == log.head


def test_a_closed_log_refuses(path: Path) -> None:
    log = AuditLog(path, NOW)
    log.close()
    log.close()
    with pytest.raises(AuditLogWriteError, match="closed"):
        log.append("round-joined", {}, NOW)


def test_paths_that_cannot_be_a_log(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real").touch()
    (tmp_path / "link-to-file").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "link", "link-to-file", "pipe", "missing/audit.jsonl"):
        with pytest.raises(ConfigurationError) as caught:
            AuditLog(tmp_path / name, NOW)
        assert caught.value.place == str(tmp_path / name)
    with pytest.raises(ConfigurationError):
        verify(tmp_path / "nothing")
