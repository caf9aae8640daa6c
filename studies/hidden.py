"""Patients who lack modalities one by one: hidden by lot, patient by patient, as if they had never been measured.

Each modality of each patient is hidden with the same chance, whatever its stage; who would have none keeps the one that
was drawn last to go. A smaller chance hides a part of what a larger one does. At each institution two patients of each
class keep everything, so that even of the largest chance some are complete everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations as choices
from typing import Final

import numpy as np

from federation.tables import RawTable
from institution_node.data import own_combinations
from studies.tcga import Federation, Shard

KEPT: Final = 2
"""Patients of each class who keep everything at each institution; and, of one class, who make a combination worth
listing, as a node demands (`institution_node.data.check_each_combination`)."""

_STREAM: Final = 0x68696465  # "hide": apart from what deals patients by the same seed


def hide(made: Federation, chance: float, seed: int) -> Federation:
    """The federation with modalities hidden; its test patients keep theirs.

    Every institution lists the same combinations, those that each has enough patients of: what only a few list would
    tell of their numbers (docs/protocol.md, "Patients of several combinations"). Who has none of them takes no part.

    Args:
        made: institutions with all of the federation's modalities.
        chance: that a modality of a patient is hidden, in [0, 1).
        seed: draws.
    """
    shards = [_hidden(shard, made, chance, seed) for shard in made.shards]
    modalities = tuple(made.columns)
    every = ["+".join(c) for k in range(1, len(modalities) + 1) for c in choices(modalities, k)]
    listed = tuple(c for c in every if all(_enough(shard, made, every, c) for shard in shards))
    return replace(made, shards=tuple(replace(shard, combinations=listed) for shard in shards))


def complete_only(made: Federation) -> Federation:
    """The federation without the patients who lack anything: what is left to who trains on complete patients alone."""
    return replace(made, shards=tuple(_complete(shard) for shard in made.shards))


def _hidden(shard: Shard, made: Federation, chance: float, seed: int) -> Shard:
    patients, modalities = list(shard.stages), list(shard.tables)
    rng = np.random.default_rng([seed, _STREAM, *shard.name.encode()])
    drawn = rng.random((len(patients), len(modalities)))
    gone = drawn < chance
    gone[np.arange(len(patients)), drawn.argmax(axis=1)] = False
    for stages in made.task.classes.values():
        whole = [k for k, patient in enumerate(patients) if shard.stages[patient] in stages]
        gone[rng.permutation(whole)[:KEPT]] = False
    tables = {
        m: _of(shard.tables[m], [p for k, p in enumerate(patients) if not gone[k, j]]) for j, m in enumerate(modalities)
    }
    return replace(shard, tables=tables)


def _enough(shard: Shard, made: Federation, every: Sequence[str], combination: str) -> bool:
    own = own_combinations(shard.stages, {m: table.ids for m, table in shard.tables.items()}, every)
    having = [shard.stages[patient] for patient, its in own.items() if its == combination]
    return any(sum(stage in stages for stage in having) >= KEPT for stages in made.task.classes.values())


def _complete(shard: Shard) -> Shard:
    whole = set(shard.stages).intersection(*(table.ids for table in shard.tables.values()))
    stages: Mapping[str, int] = {patient: stage for patient, stage in shard.stages.items() if patient in whole}
    return replace(
        shard, tables={m: _of(t, list(stages)) for m, t in shard.tables.items()}, stages=stages, combinations=()
    )


def _of(table: RawTable, patients: Sequence[str]) -> RawTable:
    row = {patient: k for k, patient in enumerate(table.ids)}
    return table.select([row[patient] for patient in patients])
