"""The study of subgroups: its command's figures are those of the runs, on generated patients."""

from __future__ import annotations

import pytest

from federation.plan import Subgroups
from studies.subgroup_figures import BY, METRICS, counted, rows_over
from studies.synthetic import Shape

SHAPE = Shape(
    stages=(("BRCA", (90, 200, 0, 0)), ("LUSC", (100, 80, 0, 0)), ("LUAD", (100, 80, 0, 0))), genes=10, image_features=6
)


def test_each_subgroup_is_a_row_over_the_seeds_in_which_it_was_told() -> None:
    floors = Subgroups(by=BY, every=1, min_patients=1)
    runs = [counted(None, seed, 2, floors, SHAPE) for seed in (1, 2)]
    assert all(set(run) == {"sex", "age"} for run in runs)
    rows = {(row.attribute, row.group): row for row in rows_over(runs)}
    assert [group for attribute, group in rows if attribute == "age"] == [
        "under 50",
        "50 to 65",
        "65 and over",
        "other",
    ]
    for (attribute, group), row in rows.items():
        told = [run[attribute][group] for run in runs if run[attribute][group] is not None]
        assert row.told == len(told)
        for metric in METRICS:
            values = [each[metric] for each in told if each is not None and each[metric] is not None]
            assert row.mean[metric] == (pytest.approx(sum(values) / len(values)) if values else None)
    assert rows["sex", "FEMALE"].told == 2
    assert rows["sex", "FEMALE"].spread["accuracy"] is not None
