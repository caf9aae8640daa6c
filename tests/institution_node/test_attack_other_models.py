"""A coordinator that wants one institution to train on a model of its own, under the transcript of everybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from coordinator.folding import UpdateSettings, _advance
from federation import statistics
from federation.fixed_point import encode_update, weight_vector
from federation.losses import LossSums
from federation.proximity import ProximitySettings, component_dots, proximity
from federation.rounds import ComponentDigests, opened_by
from federation.settings import model_encoding, optimiser_settings, proximity_settings
from federation.setup import feature_encoding
from federation.thinning import Thinning
from institution_node.trainer import Trajectory
from institution_node.updates import as_array
from security.privacy.randomness import SeededRandomness
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Part
from tests.institution_node.lied_to import VICTIM, started, until
from tests.small_federation import RecordingRun, SmallFederation, finished, small_plan

Weights = dict[str, np.ndarray]


def copied(weights: Mapping[str, np.ndarray]) -> Weights:
    return {name: np.array(values) for name, values in weights.items()}


def at_round_1() -> tuple[SmallFederation, str, pb.Directive, Weights]:
    """The victim has joined attempt 1 of round 1; what it was shown, and w(1)."""
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = pb.Directive()
    honest.CopyFrom(until(federation, 1, "make_keys", name))
    reply = federation.participants[name].session.handle(honest)
    assert reply.message is not None
    assert reply.message.WhichOneof("message") == "keys"
    prepared = federation.works[name]._prepared
    assert prepared is not None
    return federation, name, honest, copied(prepared.model.weights)


def trained_on(work: RecordingRun) -> Weights:
    """What the institution trains on when it is asked for its update next."""
    prepared, state = work._prepared, work._round
    assert prepared is not None
    assert state is not None
    seen: list[Weights] = []
    train = prepared.trainer.train

    def watched(weights: Mapping[str, np.ndarray], *rest: Any) -> Trajectory[Any]:
        seen.append(copied(weights))
        return train(weights, *rest)

    prepared.trainer.train = watched  # type: ignore[method-assign, assignment]  # passes everything on
    which = state.sums[0]
    work.sources(which, tuple(p for p in which.parts if work._context.institution in p.contributors))
    assert len(seen) == 1
    return seen[0]


def test_an_opening_that_fails_half_way_does_not_leave_its_model_to_the_round_before() -> None:
    """Round 2 is opened with chosen weights, the last of them of a wrong size, and then round 1 goes on."""
    federation, name, honest, true = at_round_1()
    session, work = federation.participants[name].session, federation.works[name]
    evil = pb.Directive()
    evil.CopyFrom(honest)
    start = round_pb2.RoundStart.FromString(evil.make_keys.round_start)
    start.round = 2
    prepared = work._prepared
    assert prepared is not None
    last = prepared.model.components[-1]
    for component in start.components:
        if component.component in true:
            chosen = np.full(true[component.component].size, 0.123, np.float32).tobytes()
            component.weights = federation.coordinator.content.put(b"abc" if component.component == last else chosen)
    evil.make_keys.round_start = start.SerializeToString(deterministic=True)
    refused = session.handle(evil)
    assert refused.message is not None
    assert refused.message.WhichOneof("message") == "withdrawal"

    honest.make_keys.attempt = 2
    joined = session.handle(honest)
    assert joined.message is not None
    assert joined.message.WhichOneof("message") == "keys"
    found = trained_on(work)
    assert all(np.array_equal(found[component], true[component]) for component in true)


def invented_sum(
    federation: SmallFederation, work: RecordingRun, honest: pb.Directive, cohort: list[str], step: float = 0.05
) -> bytes:
    """An opened sum of `updates` that nobody uploaded for and nobody signed, with the weights that follow from it."""
    assert work._round is not None
    plan, content = federation.plan, federation.coordinator.content
    start = round_pb2.RoundStart.FromString(honest.make_keys.round_start)
    states = ComponentDigests.all_from(start.components)
    opened = round_pb2.OpenedSum(sum="updates")
    for part in work._round.sums[0].parts:
        encoding = model_encoding(plan, len(part.contributors))
        size = part.length - encoding.weight_words
        words = np.empty(part.length, encoding.word_type)
        encode_update(np.full(size, step, np.float32), 1.0, encoding, words[:size])
        words[size:] = weight_vector(1.0, encoding)
        digest = content.put(words.tobytes())
        made = next_weights(federation, digest, states[part.name], part.name, len(part.contributors))
        opened.parts.add(part=part.name, words=digest)
        opened.components.add(component=part.name, weights=made.weights, slots=dict(made.slots))
    member = federation.participants[work._context.institution].session._member
    assert member is not None
    listed = SurvivorList(
        member.attempt.context, "updates", bytes(32), tuple(sorted(cohort)), (), tuple(bytes(64) for _ in cohort)
    )
    opened.list = listed.encode()
    return opened.SerializeToString(deterministic=True)


def next_weights(
    federation: SmallFederation, words: str, current: ComponentDigests, name: str, contributors: int
) -> ComponentDigests:
    encoding = model_encoding(federation.plan, contributors)
    optimiser = optimiser_settings(federation.plan)
    settings = UpdateSettings({name: encoding}, lambda _, parameters: Thinning(parameters), optimiser)
    return _advance(federation.run.content, name, words, current, settings)[0]


def test_an_opened_sum_that_nobody_signed_does_not_move_what_the_round_trains_on() -> None:
    """Shown in attempt 1, before the institution has trained; in attempt 2 it is asked for its update."""
    federation, name, honest, true = at_round_1()
    session, work = federation.participants[name].session, federation.works[name]
    lie = pb.Directive()
    lie.CopyFrom(until(federation, 1, "contribute", name))
    lie.contribute.opened.append(invented_sum(federation, work, honest, list(lie.contribute.cohort)))
    lie.contribute.sum = "statistics"
    session.handle(lie)

    honest.make_keys.attempt = 2
    joined = session.handle(honest)
    assert joined.message is not None
    assert joined.message.WhichOneof("message") == "keys"
    found = trained_on(work)
    assert all(np.array_equal(found[component], true[component]) for component in true)


def shown(federation: SmallFederation, name: str, directive: pb.Directive, opened: bytes) -> pb.Directive:
    """What `name` is asked for next if this sum of updates is said to be open."""
    lie = pb.Directive()
    lie.CopyFrom(directive)
    lie.contribute.opened.append(opened)
    lie.contribute.sum = "statistics"
    return lie


def own_part(work: RecordingRun, which: int) -> tuple[Part, ...]:
    state = work._round
    assert state is not None
    return tuple(p for p in state.sums[which].parts if work._context.institution in p.contributors)


def losses_here(work: RecordingRun, weights: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Training losses by subset, as the institution computes them itself."""
    assert work._prepared is not None
    return {s: found.training for s, found in work._prepared.trainer.evaluate(weights).losses.items()}


def sent(work: RecordingRun, subset: str) -> LossSums:
    """What the institution would mask of a subset's losses, read."""
    assert work._round is not None
    which = work._round.sums[1]
    part = which.part(f"losses/{subset}")
    words = work.sources(which, own_part(work, 1))[part.name]
    found = np.empty(part.length, np.uint64)
    words.fill(0, found)
    plan = work._context.plan
    how = statistics.loss_encoding(len(part.contributors), proximity_settings(plan).largest, plan.proximity.loss_max)
    return statistics.LossRow.from_vector(statistics.decode(found, how)).sums


def invented_holders(federation: SmallFederation, work: RecordingRun, cohort: list[str], holders: int) -> bytes:
    """An opened sum of `holders` that nobody signed: so many institutions have each column."""
    member = federation.participants[work._context.institution].session._member
    assert work._round is not None
    assert member is not None
    which = work._round.sums[0]
    opened = round_pb2.OpenedSum(sum=which.name)
    for part in which.parts:
        how = feature_encoding(federation.plan, "holders", part.name.removeprefix("features/"), len(part.contributors))
        words = statistics.encode(np.ones(part.length), how) * np.uint64(holders)
        opened.parts.add(part=part.name, words=federation.coordinator.content.put(words.tobytes()))
    proofs = tuple(bytes(64) for _ in cohort)
    opened.list = SurvivorList(member.attempt.context, which.name, bytes(32), tuple(cohort), (), proofs).encode()
    return opened.SerializeToString(deterministic=True)


def test_columns_that_one_attempt_says_nobody_has_are_counted_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """In attempt 1 of round 0 all institutions but one are shown that nobody has any column. In attempt 2 all are shown
    the same: did they send the zeros of attempt 1 again, the sum would be the one's own counts, means and squares."""
    # A coordinator that lies serves what it likes.
    monkeypatch.setattr("studies.memory_coordinator.open_published", lambda run, _, digest: run.content.open(digest))
    federation = started(rounds=1)
    name = federation.plan.roster[VICTIM]
    session, work = federation.participants[name].session, federation.works[name]
    keys = pb.Directive()
    keys.CopyFrom(until(federation, 0, "make_keys", name))
    ask = until(federation, 0, "contribute", name)
    cohort = sorted(ask.contribute.cohort)
    assert session.handle(ask).upload is not None
    lie = shown(federation, name, ask, invented_holders(federation, work, cohort, 0))
    lie.contribute.sum = "counts"
    assert session.handle(lie).upload is not None

    keys.make_keys.attempt = 2
    joined = session.handle(keys)
    assert joined.message is not None
    assert joined.message.WhichOneof("message") == "keys"
    assert work._round is not None
    holders, counts = work._round.sums[:2]
    work.sources(holders, own_part(work, 0))
    work.take_opened(holders, *opened_by(invented_holders(federation, work, cohort, len(cohort))))
    for part in own_part(work, 1):
        found = np.empty(part.length, np.uint64)
        work.sources(counts, own_part(work, 1))[part.name].fill(0, found)
        assert np.count_nonzero(found) > 1  # more than the number of patients alone


def test_losses_at_a_model_of_one_attempt_are_not_sent_under_the_transcript_of_another() -> None:
    """In attempt 1 each institution is shown a sum of its own that nobody signed: all but one a model whose losses are
    known beforehand. In attempt 2 all are shown the same; what they send must be of that."""
    federation = started(rounds=1, proximity={"kind": "size"})
    name = federation.plan.roster[VICTIM]
    session, work = federation.participants[name].session, federation.works[name]
    keys = pb.Directive()
    keys.CopyFrom(until(federation, 1, "make_keys", name))
    ask = until(federation, 1, "contribute", name)
    cohort = list(ask.contribute.cohort)
    assert session.handle(ask).upload is not None
    lie = invented_sum(federation, work, keys, cohort, 0.07)
    assert session.handle(shown(federation, name, ask, lie)).upload is not None

    keys.make_keys.attempt = 2
    joined = session.handle(keys)
    assert joined.message is not None
    assert joined.message.WhichOneof("message") == "keys"
    assert work._round is not None
    updates = work._round.sums[0]
    work.sources(updates, own_part(work, 0))
    work.take_opened(updates, *opened_by(invented_sum(federation, work, keys, cohort)))
    assert work._prepared is not None
    true = losses_here(work, work._prepared.weights())
    for subset, loss in true.items():
        sums = sent(work, subset)
        assert abs(sums.training / sums.weight - loss) < 1e-5


def test_losses_at_a_model_of_its_own_are_not_what_the_next_change_is_counted_from() -> None:
    """Σp·(L − ΔL) over institutions whose last losses are known but for one is that one's. The lie is shown in round 2,
    which is burnt; round 4 is honest."""
    federation = started(rounds=4, proximity={"kind": "size"})
    name = federation.plan.roster[VICTIM]
    session, work = federation.participants[name].session, federation.works[name]
    keys = pb.Directive()
    keys.CopyFrom(until(federation, 2, "make_keys", name))
    ask = until(federation, 2, "contribute", name)
    cohort = list(ask.contribute.cohort)
    assert work._prepared is not None
    before = losses_here(work, copied(work._prepared.weights()))
    assert session.handle(ask).upload is not None
    lie = invented_sum(federation, work, keys, cohort, 0.07)
    assert session.handle(shown(federation, name, ask, lie)).upload is not None

    start = round_pb2.RoundStart.FromString(keys.make_keys.round_start)
    start.round = 4
    keys.make_keys.round_start = start.SerializeToString(deterministic=True)
    joined = session.handle(keys)
    assert joined.message is not None
    assert joined.message.WhichOneof("message") == "keys"
    assert work._round is not None
    updates = work._round.sums[0]
    work.sources(updates, own_part(work, 0))
    work.take_opened(updates, *opened_by(invented_sum(federation, work, keys, cohort)))
    for subset, loss in before.items():
        sums = sent(work, subset)
        assert abs((sums.training - sums.training_delta) / sums.weight - loss) < 1e-5


def preferred(federation: SmallFederation, kind: Literal["cosine", "inner"]) -> list[str]:
    """Whose losses for `image` weigh more than a hundredth of the most, where the coordinator says that the encoders
    went the way that they went, but backwards for those modalities that others have beside `image`."""
    signs = {"encoder/image": 1.0, "encoder/clinical": -10.0, "encoder/mrna": -10.0}
    sums: dict[str, np.ndarray] = {}
    sent = {name: federation.recorded[name][1, "updates"] for name in federation.plan.roster}
    for kept in sent.values():
        for name, alpha in kept.alphas.items():
            sums[name] = sums.get(name, np.float32(0.0)) + np.float32(alpha) * kept.updates[name]
    weights: dict[str, float] = {}
    for institution, kept in sent.items():
        if "classifier/image" in kept.alphas:
            told = {name: np.float32(signs.get(name, 0.0)) * sums[name] for name in kept.alphas}
            dots = {name: component_dots(kept.updates[name], told[name]) for name in kept.alphas}
            subset = ("encoder/image", "classifier/image")
            weights[institution] = proximity(ProximitySettings(kind), dots, kept.alphas, subset, 0.0)
    return [institution for institution, p in weights.items() if p > max(weights.values()) / 100]


def test_an_invented_sum_leaves_nobody_s_losses_alone_but_with_the_paper_s_proximity() -> None:
    """docs/threat-model.md, "The opened sum is the coordinator's word"."""
    federation = finished(small_plan(9, rounds=1))
    holders = [n for n in federation.plan.roster if "image" in federation.plan.institution(n).modalities]
    assert preferred(federation, "cosine") == holders
    assert preferred(federation, "inner") == ["lusc-3"]  # the only one with images alone


def test_who_still_moves_an_encoder_where_a_coordinator_sets_the_shared_classifiers_to_zero() -> None:
    """docs/threat-model.md, "A model that silences most institutions": those whose classifier it does not have."""
    federation = finished(small_plan(9, rounds=1))
    moving: list[str] = []
    for name, work in federation.works.items():
        prepared = work._prepared
        assert prepared is not None
        weights = copied(prepared.weights())
        for component in weights:
            if component.startswith("classifier/") and component in prepared.shared:
                weights[component][:] = 0
        updates = prepared.trainer.train(weights, {}, 0.01, SeededRandomness(1, name)).checked(weights)
        if "encoder/image" in updates and np.any(as_array(updates["encoder/image"])):
            moving.append(name)
    assert moving == ["brca-2", "lusc-2"]
