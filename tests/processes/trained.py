"""A small synthetic federation of real `consilium-node` processes, run by the commands that an operator types.

One institution's tables hold canaries: identifiers and values that no log and no shareable metric may ever show.
"""

from __future__ import annotations

import json
import ssl
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import trustme

from deploy.local_federation import LocalInstitution, free_port
from federation.plan import Plan, Subgroup, Subgroups, digest
from federation.tables import RawTable
from studies.demo_plan import demo_plan
from studies.synthetic import Shape, synthetic
from studies.tcga import Federation, Shard, federate, write_shards
from tests.processes.local import InProcessPki, say

SEED = 5  # of every node's batches, keys and noise
BOTH, MRNA, CLINICAL = ("mrna", "clinical"), ("mrna",), ("clinical",)
KINDS = ((BOTH, BOTH, CLINICAL, MRNA, MRNA, MRNA),)
STAYS = "classifier/mrna+clinical"  # two owners: it is not summed, and stays with each
SHAPE = Shape(stages=(("TOY", (90, 80, 0, 0)),), genes=12, image_features=6, signal=0.3)

WITH_CANARIES = "toy-2"
PATIENT = "ZZ-CANARY-7731"
GENE_VALUE = 7.7317731
NOTE = "canary-note-9931"
TOKEN = "canary-token-4f1d9c2b7a60"


def toy_federation() -> Federation:
    cohorts = {
        name: replace(cohort, tables={m: table for m, table in cohort.tables.items() if m in BOTH})
        for name, cohort in synthetic(7, SHAPE).items()
    }
    made = federate(cohorts, "synthetic", 7, KINDS)
    shards = (_planted(s) if s.name == WITH_CANARIES else s for s in made.shards)
    return replace(made, shards=tuple(with_people(s) for s in shards))


def with_people(shard: Shard) -> Shard:
    sexes = tuple(("female", "male", None)[k % 5 % 3] for k in range(len(shard.stages)))
    return replace(shard, people=RawTable(tuple(shard.stages), {}, {"sex": sexes}))


def _planted(shard: Shard) -> Shard:
    """The last patient under another identifier (which is last too, so that the order stays), with a canary value."""
    last = max(shard.stages)
    stages = {PATIENT if p == last else p: stage for p, stage in shard.stages.items()}
    tables = {}
    for modality, table in shard.tables.items():
        numeric = {name: values.copy() for name, values in table.numeric.items()}
        if modality == "mrna":
            numeric["GENE00000"][table.ids.index(last)] = GENE_VALUE
        ids = tuple(PATIENT if p == last else p for p in table.ids)
        tables[modality] = RawTable(ids, numeric, table.categorical)
    return Shard(shard.name, shard.cohort, tables, stages)


def _counting(plan: Plan) -> Plan:
    """The plan, with patients counted by sex in rounds 1 and 3."""
    sex = Subgroup(name="sex", column="sex", categories=("female", "male"))
    evaluation = plan.evaluation.model_copy(
        update={"subgroups": Subgroups(by=(sex,), every=2, min_patients=1, min_institutions=3)}
    )
    return plan.model_copy(update={"evaluation": evaluation})


def toml_of(plan: Plan) -> str:
    """A plan as a person would have written it, every field spelt out."""
    values = plan.model_dump(exclude_none=True, exclude_defaults=False)
    plain = {k: v for k, v in values.items() if not isinstance(v, dict | list | tuple)}
    lines = [f"{k} = {_inline(v)}" for k, v in plain.items() if v != ""]
    for name, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(f"{k} = {_inline(v)}" for k, v in value.items())]
        elif name not in plain:
            for entry in value:
                lines += ["", f"[[{name}]]", *(f"{k} = {_inline(v)}" for k, v in entry.items())]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


@dataclass
class Trained:
    """The federation, alive, after one finished run.

    Attributes:
        local: its processes.
        data: its patients.
        plan: of the run.
        plan_file: the same, as the operator has it.
        folder: for what commands write.
        said: what each command of the run said.
        shareable: party to the port of the `/metrics` that others may see; the coordinator's wants TLS and a token.
        inside: institution to the port of its local `/metrics`.
    """

    local: InProcessPki
    data: Federation
    folder: Path
    plan: Plan = field(init=False)
    long_plan: Plan = field(init=False)
    said: dict[str, CompletedProcess[str]] = field(default_factory=dict)
    shareable: dict[str, int] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)

    @property
    def metrics_authority(self) -> Path:
        return self.folder / "metrics-ca.pem"

    @property
    def metrics_token(self) -> Path:
        return self.folder / "metrics-token"

    def metrics_page(self, party: str) -> bytes:
        """The shareable `/metrics` of a party."""
        port, guarded = self.shareable[party], party == "coordinator"
        context = ssl.create_default_context(cafile=str(self.metrics_authority)) if guarded else None
        request = urllib.request.Request(f"{'https' if guarded else 'http'}://127.0.0.1:{port}/metrics")
        if guarded:
            request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            page: bytes = answer.read()
        return page

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.toml"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def run(self) -> str:
        return digest(self.plan.to_bytes()).hex()

    @property
    def names(self) -> list[str]:
        return [shard.name for shard in self.data.shards]

    def operator(self, *words: str, coordinator: str = "", identity: str = "") -> CompletedProcess[str]:
        """`consilium` with the operator's certificate."""
        where = ["--coordinator", coordinator or self.local.address]
        return say("deploy.cli", *words, *where, "--identity", identity or str(self.local.folder("operator")))

    def node(self, command: str, name: str, *words: str) -> CompletedProcess[str]:
        """`consilium-node` at an institution."""
        return say("institution_node.cli", command, "--config", str(self.local.folder(name) / "node.toml"), *words)

    def tables(self, folder: Path, modalities: tuple[str, ...] = BOTH) -> list[str]:
        return [word for m in modalities for word in ("--table", f"{m}={folder / f'{m}.parquet'}")]


def make(root: Path, data: Federation | None = None) -> Trained:
    """Certificates, tables, plans and configuration; nothing runs yet."""
    made = Trained(InProcessPki(root / "federation", "demo", seed=SEED), data or toy_federation(), root)
    local = made.local
    local.make_authority()
    local.enrol("coordinator", ["coordinator"])
    local.enrol("operator", ["operator"])
    local.enrol("institution", made.names)
    keys = {name: local.public_key(name) for name in made.names}
    made.plan = _counting(demo_plan(made.data, keys, seed=3, rounds=3, run_name="toy"))
    made.long_plan = demo_plan(made.data, keys, seed=3, rounds=100_000, run_name="toy-for-ever")
    made.plan_file.write_text(toml_of(made.plan), encoding="utf-8")
    (root / "long.toml").write_text(toml_of(made.long_plan), encoding="utf-8")
    folders = write_shards(made.data, root / "data")
    for name, folder in folders.items():
        labels = folder / "labels.csv"
        if name == WITH_CANARIES:  # a column that nobody asks for
            header, *rows = labels.read_text().splitlines()
            labels.write_text("\n".join([f"{header},note", *(f"{row},{NOTE}" for row in rows)]) + "\n")
        people = next(s for s in made.data.shards if s.name == name).people
        assert people is not None
        header, *rows = labels.read_text().splitlines()
        sexes = dict(zip(people.ids, people.categorical["sex"], strict=True))
        counted = [f"{row},{sexes[row.split(',')[0]] or ''}" for row in rows]
        labels.write_text("\n".join([f"{header},sex", *counted]) + "\n")
        tables = {m: folder / f"{m}.parquet" for m in next(s for s in made.data.shards if s.name == name).modalities}
        local.configure_node(LocalInstitution(name, tables, labels), [])
        policy = local.folder(name) / "policy.toml"
        policy.write_text(f"{policy.read_text()}allow_subgroups = true\n")
        made.shareable[name], made.inside[name] = free_port(), free_port()
        addresses = (("shareable", made.shareable[name]), ("local", made.inside[name]))
        _listen(local.folder(name) / "node.toml", "".join(f'{k} = "127.0.0.1:{port}"\n' for k, port in addresses))
    local.configure_coordinator()
    made.shareable["coordinator"] = free_port()
    _guard(made, local.folder("coordinator"))
    return made


def _guard(made: Trained, folder: Path) -> None:
    """The coordinator's metrics want TLS and a token."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(str(made.metrics_authority))
    issued.private_key_pem.write_to_path(str(folder / "metrics-key.pem"))
    (folder / "metrics.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    made.metrics_token.write_text(TOKEN)
    _listen(
        folder / "coordinator.toml",
        f'address = "127.0.0.1:{made.shareable["coordinator"]}"\ncertificate = "metrics.pem"\nkey = "metrics-key.pem"\n'
        f"token = {json.dumps(str(made.metrics_token))}\n",
    )


def _listen(path: Path, lines: str) -> None:
    path.write_text(f"{path.read_text()}\n[metrics]\n{lines}")


def accept(made: Trained, digests: list[str]) -> None:
    """Every institution's engineer adds the plans that were reviewed."""
    for name in made.names:
        policy = made.local.folder(name) / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith("accepted_plans")]
        policy.write_text("\n".join([f"accepted_plans = {json.dumps(digests)}", *kept]) + "\n")


def train(made: Trained) -> None:
    """The run, from the plan's file to the exported model, with what people type."""
    said = made.said
    said["plan check"] = say("deploy.cli", "plan", "check", str(made.plan_file), "--out", str(made.folder / "plan.bin"))
    made.local.start_coordinator()
    said["check before"] = made.node("check", made.names[0], "--plan", str(made.plan_file))
    accept(made, [made.run, digest(made.long_plan.to_bytes()).hex()])
    for name in made.names:
        made.local.start_node(name)
    said["start"] = made.operator("run", "start", str(made.plan_file))
    said["check during"] = made.node("check", made.names[0])
    said["watch"] = made.operator("run", "watch", made.run[:12])
    said["status"] = made.operator("run", "status")
    said["nodes"] = made.operator("nodes", made.run[:8])
    board = ["--csv", str(made.folder / "metrics.csv"), "--tensorboard", str(made.folder / "board")]
    said["metrics"] = made.operator("run", "metrics", made.run[:12], *board)
    said["export"] = made.operator("export", str(made.model))
    test = made.folder / "data" / "test" / "TOY"
    for form in ("csv", "json"):
        tables = made.tables(test)
        said[f"predict {form}"] = say(
            "institution_node.cli", "predict", "--model", str(made.model), "--format", form, *tables
        )
