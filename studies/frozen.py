"""The frozen configuration: what `python -m studies.tune` chose, as studies read it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from studies.federation import StudyError

FROZEN: Final = Path(__file__).with_name("frozen.toml")
_HEAD: Final = "# Written by `python -m studies.tune --write`: not by hand, and not after the test set was looked at.\n"


def frozen_changes(group: str, path: Path = FROZEN) -> Mapping[str, Any]:
    """Changes of the demo's plan that were chosen for a group of candidates, `cm-fl` or `dgb+pcw`.

    Raises:
        StudyError: nothing was chosen for it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))[group]["changes"]
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"no configuration of {group} is frozen.", remedy="Run python -m studies.tune --write.", place=str(path)
        ) from error
    return dict(found)


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of texts, numbers, truths, lists and inline tables as TOML."""
    parts = [_HEAD]
    for name, table in tables.items():
        lines = (f"{_key(key)} = {_value(value)}" for key, value in table.items())
        parts.append("\n".join((f"[{_key(name)}]", *lines)) + "\n")
    return "\n".join(parts)


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
