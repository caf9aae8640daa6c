"""`consilium`: what an operator and a federation authority type."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.pki_cli import app as pki
from security.errors import ConfigurationError
from security.tls import TlsFiles
from security.user_errors import user_errors

if TYPE_CHECKING:
    from deploy.operator_link import OperatorLink
    from federation.plan import Plan

app = typer.Typer(
    name="consilium",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is a fault of ours, and shows no local variables
    rich_markup_mode="markdown",
    help="Operate a Consilium federation: certificates, plans, runs and models.\n\n"
    "First `pki` makes the members' certificates, then `plan check` a plan, then `run start` and `run watch` it, then "
    "`export` the model.",
)
plan_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Check a plan before anybody runs it.")
run_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Start, watch and stop runs.")
app.add_typer(pki, name="pki")
app.add_typer(plan_app, name="plan")
app.add_typer(run_app, name="run")

PlanFile = Annotated[Path, typer.Argument(help="The plan, a TOML file.", show_default=False)]
Address = Annotated[
    str, typer.Option("--coordinator", envvar="CONSILIUM_COORDINATOR", help="Where the coordinator is, host:port.")
]
Folder = Annotated[
    Path,
    typer.Option(
        "--identity",
        envvar="CONSILIUM_OPERATOR",
        help="Folder with the operator's key.pem and certificate.pem, and the authority's ca.pem.",
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        help="The run's digest or its first characters, see `consilium run status`. Left out: the newest run.",
        show_default=False,
    ),
]


def read_plan(path: Path) -> Plan:
    """A plan from its TOML file, checked.

    Raises:
        PlanError: with the line and the remedy.
    """
    from federation.plan_check import check
    from federation.plan_toml import load_plan

    folder = path.parent
    plan = load_plan(
        path.read_text(encoding="utf-8"),
        path_label=str(path),
        read_relative=lambda name: (folder / name).read_text(encoding="utf-8"),
    )
    check(plan)
    return plan


def connect(address: str, folder: Path) -> OperatorLink:
    """The coordinator, with the operator's certificate in `folder`."""
    from deploy.operator_link import OperatorLink

    if not (folder / "key.pem").exists():
        raise ConfigurationError(
            f"there is no operator's key in {folder}.",
            remedy="Name the operator's folder with --identity or CONSILIUM_OPERATOR; "
            "`consilium pki issue --role operator` makes one.",
            place=str(folder / "key.pem"),
        )
    revocations = folder / "revoked.txt"
    files = TlsFiles(
        folder / "certificate.pem",
        folder / "key.pem",
        folder / "ca.pem",
        revocations if revocations.exists() else None,
    )
    return OperatorLink(address, files, datetime.now(UTC))


def find_run(link: OperatorLink, name: str) -> bytes:
    """The digest of the run that `name` begins, or of the newest.

    Raises:
        ConfigurationError: none or several.
    """
    runs = link.runs()
    found = [r for r in runs if r.run.hex().startswith(name)] if name else runs[-1:]
    if len(found) != 1:
        known = ", ".join(f"{r.run.hex()[:12]} ({r.name})" for r in runs) or "none yet"
        what = "several runs begin" if found else "no run begins"
        raise ConfigurationError(f"{what} with {name!r}.", remedy=f"Runs of this coordinator: {known}.")
    return found[0].run


@plan_app.command("check")
@user_errors()
def plan_check(
    path: PlanFile,
    out: Annotated[
        Path | None, typer.Option(help="Also write the plan's exact bytes, of which the digest is, to this file.")
    ] = None,
) -> None:
    """Checks a plan, describes it, and prints the digest that institutions accept in their policy."""
    from federation.plan import digest
    from federation.plan_toml import describe

    plan = read_plan(path)
    data = plan.to_bytes()
    typer.echo(describe(plan))
    typer.echo(f"\ndigest: {digest(data).hex()}")
    typer.echo("Each institution adds it to accepted_plans in its policy.toml before the run can begin.")
    if out is not None:
        out.write_bytes(data)


@run_app.command("start")
@user_errors()
def run_start(path: PlanFile, coordinator: Address = "localhost:8443", identity: Folder = Path("operator")) -> None:
    """Starts a run of a plan. Institutions that accept its digest join by themselves."""
    plan = read_plan(path)
    with connect(coordinator, identity) as link:
        run = link.start(plan.to_bytes())
    typer.echo(f"started {run.hex()} ({plan.run}, {plan.rounds} rounds, {plan.data} data)")
    typer.echo(f"watch it: consilium run watch {run.hex()[:12]} --coordinator {coordinator} --identity {identity}")


@run_app.command("status")
@user_errors()
def run_status(run: RunName = "", coordinator: Address = "localhost:8443", identity: Folder = Path("operator")) -> None:
    """Lists all runs, and shows where one of them stands: its institutions, and subgroups where the plan counts any."""
    from deploy.history import History
    from deploy.log_lines import subgroup_lines
    from deploy.status_words import combinations_words

    with connect(coordinator, identity) as link:
        for r in link.runs():
            state = f"{r.status}{': ' + r.reason if r.reason else ''}"
            typer.echo(f"{r.run.hex()[:12]}  {r.name:24}  round {r.round}/{r.rounds}  {r.data}  {state}")
        if link.runs():
            status = link.status(find_run(link, run))
            typer.echo(f"\n{status.summary.name}: phase {status.phase or '-'}, attempt {status.attempt}")
            for i in status.institutions:
                typer.echo(f"  {i.name:20} {combinations_words(i):24} {i.status}{'  ' + i.reason if i.reason else ''}")
            for line in subgroup_lines(History().take(status)):
                typer.echo(line)


@run_app.command("watch")
@user_errors()
def run_watch(run: RunName = "", coordinator: Address = "localhost:8443", identity: Folder = Path("operator")) -> None:
    """Follows a run until it ends: a live table on a terminal, a line per round elsewhere."""
    from deploy.live import watch

    with connect(coordinator, identity) as link:
        watch(link.watch(find_run(link, run)))


@run_app.command("metrics")
@user_errors()
def run_metrics(
    run: RunName = "",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write one line a round to this CSV file.")] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            help="Write event files into this folder, for `tensorboard --logdir`; needs the extra `tensorboard`.",
        ),
    ] = None,
    coordinator: Address = "localhost:8443",
    identity: Folder = Path("operator"),
) -> None:
    """Writes the figures of a run's committed rounds to files: aggregates only, as the coordinator keeps them."""
    from deploy.history import History
    from studies.metric_files import write_csv, write_tensorboard

    if csv is None and tensorboard is None:
        raise ConfigurationError(
            "nowhere to write to.", remedy="Name a file with --csv, a folder with --tensorboard, or both."
        )
    with connect(coordinator, identity) as link:
        records = History().read(link.records(find_run(link, run)))
    if csv is not None:
        typer.echo(f"wrote {write_csv(csv, records)} rounds to {csv}")
    if tensorboard is not None:
        typer.echo(f"wrote {write_tensorboard(tensorboard, records)} rounds to {tensorboard}")


@run_app.command("stop")
@user_errors()
def run_stop(
    run: Annotated[
        str,
        typer.Argument(
            help="The run's digest or its first characters, as `consilium run status` lists them.", show_default=False
        ),
    ],
    reason: Annotated[str, typer.Option(help="Shown to every institution.")] = "stopped by the operator",
    coordinator: Address = "localhost:8443",
    identity: Folder = Path("operator"),
) -> None:
    """Stops a run for good. Committed rounds stay, and can be exported."""
    with connect(coordinator, identity) as link:
        found = find_run(link, run)
        link.stop(found, reason)
    typer.echo(f"stopped {found.hex()[:12]}")


@app.command("nodes")
@user_errors()
def nodes(run: RunName = "", coordinator: Address = "localhost:8443", identity: Folder = Path("operator")) -> None:
    """Lists the institutions of a run and how each stands."""
    from deploy.status_words import combinations_words

    with connect(coordinator, identity) as link:
        for i in link.institutions(find_run(link, run)):
            typer.echo(f"{i.name:20} {combinations_words(i):24} {i.status}{'  ' + i.reason if i.reason else ''}")


@app.command("export")
@user_errors()
def export(
    out: Annotated[
        Path, typer.Argument(help="Folder to write the model into; made if it is not there.", show_default=False)
    ],
    run: Annotated[str, typer.Option(help="The run's digest or its first characters. Left out: the newest run.")] = "",
    round_: Annotated[
        int,
        typer.Option(
            "--round",
            help="Which committed round. 0: the one that the plan asks for (evaluation.select: best or last).",
        ),
    ] = 0,
    coordinator: Address = "localhost:8443",
    identity: Folder = Path("operator"),
) -> None:
    """Writes the trained model: weights, feature schema, plan, manifest and model card."""
    from institution_node.model_folder import write_model

    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is not empty.", remedy="Name a folder that is not there yet.")
    with connect(coordinator, identity) as link:
        files = link.export(find_run(link, run), round_)
    write_model(out, files)
    typer.echo(f"wrote {', '.join(sorted(files))} to {out}")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
