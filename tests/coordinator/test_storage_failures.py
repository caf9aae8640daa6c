"""A disk or database that fails for a while costs an attempt at most: the run goes on by itself when it is back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from consilium.v1 import service_pb2 as pb

from tests.coordinator.members import Follower
from tests.coordinator.parties import PLAN, RUN, Party, pieces, to_uploads
from tests.coordinator.serving import SECONDS, Serving, code_of

THRESHOLD = PLAN.secure_sum.threshold
AWAY = (grpc.StatusCode.UNAVAILABLE, "store")


@pytest.fixture
def parties(parties: list[Party]) -> list[Party]:
    """Everybody is to upload."""
    to_uploads(parties)
    return parties


def send(party: Party) -> None:
    upload = party.follower.upload(party.told())
    assert upload is not None
    first, chunks, trailer = pieces(upload)
    party.upload(first, *chunks, trailer)


def until(party: Party, kind: str) -> pb.Directive:
    """Asks as a node does, again where the coordinator says that it is not ready."""
    known, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            told = party.told(known, wait=1.0)
        except grpc.RpcError as error:
            if code_of(error) != AWAY:
                raise
            continue
        if told.WhichOneof("kind") == kind:
            return told
        known = told.serial
    raise AssertionError(f"never told {kind}")


@contextmanager
def broken_points(folder: Path) -> Iterator[None]:
    """A database that cannot keep durable points."""
    database = sqlite3.connect(folder / "state" / "state.sqlite", isolation_level=None, timeout=10)
    database.execute("ALTER TABLE points RENAME TO away")
    try:
        yield
    finally:
        database.execute("ALTER TABLE away RENAME TO points")
        database.close()


def test_a_sum_that_cannot_be_written_is_folded_again(parties: list[Party], serving: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "content" / RUN.hex()
    away = folder.with_name("away")
    for party in parties:
        send(party)
    for party in parties[:THRESHOLD]:
        party.act()
    folder.rename(away)
    for party in parties[:THRESHOLD]:
        party.act()
    assert parties[0].told().WhichOneof("kind") != "contribute"
    away.rename(folder)
    told = until(parties[0], "contribute")
    assert len(told.contribute.opened) == 1
    live = serving.do(serving.hub.live(RUN))
    assert live.run.attempt is not None
    assert live.run.attempt.number == 1  # nothing was given up


def test_a_list_that_cannot_be_made_durable_burns_the_attempt_before_it_is_shown(
    parties: list[Party], tmp_path: Path
) -> None:
    with broken_points(tmp_path):
        for party in parties[:-1]:
            send(party)
        with pytest.raises(grpc.RpcError) as refused:
            send(parties[-1])  # ends the uploads of round 0, whose list is durable before it is shown
        assert code_of(refused.value) == AWAY
        with pytest.raises(grpc.RpcError) as refused:
            parties[0].told()  # no list that only the memory has is shown to anybody
        assert code_of(refused.value) == AWAY
    told = until(parties[0], "make_keys")
    assert told.make_keys.attempt == 2
    for party in parties:
        party.follower = Follower(PLAN, party.name, seed=2)
        party.act()
    assert until(parties[0], "deal_shares").deal_shares.keys


def test_signatures_that_cannot_be_made_durable_are_asked_for_again(parties: list[Party], tmp_path: Path) -> None:
    for party in parties:
        send(party)
    shown = parties[0].told().sign_list.list
    with broken_points(tmp_path):
        for party in parties[: THRESHOLD - 1]:
            party.act()
        with pytest.raises(grpc.RpcError) as refused:
            parties[THRESHOLD - 1].act()
        assert code_of(refused.value) == AWAY
    assert until(parties[0], "sign_list").sign_list.list == shown  # the same list: nobody may sign another
    for party in parties[:THRESHOLD]:
        party.act()
    assert until(parties[0], "open_shares").open_shares.list == shown
