"""What an institution refuses of a coordinator that lies within a round: sums out of turn, other opened sums."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from federation.rounds import opened_by
from institution_node.link import ContentMismatchError
from institution_node.session import WithdrawnError
from security.errors import ConsiliumError
from tests.coordinator.following import place
from tests.institution_node.lied_to import VICTIM, ReachedError, flipped, refusal, started, until
from tests.small_federation import SmallFederation


def test_statistics_before_updates_are_refused() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "contribute", name)
    honest.contribute.sum = "statistics"
    assert isinstance(refusal(federation, name, honest), WithdrawnError)
    assert (1, "statistics") not in federation.recorded[name]


def at_statistics() -> tuple[SmallFederation, str, pb.Directive]:
    federation = started()
    name = federation.plan.roster[VICTIM]
    until(federation, 1, "contribute", name)

    found: list[pb.Directive] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and place(federation, directive) == (1, "statistics", "contribute"):
            found.append(directive)
            raise ReachedError
        return True

    with pytest.raises(ReachedError):
        federation.run_to_end(acts)
    return federation, name, found[0]


def changed_opened(directive: pb.Directive, change: Callable[[round_pb2.OpenedSum], None]) -> pb.Directive:
    opened = round_pb2.OpenedSum.FromString(directive.contribute.opened[0])
    change(opened)
    directive.contribute.opened[0] = opened.SerializeToString(deterministic=True)
    return directive


def other_words(opened: round_pb2.OpenedSum) -> None:
    opened.parts[0].words = opened.parts[1].words


def not_my_list(opened: round_pb2.OpenedSum) -> None:
    from consilium.v1 import secure_sum_pb2

    listed = secure_sum_pb2.SurvivorList.FromString(opened.list)
    listed.gone.append(listed.alive.pop())
    opened.list = listed.SerializeToString(deterministic=True)


def other_result(opened: round_pb2.OpenedSum) -> None:
    opened.components[0].weights = opened.components[1].weights


def result_missing(opened: round_pb2.OpenedSum) -> None:
    del opened.components[0]


def other_sum(opened: round_pb2.OpenedSum) -> None:
    opened.sum = "statistics"


def no_list(opened: round_pb2.OpenedSum) -> None:
    opened.list = b"\xff\xff"


@pytest.mark.parametrize("change", [other_words, not_my_list, other_result, result_missing, other_sum, no_list])
def test_a_changed_opened_sum_is_refused(change: Callable[[round_pb2.OpenedSum], None]) -> None:
    federation, name, honest = at_statistics()
    error = refusal(federation, name, changed_opened(honest, change))
    assert isinstance(error, ConsiliumError)
    assert (1, "statistics") not in federation.recorded[name]
    assert federation.memory(name).known_round == -1


def test_opened_sums_that_change_between_two_directives_are_refused() -> None:
    federation, name, honest = at_statistics()
    reply = federation.participants[name].session.handle(honest)
    assert reply.upload is not None
    lie = changed_opened(copy.deepcopy(honest), lambda opened: opened.parts.reverse())
    assert isinstance(refusal(federation, name, lie), WithdrawnError)


def test_whatever_is_broken_in_an_opened_sum_is_a_typed_refusal() -> None:
    federation, name, honest = at_statistics()
    rng = np.random.default_rng(4)
    work, refused = federation.works[name], 0
    for _ in range(300):
        try:
            message, listed = opened_by(flipped(honest.contribute.opened[0], rng))
            work.take_opened(federation.run.attempt.machine.attempt.sums[0], message, listed)
        except ConsiliumError:
            refused += 1
    assert refused > 200  # the others changed only the list, which the session holds against its signature


class Huge:
    """Content that is 300 MiB where some 3 KB were to be: of it, nothing may be taken."""

    length = 300 << 20

    def read_into(self, offset: int, out: memoryview) -> None:
        raise AssertionError("it was taken")

    def view(self) -> memoryview:
        raise AssertionError("it was taken")


@pytest.mark.parametrize("at", [(0, "counts", "contribute"), (1, "", "make_keys")], ids=["an opened sum", "the schema"])
def test_content_that_is_larger_than_the_plan_lets_it_be_is_refused_before_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, at: tuple[int, str, str]
) -> None:
    federation = started()
    name, store = federation.plan.roster[VICTIM], federation.coordinator.content
    found: list[pb.Directive] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and place(federation, directive) == at:
            found.append(directive)
            raise ReachedError
        return True

    with pytest.raises(ReachedError):
        federation.run_to_end(acts)
    if at[0]:
        swapped = round_pb2.RoundStart.FromString(found[0].make_keys.round_start).setup.schema
    else:
        swapped = opened_by(found[0].contribute.opened[0])[0].parts[0].words
    honest = store.open
    monkeypatch.setattr(store, "open", lambda digest: Huge() if digest == swapped else honest(digest))
    error = refusal(federation, name, found[0])
    assert isinstance(error, ContentMismatchError)
    assert "too large" in str(error)
