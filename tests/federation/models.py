"""A small untrained model for tests: the example plan's, with a schema of the plan alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from federation import names
from federation.features import FeatureCounts, FeatureMeans, FeatureSchema
from federation.layout import layout
from federation.model_archive import Model
from federation.plan import Plan
from tests.plans import example_plan


def example_schema(plan: Plan) -> FeatureSchema:
    """Every column of the plan, centred on its range."""
    return FeatureSchema.build(plan, FeatureCounts({}), FeatureMeans({}), {})


def example_model(without: Iterable[str] = (), **changes: Any) -> Model:
    """Round 0 of `example_plan(**changes)`, without some components; temperatures 1, 1.5, 2, …"""
    plan = example_plan(**changes)
    schema = example_schema(plan)
    made = layout(plan, schema.widths)
    components = {n: c.initial(plan.seed) for n, c in made.components.items() if n not in set(without)}
    subsets = [names.component_subset(n) for n in components if names.component_kind(n) == "classifier"]
    return Model(plan, schema, components, 0, {s: 1.0 + k / 2 for k, s in enumerate(subsets)})
