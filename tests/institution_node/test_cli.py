"""`consilium-node` as an engineer types it: good days, mistakes, and a real process against a real connection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from federation.model_archive import pack
from federation.plan import Plan, digest
from institution_node.cli import app
from institution_node.config import load_node_config
from institution_node.model_folder import write_model
from institution_node.policy import load_policy
from security.audit import verify
from security.certificates import Role
from security.signing import IdentityKey, public_key_text
from tests.federation.models import example_model
from tests.institution_node.tiny_coordinator import Authority, Serving, TinyCoordinator, free_port
from tests.small_federation import patients, small_plan

RUNNER = CliRunner()
NAME = "brca-1"


def node(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def mistake(*arguments: str | Path) -> str:
    """The error output of a command that must fail as a user's mistake does: two lines, code 2, no traceback."""
    result = node(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: "), result.output
    assert "remedy: " in result.stderr.lower()
    assert "Traceback" not in result.output
    return result.stderr


@dataclass
class Hospital:
    """A node's folder, and the plan and coordinator that it may meet."""

    folder: Path
    authority: Authority
    key: IdentityKey
    plan: Plan
    coordinator: TinyCoordinator
    port: int

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    def edit(self, old: str, new: str, file: str = "node.toml") -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def accept(self) -> None:
        (self.folder / "policy.toml").write_text(f'accepted_plans = ["{digest(self.plan.to_bytes()).hex()}"]\n')

    def check(self, *more: str | Path) -> tuple[int, str]:
        result = node("check", "--config", self.config, *more)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.stdout


def write_tables(folder: Path, plan: Plan, count: int = 20) -> None:
    folder.mkdir()
    data = patients(plan, NAME, count=count)
    for name, table in data.tables.items():
        columns = [*table.numeric, *table.categorical]
        lines = [",".join(["case_id", *columns])]
        for row, patient in enumerate(table.ids):
            cells = [f"{table.numeric[c][row]:.4f}".replace("nan", "") for c in table.numeric]
            cells += [table.categorical[c][row] or "" for c in table.categorical]
            lines.append(",".join([patient, *cells]))
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{p},{plan.label.classes[k].values[0]}" for p, k in zip(data.ids, data.labels.tolist(), strict=True)]
    (folder / "labels.csv").write_text("\n".join([f"case_id,{plan.label.column}", *rows]) + "\n")


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    authority = Authority(tmp_path / "pki")
    key = IdentityKey.generate()
    plan = small_plan()
    entries = [
        e.model_copy(update={"key": public_key_text(key.public)}) if e.name == NAME else e for e in plan.institutions
    ]
    plan = plan.model_copy(update={"institutions": tuple(entries)})
    folder = tmp_path / "node"
    assert node("init", folder).exit_code == 0
    files = authority.files(Role.INSTITUTION, NAME, key=key)
    write_tables(folder / "data", plan)
    coordinator = TinyCoordinator(plan=plan.to_bytes())
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        made = Hospital(folder, authority, key, plan, coordinator, serving.port)
        made.edit('"my-federation"', '"example"')
        made.edit('"my-hospital"', f'"{NAME}"')
        made.edit("coordinator.example.org:8443", f"127.0.0.1:{serving.port}")
        made.edit('"data/mrna.parquet"', '"data/mrna.csv"')
        made.edit('"data/image.parquet"', '"data/image.csv"')
        for name in ("key", "certificate"):
            made.edit(f'"{name}.pem"', json.dumps(str(getattr(files, name))))
        made.edit('"ca.pem"', json.dumps(str(files.authority)))
        made.accept()
        yield made


# -- help and init ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check", "--help"], ["predict", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom institution_node.cli import main\n"
        f"sys.argv = ['consilium-node', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'opacus', 'pandas', 'pyarrow', 'grpc', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_init_writes_files_that_can_be_read_and_overwrites_none(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert node("init", folder).exit_code == 0
    config = load_node_config(folder / "node.toml")
    assert config.policy == folder / "policy.toml"
    assert load_policy(config.policy).accepted_plans == ()
    assert (folder / "node.toml").stat().st_mode & 0o077 == 0
    (folder / "node.toml").unlink()
    assert "policy.toml" in mistake("init", folder)
    assert not (folder / "node.toml").exists()


# -- check --------------------------------------------------------------------------------------------------------


def lines_of(output: str, subject: str) -> list[str]:
    return [line for line in output.splitlines() if f" {subject}: " in line]


def test_check_of_a_node_that_is_ready(hospital: Hospital) -> None:
    code, output = hospital.check()
    assert code == 0, output
    assert "WRONG" not in output
    assert "NOT TRIED" not in output
    assert "TLS 1.3" in output
    assert "early 10, late 10" in lines_of(output, "data")[0]
    assert lines_of(output, "plan")[0].startswith("OK")
    assert hospital.coordinator.enrolments == []  # looking is not joining


def test_check_says_which_line_to_add_for_the_plan(hospital: Hospital) -> None:
    (hospital.folder / "policy.toml").write_text(f'accepted_plans = ["{"0" * 64}"]\n')
    code, output = hospital.check()
    assert code == 1
    assert f'accepted_plans = ["{"0" * 64}", "{digest(hospital.coordinator.plan).hex()}"]' in output


def test_check_describes_the_plan_before_it_is_accepted(hospital: Hospital) -> None:
    """The hospital has no file of the plan: what it accepts it must be able to read here."""
    (hospital.folder / "policy.toml").write_text("accepted_plans = []\n")
    code, output = hospital.check()
    assert code == 1
    assert "check --describe" in output
    assert "Secure sums" not in output
    code, output = hospital.check("--describe")
    assert code == 1
    assert f"Run '{hospital.plan.run}' of federation" in output
    assert "Secure sums" in output
    assert digest(hospital.plan.to_bytes()).hex() in output


def test_check_lists_every_rule_that_the_plan_breaks(hospital: Hospital) -> None:
    (hospital.folder / "policy.toml").write_text("k_min = 4\nepsilon_max = 1.0\n")
    code, output = hospital.check()
    assert code == 1
    assert len(lines_of(output, "plan")) == 3


@pytest.mark.parametrize(
    ("old", "new", "subject", "says"),
    [
        (f'institution = "{NAME}"', 'institution = "lusc-1"', "certificate", "node.toml has institution"),
        ('federation = "example"', 'federation = "other"', "certificate", "node.toml has federation"),
        ("data/mrna.csv", "data/missing.csv", "data", "no such file"),
        ("data/labels.csv", "data/mrna.csv", "data", "stage"),
        ("threads = 0", "threads = 0\n[testing]\nseed = 1", "policy", "seed"),
    ],
)
def test_check_finds_what_is_wrong(hospital: Hospital, old: str, new: str, subject: str, says: str) -> None:
    hospital.edit(old, new)
    code, output = hospital.check()
    assert code == 1
    (line,) = lines_of(output, subject)
    assert line.startswith("WRONG")
    assert says in line + output[output.index(line) :].splitlines()[1]
    assert "remedy: " in output


def test_check_of_an_open_key_and_an_open_state_folder(hospital: Hospital) -> None:
    config = load_node_config(hospital.config)
    config.tls.key.chmod(0o644)
    config.state.mkdir(mode=0o755)
    config.state.chmod(0o755)
    code, output = hospital.check()
    assert code == 1
    assert "chmod 600" in output
    assert "chmod 700" in output
    assert lines_of(output, "coordinator")[0].startswith("NOT TRIED")


def test_check_where_nobody_answers_still_checks_data_with_a_plan_of_ones_own(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.edit(f"127.0.0.1:{hospital.port}", f"127.0.0.1:{free_port()}")
    code, output = hospital.check()
    assert code == 1
    assert "cannot be reached" in output
    assert "the coordinator was not reached" in lines_of(output, "plan")[0]
    assert lines_of(output, "data")[0].startswith("NOT TRIED")
    bad = tmp_path / "plan.toml"
    bad.write_text("federation = 3\n")
    assert "plan.toml" in mistake("check", "--config", hospital.config, "--plan", bad)


def test_check_of_a_coordinator_with_a_certificate_of_another_role(hospital: Hospital) -> None:
    forged = hospital.authority.forged_server(Role.OPERATOR, "impostor")
    with Serving(TinyCoordinator(), forged) as serving:
        hospital.edit(f"127.0.0.1:{hospital.port}", f"localhost:{serving.port}")
        code, output = hospital.check()
    assert code == 1
    assert "not the coordinator's" in lines_of(output, "coordinator")[0]


# -- run ----------------------------------------------------------------------------------------------------------


def test_mistakes_before_a_run(hospital: Hospital, tmp_path: Path) -> None:
    assert "cannot be read" in mistake("run", "--config", tmp_path / "none.toml")
    assert "policy.toml" in mistake("run", "--config", hospital.config, "--policy", tmp_path / "policy.toml")
    hospital.edit(f'institution = "{NAME}"', 'institution = "lusc-1"')
    assert "the certificate says" in mistake("run", "--config", hospital.config)
    hospital.edit("[compute]", "[compute")
    assert "node.toml:" in mistake("run", "--config", hospital.config)


def test_a_seed_in_node_toml_is_refused_by_policy(hospital: Hospital) -> None:
    hospital.edit("threads = 0", "threads = 0\n[testing]\nseed = 1")
    assert "allow_seeded_randomness" in mistake("run", "--config", hospital.config)


@pytest.mark.processes
def test_a_node_process_enrols_and_ends_at_sigterm(hospital: Hospital) -> None:
    models = load_node_config(hospital.config).state / "models"
    written = models / "aa" / "manifest.json"
    half = [models / "aa" / ".writing-x", models / ".fetching" / "aa" / "encoder.mrna.f32"]
    for path in (written, *half):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    log = (hospital.folder / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "institution_node.cli", "run", "--config", str(hospital.config)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ},
    )
    try:
        end = time.monotonic() + 60
        while not hospital.coordinator.enrolments and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert [e.refusal for e in hospital.coordinator.enrolments] == [""], (hospital.folder / "log").read_text()
        assert "another process" in mistake("run", "--config", hospital.config)  # one node in one state folder
        assert written.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.close()
    assert not any(path.exists() for path in half)  # what a killed process left
    said = (hospital.folder / "log").read_text()
    assert "Traceback" not in said
    state = load_node_config(hospital.config).state
    assert verify(state / "audit.jsonl").entries >= 4
    events = [json.loads(line)["event"] for line in (state / "audit.jsonl").read_text().splitlines()]
    assert events == ["node-started", "plan-accepted", "enrolled", "node-stopped"]
    assert not any(patient in said for patient in patients(hospital.plan, NAME).ids)


# -- predict ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = example_model(["classifier/clinical"])
    write_model(tmp_path / "model", pack(made))
    write_tables(tmp_path / "data", made.plan, 6)
    (tmp_path / "data" / "others.csv").write_text("case_id,age,marker,smoker\nnobody,50,1,yes\n")
    return tmp_path


def test_predict_as_csv_and_as_json(model: Path) -> None:
    data = model / "data"
    given: list[str | Path] = ["predict", "--model", model / "model", "--table", f"mrna={data}/mrna.csv"]
    as_csv = node(*given, "--table", f"clinical={data}/others.csv")
    assert as_csv.exit_code == 0, as_csv.output
    header, *rows = as_csv.stdout.splitlines()
    assert header.startswith("id,predicted,probability_early")
    assert len(rows) == 6
    assert "not staged: nobody" in as_csv.stderr
    assert "staged 6 of 7" in as_csv.stderr
    assert "synthetic" in as_csv.stderr
    out = model / "out.json"
    assert node(*given, "--format", "json", "--out", out).stdout == ""
    assert len(json.loads(out.read_text())["staged"]) == 6
    assert out.stat().st_mode & 0o077 == 0  # it names patients


def test_mistakes_of_predict(model: Path) -> None:
    table = f"mrna={model}/data/mrna.csv"
    assert "manifest" in mistake("predict", "--model", model / "data", "--table", table)
    for wrong in ("mrna", "mrna=", "genes=x.csv"):
        assert "mrna, image, clinical" in mistake("predict", "--model", model / "model", "--table", wrong)
    assert "twice" in mistake("predict", "--model", model / "model", "--table", table, "--table", table)
    assert "no such file" in mistake("predict", "--model", model / "model", "--table", f"mrna={model}/none.csv")
    assert "case" in mistake("predict", "--model", model / "model", "--table", table, "--id-column", "patient")
    nowhere = mistake("predict", "--model", model / "model", "--table", table, "--out", model / "no" / "out.csv")
    assert "No such file" in nowhere
