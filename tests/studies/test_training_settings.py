"""Each setting of the plan's local training, seen in what institutions put into a whole federation's sums; and the
privacy floor, where what one institution holds alone follows its own losses."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from federation.blending import BlendingState, LossSums, advance, step_weights
from federation.settings import blending_settings
from tests.federation.plaintext_rounds import check_model
from tests.small_federation import TRAINING, SmallFederation, finished, small_plan

Updates = dict[tuple[str, int, str], npt.NDArray[np.float32]]
OFF: dict[str, Any] = {"blending": {"kind": "off"}, "proximity": {"kind": "size"}}


def trained(rounds: int = 1, **training: Any) -> SmallFederation:
    """A run with these changes to the training, and every component stepped with η itself."""
    return finished(small_plan(7, rounds=rounds, training={**TRAINING, **training}, **OFF))


def updates(federation: SmallFederation) -> Updates:
    """δ of every institution, round and component, before the clip of the fixed point."""
    return {
        (name, number, component): delta
        for name, kept in federation.recorded.items()
        for (number, sum_name), encoded in kept.items()
        if sum_name == "updates"
        for component, delta in encoded.updates.items()
    }


def lengths(deltas: Updates, round_: int = 1) -> dict[str, float]:
    """L2 norm of each institution's whole update."""
    squares: dict[str, float] = {}
    for (name, number, _), delta in deltas.items():
        if number == round_:
            squares[name] = squares.get(name, 0.0) + float(np.square(delta, dtype=np.float64).sum())
    return {name: total**0.5 for name, total in squares.items()}


def same(one: Updates, two: Updates) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_every_local_optimiser_trains_a_federation(optimiser: str) -> None:
    federation = trained(optimiser=optimiser)
    check_model(federation, 1)
    assert min(lengths(updates(federation)).values()) > 0


def test_a_gradient_clip_bounds_every_update() -> None:
    """K SGD steps of η times a gradient no longer than c reach no farther than K·η·c."""
    clipped = lengths(updates(trained(optimiser="sgd", gradient_clip=1e-3)))
    free = lengths(updates(trained(optimiser="sgd")))
    bound = 2 * 0.01 * 1e-3
    assert max(clipped.values()) <= bound * 1.001
    assert min(free.values()) > bound


def test_weight_decay_takes_its_part_of_every_weight() -> None:
    """With gradients clipped away only the decay moves: δ = ((1 − ηλ)^K − 1)·w."""
    federation = trained(optimiser="sgd", gradient_clip=1e-9, weight_decay=10.0)
    made = next(w._prepared for w in federation.works.values() if w._prepared is not None).layout
    assert made is not None
    for (_, _, component), delta in updates(federation).items():
        before = made.components[component].initial(federation.plan.seed)
        assert np.allclose(delta, ((1 - 0.01 * 10.0) ** 2 - 1) * before, rtol=1e-4, atol=1e-7), component


def test_fedprox_holds_updates_back_from_the_second_step_on() -> None:
    """The term is μ/2·‖w − w(t)‖²: zero at the first step, then a pull back to where the round began."""
    one: dict[str, Any] = {"optimiser": "sgd", "local_steps": 1}
    plain, pulled = updates(trained(**one)), updates(trained(**one, proximal=30.0))
    assert all(np.allclose(plain[key], pulled[key], rtol=0, atol=1e-7) for key in plain)  # the last bit of a weight
    many: dict[str, Any] = {"optimiser": "sgd", "local_steps": 8}
    free, held = lengths(updates(trained(**many))), lengths(updates(trained(**many, proximal=30.0)))
    assert all(held[name] < 0.9 * free[name] for name in free)


def test_a_schedule_lowers_the_rate_of_later_rounds_only() -> None:
    constant = updates(trained(rounds=2, optimiser="sgd"))
    dropped = updates(trained(rounds=2, optimiser="sgd", schedule="step", schedule_period=1, schedule_factor=0.001))
    first = {key: delta for key, delta in constant.items() if key[1] == 1}
    assert same(first, {key: delta for key, delta in dropped.items() if key[1] == 1})
    before, after = lengths(constant, 2), lengths(dropped, 2)
    for name in before:
        assert after[name] == pytest.approx(before[name] * 0.001, rel=0.05)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_class_weights_decide_what_a_skewed_institution_learns(weights: str) -> None:
    """One late patient in five: unweighted, nearly everybody is called early; balanced, about as many as are not."""
    plan = small_plan(
        7,
        rounds=6,
        training={**TRAINING, "local_steps": 10, "learning_rate": 0.02, "class_weights": weights},
        secure_sum={"clip": 1.0},
        **OFF,
    )
    federation = SmallFederation(plan)
    for name, data in federation.data.items():
        data.labels[:] = np.arange(len(data)) % 5 == 0
        federation.start(name)
    federation.enrol()
    assert federation.run_to_end() == "finished"
    record = json.loads(federation.run.records()[-1])
    counts = np.array(record["confusion"]["mrna+image+clinical"])
    called_late = counts[:, 1].sum() / counts.sum()
    assert called_late < 0.1 if weights == "none" else called_late > 0.2


def test_a_run_without_gain_stops_early_and_keeps_its_best_round() -> None:
    plan = small_plan(
        7, rounds=9, training={**TRAINING, "learning_rate": 1e-12}, evaluation={"bins": 5, "patience": 2}, **OFF
    )
    federation = finished(plan)
    assert federation.run.reason == "no gain in 2 rounds"
    assert [json.loads(r)["round"] for r in federation.run.records()] == [0, 1, 2, 3]
    assert federation.run.state.selection.chosen.round == 1


# -- the privacy floor ---------------------------------------------------------------------------------------------


def test_what_is_alone_follows_its_own_score_on_the_federations_scale() -> None:
    """METHOD.md, "The privacy floor": a loss below the floor is not sent; the institution uses its own b_C."""
    plan = small_plan(9, rounds=5)
    federation = finished(plan)
    record = [json.loads(r) for r in federation.run.records()]
    settings = blending_settings(plan)
    alone = {name: plan.combination(name) for name in ("brca-2", "lusc-2", "lihc-2")}
    for name, combination in alone.items():
        assert all(combination not in r.get("blending", {}) for r in record)
        told = federation.told[name]
        mine = [(train, val) for subset, train, val in told.evaluated if subset == combination]
        assert len(mine) == 5
        state, last = BlendingState(), None
        for train, val in mine[:4]:  # what it knows when the fifth round begins
            assert val is not None
            change = (train - last[0], val - last[1]) if last else (0.0, 0.0)
            state, _ = advance(state, {combination: LossSums(train, val, *change, 1.0)}, settings)
            last = (train, val)
        published = record[4]["blending"]
        median = statistics.median(f["overfitting"] ** 2 for f in published.values())
        _, own = advance(state, {}, settings, median)
        scores = {subset: f["score"] for subset, f in published.items()}
        scores[combination] = own.scores()[combination]
        subsets = [*combination.split("+"), combination]
        expected = step_weights(scores, subsets, settings, 4)
        used = told.factors[4]
        assert used[f"classifier/{combination}"] == pytest.approx(expected[combination], rel=1e-9)
        for modality in combination.split("+"):
            assert used[f"encoder/{modality}"] == pytest.approx(expected[modality], rel=1e-9)
