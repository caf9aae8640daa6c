"""`coordinator.toml`: where the coordinator listens, keeps its state, and finds its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, field_validator

from federation.names import NAME_PATTERN
from federation.settings_files import Address, Logging, RelativePath, Table, address_of, table_from
from monitoring.exposition import Access
from security.errors import ConfigurationError
from security.tls import TlsFiles

_ADDRESSES: Final = '"0.0.0.0:8443" or "[::]:8443"'


class CoordinatorFileError(ConfigurationError):
    """`coordinator.toml` is wrong."""

    code = "coordinator-file"


HostPort = Annotated[Address, BeforeValidator(lambda value: address_of(value, _ADDRESSES, lowest=0))]


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
    """Where `/metrics` listens; left out: nowhere.

    Attributes:
        certificate, key: for HTTPS; without both it speaks HTTP.
        clients: PEM file of the authority whose clients may fetch; None: they need no certificate.
        token: file with the bearer token that they must show; None: none.
    """

    address: HostPort
    certificate: RelativePath | None = None
    key: RelativePath | None = None
    clients: RelativePath | None = None
    token: RelativePath | None = None

    @property
    def access(self) -> Access:
        """Who may fetch."""
        chain = (self.certificate, self.key) if self.certificate and self.key else None
        return Access(chain, self.clients, self.token)


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
    return table_from(path, path.read_bytes, CoordinatorConfig, CoordinatorFileError)
