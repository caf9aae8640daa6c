"""Statistics over cohorts that differ by few (rule 9): what a coordinator that says who dropped out can make of it."""

from __future__ import annotations

import json
from itertools import pairwise
from math import log2
from pathlib import Path

import pytest
from consilium.v1 import service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from federation.rounds import STATISTICS, UPDATES
from institution_node.memory import FolderMemory, RunMemory
from institution_node.similar_cohorts import Waiting, consider
from security.secure_sum.cohorts import Cohort, CohortHistory
from tests.small_federation import SmallFederation, small_plan

EVERYBODY = frozenset("abcdefgh")
PART = "statistics/losses/mrna"
COHORTS = st.frozensets(st.sampled_from(sorted(EVERYBODY)), max_size=2).map(lambda gone: EVERYBODY - gone)
LISTS = st.lists(st.tuples(COHORTS, st.integers(1, 7)), max_size=30).map(
    lambda runs: [cohort for cohort, times in runs for _ in range(times)]
)


def signed_rounds(lists: list[Cohort], first_wait: int) -> list[bool]:
    """Whether each round's list is signed; one a round."""
    history, waiting, found = CohortHistory({}), Waiting(), []
    for round_, cohort in enumerate(lists, start=1):
        verdict = consider(history, waiting, {PART: cohort}, cohort, round_, 1, first_wait)
        waiting = verdict.waiting
        if verdict.signs:
            history = history.with_opened({PART: cohort})
        found.append(verdict.signs)
    return found


@given(LISTS, st.integers(1, 4))
def test_whoever_chooses_the_survivors_gets_few_differences_and_waits_longer_for_each(
    lists: list[Cohort], first_wait: int
) -> None:
    signs = signed_rounds(lists, first_wait)
    opened = [(i, cohort) for i, (cohort, sign) in enumerate(zip(lists, signs, strict=True)) if sign]
    changes = [(i, cohort) for (_, before), (i, cohort) in pairwise(opened) if cohort != before]
    # Among cohorts that lack at most two of eight, some are four apart: those may change freely.
    near = [(i, cohort) for i, cohort in changes if any(0 < len(cohort ^ old) <= 2 for j, old in opened if j < i)]
    assert len(near) < log2(len(lists) / first_wait + 1) + 1e-9 or not near
    for k, (i, cohort) in enumerate(near):
        wait = first_wait * 2**k
        assert lists[i - wait + 1 : i + 1] == [cohort] * wait
        assert signs[i - wait + 1 : i + 1] == [False] * (wait - 1) + [True]


@given(LISTS)
def test_a_cohort_that_stays_is_signed_again_before_long(lists: list[Cohort]) -> None:
    """One that leaves for good, or comes back for good, never ends the losses."""
    last = frozenset("abcdefg")
    wait = 2 * len(lists) + 3  # at most what has been waited for so far, doubled
    signs = signed_rounds([*lists, *[last] * (wait + 1)], 3)
    assert signs[-1]
    first = len(lists) + signs[len(lists) :].index(True)
    assert all(signs[first:])


def test_a_round_counts_once_however_many_attempts_it_has() -> None:
    waiting = Waiting()
    for _ in range(5):
        waiting = waiting.seen(EVERYBODY, 4)
    assert (waiting.rounds, waiting.over(2)) == (1, False)
    assert waiting.seen(EVERYBODY, 5).over(2)


def test_a_part_that_is_due_in_some_rounds_only_is_signed_again_too() -> None:
    """`every = 5`: the rounds in between, in which nothing is like anything, do not begin its wait anew."""
    history, waiting, found = CohortHistory({}), Waiting(), []
    for round_ in range(1, 42):
        there = EVERYBODY if round_ < 6 else EVERYBODY - {"h"}
        opened = {"statistics/losses/clinical": frozenset("abcd")}
        if round_ % 5 == 1:
            opened[PART] = there
        verdict = consider(history, waiting, opened, there, round_, 1, 3)
        waiting = verdict.waiting
        if verdict.signs:
            history = history.with_opened(opened)
        elif PART in opened:
            found.append(round_)
        assert verdict.signs or PART in opened
    assert found == [6, 11]  # it is signed when it comes for the third time


def test_it_survives_a_restart(tmp_path: Path) -> None:
    waiting = Waiting(frozenset({"a", "b"}), 2, 9, 3)
    FolderMemory(tmp_path).save("ab", RunMemory(waiting=waiting))
    assert FolderMemory(tmp_path).load("ab").waiting == waiting


# -- in a run ------------------------------------------------------------------------------------------------------

GONE = "brca-2"


def run(rounds: int, there: set[int], **settings: object) -> SmallFederation:
    """A run in which one institution takes part in some rounds only; each other round is one without it."""
    federation = SmallFederation(small_plan(9, rounds=rounds, secure_sum=settings))
    federation.enrol()

    def acts(name: str, directive: pb.Directive) -> bool:
        return name != GONE or federation.run.round in {0, *there}

    assert federation.run_to_end(acts) == "finished"
    return federation


def opened(federation: SmallFederation, sum_name: str) -> list[int]:
    records = [json.loads(r) for r in federation.run.records()]
    return [r["round"] for r in records if r["round"] and sum_name in r["opened"]]


def test_one_that_leaves_for_good_costs_the_losses_of_two_rounds_and_no_update() -> None:
    federation = run(8, {1, 2, 3})
    assert opened(federation, UPDATES) == list(range(1, 9))
    assert opened(federation, STATISTICS) == [1, 2, 3, 6, 7, 8]
    records = {r["round"]: r for r in map(json.loads, federation.run.records())}
    assert all(f["fresh"] for f in records[6]["blending"].values())
    factors = federation.told["brca-1"].factors  # by round, from 1; all that it trains is scored by the federation
    assert factors[3] == factors[4] == factors[5] != factors[6]  # rounds 4 to 6 go on with round 3's scores


def test_a_coordinator_that_leaves_one_out_now_and_then_gets_no_difference_of_losses() -> None:
    """With the model held still, each pair of neighbouring rounds would tell one institution's weighted losses."""
    federation = run(8, {1, 3, 5, 7})
    assert opened(federation, UPDATES) == list(range(1, 9))
    assert opened(federation, STATISTICS) == [1, 3, 5, 7]
    logging = run(4, {1, 3}, similar_statistics="log")
    assert opened(logging, STATISTICS) == [1, 2, 3, 4]


@pytest.mark.parametrize("field", ["similar_statistics", "similar_cohorts"])
def test_a_plan_may_never_open_them(field: str) -> None:
    federation = run(6, {1, 2}, **{field: "withhold"})
    assert opened(federation, STATISTICS) == [1, 2]
    assert opened(federation, UPDATES) == (list(range(1, 7)) if field == "similar_statistics" else [1, 2])
