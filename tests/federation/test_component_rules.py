"""What is sent of a component, and when: frozen and seldom summed ones, exact, private and for fewer bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from consilium.v1 import service_pb2

from federation import plan_check
from federation.plan import ComponentRule, PlanError
from federation.settings import model_encoding, thinning
from federation.thinning import BLOCK, RUN
from studies.methods import changed
from tests.federation.plaintext_rounds import check_model
from tests.plans import example_plan
from tests.small_federation import SmallFederation, finished, small_plan

RULES = (
    ComponentRule(name="encoder/image", every=0),
    ComponentRule(name="encoder/mrna", every=2),
    ComponentRule(name="classifier/mrna", every=2),
)
MRNA_ONLY = ("lihc-1", "c4-1")


def uploads(federation: SmallFederation, round_: int) -> dict[str, frozenset[str]]:
    """Institution to the components that it sent in a round."""
    return {
        institution: frozenset(kept[round_, "updates"].words)
        for institution, kept in federation.recorded.items()
        if (round_, "updates") in kept
    }


def test_due_rounds() -> None:
    def due(every: int) -> list[int]:
        return [t for t in range(1, 12) if ComponentRule(name="encoder/mrna", every=every).due(t)]

    assert due(0) == []
    assert due(1) == list(range(1, 12))
    assert due(5) == [1, 6, 11]


@pytest.mark.parametrize("half_words", [False, True])
def test_seldom_summed_and_frozen_components_are_exact_and_move_in_their_rounds_only(half_words: bool) -> None:
    plan = small_plan(
        7, rounds=4, components=RULES, secure_sum={"half_words": half_words}, server_optimiser={"kind": "fedadam"}
    )
    federation = SmallFederation(plan)
    federation.enrol()
    seen: list[dict[str, str]] = []

    def acts(name: str, directive: service_pb2.Directive) -> bool:
        number = federation.run.round
        if number > len(seen) and federation.run.state.components:
            seen.append({n: c.weights for n, c in federation.run.state.components.items()})
        return True

    assert federation.run_to_end(acts) == "finished"
    seen.append({n: c.weights for n, c in federation.run.state.components.items()})
    check_model(federation, 4)
    moved = [{n for n in seen[0] if before[n] != after[n]} for before, after in pairwise(seen)]
    everything = set(seen[0])
    assert moved[0] == moved[2] == everything - {"encoder/image"}
    assert moved[1] == moved[3] == everything - {"encoder/image", "encoder/mrna", "classifier/mrna"}
    # What stays is w(0) of the plan's seed, at the coordinator and at every institution.
    prepared = next(w._prepared for w in federation.works.values() if w._prepared is not None)
    start = prepared.layout.components["encoder/image"].initial(plan.seed)
    assert np.array_equal(federation.weights("encoder/image"), start)
    assert np.array_equal(prepared.weights()["encoder/image"], start)


def test_only_what_is_due_is_sent() -> None:
    federation = finished(small_plan(7, rounds=2, components=RULES))
    first, second = uploads(federation, 1), uploads(federation, 2)
    summed = set(federation.run.state.components)
    for institution in federation.plan.roster:
        owned = summed & set(federation.run.cohorts.ownership.owned(institution)) - {"encoder/image"}
        assert first[institution] == owned
        assert second.get(institution, frozenset()) == owned - {"encoder/mrna", "classifier/mrna"}
    wide = model_encoding(federation.plan, 7)
    for institution in federation.plan.roster:
        sent = {len(s.data) for s in federation.sent if (s.institution, s.round, s.kind) == (institution, 2, "upload")}
        sizes = [federation.weights(n).size + wide.weight_words for n in second.get(institution, ())]
        assert not sizes or 4 * sum(sizes) in sent


def test_who_has_nothing_to_train_takes_part_all_the_same_and_trains_nothing() -> None:
    """An institution that holds only what is held fixed: it signs, sends its metrics, and changes no model."""
    federation = finished(small_plan(7, rounds=2, components=RULES))
    only = [i.name for i in federation.plan.institutions if i.modalities == ("mrna",)]
    assert only
    for name in only:
        assert len(federation.told[name].losses) == 1, "trained in round 1 alone"
        assert federation.told[name].refused == []
        assert (2, 1) in federation.told[name].joined
        assert any(s.startswith("metrics/") for s in federation.recorded[name][2, "statistics"].words)


def test_losses_of_a_subset_that_stands_still_are_not_summed_again() -> None:
    """They would be the same per institution in both rounds: over cohorts that differ by one, its losses (rule 9)."""
    federation = finished(small_plan(7, rounds=3, components=RULES))
    state, cohorts = federation.run.state, federation.run.cohorts
    sizes = {name: len(federation.weights(name)) for name in state.components}
    for number, expected in ((1, True), (2, False), (3, True)):
        names = {p.name for s in cohorts.training_sums(sizes, state.setup, number) for p in s.parts}
        assert ("losses/mrna" in names) is expected
        assert "losses/image" in names, "its head still moves"
        sent = {n for kept in federation.recorded.values() for n in kept[number, "statistics"].words}
        assert ("losses/mrna" in sent) is expected
    # A subset that never moves is never summed: its losses would be w(0)'s in every round.
    frozen = (ComponentRule(name="encoder/image", every=0), ComponentRule(name="classifier/image", every=0))
    other = finished(small_plan(7, rounds=2, components=frozen))
    assert not any("losses/image" in k.words for kept in other.recorded.values() for k in kept.values())


def test_any_dropout_leaves_the_due_components_exact() -> None:
    federation = SmallFederation(small_plan(7, rounds=3, components=RULES))
    federation.enrol()
    gone = federation.plan.roster[1]

    def acts(name: str, directive: service_pb2.Directive) -> bool:
        late = directive.WhichOneof("kind") == "contribute" and directive.contribute.sum == "updates"
        return not (late and federation.run.round == 2 and name == gone)

    assert federation.run_to_end(acts) == "finished"
    check_model(federation, 3)


# -- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"name": "encoder/genes"}], "there is no component 'encoder/genes'"),
        ([{"name": "encoder/mrna"}, {"name": "encoder/mrna", "every": 2}], "occurs twice"),
        ([{"name": "encoder/mrna", "every": 2_000_000}], "out of range"),
    ],
)
def test_wrong_rules_are_refused(rules: list[dict[str, Any]], said: str) -> None:
    plan = example_plan(components=tuple(ComponentRule(**rule) for rule in rules))
    with pytest.raises(PlanError, match=said):
        plan_check.check(plan)


def test_a_plan_with_rounds_in_which_nothing_is_summed_is_refused() -> None:
    plan = example_plan()
    shared = ["encoder/mrna", "encoder/image", "encoder/clinical"]
    shared += [f"classifier/{c}" for c in ("mrna", "image", "clinical", "mrna+image+clinical")]
    with pytest.raises(PlanError, match="no component is summed"):
        plan_check.check(example_plan(components=tuple(ComponentRule(name=n, every=3) for n in shared)))
    plan_check.check(example_plan(components=tuple(ComponentRule(name=n, every=3) for n in shared[1:])))
    assert plan.component("encoder/mrna").every == 1


def test_rules_travel_and_leave_other_plans_as_they_were() -> None:
    plan = example_plan(components=RULES)
    assert type(plan).from_bytes(plan.to_bytes()).components == RULES
    assert example_plan(components=()).to_bytes() == example_plan().to_bytes()


# -- thinning ---------------------------------------------------------------------------------------------------------

THINNED = (
    ComponentRule(name="encoder/mrna", fraction=0.2),
    ComponentRule(name="encoder/image", fraction=0.5, every=2),
    ComponentRule(name="classifier/mrna+image+clinical", fraction=0.1),
)


@pytest.mark.parametrize("half_words", [False, True])
@pytest.mark.parametrize("kind", ["fedavg", "fedyogi"])
def test_thinned_components_are_exact(half_words: bool, kind: str) -> None:
    federation = finished(
        small_plan(
            7,
            rounds=3,
            components=THINNED,
            secure_sum={"half_words": half_words},
            server_optimiser={"kind": kind, "learning_rate": 0.5},
        )
    )
    check_model(federation, 3)
    assert all(told.refused == [] for told in federation.told.values())


def test_thinning_across_blocks_is_exact() -> None:
    """Coordinator and nodes stream blocks of 65,536: here three, the last one neither full nor of whole runs."""
    plan = small_plan(7, rounds=2, components=THINNED, secure_sum={"half_words": True}, training={"local_steps": 1})
    wide = plan.modalities[0].model_copy(update={"hidden": (6001,)})
    federation = finished(changed(plan, {"modalities": (wide, *plan.modalities[1:])}))
    size = federation.weights("encoder/mrna").size
    assert size > 2 * BLOCK
    assert size % RUN
    check_model(federation, 2)


def test_a_thinned_component_moves_where_it_was_sent_and_costs_that_much() -> None:
    federation = finished(small_plan(7, rounds=1, components=THINNED))
    prepared = next(w._prepared for w in federation.works.values() if w._prepared is not None)
    for rule in THINNED:
        component = prepared.layout.components[rule.name]
        chosen = thinning(federation.plan, federation.run.id, 1, rule.name, component.size)
        moved = np.flatnonzero(federation.weights(rule.name) != component.initial(federation.plan.seed))
        assert 0 < len(moved) <= chosen.words < component.size
        assert set(moved) <= set(chosen.sent(0, component.size).tolist())
        for kept in federation.recorded.values():
            sent = kept[1, "updates"].words.get(rule.name)
            assert sent is None or len(sent) == chosen.words + 1


def test_proximity_of_a_thinned_component_is_of_what_was_sent() -> None:
    """⟨δ_i, δ_G⟩ and both norms over the chosen parameters alone: what was not sent says nothing about agreement."""
    federation = finished(small_plan(7, rounds=1, components=THINNED))
    prepared = next(w._prepared for w in federation.works.values() if w._prepared is not None)
    name = "encoder/mrna"
    start = prepared.layout.components[name].initial(federation.plan.seed)
    chosen = thinning(federation.plan, federation.run.id, 1, name, start.size).sent(0, start.size)
    mean = federation.weights(name).astype(np.float64)[chosen] - start.astype(np.float64)[chosen]  # FedAvg at η = 1
    for institution, work in federation.works.items():
        state = work._current().updates
        assert state is not None
        own = federation.recorded[institution][1, "updates"].updates[name].astype(np.float64)[chosen]
        dots = state.dots[name]
        assert dots.own == pytest.approx(own @ own, rel=1e-6)
        assert dots.total == pytest.approx(mean @ mean, rel=1e-3)
        assert dots.inner == pytest.approx(own @ mean, rel=1e-2, abs=1e-3 * np.sqrt(dots.own * dots.total))


def test_another_attempt_sends_the_same_parameters() -> None:
    """A second choice in one round would open more of one trajectory than a round may."""
    federation = finished(small_plan(7, rounds=1, components=THINNED))
    work = federation.works[federation.plan.roster[0]]
    (sum_a,) = [s for s in work._current().sums if s.name == "updates"]
    kept = federation.recorded[federation.plan.roster[0]][1, "updates"].words
    for part in sum_a.parts:
        words = np.empty(part.length, np.uint32)
        work.sources(sum_a, sum_a.parts)[part.name].fill(0, words)
        assert np.array_equal(words, kept[part.name])


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_is_above_zero_and_at_most_one(fraction: float) -> None:
    with pytest.raises(PlanError, match="out of range"):
        plan_check.check(example_plan(components=(ComponentRule(name="encoder/mrna", fraction=fraction),)))
