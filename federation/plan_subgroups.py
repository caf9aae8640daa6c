"""Whether a plan may count its patients by the subgroups that it names (`federation.subgroups`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from federation.evaluation_tables import Subgroup
from federation.names import NAME_PATTERN
from federation.plan import Plan
from federation.plan_problems import Path, Problem
from federation.rounds import Cohorts
from federation.subgroups import OTHER, groups_of
from security.secure_sum.cohorts import subtracts_below

MOST_ATTRIBUTES: Final = 4
MOST_GROUPS: Final = 12
"""Of one attribute, `other` not counted: many small groups tell of few patients each."""

_PATH: Final[Path] = ("evaluation", "subgroups")


def subgroup_problems(plan: Plan) -> Iterator[Problem]:
    """What each entry says by itself."""
    settings = plan.evaluation.subgroups
    if len(settings.by) > MOST_ATTRIBUTES:
        yield Problem((*_PATH, "by"), f"{len(settings.by)} attributes.", f"Name at most {MOST_ATTRIBUTES}.")
    if settings.by and settings.min_institutions < plan.secure_sum.k_min:
        yield Problem(
            (*_PATH, "min_institutions"),
            f"{settings.min_institutions} is below secure_sum.k_min.",
            f"Set it to at least k_min = {plan.secure_sum.k_min}.",
        )
    for i, each in enumerate(settings.by):
        yield from _entry(plan, each, (*_PATH, "by", i))
    for k, (what, values) in {
        "name": ("the subgroup", [each.name for each in settings.by]),
        # Two divisions of one column, at 50 and at 51, differ by the patients of that one age.
        "column": ("the column", [each.column for each in settings.by]),
    }.items():
        for i, value in enumerate(values):
            if value in values[:i]:
                remedy = "One division of each column: take one of them out."
                yield Problem((*_PATH, "by", i, k), f"{what} {value!r} occurs twice.", remedy)


def _entry(plan: Plan, each: Subgroup, path: Path) -> Iterator[Problem]:
    if not NAME_PATTERN.fullmatch(each.name):
        remedy = "Use 1 to 63 lower-case letters, digits, '-' and '_', beginning with a letter or digit."
        yield Problem((*path, "name"), f"{each.name!r} is not a legal name.", remedy)
    for text, where in ((each.column, ("column",)), *((c, ("categories", k)) for k, c in enumerate(each.categories))):
        if not (0 < len(text) <= 200 and text.isprintable() and text == text.strip()):
            remedy = "Use 1 to 200 printable characters, without blanks at the ends."
            yield Problem((*path, *where), f"{text[:200]!r} cannot be told apart or shown.", remedy)
    if bool(each.categories) == bool(each.cuts):
        what = "both categories and cuts" if each.cuts else "neither categories nor cuts"
        yield Problem(path, f"it has {what}.", "Write the values of a text column, or the cuts of a numeric one.")
        return
    if any(low >= high for low, high in pairwise(each.cuts)):
        yield Problem((*path, "cuts"), "the cuts do not ascend.", "Write each once, the smallest first.")
    named = groups_of(each)[:-1]
    if len(named) > MOST_GROUPS:
        what = "categories" if each.categories else "cuts"
        yield Problem((*path, what), f"{len(named)} groups.", f"Tell at most {MOST_GROUPS} apart.")
    for k, name in enumerate(named):
        if name == OTHER or name in named[:k]:
            where = ("categories", k) if each.categories else ("cuts",)
            why = "is where everybody else is counted" if name == OTHER else "occurs twice"
            yield Problem((*path, *where), f"the group {name!r} {why}.", "Take it out, or correct it.")
    for k, name in enumerate(each.institutions):
        if name not in plan.roster or name in each.institutions[:k]:
            why = "occurs twice" if name in plan.roster else "is not in the roster"
            yield Problem((*path, "institutions", k), f"{name!r} {why}.", "Take it out, or correct it.")


def cohort_problems(plan: Plan) -> Iterator[Problem]:
    """Attributes that too few institutions count by, or whose sums would tell of few beside the metrics (rule 9); of a
    plan otherwise sound."""
    cohorts, k_min = Cohorts(plan), plan.secure_sum.k_min
    beside = [cohorts.row_pieces(row, members) for row, members in cohorts.metric_rows.items()]
    for i, each in enumerate(plan.evaluation.subgroups.by):
        members, path = cohorts.subgroups[each.name], (*_PATH, "by", i, "institutions")
        least = plan.evaluation.subgroups.min_institutions
        if len(members) < least:
            remedy = f"Let at least min_institutions = {least} count by it."
            yield Problem(path, f"{len(members)} institutions count by {each.name}.", remedy)
            continue
        pieces = cohorts.row_pieces(None, members)
        if subtracts_below(k_min, [*beside, pieces]) is not None:
            yield Problem(
                path,
                f"beside the metrics, the groups of {each.name} would tell of fewer than {k_min} institutions.",
                "Leave `institutions` out, or let it be whole rows of the metrics: combinations of modalities that "
                "k_min institutions have, and all the others together.",
            )
        else:
            beside.append(pieces)
