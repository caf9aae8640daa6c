"""What a refusal must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from security.errors import ConsiliumError
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.member import Member


def member_state(member: Member) -> tuple[Any, ...]:
    """Everything of a member that a refused step must not change."""
    secrets, current = member._secrets, member._current
    return (
        member.phase,
        member.cohort,
        member.complaints,
        member.complaint,
        member._own_keys,
        None if member._meeting is None else (dict(member._meeting.keys), member._meeting.agreed, id(member._meeting)),
        dict(member._dealt),
        {q: list(c) for q, c in member._opened_cohorts.items()},
        None if secrets is None else (id(secrets), {k: (v.seed, v.mask_key) for k, v in secrets.held.items()}),
        None
        if current is None
        else (
            current.name,
            current.transcript,
            id(current.upload),
            current.signed_payload,
            current.signed,
            current.opening,
        ),
    )


def aggregator_state(aggregator: Aggregator) -> tuple[Any, ...]:
    """Everything of an aggregator that a refused step must not change; `blamed` is a log and may grow."""
    c = aggregator.current
    return (
        aggregator.phase,
        dict(aggregator.keys),
        {k: dict(v) for k, v in aggregator.shares.items()},
        aggregator.cohort,
        tuple(aggregator.finished),
        dict(aggregator.reveals),
        None if aggregator.graph is None else aggregator.graph.circle(aggregator.graph.members).order,
        aggregator._keys_digest,
        aggregator._agreed,
        dict(aggregator._share_messages),
        (c.name, c.transcript, dict(c.headers), set(c.completed), c.payload, c.alive),
        (dict(c.signatures), dict(c.openings), dict(c.opened), dict(c.lacking)),
    )


def refuses(kind: type[ConsiliumError], step: Callable[..., object], *arguments: object) -> ConsiliumError:
    """Asserts that a machine's method raises `kind` and leaves the machine as it was. Returns the error."""
    machine = getattr(step, "__self__", None)
    state: Callable[[], tuple[Any, ...]] = tuple
    if isinstance(machine, Member):
        state = partial(member_state, machine)
    elif isinstance(machine, Aggregator):
        state = partial(aggregator_state, machine)
    return refuses_call(kind, partial(step, *arguments), state)


def refuses_call(
    kind: type[ConsiliumError], call: Callable[[], object], state: Callable[[], tuple[Any, ...]]
) -> ConsiliumError:
    """Asserts that `call` raises `kind` and leaves `state()` as it was. Returns the error."""
    before = state()
    try:
        call()
    except kind as error:
        assert state() == before, "a refused step changed the machine"
        return error
    raise AssertionError(f"not refused: expected {kind.__name__}")
