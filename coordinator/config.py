"""`coordinator.toml`: where the coordinator listens, keeps its state, and finds its certificate."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from federation.names import NAME_PATTERN
from federation.plan_problems import did_you_mean, model_at, path_text
from federation.toml_lines import key_lines
from security.errors import ConfigurationError
from security.tls import TlsFiles

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class CoordinatorFileError(ConfigurationError):
    """`coordinator.toml` is wrong."""

    code = "coordinator-file"


class Table(BaseModel):
    """A table of the file: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Address(NamedTuple):
    """Host, without brackets, and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(value: object) -> Address:
    how = 'write "host:port", such as "0.0.0.0:8443" or "[::]:8443"'
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"must be an address with a port; {how}")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ValueError(f"not the name or the address of a host; {how}") from None
    return Address(bare, int(port))


def _beside_the_file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a path in quotes")
    return Path((info.context or {}).get("folder", ".")) / Path(value).expanduser()


HostPort = Annotated[Address, BeforeValidator(_address)]
RelativePath = Annotated[Path, BeforeValidator(_beside_the_file)]
"""A path; a relative one is relative to the file."""


class Tls(Table):
    """The coordinator's certificate and key, the federation's authority, and the revocation list, if any."""

    certificate: RelativePath
    key: RelativePath
    authority: RelativePath
    revocations: RelativePath | None = None

    def files(self) -> TlsFiles:
        """For `security.tls`."""
        return TlsFiles(self.certificate, self.key, self.authority, self.revocations)


class Metrics(Table):
    """Where `/metrics` listens; left out: nowhere. With both files it speaks HTTPS."""

    address: HostPort
    certificate: RelativePath | None = None
    key: RelativePath | None = None

    def chain(self) -> tuple[Path, Path] | None:
        """Certificate and key, where HTTPS is wanted."""
        return (self.certificate, self.key) if self.certificate and self.key else None


class Logging(Table):
    """`text` for people, `json` for a collector."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class CoordinatorConfig(Table):
    """`coordinator.toml`.

    Attributes:
        federation: its name, as in the certificates.
        address: where institutions and operators connect.
        state: folder for the database, components, uploads and the audit log.
        database: SQLAlchemy URL; empty: SQLite in the state folder.
    """

    federation: str
    address: HostPort
    state: RelativePath
    database: Annotated[str, Field(max_length=1000)] = ""
    tls: Tls
    metrics: Metrics | None = None
    logging: Logging = Logging()

    @field_validator("federation")
    @classmethod
    def _legal(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError("not a legal name; write it as `consilium pki show` prints it")
        return value


def load_config(path: Path) -> CoordinatorConfig:
    """Reads `coordinator.toml`.

    Raises:
        CoordinatorFileError: every problem with file, line and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except UnicodeDecodeError:
        raise CoordinatorFileError("the file is not UTF-8 text.", remedy="Save it as UTF-8.", place=str(path)) from None
    except OSError as error:
        raise CoordinatorFileError(
            f"the file cannot be read: {error.strerror or error}.",
            remedy="Correct the path, or give read access.",
            place=str(path),
        ) from None
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at line ")
        line = f":{where.partition(',')[0]}" if where else ""
        remedy = "Mend the line; texts stand in quotes, one `key = value` a line."
        raise CoordinatorFileError(f"not valid TOML: {what}.", remedy=remedy, place=f"{path}{line}") from None
    try:
        return CoordinatorConfig.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        lines = key_lines(text)
        problems = [_problem(path, lines, item) for item in error.errors(include_url=False)]
    if len(problems) == 1:
        raise problems[0]
    listed = "\n".join(f"  {problem}" for problem in problems)
    raise CoordinatorFileError(f"{len(problems)} problems:\n{listed}")


def _problem(path: Path, lines: Mapping[tuple[str | int, ...], int], item: Any) -> CoordinatorFileError:
    where: tuple[str | int, ...] = tuple(item["loc"])
    line = next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), None)
    place, name = f"{path}:{line}" if line else str(path), path_text(where)
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return CoordinatorFileError(f"{name} is missing.", remedy=f"Write {name} = ….", place=place)
    if kind == "extra_forbidden":
        owner = model_at(where[:-1], CoordinatorConfig)
        known = tuple(owner.model_fields) if owner else ()
        return CoordinatorFileError(
            f"there is no key {name}{did_you_mean(str(where[-1]), known)}.",
            remedy=f"Take it out, or use one of: {', '.join(known)}.",
            place=place,
        )
    if kind == "literal_error":
        remedy = f"Write {context['expected']}."
        return CoordinatorFileError(f"{name} is not a word allowed here.", remedy=remedy, place=place)
    if kind == "value_error":  # our own validators; where they know a remedy, it follows a semicolon
        what, _, remedy = str(context["error"]).partition("; ")
        said = f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Correct the value."
        return CoordinatorFileError(f"{name}: {what}.", remedy=said, place=place)
    wanted = "a table" if kind.startswith(("model", "dict")) else "a text in quotes"
    return CoordinatorFileError(f"{name} must be {wanted}.", remedy=f"Write {wanted}.", place=place)
