"""What an institution refuses of a coordinator that lies about what a round begins with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from federation.rounds import RoundError
from security.errors import ConsiliumError
from security.secure_sum.errors import StaleAttemptError, TranscriptError
from tests.coordinator.following import kind
from tests.institution_node.lied_to import VICTIM, ReachedError, edited, flipped, other_weights, refusal, started, until
from tests.small_federation import SmallFederation


@pytest.mark.parametrize("round_", [1, 2])
def test_another_model_than_the_seed_or_the_last_sum_gave_is_refused(round_: int) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, round_, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, other_weights(federation))), TranscriptError)


def test_another_optimiser_state_is_refused() -> None:
    federation = started(server_optimiser={"kind": "fedavgm"})
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)

    def change(start: round_pb2.RoundStart) -> None:
        del start.components[0].slots["momentum"]

    assert isinstance(refusal(federation, name, edited(honest, change)), RoundError)


def too_small(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] = 3  # α would be above 1


def zero(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] = 0


def without_me(start: round_pb2.RoundStart) -> None:
    del start.setup.institutions[VICTIM]


def other_schema(start: round_pb2.RoundStart) -> None:
    start.setup.schema = "0" * 64


@pytest.mark.parametrize("change", [too_small, zero, without_me, other_schema])
def test_another_setup_than_round_0_gave_is_refused_and_not_remembered(
    change: Callable[[round_pb2.RoundStart], None],
) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, change)), TranscriptError | RoundError)
    assert federation.memory(name).setup is None  # the true one is still taken
    later = pb.Directive()
    later.CopyFrom(honest)
    reply = federation.participants[name].session.handle(later)
    assert reply.message is not None
    assert reply.message.WhichOneof("message") == "keys"


def one_more(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] += 1  # as likely as the true one, and not what was settled


@pytest.mark.parametrize("change", [too_small, other_schema, one_more])
def test_a_setup_that_changes_later_is_refused(change: Callable[[round_pb2.RoundStart], None]) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 2, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, change)), TranscriptError)


@pytest.mark.parametrize(
    "figures",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"scores": 3, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": -1}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": NaN}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": "x"}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {}, "median_squared_overfitting": [1], "temperatures": {}}',
        b"[" * 100_000,
    ],
)
def test_figures_that_are_none_are_a_typed_refusal(figures: bytes) -> None:
    federation = _at_round_1()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)

    def change(start: round_pb2.RoundStart) -> None:
        start.figures = figures

    assert isinstance(refusal(federation, name, edited(honest, change)), RoundError)


_kept: list[SmallFederation] = []


def _at_round_1() -> SmallFederation:
    """One federation after round 0 for all the cases that leave it as it was."""
    if not _kept:
        _kept.append(started())
    return _kept[0]


def cut_weights(federation: SmallFederation) -> Callable[[round_pb2.RoundStart], None]:
    def change(start: round_pb2.RoundStart) -> None:
        start.components[0].weights = federation.coordinator.content.put(b"abc")

    return change


def test_content_of_another_size_is_a_typed_refusal() -> None:
    """A node that was away fetches w(t); three bytes are no model."""
    federation = started()
    name = federation.plan.roster[VICTIM]

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == name and federation.run.round == 1)

    found: list[pb.Directive] = []

    def stop(who: str, directive: pb.Directive) -> bool:
        if who == name and federation.run.round == 2 and kind(directive) == "make_keys":
            found.append(directive)
            raise ReachedError
        return acts(who, directive)

    with pytest.raises(ReachedError):
        federation.run_to_end(stop)
    assert isinstance(refusal(federation, name, edited(found[0], cut_weights(federation))), RoundError)


def test_two_institutions_shown_different_figures_open_nothing() -> None:
    """Half is shown other DGB figures: their masks cannot cancel, their keys do not fit, and nobody opens a sum."""
    federation = started(rounds=1)
    half = set(federation.plan.roster[:3])

    def lie(name: str, directive: pb.Directive) -> None:
        if name in half and kind(directive) == "make_keys" and federation.run.round == 1:
            start = round_pb2.RoundStart.FromString(directive.make_keys.round_start)
            start.figures = b'{"median_squared_overfitting": null, "scores": {"mrna": 1.0}, "temperatures": {}}'
            directive.make_keys.round_start = start.SerializeToString(deterministic=True)

    federation.lie = lie
    with pytest.raises(ConsiliumError) as refused:  # the coordinator's own courtesy check: another context
        federation.run_to_end(patience=20)
    assert refused.value.code == "wrong-context"
    assert federation.lies
    assert not [m for m in federation.sent if m.round == 1 and m.kind != "keys"]


def test_round_0_again_is_refused_for_ever() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    first = pb.Directive()
    first.CopyFrom(until(federation, 0, "make_keys", name))
    until(federation, 1, "make_keys", name)
    for attempt in (2, 7):
        first.make_keys.attempt = attempt
        assert isinstance(refusal(federation, name, first), StaleAttemptError)


def test_another_attempt_after_a_signed_list_is_refused() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    keys = until(federation, 1, "make_keys", name)
    until(federation, 1, "open_shares", name)
    keys.make_keys.attempt = 2
    assert isinstance(refusal(federation, name, keys), StaleAttemptError)


def test_a_model_that_was_left_does_not_come_back_under_a_later_number() -> None:
    """Round 7 with the model of round 1: two cohorts' sums from one model would differ by a few institutions."""
    federation = started(rounds=3)
    name = federation.plan.roster[VICTIM]
    old = until(federation, 1, "make_keys", name)
    until(federation, 3, "make_keys", name)

    def later(start: round_pb2.RoundStart) -> None:
        start.round = 7

    assert isinstance(refusal(federation, name, edited(old, later)), TranscriptError)


def test_whatever_is_broken_in_the_opening_of_a_round_is_a_typed_refusal() -> None:
    federation = started(rounds=1)
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)
    rng = np.random.default_rng(3)
    for _ in range(300):
        start = flipped(honest.make_keys.round_start, rng)
        reply = federation.participants[name].session.handle(
            pb.Directive(make_keys=pb.MakeKeys(round_start=start, attempt=1))
        )
        assert reply.message is not None  # a withdrawal; keys, where only what cannot be checked yet was changed
        assert reply.upload is None
    codes = {error.code for error in federation.told[name].refused}
    assert {"round", "transcript"} <= codes
