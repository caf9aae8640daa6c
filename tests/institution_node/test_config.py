"""`node.toml`: what is read, and every mistake with file, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.settings_files import Address
from institution_node.config import load_node_config
from institution_node.toml_files import NodeFileError

GOOD = """\
federation = "example"
institution = "brca-1"
coordinator = "coordinator.example.org:8443"
state = "state"

[tls]
certificate = "pki/node.pem"
key = "/etc/consilium/node.key"
authority = "pki/authority.pem"

[data]
labels = "data/labels.csv"
id_column = "case_id"

[data.tables]
mrna = "data/mrna.parquet"
"image" = "data/image.parquet"

[compute]
device = "cpu"
threads = 2

[metrics]
local = "127.0.0.1:9464"
shareable = "[::]:9465"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_node_config(write(tmp_path, GOOD))
    assert config.state == tmp_path / "state"
    assert config.policy == tmp_path / "policy.toml"
    assert config.tls.certificate == tmp_path / "pki/node.pem"
    assert config.tls.key == Path("/etc/consilium/node.key")
    assert config.tls.revocations is None
    assert config.data.tables == {"mrna": tmp_path / "data/mrna.parquet", "image": tmp_path / "data/image.parquet"}
    assert config.coordinator == Address("coordinator.example.org", 8443)
    assert config.metrics.local == Address("127.0.0.1", 9464)
    assert str(config.metrics.shareable) == "[::]:9465"
    assert config.testing.seed is None
    assert config.logging.level == "info"


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "remedy"),
    [
        ("threads = 2", "thread = 2", 21, "there is no key compute.thread (did you mean 'threads'?)", "device"),
        ('state = "state"', 'stat = "state"', 4, "no key stat (did you mean 'state'?)", "Take it out"),
        ("threads = 2", "threads = -1", 21, "compute.threads is out of range", "at least 0"),
        ('device = "cpu"', 'device = "tpu"', 20, "compute.device is not a word", "'cpu', 'cuda' or 'auto'"),
        ("threads = 2", 'threads = "2"', 21, "must be a whole number", "a whole number"),
        (":8443", "", 3, "an address with a port", "host:port"),
        (":8443", ":0", 3, "an address with a port", "host:port"),
        ("coordinator.example.org", "https://coordinator", 3, "not the name or the address of a host", "host:port"),
        ("127.0.0.1:9464", "0.0.0.0:9464", 24, "loopback or a private range", "127.0.0.1:9464"),
        ("127.0.0.1:9464", "8.8.8.8:9464", 24, "loopback or a private range", "127.0.0.1:9464"),
        ("127.0.0.1:9464", "[::]:9464", 24, "loopback or a private range", "127.0.0.1:9464"),
        ("127.0.0.1:9464", "metrics.example.org:9464", 24, "loopback or a private range", "127.0.0.1:9464"),
        ('"brca-1"', '"BRCA 1"', 2, "is not a legal name", "lower-case"),
        ('labels = "data/labels.csv"', "labels = 3", 12, "must be a path in quotes", "Correct the value"),
        ('"data/mrna.parquet"', '""', 16, "the path is empty", "Correct the value"),
        ('key = "/etc/consilium/node.key"\n', "", 6, "tls.key is missing", "Write `tls.key = …`"),
        ("threads = 2", "threads 2", 21, "not valid TOML", "Mend the line"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(
    tmp_path: Path, old: str, new: str, line: int, message: str, remedy: str
) -> None:
    assert old in GOOD
    with pytest.raises(NodeFileError) as caught:
        load_node_config(write(tmp_path, GOOD.replace(old, new)))
    assert f"{tmp_path / 'node.toml'}:{line}" in str(caught.value)
    assert message in str(caught.value)
    assert remedy in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("threads = 2", "thread = 2").replace(":8443", "")
    with pytest.raises(NodeFileError, match="2 problems") as caught:
        load_node_config(write(tmp_path, text))
    assert f"{tmp_path / 'node.toml'}:3: " in str(caught.value)
    assert f"{tmp_path / 'node.toml'}:21: " in str(caught.value)


@pytest.mark.parametrize("address", ["10.1.2.3:9464", "192.168.0.7:9464", "[fd00::7]:9464", "localhost:9464", ""])
def test_local_metrics_stay_in_the_hospital(tmp_path: Path, address: str) -> None:
    config = load_node_config(write(tmp_path, GOOD.replace("127.0.0.1:9464", address)))
    assert ("" if config.metrics.local is None else str(config.metrics.local)) == address


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NodeFileError, match="cannot be read"):
        load_node_config(tmp_path / "node.toml")
    (tmp_path / "node.toml").write_bytes(b"\xff")
    with pytest.raises(NodeFileError, match="UTF-8"):
        load_node_config(tmp_path / "node.toml")


def test_no_table_at_all(tmp_path: Path) -> None:
    text = GOOD.replace('mrna = "data/mrna.parquet"\n"image" = "data/image.parquet"\n', "")
    with pytest.raises(NodeFileError, match="no table is named"):
        load_node_config(write(tmp_path, text))
