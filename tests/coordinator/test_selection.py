"""Which round is chosen, whatever opens and whatever stays shut; and what people are told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from consilium.v1 import service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from coordinator.export import choose, export, hold
from coordinator.selection import BestRound, Criterion, Selection, reason
from coordinator.state import RunState
from coordinator.status import status_of
from federation.rounds import ComponentDigests
from federation.tensor_file import whole
from tests.plans import example_plan
from tests.small_federation import SmallFederation, small_plan

SUBSETS = ("clinical", "image", "mrna")
Round = tuple[float | None, dict[str, float]]  # the plan's metric, and the losses that opened
FIGURES = st.floats(0.0, 2.0, allow_nan=False)
ROUNDS = st.lists(
    st.tuples(st.none() | FIGURES, st.dictionaries(st.sampled_from(SUBSETS), FIGURES)), min_size=1, max_size=25
)


def model(round_: int) -> BestRound:
    return BestRound(round_, 0.0, {"encoder/mrna": ComponentDigests(f"{round_:064x}", {})}, {"mrna": 1.0 + round_})


def history(rounds: list[Round], patience: int) -> list[Selection]:
    """The selection before the first round, and after each; stored and read again every time, as over restarts."""
    found = [Selection()]
    for number, (score, losses) in enumerate(rounds, start=1):
        after = found[-1].after(model(number), score, losses, patience)
        state = RunState(components=model(number).components, selection=after)
        assert RunState.from_json(state.to_json()) == state
        kept = [c.weights for r in (after.best, after.instead, model(number)) if r for c in r.components.values()]
        assert state.digests() == set(kept)  # what may still be exported is not collected
        found.append(RunState.from_json(state.to_json()).selection)
    return found


def best_by_metric(rounds: list[Round]) -> int | None:
    known = [(score, -number) for number, (score, _) in enumerate(rounds, start=1) if score is not None]
    return -max(known)[1] if known else None


@given(ROUNDS, st.integers(0, 4))
def test_the_metric_chooses_whenever_it_opens_and_as_long_as_it_is_not_missed_too_often(
    rounds: list[Round], patience: int
) -> None:
    for upto, selection in enumerate(history(rounds, patience)):
        seen = rounds[:upto]
        missed = next((k for k, (score, _) in enumerate(reversed(seen)) if score is not None), upto)
        assert selection.unscored == missed
        if not patience or missed < patience:
            assert selection.by == "metric"
        if selection.by == "metric":
            assert (selection.chosen.round if selection.chosen else None) == best_by_metric(seen)
        assert (selection.best.round if selection.best else None) == best_by_metric(seen)  # kept meanwhile


@given(ROUNDS, st.integers(1, 4))
def test_a_metric_that_stays_shut_freezes_nothing(rounds: list[Round], patience: int) -> None:
    """Whoever has gone, the chosen round is one of those in which the others' figures were compared."""
    found = history(rounds, patience)
    for upto, selection in enumerate(found):
        if selection.unscored < patience:
            continue
        since = upto - selection.unscored + patience  # the first round that may be chosen by something else
        here = {r: rounds[r - 1][1] for r in range(since, upto + 1)}
        if any(here.values()):
            assert selection.by != "metric"
            assert selection.chosen is not None
            assert selection.chosen.round >= since
            assert selection.chosen == replace(
                model(selection.chosen.round), score=selection.chosen.score, losses=selection.chosen.losses
            )
        elif selection.lossless >= patience:
            assert (selection.by, selection.chosen.round) == ("last", upto)  # type: ignore[union-attr] # checked by ==
        if selection.by == "loss" and found[upto - 1].by == "loss":
            before = found[upto - 1].chosen
            assert before is not None
            common = rounds[upto - 1][1].keys() & before.losses.keys()
            now = sum(rounds[upto - 1][1][s] for s in sorted(common))
            then = sum(before.losses[s] for s in sorted(common))
            lower = bool(rounds[upto - 1][1]) and (not common or now / max(1, len(common)) < then / max(1, len(common)))
            assert (selection.chosen.round == upto) == lower  # type: ignore[union-attr] # of `loss`, there is one


@given(st.lists(FIGURES, min_size=1, max_size=20))
def test_equal_and_worse_figures_count_as_no_gain(scores: list[float]) -> None:
    best, without = None, 0
    for score, selection in zip(scores, history([(s, {}) for s in scores], 3)[1:], strict=True):
        without = 0 if best is None or score > best else without + 1
        best = score if best is None else max(best, score)
        assert selection.without_gain == without


def test_every_change_of_the_criterion_begins_the_count_anew() -> None:
    rounds: list[Round] = [(0.9, {}), (0.5, {}), (None, {}), (None, {"mrna": 1.0}), (None, {"mrna": 1.5}), (0.1, {})]
    found = history([*rounds, (0.95, {})], 2)
    assert [s.without_gain for s in found] == [0, 0, 1, 1, 0, 1, 1, 0]
    assert [s.by for s in found[1:]] == ["metric"] * 3 + ["loss"] * 2 + ["metric"] * 2
    assert [s.chosen.round for s in found[1:] if s.chosen] == [1, 1, 1, 4, 4, 1, 7]


# -- in a run ------------------------------------------------------------------------------------------------------

GONE = "brca-1"
ROUNDS_RUN = 8


@pytest.fixture(scope="module")
def left() -> SmallFederation:
    """A run from which one institution vanishes for good after round 2; the others' losses still open."""
    federation = SmallFederation(small_plan(7, rounds=ROUNDS_RUN))
    federation.enrol()

    def acts(name: str, directive: pb.Directive) -> bool:
        return name != GONE or federation.run.round <= 2

    assert federation.run_to_end(acts) == "finished"
    return federation


def test_a_run_whose_institution_left_goes_on_choosing(left: SmallFederation) -> None:
    records = [json.loads(r) for r in left.run.records()]
    said = [r["selection"]["by"] for r in records]
    assert said == ["metric"] * 5 + ["loss"] * 4  # rounds 0 to 4, then 5 to 8: the third without its figure is 5
    assert all("all" in r.get("metrics", {}) for r in records[1:3])
    assert not any("all" in r.get("metrics", {}) for r in records[3:])
    losses = {r["round"]: [f["validation_loss"] for f in r["blending"].values() if f["fresh"]] for r in records[5:]}
    mean = {number: sum(found) / len(found) for number, found in losses.items()}
    assert left.run.state.selection.chosen.round == min(mean, key=lambda number: (mean[number], number))


def test_status_and_model_card_say_what_chose_the_model(left: SmallFederation) -> None:
    run = left.run
    status = status_of(run, (), None, left.coordinator.now)
    assert (status.chosen_by, status.chosen_round) == ("loss", run.state.selection.chosen.round)
    records = list(run.records())
    choice = choose(run.plan, run.state, [json.loads(r)["round"] for r in records])
    files = export(run.plan, run.state, choice, hold(run.content, run.state, choice), records)
    card = " ".join(whole(files["MODEL_CARD.md"]).decode().split())
    assert f"- Round: {choice.round}, the lowest validation losses of the institutions that were left" in card
    assert "did not open for 3 rounds" in card
    best = run.state.selection.best
    assert best is not None
    assert best.round <= 2
    asked = choose(run.plan, run.state, [0, ROUNDS_RUN], best.round)
    assert (asked.round, asked.reason) == (best.round, "the operator asked for this round")


@pytest.mark.parametrize(("by", "words"), [("metric", "best balanced accuracy"), ("last", "the last round")])
def test_the_other_reasons(by: Criterion, words: Any) -> None:
    assert words in reason(example_plan(), by)
