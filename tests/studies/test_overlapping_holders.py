"""Two modalities whose holders differ by one institution: one of the two is not summed, and the run goes on."""

from __future__ import annotations

from tests.plans import example_institutions
from tests.small_federation import finished, small_plan


def test_a_modality_whose_counts_stay_shut_takes_its_features_from_the_plan() -> None:
    plan = small_plan(5, rounds=1, secure_sum={"threshold": 4})
    held = [("mrna", "image", "clinical")] * 4 + [("mrna", "clinical")]
    institutions = tuple(
        i.model_copy(update={"modalities": m}) for i, m in zip(example_institutions(5), held, strict=True)
    )
    federation = finished(plan.model_copy(update={"institutions": institutions}))
    setup = federation.run.state.setup
    assert setup is not None
    # Σñ over all five less Σñ over the four who hold images would be the fifth's: only the first is opened.
    assert len(setup.patients) == 1
    assert federation.withdrawals() == []
