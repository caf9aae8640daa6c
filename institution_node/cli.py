"""`consilium-node`: what a hospital's engineer types. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from security.errors import ConfigurationError
from security.user_errors import user_errors

if TYPE_CHECKING:
    from federation.plan import Plan
    from institution_node.config import NodeConfig

app = typer.Typer(
    name="consilium-node",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, and those may be patients
    rich_markup_mode="markdown",
    help="One institution's node of a Consilium federation. It only calls out, to the coordinator; patients, updates, "
    "losses and counts never leave it unmasked.\n\n"
    "First `init`, then fill in node.toml, then `check` until every line says OK, then `run`.",
)


class Format(StrEnum):
    """Of predictions."""

    CSV = "csv"
    JSON = "json"


ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="CONSILIUM_NODE_CONFIG", help="This node's file, node.toml.")
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="Use this policy.toml, not the one that node.toml names.", show_default=False),
]


@app.command()
@user_errors()
def init(folder: Annotated[Path, typer.Argument(help="Folder of the new node.", show_default=False)]) -> None:
    """Write a commented node.toml and policy.toml to fill in."""
    from institution_node.starting_files import write_starting_files

    for path in write_starting_files(folder):
        typer.echo(f"written: {path}")
    typer.echo("next: `consilium pki issue` for the key and request, then `consilium-node check`")


@app.command()
@user_errors()
def check(
    config: ConfigFile = Path("node.toml"),
    policy: PolicyFile = None,
    plan: Annotated[
        Path | None, typer.Option(help="Check against this plan (TOML) instead of the one the coordinator offers.")
    ] = None,
    describe: Annotated[
        bool,
        typer.Option("--describe", help="Also print the whole plan in words: read this before you accept its digest."),
    ] = False,
) -> None:
    """Try everything that the node needs, and say what to mend.

    Files, certificate, policy, connection, the plan on offer, and the tables. Exit code 1 if a line says WRONG. Counts
    of patients are printed on this screen only.
    """
    settings = _load(config, policy)
    from institution_node.check import check_node
    from monitoring.logging import configure_logging

    configure_logging(level=logging.CRITICAL)  # what is found is printed
    wrong = False

    def show(found: Plan) -> None:
        if describe:
            from federation.plan_describe import describe as in_words

            typer.echo(in_words(found))

    for finding in check_node(settings, _read_plan(plan) if plan is not None else None, show):
        typer.echo(str(finding))
        wrong |= finding.good is False
    raise typer.Exit(1 if wrong else 0)


@app.command()
@user_errors()
def run(
    config: ConfigFile = Path("node.toml"),
    policy: PolicyFile = None,
    accept_new_data: Annotated[
        bool,
        typer.Option(
            "--accept-new-data",
            help="Accept that the tables changed since the run began (data-changed). Give it once.",
        ),
    ] = False,
) -> None:
    """Take part in the federation's runs, until SIGTERM or Ctrl-C.

    Takes up by itself what a restart or a lost connection broke off. What is refused, and why, is in the log and in
    the audit log of the state folder.
    """
    settings = _load(config, policy)
    from institution_node.service import serve
    from monitoring.logging import configure_logging

    level = logging.getLevelNamesMapping()[settings.logging.level.upper()]
    configure_logging(level=level, json=settings.logging.format == "json")
    serve(settings, accept_new_data=accept_new_data)


@app.command()
@user_errors()
def encoders(
    kind: Annotated[str, typer.Option(help="Print what a plan declares of this kind; it is imported for that.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="Of --kind, as name=value: --option channels=8. Repeat it.")
    ] = None,
    inputs: Annotated[int, typer.Option(min=1, help="Of --kind: some number of inputs that it can be built for.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Of --kind: the plan's model.encoding_width.")] = 16,
) -> None:
    """List the kinds of encoders that packages on this machine offer, and how policy.toml allows them.

    The second line of each pins its files too. Only --kind runs anything of a package.
    """
    from institution_node.encoder_kinds import installed_kinds, load_encoders, plan_lines, read_options, shown_kinds

    if not kind:
        for line in shown_kinds(installed_kinds()):
            typer.echo(line)
        return
    from institution_node.own_encoder import declare

    # Whoever names a kind on the command line allows it, for this one call.
    pins = [installed.pin for installed in installed_kinds() if installed.kind == kind]
    options = read_options(option or [])
    factory = load_encoders([kind], pins)[kind]
    for line in plan_lines(kind, options, declare(factory, inputs, width, options, kind)):
        typer.echo(line)


@app.command()
@user_errors()
def predict(
    model: Annotated[
        Path,
        typer.Option(
            help="Folder of a model: from `consilium export`, or models/ in the node's state folder after a run."
        ),
    ],
    table: Annotated[
        list[str],
        typer.Option(
            help="A table of patients, as modality=file: --table mrna=new.csv. Repeat it for every table there is."
        ),
    ],
    id_column: Annotated[str, typer.Option(help="Column of patient identifiers, in every table.")] = "case_id",
    format: Annotated[Format, typer.Option(help="How to write the predictions.")] = Format.CSV,  # noqa: A002 - the option's name
    out: Annotated[
        Path | None, typer.Option(help="File to write, readable by its owner only. Left out: the screen.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="policy.toml that allows the model's kinds of encoders, where it has such.")
    ] = None,
) -> None:
    """Stage patients from whatever modalities each one has.

    Prints one row per patient with the probability of each stage and what the prediction rests on. Patients who cannot
    be staged are listed with the reason. Nothing is sent anywhere.
    """
    from federation.plan_encoders import MLP
    from institution_node.data import read_features
    from institution_node.encoder_kinds import NO_ENCODERS, load_encoders
    from institution_node.model_folder import read_model
    from institution_node.predict import predict as stage
    from institution_node.predict import to_csv, to_json

    loaded = read_model(model)
    patients = read_features(loaded.plan, loaded.plan.modality_order, _tables(table, loaded.plan), id_column)
    encoders = NO_ENCODERS
    if policy is not None:
        from institution_node.policy import load_policy

        kinds = {m.kind for m in loaded.plan.modalities if m.kind != MLP and m.name in patients.tables}
        encoders = load_encoders(sorted(kinds), load_policy(policy).allow_encoders)
    found = stage(loaded, patients.tables, encoders)
    text = to_json(found) if format is Format.JSON else to_csv(found)
    if out is None:
        typer.echo(text, nl=False)
    else:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    if loaded.plan.data != "real":
        typer.echo(f"note: this model was trained on {loaded.plan.data} data.", err=True)
    for patient in found.unstaged:
        typer.echo(f"not staged: {patient.id}: {patient.reason}", err=True)
    typer.echo(f"staged {len(found.staged)} of {len(found.staged) + len(found.unstaged)} patients", err=True)


def _tables(options: list[str], plan: Plan) -> dict[str, Path]:
    tables: dict[str, Path] = {}
    for option in options:
        modality, equals, path = option.partition("=")
        if not equals or not path or modality not in plan.modality_order or modality in tables:
            raise ConfigurationError(
                f"--table {option!r} does not name a table of the model, or names one twice.",
                remedy=f"Write --table modality=file, once for each of: {', '.join(plan.modality_order)}.",
            )
        tables[modality] = Path(path)
    return tables


def _load(config: Path, policy: Path | None) -> NodeConfig:
    from institution_node.config import load_node_config
    from security.tls import require_tls13_environment

    require_tls13_environment()
    settings = load_node_config(config)
    return settings if policy is None else settings.model_copy(update={"policy": policy})


def _read_plan(path: Path) -> Plan:
    from federation.plan_check import check as check_plan
    from federation.plan_toml import load_plan

    folder = path.parent
    plan = load_plan(
        path.read_text(encoding="utf-8"),
        path_label=str(path),
        read_relative=lambda name: (folder / name).read_text(encoding="utf-8"),
    )
    check_plan(plan)
    return plan


def main() -> None:
    """`consilium-node`."""
    app()


if __name__ == "__main__":
    main()
