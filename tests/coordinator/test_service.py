"""The coordinator's services over real mTLS on loopback: who may call, what is refused and how, and that nothing of it
changes anything."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.errors import StateLockedError
from federation.content_hash import content_digest
from federation.rounds import opened_by
from federation.vectors import UploadKey
from security.pki import Role
from security.signing import IdentityKey
from tests.coordinator.members import Follower, request_for
from tests.coordinator.parties import NAMES, PLAN, RUN, Connections, Party, finish_sum, pieces, start, to_uploads
from tests.coordinator.serving import (
    FOREIGN,
    NOW,
    OPERATOR,
    SECONDS,
    Pass,
    Serving,
    code_of,
    institution,
    invited,
    start_run,
)

Code = grpc.StatusCode


def handshakes(serving: Serving) -> float:
    return serving.metrics.registry.get_sample_value("consilium_handshakes_total") or 0.0


def connections(serving: Serving) -> float:
    return serving.metrics.registry.get_sample_value("consilium_connections_admitted_total") or 0.0


# -- who calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(None, id="no certificate"),
        pytest.param(institution(NAMES[0], 0, authority=FOREIGN), id="another authority"),
        pytest.param(institution(NAMES[0], 0, issued=NOW - timedelta(days=40), days=10), id="expired"),
    ],
)
def test_a_certificate_that_is_none_of_ours_ends_the_handshake(serving: Serving, shown: Pass | None) -> None:
    before, admitted = handshakes(serving), connections(serving)
    with serving.as_institution(shown) as stub, pytest.raises(grpc.RpcError) as refused:
        invited(stub)
    assert code_of(refused.value)[0] is Code.UNAVAILABLE
    assert handshakes(serving) > before
    assert connections(serving) == admitted


def test_a_connection_is_counted_once_it_may_call_something_and_once_only(serving: Serving) -> None:
    before = connections(serving)
    with serving.as_institution(OPERATOR) as stub, pytest.raises(grpc.RpcError):
        invited(stub)
    assert connections(serving) == before, "no role for what it asks"
    for calls in (1, 3):
        with serving.as_institution(institution(NAMES[0], 0)) as stub:
            for _ in range(calls):
                invited(stub)
    assert connections(serving) == before + 2


def test_each_service_takes_one_role(serving: Serving) -> None:
    with serving.as_institution(OPERATOR) as stub, pytest.raises(grpc.RpcError) as refused:
        invited(stub)
    assert code_of(refused.value) == (Code.PERMISSION_DENIED, "certificate-wrong-role")
    with serving.as_operator(institution(NAMES[0], 0)) as operator:
        with pytest.raises(grpc.RpcError) as refused:
            start_run(operator, PLAN.to_bytes())
        assert code_of(refused.value) == (Code.PERMISSION_DENIED, "certificate-wrong-role")
        with pytest.raises(grpc.RpcError) as refused:
            list(operator.WatchRun(pb.WatchRunRequest(run=RUN), timeout=SECONDS))
        assert code_of(refused.value) == (Code.PERMISSION_DENIED, "certificate-wrong-role")
    assert serving.refusals("certificate-wrong-role") == 3
    assert serving.hub.store.runs() == ()


def ask_for(seconds: float, stub: InstitutionServiceStub) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        invited(stub)


def test_a_revoked_certificate_is_refused_on_a_connection_that_stands(serving: Serving) -> None:
    shown = institution(NAMES[0], 0)
    with serving.as_institution(shown) as stub:
        invited(stub)
        serving.revoke(shown.fingerprint)
        with pytest.raises(grpc.RpcError) as refused:
            ask_for(3.0, stub)  # longer than `LOOK_AGAIN`, on a slow machine too
        assert code_of(refused.value) == (Code.UNAUTHENTICATED, "certificate-revoked")
        said: grpc.Call = refused.value  # type: ignore[assignment] # gRPC's errors are calls
        assert said.details() == "certificate-revoked"  # a code, and no message


def test_tls_1_2_finds_no_cipher(serving: Serving, tmp_path: Path) -> None:
    shown = institution(NAMES[0], 0)
    context = ssl.create_default_context(cafile=str(serving.files.authority))
    (tmp_path / "peer.pem").write_bytes(shown.certificate + shown.key.to_pem())
    context.load_cert_chain(tmp_path / "peer.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", serving.port), timeout=SECONDS) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)handshake|version|eof"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_plaintext_is_refused(serving: Serving) -> None:
    with grpc.insecure_channel(f"localhost:{serving.port}") as channel, pytest.raises(grpc.RpcError) as refused:
        invited(InstitutionServiceStub(channel))
    assert code_of(refused.value)[0] is Code.UNAVAILABLE


def test_health_answers_every_role_over_the_same_connection(serving: Serving) -> None:
    for shown in (OPERATOR, institution(NAMES[0], 0)):
        with serving.channel(shown) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="consilium.v1.InstitutionService")
            assert stub.Check(request, timeout=SECONDS).status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(request, timeout=SECONDS)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


def test_a_renewed_certificate_is_shown_without_a_restart(serving: Serving) -> None:
    def presented() -> bytes | None:
        context = ssl.create_default_context(cafile=str(serving.files.authority))
        with (
            socket.create_connection(("127.0.0.1", serving.port), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert(binary_form=True)

    before = presented()
    key = IdentityKey.from_pem(serving.files.key.read_bytes())
    serving.files.certificate.write_bytes(Pass(Role.COORDINATOR, "coordinator", key, host="localhost").certificate)
    assert presented() != before


# -- malformed ----------------------------------------------------------------------------------------------------


def test_bytes_that_do_not_parse_and_requests_that_are_too_large(serving: Serving) -> None:
    with serving.channel(institution(NAMES[0], 0)) as channel:
        submit = channel.unary_unary("/consilium.v1.InstitutionService/Submit", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            submit(b"\xff\xff\xff", timeout=SECONDS)
        assert code_of(refused.value) == (Code.INVALID_ARGUMENT, "malformed-request")
        with pytest.raises(grpc.RpcError) as refused:
            submit(bytes(5 << 20), timeout=SECONDS)
        assert code_of(refused.value)[0] is Code.RESOURCE_EXHAUSTED
        upload = channel.stream_unary("/consilium.v1.InstitutionService/Upload", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            upload(iter([b"\xff\xff"]), timeout=SECONDS)
        assert code_of(refused.value) == (Code.INVALID_ARGUMENT, "malformed-request")
        stub = InstitutionServiceStub(channel)
        assert invited(stub) == b""
        with pytest.raises(grpc.RpcError) as refused:
            invited(stub, version=2)
        assert code_of(refused.value) == (Code.UNIMPLEMENTED, "protocol-version")


def test_a_run_that_is_unknown_and_a_run_of_others(serving: Serving) -> None:
    start(serving)
    with serving.as_institution(institution(NAMES[0], 0)) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.NextDirective(pb.NextDirectiveRequest(run=bytes(32)), timeout=SECONDS)
    assert code_of(refused.value) == (Code.NOT_FOUND, "unknown-run")
    with serving.as_institution(Pass(Role.INSTITUTION, "elsewhere")) as stub:
        assert invited(stub) == b""
        calls: list[tuple[Any, Any]] = [
            (stub.Enrol, pb.EnrolRequest(run=RUN)),
            (stub.Submit, pb.SubmitRequest(run=RUN)),
            (stub.NextDirective, pb.NextDirectiveRequest(run=RUN)),
        ]
        for call, request in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=SECONDS)
            assert code_of(refused.value) == (Code.FAILED_PRECONDITION, "not-enrolled")
    assert serving.hub.store.enrolments(RUN.hex()) == ()


def test_a_name_with_another_key_than_the_plans_cannot_enrol(serving: Serving) -> None:
    start(serving)
    with serving.as_institution(Pass(Role.INSTITUTION, NAMES[0])) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.Enrol(pb.EnrolRequest(run=RUN), timeout=SECONDS)
    assert code_of(refused.value) == (Code.PERMISSION_DENIED, "certificate-not-plan-key")


def test_a_refusal_that_is_no_code_reaches_nobody(serving: Serving) -> None:
    start(serving)
    with serving.as_institution(institution(NAMES[0], 0)) as stub:
        reason = stub.Enrol(pb.EnrolRequest(run=RUN, refusal="patient 4711 has\nn=3"), timeout=SECONDS).reason
        assert reason == "refused: other"


# -- messages -----------------------------------------------------------------------------------------------------


def test_a_message_is_taken_from_its_signer_only(parties: list[Party], serving: Serving) -> None:
    honest = request_for(parties[0].follower, parties[0].told())
    assert honest is not None
    with pytest.raises(grpc.RpcError) as refused:
        parties[1].stub.Submit(honest, timeout=SECONDS)
    assert code_of(refused.value) == (Code.PERMISSION_DENIED, "not-the-signer")
    machine = serving.do(serving.hub.live(RUN)).run.attempt.machine  # type: ignore[union-attr]
    assert machine.keys == {}
    renamed = pb.SubmitRequest()
    renamed.CopyFrom(honest)
    renamed.keys.signer = NAMES[1]  # and now it is not what its signer signed
    with pytest.raises(grpc.RpcError) as refused:
        parties[1].stub.Submit(renamed, timeout=SECONDS)
    assert code_of(refused.value)[0] is Code.PERMISSION_DENIED
    assert machine.keys == {}
    parties[0].stub.Submit(honest, timeout=SECONDS)
    parties[0].stub.Submit(honest, timeout=SECONDS)  # replayed by its own signer: nothing changes
    assert set(machine.keys) == {NAMES[0]}


def test_out_of_phase_second_and_empty_messages_change_nothing(parties: list[Party], serving: Serving) -> None:
    first = parties[0]
    request = request_for(first.follower, first.told())
    assert request is not None
    other = request_for(Follower(PLAN, NAMES[0], seed=2), first.told())
    assert other is not None
    first.stub.Submit(request, timeout=SECONDS)
    machine = serving.do(serving.hub.live(RUN)).run.attempt.machine  # type: ignore[union-attr]
    shares = pb.SubmitRequest(run=RUN)
    shares.shares.sender = NAMES[0]
    foreign = pb.SubmitRequest(run=RUN)
    foreign.shares.sender = NAMES[1]
    signature = pb.SubmitRequest(run=RUN, signature=request.keys)
    for wrong, expected in (
        (other, (Code.PERMISSION_DENIED, "equivocation")),
        (shares, (Code.FAILED_PRECONDITION, "out-of-phase")),
        (foreign, (Code.PERMISSION_DENIED, "not-the-signer")),
        (signature, (Code.FAILED_PRECONDITION, "out-of-phase")),
        (pb.SubmitRequest(run=RUN), (Code.INVALID_ARGUMENT, "malformed-request")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            first.stub.Submit(wrong, timeout=SECONDS)
        assert code_of(refused.value) == expected
    assert list(machine.keys) == [NAMES[0]]
    assert machine.shares == {}


def test_a_long_poll_answers_at_once_when_the_phase_changes(parties: list[Party]) -> None:
    waiting = parties[0]
    waiting.act()
    known = waiting.told()
    assert known.wait.phase == "keys"
    assert waiting.told(known.serial, wait=0.05).serial == known.serial
    heard: list[pb.Directive] = []
    poll = threading.Thread(target=lambda: heard.append(waiting.told(known.serial, wait=20.0)))
    poll.start()
    for party in parties[1:]:
        party.act()
    poll.join(10.0)
    assert [d.WhichOneof("kind") for d in heard] == ["deal_shares"]


# -- uploads and downloads ----------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_broke_off(parties: list[Party], serving: Serving) -> None:
    to_uploads(parties)
    party = parties[0]
    upload = party.vector()
    first, chunks, trailer = pieces(upload)
    assert len(chunks) > 2
    assert party.upload(first, *chunks[:1]).offset == 50  # ended without a trailer: it does not count
    assert (party.reached(upload).offset, party.reached(upload).complete) == (50, False)
    with pytest.raises(grpc.RpcError) as refused:
        party.upload(first, *chunks, trailer)  # from the beginning again
    assert code_of(refused.value) == (Code.OUT_OF_RANGE, "upload-offset")
    said: grpc.Call = refused.value  # type: ignore[assignment] # gRPC's errors are calls
    assert dict(said.trailing_metadata() or ())["consilium-upload-offset"] == "50"
    first.start.offset = 50
    assert party.upload(first, *chunks[1:], trailer).complete
    assert party.reached(upload).complete
    assert party.upload(first).complete  # asked again: nothing happens
    machine = serving.do(serving.hub.live(RUN)).run.attempt.machine  # type: ignore[union-attr]
    assert machine.current.completed == {NAMES[0]}


def test_an_upload_that_is_not_what_its_trailer_says_is_discarded(parties: list[Party], serving: Serving) -> None:
    to_uploads(parties)
    party = parties[0]
    upload = party.vector()
    first, chunks, trailer = pieces(upload)
    wrong = pb.UploadRequest(trailer=pb.UploadTrailer(hash=bytes(32)))
    extra = pb.UploadRequest(chunk=b"one too many")
    for messages, expected in (
        ((first, *chunks, wrong), (Code.DATA_LOSS, "upload-mismatch")),
        ((first, *chunks[:-1], trailer), (Code.DATA_LOSS, "upload-mismatch")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            party.upload(*messages)
        assert code_of(refused.value) == expected
        assert party.reached(upload).offset == 0
    with pytest.raises(grpc.RpcError) as refused:
        party.upload(first, *chunks, extra, trailer)
    assert code_of(refused.value) == (Code.OUT_OF_RANGE, "upload-length")
    machine = serving.do(serving.hub.live(RUN)).run.attempt.machine  # type: ignore[union-attr]
    assert machine.current.completed == set()
    first.start.offset = party.reached(upload).offset
    assert party.upload(first, trailer).complete  # every byte of it had come


def test_attack_an_upload_that_is_resumed_with_other_bytes_never_counts(parties: list[Party], serving: Serving) -> None:
    to_uploads(parties)
    party = parties[0]
    upload = party.vector()
    first, chunks, trailer = pieces(upload)
    others = [pb.UploadRequest(chunk=bytes(len(chunk.chunk))) for chunk in chunks]
    live = serving.do(serving.hub.live(RUN))
    assert party.upload(first, *chunks[:1]).offset == 50
    behind = pb.UploadRequest()
    behind.CopyFrom(first)
    behind.start.offset = 50
    for again in (behind, first):  # after what had come, and in its place
        assert party.reached(upload).offset in (50, 0)
        with pytest.raises(grpc.RpcError) as refused:
            party.upload(again, *others[1 if again is behind else 0 :], trailer)
        assert code_of(refused.value) == (Code.DATA_LOSS, "upload-mismatch")
        assert party.reached(upload).offset == 0  # none of it is kept
    assert live.run.attempt is not None
    assert live.run.attempt.machine.current.completed == set()
    assert party.upload(first, *chunks, trailer).complete
    false_trailer = pb.UploadTrailer(hash=bytes.fromhex(content_digest(b"".join(c.chunk for c in others))))
    assert party.upload(first, *others, pb.UploadRequest(trailer=false_trailer)).complete  # it was, and stands
    key = UploadKey(RUN.hex(), 0, 1, told_sum(party), party.name)
    kept = live.run.spool.open(key)
    data = bytearray(kept.length)
    kept.read_into(0, memoryview(data))
    assert bytes(data) == b"".join(upload.chunks())


def told_sum(party: Party) -> str:
    return party.told().contribute.sum


def test_uploads_begin_with_a_header_of_the_caller(parties: list[Party]) -> None:
    to_uploads(parties)
    upload = parties[0].vector()
    first, chunks, trailer = pieces(upload)
    for messages, who, expected in (
        ((chunks[0], trailer), 0, (Code.INVALID_ARGUMENT, "malformed-request")),
        ((), 0, (Code.INVALID_ARGUMENT, "malformed-request")),
        ((first, first), 0, (Code.INVALID_ARGUMENT, "malformed-request")),
        ((first, *chunks, trailer), 1, (Code.PERMISSION_DENIED, "not-the-signer")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            parties[who].upload(*messages)
        assert code_of(refused.value) == expected
    with pytest.raises(grpc.RpcError) as refused:
        parties[1].reached(upload)
    assert code_of(refused.value) == (Code.PERMISSION_DENIED, "not-the-signer")


def test_a_run_publishes_its_opened_sums_and_nothing_else(parties: list[Party], serving: Serving) -> None:
    told = finish_sum(parties)
    assert len(told.contribute.opened) == 1
    opened, _ = opened_by(told.contribute.opened[0])
    stub = parties[0].stub

    def fetch(content: str, offset: int = 0) -> bytes:
        answers = list(stub.Download(pb.DownloadRequest(run=RUN, digest=content, offset=offset), timeout=SECONDS))
        data = b"".join(a.chunk for a in answers)
        assert answers[0].length == offset + len(data)
        return data

    words = opened.parts[0].words
    whole = fetch(words)
    assert content_digest(whole) == words
    assert fetch(words, 8) == whole[8:]
    assert fetch(words, len(whole)) == b""
    private = serving.do(serving.hub.live(RUN)).content.put(b"there, and never published")
    for content, offset, expected in (
        (private, 0, (Code.NOT_FOUND, "unknown-content")),
        ("00" * 32, 0, (Code.NOT_FOUND, "unknown-content")),
        ("../../state.sqlite", 0, (Code.NOT_FOUND, "unknown-content")),
        (words, len(whole) + 1, (Code.OUT_OF_RANGE, "offset")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            fetch(content, offset)
        assert code_of(refused.value) == expected


def test_a_restarted_coordinator_resumes_after_an_opened_sum(
    parties: list[Party], serving: Serving, tmp_path: Path
) -> None:
    before = finish_sum(parties)
    serving.do(serving.hub.rest())
    with pytest.raises(grpc.RpcError) as refused:
        parties[0].told()
    assert code_of(refused.value)[0] is Code.UNAVAILABLE
    serving.do(serving.server.stop(0.1))
    again = Serving(tmp_path)
    try:
        with again.as_institution(institution(NAMES[0], 0)) as stub:
            told = Party(stub, NAMES[0]).told()
        assert told.contribute == before.contribute
        assert told.serial != before.serial  # so that a node acts on it once more
    finally:
        again.close()


def test_two_coordinators_do_not_share_a_state_folder(serving: Serving, tmp_path: Path) -> None:
    with pytest.raises(StateLockedError, match="another coordinator"):
        Serving(tmp_path)


def test_a_message_is_answered_with_what_follows_it(serving: Serving) -> None:
    start(serving)
    with Connections(serving) as stubs:
        parties = [Party(stub, name) for stub, name in zip(stubs, NAMES, strict=True)]
        for party in parties:
            party.enrol()
        for party in parties[:-1]:
            party.act()
        last = parties[-1]
        told = last.told()
        request = request_for(last.follower, told)
        assert request is not None
        assert not last.stub.Submit(request, timeout=SECONDS).HasField("directive")  # it did not wait
        request.known, request.wait_seconds = told.serial, 20.0
        again = last.stub.Submit(request, timeout=SECONDS).directive
        assert again == last.told()
        assert again.WhichOneof("kind") == "deal_shares"


def test_one_party_may_not_have_calls_without_end(serving: Serving) -> None:
    start(serving)
    with serving.as_institution(institution(NAMES[0], 0)) as stub:
        stub.Enrol(pb.EnrolRequest(run=RUN), timeout=SECONDS)
        known = stub.NextDirective(pb.NextDirectiveRequest(run=RUN), timeout=SECONDS).directive.serial
        request = pb.NextDirectiveRequest(run=RUN, known=known, wait_seconds=20.0)
        calls: list[Any] = [stub.NextDirective.future(request, timeout=SECONDS) for _ in range(40)]
        refused = [code_of(call.exception()) for call in calls[32:]]
        assert refused == [(Code.RESOURCE_EXHAUSTED, "too-many-calls")] * 8
        for call in calls:
            call.cancel()
