"""Runs cells: what trains alike in one batch, batches on all processes, each result kept as soon as it is there."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from federation.features import FeatureSchema
from federation.model_archive import Model
from federation.names import component_kind, component_subset
from federation.plan import Plan
from federation.rounds import ComponentDigests
from security.privacy.ledger import PrivacyLedger
from studies.baselines import alone_at, cohort_only, constant, pooled
from studies.cells import Cell, CellResult
from studies.federation import StudyError
from studies.lockstep import run_together
from studies.methods import ALONE, CONSTANT, POOLED
from studies.plain_rounds import PlainRun, settle
from studies.recipes import UPPER_BOUND_OF, federation
from studies.scoring import Probabilities, TestPatients, validation_patients
from studies.settled import Settled
from studies.simulate import institution_data, institution_randomness
from studies.store import ResultStore
from studies.synthetic import TCGA_SHAPE, Shape
from studies.tasks import TASKS
from studies.tcga import Federation

TOGETHER: Final = 16
"""Runs in one batch: more take more memory and save little."""

CURVE: Final = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "calibration_error")

Progress = Callable[[int, int, Cell], None]
"""Told how many cells are done, of how many, and the last one."""


@dataclass(frozen=True)
class Source:
    """Where patients come from; can be sent to other processes.

    Attributes:
        root: the data folder; None: generated patients.
        shape: of generated ones.
    """

    root: Path | None
    shape: Shape = TCGA_SHAPE


def run_cells(
    cells: Sequence[Cell],
    source: Source,
    data: str,
    store: ResultStore,
    processes: int = 2,
    progress: Progress | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> dict[Cell, CellResult]:
    """The results of all cells: those that the store has, and the others computed and stored.

    Args:
        cells: in the order of their importance: what is asked for first is run first.
        source: of the patients.
        data: fingerprint of the patients (`studies.recipes.fingerprint`).
        store: of results.
        processes: that work at a time; 1: this one alone.
        progress: told after each computed cell.
        enough: asked before each batch; True: no further one is begun, and the cells of those are missing.

    Raises:
        StudyError: a cell cannot be run, or failed; what was computed before is stored.
    """
    found: dict[Cell, CellResult] = {}
    missing: list[Cell] = []
    for cell in dict.fromkeys(cells):
        kept = store.get(cell.description(data))
        if kept is None:
            missing.append(cell)
        else:
            found[cell] = CellResult.from_json(kept)
    done = 0
    for batch, results in _computed(_batches(missing), source, processes, enough):
        for cell, result in zip(batch, results, strict=True):
            store.put(cell.description(data), result.to_json())
            found[cell] = result
            done += 1
            if progress is not None:
                progress(done, len(missing), cell)
    return {cell: found[cell] for cell in dict.fromkeys(cells) if cell in found}


def _batches(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that may train together, in the order of the first of each: of one federation, task and training."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        changes = json.loads(cell.changes)
        shared = {name: changes.get(name) for name in ("model", "training", "modalities", "differential_privacy")}
        alike = [cell.recipe, cell.task, cell.rounds, cell.scored, shared, "" if cell.federated else cell.method]
        groups.setdefault(json.dumps(alike, sort_keys=True), []).append(cell)
    place = {cell: k for k, cell in enumerate(cells)}
    batches = [tuple(g[k : k + TOGETHER]) for g in groups.values() for k in range(0, len(g), TOGETHER)]
    return sorted(batches, key=lambda batch: place[batch[0]])


def _computed(
    batches: Sequence[tuple[Cell, ...]], source: Source, processes: int, enough: Callable[[], bool]
) -> Iterator[tuple[tuple[Cell, ...], list[CellResult]]]:
    if processes == 1 or len(batches) <= 1:
        for batch in batches:
            if enough():
                return
            yield batch, run_batch(batch, source)
        return
    context = multiprocessing.get_context("spawn")  # torch and gRPC survive no fork
    with ProcessPoolExecutor(min(processes, len(batches)), mp_context=context) as pool:
        waiting, running = list(reversed(batches)), dict[Future[list[CellResult]], tuple[Cell, ...]]()
        try:
            while True:
                while waiting and len(running) < processes and not enough():
                    batch = waiting.pop()
                    running[pool.submit(run_batch, batch, source)] = batch
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# -- one batch ----------------------------------------------------------------------------------------------------


def run_batch(cells: Sequence[Cell], source: Source) -> list[CellResult]:
    """Runs cells of one batch (`run_cells` makes them) in this process.

    Raises:
        StudyError: a baseline is to be scored on validation patients.
    """
    torch.set_num_threads(1)  # figures are those of one thread, and such small models only wait for each other
    if not cells[0].federated:
        if cells[0].scored != "test":
            raise StudyError("baselines have no validation patients.", remedy="Score them on the test set.")
        return [_baseline(cell, source) for cell in cells]
    if "differential_privacy" in json.loads(cells[0].changes):
        return [_private(cell, source) for cell in cells]
    runs = [_Federated(cell, source) for cell in cells]
    run_together([r.run for r in runs], lambda k, record: runs[k].take(record))
    return [r.result() for r in runs]


def _private(cell: Cell, source: Source) -> CellResult:
    """A cell under differential privacy, by itself: its round 0 is noised and charged, and so is each step."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        made = _split(source, cell.recipe, cell.task, cell.seed, cell.fold)
        privacy = cell.plan(made).differential_privacy
        ledgers = {
            s.name: PrivacyLedger(Path(folder) / s.name, limit_epsilon=privacy.epsilon, delta=privacy.delta)
            for s in made.shards
        }
        for ledger in ledgers.values():
            held.callback(ledger.close)
        federated = _Federated(cell, source, ledgers)
        federated.run.step()
        while not federated.run.ended:
            federated.take(federated.run.step())
        return federated.result()


@lru_cache(maxsize=2 * TOGETHER)
def _split(source: Source, recipe: str, task: str, seed: int, fold: int) -> Federation:
    return federation(recipe, source.root, TASKS[task], seed, fold, source.shape)


@lru_cache(maxsize=2 * TOGETHER)
def _settled(source: Source, recipe: str, task: str, seed: int, fold: int, plan: bytes) -> Settled:
    made, own = _split(source, recipe, task, seed, fold), Plan.from_bytes(plan)
    shards = {shard.name: shard for shard in made.shards}
    data = {name: institution_data(shards[name], own) for name in own.roster}
    return settle(own, data, lambda name: institution_randomness(seed, name))


def _scored(cell: Cell, source: Source, made: Federation, plan: Plan, run: PlainRun) -> TestPatients:
    """Whom a federated cell is scored on; nobody of the test set is looked at where that is not asked for."""
    if cell.scored == "test":
        return TestPatients.of(made, plan)
    whole = _split(source, UPPER_BOUND_OF.get(cell.recipe, cell.recipe), cell.task, cell.seed, cell.fold)
    return validation_patients(whole, plan, {name: work.validation_ids for name, work in run.works.items()})


class _Federated:
    """A federated cell under way."""

    def __init__(self, cell: Cell, source: Source, ledgers: Mapping[str, PrivacyLedger] | None = None) -> None:
        split = (source, cell.recipe, cell.task, cell.seed, cell.fold)
        made = _split(*split)
        self._plan = cell.plan(made)
        if ledgers is None:
            start = self._start(split, made)
            self.run = PlainRun(self._plan, start.data, start.randomness, start)
        else:
            data = {shard.name: institution_data(shard, self._plan) for shard in made.shards}
            randomness = partial(institution_randomness, cell.seed)
            self.run = PlainRun(self._plan, data, randomness, ledgers=ledgers)
        self._test = _scored(cell, source, made, self._plan, self.run)
        self._curve: list[Mapping[str, float | None]] = []
        self._losses: list[Mapping[str, Mapping[str, float | None]]] = []

    def _start(self, split: tuple[Source, str, str, int, int], made: Federation) -> Settled:
        """Round 0 is that of the split's plain plan wherever this plan settles it alike."""
        _, recipe, task, seed, fold = split
        plain = Cell(recipe, task, "dgb+pcw", seed, fold, 1).plan(made)
        start = _settled(*split, plain.to_bytes())
        try:
            start.check(self._plan)
        except StudyError:
            start = _settled(*split, self._plan.to_bytes())
        return start

    @cached_property
    def _schema(self) -> FeatureSchema:
        """Once round 0 is over."""
        setup = self.run.state.setup
        assert setup is not None
        return FeatureSchema.from_bytes(bytes(self.run.content.open(setup.schema).view()))

    def take(self, record: Mapping[str, Any]) -> None:
        """A committed round."""
        state = self.run.state
        scores = self._test.scores(self._test.predict(self._model(state.components, state.temperatures)))["all"]
        self._curve.append({name: _rounded(getattr(scores, name)) for name in CURVE})
        self._losses.append(
            {
                subset: {
                    "training": _rounded(f["training_loss"]),
                    "validation": _rounded(f["validation_loss"]),
                    "score": _rounded(f["score"]),
                    "proximity": _rounded(record["proximity"].get(subset)),
                }
                for subset, f in record.get("blending", {}).items()
            }
        )

    def result(self) -> CellResult:
        """Once the run has ended."""
        state = self.run.state
        chosen = None if self._plan.evaluation.select == "last" else state.selection.chosen
        components, temperatures, exported = state.components, state.temperatures, self.run.round - 1
        if chosen is not None:
            components, temperatures, exported = chosen.components, chosen.temperatures, chosen.round
        probabilities = self._test.predict(self._model(components, temperatures))
        uploaded = sum(self.run.uploaded.values())
        return _result(self._test, probabilities, exported, self._curve, self._losses, uploaded)

    def _model(self, components: Mapping[str, ComponentDigests], temperatures: Mapping[str, float]) -> Model:
        content = self.run.content
        vectors = {n: np.frombuffer(content.open(c.weights).view(), np.dtype("<f4")) for n, c in components.items()}
        subsets = [component_subset(name) for name in vectors if component_kind(name) == "classifier"]
        return Model(
            self._plan, self._schema, vectors, self.run.round - 1, {s: temperatures.get(s, 1.0) for s in subsets}
        )


def _baseline(cell: Cell, source: Source) -> CellResult:
    made = _split(source, cell.recipe, cell.task, cell.seed, cell.fold)
    plan = cell.plan(made)
    test = TestPatients.of(made, plan)
    method, _, institution = cell.method.partition("/")
    if method == ALONE:
        return _result(test, alone_at(institution, plan, made, cell.seed, test), 0)
    if cell.method == POOLED:
        model = pooled(plan, made, cell.seed)
        return _result(test, test.predict(model), model.round)
    return _result(test, (constant if cell.method == CONSTANT else cohort_only)(plan, made, test), 0)


def _result(
    test: TestPatients,
    probabilities: Probabilities,
    exported: int,
    curve: Sequence[Mapping[str, float | None]] = (),
    losses: Sequence[Mapping[str, Mapping[str, float | None]]] = (),
    uploaded: int = 0,
) -> CellResult:
    rows = tuple(tuple(round(float(p), 6) for p in row) for row in probabilities)
    labels = tuple(test.labels.tolist())
    return CellResult(test.ids, test.cohorts, labels, rows, exported, tuple(curve), tuple(losses), uploaded)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
