"""Reads the node's own TOML files; every problem is told with file, line and remedy."""

from __future__ import annotations

from pathlib import Path

from federation.settings_files import AnyTable, table_from
from security.errors import ConfigurationError


class NodeFileError(ConfigurationError):
    """`node.toml` or `policy.toml` is wrong."""

    code = "node-file"


def load_toml(path: Path, model: type[AnyTable]) -> AnyTable:
    """Reads one file as `model`.

    Raises:
        NodeFileError: not there, not TOML, or keys and values that the model refuses; all of them are told.
    """
    return table_from(path, path.read_bytes, model, NodeFileError)
