"""One run of a study: what it is, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from federation.plan import ComponentRule, Plan
from studies.comparison import placeholder_key
from studies.demo_plan import demo_plan
from studies.methods import FEDERATED, changed, plan_of
from studies.significance import Predictions
from studies.tcga import Federation

Scored = Literal["test", "validation"]


def changes_of(**fields: Any) -> str:
    """Changes of a plan as a cell holds them: top-level field to its value, a mapping for some fields of a table."""
    return json.dumps(fields, sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Cell:
    """One method on one split.

    Attributes:
        recipe: of the federation (`studies.recipes`).
        task: name of what is told apart.
        method: name of a federated method or a baseline; `alone/NAME` is one institution by itself.
        seed, fold: of the split; the seed draws everything else too.
        rounds: of the run.
        changes: of the demo's plan, as canonical JSON (`changes_of`).
        scored: on the `test` set, or on the institutions' `validation` patients, who may be tuned on.
    """

    recipe: str
    task: str
    method: str
    seed: int
    fold: int
    rounds: int
    changes: str = "{}"
    scored: Scored = "test"

    def description(self, data: str) -> dict[str, Any]:
        """Everything that its result depends on; `data` is the fingerprint of the patients."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.scored == "test":
            del fields["scored"]  # what was stored before there was another choice
        return {"data": data, **fields}

    def plan(self, federation: Federation) -> Plan:
        """The plan by which it runs: the demo's with its changes, as the method has it."""
        keys = {shard.name: placeholder_key(k) for k, shard in enumerate(federation.shards)}
        base = demo_plan(federation, keys, self.seed, self.rounds, "study")
        # The method first: a study may set what the method sets.
        own = plan_of(self.method, base) if self.federated else base
        changes = json.loads(self.changes)
        if "components" in changes:
            changes["components"] = tuple(ComponentRule(**rule) for rule in changes["components"])
        return changed(own, {**changes, "preset": "custom"}) if changes else own

    @property
    def federated(self) -> bool:
        """Whether it is a run; a baseline otherwise."""
        return self.method in FEDERATED

    def __str__(self) -> str:
        return f"{self.method} on {self.recipe}, {self.task}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class CellResult:
    """What is kept of a run.

    Attributes:
        patients: test patients, in order.
        cohorts, labels: of each.
        probabilities: of the exported model, to six digits; empty for a baseline without predictions of its own.
        exported: its round.
        curve: by round, figures of all test patients: what papers report the best of. Nothing is chosen from it.
        losses: by round, subset to (training, validation) losses, mean proximity, and blending score.
        uploaded: bytes of model words that the institutions sent in all rounds together; 0 for a baseline.
    """

    patients: tuple[str, ...]
    cohorts: tuple[str, ...]
    labels: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    exported: int
    curve: tuple[Mapping[str, float | None], ...] = ()
    losses: tuple[Mapping[str, Mapping[str, float | None]], ...] = ()
    uploaded: int = 0

    @property
    def predictions(self) -> Predictions:
        """For scores and the bootstrap."""
        return Predictions(self.patients, np.array(self.labels, np.int64), np.array(self.probabilities, np.float64))

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CellResult:
        """As the store has it."""
        return CellResult(
            tuple(data["patients"]),
            tuple(data["cohorts"]),
            tuple(data["labels"]),
            tuple(tuple(row) for row in data["probabilities"]),
            data["exported"],
            tuple(data["curve"]),
            tuple(data["losses"]),
            data["uploaded"],
        )
