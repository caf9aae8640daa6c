"""What an institution checks of a survivor list before it signs it (rules 5, 6, 9 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from security.secure_sum.cohorts import check_no_differencing
from security.secure_sum.errors import BelowFloorError, ContradictoryListError, TranscriptError, WrongContextError
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Attempt, Part
from security.secure_sum.verify import check_context

Cohorts = dict[str, list[frozenset[str]]]
"""Opened cohorts by quantity."""


def check_list(
    attempt: Attempt, payload: bytes, sum_name: str, transcript: bytes, cohort: frozenset[str]
) -> SurvivorList:
    """The list in `payload`, if it is of this sum and transcript and an exact partition of the cohort.

    Raises:
        MalformedMessageError: it does not parse.
        WrongContextError: it is of another attempt or sum.
        TranscriptError: it is of institutions that were shown something else (rule 6).
        ContradictoryListError: not an exact partition of the cohort (rule 5).
    """
    listed = SurvivorList.decode(payload)
    check_context(attempt, listed.context, "the coordinator")
    if listed.sum != sum_name:
        raise WrongContextError("the survivor list is of another sum.")
    if listed.transcript != transcript:
        raise TranscriptError(
            "the survivor list is of institutions that were shown something else.",
            remedy="The coordinator shows different keys, cohorts or models to different institutions.",
        )
    names = listed.alive + listed.gone
    if len(set(names)) != len(names) or set(names) != cohort:
        raise ContradictoryListError(
            "the survivor list is not an exact partition of the cohort.",
            remedy="An institution is both alive and gone, missing or unknown: nothing will be opened.",
        )
    if bool(listed.hashes) != attempt.sum(sum_name).encrypted:
        raise ContradictoryListError("a survivor list names the hashes of uploads if and only if they are encrypted.")
    return listed


def check_opened(
    attempt: Attempt,
    sum_name: str,
    parts: Sequence[Part],
    alive: frozenset[str],
    before: Mapping[str, Sequence[frozenset[str]]],
) -> Cohorts:
    """The cohorts that a list would open, if there are some and nothing below the floor follows from them.

    Args:
        attempt: the attempt.
        sum_name: the sum.
        parts: that may be opened (`Attempt.opened_parts`).
        alive: whose uploads count.
        before: cohorts opened by earlier sums of the round.

    Raises:
        BelowFloorError: nothing would be opened (rules 9 and 10).
        DifferencingError: beside what was opened before it would be too much (rule 9).
    """
    if not parts:
        raise BelowFloorError(
            f"no part of sum {sum_name!r} keeps {attempt.k_min} survivors, tied to each other by masks.",
            remedy="Wait for a round with more institutions.",
        )
    opened: Cohorts = {}
    for part in parts:
        opened.setdefault(part.quantity or f"{sum_name}/{part.name}", []).append(part.opened_pieces(alive))
    for quantity, cohorts in opened.items():
        check_no_differencing(quantity, [*before.get(quantity, ()), *cohorts], attempt.k_min)
    return opened
