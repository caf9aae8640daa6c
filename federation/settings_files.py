"""Configuration files of coordinator and node as frozen models: every problem is told with file, line and remedy.

Nothing is read here: who calls passes the reading in.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from federation.plan_problems import did_you_mean, model_at, path_text
from federation.toml_lines import key_lines
from security.errors import ConfigurationError

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class Table(BaseModel):
    """A table of a configuration file: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Logging(Table):
    """`text` for people, `json` for a collector."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Address(NamedTuple):
    """Host, without brackets, and port of a TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(value: object, example: str, lowest: int = 1) -> Address:
    """Reads `host:port`; a host is a name, an IPv4 address, or an IPv6 address in brackets.

    Args:
        value: from the file.
        example: two good ones, for the remedy.
        lowest: smallest port; 0 where that means any free one.

    Raises:
        ValueError: no such address, for pydantic: the remedy follows a semicolon.
    """
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isascii() or not port.isdigit() or not lowest <= int(port) < 65536:
        raise ValueError(f'must be an address with a port from {lowest} to 65535; write "host:port", such as {example}')
    bare = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ValueError(f'not the name or the address of a host; write "host:port", such as {example}') from None
    return Address(bare, int(port))


def _beside_the_file(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a path in quotes")
    if not value:
        raise ValueError("the path is empty")
    return Path((info.context or {}).get("folder", ".")) / Path(value).expanduser()


RelativePath = Annotated[Path, BeforeValidator(_beside_the_file)]
"""A path; a relative one is relative to the file that names it."""

AnyTable = TypeVar("AnyTable", bound=Table)

_WANTED: Final = {
    "string": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list in [ ]",
    "model": "a table",
    "dict": "a table",
    "mapping": "a table",
}


def table_from(
    path: Path, read: Callable[[], bytes], model: type[AnyTable], wrong: type[ConfigurationError]
) -> AnyTable:
    """Reads one file.

    Args:
        path: the file, for messages; `RelativePath` fields become relative to its folder.
        read: gives its bytes, or raises OSError.
        model: what it must be.
        wrong: the error to raise.

    Raises:
        ConfigurationError: `wrong`: not there, not TOML, or keys and values that the model refuses; all are told.
    """
    try:
        text = read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise wrong("the file is not UTF-8 text.", remedy="Save it as UTF-8.", place=str(path)) from None
    except OSError as error:
        raise wrong(
            f"the file cannot be read: {error.strerror or error}.",
            remedy="Correct the path, or give read access.",
            place=str(path),
        ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "Expected '=' after a key in a key/value pair (at line 3, column 7)"
        what, _, where = str(error).partition(" (at line ")
        line = f":{where.partition(',')[0]}" if where else ""
        remedy = "Mend the line; texts stand in quotes, lists in [ ], one `key = value` a line."
        raise wrong(f"not valid TOML: {what}.", remedy=remedy, place=f"{path}{line}") from None
    try:
        return model.model_validate(_as_tuples(values), context={"folder": path.parent})
    except ValidationError as error:
        lines = key_lines(text)
        items = sorted(error.errors(include_url=False), key=lambda item: _line(tuple(item["loc"]), lines) or 0)
        raise _together([_problem(path, item, lines, model, wrong) for item in items], wrong) from None


def _problem(
    path: Path,
    item: Any,
    lines: Mapping[tuple[str | int, ...], int],
    model: type[Table],
    wrong: type[ConfigurationError],
) -> ConfigurationError:
    where: tuple[str | int, ...] = tuple(item["loc"])
    line = _line(where, lines)
    name, place = path_text(where), f"{path}:{line}" if line else str(path)
    kind = item["type"]
    context = item.get("ctx", {})
    if kind == "missing":
        return wrong(f"{name} is missing.", remedy=f"Write `{name} = …`.", place=place)
    if kind == "extra_forbidden":
        owner = model_at(where[:-1], model)
        known = tuple(owner.model_fields) if owner else ()
        near = did_you_mean(str(where[-1]), known)
        return wrong(
            f"there is no key {name}{near}.",
            remedy=f"Take it out, or use one of: {', '.join(known)}.",
            place=place,
        )
    if kind == "literal_error":
        return wrong(f"{name} is not a word allowed here.", remedy=f"Write {context['expected']}.", place=place)
    if kind == "value_error":
        # Our own validators say what is wrong; where they know a remedy, it follows a semicolon.
        what, _, remedy = str(context["error"]).partition("; ")
        said = f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Correct the value."
        return wrong(f"{name}: {what}." if name else f"{what}.", remedy=said, place=place)
    for limit, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if limit in context:
            return wrong(f"{name} is out of range.", remedy=f"Write a number {word} {context[limit]}.", place=place)
    wanted = next((text for prefix, text in _WANTED.items() if kind.startswith(prefix)), "another value")
    return wrong(f"{name} must be {wanted}.", remedy=f"Write {wanted}.", place=place)


def _line(where: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]) -> int | None:
    return next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), None)


def _together(problems: list[ConfigurationError], wrong: type[ConfigurationError]) -> ConfigurationError:
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(f"  {problem}" for problem in problems)
    return wrong(f"{len(problems)} problems:\n{listed}")


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
