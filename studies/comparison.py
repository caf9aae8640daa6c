"""Methods beside each other: per seed the same split and the same test patients, seeds and methods in parallel.

Every figure is of the exported round, which validation patients choose; the test patients are only ever scored. The
curves by round are there to be looked at, and nothing is picked from them.
"""

from __future__ import annotations

import multiprocessing
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from federation.evaluation import Scores
from federation.model_archive import Model
from federation.plan import Plan
from studies import tcga
from studies.baselines import alone, cohort_only, constant, pooled
from studies.demo_plan import demo_plan
from studies.federation import StudyError
from studies.methods import (
    ALONE,
    CM_FL,
    CONSTANT,
    DGB_PCW,
    FEDERATED,
    POOLED,
    check_methods,
    plan_of,
)
from studies.scoring import ALL, Probabilities, SeedScores, TestPatients, mean_scores
from studies.simulate import Record, simulate
from studies.synthetic import TCGA_SHAPE, Shape
from studies.tcga import Federation

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc")
CURVES: Final = (DGB_PCW, CM_FL)

FederationOf = Callable[[int], Federation]
PlanOf = Callable[[Federation, int], Plan]
Progress = Callable[[int, int, str], None]
"""Told how many jobs are done, of how many, and which one was the last."""


@dataclass(frozen=True)
class DataSource:
    """The federation of a seed; can be sent to other processes. `studies.tcga.nine_institutions` has the fields."""

    root: Path | None
    cohorts: tuple[str, ...] | None = None
    shape: Shape = TCGA_SHAPE

    def __call__(self, seed: int) -> Federation:
        """The split of this seed; the last few are kept."""
        return _split(self, seed)


@lru_cache(maxsize=4)
def _split(source: DataSource, seed: int) -> Federation:
    return tcga.nine_institutions(source.root, source.cohorts, seed=seed, shape=source.shape)


@dataclass(frozen=True)
class DemoPlans:
    """The demo's plan for a federation and a seed; can be sent to other processes.

    Attributes:
        rounds: of each run.
        run_name: of each run.
        keys: institution to the key in the plan; others get one that nobody has, since `simulate` makes fresh ones.
        overrides: of the plan's fields, as in `demo_plan`.
    """

    rounds: int
    run_name: str = "demo"
    keys: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, federation: Federation, seed: int) -> Plan:
        """The plan."""
        keys = {
            shard.name: self.keys.get(shard.name) or placeholder_key(k) for k, shard in enumerate(federation.shards)
        }
        return demo_plan(federation, keys, seed, self.rounds, self.run_name, **self.overrides)


def placeholder_key(index: int) -> str:
    """A legal key for the place `index` of a roster; its private half is public knowledge, so it protects nothing."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from security.signing import IdentityKey, public_key_text

    return public_key_text(IdentityKey(ec.derive_private_key(index + 1, ec.SECP256R1())).public)


@dataclass(frozen=True)
class Outcome:
    """One method on one seed.

    Attributes:
        scores: `all` and each cohort, of the exported round.
        exported_round: 0 for what has no rounds, and for `alone`, where every institution has its own.
        probabilities: float64[test patients, classes] of the exported model; None for `alone`.
        curve: scores after each round, for `CURVES`.
        records: of the run, for federated methods.
    """

    method: str
    seed: int
    scores: SeedScores
    exported_round: int = 0
    probabilities: Probabilities | None = None
    curve: tuple[tuple[int, SeedScores], ...] = ()
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None where a seed has no figure, `std` with one seed too."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Over one value per seed."""
        known = [v for v in values if v is not None]
        if not known or len(known) < len(values):
            return cls(None, None)
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Comparison:
    """Every method on every seed.

    Attributes:
        methods, seeds: in the order asked for.
        outcomes: by method and seed; complete.
        patients: seed to the test patients, in the order of `Outcome.probabilities`.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    outcomes: Mapping[tuple[str, int], Outcome]
    patients: Mapping[int, TestPatients]

    @property
    def scores(self) -> dict[str, list[SeedScores]]:
        """Method to its scores, one per seed, in order."""
        return {m: [self.outcomes[m, s].scores for s in self.seeds] for m in self.methods}

    def values(self, method: str, metric: str, row: str = ALL) -> list[float | None]:
        """One figure per seed."""
        return [getattr(self.outcomes[method, seed].scores[row], metric) for seed in self.seeds]

    def spread(self, method: str, metric: str, row: str = ALL) -> Spread:
        """Mean and spread of one figure."""
        return Spread.of(self.values(method, metric, row))

    def difference(self, method: str, other: str, metric: str, row: str = ALL) -> Spread:
        """Mean and spread of `method` minus `other`, paired by seed: what a claim about the two has to rest on."""
        pairs = zip(self.values(method, metric, row), self.values(other, metric, row), strict=True)
        return Spread.of([None if a is None or b is None else a - b for a, b in pairs])

    def test_curve(self) -> dict[str, list[dict[str, Any]]]:
        """Method to `{"round": t, metric: {"mean": …, "std": …}}` by round, over the seeds that have a curve."""
        found: dict[str, list[dict[str, Any]]] = {}
        for method in self.methods:
            curves = [dict(self.outcomes[method, s].curve) for s in self.seeds if self.outcomes[method, s].curve]
            if curves:
                rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
                found[method] = [{"round": t, **_spreads([c[t][ALL] for c in curves])} for t in rounds]
        return found


def _spreads(scores: Sequence[Scores]) -> dict[str, dict[str, float | None]]:
    spreads = {metric: Spread.of([getattr(s, metric) for s in scores]) for metric in METRICS}
    return {metric: {"mean": s.mean, "std": s.std} for metric, s in spreads.items()}


def compare(
    data: FederationOf,
    plans: PlanOf,
    methods: Sequence[str],
    seeds: Sequence[int],
    processes: int = 2,
    progress: Progress | None = None,
    known: Sequence[Outcome] = (),
) -> Comparison:
    """Runs every method on every seed.

    Args:
        data: seed to federation, `DataSource` for one; sent to other processes unless `processes` is 1.
        plans: federation and seed to plan, `DemoPlans` for one; likewise.
        methods: names of `studies.methods`.
        seeds: each draws a split and everything else of its runs.
        processes: that work at a time; 1: this one alone.
        progress: told after each job.
        known: outcomes that are there already, seed 1's from the gRPC federation for one; not computed again.

    Raises:
        StudyError: a name is wrong, or a job failed; the place says which method and seed.
    """
    methods, seeds = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(seeds))
    check_methods(methods)
    if not methods or not seeds or processes < 1:
        raise StudyError("nothing to compare.", remedy="Name at least one method, one seed and one process.")
    outcomes = {(o.method, o.seed): o for o in known if o.method in methods and o.seed in seeds}
    # The long ones first, so that no process ends up alone with one.
    order = sorted(methods, key=lambda m: (m not in FEDERATED, m not in (POOLED, ALONE)))
    jobs = [(m, s) for m in order for s in seeds if (m, s) not in outcomes]
    for done, ((method, seed), result) in enumerate(_results(jobs, partial(_job, data, plans), processes), start=1):
        if isinstance(result, str):
            raise StudyError(
                f"{method} failed on seed {seed}: {result}",
                remedy="Mend what it names and compare again; no figure is reported without every seed.",
                place=f"{method}, seed {seed}",
            )
        outcomes[method, seed] = result
        if progress is not None:
            progress(done, len(jobs), f"{method}, seed {seed}")
    patients = {s: TestPatients.of(f := data(s), plans(f, s)) for s in seeds}
    return Comparison(methods, seeds, outcomes, patients)


def run_method(
    method: str, federation: Federation, plan: Plan, seed: int, on_round: Callable[[int], None] | None = None
) -> Outcome:
    """One method on one seed.

    Args:
        method: a name of `studies.methods`.
        federation: the seed's.
        plan: the seed's, as for `dgb+pcw`.
        seed: of all randomness.
        on_round: told of each round of a federated method.

    Raises:
        StudyError: the run failed.
    """
    test = TestPatients.of(federation, plan)
    if method in FEDERATED:
        curve: list[tuple[int, SeedScores]] = []

        def scored(model: Model, record: Record) -> None:
            if method in CURVES:
                curve.append((model.round, test.scores(test.predict(model))))
            if on_round is not None:
                on_round(model.round)

        run = simulate(plan_of(method, plan), federation, seed, scored)
        return outcome_of(method, seed, run.exported, test, tuple(curve), run.records)
    if method == ALONE:
        return Outcome(
            method, seed, mean_scores([test.scores(p) for p in alone(plan, federation, seed, test).values()])
        )
    if method == POOLED:
        return outcome_of(method, seed, pooled(plan, federation, seed), test)
    probabilities = (constant if method == CONSTANT else cohort_only)(plan, federation, test)
    return Outcome(method, seed, test.scores(probabilities), 0, probabilities)


def outcome_of(
    method: str,
    seed: int,
    model: Model,
    test: TestPatients,
    curve: tuple[tuple[int, SeedScores], ...] = (),
    records: tuple[Record, ...] = (),
) -> Outcome:
    """An exported model, scored; for a model that was trained elsewhere, too."""
    probabilities = test.predict(model)
    return Outcome(method, seed, test.scores(probabilities), model.round, probabilities, curve, records)


# --------------------------------------------------------------------------------------------------- in parallel

Job = tuple[str, int]


def _results(
    jobs: Sequence[Job], work: Callable[[Job], Outcome | str], processes: int
) -> Iterator[tuple[Job, Outcome | str]]:
    """Each job with its outcome or the text of its error, as they come."""
    if processes == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")  # torch and gRPC survive no fork
    workers = min(processes, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            yield from _collect(pool, jobs, work)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    pool: Executor, jobs: Sequence[Job], work: Callable[[Job], Outcome | str]
) -> Iterator[tuple[Job, Outcome | str]]:
    running: dict[Future[Outcome | str], Job] = {pool.submit(work, job): job for job in jobs}
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            job = running.pop(future)
            error = future.exception()  # the worker itself died: out of memory, most likely
            yield job, future.result() if error is None else f"its process ended: {error!r}"


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _job(data: FederationOf, plans: PlanOf, job: Job) -> Outcome | str:
    method, seed = job
    try:
        federation = data(seed)
        return run_method(method, federation, plans(federation, seed), seed)
    except Exception as error:  # whatever it is, it is told with its place; errors with arguments may not pickle
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
