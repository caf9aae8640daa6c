"""A run over gRPC whose institutions hold patients of several combinations, from tables with gaps to predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from deploy.local_federation import LocalInstitution
from federation.model_archive import component_digest
from institution_node.model_folder import read_model
from studies.hidden import hide
from studies.simulate import institution_data, simulate
from studies.synthetic import synthetic
from studies.tcga import Federation, federate
from tests.processes.local import say
from tests.processes.trained import BOTH, SEED, SHAPE, Trained, accept, make, with_people

pytestmark = pytest.mark.processes

LISTED = ("mrna", "clinical", "mrna+clinical")


def lacking() -> Federation:
    cohorts = {
        name: replace(cohort, tables={m: table for m, table in cohort.tables.items() if m in BOTH})
        for name, cohort in synthetic(7, SHAPE).items()
    }
    made = hide(federate(cohorts, "synthetic", 7, ((BOTH,) * 4,)), 0.4, 7)
    return replace(made, shards=tuple(with_people(shard) for shard in made.shards))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    made = make(tmp_path_factory.mktemp("lacking"), lacking())
    with made.local:
        made.local.start_coordinator()
        accept(made, [made.run])
        for name in made.names:
            made.local.start_node(name)
        said = made.said
        said["check"] = made.node("check", made.names[0], "--plan", str(made.plan_file))
        said["start"] = made.operator("run", "start", str(made.plan_file))
        said["watch"] = made.operator("run", "watch", made.run[:12])
        said["status"] = made.operator("nodes", made.run[:8])
        said["export"] = made.operator("export", str(made.model))
        tables = made.tables(made.folder / "data" / "institutions" / made.names[0])
        said["predict"] = say("institution_node.cli", "predict", "--model", str(made.model), "--format", "csv", *tables)
        yield made


def test_the_model_is_the_one_that_a_study_makes(ran: Trained) -> None:
    assert {name: r.returncode for name, r in ran.said.items()} == dict.fromkeys(ran.said, 0), ran.said
    assert [i.combinations for i in ran.plan.institutions] == [LISTED] * 4
    torch.set_num_threads(1)  # as node.toml says
    simulated = simulate(ran.plan, ran.data, SEED)
    over_grpc = read_model(ran.model)
    digests = {c: component_digest(v) for c, v in over_grpc.components.items()}
    assert digests == {c: component_digest(v) for c, v in simulated.exported.components.items()}
    assert set(digests) == {*(f"encoder/{m}" for m in BOTH), *(f"classifier/{s}" for s in LISTED)}


def test_check_counts_the_patients_of_each_combination_on_the_screen_alone(ran: Trained) -> None:
    shard = ran.data.shards[0]
    data = institution_data(shard, ran.plan)
    line = next(line for line in ran.said["check"].stdout.splitlines() if line.startswith("OK") and " data:" in line)
    for combination in LISTED:
        assert f"{combination} {data.combinations.count(combination)}" in line
    assert "only shown here" in line


def test_each_patient_is_staged_by_what_it_has(ran: Trained) -> None:
    shard = ran.data.shards[0]
    rows = {row["id"]: row["basis"] for row in csv.DictReader(io.StringIO(ran.said["predict"].stdout))}
    assert set(rows) == set(shard.stages)
    for patient, basis in rows.items():
        assert basis == "classifier/" + "+".join(m for m in BOTH if patient in shard.tables[m].ids)


def test_an_institution_that_has_nobody_of_a_listed_combination_is_told_so(ran: Trained) -> None:
    """Its tables complete now, the node's `check` names the combination and what to do."""
    name, folder = ran.names[1], ran.folder / "data" / "institutions"
    whole = set(ran.data.shards[1].stages).intersection(*(t.ids for t in ran.data.shards[1].tables.values()))
    labels = folder / name / "labels.csv"
    kept = [line for line in labels.read_text().splitlines() if line.split(",")[0] in {*whole, "case_id"}]
    fewer = ran.folder / "fewer.csv"
    fewer.write_text("\n".join(kept) + "\n")
    tables = {m: folder / name / f"{m}.parquet" for m in BOTH}
    ran.local.configure_node(LocalInstitution(name, tables, fewer), [ran.run])
    said = ran.node("check", name, "--plan", str(ran.plan_file))
    assert said.returncode == 1
    assert "no two patients of one class have exactly mrna, which the plan lists for this institution" in said.stdout
    assert "take mrna out of its combinations" in said.stdout
