"""Over gRPC: a sum waits for whoever has nothing to upload until it has turned to it, and not a moment longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.plan import digest
from tests.coordinator import parties as room
from tests.coordinator.parties import Connections, Party, pieces, to_uploads
from tests.coordinator.serving import Serving


@pytest.fixture
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Party]]:
    """Five institutions that are to upload; the last holds what nobody else does, so it has nothing to sum."""
    held = [("mrna",)] * 4 + [("image", "clinical")]
    named = zip(room.PLAN.institutions, held, strict=True)
    changed = tuple(i.model_copy(update={"modalities": modalities}) for i, modalities in named)
    plan = room.PLAN.model_copy(update={"institutions": changed})
    monkeypatch.setattr(room, "PLAN", plan)
    monkeypatch.setattr(room, "RUN", digest(plan.to_bytes()))
    serving = Serving(tmp_path)
    try:
        room.start(serving, plan)
        with Connections(serving) as stubs:
            everybody = [Party(stub, name) for stub, name in zip(stubs, plan.roster, strict=True)]
            for party in everybody:
                assert party.enrol() == ""
            to_uploads(everybody)
            yield everybody
    finally:
        serving.close()


def test_a_sum_goes_on_when_its_onlooker_asks_again_and_not_before(parties: list[Party]) -> None:
    *uploading, onlooker = parties
    told = onlooker.told()
    assert told.WhichOneof("kind") == "contribute"
    assert onlooker.follower.upload(told) is None
    for party in uploading:
        first, chunks, trailer = pieces(party.vector())
        party.upload(first, *chunks, trailer)
    # Everything is there, but whoever has not turned to the sum could not sign for it.
    before = uploading[0].told()
    assert before.WhichOneof("kind") == "contribute"
    assert onlooker.told().WhichOneof("kind") == "contribute"  # who asks anew was not told yet: it proves nothing
    # It has acted on the directive, and waits for the next: that moves the sum on, for itself and for everybody.
    assert onlooker.told(told.serial, wait=5.0).WhichOneof("kind") == "sign_list"
    assert uploading[0].told(before.serial, wait=5.0).WhichOneof("kind") == "sign_list"
    for party in parties[-room.PLAN.secure_sum.threshold :]:  # it signs with the others
        party.act()
    assert {party.told().WhichOneof("kind") for party in parties} == {"open_shares"}


def test_an_onlooker_that_turned_first_holds_nobody_up(parties: list[Party]) -> None:
    *uploading, onlooker = parties
    told = onlooker.told()
    onlooker.follower.upload(told)
    assert onlooker.told(told.serial).serial == told.serial  # it asks again before anybody uploaded
    for party in uploading:
        first, chunks, trailer = pieces(party.vector())
        party.upload(first, *chunks, trailer)
    assert onlooker.told(told.serial, wait=5.0).WhichOneof("kind") == "sign_list"
