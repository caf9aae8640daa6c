"""Whole runs whose sums are encrypted: the same model bytes as under masks, whoever drops out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from consilium.v1 import service_pb2 as pb

from federation.rounds import SETUP_SUMS, TRAINING_SUMS
from federation.vectors import UnknownContentError
from security.ckks.encoding import FRAME_BYTES
from security.secure_sum.phases import AggregatorPhase
from tests.small_federation import SmallFederation, finished, small_plan

EVERY_SUM = (*SETUP_SUMS, *TRAINING_SUMS)


def federation_of(*encrypted: str, **changes: object) -> SmallFederation:
    settings = {"ckks": encrypted, "coordinator_colludes": not encrypted}
    federation = SmallFederation(small_plan(7, rounds=2, secure_sum=settings, **changes))
    federation.enrol()
    return federation


def stands_at(federation: SmallFederation, phase: AggregatorPhase) -> bool:
    """Whether the run is in this phase of round 1's sum B."""
    attempt = federation.run.attempt
    if attempt is None or federation.run.round != 1:
        return False
    return attempt.machine.current.name == "statistics" and attempt.machine.phase is phase


def weights(federation: SmallFederation) -> dict[str, str]:
    return {name: state.weights for name, state in federation.run.state.components.items()}


@pytest.fixture(scope="module")
def masked() -> SmallFederation:
    return finished(small_plan(7, rounds=2))


@pytest.mark.parametrize("encrypted", [("statistics",), ("weights", "updates"), EVERY_SUM], ids=["B", "some", "all"])
def test_the_model_is_that_of_masks_bit_for_bit(masked: SmallFederation, encrypted: tuple[str, ...]) -> None:
    federation = federation_of(*encrypted)
    assert federation.run_to_end() == "finished"
    assert weights(federation) == weights(masked)
    assert federation.run.state.blending == masked.run.state.blending
    assert not any(told.refused for told in federation.told.values())


def test_ciphertexts_travel_for_encrypted_sums_only_and_two_institutions_decrypt() -> None:
    federation = federation_of("statistics")
    assert federation.run_to_end() == "finished"
    sizes = {len(m.data) for m in federation.sent if m.kind == "upload" and m.round == 1}
    assert {size for size in sizes if size >= FRAME_BYTES} == {size for size in sizes if size % FRAME_BYTES == 0}
    dealt = [m for m in federation.sent if m.kind == "shares" and m.round == 1]
    makers = [m.institution for m in dealt if pb.SubmitRequest.FromString(m.data).shares.HasField("encryption_key")]
    assert makers == [federation.plan.roster[0]]
    openings = [m.institution for m in federation.sent if m.kind == "opening" and m.round == 1]
    assert len(openings) == len(federation.plan.roster) + 2  # shares of sum A by all, sum B by two


Absent = Callable[[SmallFederation, str, str, AggregatorPhase], bool]


def _of(number: int, phase: AggregatorPhase, sum_name: str = "statistics") -> Absent:
    """The institution of this number is away in one phase of one sum of round 1."""

    def absent(federation: SmallFederation, name: str, current: str, now: AggregatorPhase) -> bool:
        return name == federation.plan.roster[number] and current == sum_name and now is phase

    return absent


@pytest.mark.parametrize(
    ("absent", "counted"),
    [
        (_of(4, AggregatorPhase.UPLOADS), 6),
        (_of(0, AggregatorPhase.UPLOADS), 6),
        (_of(0, AggregatorPhase.SIGNATURES), 7),
        (_of(0, AggregatorPhase.OPENINGS), 7),
        (_of(5, AggregatorPhase.OPENINGS), 7),
    ],
    ids=["uploader", "key-maker-uploading", "key-maker-signing", "decryptor", "one-who-is-not-asked"],
)
def test_a_dropout_at_any_phase_costs_its_own_vector_at_most(absent: Absent, counted: int) -> None:
    federation = federation_of("statistics")

    def acts(name: str, directive: pb.Directive) -> bool:
        attempt = federation.run.attempt
        if attempt is None or federation.run.round != 1:
            return True
        return not absent(federation, name, attempt.machine.current.name, attempt.machine.phase)

    alive: list[int] = []

    def look() -> None:
        attempt = federation.run.attempt
        if attempt is not None and federation.run.round == 1 and attempt.machine.current.name == "statistics":
            alive.append(len(attempt.machine.current.alive))

    assert federation.run_to_end(acts, after=look) == "finished"
    assert max(alive) == counted
    assert '"blending"' in federation.run.records()[1]


def test_where_the_key_s_maker_vanishes_before_it_deals_the_next_attempt_goes_on() -> None:
    federation = federation_of("statistics")
    first = federation.plan.roster[0]

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name == first and federation.run.round == 1 and directive.HasField("deal_shares"))

    assert federation.run_to_end(acts) == "finished"
    assert {m.attempt for m in federation.sent if m.round == 1} == {1, 2}
    dealt = [m for m in federation.sent if (m.kind, m.round, m.attempt) == ("shares", 1, 2)]
    makers = [m.institution for m in dealt if pb.SubmitRequest.FromString(m.data).shares.HasField("encryption_key")]
    assert makers == [federation.plan.roster[1]]


def test_where_one_holder_of_the_key_is_left_sum_a_stands_and_its_losses_are_left_out() -> None:
    federation = federation_of("statistics")
    n, t = len(federation.plan.roster), federation.plan.secure_sum.threshold
    away = federation.plan.roster[: n - t + 1]

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name in away and federation.run.round == 1 and directive.HasField("open_shares"))

    def only_b(name: str, directive: pb.Directive) -> bool:
        attempt = federation.run.attempt
        return attempt is None or attempt.machine.current.name != "statistics" or acts(name, directive)

    assert federation.run_to_end(only_b) == "finished"
    assert '"blending"' not in federation.run.records()[1]
    assert '"blending"' in federation.run.records()[2]


@pytest.mark.parametrize("phase", [AggregatorPhase.SIGNATURES, AggregatorPhase.OPENINGS])
def test_a_coordinator_restarted_in_an_encrypted_sum_resumes_it(
    masked: SmallFederation, phase: AggregatorPhase
) -> None:
    federation = federation_of("statistics")
    restarted: list[bool] = []

    def after() -> None:
        if not restarted and stands_at(federation, phase):
            restarted.append(True)
            federation.coordinator.restart()

    assert federation.run_to_end(after=after) == "finished"
    assert restarted
    if phase is AggregatorPhase.OPENINGS:  # the list is durable: nothing is lost
        assert weights(federation) == weights(masked)
        assert '"blending"' in federation.run.records()[1]


def test_a_node_restarted_before_it_decrypts_withdraws_and_two_others_do() -> None:
    federation = federation_of("statistics")
    first = federation.plan.roster[0]
    restarted: list[bool] = []

    def after() -> None:
        if not restarted and stands_at(federation, AggregatorPhase.OPENINGS):
            restarted.append(True)
            federation.start(first)

    assert federation.run_to_end(after=after) == "finished"
    assert (first, 1, "withdrawn") in federation.withdrawals()
    assert '"blending"' in federation.run.records()[1]
    opened = Counter(m.institution for m in federation.sent if (m.kind, m.round) == ("opening", 1))
    assert sorted(opened.values()) == [1] * 5 + [2] * 2
    assert opened[first] == 1  # shares of sum A


def test_only_who_is_asked_to_decrypt_may_fetch_an_upload() -> None:
    federation = federation_of("statistics")
    seen: dict[int, set[str]] = {}

    def after() -> None:
        attempt = federation.run.attempt
        if attempt is None or not (shown := attempt.machine.shown()):
            return
        digest = next(iter(shown))
        for name in federation.plan.roster:
            try:
                federation.participants[name].link.download(federation.run.id, digest)
            except UnknownContentError:
                continue
            seen.setdefault(federation.run.round, set()).add(name)

    assert federation.run_to_end(after=after) == "finished"
    first = federation.plan.roster[0]
    assert set(seen) == {1, 2}
    assert all(first in names and len(names) == 2 for names in seen.values())
