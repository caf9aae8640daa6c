"""Lines of keys in TOML, against `tomllib`: in the generated texts every value is the number of its own line."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.toml_lines import Path, key_lines


def flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every path of a parsed text; scalars with their value, tables and lists with None."""
    found: dict[Path, Any] = {path: None} if path else {}
    if isinstance(value, dict):
        for name, item in value.items():
            found |= flat(item, (*path, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            found |= flat(item, (*path, i))
    else:
        found[path] = value
    return found


class Writer:
    """Writes random TOML whose scalars are the lines that they stand on."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.text, self.names = draw, "", 0

    def pick(self, *choices: str) -> str:
        return str(self.draw(st.sampled_from(choices)))

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def name(self) -> str:
        self.names += 1
        return self.pick("k{}", '"k {}"', "'k]{}'", '"k\\"={}"', "a-{}", "k{}.b", 'k{} . "c.#[" . d').format(self.names)

    def value(self, depth: int, *, inline: bool = False) -> None:
        kind = self.pick("line", "line", "text", "list", "table") if depth else self.pick("line", "text")
        if kind == "line":
            self.text += str(self.line)
        elif kind == "text":
            self.text += self.pick(*(SINGLE if inline else SINGLE + MULTI))
        elif kind == "list":
            self.text += "["
            for _ in range(self.draw(st.integers(0, 3))):
                self.text += "" if inline else self.pick("", "\n", " # ]\n\n  ")
                self.value(depth - 1, inline=inline)
                self.text += self.pick(",", " , ") if inline else self.pick(",", "\n,", " , # [{\n")
            self.text += "]"
        else:
            self.text += "{"
            for i in range(self.draw(st.integers(0, 3))):
                self.text += ", " if i else " "
                self.pair(depth - 1, inline=True)
            self.text += " }"

    def pair(self, depth: int, *, inline: bool = False) -> None:
        self.text += self.name() + self.pick("=", " = ", "\t=\t")
        self.value(depth, inline=inline)

    def pairs(self) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            self.text += self.pick("", "\n", "# a comment = [ \" '''\n", "  ")
            self.pair(2)
            self.text += self.pick("\n", " # = ]\n", "\r\n")

    def document(self) -> str:
        self.pairs()
        for _ in range(self.draw(st.integers(0, 3))):
            name = self.name()
            if self.draw(st.booleans()):
                self.text += f"[{name}]\n"
                self.pairs()
            else:
                for _ in range(self.draw(st.integers(1, 3))):
                    self.text += f"[[ {name} ]] # entry\n"
                    self.pairs()
                    self.text += f"[{name}.sub]\n"
                    self.pairs()
                    for _ in range(self.draw(st.integers(0, 2))):
                        self.text += f"[[{name}.more]]\n"
                        self.pairs()
        return self.text


SINGLE = ('"a # ] } = , \\" \\\\"', "'a # ] } \\'", "1979-05-27 07:32:00", "true", "-1.5e-3", '""', "''", "07:32:00")
MULTI = ('"""\n[x]\ny = 1\\""""', "'''\n[x]\ny = \"1'''", '"""a\n\\\n""""', "'''a\nb'''''", '""""""', '"""a""b"""')


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_path_that_tomllib_sees_has_its_line(data: st.DataObject) -> None:
    text = Writer(data.draw).document()
    seen, lines = flat(tomllib.loads(text)), key_lines(text)
    assert set(lines) == set(seen)
    for path, value in seen.items():
        if type(value) is int:
            # A dotted key or a list entry begins where its scalar does: no value here is broken before it.
            assert lines[path] == value, path


def test_tables_and_entries_have_the_line_of_their_header() -> None:
    lines = key_lines("a = 1\n\n[b]\nc = 2\n[[d]]\n[[d]]\ne = [\n  {f = 1},\n]\n[d.g.h]\n")
    assert lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("d",): 5,
        ("d", 0): 5,
        ("d", 1): 6,
        ("d", 1, "e"): 7,
        ("d", 1, "e", 0): 8,
        ("d", 1, "e", 0, "f"): 8,
        ("d", 1, "g"): 10,
        ("d", 1, "g", "h"): 10,
    }
