"""Many runs in one process, in step: each round trains and evaluates the institutions of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from federation.rounds import UPDATES
from institution_node.local_run import LocalRun
from studies.batched_training import BatchedTrainers
from studies.plain_rounds import PlainRun


def run_together(runs: Sequence[PlainRun], committed: Callable[[int, dict[str, Any]], None]) -> None:
    """Runs all of them to their ends.

    Args:
        runs: with `LocalTrainer`s; those whose institutions have a combination in common must have one model and
            training.
        committed: told the number of a run and each round's record (`PlainRun.commit`).
    """
    batched = BatchedTrainers()
    for k, run in enumerate(runs):
        if run.round == 0:
            committed(k, run.step())
    while going := [k for k, run in enumerate(runs) if not run.ended]:
        for k in going:
            runs[k].begin()
        works = [work for k in going for work in runs[k].works.values()]
        _train(batched, works)
        for k in going:
            for which in runs[k].sums:
                if which.name == UPDATES:
                    runs[k].open(which)
        _evaluate(batched, works)
        for k in going:
            for which in runs[k].sums:
                if which.name != UPDATES:
                    runs[k].open(which)
            committed(k, runs[k].commit())


def _train(batched: BatchedTrainers, works: Sequence[LocalRun]) -> None:
    due = [(work.updates, training) for work in works if (training := work.updates.training()) is not None]
    for (updates, training), trajectory in zip(due, batched.train([t for _, t in due]), strict=True):
        updates.take_trajectory(training, trajectory)


def _evaluate(batched: BatchedTrainers, works: Sequence[LocalRun]) -> None:
    due = [work.statistics for work in works]
    made = batched.evaluate([statistics.trainer for statistics in due], [statistics.weights() for statistics in due])
    for statistics, evaluation in zip(due, made, strict=True):
        statistics.evaluation = evaluation
