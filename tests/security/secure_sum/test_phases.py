"""Every step that the tables of `phases` do not allow raises and changes nothing; a repeat gives the same bytes.

The machines are stopped after each step, probed with everything that is out of phase, and then go on to the exact sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from security.errors import ConsiliumError
from security.secure_sum.errors import ContradictoryListError, MemberMisuseError, OutOfPhaseError
from security.secure_sum.messages import Signed
from security.secure_sum.phases import (
    AGGREGATOR,
    MEMBER,
    AggregatorPhase,
    AggregatorStep,
    MemberPhase,
    MemberStep,
)
from security.secure_sum.upload import ArrayWords
from tests.security.secure_sum.harness import NAMES, World, make_attempt
from tests.security.secure_sum.refusals import aggregator_state, member_state, refuses, refuses_call

pytestmark = pytest.mark.usefixtures("graph")

LATE_KEYS, LATE_SHARES, LATE_UPLOAD = "middle", "outer", "inner"
KEYED = tuple(n for n in NAMES if n != LATE_KEYS)
COHORT = tuple(n for n in KEYED if n != LATE_SHARES)
UPLOADERS = tuple(n for n in COHORT if n != LATE_UPLOAD)


def make() -> World:
    """Nine institutions, of which one is late at keys, one at shares, one at uploads."""
    return World(make_attempt(NAMES, threshold=6), seed=1)


def stages(world: World, opened: list[dict[str, bytes]]) -> Iterator[list[Signed]]:
    """Both machines step by step to the end of sum B; yields the relayed keys after every step."""
    yield []
    for name in KEYED:
        world.aggregator.take_keys(world[name].make_keys())
    yield []
    world.aggregator.close_keys()
    relayed = list(world.aggregator.keys.values())
    yield relayed
    world.reveal(relayed)
    yield relayed
    for name in COHORT:
        world.aggregator.take_shares(name, world.dealt(name, relayed).values())
    yield relayed
    world.aggregator.close_shares()
    world.accept()
    yield relayed
    for s in ("A", "B"):
        world.enter(s, COHORT)
        yield relayed
        for name in UPLOADERS:
            world.upload(s, name)
        yield relayed
        payload = world.aggregator.close_uploads()
        for name in COHORT:
            world.aggregator.take_signature(world[name].sign(payload))
        yield relayed
        world.aggregator.decide()
        for name in COHORT:
            world.aggregator.take_opening(world[name].open(list(world.aggregator.current.signatures.values())))
        yield relayed
        opened.append(world.finish_sum(s))
        yield relayed


def finish(world: World, steps: Iterator[list[Signed]], opened: list[dict[str, bytes]]) -> None:
    """The correct continuation still opens the exact sums."""
    for _ in steps:
        pass
    assert opened == [world.expected(s, UPLOADERS) for s in ("A", "B")]


STAGES = 16


def test_the_stages_visit_every_phase_of_both_machines() -> None:
    world = make()
    opened: list[dict[str, bytes]] = []
    seen = {(world["north"].phase, world.aggregator.phase) for _ in stages(world, opened)}
    drawn = world.attempt.sparse is not None
    assert {m for m, _ in seen} == set(MemberPhase) - {MemberPhase.CLOSED} - (
        set() if drawn else {MemberPhase.REVEALED}
    )
    assert {a for _, a in seen} == set(AggregatorPhase) - (set() if drawn else {AggregatorPhase.REVEALS})
    assert sum(1 for _ in stages(make(), [])) == STAGES


# -- member -----------------------------------------------------------------------------------------------------------


def fresh_member_steps(world: World, relayed: list[Signed]) -> dict[MemberStep, Callable[[], object]]:
    """Each step of `north`, with an input that it has not had before."""
    member = world["north"]
    fewer = [s for s in relayed if s.signer != "south"]
    cohort = sorted(set(COHORT) - {"south"})
    dealt = world.aggregator.shares
    shares = [dealt[n][member.name] for n in cohort if n in dealt and member.name in dealt[n]]
    current = member._current
    other = world.list_of(current.name if current else "A", set(COHORT) - {"east"}, {"east"})
    reveals = {n: v for n, v in world.aggregator.reveals.items() if n != "south"}
    drawn = world.attempt.sparse is not None
    return {
        MemberStep.REVEAL: lambda: member.reveal(fewer),
        MemberStep.DEAL: lambda: member.deal_around(reveals) if drawn else member.deal(fewer),
        MemberStep.ACCEPT: lambda: member.accept(cohort, shares),
        MemberStep.ENTER: lambda: member.enter("B", b"B"),
        MemberStep.MASK: lambda: member.mask({}),
        MemberStep.SIGN: lambda: member.sign(other),
        MemberStep.OPEN: lambda: member.open([]),
    }


@pytest.mark.parametrize("stage", range(STAGES))
def test_members_refuse_every_step_out_of_phase_and_go_on(stage: int) -> None:
    world = make()
    opened: list[dict[str, bytes]] = []
    steps = stages(world, opened)
    for _ in range(stage + 1):
        relayed = next(steps)
    member = world["north"]
    current = member._current
    for step, call in fresh_member_steps(world, relayed).items():
        if (member.phase, step) in MEMBER:
            continue
        if step is MemberStep.MASK and current is not None and current.upload is not None:
            continue  # a repeat, tested below
        if step is MemberStep.OPEN and member.phase is MemberPhase.OPENED:
            continue
        if step is MemberStep.ENTER and current is not None and current.name == "B":
            continue
        error = refuses_call(ConsiliumError, call, partial(member_state, member))
        assert isinstance(error, (MemberMisuseError, ContradictoryListError)), (member.phase, step)
    finish(world, steps, opened)


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_withdrawn_member_can_do_nothing_any_more(stage: int) -> None:
    world = make()
    steps = stages(world, [])
    for _ in range(stage + 1):
        relayed = next(steps)
    member = world["north"]
    calls = fresh_member_steps(world, relayed)
    payload = member._current.signed_payload if member._current is not None else None
    member.withdraw()
    member.withdraw()
    assert member.phase is MemberPhase.CLOSED
    calls[MemberStep.MAKE_KEYS] = member.make_keys
    calls[MemberStep.DEAL] = lambda: world.dealt("north", relayed)
    if payload is not None:
        calls[MemberStep.SIGN] = lambda: member.sign(payload)
    for call in calls.values():
        refuses_call(MemberMisuseError, call, partial(member_state, member))


def test_a_repeated_step_of_a_member_gives_the_same_bytes_in_every_later_phase() -> None:
    world = make()
    opened: list[dict[str, bytes]] = []
    said: dict[str, object] = {}
    for relayed in stages(world, opened):
        member = world["north"]
        if member.phase is MemberPhase.NEW:
            continue
        said.setdefault("keys", member.make_keys())
        assert said["keys"] == member.make_keys()
        if member.phase is MemberPhase.KEYED:
            continue
        if member.phase is MemberPhase.REVEALED:
            assert member.reveal(list(reversed(relayed))) == world.aggregator.reveals["north"]
            continue
        said.setdefault("deal", dict(world.dealt("north", relayed)))
        assert dict(world.dealt("north", list(reversed(relayed)))) == said["deal"]
        if member.phase is MemberPhase.ACCEPTED:
            member.accept(sorted(COHORT), world.aggregator.shares_for("north"))
        current = member._current
        if current is None:
            continue
        member.enter(current.name, current.name.encode())
        if current.upload is not None:
            again = member.mask(
                {p.name: ArrayWords(world.values["south", current.name, p.name]) for p in member.uploads}
            )
            assert again is current.upload, "another vector is never masked"
            assert b"".join(again.chunks()) == world.uploads[current.name, "north"]
        if current.signed is not None and current.signed_payload is not None:
            assert member.sign(current.signed_payload) == current.signed
        if current.opening is not None:
            assert member.open([]) == current.opening
    assert opened == [world.expected(s, UPLOADERS) for s in ("A", "B")]


def test_a_sum_that_lies_behind_is_never_entered_again() -> None:
    world = make()
    for _ in stages(world, []):
        pass
    refuses(MemberMisuseError, world["north"].enter, "A", b"A")
    refuses(MemberMisuseError, world["north"].enter, "C", b"C")


def test_a_member_that_missed_a_sum_takes_part_in_the_next() -> None:
    world = World(make_attempt()).ready()
    world.whole_sum("A", set(NAMES[:6]) - {"south"})
    assert world.whole_sum("B", NAMES[:6]) == world.expected("B", NAMES[:6])


# -- aggregator -------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(graph: str) -> dict[str, list[Signed]]:
    """Valid messages of a twin attempt (same seed, same keys, same transcripts), for phases that have not come yet."""
    world = make()
    found: dict[str, list[Signed]] = {}
    found["keys"] = [world[LATE_KEYS].make_keys()]
    for relayed in stages(world, []):
        current, member = world.aggregator.current, world[LATE_UPLOAD]
        if world.aggregator.phase is AggregatorPhase.SHARES and "shares" not in found:
            found["shares"] = list(world.dealt(LATE_SHARES, relayed).values())
        if world["north"].phase is MemberPhase.MASKED and current.name == "B":
            found["header"] = [world.mask("B", LATE_UPLOAD).header]
        if "north" in current.openings and current.name == "B":
            found["signature"], found["opening"] = [current.signatures["north"]], [current.openings["north"]]
        assert member.phase
    return found


@pytest.mark.parametrize("stage", range(STAGES))
def test_aggregators_refuse_every_step_out_of_phase_and_go_on(stage: int, said: dict[str, list[Signed]]) -> None:
    world = make()
    opened: list[dict[str, bytes]] = []
    steps = stages(world, opened)
    for _ in range(stage + 1):
        next(steps)
    machine = world.aggregator
    calls: dict[AggregatorStep, list[Callable[[], object]]] = {
        AggregatorStep.TAKE_KEYS: [lambda: machine.take_keys(*said["keys"])],
        AggregatorStep.CLOSE_KEYS: [machine.close_keys],
        AggregatorStep.ASK_REVEALS: [machine.close_keys],
        AggregatorStep.TAKE_REVEAL: [lambda: machine.take_reveal("south", b"anything")],
        AggregatorStep.CLOSE_REVEALS: [machine.close_reveals],
        AggregatorStep.TAKE_SHARES: [lambda: machine.take_shares(LATE_SHARES, said["shares"])],
        AggregatorStep.CLOSE_SHARES: [machine.close_shares],
        AggregatorStep.TAKE_UPLOAD: [
            lambda: machine.take_header(*said["header"]),
            lambda: machine.complete_upload("north"),
        ],
        AggregatorStep.CLOSE_UPLOADS: [machine.close_uploads],
        AggregatorStep.TAKE_SIGNATURE: [lambda: machine.take_signature(*said["signature"])],
        AggregatorStep.DECIDE: [machine.decide],
        AggregatorStep.TAKE_OPENING: [lambda: machine.take_opening(said["opening"][0])],
        AggregatorStep.CLOSE_SUM: [machine.close_sum],
    }
    assert set(calls) == set(AggregatorStep)
    for step, probes in calls.items():
        either = step in (AggregatorStep.CLOSE_KEYS, AggregatorStep.ASK_REVEALS)  # one or the other, by the graph
        if (machine.phase, step) not in AGGREGATOR and not (either and machine.phase is AggregatorPhase.KEYS):
            for probe in probes:
                refuses_call(OutOfPhaseError, probe, partial(aggregator_state, machine))
    if machine.phase is not AggregatorPhase.UPLOADS:
        refuses(OutOfPhaseError, machine.begin_sum, b"x")
    if machine.phase is not AggregatorPhase.OPENINGS:
        refuses(OutOfPhaseError, machine.unmask)
    finish(world, steps, opened)


def test_an_upload_before_its_sum_has_begun_is_early_and_nobody_is_blamed() -> None:
    world = World(make_attempt()).ready()
    world["north"].enter("A", b"A")
    header = world.mask("A", "north").header
    error = refuses(OutOfPhaseError, world.aggregator.take_header, header)
    assert error.culprits == ()
    world["north"].withdraw()


def test_messages_delivered_again_in_any_later_phase_change_nothing() -> None:
    world = make()
    opened: list[dict[str, bytes]] = []
    heard: list[Callable[[], object]] = []
    machine = world.aggregator
    for _ in stages(world, opened):
        for again in heard:
            before = aggregator_state(machine)
            with suppress(OutOfPhaseError):
                again()
            assert aggregator_state(machine) == before
        current = machine.current
        heard = [partial(machine.take_keys, s) for s in machine.keys.values()]
        heard += [partial(machine.take_reveal, n, v) for n, v in machine.reveals.items()]
        heard += [partial(machine.take_shares, n, list(m.values())) for n, m in machine.shares.items()]
        heard += [partial(machine.take_header, s) for s in current.headers.values()]
        heard += [partial(machine.complete_upload, n) for n in current.completed]
        if current.name == "B" or not current.completed:
            heard += [partial(machine.take_signature, s) for s in current.signatures.values()]
            heard += [partial(machine.take_opening, s) for s in current.openings.values()]
    assert opened == [world.expected(s, UPLOADERS) for s in ("A", "B")]


@pytest.mark.parametrize("phase", list(MemberPhase))
def test_every_phase_can_be_left_by_withdrawing(phase: MemberPhase) -> None:
    assert MEMBER[phase, MemberStep.WITHDRAW] is MemberPhase.CLOSED
