"""What one institution is to do next, read off a run. Pure; the service and the in-memory transport both ask here.

A directive depends on nothing but the run, and says the same until the run moves on: whoever acts on it twice, or after
a restart, sends the same bytes again (DESIGN.md, "A round").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from consilium.v1 import secure_sum_pb2 as sum_pb
from consilium.v1 import service_pb2 as pb

from coordinator.run import Attempt, Run
from security.secure_sum.phases import AggregatorPhase

ENROLMENT = "enrolment"
_Step = Callable[[Attempt, str], pb.Directive]


def directive_for(run: Run, institution: str, boot: bytes, model: str = "") -> pb.Directive:
    """The institution's directive now. Not to be changed: within an attempt whoever asks again gets the same object.

    Args:
        run: the run.
        institution: who asks; the caller has checked who it is.
        boot: the coordinator's nonce of this start, so that serials of an earlier start are never met again.
        model: digest of the exported model, once there is one.

    Returns:
        With a `serial` that is equal exactly where directives are.
    """
    if run.ended:
        final = run.final() if run.state.setup is not None else b""
        ended = pb.RunEnded(status=run.status, reason=run.reason, final=final, model=model)
        return _with_serial(pb.Directive(run_ended=ended), boot)
    reason = run.excluded(institution)
    if reason:
        return _with_serial(pb.Directive(sit_out=pb.SitOut(reason=reason)), boot)
    attempt = run.attempt
    if attempt is None or institution not in run.enrolled:
        return _with_serial(_wait(ENROLMENT), boot)
    step = _step(attempt, institution)
    # Everybody else is told the same in one phase.
    own = (institution, institution in attempt.complaints) if step is _contribute else None
    return attempt.told.once(attempt.place, (boot, step, own), lambda: _with_serial(step(attempt, institution), boot))


def _with_serial(directive: pb.Directive, boot: bytes) -> pb.Directive:
    content = directive.SerializeToString(deterministic=True)
    # 0 means "none" on the wire.
    directive.serial = int.from_bytes(hashlib.sha256(boot + content).digest()[:8], "big") or 1
    return directive


def _step(attempt: Attempt, institution: str) -> _Step:
    """What makes the institution's directive. What it says must follow from the attempt's place alone, and, for
    `_contribute`, from the institution and whether it complained: it is made once."""
    machine, phase = attempt.machine, attempt.machine.phase
    if institution in attempt.withdrawn:
        return _wait_for_others
    if phase is AggregatorPhase.KEYS:
        return _wait_for_others if institution in machine.keys else _make_keys
    if institution not in machine.members:
        return _wait_for_others
    match phase:  # the shareholders, all the way through, whether or not they upload (rule 5)
        case AggregatorPhase.REVEALS if institution not in machine.reveals:
            return _reveal_value
        case AggregatorPhase.SHARES if institution not in machine.shares:
            return _deal_shares
        case AggregatorPhase.UPLOADS if machine.current.transcript:
            return _contribute
        case AggregatorPhase.SIGNATURES:
            return _sign_list
        case AggregatorPhase.OPENINGS if attempt.asks(institution):
            return _open_shares
    return _wait_for_others


def _make_keys(attempt: Attempt, _: str) -> pb.Directive:
    return pb.Directive(make_keys=pb.MakeKeys(round_start=attempt.round_start, attempt=attempt.number))


def _reveal_value(attempt: Attempt, _: str) -> pb.Directive:
    return pb.Directive(reveal_value=pb.RevealValue(keys=_keys(attempt)))


def _deal_shares(attempt: Attempt, _: str) -> pb.Directive:
    reveals = attempt.machine.reveals
    if not reveals:
        return pb.Directive(deal_shares=pb.DealShares(keys=_keys(attempt)))
    shown = [sum_pb.Reveal(sender=n, value=value) for n, value in sorted(reveals.items())]
    return pb.Directive(deal_shares=pb.DealShares(reveals=shown))


def _contribute(attempt: Attempt, institution: str) -> pb.Directive:
    machine = attempt.machine
    contribute = pb.Contribute(
        sum=machine.current.name,
        cohort=sorted(machine.cohort),
        shares=[s.to_proto() for s in machine.shares_for(institution)],
        opened=attempt.opened,
        complained=institution in attempt.complaints,
    )
    if machine.encryption_key is not None:
        contribute.encryption_key.CopyFrom(machine.encryption_key.to_proto())
    return pb.Directive(contribute=contribute)


def _sign_list(attempt: Attempt, _: str) -> pb.Directive:
    return pb.Directive(sign_list=pb.SignList(list=attempt.machine.current.payload))


def _open_shares(attempt: Attempt, _: str) -> pb.Directive:
    current = attempt.machine.current
    # The first `threshold` that came: later ones decide nothing, and must not change the directive.
    decided = list(current.signatures.values())[: attempt.machine.attempt.threshold]
    signatures = [sum_pb.SignedMessage(signer=s.signer, signature=s.signature) for s in decided]
    return pb.Directive(open_shares=pb.OpenShares(list=current.payload, signatures=signatures))


def _wait_for_others(attempt: Attempt, _: str) -> pb.Directive:
    return _wait(attempt.machine.phase.value)


def _keys(attempt: Attempt) -> list[sum_pb.SignedMessage]:
    keys = attempt.machine.keys
    return [keys[signer].to_proto() for signer in sorted(keys)]


def _wait(phase: str) -> pb.Directive:
    return pb.Directive(wait=pb.Wait(phase=phase))
