"""What round 0 settled on one split: made once, and begun from by every run whose plan gives the same.

Round 0 sums the features' figures and the noised patients; neither depends on blending, proximity, steps or the model.
A study of many methods would otherwise spend more time on round 0 than on its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from federation.features import FeatureSchema
from federation.plan import Plan
from federation.rounds import Cohorts, Setup
from institution_node.data import InstitutionData
from institution_node.local_run import Features
from institution_node.memory import RunMemory
from security.privacy.randomness import Randomness
from studies.federation import StudyError

RandomnessOf = Callable[[str], Randomness]


@dataclass(frozen=True)
class Settled:
    """Round 0 of a split.

    Attributes:
        plan: that it was settled by.
        data: institution to its patients.
        randomness: institution to its node's generator, afresh at every call.
        schema: the feature schema's bytes.
        setup: what the coordinator knows.
        memories: institution to what it remembers.
    """

    plan: Plan
    data: Mapping[str, InstitutionData]
    randomness: RandomnessOf
    schema: bytes
    setup: Setup
    memories: Mapping[str, RunMemory]
    _features: dict[int, Features] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _read(self) -> FeatureSchema:
        return FeatureSchema.from_bytes(self.schema)

    def check(self, plan: Plan) -> None:
        """Passes a plan that round 0 would settle alike.

        Raises:
            StudyError: it would not.
        """
        for name in ("run", "label", "modalities", "institutions", "features", "differential_privacy"):
            if getattr(plan, name) != getattr(self.plan, name):
                raise StudyError(f"another plan's round 0 has other {name}.", remedy="Settle this plan by itself.")
        if plan.evaluation.subgroups != self.plan.evaluation.subgroups:
            raise StudyError("another plan's round 0 counts other subgroups.", remedy="Settle this plan by itself.")
        mine, theirs = self.plan.training, plan.training
        same = (mine.validation_fraction, mine.count_noise) == (theirs.validation_fraction, theirs.count_noise)
        if not same or dict(Cohorts(plan).counted) != dict(Cohorts(self.plan).counted):
            raise StudyError("another plan's round 0 counts other patients.", remedy="Settle this plan by itself.")

    @property
    def widths(self) -> Mapping[str, int]:
        """Inputs by modality."""
        return self._read.widths

    def features(self, schema: bytes, data: InstitutionData) -> Features:
        """A `ReadFeatures` that transforms each institution's tables once."""
        if schema != self.schema:
            raise StudyError("the run has another feature schema than its split.")
        found = self._features.get(id(data))
        if found is None:
            found = self.widths, {m: self._read.transform(m, table) for m, table in data.tables.items()}
            self._features[id(data)] = found  # `self.data` keeps it alive
        return found


def memory_after(memory: RunMemory) -> RunMemory:
    """What an institution remembers of round 0, and nothing of the rounds that followed."""
    return RunMemory(
        split_key=memory.split_key,
        noised_patients=memory.noised_patients,
        noised_by_combination=memory.noised_by_combination,
        schema=memory.schema,
        setup=memory.setup,
    )
