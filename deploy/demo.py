"""`make demo`: nine institutions, a coordinator and an authority as real processes of one machine, over mTLS.

Seed 1's DGB + PCW row comes from that federation; the other rows from the same sessions, runs and sums in memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.cli import connect
from deploy.live import watch
from deploy.local_federation import LocalFederation, LocalInstitution
from federation.layout import Layout
from federation.model_archive import Model
from federation.plan import Plan, digest
from federation.plan_toml import describe
from federation.settings import blending_settings
from monitoring.memory import PeakSampler
from security.errors import ConfigurationError
from security.user_errors import user_errors
from studies import tcga
from studies.comparison import Comparison, DataSource, DemoPlans, Outcome, compare, outcome_of
from studies.demo_plan import ROUNDS
from studies.methods import ALONE, CM_FL, COHORT_ONLY, CONSTANT, DGB_PCW, POOLED
from studies.metric_files import write_csv
from studies.scoring import ALL, TestPatients
from studies.tcga import Federation

FEDERATION = "demo"
METHODS = (DGB_PCW, CM_FL, ALONE, POOLED, CONSTANT, COHORT_ONLY)
FIRST_SEED = 1


@dataclass(frozen=True)
class Trained:
    """What the federation of real processes gave.

    Attributes:
        plan: of the run.
        model: as exported.
        records: of its committed rounds.
        peaks: process to peak of private anonymous memory, MiB.
    """

    plan: Plan
    model: Model
    records: tuple[Mapping[str, Any], ...]
    peaks: Mapping[str, float]


def train(federation: Federation, root: Path, rounds: int, console: Console) -> Trained:
    """Runs the federation as processes: authority, coordinator, nodes; exports the model to `root/model`."""
    folders = tcga.write_shards(federation, root / "data")
    with LocalFederation(root / "federation", FEDERATION, seed=FIRST_SEED) as local:
        names = [shard.name for shard in federation.shards]
        console.print("certificates: an authority, a coordinator, an operator, one key per institution ...")
        local.make_authority()
        local.enrol("coordinator", ["coordinator"])
        local.enrol("operator", ["operator"])
        local.enrol("institution", names)
        local.configure_coordinator()
        plan = DemoPlans(rounds, keys={name: local.public_key(name) for name in names})(federation, FIRST_SEED)
        plan_bytes = plan.to_bytes()
        run = digest(plan_bytes)
        (root / "plan.bin").write_bytes(plan_bytes)
        (root / "plan.txt").write_text(f"{describe(plan)}\n\ndigest: {run.hex()}\n", encoding="utf-8")
        for shard in federation.shards:
            tables = {m: folders[shard.name] / f"{m}.parquet" for m in shard.modalities}
            local.configure_node(LocalInstitution(shard.name, tables, folders[shard.name] / "labels.csv"), [run.hex()])
        console.print(f"starting a coordinator and {len(names)} nodes ...")
        local.start_coordinator()
        for name in names:
            local.start_node(name)
        pids = {name: process.pid for name, process in local.processes.items()}
        with (
            PeakSampler(pids.values(), 0.05) as sampler,
            connect(local.address, local.folder("operator")) as link,
        ):
            link.start(plan_bytes)
            last = watch(_alive(link.watch(run), local), console, settings=blending_settings(plan))
            if last is None or last.summary.status != "finished":
                raise ConfigurationError(
                    f"the run ended as {last.summary.status if last else 'nothing'}: "
                    f"{last.summary.reason if last else ''}",
                    remedy=f"Read the logs in {root / 'federation' / 'logs'}.",
                )
            files = link.export(run)
            records = _records(link.records(run))
        peaks = {name: sampler.peak_bytes(pid) / 2**20 for name, pid in pids.items()}
    return Trained(plan, _model(root / "model", files), records, peaks)


def _alive(statuses: Iterator[Any], local: LocalFederation) -> Iterator[Any]:
    for status in statuses:
        local.check_alive()
        yield status


def _records(texts: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    import json

    return tuple(json.loads(text) for text in texts)


def _model(folder: Path, files: Mapping[str, bytes]) -> Model:
    from institution_node.model_folder import read_model, write_model

    write_model(folder, files)
    return read_model(folder)


def traffic(trained: Trained) -> tuple[float, float]:
    """Bytes up and down, per institution, training round and parameter of what the institution owns."""
    layout = trained.model.layout
    owned = _owned(layout, trained.plan)
    rounds = [r for r in trained.records if r["round"] > 0]
    up = statistics.fmean(r["bytes"]["up"] for r in rounds) / owned
    down = statistics.fmean(r["bytes"]["down"] for r in rounds) / owned
    return up, down


def _owned(layout: Layout, plan: Plan) -> int:
    return sum(layout.components[c].size for name in plan.roster for c in layout.owned(name))


def dropouts(records: Sequence[Mapping[str, Any]]) -> int:
    """Institutions that were in a round's cohort and not among the survivors of one of its sums."""
    missing = 0
    for record in records:
        cohort = set(record["cohort"])
        gone = set(record["withdrawn"]) | {i for s in record["sums"].values() for i in cohort - set(s["alive"])}
        missing += len(gone)
    return missing


def comparison(
    root: Path | None, federation: Federation, trained: Trained, seeds: Sequence[int], rounds: int, console: Console
) -> Comparison:
    """All methods on all seeds; what the processes trained is seed 1's row."""
    test = TestPatients.of(federation, trained.plan)
    known = outcome_of(DGB_PCW, FIRST_SEED, trained.model, test)

    def tell(done: int, total: int, what: str) -> None:
        console.print(f"  {done}/{total}  {what}", highlight=False)

    console.print(f"\ncomparing {len(METHODS)} methods on {len(seeds)} seeds, in memory ...")
    return compare(DataSource(root), DemoPlans(rounds), METHODS, seeds, os.cpu_count() or 1, tell, [known])


def write_results(
    out: Path, name: str, data: str, federation: Federation, trained: Trained, compared: Comparison, seconds: float
) -> None:
    """summary.json, report.html and metrics.csv."""
    from deploy.report import Institution, Prediction, Protection, ReportInput, write_report
    from deploy.summary import RunFacts, build_summary, write_summary

    up, down = traffic(trained)
    rounds = [r for r in trained.records if r["round"] > 0]
    facts = RunFacts(
        data, len(trained.plan.roster), len(rounds), seconds, up, down, dropouts(trained.records), trained.peaks
    )
    summary = build_summary(facts, compared.scores)
    write_summary(out / "summary.json", summary)
    ours: Outcome = compared.outcomes[DGB_PCW, FIRST_SEED]
    patients = compared.patients[FIRST_SEED]
    assert ours.probabilities is not None
    predictions = [
        Prediction(int(truth), [float(p) for p in row], cohort)
        for truth, row, cohort in zip(patients.labels, ours.probabilities, patients.cohorts, strict=True)
    ]
    cohorts = {shard.name: shard.cohort for shard in federation.shards}
    given = ReportInput(
        name=name,
        summary=summary.model_dump(mode="json"),
        records=trained.records,
        institutions=[
            Institution(i.name, trained.plan.combination(i.name), cohorts[i.name], trained.plan.combinations(i.name))
            for i in trained.plan.institutions
        ],
        protection=Protection.of(trained.plan),
        classes=trained.plan.class_names,
        plan_summary=describe(trained.plan),
        test_curve=compared.test_curve(),
        predictions=predictions,
        blending=ReportInput.settings_of(trained.plan),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_report(out / "report.html", given)
    write_csv(out / "metrics.csv", trained.records)


def print_results(compared: Comparison, data: str, console: Console) -> None:
    """The table of methods, and what may be said of it."""
    from rich.table import Table

    from deploy.verdicts import METHOD_NAMES

    title = "Test patients with all modalities, mean ± standard deviation over seeds"
    table = Table(title=f"SYNTHETIC DATA. {title}" if data == "synthetic" else title)
    table.add_column("method")
    for heading in ("accuracy", "balanced accuracy", "AUROC"):
        table.add_column(heading, justify="right")
    for method in compared.methods:
        cells = [compared.spread(method, metric, ALL) for metric in ("accuracy", "balanced_accuracy", "auroc")]
        shown = [
            "–" if c.mean is None else f"{c.mean:.3f}" + ("" if c.std is None else f" ± {c.std:.3f}") for c in cells
        ]
        table.add_row(METHOD_NAMES.get(method, method), *shown)
    console.print(table)


@contextmanager
def _fresh(out: Path) -> Iterator[None]:
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    yield


def demo(name: str, rounds: int, seeds: Sequence[int], out: Path, console: Console) -> None:
    """The whole demo."""
    began = time.monotonic()
    root = tcga.find_data()
    federation = tcga.nine_institutions(root, seed=FIRST_SEED)
    data = federation.data if root is None else ("tcga" if _is_tcga(root) else root.name)
    if federation.data == "synthetic":
        data = "synthetic"
        console.print("[bold red]SYNTHETIC DATA[/]: no tables were found; patients are generated, and mean nothing.")
    else:
        console.print(f"data: {data}, cohorts {', '.join(federation.test)}")
    with _fresh(out):
        trained = train(federation, out, rounds, console)
        compared = comparison(root, federation, trained, seeds, rounds, console)
        write_results(out, name, data, federation, trained, compared, time.monotonic() - began)
    print_results(compared, data, console)
    console.print(f"\nreport:  {out / 'report.html'}\nsummary: {out / 'summary.json'}\nmodel:   {out / 'model'}")
    console.print(f"took {time.monotonic() - began:.0f} s")


def _is_tcga(root: Path) -> bool:
    return root.name == "tcga"


def main() -> None:
    """Entry point of `make demo`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="demo", help="the results go to runs/NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="the first must be 1")
    arguments = parser.parse_args()
    with user_errors():
        if arguments.seeds[0] != FIRST_SEED:
            raise ConfigurationError(
                "the first seed is 1: its row comes from the real processes.", remedy="--seeds 1 …"
            )
        demo(arguments.name, arguments.rounds, arguments.seeds, Path("runs") / arguments.name, Console(file=sys.stdout))


if __name__ == "__main__":
    main()
