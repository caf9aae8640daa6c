"""A dealer of shares that nobody can open is named and left out, and liars cannot have an honest one left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from consilium.v1 import service_pb2 as pb
from prometheus_client import CollectorRegistry

from coordinator.disputes import EXPELLED
from coordinator.observe import RunObserver
from coordinator.records import Recorder
from coordinator.status import institutions_of
from institution_node.session import Reply
from monitoring.metrics import CoordinatorMetrics
from security.audit import AuditLog
from security.secure_sum import derive
from security.secure_sum.complaints import BAD_SHARES, FALSE_COMPLAINTS, Complaint
from security.secure_sum.errors import EquivocationError, OutOfPhaseError, WrongContextError
from security.secure_sum.messages import ShareMessage, Signed
from studies.memory_coordinator import EPOCH
from tests.coordinator.following import Heard, kind, place
from tests.coordinator.parties import NAMES, RUN, Connections, Party, start, to_uploads
from tests.coordinator.serving import SECONDS, Serving, code_of
from tests.federation.plaintext_rounds import check_model
from tests.plans import example_identity
from tests.small_federation import SmallFederation, small_plan


class Listening(Heard):
    """Hears of complaints and of who is expelled, too."""

    def __init__(self) -> None:
        super().__init__()
        self.complaints: list[tuple[str, str]] = []
        self.expulsions: list[tuple[str, str]] = []

    def complained(self, institution: str, dealer: str) -> None:
        self.complaints.append((institution, dealer))

    def expelled(self, institution: str, code: str) -> None:
        self.expulsions.append((institution, code))


def federation_of(institutions: int = 9, **changes: object) -> tuple[SmallFederation, Listening]:
    heard = Listening()
    federation = SmallFederation(small_plan(institutions, **{"rounds": 2, **changes}), observer=heard)
    federation.enrol()
    return federation, heard


def sign(federation: SmallFederation, name: str, tag: str, payload: bytes) -> Signed:
    return Signed(name, payload, example_identity(federation.plan.roster.index(name)).sign(tag, payload))


def deals_garbage(federation: SmallFederation, dealer: str, victims: Callable[[], Iterable[str]]) -> None:
    """From now on, `dealer` seals garbage for these, each time that it deals."""
    link = federation.participants[dealer].link
    honest = link.submit

    def submit(request: pb.SubmitRequest) -> pb.Directive:
        if request.WhichOneof("message") == "shares":
            chosen = set(victims())
            for i, message in enumerate(request.shares.messages):
                true = ShareMessage.decode(message.payload)
                if true.receiver in chosen:
                    bad = replace(true, shares=tuple(replace(s, box=bytes(len(s.box))) for s in true.shares))
                    lie = sign(federation, dealer, derive.TAG_SHARES, bad.encode())
                    request.shares.messages[i].CopyFrom(lie.to_proto())
        return honest(request)

    link.submit = submit  # type: ignore[method-assign]  # an attacker's node: the program has no such switch


def complains_of(federation: SmallFederation, liar: str, dealers: Iterable[str]) -> None:
    """`liar` says, in every attempt, that the honest shares of these dealers do not open."""
    session, accused = federation.participants[liar].session, set(dealers)
    honest = session.handle

    def handle(directive: pb.Directive) -> Reply:
        if kind(directive) != "contribute" or directive.contribute.complained:
            return honest(directive)
        relayed = [Signed.from_proto(s) for s in directive.contribute.shares]
        about = [m for m in relayed if m.signer in accused]
        if not about:
            return honest(directive)
        said = Complaint.about(ShareMessage.decode(about[0].payload).context, liar, about).encode()
        lie = sign(federation, liar, derive.TAG_COMPLAINT, said)
        return Reply(pb.SubmitRequest(run=session.run, complaint=lie.to_proto()))

    session.handle = handle  # type: ignore[method-assign]  # as above


def attempts(federation: SmallFederation) -> list[tuple[int, int]]:
    records = [json.loads(r) for r in federation.run.records()]
    return [(r["round"], r["attempt"]) for r in records]


def standing(federation: SmallFederation) -> Mapping[str, tuple[str, str]]:
    return {i.name: (i.status, i.reason) for i in institutions_of(federation.run)}


def test_one_dealer_of_garbage_among_nine_costs_one_attempt_and_is_named() -> None:
    federation, heard = federation_of(9)
    bad = federation.plan.roster[4]
    deals_garbage(federation, bad, lambda: federation.plan.roster)
    assert federation.run_to_end() == "finished"
    assert attempts(federation) == [(0, 2), (1, 1), (2, 1)]
    assert heard.failures == [(0, 1, BAD_SHARES)]
    assert heard.expulsions == [(bad, BAD_SHARES)]
    assert {dealer for _, dealer in heard.complaints} == {bad}
    assert standing(federation)[bad] == ("sits out", f"expelled: {BAD_SHARES}")
    assert all(bad not in json.loads(r)["cohort"] for r in federation.run.records())
    check_model(federation, 2)
    # It stays out whatever it says, and whoever restarts.
    federation.coordinator.restart()
    assert federation.run.enrol(bad, "another", "some-rule", federation.coordinator.now) == f"expelled: {BAD_SHARES}"
    assert federation.run.enrol(bad, "another", "", federation.coordinator.now) == f"expelled: {BAD_SHARES}"
    rows = {e.institution: e for e in federation.coordinator.store.enrolments(federation.run.key)}
    assert (rows[bad].status, rows[bad].reason) == (EXPELLED, BAD_SHARES)
    assert [name for name, row in rows.items() if row.status == EXPELLED] == [bad]


def test_a_dealer_that_harms_one_institution_at_a_time_is_convicted_by_the_sum_of_them() -> None:
    federation, heard = federation_of(9)
    bad, *others = federation.plan.roster
    turn = iter(others)
    deals_garbage(federation, bad, lambda: [next(turn)])
    assert federation.run_to_end() == "finished"
    assert heard.complaints == [(others[0], bad), (others[1], bad)]
    assert heard.expulsions == [(bad, BAD_SHARES)]
    assert attempts(federation) == [(0, 1), (1, 2), (2, 1)]  # one complaint alone stops nothing
    assert bad in json.loads(federation.run.records()[0])["cohort"]
    check_model(federation, 2)


def test_a_lying_complainer_has_no_honest_dealer_left_out() -> None:
    """As many as may lie accuse one dealer, in every attempt: nothing is lost, and both sides are on record."""
    federation, heard = federation_of(9)
    liar, victim = federation.plan.roster[:2]
    complains_of(federation, liar, [victim])
    assert federation.run_to_end() == "finished"
    assert attempts(federation) == [(0, 1), (1, 1), (2, 1)]
    assert heard.failures == []
    assert heard.expulsions == []
    assert set(heard.complaints) == {(liar, victim)}
    assert all(victim in json.loads(r)["cohort"] for r in federation.run.records())
    check_model(federation, 2)


def test_who_complains_of_too_many_is_left_out_instead_and_stops_nothing() -> None:
    federation, heard = federation_of(9)
    liar, *victims = federation.plan.roster[:4]
    complains_of(federation, liar, victims)
    assert federation.run_to_end() == "finished"
    assert attempts(federation) == [(0, 1), (1, 1), (2, 1)]
    assert heard.expulsions == [(liar, FALSE_COMPLAINTS)]
    assert all(set(victims) <= set(json.loads(r)["cohort"]) for r in federation.run.records())
    assert standing(federation)[liar] == ("sits out", f"expelled: {FALSE_COMPLAINTS}")


def test_where_too_few_could_open_both_sides_sit_the_next_attempt_out() -> None:
    """Five of seven are there, and five shares open a secret: one complaint makes it four, whoever lies."""
    federation, heard = federation_of(7)
    threshold = federation.plan.secure_sum.threshold
    away = set(federation.plan.roster[threshold:])
    bad, victim = federation.plan.roster[:2]
    deals_garbage(federation, bad, lambda: [victim])

    def acts(name: str, directive: pb.Directive) -> bool:
        return name not in away or (federation.run.attempt is not None and federation.run.attempt.number >= 2)

    assert federation.run_to_end(acts) == "finished"
    assert heard.failures[0] == (0, 1, "disputed-shares")
    assert heard.complaints[0] == (victim, bad)
    assert heard.expulsions == []
    first = json.loads(federation.run.records()[0])
    assert (first["round"], first["attempt"]) == (0, 2)
    assert set(first["cohort"]) == set(federation.plan.roster) - {bad, victim}
    assert first["withdrawn"] == {bad: "disputed-shares", victim: "disputed-shares"}


def test_shares_that_do_not_give_back_what_was_committed_to_convict_their_dealer_once_opened() -> None:
    """They open and match, so nobody complains; the sum does not open, and its number is burnt, once."""
    federation, heard = federation_of(9, rounds=3)
    bad = federation.plan.roster[2]

    def acts(name: str, directive: pb.Directive) -> bool:
        if name == bad and place(federation, directive) == (1, "", "deal_shares"):
            member = federation.participants[bad].session._member
            assert member is not None
            secrets = member._secrets
            assert secrets is not None
            wrong = {part: replace(s, seed=bytes(len(s.seed))) for part, s in secrets.parts.items()}
            member._secrets = replace(secrets, parts=wrong)
        return True

    assert federation.run_to_end(acts) == "finished"
    assert [r for r, _ in heard.burnt_rounds] == [1]
    assert heard.expulsions == [(bad, "bad-share")]
    assert [r for r, _ in attempts(federation)] == [0, 2, 3]


def test_a_complaint_comes_before_the_upload_and_counts_once() -> None:
    federation, _ = federation_of(9)
    bad, victim, *_ = federation.plan.roster
    deals_garbage(federation, bad, lambda: [victim])
    assert federation.run_to_end() == "finished"
    mine = [m.kind for m in federation.sent if m.institution == victim and m.round == 0]
    assert mine[:4] == ["keys", "shares", "complaint", "header"]
    assert mine.count("complaint") == 1


def test_replayed_second_and_late_complaints_change_nothing() -> None:
    federation, heard = federation_of(9)
    liar, victim, other = federation.plan.roster[:3]
    complains_of(federation, liar, [victim])
    checked: list[str] = []

    def acts(name: str, directive: pb.Directive) -> bool:
        run, now = federation.run, federation.coordinator.now
        where = place(federation, directive)
        said = [pb.SubmitRequest.FromString(m.data).complaint for m in federation.sent if m.kind == "complaint"]
        if where == (0, "holders", "contribute") and said and "second" not in checked:
            messages = run.attempt.machine.shares
            payload = Complaint.about(run.attempt.machine.attempt.context, liar, [messages[other][liar]]).encode()
            with pytest.raises(EquivocationError):
                run.take_complaint(sign(federation, liar, derive.TAG_COMPLAINT, payload), now)
            checked.append("second")
        if where == (0, "holders", "sign_list") and "late" not in checked:
            with pytest.raises(OutOfPhaseError):
                run.take_complaint(Signed.from_proto(said[0]), now)
            checked.append("late")
        if where == (1, "updates", "contribute") and "replayed" not in checked:
            with pytest.raises(WrongContextError):
                run.take_complaint(Signed.from_proto(said[0]), now)
            checked.append("replayed")
        return True

    assert federation.run_to_end(acts) == "finished"
    assert checked == ["second", "late", "replayed"]
    assert set(heard.complaints) == {(liar, victim)}
    assert heard.expulsions == []


def test_complaints_and_their_end_are_in_metrics_events_and_audit_log(tmp_path: Path) -> None:
    federation, _ = federation_of(9, rounds=1)
    bad = federation.plan.roster[4]
    deals_garbage(federation, bad, lambda: federation.plan.roster)
    metrics, log, key = CoordinatorMetrics(CollectorRegistry()), tmp_path / "audit", federation.run.key
    with AuditLog(log, EPOCH) as audit:
        recorder = Recorder(federation.coordinator.store, audit, lambda: EPOCH)
        federation.run._observer = RunObserver(key, federation.plan, metrics, recorder, lambda record: None)
        assert federation.run_to_end() == "finished"
        recorder.close()
    for reason in ("share-complaint", BAD_SHARES):
        assert metrics.registry.get_sample_value("consilium_refusals_total", {"reason": reason})
    events = [(e.kind, e.fields) for e in federation.coordinator.store.events(key)]
    assert ("expelled", {"institution": bad, "reason": BAD_SHARES}) in events
    assert {fields["dealer"] for kind_, fields in events if kind_ == "share-complaint"} == {bad}
    written = log.read_text()
    assert "share-complaint" in written
    assert "institution-blamed" in written


def test_over_grpc_a_complaint_is_taken_from_its_signer_alone_and_answered(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    try:
        start(serving)
        with Connections(serving) as stubs:
            parties = [Party(stub, name) for stub, name in zip(stubs, NAMES, strict=True)]
            for party in parties:
                party.enrol()
            to_uploads(parties)
            told = parties[1].told()
            assert not told.contribute.complained
            about = Signed.from_proto(told.contribute.shares[0])
            said = Complaint.about(ShareMessage.decode(about.payload).context, NAMES[1], [about]).encode()
            lie = Signed(NAMES[1], said, example_identity(1).sign(derive.TAG_COMPLAINT, said))
            request = pb.SubmitRequest(run=RUN, complaint=lie.to_proto(), known=told.serial, wait_seconds=10.0)
            with pytest.raises(grpc.RpcError) as refused:
                parties[2].stub.Submit(request, timeout=SECONDS)
            assert code_of(refused.value)[1] == "not-the-signer"
            answer = parties[1].stub.Submit(request, timeout=SECONDS).directive
            assert answer.contribute.complained
            assert not parties[2].told().contribute.complained
    finally:
        serving.close()
