"""`summary.json`: what a run gave, as mean and spread over seeds. Pure but for reading and writing the file.

The shape is fixed by the demo's contract: facts of the run, and `methods` to cohorts (`all` first) to metrics to
`{mean, std}`. Beside it stand `differences`, paired by seed: they are what a claim about two methods has to rest on,
for two methods that share seeds share the luck of the split as well.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation.evaluation import Scores
from security.errors import ConsiliumError

ALL: Final = "all"
OURS: Final = "dgb+pcw"
PLAIN: Final = "cm-fl"
ALONE: Final = "alone"
POOLED: Final = "pooled"
CONSTANT: Final = "constant"
COHORT_ONLY: Final = "cohort-only"
REQUIRED: Final = (OURS, PLAIN, ALONE, POOLED)
METRICS: Final = ("accuracy", "balanced_accuracy", "auroc")
SYNTHETIC: Final = "synthetic"
COORDINATOR: Final = "coordinator"
DECIMALS: Final = 6

SeedScores = Mapping[str, Scores]
"""One method, one seed: `all` and each cohort to its scores on the same test patients."""


class SummaryError(ConsiliumError):
    """Results from which no summary can be made, or a file that is none."""

    code: ClassVar[str] = "summary"


def _stable(value: float) -> float:
    """Rounded, and without a negative zero: writing what was read gives the same bytes."""
    return round(value, DECIMALS) + 0.0


Stable = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_stable)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_stable)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Spread(_Shape):
    """Mean and sample standard deviation over seeds; None where a seed has no such figure, `std` with one seed too."""

    mean: Stable | None
    std: Amount | None


class Difference(Spread):
    """A paired difference: also in how many of how many seeds it is above zero."""

    higher: Annotated[int, Field(ge=0)]
    seeds: Annotated[int, Field(ge=0)]


Table = dict[str, dict[str, Spread]]


class Summary(_Shape):
    """The file's content.

    Attributes:
        data: what was used: `tcga`, the name of a data folder, or `synthetic`.
        institutions, rounds, seeds: how many.
        wall_seconds: of the whole run, comparisons included.
        coordinator_peak_mib: peak memory of the coordinator.
        bytes_up_per_parameter, bytes_down_per_parameter: per institution, round and parameter of what it owns.
        dropouts: institutions that left an attempt of the gRPC federation, over all its rounds.
        processes: name to peak memory in MiB.
        methods: method to cohort to metric to mean and spread.
        differences: method to cohort to metric, `dgb+pcw` minus that method, paired by seed.
    """

    data: Annotated[str, Field(min_length=1)]
    institutions: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=0)]
    seeds: Annotated[int, Field(ge=1)]
    wall_seconds: Amount
    coordinator_peak_mib: Amount
    bytes_up_per_parameter: Amount
    bytes_down_per_parameter: Amount | None = None
    dropouts: Annotated[int, Field(ge=0)]
    processes: dict[str, Amount] = {}
    methods: dict[str, Table]
    differences: dict[str, dict[str, dict[str, Difference]]] = {}

    @model_validator(mode="after")
    def _known_metrics(self) -> Summary:
        for method, table in self.methods.items():
            for cohort, row in table.items():
                if set(row) != set(METRICS):
                    raise ValueError(f"methods.{method}.{cohort} has {sorted(row)}, not {sorted(METRICS)}")
        return self

    @property
    def synthetic(self) -> bool:
        """Whether the data was generated."""
        return self.data == SYNTHETIC

    @property
    def cohorts(self) -> tuple[str, ...]:
        """Every cohort of any method, `all` first, then by name."""
        found = {cohort for table in self.methods.values() for cohort in table}
        return tuple(sorted(found, key=lambda c: (c != ALL, c)))

    def spread(self, method: str, metric: str, cohort: str = ALL) -> Spread | None:
        """One cell, or None if there is no such figure."""
        found = self.methods.get(method, {}).get(cohort, {}).get(metric)
        return None if found is None or found.mean is None else found


@dataclass(frozen=True)
class RunFacts:
    """What is measured once for a run; `Summary` says what each field means."""

    data: str
    institutions: int
    rounds: int
    wall_seconds: float
    bytes_up_per_parameter: float
    bytes_down_per_parameter: float | None
    dropouts: int
    processes: Mapping[str, float] = field(default_factory=dict)


def spread_of(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation; None where a value is missing: a mean over other seeds would not compare."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known or len(known) < len(values):
        return Spread(mean=None, std=None)
    return Spread(mean=statistics.fmean(known), std=statistics.stdev(known) if len(known) > 1 else None)


def build_summary(facts: RunFacts, methods: Mapping[str, Sequence[SeedScores]]) -> Summary:
    """The summary of a run.

    Args:
        facts: what was measured; `processes` must have `coordinator`.
        methods: method to one `SeedScores` per seed, the same seeds in the same order for all.

    Raises:
        SummaryError: a required method is missing, methods differ in seeds or cohorts, or a figure is out of range.
    """
    missing = [m for m in REQUIRED if m not in methods]
    if missing:
        raise SummaryError(f"no results of {missing[0]!r}.", remedy=f"Give all of: {', '.join(REQUIRED)}.")
    seeds = len(methods[OURS])
    cohorts = set(methods[OURS][0]) if seeds else set()
    if ALL not in cohorts:
        raise SummaryError(f"{OURS!r} has no scores of {ALL!r}.", remedy="Score at least one seed, over all patients.")
    for method, runs in methods.items():
        if len(runs) != seeds:
            raise SummaryError(
                f"{method!r} has {len(runs)} seeds, {OURS!r} {seeds}.", remedy="Run every method on the same seeds."
            )
        if any(set(run) != cohorts for run in runs):
            raise SummaryError(
                f"{method!r} is scored on other cohorts than {OURS!r}.",
                remedy="Score every method on the same test patients.",
            )
    if COORDINATOR not in facts.processes:
        raise SummaryError(
            "the coordinator's peak memory is missing.", remedy=f"Give processes[{COORDINATOR!r}] in MiB."
        )
    order = sorted(cohorts, key=lambda c: (c != ALL, c))
    return _checked(
        {
            "data": facts.data,
            "institutions": facts.institutions,
            "rounds": facts.rounds,
            "seeds": seeds,
            "wall_seconds": facts.wall_seconds,
            "coordinator_peak_mib": facts.processes[COORDINATOR],
            "bytes_up_per_parameter": facts.bytes_up_per_parameter,
            "bytes_down_per_parameter": facts.bytes_down_per_parameter,
            "dropouts": facts.dropouts,
            "processes": dict(sorted(facts.processes.items())),
            "methods": {
                method: {c: {m: spread_of([getattr(run[c], m) for run in runs]) for m in METRICS} for c in order}
                for method, runs in methods.items()
            },
            "differences": {
                method: {c: {m: _difference(methods[OURS], runs, c, m) for m in METRICS} for c in order}
                for method, runs in methods.items()
                if method != OURS
            },
        },
        "results",
    )


def _difference(ours: Sequence[SeedScores], other: Sequence[SeedScores], cohort: str, metric: str) -> Difference:
    pairs = [(getattr(a[cohort], metric), getattr(b[cohort], metric)) for a, b in zip(ours, other, strict=True)]
    gaps = [None if a is None or b is None else a - b for a, b in pairs]
    spread = spread_of(gaps)
    # Equal scores of two methods must not count as "higher" by the last bit.
    higher = sum(g is not None and _stable(g) > 0 for g in gaps)
    return Difference(mean=spread.mean, std=spread.std, higher=higher, seeds=sum(g is not None for g in gaps))


def _checked(content: object, place: str) -> Summary:
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "summary"
        raise SummaryError(
            f"{where}: {first['msg']}.", remedy="See deploy/summary.py for the shape.", place=place
        ) from None


def summary_from(content: object, place: str = "summary") -> Summary:
    """Checks the shape of a summary that comes as plain values.

    Raises:
        SummaryError: a field is missing, unknown or out of range.
    """
    return _checked(content, place)


def summary_json(summary: Summary) -> str:
    """The file's text; the same for the same numbers, whatever they went through in between."""
    return json.dumps(summary.model_dump(mode="json"), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_summary(path: Path, summary: Summary) -> None:
    """Writes the file in one step: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(summary_json(summary), encoding="utf-8")
    partial.replace(path)


def read_summary(path: Path) -> Summary:
    """Reads a file that `write_summary` wrote.

    Raises:
        SummaryError: it is not JSON, or not a summary.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SummaryError("this is not JSON.", remedy="Take the summary.json of a run.", place=str(path)) from None
    return _checked(content, str(path))
