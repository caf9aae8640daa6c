"""What one institution is to do next, read off a run. Pure; the service and the in-memory transport both ask here.

A directive depends on nothing but the run, and says the same until the run moves on: whoever acts on it twice, or after
a restart, sends the same bytes again (DESIGN.md, "A round").
"""

from __future__ import annotations

import hashlib

from consilium.v1 import secure_sum_pb2 as sum_pb
from consilium.v1 import service_pb2 as pb

from coordinator.run import Attempt, Run
from security.secure_sum.phases import AggregatorPhase

ENROLMENT = "enrolment"


def directive_for(run: Run, institution: str, boot: bytes, model: str = "") -> pb.Directive:
    """The institution's directive now.

    Args:
        run: the run.
        institution: who asks; the caller has checked who it is.
        boot: the coordinator's nonce of this start, so that serials of an earlier start are never met again.
        model: digest of the exported model, once there is one.

    Returns:
        With a `serial` that is equal exactly where directives are.
    """
    directive = _what(run, institution, model)
    content = directive.SerializeToString(deterministic=True)
    # 0 means "none" on the wire.
    directive.serial = int.from_bytes(hashlib.sha256(boot + content).digest()[:8], "big") or 1
    return directive


def _what(run: Run, institution: str, model: str) -> pb.Directive:
    if run.ended:
        final = run.final() if run.state.setup is not None else b""
        return pb.Directive(run_ended=pb.RunEnded(status=run.status, reason=run.reason, final=final, model=model))
    reason = run.excluded(institution)
    if reason:
        return pb.Directive(sit_out=pb.SitOut(reason=reason))
    if run.attempt is None or institution not in run.enrolled:
        return _wait(ENROLMENT)
    return _in_attempt(run.attempt, institution)


def _in_attempt(attempt: Attempt, institution: str) -> pb.Directive:
    machine, phase = attempt.machine, attempt.machine.phase
    if institution in attempt.withdrawn:
        return _wait(phase.value)
    if phase is AggregatorPhase.KEYS:
        if institution not in machine.keys:
            return pb.Directive(make_keys=pb.MakeKeys(round_start=attempt.round_start, attempt=attempt.number))
    elif institution in machine.members:  # the shareholders, all the way through, whether or not they upload (rule 5)
        directive = _as_shareholder(attempt, institution)
        if directive is not None:
            return directive
    return _wait(phase.value)


def _as_shareholder(attempt: Attempt, institution: str) -> pb.Directive | None:
    machine = attempt.machine
    current = machine.current
    match machine.phase:
        case AggregatorPhase.REVEALS if institution not in machine.reveals:
            return pb.Directive(reveal_value=pb.RevealValue(keys=_keys(attempt)))
        case AggregatorPhase.SHARES if institution not in machine.shares:
            if not machine.reveals:
                return pb.Directive(deal_shares=pb.DealShares(keys=_keys(attempt)))
            reveals = [sum_pb.Reveal(sender=n, value=value) for n, value in sorted(machine.reveals.items())]
            return pb.Directive(deal_shares=pb.DealShares(reveals=reveals))
        case AggregatorPhase.UPLOADS if current.transcript:
            contribute = pb.Contribute(
                sum=current.name,
                cohort=sorted(machine.cohort),
                shares=[s.to_proto() for s in machine.shares_for(institution)],
                opened=attempt.opened,
            )
            if machine.encryption_key is not None:
                contribute.encryption_key.CopyFrom(machine.encryption_key.to_proto())
            return pb.Directive(contribute=contribute)
        case AggregatorPhase.SIGNATURES:
            return pb.Directive(sign_list=pb.SignList(list=current.payload))
        case AggregatorPhase.OPENINGS if attempt.asks(institution):
            # The first `threshold` that came: later ones decide nothing, and must not change the directive.
            decided = list(current.signatures.values())[: machine.attempt.threshold]
            signatures = [sum_pb.SignedMessage(signer=s.signer, signature=s.signature) for s in decided]
            return pb.Directive(open_shares=pb.OpenShares(list=current.payload, signatures=signatures))
    return None


def _keys(attempt: Attempt) -> list[sum_pb.SignedMessage]:
    keys = attempt.machine.keys
    return [keys[signer].to_proto() for signer in sorted(keys)]


def _wait(phase: str) -> pb.Directive:
    return pb.Directive(wait=pb.Wait(phase=phase))
