"""What spool and store on disk keep when killed, when threads race, when files are damaged or the disk is full."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coordinator.files import FileContentStore, FileSpool
from federation.vectors import StorageError, StorageFullError, UploadMissingError
from security.errors import ConsiliumError
from tests.coordinator.uploading import RUN, key, read, sha, upload

ROOT = Path(__file__).resolve().parents[2]


def completing(spool: FileSpool, data: bytes, errors: list[ConsiliumError]) -> threading.Thread:
    """A thread that is in the middle of `complete` (flushing), or just through, when this returns."""
    spool.begin(key(), len(data))
    spool.append(key(), 0, data)
    lock = spool._uploads[key()].lock

    def complete() -> None:
        try:
            spool.complete(key(), sha(data), len(data))
        except ConsiliumError as error:
            errors.append(error)

    thread = threading.Thread(target=complete)
    thread.start()
    while thread.is_alive() and not lock.locked():
        pass
    return thread


def test_an_upload_discarded_while_it_completes_does_not_come_back(tmp_path: Path) -> None:
    spool, data = FileSpool(tmp_path), bytes(1 << 22)
    for _ in range(5):
        errors: list[ConsiliumError] = []
        thread = completing(spool, data, errors)
        spool.discard(key())
        thread.join()
        assert not spool.is_complete(key())
        assert [type(error) for error in errors] in ([], [UploadMissingError])
        assert list(tmp_path.rglob("*.part")) == []


def test_the_same_trailer_twice_at_once_is_no_conflict(tmp_path: Path) -> None:
    spool, data = FileSpool(tmp_path), bytes(1 << 22)
    for _ in range(5):
        errors: list[ConsiliumError] = []
        thread = completing(spool, data, errors)
        spool.complete(key(), sha(data), len(data))
        thread.join()
        assert errors == []
        spool.discard(key())


def test_files_are_private(tmp_path: Path) -> None:
    spool, store = FileSpool(tmp_path / "state" / "spool"), FileContentStore(tmp_path / "state" / "content")
    upload(spool, key(), b"abc")
    spool.begin(key("south"), 3)
    store.put(b"abc")
    for path in (tmp_path / "state").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_reopened_spool_has_the_complete_uploads_and_no_parts(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path)
    upload(spool, key("north"), b"abc")
    spool.begin(key("south"), 3)
    spool.append(key("south"), 0, b"ab")
    again = FileSpool(tmp_path)
    assert len(list(tmp_path.rglob("*.part"))) == 1, "a living writer's file stays"
    assert again.completed(RUN, 1, 0, "A") == ("north",)
    assert again.begin(key("south"), 3) == 0, "a partial upload begins again"
    assert spool.offset(key("south")) == 2


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as error:
        FileSpool(tmp_path / "file")
    assert error.value.remedy
    with pytest.raises(StorageError):
        FileContentStore(tmp_path / "file" / "content")


def test_a_damaged_file_is_not_read_as_zeros(tmp_path: Path) -> None:
    store = FileContentStore(tmp_path)
    digest = store.put(b"abcdef")
    reader = store.open(digest)
    os.truncate(tmp_path / digest, 3)
    with pytest.raises(StorageError):
        read(reader)


KILLED = """
import os, signal, sys
from federation.content_hash import content_digest
from pathlib import Path
from coordinator.files import FileContentStore, FileSpool
from federation.vectors import UploadKey

folder, point = Path(sys.argv[1]), sys.argv[2]
spool, store = FileSpool(folder / "spool"), FileContentStore(folder / "content")
armed = renamed = False

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, args):
    # The kernel's own calls, as Python reports them: no step of ours is replaced.
    global renamed
    if not armed:
        return
    if event == "os.rename":
        if point == "before-rename":
            die()
        renamed = True
    elif event == "open" and renamed and point == "after-rename":
        die()

sys.addaudithook(hook)
data = b"masked" * 1000
for name in ("first", "second"):
    armed = name == "second"
    key = UploadKey("ab" * 32, 1, 0, "A", name)
    spool.begin(key, len(data))
    spool.append(key, 0, data[:3000])
    if armed and point == "in-part":
        writer = store.writer(); writer.write(b"half"); die()
    spool.append(key, 3000, data[3000:])
    if armed and point == "before-complete":
        die()
    spool.complete(key, content_digest(data), len(data))
    store.put(name.encode())
print("not killed")
"""


@pytest.mark.parametrize("point", ["in-part", "before-complete", "before-rename", "after-rename"])
def test_killed_at_any_instant_an_upload_counts_whole_or_not(tmp_path: Path, point: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), point], cwd=ROOT, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    spool, store = FileSpool(tmp_path / "spool"), FileContentStore(tmp_path / "content")
    data = b"masked" * 1000
    expected = ("first", "second") if point == "after-rename" else ("first",)
    assert spool.completed(RUN, 1, 0, "A") == expected
    for name in expected:
        assert read(spool.open(key(name))) == data
    assert store.has(sha(b"first"))
    assert not store.has(sha(b"half"))
    assert list(tmp_path.rglob("*.part")) == [], "what a dead process left half-written is removed"
    upload(spool, key("second"), data) if len(expected) == 1 else spool.complete(key("second"), sha(data), len(data))
    assert spool.completed(RUN, 1, 0, "A") == ("first", "second")


FULL = """
import resource, sys
from federation.content_hash import content_digest
from pathlib import Path
from coordinator.files import FileContentStore, FileSpool
from federation.vectors import StorageFullError, UploadKey

folder = Path(sys.argv[1])
spool, store = FileSpool(folder / "spool"), FileContentStore(folder / "content")
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
key, data = UploadKey("ab" * 32, 1, 0, "A", "north"), bytes(range(250)) * 80
spool.begin(key, len(data))
spool.append(key, 0, data[:8000])
try:
    spool.append(key, 8000, data[8000:])
    sys.exit("the full disk was not noticed")
except StorageFullError as error:
    assert error.remedy
assert spool.offset(key) == 8000, spool.offset(key)
try:
    store.put(data)
    sys.exit("the full disk was not noticed")
except StorageFullError:
    pass
assert list((folder / "content").iterdir()) == []
writer = store.writer()
writer.write(b"kept")
try:
    writer.write(data)
    sys.exit("the full disk was not noticed")
except StorageFullError:
    assert store.size(writer.commit()) == 4, "what did not fit left nothing behind"
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
spool.append(key, 8000, data[8000:])
spool.complete(key, content_digest(data), len(data))
"""


def test_a_full_disk_is_told_and_the_upload_goes_on_once_there_is_space(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    spool = FileSpool(tmp_path / "spool")
    assert read(spool.open(key())) == bytes(range(250)) * 80


def test_a_disk_without_room_for_a_round_says_how_much_it_takes_and_has(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path / "spool")
    spool.check_room(1)
    with pytest.raises(StorageFullError, match=r"a round takes 1152921504\.6 GB, [\d.]+ GB are free") as refused:
        spool.check_room(1 << 60)
    assert "begins by itself" in refused.value.remedy
