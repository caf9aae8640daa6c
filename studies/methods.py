"""The methods that studies compare, by name: federated ones as changes of a plan, and what they are held against.

| name | what it is |
|---|---|
| `dgb+pcw` | the plan as it is: the default preset |
| `dgb` | blending without proximity: losses are weighted by patients |
| `cm-fl` | conventional multi-modal FL: plain steps, size-weighted averages; same model, heads and η |
| `hgb` | hierarchical gradient blending: inside each institution alone |
| `alone` | each institution trains by itself; the mean over institutions, each from its own modalities |
| `pooled` | one party holds everybody's patients, each with the modalities of the institution that it was at |
| `constant` | the majority class of all training patients |
| `cohort-only` | each cohort's class frequencies: what telling the cohorts apart is worth, and no more |

`pooled` is what the walls cost: the federation's own data, without walls. METHOD.md keeps the other reading, all
modalities for everybody, apart as `upper_bound`; it is a federation dealt with other `kinds` (`studies.tcga.federate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from federation.plan import Plan
from studies.federation import StudyError

Changes = Mapping[str, Mapping[str, Any]]

DGB_PCW: Final = "dgb+pcw"
CM_FL: Final = "cm-fl"

FEDERATED: Final[Mapping[str, Changes]] = {
    DGB_PCW: {},
    "dgb": {"proximity": {"kind": "size"}},
    CM_FL: {"blending": {"kind": "off"}, "proximity": {"kind": "size"}},
    "hgb": {"blending": {"kind": "local"}, "proximity": {"kind": "size"}},
}
ALONE: Final = "alone"
POOLED: Final = "pooled"
CONSTANT: Final = "constant"
COHORT_ONLY: Final = "cohort-only"
BASELINES: Final = (ALONE, POOLED, CONSTANT, COHORT_ONLY)
METHODS: Final = (*FEDERATED, *BASELINES)


def changed(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """A plan with some fields written differently.

    Args:
        plan: any.
        changes: top-level field to its value; a mapping changes only those fields of a table.

    Raises:
        pydantic.ValidationError: an unknown field, or a value of another type.
    """
    # Not model_copy, which would keep what the old plan has cached.
    fields: dict[str, Any] = {name: getattr(plan, name) for name in Plan.model_fields}
    for name, change in changes.items():
        old = fields.get(name)
        if isinstance(change, Mapping) and isinstance(old, BaseModel):
            fields[name] = type(old)(**{**{f: getattr(old, f) for f in type(old).model_fields}, **change})
        else:
            fields[name] = change
    return Plan(**fields)


def plan_of(method: str, plan: Plan) -> Plan:
    """The plan by which a federated method runs.

    It keeps the run's name, from which seeded batches, dropout and splits follow: methods differ in nothing else.

    Raises:
        StudyError: no federated method of that name.
    """
    if method not in FEDERATED:
        raise StudyError(f"{method!r} is no federated method.", remedy=f"Choose from: {', '.join(FEDERATED)}.")
    changes = FEDERATED[method]
    return changed(plan, {**changes, "preset": "custom"}) if changes else plan


def check_methods(methods: tuple[str, ...]) -> None:
    """Passes names of methods.

    Raises:
        StudyError: a name that is none.
    """
    for method in methods:
        if method not in METHODS:
            raise StudyError(f"there is no method {method!r}.", remedy=f"Choose from: {', '.join(METHODS)}.")
