"""Results of studies by what they are results of: a study that is run again goes on where it stopped.

A result's key is the hash of everything that it depends on: the cell's whole description, the data's fingerprint, and
`REVISION`, which whoever changes a figure of `make studies-quick` raises.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from security.errors import ConsiliumError

STORE: Final = Path("runs/studies")
"""Where commands keep results, below the current folder."""

REVISION: Final = 1
"""Of the arithmetic behind the results: raised when the same cell gives other figures."""


class StoredResultError(ConsiliumError):
    """A stored result cannot be read."""

    code = "stored-result"


def key_of(description: Mapping[str, Any]) -> str:
    """64 hex digits: equal for equal descriptions, whatever the order of their fields."""
    text = json.dumps({"revision": REVISION, **description}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ResultStore:
    """One JSON file a result; written whole or not at all, by any number of processes.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, description: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of this description; None: there is none yet.

        Raises:
            StoredResultError: its file is damaged.
        """
        path = self._path(description)
        try:
            kept: dict[str, Any] = json.loads(path.read_text())
            found: dict[str, Any] = kept["result"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoredResultError(
                "a stored result cannot be read.", remedy="Delete the file: it is made again.", place=str(path)
            ) from error
        return found

    def put(self, description: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keeps a result beside what it is a result of."""
        path = self._path(description)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps({"of": dict(description), "result": dict(result)}, allow_nan=False))
        temporary.replace(path)

    def _path(self, description: Mapping[str, Any]) -> Path:
        key = key_of(description)
        return self._folder / key[:2] / f"{key}.json"
