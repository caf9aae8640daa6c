"""What a run's setup makes possible at an institution: its layout, its trainer, and the model that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from federation.layout import Layout
from federation.rounds import Cohorts, Setup, digest
from institution_node.global_model import GlobalModel
from institution_node.run_context import RunContext
from institution_node.trainer import Trainer
from security.errors import ConfigurationError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """Made once per run.

    Attributes:
        context: of the run.
        setup: that round 0 settled.
        layout: for the schema's widths.
        trainer: on this institution's patients.
        model: the summed components that it owns.
        groups: attribute of the plan's subgroups to the group that each validation patient is counted in.
    """

    context: RunContext
    setup: Setup
    layout: Layout
    trainer: Trainer
    model: GlobalModel
    groups: Mapping[str, Int64] = field(default_factory=dict)

    @property
    def shared(self) -> frozenset[str]:
        """Summed components that this institution owns."""
        return frozenset(self.model.components)

    def weights(self) -> dict[str, Float32]:
        """Every component that this institution owns, as it stands: global ones, and its private ones."""
        shared, private = self.model.weights, self.context.recall().private
        weights: dict[str, Float32] = {}
        for name in self.layout.owned(self.context.institution):
            own = shared.get(name, private.get(name))
            weights[name] = self.layout.components[name].initial(self.context.plan.seed) if own is None else own
        return weights

    @property
    def model_digest(self) -> str:
        """Names the summed components that this institution owns as they stand."""
        digests = self.model.digests()
        return digest("\n".join(f"{name}={digests[name]}" for name in sorted(digests)).encode()).hex()[:32]

    def alpha(self, component: str) -> float:
        """α_i = ñ_i / N_c (METHOD.md, "One round", step 4)."""
        cohorts: Cohorts = self.context.cohorts
        cohort = cohorts.name_of(component, cohorts.shared[component].owners)
        if cohort is None:
            raise ConfigurationError(f"the patients of the owners of {component} are not summed in this run.")
        return self.context.share(self.setup.patients, cohort)
