"""Whole runs in which a holder of the key lies about what it decrypted, or does not answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.observer import Observer
from coordinator.store import HOLDERS_PASSED
from security.ckks.messages import Decryption
from security.secure_sum import derive
from security.secure_sum.messages import Signed
from security.secure_sum.phases import AggregatorPhase
from tests.plans import example_identity
from tests.small_federation import SmallFederation, TappedLink, small_plan


class Heard(Observer):
    """Writes down whom the coordinator blames, drops, and which attempts fail."""

    def __init__(self) -> None:
        self.blames: list[tuple[tuple[str, ...], str]] = []
        self.drops: list[tuple[str, str, str]] = []
        self.failures: list[tuple[int, str]] = []

    def blamed(self, culprits: tuple[str, ...], code: str) -> None:
        self.blames.append((culprits, code))

    def dropped(self, institution: str, phase: str, reason: str) -> None:
        self.drops.append((institution, phase, reason))

    def attempt_failed(self, round_: int, attempt: int, code: str) -> None:
        self.failures.append((round_, code))


class LyingDecryptor(TappedLink):
    """An institution that adds one to the first byte of what it decrypts in one round, and signs that."""

    def __init__(self, federation: SmallFederation, institution: str, round_: int = 1) -> None:
        super().__init__(federation, institution)
        self._round = round_

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        """See `MemoryLink`."""
        attempt = self._federation.run.attempt
        if request.HasField("opening") and attempt.machine.attempt.sum(attempt.machine.current.name).encrypted:
            identity = example_identity(self._federation.plan.roster.index(self._name))
            said = Decryption.decode(Signed.from_proto(request.opening).payload)
            if said.context.round == self._round:
                first = said.parts[0]
                lie = replace(first, words=bytes([(first.words[0] + 1) % 256]) + first.words[1:])
                payload = replace(said, parts=(lie, *said.parts[1:])).encode()
                forged = Signed(self._name, payload, identity.sign(derive.TAG_DECRYPTION, payload))
                request.opening.CopyFrom(forged.to_proto())
        return super().submit(request)


def federation_of(encrypted: str, heard: Observer | None = None) -> SmallFederation:
    settings = {"ckks": (encrypted,), "coordinator_colludes": False}
    federation = SmallFederation(small_plan(7, rounds=2, secure_sum=settings), observer=heard)
    federation.enrol()
    return federation


@pytest.mark.parametrize("encrypted", ["updates", "statistics"])
def test_a_lying_decryptor_is_named_with_who_checked_it_and_its_sum_never_counts(encrypted: str) -> None:
    heard = Heard()
    federation = federation_of(encrypted, heard)
    liar = federation.plan.roster[0]
    federation.participants[liar].link = LyingDecryptor(federation, liar)
    assert federation.run_to_end() == "finished"
    ((culprits, code),) = heard.blames
    assert code == "decryptions-differ"
    assert liar in culprits
    assert len(culprits) == 2
    assert heard.failures == [(1, "decryptions-differ")]
    records = {(record := json.loads(text))["round"]: record for text in federation.run.records()}
    if encrypted == "updates":
        assert set(records) == {0, 2}  # nothing of round 1 was committed: its number is burnt
    else:
        assert records[1]["opened"] == ["updates"]
        assert "blending" not in records[1]
    assert "blending" in records[2]


def test_a_lie_in_the_run_s_first_sums_ends_the_run_and_says_why() -> None:
    heard = Heard()
    federation = federation_of("weights", heard)
    liar = federation.plan.roster[0]
    federation.participants[liar].link = LyingDecryptor(federation, liar, 0)
    assert federation.run_to_end() == "failed"
    assert "decryptions-differ" in federation.run.reason
    assert heard.blames[0][1] == "decryptions-differ"


def test_who_was_passed_over_is_in_the_record_and_a_restart_asks_the_others_alone() -> None:
    """Two holders are passed over, one after the other, and the coordinator restarts after each."""
    heard = Heard()
    federation = federation_of("statistics", heard)
    away = {federation.plan.roster[0]}
    kept: list[tuple[str, ...]] = []

    def opening() -> bool:
        attempt = federation.run.attempt
        if attempt is None or federation.run.round != 1 or attempt.machine.current.name != "statistics":
            return False
        return attempt.machine.phase is AggregatorPhase.OPENINGS

    def acts(name: str, directive: pb.Directive) -> bool:
        if opening() and len(kept) < len(passed := federation.run.attempt.machine.passed_over.get("statistics", ())):
            federation.coordinator.restart()
            machine = federation.run.attempt.machine
            assert machine.passed_over == {"statistics": passed}
            assert not machine.asked() & set(passed)
            kept.append(passed)
            if len(kept) == 1:
                away.update(machine.asked())
        return not (opening() and name in away)

    assert federation.run_to_end(acts) == "finished"
    assert [len(passed) for passed in kept] == [1, 2]
    record = json.loads(federation.run.records()[1])
    assert record["passed_over"] == {"statistics": list(kept[-1])}
    assert "blending" in record
    assert [d for d in heard.drops if d[1] == "openings"] == [
        (kept[0][0], "openings", "deadline"),
        *((name, "openings", "deadline") for name in kept[1] if name not in kept[0]),
    ]
    assert HOLDERS_PASSED not in {p.kind for p in federation.coordinator.store.points(federation.run.key, 1)}
