"""A restored coordinator is refused; a restarted node leaves its attempt and masks nothing twice."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.store import Store
from institution_node.session import WithdrawnError
from security.secure_sum.errors import StaleAttemptError
from tests.coordinator.following import place
from tests.federation.plaintext_rounds import check_model
from tests.institution_node.lied_to import VICTIM, refusal, started, until
from tests.small_federation import SmallFederation, small_plan


def test_a_coordinator_from_an_old_backup_is_refused_and_its_run_fails(tmp_path: Path) -> None:
    plan = small_plan(7, rounds=4)
    federation = SmallFederation(plan)
    coordinator: Any = federation.coordinator
    coordinator.store = Store(f"sqlite:///{tmp_path / 'now.sqlite'}")
    coordinator.store.create_run(federation.run.key, plan.run, federation.bytes, coordinator.now)
    coordinator.store.set_status(federation.run.key, "enrolling", "", coordinator.now)
    coordinator.restart()
    federation.enrol()
    backup: dict[str, object] = {}

    def after() -> None:
        run = federation.run
        if run.round == 1 and run.attempt and run.attempt.machine.keys and not backup:
            with sqlite3.connect(tmp_path / "now.sqlite") as source, sqlite3.connect(tmp_path / "old.sqlite") as copied:
                source.backup(copied)
            backup.update(coordinator.content._contents)
        if run.round == 3 and len(run.attempt.machine.current.completed) == 3 and coordinator.starts == 2:
            coordinator.store = Store(f"sqlite:///{tmp_path / 'old.sqlite'}")
            coordinator.content._contents = dict(backup)  # as it was copied
            coordinator.restart()
            assert federation.run.round == 1
            restored.append(len(federation.sent))

    restored: list[int] = []
    assert federation.run_to_end(after=after) == "failed"
    assert "old" in federation.run.reason
    since = federation.sent[restored[0] :]
    assert {m.kind for m in since} == {"withdrawal"}
    assert {code for _, _, code in federation.withdrawals()} == {"stale-attempt"}


# -- the node itself is restarted ----------------------------------------------------------------------------------

RESTARTS = [
    (0, "", "deal_shares"),
    (0, "counts", "contribute"),
    (0, "weights", "sign_list"),
    (1, "", "make_keys"),
    (1, "", "deal_shares"),
    (1, "updates", "contribute"),
    (1, "updates", "sign_list"),
    (1, "updates", "open_shares"),
    (1, "statistics", "contribute"),
    (1, "statistics", "sign_list"),
    (1, "statistics", "open_shares"),
]


@pytest.mark.parametrize("at", RESTARTS, ids=lambda at: "-".join(map(str, at)))
def test_a_restarted_node_leaves_that_attempt_and_is_in_the_next_round(
    at: tuple[int, str, str], tmp_path: Path
) -> None:
    federation = started(tmp_path)
    name = federation.plan.roster[VICTIM]
    restarted: list[int] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and not restarted and place(federation, directive) == at:
            restarted.append(len(federation.sent))
            federation.start(name)
            return False
        return True

    began = federation.coordinator.now
    assert federation.run_to_end(acts) == "finished"
    assert restarted
    in_attempt = [m for m in federation.sent[restarted[0] :] if m.institution == name and m.round == at[0]]
    if at[2] == "make_keys":
        assert any(m.kind == "keys" for m in in_attempt)  # no attempt was joined yet
    else:
        assert {m.kind for m in in_attempt} <= {"withdrawal"}
        # Nobody waited for it: it said so, for the attempt that it had joined. (The last openings need no all.)
        assert (name, at[0], "withdrawn") in federation.withdrawals() or at[2] == "open_shares"
    assert (federation.coordinator.now - began).total_seconds() < 30
    check_model(federation, 2)
    last = json.loads(federation.run.records()[-1])
    took_part = at[0] > 0 or at[1:] == ("weights", "sign_list")
    assert (name in last["sums"]["updates"]["alive"]) == took_part


def test_a_node_restarted_in_the_middle_of_an_upload_never_masks_a_second_vector(tmp_path: Path) -> None:
    """It has retrained by then, on other batches: two vectors under one mask would show their difference."""
    federation = started(tmp_path, rounds=1)
    name = federation.plan.roster[VICTIM]
    directive = until(federation, 1, "contribute", name)
    session = federation.participants[name].session
    upload = session.handle(directive).upload
    assert upload is not None
    first = b"".join(upload.chunks())
    again = session.handle(directive).upload  # a cut connection: the same bytes
    assert again is not None
    assert b"".join(again.chunks()) == first
    mark = federation.memory(name).mark
    federation.start(name)
    assert federation.memory(name).mark == mark
    assert isinstance(refusal(federation, name, directive), WithdrawnError)
    keys = pb.Directive(
        make_keys=pb.MakeKeys(round_start=federation.run.attempt.round_start, attempt=federation.run.attempt.number)
    )
    assert isinstance(refusal(federation, name, keys), StaleAttemptError)
    assert federation.run_to_end() == "finished"
    record = json.loads(federation.run.records()[-1])
    assert name not in record["sums"]["updates"]["alive"]


def test_what_must_survive_a_restart_does(tmp_path: Path) -> None:
    plan = small_plan(9, rounds=2)
    federation = SmallFederation(plan, folder=tmp_path)
    federation.enrol()
    name = plan.roster[1]  # the only one with mrna+image: its classifier stays with it
    until(federation, 2, "make_keys", name)
    before, rows = federation.memory(name), federation.works[name]._train_rows
    federation.start(name)
    after = federation.memory(name)
    assert after.mark == before.mark
    assert after.noised_patients == before.noised_patients > 0
    assert after.last_losses == before.last_losses != {}
    assert after.setup == before.setup is not None
    assert after.models == before.models != ()
    assert np.array_equal(federation.works[name]._train_rows, rows)
    assert list(after.private) == ["classifier/mrna+image"]
    for component, values in before.private.items():
        assert np.array_equal(after.private[component], values)
    assert federation.run_to_end() == "finished"
    last = json.loads(federation.run.records()[-1])
    assert name in last["sums"]["statistics"]["alive"]
    moved = federation.memory(name).private["classifier/mrna+image"]
    assert not np.array_equal(moved, before.private["classifier/mrna+image"])


def test_a_late_institution_is_silent_and_accuses_nobody() -> None:
    """It slept through the statistics' beginning and wakes at their list: it cannot know what was summed."""
    federation = started(rounds=1)
    name = federation.plan.roster[VICTIM]

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == name and place(federation, directive) == (1, "statistics", "contribute"))

    assert federation.run_to_end(acts) == "finished"
    assert not federation.told[name].refused
    assert not federation.withdrawals()
    assert federation.told[name].signed[-1] == "updates"
