"""Kinds of encoders that packages offer: found without being run, allowed by version or files, used by real nodes."""

from __future__ import annotations

import py_compile
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from federation.model_archive import Model, pack_files
from federation.plan import Plan
from federation.rounds import digest
from institution_node.check import _encoders
from institution_node.cli import app
from institution_node.config import NodeConfig
from institution_node.data import InstitutionData
from institution_node.encoder_kinds import InstalledKind, files_digest, installed_kinds, load_encoders
from institution_node.errors import EncoderError
from institution_node.final_model import keep_final_model
from institution_node.model_folder import read_model, write_model
from institution_node.node import Assignment, Node
from institution_node.observe import NodeObserver
from institution_node.policy import NodeIdentity, Policy, PolicyRefusal
from institution_node.predict import predict
from institution_node.service import local_work
from monitoring.metrics import NodeLocalMetrics, NodeShareableMetrics
from security.audit import AuditLog
from security.privacy.randomness import SeededRandomness
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from tests.institution_node.scripted import ScriptedLink
from tests.own_encoders import KIND, PIN, install_example, with_kind
from tests.plans import example_identity
from tests.small_federation import DictMemory, patients, small_plan

HERE = InstalledKind(KIND, "example-encoders", "0.1.0")
PLAN = with_kind(small_plan(7, rounds=2))
RUN = digest(PLAN.to_bytes())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def site(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(installed))
    yield installed
    sys.modules.pop("gated_attention", None)


def test_a_kind_is_found_without_running_its_package(site: Path) -> None:
    assert HERE in installed_kinds()
    assert "gated_attention" not in sys.modules


def test_what_is_allowed_is_loaded(site: Path) -> None:
    assert load_encoders([], []) == {}
    for pin in (PIN, "Example_Encoders==0.1.0", f"{PIN}@sha256:{files_digest(HERE)}"):
        assert load_encoders([KIND], [pin])[KIND].__name__ == "GatedAttention"


@pytest.mark.parametrize(
    ("kind", "pins", "message"),
    [
        ("unheard-of", [PIN], "no package on this machine offers"),
        (KIND, [], "does not allow"),
        (KIND, ["example-encoders==0.1.1"], "does not allow"),
        (KIND, ["another-package==0.1.0"], "does not allow"),
        (KIND, [f"{PIN}@sha256:{'0' * 64}"], "not those that policy.toml names"),
    ],
)
def test_attack_code_that_nobody_allowed_is_not_even_imported(
    site: Path, kind: str, pins: list[str], message: str
) -> None:
    with pytest.raises(EncoderError, match=message) as told:
        load_encoders([kind], pins)
    assert told.value.remedy
    assert "gated_attention" not in sys.modules


def test_two_packages_of_one_kind_are_told_apart_by_policy(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other_encoders-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other_encoders\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[consilium.encoders]\n{KIND} = json:JSONDecoder\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_encoders([KIND], ["other-encoders==1.0"])[KIND].__name__ == "JSONDecoder"
    assert load_encoders([KIND], [PIN])[KIND].__name__ == "GatedAttention"
    with pytest.raises(EncoderError, match="both offer the encoder"):
        load_encoders([KIND], [PIN, "other-encoders==1.0"])
    with pytest.raises(EncoderError, match="are not listed"):
        load_encoders([KIND], [f"other-encoders==1.0@sha256:{'0' * 64}"])


def test_the_check_says_whether_the_encoders_will_do(site: Path) -> None:
    name = PLAN.roster[0]
    assert _encoders(PLAN, policy(PIN), name).good
    found = _encoders(PLAN, policy(), name)
    assert found.good is False
    assert "allow_encoders" in found.remedy


def test_attack_a_changed_file_is_seen_by_its_hash(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = install_example(tmp_path_factory.mktemp("changed"))
    monkeypatch.syspath_prepend(str(own))
    pin = f"{PIN}@sha256:{files_digest(HERE)}"
    code = own / "gated_attention" / "__init__.py"
    code.write_text(code.read_text() + "\nx = 1\n")
    with pytest.raises(EncoderError, match=r"not those that policy\.toml names"):
        load_encoders([KIND], [pin])


@pytest.mark.parametrize("path", ["gated_attention/weights.pt", "gated_attention/core.pyc", "gated_attention.pth"])
def test_attack_a_file_of_any_name_is_in_the_hash(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    own = install_example(tmp_path_factory.mktemp("added"))
    monkeypatch.syspath_prepend(str(own))
    pin = f"{PIN}@sha256:{files_digest(HERE)}"
    (own / path).write_bytes(b"other")
    with (own / "example_encoders-0.1.0.dist-info" / "RECORD").open("a") as record:
        record.write(f"{path},,\n")
    with pytest.raises(EncoderError, match=r"not those that policy\.toml names"):
        load_encoders([KIND], [pin])
    assert "gated_attention" not in sys.modules


def test_attack_an_entry_point_moved_to_another_object_is_seen_by_the_hash(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files, another object of another package under the name that was reviewed."""
    own = install_example(tmp_path_factory.mktemp("moved"))
    monkeypatch.syspath_prepend(str(own))
    pin = f"{PIN}@sha256:{files_digest(HERE)}"
    (own / "example_encoders-0.1.0.dist-info" / "entry_points.txt").write_text(
        f"[consilium.encoders]\n{KIND} = antigravity:fly\n"
    )
    with pytest.raises(EncoderError, match=r"not those that policy\.toml names"):
        load_encoders([KIND], [pin])
    assert "antigravity" not in sys.modules


def test_attack_a_module_in_front_of_the_reviewed_one_is_not_imported(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another package, or the folder that the node was started in, has a module of the same name."""
    pin = f"{PIN}@sha256:{files_digest(HERE)}"
    (tmp_path / "gated_attention.py").write_text("GatedAttention = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EncoderError, match="which is not of example-encoders"):
        load_encoders([KIND], [pin])
    assert "gated_attention" not in sys.modules


def test_attack_compiled_code_that_is_not_its_source_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = install_example(tmp_path_factory.mktemp("compiled"))
    monkeypatch.syspath_prepend(str(own))
    pin = f"{PIN}@sha256:{files_digest(HERE)}"
    code = own / "gated_attention" / "__init__.py"
    py_compile.compile(str(code), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    compiled = Path(cache_from_source(str(code))).relative_to(own)
    with (own / "example_encoders-0.1.0.dist-info" / "RECORD").open("a") as record:
        record.write(f"{compiled},,\n")
    with pytest.raises(EncoderError, match="would not hold against its source"):
        load_encoders([KIND], [pin])
    assert "gated_attention" not in sys.modules


def test_the_command_shows_how_to_allow_and_to_declare(site: Path) -> None:
    shown = CliRunner().invoke(app, ["encoders"]).output
    assert f'{KIND}  "{PIN}"' in shown
    assert f'"{PIN}@sha256:{files_digest(HERE)}"' in shown
    declared = (
        CliRunner().invoke(app, ["encoders", "--kind", KIND, "--option", "group=2", "--option", "hidden=4"]).output
    )
    assert '{ name = "group", number = 2 }' in declared
    assert '{ name = "score.weight", shape = [1, 4], init = "uniform_fan_in", fan_in = 4 }' in declared


# -- policy -------------------------------------------------------------------------------------------------------


def identity(name: str, encoders: tuple[InstalledKind, ...] = (HERE,)) -> NodeIdentity:
    entry = PLAN.institution(name)
    return NodeIdentity(PLAN.federation, name, entry.key, entry.modalities, encoders)


def policy(*pins: str) -> Policy:
    return Policy(accepted_plans=(RUN.hex(),), data_is_public=True, allow_seeded_randomness=True, allow_encoders=pins)


def test_policy_says_which_rule_a_kind_breaks() -> None:
    first, last = PLAN.roster[0], PLAN.roster[-1]
    policy(PIN).check(PLAN, RUN, identity(first))
    policy().check(PLAN, RUN, identity(last, ()))  # it holds no images, and runs no such code
    for pins, encoders, rule in (((PIN,), (), "encoders"), ((), (HERE,), "allow_encoders")):
        with pytest.raises(PolicyRefusal) as told:
            policy(*pins).check(PLAN, RUN, identity(first, encoders))
        assert told.value.rule == rule
    assert [r.rule for r in policy().refusals(PLAN, RUN, identity(first))] == ["allow_encoders"]


@pytest.mark.parametrize("pin", ["example-encoders", "example-encoders>=0.1", "example-encoders==0.1.0@sha256:1"])
def test_a_policy_names_versions(pin: str) -> None:
    with pytest.raises(ValueError, match="names no version"):
        policy(pin)


# -- real nodes ---------------------------------------------------------------------------------------------------


def node(
    name: str, link: object, tmp_path: Path, rules: Policy, ended: dict[str, Path], precision: str = "float32"
) -> Node:
    """A node as `service.serve` makes it, without network: its own `local_work`."""
    state = tmp_path / name
    state.mkdir(parents=True)
    config = NodeConfig.model_construct(
        federation=PLAN.federation,
        institution=name,
        state=state,
        compute=NodeConfig.model_fields["compute"].default.model_copy(update={"device": "cpu", "precision": precision}),
        disk=NodeConfig.model_fields["disk"].default,
    )
    from datetime import UTC, datetime

    observer = NodeObserver(
        name,
        NodeShareableMetrics(CollectorRegistry()),
        NodeLocalMetrics(CollectorRegistry()),
        AuditLog(state / "audit.jsonl", datetime(2026, 1, 1, tzinfo=UTC)),
    )
    make = local_work(config)

    def finish(assignment: Assignment, said: object) -> None:
        ended[name] = keep_final_model(tmp_path / "models" / name, assignment, said)  # type: ignore[arg-type]  # RunEnded

    def load(plan: Plan) -> InstitutionData:
        return patients(plan, name)

    return Node(
        link,  # type: ignore[arg-type]  # a CoordinatorLink
        identity(name, installed_kinds()),
        example_identity(PLAN.roster.index(name)),
        lambda: rules,
        DictMemory(),
        SeededRandomness(1, name),
        load,
        lambda assignment: make(assignment, observer),
        finish=finish,
        watcher=observer,
    )


def whole_run(tmp_path: Path, precision: str = "float32") -> Model:
    """What the first institution keeps of a run in which all nodes use the kind."""
    coordinator = MemoryCoordinator(PLAN.to_bytes())
    ended: dict[str, Path] = {}
    nodes = {
        name: node(name, MemoryLink(coordinator, name), tmp_path, policy(PIN), ended, precision) for name in PLAN.roster
    }
    idle = 0
    while idle < 50 and len(ended) < len(nodes):
        moved = [each.step(0) for each in nodes.values()]
        if coordinator.work() or any(moved):
            idle = 0
        else:
            idle += 1
            coordinator.pass_time(5.0)
    assert coordinator.run.status == "finished"
    assert set(ended) == set(PLAN.roster)
    return read_model(ended[PLAN.roster[0]])


def test_nodes_train_a_kind_that_the_coordinator_never_saw(site: Path, tmp_path: Path) -> None:
    model = whole_run(tmp_path)
    start = model.layout.components["encoder/image"].initial(PLAN.seed)
    assert not np.array_equal(model.components["encoder/image"], start)
    tables = patients(PLAN, PLAN.roster[0]).tables
    with pytest.raises(EncoderError, match="whose code is not in the model"):
        predict(model, tables)
    assert predict(model, {"mrna": tables["mrna"]}).staged
    assert predict(model, tables, load_encoders([KIND], [PIN])).staged
    write_model(tmp_path / "model", pack_files(model))
    image = tables["image"]
    frame = pd.DataFrame(dict(image.numeric), index=pd.Index(image.ids, name="case_id"))
    frame.to_csv(tmp_path / "image.csv")
    (tmp_path / "policy.toml").write_text(f'allow_encoders = ["{PIN}"]\n')
    command = ["predict", "--model", str(tmp_path / "model"), "--table", f"image={tmp_path / 'image.csv'}"]
    assert "--policy" in str(CliRunner().invoke(app, command).output)
    staged = CliRunner().invoke(app, [*command, "--policy", str(tmp_path / "policy.toml")])
    assert staged.exit_code == 0
    assert "classifier/image" in staged.output


def test_the_nodes_precision_is_what_its_trainer_multiplies_in(site: Path, tmp_path: Path) -> None:
    plain, mixed = (whole_run(tmp_path / precision, precision) for precision in ("float32", "mixed"))
    for name in ("encoder/mrna", "encoder/image"):
        assert not np.array_equal(plain.components[name], mixed.components[name])
        np.testing.assert_allclose(plain.components[name], mixed.components[name], atol=0.05)


@pytest.mark.parametrize(("precision", "said"), [("mixed", "configuration"), ("float32", "")])
def test_a_node_in_mixed_precision_declines_differential_privacy(tmp_path: Path, precision: str, said: str) -> None:
    plan = small_plan(7, differential_privacy={"enabled": True}, training={"class_weights": "none"})
    rules = policy().model_copy(update={"accepted_plans": (digest(plan.to_bytes()).hex(),)})
    link = ScriptedLink(plan=plan.to_bytes())
    each = node(PLAN.roster[0], link, tmp_path, rules, {}, precision)
    each.step(0)
    each.leave()
    assert link.enrolments == [said]


@pytest.mark.parametrize(
    ("rules", "spoil", "code"),
    [
        (policy(), False, "allow-encoders"),
        (policy(f"{PIN}@sha256:{'0' * 64}"), False, "encoder"),
        (policy(PIN), True, "encoder"),
    ],
)
def test_a_node_declines_by_code_alone(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: Policy, spoil: bool, code: str
) -> None:
    if spoil:
        gated = load_encoders([KIND], [PIN])[KIND]
        monkeypatch.setattr(gated, "forward", lambda self, x: x)
    link = ScriptedLink(plan=PLAN.to_bytes())
    each = node(PLAN.roster[0], link, tmp_path, rules, {})
    each.step(0)
    assert link.enrolments == [code]
    assert each.run is None


def test_a_node_without_the_package_declines(tmp_path: Path) -> None:
    link = ScriptedLink(plan=PLAN.to_bytes())
    node(PLAN.roster[0], link, tmp_path, policy(PIN), {}).step(0)
    assert link.enrolments == ["encoders"]
