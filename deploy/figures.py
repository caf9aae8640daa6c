"""What the records of committed rounds say, round by round: the one reading for the report and the live table.

A record is the JSON of `coordinator.run`. A round may be missing (its number was burnt and the model stood still) or
have no statistics (its sum B never opened): None here, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from federation.blending import BlendingSettings, default_settings, step_weights
from federation.names import modalities_of
from studies.charts import Point

Record = Mapping[str, Any]
Presence = Literal["in", "updates only", "lost", "absent"]

UPDATES: Final = "updates"
STATISTICS: Final = "statistics"
PHASES: Final = ("keys", "reveals", "shares", "uploads", "signatures", "openings", "opening")
"""Phases of a round in their order; a sum's `uploads` hold the local training."""

UNCLAMPED: Final = replace(default_settings(), clamp=False)
"""Plain shares, for who does not know the plan."""


def training_rounds(records: Iterable[Record]) -> list[Record]:
    """Records of rounds that trained, in order; round 0 only settles the schema and the weights."""
    return sorted((r for r in records if r["round"] > 0), key=lambda r: int(r["round"]))


def subsets_of(records: Iterable[Record]) -> list[str]:
    """Subsets with losses in any round: single modalities first, then combinations, each by size and first seen."""
    seen: dict[str, None] = {}
    for record in records:
        seen |= dict.fromkeys(record.get("blending") or {})
    return sorted(seen, key=lambda s: (len(modalities_of(s)), list(seen).index(s)))


def metric(record: Record, name: str, row: str = "all") -> float | None:
    """A federated validation metric of a round."""
    value = ((record.get("metrics") or {}).get(row) or {}).get(name)
    return None if value is None else float(value)


def blending(record: Record, subset: str, figure: str, *, fresh_only: bool = False) -> float | None:
    """A DGB figure of a subset; with `fresh_only`, None in a round that brought it no losses."""
    figures = (record.get("blending") or {}).get(subset)
    if figures is None or (fresh_only and not figures.get("fresh", True)):
        return None
    value = figures.get(figure)
    return None if value is None else float(value)


def proximity(record: Record, subset: str) -> float | None:
    """Mean `p_i` of the subset's contributors."""
    value = (record.get("proximity") or {}).get(subset)
    return None if value is None else float(value)


def weights(
    records: Sequence[Record], combination: str, settings: BlendingSettings = UNCLAMPED
) -> dict[str, list[Point]]:
    """DGB's step factors `κ v_s` at an institution of this combination, by the round they were *used* in.

    A round uses the scores that were published after the round before it, or the last that were.

    Args:
        records: of the run, in any order.
        combination: of an institution; its classifier must be summed, or its own score is known to nobody else.
        settings: the plan's.
    """
    modalities = modalities_of(combination)
    subsets = modalities if len(modalities) == 1 else (*modalities, combination)
    scores: dict[str, float | None] = {}
    found: dict[str, list[Point]] = {s: [] for s in subsets}
    for record in training_rounds(records):
        number = int(record["round"])
        for subset, factor in step_weights(scores, subsets, settings, number).items():
            found[subset].append((number, factor))
        scores |= {s: blending(record, s, "score") for s in record.get("blending") or {}}
    return found


def blended_combinations(records: Sequence[Record], combinations: Iterable[str]) -> list[str]:
    """Combinations of more than one modality whose own losses are opened, the largest first."""
    published = set(subsets_of(records))
    wanted = {c for c in combinations if "+" in c and c in published}
    return sorted(wanted, key=lambda c: (-len(modalities_of(c)), c))


def alive(record: Record, sum_name: str) -> frozenset[str]:
    """Survivors of a sum; empty if it was never decided."""
    return frozenset(((record.get("sums") or {}).get(sum_name) or {}).get("alive") or ())


def presence(record: Record, institution: str) -> Presence:
    """How far an institution came in a round."""
    if institution not in record.get("cohort", ()):
        return "lost" if institution in (record.get("withdrawn") or {}) else "absent"
    if institution not in alive(record, UPDATES):
        return "lost"
    if STATISTICS not in (record.get("opened") or ()) or institution in alive(record, STATISTICS):
        return "in"
    return "updates only"


@dataclass(frozen=True)
class Loss:
    """An institution that left a round, where, and the code it gave (`deadline` if it gave none)."""

    round: int
    institution: str
    before: str
    reason: str


def losses_of_institutions(records: Iterable[Record]) -> list[Loss]:
    """Every dropout of the committed rounds, in order."""
    found = []
    for record in training_rounds(records):
        withdrawn = record.get("withdrawn") or {}
        for institution in sorted({*record.get("cohort", ()), *withdrawn}):
            how = presence(record, institution)
            if how in ("lost", "updates only"):
                before = "its update counted" if how == "lost" else "its statistics counted"
                found.append(Loss(record["round"], institution, before, withdrawn.get(institution, "deadline")))
    return found
