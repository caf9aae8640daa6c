"""`node.toml`: who this node is, where its coordinator, keys and tables are, and what it computes with.

What the node *permits* is not here but in `policy.toml` (`institution_node.policy`).
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from federation import names
from federation.settings_files import Address, Logging, RelativePath, Table, address_of
from institution_node.toml_files import load_toml
from monitoring.exposition import Access
from security.errors import ConfigurationError

_ADDRESSES: Final = '"127.0.0.1:9464" or "[::1]:9464"'


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _local(address: Address) -> Address:
    """Only the hospital's own network may reach what the local registry shows (DESIGN.md, "What a node shows")."""
    ip = _ip(address.host)
    # 0.0.0.0 counts as private but means every network of the machine.
    own = address.host == "localhost" if ip is None else (ip.is_loopback or ip.is_private) and not ip.is_unspecified
    if not own:
        raise ValueError(
            "local metrics hold losses and counts and may only be bound to loopback or a private range; "
            'write "127.0.0.1:9464", or an address of the hospital\'s own network'
        )
    return address


class Tls(Table):
    """Key and certificates, PEM files."""

    certificate: RelativePath
    key: RelativePath
    authority: RelativePath
    revocations: RelativePath | None = None


class Data(Table):
    """The institution's tables: `.parquet`, `.csv` or `.tsv`.

    Attributes:
        labels: the label table; its column is named by the plan.
        id_column: column of patient identifiers, in every table.
        tables: modality to file.
        subgroups: the table with the columns that a plan counts subgroups by; None: the label table.
    """

    labels: RelativePath
    id_column: Annotated[str, Field(min_length=1)] = "case_id"
    tables: dict[str, RelativePath]
    subgroups: RelativePath | None = None

    @field_validator("tables")
    @classmethod
    def _some_table(cls, tables: dict[str, Path]) -> dict[str, Path]:
        if not tables:
            raise ValueError('no table is named; write `mrna = "mrna.parquet"` with the plan\'s names of modalities')
        return tables


class Compute(Table):
    """What trains.

    Attributes:
        device: `auto` takes CUDA where there is any.
        precision: `mixed` multiplies in bfloat16 while training, and keeps weights, gradients and losses in float32.
            Not for plans with differential privacy.
        threads: 0: as many as there are cores.
    """

    device: Literal["cpu", "cuda", "auto"] = "auto"
    precision: Literal["float32", "mixed"] = "float32"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0


class Disk(Table):
    """How much of a run's model rests in the state folder.

    Attributes:
        optimiser_slots: vectors of the server optimiser's state, each as large as the model, that rest here (FedAvgM
            has one, FedAdam and FedYogi two); the others are fetched in every round, while the model advances.
            None: all.
    """

    optimiser_slots: Annotated[int, Field(ge=0)] | None = None


class Metrics(Table):
    """Where the two registries listen; empty: nowhere.

    Attributes:
        local: everything; only loopback or a private range.
        shareable: the allow-list that may leave the hospital.
        certificate, key: for HTTPS, of both; without both they speak HTTP.
        clients: PEM file of the authority whose clients may fetch; None: they need no certificate.
        token: file with the bearer token that they must show; None: none.
    """

    local: Address | None = None
    shareable: Address | None = None
    certificate: RelativePath | None = None
    key: RelativePath | None = None
    clients: RelativePath | None = None
    token: RelativePath | None = None

    @property
    def access(self) -> Access:
        """Who may fetch."""
        chain = (self.certificate, self.key) if self.certificate and self.key else None
        return Access(chain, self.clients, self.token)

    @field_validator("local", "shareable", mode="before")
    @classmethod
    def _read(cls, value: object) -> Address | None:
        return None if value is None or value == "" else address_of(value, _ADDRESSES)

    @field_validator("local")
    @classmethod
    def _stays_inside(cls, value: Address | None) -> Address | None:
        return None if value is None else _local(value)


class Testing(Table):
    """For tests, studies and the demo only: `policy.toml` must say `allow_seeded_randomness` and `data_is_public`."""

    seed: Annotated[int, Field(ge=0)] | None = None


class NodeConfig(Table):
    """`node.toml`. Relative paths are relative to the file.

    Attributes:
        federation: its name, as in the certificates.
        institution: this node's name, as in its certificate.
        coordinator: its address.
        state: folder for identity, high-water marks, ledger, private components and audit log.
        policy: the institution's own rules.
    """

    federation: str
    institution: str
    coordinator: Address
    state: RelativePath
    policy: RelativePath = Field(default="policy.toml", validate_default=True)
    tls: Tls
    data: Data
    compute: Compute = Compute()
    disk: Disk = Disk()
    metrics: Metrics = Metrics()
    logging: Logging = Logging()
    testing: Testing = Testing()

    @field_validator("coordinator", mode="before")
    @classmethod
    def _reach(cls, value: object) -> Address:
        return address_of(value, _ADDRESSES)

    @field_validator("institution", "federation")
    @classmethod
    def _legal(cls, value: str) -> str:
        try:
            return names.check_name(value, "the name")
        except ConfigurationError as error:
            raise ValueError(f"{error.message.rstrip('.')}; {error.remedy.rstrip('.')}") from None


def load_node_config(path: Path) -> NodeConfig:
    """Reads `node.toml`.

    Raises:
        NodeFileError: every problem with file, line and remedy.
    """
    return load_toml(path, NodeConfig)
