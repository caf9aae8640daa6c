"""What fewer bytes cost in accuracy: the demo's plan with and without each option, paired over seeds.

`python -m studies.compression --data FOLDER` runs every variant on every seed in memory and writes, per variant, the
bytes of sum A and the test scores, and these minus those of whole 32-bit words, seed by seed. Without `--data` it
generates patients of the same shape.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from federation.layout import layout
from federation.plan import ComponentRule, Plan
from federation.rounds import UPDATES, Cohorts, Setup
from studies.comparison import METRICS, Comparison, DataSource, DemoPlans, Spread, compare
from studies.demo_plan import CLIP, ROUNDS
from studies.federation import StudyError
from studies.methods import DGB_PCW

WHOLE: Final = "32 bits"
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    WHOLE: {},
    "16 bits": {"secure_sum": {"half_words": True}},
    "16 bits, range 16 times too wide": {"secure_sum": {"half_words": True, "clip": 16 * CLIP}},
    "mRNA encoder every 5th round": {"components": (ComponentRule(name="encoder/mrna", every=5),)},
    "a fifth of the mRNA encoder": {"components": (ComponentRule(name="encoder/mrna", fraction=0.2),)},
}
"""Name to the fields of the demo's plan that are written differently."""


def largest_upload(plan: Plan) -> float:
    """Bytes of sum A that the busiest institution uploads, mean over the plan's rounds, with every column present."""
    sizes = {
        name: c.size for name, c in layout(plan, {m.name: m.widest_input for m in plan.modalities}).components.items()
    }
    cohorts = Cohorts(plan)
    setup = Setup("", dict.fromkeys(cohorts.patients, 1), frozenset(plan.roster))
    totals = dict.fromkeys(plan.roster, 0)
    for round_ in range(1, plan.rounds + 1):
        (sum_a,) = (s for s in cohorts.training_sums(sizes, setup, round_) if s.name == UPDATES)
        for part in sum_a.parts:
            for institution in part.contributors:
                totals[institution] += part.bytes
    return max(totals.values()) / plan.rounds


def table(results: Mapping[str, Comparison], uploads: Mapping[str, float]) -> Iterator[str]:
    """One line per variant, in Markdown: bytes, scores, and differences from `WHOLE`, paired by seed."""
    yield "| variant | bytes up a round | " + " | ".join(f"{m} | Δ" for m in METRICS) + " |"
    yield "|---" * (2 + 2 * len(METRICS)) + "|"
    for name, result in results.items():
        cells = [name, f"{uploads[name]:,.0f} ({uploads[name] / uploads[WHOLE]:.2f})"]
        for metric in METRICS:
            values = result.values(DGB_PCW, metric)
            pairs = zip(values, results[WHOLE].values(DGB_PCW, metric), strict=True)
            difference = Spread.of([None if a is None or b is None else a - b for a, b in pairs])
            cells += [_cell(Spread.of(values), ""), "" if name == WHOLE else _cell(difference, "+")]
        yield "| " + " | ".join(cells) + " |"


def _cell(spread: Spread, sign: str) -> str:
    if spread.mean is None:
        return "–"
    return f"{spread.mean:{sign}.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the TCGA tables; without it patients are generated")
    parser.add_argument("--seeds", type=int, default=10, help="1 to this many")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--variants", nargs="*", choices=[v for v in VARIANTS if v != WHOLE], help="all by default")
    given = parser.parse_args(arguments)
    data, seeds = DataSource(given.data), range(1, given.seeds + 1)
    chosen = [WHOLE, *(given.variants or [v for v in VARIANTS if v != WHOLE])]
    results: dict[str, Comparison] = {}
    uploads: dict[str, float] = {}
    try:
        for name in chosen:
            plans = DemoPlans(given.rounds, overrides=VARIANTS[name])
            results[name] = compare(data, plans, (DGB_PCW,), seeds, given.processes)
            uploads[name] = largest_upload(plans(data(seeds[0]), seeds[0]))
            sys.stderr.write(f"{name}: done\n")
    except StudyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(table(results, uploads)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
