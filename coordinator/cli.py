"""`consilium-coordinator`: serves a federation, or says what would keep it from serving."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from monitoring.allocation import share_arenas
from security.errors import ConsiliumError
from security.tls import require_tls13_environment
from security.user_errors import user_errors

if TYPE_CHECKING:
    from coordinator.config import CoordinatorConfig
    from coordinator.server import Server
    from monitoring.metrics import CoordinatorMetrics
    from security.tls import ReloadingTls

WARN_DAYS: Final = 14

app = typer.Typer(
    name="consilium-coordinator",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator of a federation. It relays sealed messages, adds masked vectors and sees sums only.\n\n"
    "Institutions and operators connect to it; it connects to nobody.",
)

Config = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="The coordinator's file; docs/example-coordinator.toml is one.", show_default=True
    ),
]
DEFAULT: Final = Path("coordinator.toml")


@app.command()
@user_errors()
def serve(
    config: Config = DEFAULT,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to write once calls are taken: host:port on one line.")
    ] = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C. Started again, it takes every run up where it was."""
    settings = _settings(config)
    share_arenas()
    from monitoring.exposition import MetricsServer

    server, metrics = _server(settings)
    from coordinator.server import serve_until_told

    def ready(port: int) -> None:
        place = str(settings.address._replace(port=port))
        typer.echo(f"ready: serving the federation {settings.federation} at {place}")
        sys.stdout.flush()
        if ready_file is not None:
            _write(ready_file, place)

    if settings.metrics is None:
        asyncio.run(serve_until_told(server, ready))
        return
    shown = settings.metrics
    with MetricsServer(metrics, shown.address.host, shown.address.port, shown.access):
        asyncio.run(serve_until_told(server, ready))


@app.command()
def check(config: Config = DEFAULT) -> None:
    """Looks at file, certificate, state folder and database, and says what to mend. Exit code 1: something is wrong."""
    with user_errors():
        settings = _settings(config)
    wrong = 0
    for what, look in (("certificate", _check_certificate), ("state", _check_state)):
        try:
            typer.echo(f"ok       {what}: {look(settings)}")
        except ConsiliumError as error:
            wrong += 1
            typer.echo(f"wrong    {what}: {error.place + ': ' if error.place else ''}{error.message}")
            typer.echo(f"         remedy: {error.remedy}")
    raise typer.Exit(1 if wrong else 0)


def _settings(path: Path) -> CoordinatorConfig:
    from coordinator.config import load_config
    from coordinator.failpoints import armed
    from monitoring.logging import configure_logging

    settings = load_config(path)
    level = logging.getLevelNamesMapping()[settings.logging.level.upper()]
    configure_logging(level=level, json=settings.logging.format == "json")
    armed()
    return settings


def _tls(settings: CoordinatorConfig) -> ReloadingTls:
    from security.certificate_errors import WrongFederationError
    from security.certificates import Role
    from security.tls import ReloadingTls

    now = datetime.now(UTC)
    tls = ReloadingTls(settings.tls.files(), now, expected_role=Role.COORDINATOR)
    found = tls.current(now).federation
    if found != settings.federation:
        raise WrongFederationError(
            f"the certificate is for the federation {found!r}, the file names {settings.federation!r}.",
            remedy="Correct one of them.",
            place=str(settings.tls.certificate),
        )
    return tls


def _server(settings: CoordinatorConfig) -> tuple[Server, CoordinatorMetrics]:
    tls = _tls(settings)
    require_tls13_environment()  # before gRPC is imported, which the next lines do
    from prometheus_client import CollectorRegistry

    from coordinator.hub import Hub
    from coordinator.server import Server
    from monitoring.metrics import FREE_DISK, INFO, CoordinatorMetrics

    metrics = CoordinatorMetrics(CollectorRegistry())
    metrics.set(INFO, 1, version=_version())
    hub = Hub(settings.state, settings.federation, metrics, _now, settings.database)
    metrics.watch_disk(FREE_DISK, settings.state)
    return Server(hub, tls, str(settings.address), _now), metrics


def _check_certificate(settings: CoordinatorConfig) -> str:
    left = _tls(settings).current(_now()).seconds_left(_now())
    days = int(left // 86400)
    return f"valid for {days} days{'; renew it soon' if days < WARN_DAYS else ''}"


def _check_state(settings: CoordinatorConfig) -> str:
    from prometheus_client import CollectorRegistry

    from coordinator.hub import Hub
    from coordinator.run import ENDED
    from monitoring.metrics import CoordinatorMetrics

    hub = Hub(settings.state, settings.federation, CoordinatorMetrics(CollectorRegistry()), _now, settings.database)
    try:
        rows = hub.store.runs()
    finally:
        asyncio.run(hub.close())
    going = sum(row.status not in ENDED for row in rows)
    return f"{settings.state}, {len(rows)} runs, {going} of them under way"


def _now() -> datetime:
    return datetime.now(UTC)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("consilium")
    except PackageNotFoundError:  # run from a folder of sources
        return "0"


def _write(path: Path, line: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(f"{line}\n")
    os.replace(partial, path)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
