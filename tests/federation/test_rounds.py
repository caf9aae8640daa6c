"""A round is exact: what is published is the plaintext mean of the fixed-point vectors of whoever survived, bit for
bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from consilium.v1 import round_pb2, service_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation import names
from federation.plan_presets import PRESETS
from federation.settings import model_encoding
from federation.statistics import count_encoding, decode, loss_encoding
from tests.federation.plaintext_rounds import alive, check_model
from tests.small_federation import SmallFederation, finished, small_plan


def check_alphas(federation: SmallFederation) -> None:
    """α_i = ñ_i / N_c, and the totals are the sums of the noised counts."""
    run, roster = federation.run, federation.plan.roster
    counts = {i: federation.memory(i).noised_patients for i in roster}
    setup = run.state.setup
    for cohort_name, members in run.cohorts.patients.items():
        assert setup.patients[cohort_name] == sum(counts[i] for i in members if i in setup.institutions)
    for i in roster:
        for (_, sum_name), kept in federation.recorded[i].items():
            if sum_name == "updates":
                for name, alpha in kept.alphas.items():
                    cohort = run.cohorts.name_of(name, run.cohorts.shared[name].owners)
                    assert alpha == counts[i] / setup.patients[cohort]


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_published_model_and_optimiser_state_are_the_plaintext_ones(kind: str) -> None:
    federation = finished(small_plan(7, rounds=2, server_optimiser={"kind": kind, "learning_rate": 0.5}))
    check_model(federation, 2)
    check_alphas(federation)


def test_half_words_halve_the_bytes_and_leave_the_model_exact() -> None:
    """Against 32 bits: the same plaintext sum rule, half the bytes, a model that differs by the rounding alone."""
    settings_ = {"clip": 0.25}
    whole = finished(small_plan(7, rounds=1, secure_sum=settings_))
    half = finished(small_plan(7, rounds=1, secure_sum={**settings_, "half_words": True}))
    check_model(half, 1)
    step = 1 / model_encoding(half.plan, 7).scale
    sizes = {}
    for name in whole.run.state.components:
        ours, theirs = half.weights(name), whole.weights(name)
        assert not np.array_equal(ours, theirs)
        assert np.max(np.abs(ours - theirs)) < 7 * step
        sizes[name] = ours.size
    for federation, wide, weight_words in ((whole, 4, 1), (half, 2, 3)):
        for institution in federation.plan.roster:
            sent = {len(s.data) for s in federation.sent if (s.institution, s.kind) == (institution, "upload")}
            owned = federation.run.cohorts.ownership.owned(institution)
            assert sum(wide * (sizes[n] + weight_words) for n in owned if n in sizes) in sent


def test_another_attempt_masks_the_same_half_words() -> None:
    """What one upload rounded, any reading and any attempt of the round rounds alike (rule 8)."""
    federation = finished(small_plan(7, rounds=1, secure_sum={"half_words": True}))
    work = federation.works[federation.plan.roster[0]]
    (sum_a,) = [s for s in work._current().sums if s.name == "updates"]
    kept = federation.recorded[federation.plan.roster[0]][1, "updates"].words
    again = work.sources(sum_a, sum_a.parts)
    for part in sum_a.parts:
        words = np.empty(part.length, np.uint16)
        middle = part.length // 3
        again[part.name].fill(middle, words[middle:])
        again[part.name].fill(0, words[:middle])
        assert np.array_equal(words, kept[part.name]), part.name


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    gone=st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 6)), max_size=3, unique=True),
    half_words=st.booleans(),
)
def test_any_survivors_give_their_plaintext_mean(gone: list[tuple[int, int]], half_words: bool) -> None:
    """Up to two of seven may be gone in a round; what has fewer than three owners left stays as it was."""
    for round_ in (1, 2):
        if sum(r == round_ for r, _ in gone) > 2:
            gone = gone[:-1]
    federation = SmallFederation(small_plan(7, rounds=2, secure_sum={"half_words": half_words}))
    federation.enrol()
    roster = federation.plan.roster

    def acts(name: str, directive: service_pb2.Directive) -> bool:
        late = directive.WhichOneof("kind") == "contribute" and directive.contribute.sum == "updates"
        return not (late and (federation.run.round, roster.index(name)) in gone)

    assert federation.run_to_end(acts) == "finished"
    for round_ in (1, 2):
        assert set(alive(federation, round_, "updates")) == {i for k, i in enumerate(roster) if (round_, k) not in gone}
    check_model(federation, 2)


def test_what_one_institution_owns_alone_never_leaves_it() -> None:
    federation = finished(small_plan(9, rounds=2))
    run = federation.run
    private = {name for name, c in run.cohorts.ownership.components.items() if not c.shared}
    assert private == {"classifier/mrna+image", "classifier/image+clinical", "classifier/mrna+clinical"}
    assert not private & set(run.state.components)
    for name in private:
        (owner,) = run.cohorts.ownership.components[name].owners
        kept = federation.memory(owner).private[name]
        prepared = federation.works[owner]._prepared
        assert prepared is not None
        start = prepared.layout.components[name].initial(federation.plan.seed)
        deltas = [federation.recorded[owner][r, "updates"].updates[name] for r in (1, 2)]
        assert np.array_equal(kept, (start + deltas[0]) + deltas[1])
        assert not np.array_equal(kept, start)


def test_opened_losses_and_metrics_are_the_plaintext_sums() -> None:
    federation = finished(small_plan(7, rounds=2))
    record = json.loads(federation.run.records()[-1])
    survivors = alive(federation, 2, "statistics")
    state = federation.run.state
    sizes = {name: len(federation.weights(name)) for name in state.components}
    sums = federation.run.cohorts.training_sums(sizes, state.setup, 2)
    proximity = federation.plan.proximity
    for part in sums[1].parts:
        kind, _, name = part.name.partition("/")
        rows = [federation.recorded[i][2, "statistics"].words[part.name] for i in survivors if i in part.contributors]
        total = np.zeros(part.length, np.uint64)
        for row in rows:
            total += row
        if kind == "losses":
            p, t, v = decode(total, loss_encoding(len(part.contributors), 1.0, proximity.loss_max))[:3]
            assert record["blending"][name]["training_loss"] == pytest.approx(t / p, rel=1e-12)
            assert record["blending"][name]["validation_loss"] == pytest.approx(v / p, rel=1e-12)
            assert record["proximity"][name] == pytest.approx(p / len(rows), rel=1e-12)
        elif kind == "metrics":
            counts = np.rint(decode(total, count_encoding(len(part.contributors)))).astype(int)
            assert record["confusion"][name] == counts[:4].reshape(2, 2).tolist()
        else:
            groups = federation.run.cohorts.clip_groups(state.setup)
            for component, count in zip(groups[name], total, strict=True):
                assert record["clipped"][component] == int(count)
    held_out = sum(len(w._validation_rows) for w in federation.works.values())
    assert record["metrics"]["all"]["patients"] == held_out


def test_losses_are_what_the_recorder_heard_locally() -> None:
    """The weighted mean of every institution's own losses, with its own p_i, is the published one."""
    federation = finished(small_plan(7, rounds=1))
    record = json.loads(federation.run.records()[-1])
    for subset, figures in record["blending"].items():
        told = [t for t in federation.told.values() if any(s == subset for s, _ in t.near)]
        p = np.array([next(x for s, x in t.near if s == subset) for t in told])
        v = np.array([next(x for s, _, x in t.evaluated if s == subset) for t in told], float)
        assert len(told) >= 3
        assert figures["validation_loss"] == pytest.approx(float((p * v).sum() / p.sum()), abs=1e-9)


def preset(name: str) -> dict[str, Any]:
    return {section: dict(fields) for section, fields in PRESETS[name].items()} | {"preset": name}


@pytest.mark.parametrize("name", ["paper", "paper-code"])
def test_the_paper_presets_run_with_a_floor_of_one_on_public_data(name: str) -> None:
    fields = preset(name)
    plan = small_plan(
        6,
        rounds=3,
        secure_sum={"k_min": 1, "max_colluders": 0},
        features={"min_institutions": 1},
        **fields,
    )
    federation = finished(plan)
    check_model(federation, 3)
    assert not any(federation.memory(i).private for i in plan.roster)
    record = json.loads(federation.run.records()[-1])
    assert {"mrna", "mrna+image+clinical"} == set(record["blending"])  # whose combination it is, and nobody else's
    counts = {i: federation.memory(i).noised_patients for i in plan.roster}
    assert counts == {i: len(federation.works[i]._train_rows) for i in plan.roster}


@pytest.mark.parametrize("changes", [{"kind": "local"}, {"kind": "off"}], ids=str)
def test_blending_inside_each_institution_and_none_at_all(changes: dict[str, Any]) -> None:
    federation = finished(small_plan(7, rounds=4, blending=changes))
    check_model(federation, 4)
    last = {i: told.factors[-1] for i, told in federation.told.items()}
    multimodal = [i for i in last if len(names.modalities_of(federation.plan.combination(i))) > 1]
    if changes["kind"] == "off":
        assert all(set(factors.values()) == {1.0} for factors in last.values())
    else:
        settled = [tuple(last[i].values()) for i in multimodal]
        assert len(set(settled)) == len(multimodal)  # each by its own losses


@pytest.mark.parametrize("kind", ["inner", "size"])
def test_other_proximities_run(kind: str) -> None:
    federation = finished(small_plan(7, rounds=2, proximity={"kind": kind}))
    check_model(federation, 2)
    if kind == "size":
        setup = federation.run.state.setup
        for i, told in federation.told.items():
            for subset, p in told.near:
                cohort = federation.run.cohorts.name_of(
                    f"classifier/{subset}", federation.run.cohorts.ownership.subsets[subset]
                )
                assert p == federation.memory(i).noised_patients / setup.patients[cohort]


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not() -> None:
    plan = small_plan(7, rounds=2)
    one, two, other = finished(plan, seed=5), finished(plan, seed=5), finished(plan, seed=6)
    assert one.run.state.components == two.run.state.components
    assert one.run.state.figures() == two.run.state.figures()
    assert one.run.state.components != other.run.state.components
    assert one.run.records() == two.run.records()


def test_every_word_that_is_uploaded_is_masked() -> None:
    """One upload per institution and sum, of exactly the words' length, and none of the words as they were."""
    federation = finished(small_plan(7, rounds=1))
    for message in federation.sent:
        if message.kind != "upload":
            continue
        recorded = federation.recorded[message.institution]
        lengths = {
            sum_name: sum(w.nbytes for w in kept.words.values())
            for (round_, sum_name), kept in recorded.items()
            if round_ == message.round
        }
        assert len(message.data) in lengths.values()
        for kept in recorded.values():
            for words in kept.words.values():
                assert words.tobytes()[:64] not in message.data


def test_an_opening_of_a_round_is_of_this_run() -> None:
    from federation.rounds import FORMAT, RoundError, read_round_start

    run = bytes(32)
    good = round_pb2.RoundStart(format=FORMAT, run=run, round=0)
    assert read_round_start(good.SerializeToString(), run) == good
    for bad in (
        round_pb2.RoundStart(format=FORMAT, run=b"x" * 32, round=0),
        round_pb2.RoundStart(format=FORMAT + 1, run=run, round=0),
        round_pb2.RoundStart(format=FORMAT, run=run, round=1),
        round_pb2.RoundStart(format=FORMAT, run=run, round=0, setup=round_pb2.Setup()),
    ):
        with pytest.raises(RoundError):
            read_round_start(bad.SerializeToString(), run)
    with pytest.raises(RoundError):
        read_round_start(b"\xff\xff\xff", run)
