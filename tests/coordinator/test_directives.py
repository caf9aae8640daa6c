"""Directives through a whole round 0: what each institution is told in each phase, and that it stays said."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.attempt import DISPUTED
from coordinator.directives import directive_for
from coordinator.errors import NotEnrolledError
from coordinator.folding import run_job
from coordinator.observer import Observer
from coordinator.run import Run
from coordinator.store import Store
from federation.content_hash import content_digest
from federation.in_memory import MemoryContentStore, MemorySpool
from federation.plan import digest
from federation.rounds import SETUP_SUMS
from security.secure_sum.derive import TAG_KEYS
from security.secure_sum.messages import Signed
from security.secure_sum.upload import Upload
from tests.coordinator.members import Follower, header_of, request_for
from tests.plans import example_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOOT = b"boot"
PLAN = example_plan(5)
NAMES = PLAN.roster


class Table:
    """A run and its institutions, at one table."""

    def __init__(self, *present: str) -> None:
        data = PLAN.to_bytes()
        self.store = Store("sqlite://")
        self.store.create_run(digest(data).hex(), PLAN.run, data, NOW)
        self.content, self.spool = MemoryContentStore(), MemorySpool()
        self.run = Run(data, self.store, self.content, self.spool, Observer(), NOW)
        self.now = NOW
        self.followers = {name: Follower(PLAN, name) for name in present or NAMES}
        for name in present or NAMES:
            self.run.enrol(name, "print", "", NOW)
        self.run.tick(NOW)

    def told(self, name: str, boot: bytes = BOOT) -> pb.Directive:
        return directive_for(self.run, name, boot)

    def kinds(self) -> set[str | None]:
        return {self.told(name).WhichOneof("kind") for name in NAMES}

    def act(self, name: str) -> None:
        follower, directive = self.followers[name], self.told(name)
        request = request_for(follower, directive)
        if request is not None:
            match request.WhichOneof("message"):
                case "keys":
                    self.run.take_keys(Signed.from_proto(request.keys), self.now)
                case "shares":
                    self.run.take_shares(name, [Signed.from_proto(m) for m in request.shares.messages], self.now)
                case "signature":
                    self.run.take_signature(Signed.from_proto(request.signature), self.now)
                case "opening":
                    self.run.take_opening(Signed.from_proto(request.opening), self.now)
        elif directive.WhichOneof("kind") == "contribute":
            upload = follower.upload(directive)
            if upload is not None:
                self.send(upload)

    def send(self, upload: Upload) -> None:
        key = self.run.begin_upload(upload.header)
        data = b"".join(upload.chunks())
        self.spool.append(key, 0, data)
        self.spool.complete(key, content_digest(data), header_of(upload).length)
        self.run.complete_upload(key, self.now)

    def all_act(self, *but: str) -> None:
        for name in self.followers:
            if name not in but:
                self.act(name)

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for name in self.followers:
            self.run.poll(name, self.now)
        self.run.tick(self.now)


def test_before_everybody_is_here_an_institution_waits_for_enrolment() -> None:
    table = Table(*NAMES[:3])
    assert all(table.told(name).wait.phase == "enrolment" for name in NAMES)


def test_each_phase_tells_everybody_its_step_and_then_the_next() -> None:
    table = Table()
    for kind in ("make_keys", "deal_shares", "contribute"):
        assert table.kinds() == {kind}
        table.all_act()
    assert table.kinds() == {"sign_list"}
    for name in NAMES[: PLAN.secure_sum.threshold]:
        table.act(name)
    assert table.kinds() == {"open_shares"}
    assert len(table.told(NAMES[0]).open_shares.signatures) == PLAN.secure_sum.threshold
    table.all_act()
    assert table.kinds() == {"wait"}  # everybody opened: the sum is to be added
    job = table.run.job()
    assert job is not None
    assert job.sum == SETUP_SUMS[0]
    table.run.folded(job, run_job(job, table.content), NOW)
    nxt = table.told(NAMES[0]).contribute
    assert nxt.sum == SETUP_SUMS[1]
    assert len(nxt.opened) == 1
    assert list(nxt.cohort) == sorted(NAMES)


def test_who_has_done_a_step_waits_for_the_others() -> None:
    table = Table()
    table.act(NAMES[0])
    assert table.told(NAMES[0]).wait.phase == "keys"
    assert table.told(NAMES[1]).WhichOneof("kind") == "make_keys"


def test_an_upload_or_signature_that_is_in_changes_no_directive() -> None:
    """Contribute and SignList are the same for who has answered: repeating them after a restart must do no harm."""
    table = Table()
    for _ in range(2):
        table.all_act()
    before = {name: table.told(name) for name in NAMES}
    table.act(NAMES[0])
    assert {name: table.told(name) for name in NAMES} == before
    table.all_act(NAMES[0])
    assert table.kinds() == {"sign_list"}
    before = {name: table.told(name) for name in NAMES}
    table.act(NAMES[0])
    assert {name: table.told(name) for name in NAMES} == before


def test_a_late_signature_changes_no_directive() -> None:
    table = Table()
    for _ in range(3):
        table.all_act()
    late = table.followers[NAMES[-1]].signature(table.told(NAMES[-1]))
    table.all_act(NAMES[-1])
    before = {name: table.told(name) for name in NAMES}
    assert table.kinds() == {"open_shares"}
    table.run.take_signature(late, NOW)
    assert {name: table.told(name) for name in NAMES} == before


def test_who_withdrew_or_came_late_waits_while_shareholders_go_on() -> None:
    table = Table()
    attempt = table.run.attempt
    assert attempt is not None
    table.run.withdraw(NAMES[1], 0, attempt.number, "stale-attempt", NOW)
    assert table.told(NAMES[1]).WhichOneof("kind") == "wait"
    table.all_act(NAMES[1])
    assert table.told(NAMES[1]).wait.phase == "shares"
    assert table.told(NAMES[0]).WhichOneof("kind") == "deal_shares"


def test_keys_sent_again_do_not_bring_back_who_withdrew_with_its_keys_destroyed() -> None:
    table = Table()
    attempt, name = table.run.attempt, NAMES[1]
    assert attempt is not None
    keys = table.followers[name].keys(table.told(name))
    table.run.take_keys(keys, NOW)
    table.run.withdraw(name, 0, attempt.number, "withdrawn", NOW)
    for again in (keys, replace(keys, signature=table.followers[name].identity.sign(TAG_KEYS, keys.payload))):
        table.run.take_keys(again, NOW)
        assert attempt.withdrawn == {name: "withdrawn"}
        assert table.told(name).WhichOneof("kind") == "wait"


def test_who_withdrew_before_it_had_keys_comes_back_with_its_first_ones() -> None:
    table = Table()
    attempt, name = table.run.attempt, NAMES[1]
    assert attempt is not None
    keys = table.followers[name].keys(table.told(name))
    table.run.withdraw(name, 0, attempt.number, "node-stopped", NOW)
    table.run.take_keys(keys, NOW)
    assert not attempt.withdrawn


def test_who_sits_an_attempt_out_over_disputed_shares_does_not_come_back_by_sending_keys() -> None:
    table = Table()
    attempt, name = table.run.attempt, NAMES[1]
    assert attempt is not None
    keys = table.followers[name].keys(table.told(name))
    attempt.withdrawn[name] = DISPUTED
    with pytest.raises(NotEnrolledError, match="sits this attempt out"):
        table.run.take_keys(keys, NOW)
    assert attempt.withdrawn == {name: DISPUTED}
    assert name not in attempt.machine.keys


def test_shareholders_without_an_upload_sign_and_open_too() -> None:
    """Rule 5: a shareholder that vanished before its upload still holds shares."""
    table = Table()
    for _ in range(2):
        table.all_act()
    table.followers[NAMES[2]].upload(table.told(NAMES[2]))  # made, and never sent
    table.all_act(NAMES[2])
    table.pass_time(PLAN.deadlines.upload + 1)
    assert table.kinds() == {"sign_list"}
    table.all_act()
    assert table.told(NAMES[2]).WhichOneof("kind") == "open_shares"


def test_serials_follow_content_and_start() -> None:
    table = Table()
    once, again, other = table.told(NAMES[0]), table.told(NAMES[0]), table.told(NAMES[0], b"another start")
    assert once.serial == again.serial != 0
    assert other.serial != once.serial
    table.act(NAMES[0])
    assert table.told(NAMES[0]).serial != once.serial


def test_however_often_institutions_ask_a_directive_is_made_once_a_phase() -> None:
    table = Table()
    held: list[pb.Directive] = []  # what is held cannot be made anew at the same address

    def made() -> int:
        before = len(held)
        held.extend(table.told(name) for _ in range(3) for name in NAMES)
        return len({id(each) for each in held[before:]})

    for each, kind in ((1, "make_keys"), (1, "deal_shares"), (len(NAMES), "contribute"), (1, "sign_list")):
        assert (made(), table.kinds()) == (each, {kind})
        table.act(NAMES[0])
        assert made() == (each + 1 if kind in ("make_keys", "deal_shares") else each)  # and one that says: wait
        if kind != "sign_list":
            table.all_act(NAMES[0])
    for name in NAMES[1 : PLAN.secure_sum.threshold]:
        table.act(name)
    assert (made(), table.kinds()) == (1, {"open_shares"})


def test_what_an_attempt_told_is_not_told_by_the_next() -> None:
    table = Table()
    first = table.told(NAMES[0])
    table.act(NAMES[0])
    table.pass_time(PLAN.deadlines.keys + 1)  # one key message is too few
    second = table.told(NAMES[1])
    assert second.make_keys.attempt == first.make_keys.attempt + 1
    assert second.serial != first.serial


def test_refused_and_ended() -> None:
    table = Table()
    table.run.enrol(NAMES[4], "print", "unknown-plan", NOW)
    assert table.told(NAMES[4]).sit_out.reason == "refused: unknown-plan"
    table.run.stop("stopped", "enough", NOW)
    ended = table.told(NAMES[4]).run_ended
    assert (ended.status, ended.reason, ended.final) == ("stopped", "enough", b"")
