"""What bad input gets at the coordinator, over real mTLS: a typed status with a code, one more refusal in the metrics,
nothing changed; and the sum under way opens as if nothing had been said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from consilium.v1 import plan_pb2
from consilium.v1 import service_pb2 as pb

from federation.vectors import UploadKey
from security.secure_sum import derive
from security.secure_sum.messages import MAX_PAYLOAD_BYTES, KeyMessage, Signed, UploadHeader
from security.secure_sum.spec import Context
from tests.coordinator.members import Follower, request_for
from tests.coordinator.parties import NAMES, PLAN, RUN, Party, finish_sum, pieces, to_uploads
from tests.coordinator.serving import SECONDS, Serving, code_of, institution, start_run
from tests.plans import example_identity

Code = grpc.StatusCode
Request = Callable[[Party], pb.SubmitRequest]


def signed_by(party: Party, tag: str, payload: bytes) -> Any:
    """A message with the party's good signature, on the wire."""
    identity = example_identity(NAMES.index(party.name))
    return Signed(party.name, payload, identity.sign(tag, payload)).to_proto()


def keys(party: Party) -> KeyMessage:
    request = request_for(party.follower, party.told())
    assert request is not None
    return KeyMessage.decode(request.keys.payload)


def with_keys(party: Party, payload: bytes) -> pb.SubmitRequest:
    return pb.SubmitRequest(run=RUN, keys=signed_by(party, derive.TAG_KEYS, payload))


def in_context(**changes: Any) -> Request:
    """The party's keys, said to be of another place than the attempt's."""

    def make(party: Party) -> pb.SubmitRequest:
        honest = keys(party)
        return with_keys(party, replace(honest, context=replace(honest.context, **changes)).encode())

    return make


def unknown_part(party: Party) -> pb.SubmitRequest:
    honest = keys(party)
    first = replace(honest.parts[0], part="encoder/genome")
    return with_keys(party, replace(honest, parts=(first, *honest.parts[1:])).encode())


def too_few_parts(party: Party) -> pb.SubmitRequest:
    honest = keys(party)
    return with_keys(party, replace(honest, parts=honest.parts[:-1]).encode())


def oversized(party: Party) -> pb.SubmitRequest:
    return with_keys(party, bytes(MAX_PAYLOAD_BYTES + 1))


def bad_signature(party: Party) -> pb.SubmitRequest:
    request = with_keys(party, keys(party).encode())
    request.keys.signature = request.keys.signature[:-1] + bytes([request.keys.signature[-1] ^ 1])
    return request


def out_of_phase(party: Party) -> pb.SubmitRequest:
    return pb.SubmitRequest(run=RUN, opening=signed_by(party, derive.TAG_OPENING, b"x"))


BAD: dict[str, tuple[Request, Code, str]] = {
    "not a message": (lambda p: with_keys(p, b"\xff\xff"), Code.INVALID_ARGUMENT, "malformed-message"),
    "no message": (lambda p: pb.SubmitRequest(run=RUN), Code.INVALID_ARGUMENT, "malformed-request"),
    "oversized": (oversized, Code.INVALID_ARGUMENT, "malformed-message"),
    "another round": (in_context(round=7), Code.FAILED_PRECONDITION, "wrong-context"),
    "another attempt, replayed": (in_context(attempt=2), Code.FAILED_PRECONDITION, "wrong-context"),
    "another run": (in_context(run=bytes(32)), Code.FAILED_PRECONDITION, "wrong-context"),
    "another federation": (in_context(federation="elsewhere"), Code.FAILED_PRECONDITION, "wrong-context"),
    "unknown component": (unknown_part, Code.INVALID_ARGUMENT, "malformed-message"),
    "a component left out": (too_few_parts, Code.INVALID_ARGUMENT, "malformed-message"),
    "a bad signature": (bad_signature, Code.PERMISSION_DENIED, "bad-signature"),
    "out of phase": (out_of_phase, Code.FAILED_PRECONDITION, "out-of-phase"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_message_is_refused_counted_and_changes_nothing(
    parties: list[Party], serving: Serving, case: str
) -> None:
    make, status, code = BAD[case]
    request = make(parties[0])
    parties[0].follower = Follower(PLAN, NAMES[0])  # what was made for the lie is forgotten
    before = parties[0].told()
    with pytest.raises(grpc.RpcError) as refused:
        parties[0].stub.Submit(request, timeout=SECONDS)
    assert code_of(refused.value) == (status, code)
    assert serving.refusals(code) == 1
    assert parties[0].told() == before  # still asked for the same
    machine = serving.do(serving.hub.live(RUN)).run.attempt.machine  # type: ignore[union-attr]
    assert (machine.keys, machine.shares) == ({}, {})
    assert len(finish_sum(parties).contribute.opened) == 1  # nothing was lost: the sum opens, with everybody


def header(party: Party, **changes: Any) -> tuple[pb.UploadRequest, list[pb.UploadRequest], pb.UploadRequest]:
    """An honest upload under another header."""
    upload = party.vector()
    _, chunks, trailer = pieces(upload)
    changed = replace(UploadHeader.decode(upload.header.payload), **changes)
    message = signed_by(party, derive.TAG_UPLOAD, changed.encode())
    return pb.UploadRequest(start=pb.UploadStart(run=RUN, header=message)), chunks, trailer


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"length": 8}, "malformed-message"),
        ({"length": 1 << 40}, "malformed-message"),
        ({"sum": "updates"}, "out-of-phase"),
        ({"transcript": bytes(32)}, "transcript"),
    ],
    ids=str,
)
def test_an_upload_of_a_wrong_shape_or_sum_is_refused_before_a_byte_is_kept(
    parties: list[Party], serving: Serving, changes: dict[str, Any], code: str
) -> None:
    to_uploads(parties)
    first, chunks, trailer = header(parties[0], **changes)
    with pytest.raises(grpc.RpcError) as refused:
        parties[0].upload(first, *chunks, trailer)
    assert code_of(refused.value)[1] == code
    assert serving.refusals(code) == 1
    run = serving.do(serving.hub.live(RUN)).run
    assert run.attempt is not None
    assert run.attempt.machine.current.completed == set()
    context: Context = run.attempt.machine.attempt.context
    key = UploadKey(run.key, context.round, context.attempt, run.attempt.machine.current.name, NAMES[0])
    assert run.spool.offset(key) == 0
    honest, chunks, trailer = pieces(parties[0].follower.vector or parties[0].vector())
    assert parties[0].upload(honest, *chunks, trailer).complete


def test_requests_that_do_not_parse_are_counted(serving: Serving) -> None:
    with serving.channel(institution(NAMES[0], 0)) as channel:
        submit = channel.unary_unary("/consilium.v1.InstitutionService/Submit", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            submit(b"\xff\xff\xff", timeout=SECONDS)
    assert code_of(refused.value) == (Code.INVALID_ARGUMENT, "malformed-request")
    assert serving.refusals("malformed-request") == 1


def test_a_plan_with_an_unknown_key_starts_nothing(serving: Serving) -> None:
    message = plan_pb2.Plan.FromString(PLAN.to_bytes())
    unknown = message.SerializeToString(deterministic=True) + b"\xfa\x3f\x02hi"  # field 1023
    assert plan_pb2.Plan.FromString(unknown).run == PLAN.run  # protobuf itself would take it
    with serving.as_operator() as operator, pytest.raises(grpc.RpcError) as refused:
        start_run(operator, unknown)
    assert code_of(refused.value) == (Code.INVALID_ARGUMENT, "plan")
    assert serving.refusals("plan") == 1
    assert serving.hub.store.runs() == ()
