"""A run with real training, from the plan's file to predictions: what people type, what it gives, and what it hides."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch

from federation.model_archive import component_digest
from federation.plan import Plan
from institution_node.model_folder import read_model
from studies.simulate import simulate
from tests.processes.local import until
from tests.processes.trained import GENE_VALUE, NOTE, PATIENT, SEED, STAYS, TOKEN, WITH_CANARIES, Trained

pytestmark = pytest.mark.processes


# -- the commands ---------------------------------------------------------------------------------------------------


def test_every_command_of_the_run_succeeds(trained: Trained) -> None:
    codes = {name: result.returncode for name, result in trained.said.items()}
    # Before the plan is accepted, `check` has something to mend.
    assert codes == dict.fromkeys(codes, 0) | {"check before": 1}, trained.said
    for name, result in trained.said.items():
        assert "Traceback" not in result.stdout + result.stderr, name


def test_plan_check_says_what_institutions_accept(trained: Trained) -> None:
    out = trained.said["plan check"].stdout
    assert f"digest: {trained.run}" in out
    assert "policy.toml" in out
    # What was checked, described and started is one and the same, to the byte.
    assert Plan.from_bytes((trained.folder / "plan.bin").read_bytes()) == trained.plan


def test_node_check_names_what_to_mend_and_then_nothing(trained: Trained) -> None:
    before, during = trained.said["check before"].stdout, trained.said["check during"].stdout
    assert re.findall(r"^WRONG +(\w+)", before, re.M) == ["plan"]
    assert f'accepted_plans = ["{trained.run}"]' in before
    assert "WRONG" not in during
    found = re.findall(r"^OK +(\w+)", during, re.M)
    assert {"certificate", "policy", "coordinator", "clock", "calls"} <= set(found)


def test_watch_and_status_tell_the_run(trained: Trained) -> None:
    assert f"started {trained.run} (toy, 3 rounds, synthetic data)" in trained.said["start"].stdout
    lines = trained.said["watch"].stdout.splitlines()
    assert all(line.startswith("[") and "SYNTHETIC" in line for line in lines), lines
    for number in (1, 2, 3):
        assert sum(f"round {number}/3 committed, 6 institutions, accuracy" in line for line in lines) == 1
    assert lines[-1].endswith("finished after round 3 of 3")
    status = trained.said["status"].stdout
    assert re.search(rf"^{trained.run[:12]}  toy +round 3/3  synthetic  finished$", status, re.M), status
    for name in trained.names:
        assert re.search(rf"^{name} +\S+ +enrolled$", trained.said["nodes"].stdout, re.M)


def test_the_figures_of_the_run_are_written_to_files(trained: Trained) -> None:
    assert trained.said["metrics"].stdout.count("wrote 3 rounds to ") == 2
    rows = list(csv.DictReader(io.StringIO((trained.folder / "metrics.csv").read_text())))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    watched = trained.said["watch"].stdout
    for row in rows:
        committed = re.search(rf"round {row['round']}/3 committed, .*accuracy (\d\.\d+)", watched)
        assert committed
        assert float(row["metrics/all/accuracy"]) == pytest.approx(float(committed.group(1)), abs=6e-4)
        assert float(row["seconds/uploads"]) > 0
        assert (row["subgroups/sex/female/accuracy"] != "") == (row["round"] in "13")
    assert len(list((trained.folder / "board").glob("events.out.tfevents.*"))) == 1


def test_the_exported_model_stages_patients(trained: Trained) -> None:
    rows = list(csv.DictReader(io.StringIO(trained.said["predict csv"].stdout)))
    test = trained.data.test["TOY"]
    assert {row["id"] for row in rows} == set().union(*(table.ids for table in test.tables.values()))
    for row in rows:
        assert float(row["probability_I"]) + float(row["probability_II"]) == pytest.approx(1.0, abs=2e-6)
        assert row["model_data"] == "synthetic"
    whole = {row["id"]: row["basis"] for row in rows}
    assert len({whole[p] for p in test.complete}) == 1  # all who have both modalities are staged alike
    found = json.loads(trained.said["predict json"].stdout)
    assert (found["run"], found["unstaged"]) == (trained.run, [])
    assert [one["id"] for one in found["staged"]] == [row["id"] for row in rows]
    assert "trained on synthetic data" in trained.said["predict csv"].stderr
    assert f"staged {len(rows)} of {len(rows)} patients" in trained.said["predict csv"].stderr


def test_each_institution_has_a_model_of_its_own(trained: Trained) -> None:
    exported = read_model(trained.model)
    assert STAYS not in exported.components
    for name in trained.names:
        models = trained.local.folder(name) / "state" / "models"
        until(f"{name} keeps its model", lambda models=models: any(models.glob("*/manifest.json")))  # type: ignore[misc] # the default is the folder
        own = read_model(next(models.glob("*/manifest.json")).parent)
        shared = {c: component_digest(v) for c, v in own.components.items() if c in exported.components}
        assert (STAYS in own.components) == (name in ("toy-1", "toy-2"))
        assert shared  # the round may be another than the exported: last or best
    assert exported.plan == trained.plan


def test_a_run_is_stopped_and_what_it_committed_exported(trained: Trained, tmp_path: Path) -> None:
    started = trained.operator("run", "start", str(trained.folder / "long.toml"))
    assert started.returncode == 0, started.stderr
    run = started.stdout.split()[1]

    def round_reached() -> int:
        found = re.search(r"round (\d+)/100000", trained.operator("run", "status", run).stdout)
        return int(found.group(1)) if found else 0

    until("two rounds", lambda: round_reached() > 2)
    busy = trained.operator("run", "start", str(trained.plan_file))
    stopped = trained.operator("run", "stop", run[:10], "--reason", "enough for today")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped {run[:12]}\n")
    assert busy.returncode == 2
    assert "Traceback" not in busy.stderr
    # A stopped run is over for who watches it, and says why.
    watched = trained.operator("run", "watch", run)
    assert watched.returncode == 0
    assert "stopped after round" in watched.stdout
    assert "enough for today" in watched.stdout
    out = tmp_path / "model"
    exported = trained.operator("export", str(out), "--run", run)
    assert exported.returncode == 0, exported.stderr
    assert read_model(out).plan == trained.long_plan


# -- what it gives --------------------------------------------------------------------------------------------------


def test_the_same_seeds_give_the_same_model_in_memory(trained: Trained) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as node.toml says
    try:
        simulated = simulate(trained.plan, trained.data, SEED, on_round=None, identities=None)
    finally:
        torch.set_num_threads(threads)
    over_grpc, in_memory = read_model(trained.model), simulated.exported
    assert over_grpc.round == in_memory.round
    assert len(over_grpc.components) >= 4
    digests = {c: component_digest(v) for c, v in over_grpc.components.items()}
    assert digests == {c: component_digest(v) for c, v in in_memory.components.items()}
    assert over_grpc.schema.digest == in_memory.schema.digest
    assert over_grpc.temperatures == in_memory.temperatures
    # The patients by sex, counted by secure sum, are the same in both too, and on every page that shows them.
    counted = [record for record in simulated.records if "subgroups" in record]
    assert [record["round"] for record in counted] == [1, 3]
    rows = {row["round"]: row for row in csv.DictReader((trained.folder / "metrics.csv").read_text().splitlines())}
    card, status = (trained.model / "MODEL_CARD.md").read_text(), trained.said["status"].stdout
    for record in counted:
        for group in ("female", "male"):
            told = record["subgroups"]["sex"][group]
            assert float(rows[str(record["round"])][f"subgroups/sex/{group}/accuracy"]) == told["accuracy"]
            if record["round"] == 3:
                assert re.search(rf"sex: {group} +accuracy {told['accuracy']:.3f}", status), status
            if record["round"] == (1 if over_grpc.round < 3 else 3):
                assert f"| sex: {group} | {told['patients']} | {told['accuracy']:.3f} |" in card


# -- what it hides --------------------------------------------------------------------------------------------------


def test_no_log_and_no_shareable_metric_shows_a_canary(trained: Trained) -> None:
    shown = {f"log of {file.stem}": file.read_bytes() for file in (trained.local.root / "logs").glob("*.log")}
    for party in trained.shareable:
        shown[f"/metrics of {party}"] = trained.metrics_page(party)
    state = trained.local.folder("coordinator") / "state"
    for file in sorted(f for f in state.rglob("*") if f.is_file()):
        shown[f"coordinator's {file.relative_to(state)}"] = file.read_bytes()
    for name in trained.names:
        shown[f"audit log of {name}"] = (trained.local.folder(name) / "state" / "audit.jsonl").read_bytes()
    shard = next(s for s in trained.data.shards if s.name == WITH_CANARIES)
    digits = f"{GENE_VALUE:.7f}"
    canaries = [
        *shard.stages,
        PATIENT,
        NOTE,
        TOKEN,
        digits[:-1],
        digits.replace(".", "")[:-1],
    ]  # as float32 it ends otherwise
    # The taps are open: what may be seen is there.
    assert {f"log of {p}" for p in ("coordinator", *trained.names)} <= set(shown)
    assert b"joined an attempt" in shown[f"log of {WITH_CANARIES}"]
    assert b"consilium_rounds" in shown["/metrics of coordinator"]
    assert b"consilium_node_current_round" in shown[f"/metrics of {WITH_CANARIES}"]
    assert len(shown) > 12
    for where, content in shown.items():
        for canary in canaries:
            assert canary.encode() not in content, (where, canary)
