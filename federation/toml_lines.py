"""On which line of a TOML text each key and list entry stands. `tomllib` reads the values and does not say.

The text must already have passed `tomllib`: this walks over valid TOML 1.0 and does not judge it.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"[ \t]*")
_BLANK_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:""(?!")|"(?!"))?'  # up to two quotes may precede the closing three
    r"|'''.*?'''(?:''(?!')|'(?!'))?"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every key, table, list of tables and list entry of a valid TOML text.

    Args:
        text: TOML that `tomllib.loads` accepts.

    Returns:
        path to line; list entries count from 0. A table that only dotted keys or sub-tables made has the line
        where it first appears.
    """
    walk = _Walk(text)
    walk.document()
    return walk.lines


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self._entries: dict[Path, int] = {}  # list of tables to the number of its entries so far

    def document(self) -> None:
        table: Path = ()
        self._skip(_BLANK_LINES)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._key_value(table)
            self._skip(_BLANK_LINES)

    def _header(self) -> Path:
        line, entry = self._line(), self.text.startswith("[[", self.at)
        self.at += 2 if entry else 1
        *parents, last = self._key()
        self.at += 2 if entry else 1
        path: Path = ()
        for part in parents:
            path = (*path, part)
            self.lines.setdefault(path, line)
            if path in self._entries:
                path = (*path, self._entries[path] - 1)
        path = (*path, last)
        self.lines.setdefault(path, line)
        if entry:
            count = self._entries.get(path, 0)
            self._entries[path] = count + 1
            path = (*path, count)
            self.lines[path] = line
        return path

    def _key_value(self, table: Path) -> None:
        line, path = self._line(), table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_BLANK)
            if self.text[self.at] in "\"'":
                parts.append(str(tomllib.loads(f"k = {self._skip(_STRING)}")["k"]))
            else:
                parts.append(self._skip(_BARE_KEY))
            self._skip(_BLANK)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        first = self.text[self.at]
        if first == "[":
            self._list(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._skip(_STRING if first in "\"'" else _SCALAR)

    def _list(self, path: Path) -> None:
        self.at += 1
        index = 0
        self._skip(_BLANK_LINES)
        while self.text[self.at] != "]":
            self.lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
            self._skip(_BLANK_LINES)
            if self.text[self.at] == ",":
                self.at += 1
                self._skip(_BLANK_LINES)
        self.at += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        self._skip(_BLANK_LINES)
        while self.text[self.at] != "}":
            self._key_value(path)
            self._skip(_BLANK_LINES)
            if self.text[self.at] == ",":
                self.at += 1
                self._skip(_BLANK_LINES)
        self.at += 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:  # only where the text is not the TOML that was promised
            return ""
        self.at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_right(self._starts, self.at)
