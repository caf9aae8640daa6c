"""Many institutions trained at once take the steps that each takes by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from federation.layout import layout
from institution_node.errors import NonFiniteTrainingError
from institution_node.training import LocalTrainer
from institution_node.update_work import LocalTraining
from institution_node.updates import Update
from security.privacy.randomness import SeededRandomness
from studies.batched_training import BatchedTrainers
from studies.federation import StudyError
from studies.lockstep import run_together
from studies.methods import plan_of
from studies.plain_rounds import PlainRun
from tests.institution_node.cases import WIDTHS
from tests.plans import example_plan
from tests.studies.small_study import small_plan
from tests.studies.test_plain_rounds import run_to_end, settled

Float32 = npt.NDArray[np.float32]

INSTITUTIONS = ("brca-1", "brca-1", "lusc-1", "brca-2", "brca-3")
HELD = frozenset({"encoder/mrna"})


class OtherTrainer(LocalTrainer):
    """Trains in a way of its own, as private training does."""


def same(one: Float32 | Update, other: Float32 | Update) -> None:
    """Equal but for float32 additions in another order, over a few steps."""
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


def training(
    institution: str,
    seed: int,
    held: frozenset[str] = frozenset(),
    widths: dict[str, int] = WIDTHS,
    make: type[LocalTrainer] = LocalTrainer,
    **changes: Any,
) -> LocalTraining:
    """Of 17 to 24 patients, so that batches are of several sizes; another stream at every call, alike."""
    plan = example_plan(**changes)
    rng = np.random.default_rng([seed, *institution.encode()])
    patients = 24 + seed % 8
    labels = rng.integers(0, 2, patients)
    features = {m: rng.normal(size=(patients, w)).astype(np.float32) for m, w in widths.items()}
    made, train, held_out = layout(plan, widths), range(patients - 7), range(patients - 7, patients)
    trainer = make(plan, made, institution, features, labels, train, held_out)
    sizes = {name: made.components[name].size for name in made.owned(institution)}
    start = {name: rng.normal(scale=0.3, size=size).astype(np.float32) for name, size in sizes.items()}
    factors = {name: 0.5 + 0.25 * k for k, name in enumerate(sizes)}
    return LocalTraining(trainer, start, factors, 0.05, SeededRandomness(seed, institution), held)


CASES: dict[str, dict[str, Any]] = {
    "sgd": {"training": {"optimiser": "sgd", "local_steps": 7, "batch_size": 5}},
    "momentum": {"training": {"optimiser": "momentum", "momentum": 0.8, "local_steps": 4}, "model": {"dropout": 0.0}},
    "adam": {"training": {"optimiser": "adam", "weight_decay": 0.1, "gradient_clip": 0.5, "proximal": 0.2}},
    "heads teach": {"training": {"head_gradient": 0.5, "local_steps": 4}},
    "balanced": {"training": {"class_weights": "balanced"}, "model": {"heads": False, "activation": "tanh"}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("held", [frozenset(), HELD], ids=["all move", "one held"])
def test_each_row_is_what_the_loop_gives(changes: dict[str, Any], held: frozenset[str]) -> None:
    several = [(name, seed) for seed, name in enumerate(INSTITUTIONS)]
    loop = [training(*each, held, **changes).run() for each in several]
    batched = BatchedTrainers().train([training(*each, held, **changes) for each in several])
    for one, other in zip(loop, batched, strict=True):
        assert one.updates.keys() == other.updates.keys()
        assert other.mean_loss == pytest.approx(one.mean_loss, rel=1e-4)
        for name, delta in one.updates.items():
            same(delta, other.updates[name])
            assert (name in held) == (not np.asarray(other.updates[name]).any())


def test_a_row_is_bit_for_bit_the_same_in_any_company() -> None:
    wide = dict.fromkeys(WIDTHS, 300)
    changes: dict[str, Any] = {
        "training": {"batch_size": 10, "local_steps": 12}
    }  # last batches of 7 patients, and of others' 8 and 4
    (alone,) = BatchedTrainers().train([training("brca-1", 0, widths=wide, **changes)])
    company = [training("brca-1", seed, widths=wide, **changes) for seed in (0, 1, 7)]
    together = BatchedTrainers().train(company)[0]
    assert together.mean_loss == alone.mean_loss
    for name, delta in alone.updates.items():
        assert np.array_equal(delta, together.updates[name]), name


def test_rows_with_narrower_inputs_are_padded_without_a_trace() -> None:
    wide = {**WIDTHS, "mrna": WIDTHS["mrna"] + 3}
    loop = [training("brca-1", 1).run(), training("brca-1", 2, widths=wide).run()]
    batched = BatchedTrainers().train([training("brca-1", 1), training("brca-1", 2, widths=wide)])
    for one, other in zip(loop, batched, strict=True):
        for name, delta in one.updates.items():
            same(delta, other.updates[name])


def test_losses_and_logits_are_what_the_loop_gives() -> None:
    several = [training(name, seed) for seed, name in enumerate(INSTITUTIONS)]
    batched = BatchedTrainers().evaluate([t.trainer for t in several], [t.weights for t in several])
    for t, found in zip(several, batched, strict=True):
        one = t.trainer.evaluate(t.weights)
        assert (found.combination, found.losses.keys()) == (one.combination, one.losses.keys())
        assert found.labels is one.labels
        for subset, losses in one.losses.items():
            assert found.losses[subset].training == pytest.approx(losses.training, rel=1e-5)
            assert found.losses[subset].validation == pytest.approx(losses.validation, rel=1e-5)
            np.testing.assert_allclose(found.logits[subset], one.logits[subset], rtol=1e-4, atol=1e-5)


def test_a_batch_that_comes_again_begins_from_the_weights_that_it_is_given() -> None:
    trainers = BatchedTrainers()
    one, two = training("brca-1", 1), training("brca-1", 2)
    first = trainers.train([one, two])
    trainers.evaluate([one.trainer, two.trainer], [one.weights, two.weights])
    afresh = [replace(t, rng=SeededRandomness(k, "brca-1")) for k, t in ((1, one), (2, two))]
    for before, now in zip(first, trainers.train(afresh), strict=True):
        for name, delta in before.updates.items():
            assert np.array_equal(delta, now.updates[name])


def vector(run: PlainRun, component: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(run.content.open(run.state.components[component].weights).view(), np.float32)


def test_whole_runs_in_step_are_those_of_the_loop() -> None:
    plan = small_plan(rounds=3)
    start = settled(plan)
    plans = [plan, plan_of("cm-fl", plan), plan_of("hgb", plan)]
    alone = [PlainRun(p, start.data, start.randomness, start) for p in plans]
    together = [PlainRun(p, start.data, start.randomness, start) for p in plans]
    records = [run_to_end(run) for run in alone]
    heard: list[list[dict[str, Any]]] = [[] for _ in plans]
    run_together(together, lambda k, record: heard[k].append(record))
    for one, other, mine, theirs in zip(alone, together, records, heard, strict=True):
        assert [r["round"] for r in theirs] == [r["round"] for r in mine] == [1, 2, 3]
        assert one.state.components.keys() == other.state.components.keys()
        for name in one.state.components:
            np.testing.assert_allclose(vector(other, name), vector(one, name), rtol=1e-3, atol=1e-5)
        for r, s in zip(mine, theirs, strict=True):
            assert s["confusion"] == r["confusion"]
            assert s["proximity"] == pytest.approx(r["proximity"], abs=1e-4)


def test_plans_with_other_training_share_no_batch() -> None:
    several = [training("brca-1", 1), training("brca-1", 1, training={"local_steps": 3})]
    with pytest.raises(StudyError, match="share"):
        BatchedTrainers().train(several)


def test_training_of_another_kind_is_refused() -> None:
    with pytest.raises(StudyError, match="plain local training"):
        BatchedTrainers().train([training("brca-1", 1, make=OtherTrainer)])


def test_a_row_that_diverges_is_named() -> None:
    lost = replace(training("brca-2", 1), learning_rate=1e25)
    with pytest.raises(NonFiniteTrainingError, match="brca-2"):
        BatchedTrainers().train([training("brca-1", 1), lost])
