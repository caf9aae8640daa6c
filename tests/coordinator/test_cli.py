"""`consilium-coordinator`: its file, its exit codes, and a process that serves, is refused a second time, and ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.config import CoordinatorFileError, load_config
from federation.settings_files import Address
from security.pki import Role
from tests.coordinator.serving import AUTHORITY, Pass

REPOSITORY = Path(__file__).parents[2]
TEXT = """\
federation = "example"
address = "127.0.0.1:0"
state = "state"

[tls]
certificate = "certificate.pem"
key = "key.pem"
authority = "ca.pem"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    mine = Pass(Role.COORDINATOR, "coordinator", host="localhost")
    (tmp_path / "key.pem").touch(0o600)
    (tmp_path / "key.pem").write_bytes(mine.key.to_pem())
    (tmp_path / "certificate.pem").write_bytes(mine.certificate)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY[1])
    (tmp_path / "coordinator.toml").write_text(TEXT)
    return tmp_path / "coordinator.toml"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coordinator.cli", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_a_file_as_it_should_be(config: Path) -> None:
    found = load_config(config)
    assert (found.federation, found.address) == ("example", Address("127.0.0.1", 0))
    assert found.state == config.parent / "state"
    assert found.tls.files().key == config.parent / "key.pem"
    assert (found.metrics, found.database, found.logging.level) == (None, "", "info")


def test_the_example_in_the_docs_has_every_key(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "example-coordinator.toml").read_text()
    (tmp_path / "coordinator.toml").write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", text))  # those left out as well
    found = load_config(tmp_path / "coordinator.toml")
    assert found.tls.revocations == tmp_path / "revoked.txt"
    for table in (found, found.tls, found.metrics, found.logging):
        assert table is not None
        assert table.model_fields_set == set(type(table).model_fields)
    (tmp_path / "coordinator.toml").write_text(text)
    assert load_config(tmp_path / "coordinator.toml").database == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('federation = "example"', 'federation = "Ex ample"', ":1: federation: not a legal name"),
        ('address = "127.0.0.1:0"', 'address = "127.0.0.1"', ":2: address: must be an address with a port"),
        ('address = "127.0.0.1:0"', 'address = "host_:1"', ":2: address: not the name"),
        ('address = "127.0.0.1:0"', "address = 8443", ":2: address: must be an address with a port"),
        ('state = "state"', "state = 3", ":3: state: must be a path in quotes"),
        ('state = "state"', 'sate = "state"', ":3: there is no key sate (did you mean 'state'?)"),
        ('key = "key.pem"', "", "tls.key is missing"),
        ("[tls]", "[tls", ":5: not valid TOML"),
        ("[tls]", '[logging]\nlevel = "loud"\n[tls]', ":6: logging.level is not a word allowed here"),
        ("[tls]", "tls = 3\n[other]", "tls must be a table"),
    ],
)
def test_a_wrong_file_is_told_with_line_and_remedy(config: Path, old: str, new: str, said: str) -> None:
    config.write_text(TEXT.replace(old, new))
    with pytest.raises(CoordinatorFileError) as refused:
        load_config(config)
    assert said in str(refused.value)
    assert "Remedy: " in str(refused.value)


def test_exit_codes(config: Path, tmp_path: Path) -> None:
    good = run("check", "--config", str(config))
    assert (good.returncode, good.stderr) == (0, "")
    assert "ok       certificate: valid for 2" in good.stdout
    assert "0 runs" in good.stdout
    (tmp_path / "key.pem").chmod(0o644)
    wrong = run("check", "--config", str(config))
    assert wrong.returncode == 1
    assert f"chmod 600 {tmp_path / 'key.pem'}" in wrong.stdout
    refused = run("serve", "--config", str(config))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "remedy: " in refused.stderr
    missing = run("serve", "--config", str(tmp_path / "nowhere.toml"))
    assert missing.returncode == 2
    assert "nowhere.toml" in missing.stderr


@pytest.mark.processes
def test_a_process_says_when_it_serves_and_ends_when_told(config: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        command("serve", "--config", str(config), "--ready-file", str(ready)),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not ready.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        host, _, port = ready.read_text().strip().rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        second = run("serve", "--config", str(config))
        assert second.returncode == 2
        assert "another coordinator uses this state folder" in second.stderr
        process.send_signal(signal.SIGHUP)  # what `systemctl reload` sends
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert f"ready: serving the federation example at 127.0.0.1:{port}" in out
    assert "reloaded" in out + err
    assert "Traceback" not in err
