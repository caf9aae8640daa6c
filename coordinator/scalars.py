"""The figures of a committed round under names with slashes, as spreadsheets and TensorBoard take them. Pure.

| name | what it is |
|---|---|
| `metrics/ROW/accuracy`, … | federated validation metrics of a combination, of `other`, of `all` |
| `subgroups/ATTRIBUTE/GROUP/accuracy`, … | the same of a subgroup, in rounds that count them |
| `loss/SUBSET/training`, `loss/SUBSET/validation` | weighted mean losses, in rounds that brought the subset any |
| `blending/SUBSET/score`, `…/overfitting`, `…/generalisation`, `…/dogr` | DGB's figures, in the same rounds |
| `proximity/SUBSET` | mean p_i |
| `clipped/COMPONENT` | values of updates that were clipped |
| `institutions/SUM` | survivors of a sum |
| `bytes/up`, `bytes/down` | payload of the round |
| `seconds/PHASE` | time that a phase took |

All of them are aggregates, as the record is. What a round does not have is left out, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

_LOSSES: Final = {"training_loss": "training", "validation_loss": "validation"}
_BLENDING: Final = ("score", "overfitting", "generalisation", "dogr")


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Name to value; finite. Names are printable, whoever wrote the record: they end in files and on screens.

    Args:
        record: of a committed round, parsed (`coordinator.round_record`, `PlainRun.commit`).

    Raises:
        TypeError, ValueError, KeyError, AttributeError, OverflowError: it is not a record.
    """
    return {_printable(name): value for name, value in _all(record) if math.isfinite(value)}


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _all(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for row, scores in record.get("metrics", {}).items():
        yield from _known(f"metrics/{row}", scores)
    for attribute, groups in record.get("subgroups", {}).items():
        for group, scores in groups.items():
            told = {name: value for name, value in (scores or {}).items() if name != "confusion"}
            yield from _known(f"subgroups/{attribute}/{group}", told)
    for subset, figures in record.get("blending", {}).items():
        if figures["fresh"]:  # what only stands from an earlier round is that round's
            yield from _known(f"loss/{subset}", {short: figures[name] for name, short in _LOSSES.items()})
            yield from _known(f"blending/{subset}", {name: figures[name] for name in _BLENDING})
    for kind in ("proximity", "clipped", "bytes", "seconds"):
        yield from _known(kind, record.get(kind, {}))
    for sum_name, decided in record.get("sums", {}).items():
        yield f"institutions/{sum_name}", float(len(decided["alive"]))


def _known(prefix: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if value is not None:
            yield f"{prefix}/{name}", float(value)
