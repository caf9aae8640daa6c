"""What a coordinator that only looks, or lies, might put together from several rounds."""

from __future__ import annotations

import json

import pytest
from consilium.v1 import service_pb2 as pb

from tests.coordinator.test_run import kind
from tests.small_federation import SmallFederation, small_plan


@pytest.mark.parametrize("phase", ["make_keys", "contribute"])
def test_who_vanishes_does_not_leave_its_validation_counts_behind(phase: str) -> None:
    """The validation patients are the same in every round: a row over nine less a row over eight is the ninth's count
    of each class, whatever the models were."""
    federation = SmallFederation(small_plan(9, rounds=2))
    federation.enrol()
    gone = federation.plan.roster[5]

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == gone and federation.run.round == 2 and kind(directive) == phase)

    assert federation.run_to_end(acts) == "finished"
    first, second = (json.loads(text) for text in federation.run.records()[-2:])
    assert set(first["confusion"]) == {"mrna+image+clinical", "other"}  # and the one that vanished is in `other`
    assert set(second["confusion"]) == {"mrna+image+clinical"}
    assert "all" in first["metrics"]
    assert "all" not in second["metrics"]
    assert set(second["blending"]) == set(first["blending"])  # the rest goes on
    if phase == "make_keys":  # nobody even sends what must not be opened
        for name in federation.plan.roster:
            if (2, "statistics") in federation.recorded[name]:
                assert "metrics/other" not in federation.recorded[name][2, "statistics"].words
