"""What a coordinator that only looks, or lies, might put together from several rounds."""

from __future__ import annotations

import json

import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from security.secure_sum.errors import DifferencingError, TranscriptError
from tests.coordinator.following import kind, place
from tests.institution_node.lied_to import VICTIM, ReachedError, edited, refusal, started, until
from tests.small_federation import SmallFederation, small_plan


@pytest.mark.parametrize("phase", ["make_keys", "contribute"])
def test_who_vanishes_does_not_leave_its_validation_counts_behind(phase: str) -> None:
    """The validation patients are the same in every round: a row over nine less a row over eight is the ninth's count
    of each class, whatever the models were."""
    federation = SmallFederation(small_plan(9, rounds=2, secure_sum={"similar_statistics": "log"}))
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


@pytest.mark.parametrize("proximity", ["cosine", "size"])
def test_no_total_of_patients_makes_an_institution_tell_its_own(proximity: str) -> None:
    """A coordinator that understates N_c more and more would find ñ_i where an institution begins to refuse."""
    for total in (7, 10**6):  # below any institution's own patients, and above all
        federation = started(proximity={"kind": proximity})
        name = federation.plan.roster[VICTIM]

        honest = until(federation, 1, "make_keys", name)
        assert federation.memory(name).noised_patients > 7

        def change(start: round_pb2.RoundStart, total: int = total) -> None:
            for cohort in start.setup.patients:
                start.setup.patients[cohort] = total

        session, work = federation.participants[name].session, federation.works[name]
        reply = session.handle(edited(honest, change))
        assert reply.message is not None
        assert reply.message.WhichOneof("message") == "keys"
        updates = work._round.sums[0]  # type: ignore[union-attr]  # a round was opened
        sources = work.sources(updates, tuple(p for p in updates.parts if name in p.contributors))
        assert sources
        prepared, state = work._prepared, work._round
        assert prepared is not None
        assert state is not None
        assert state.statistics is not None
        subsets = [p.name.partition("/")[2] for p in state.sums[1].parts if p.name.startswith("losses/")]
        assert all(state.statistics.proximity(s) >= 0 for s in subsets if name in prepared.layout.subsets[s])


@pytest.mark.parametrize("proximity", ["inner", "size", "cosine"])
def test_one_weight_over_several_subsets_is_one_quantity(proximity: str) -> None:
    """Where p_i is the same for all of an institution's subsets, Σp over two cohorts tells of who is in one of them."""
    federation = started(rounds=1, proximity={"kind": proximity})
    name = federation.plan.roster[VICTIM]
    until(federation, 1, "deal_shares", name)
    attempt = federation.run.attempt.machine.attempt
    cohort = frozenset(federation.plan.roster)
    six = frozenset(federation.plan.roster[:-1])  # of the three who hold the first modality only, one is gone
    opened = [p.name for p in attempt.opened_parts("statistics", cohort, six) if p.name.startswith("losses/")]
    assert (len(opened) == 1) == (proximity != "cosine")


def test_who_withholds_signs_for_no_cohort_that_is_one_institution_from_an_earlier_one() -> None:
    """A coordinator that holds the model still, by publishing sums of zeros, would read one institution's losses from
    two cohorts: only withholding stands against that (docs/threat-model.md, "Nearly equal cohorts")."""
    federation = SmallFederation(small_plan(9, rounds=2))
    federation.enrol()
    gone, careful = federation.plan.roster[5], federation.plan.roster[0]
    federation.participants[careful].session._similar = "withhold"

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == gone and federation.run.round == 2 and kind(directive) == "make_keys")

    federation.run_to_end(acts)
    refused = [e for e in federation.told[careful].refused if isinstance(e, DifferencingError)]
    assert refused
    signatures = {(m.institution, m.round) for m in federation.sent if m.kind == "signature"}
    assert (careful, 1) in signatures
    assert (careful, 2) not in signatures
    assert federation.plan.roster[1] in {name for name, round_ in signatures if round_ == 2}  # who only logs
    assert federation.told[federation.plan.roster[1]].similar


@pytest.mark.parametrize("followed", ["nothing", "counts and means"])
def test_a_schema_that_did_not_follow_from_round_0_here_is_never_used(followed: str) -> None:
    """A coordinator that leaves round 0 out, or ends it before the schema is known, could invent one, floors or not."""
    honest = until(started(), 1, "make_keys", small_plan(7).roster[VICTIM])
    federation = started()
    name = federation.plan.roster[VICTIM]
    if followed != "nothing":

        def acts(who: str, directive: pb.Directive) -> bool:
            if who == name and place(federation, directive) == (0, "squares", "open_shares"):
                raise ReachedError
            return True

        with pytest.raises(ReachedError):
            federation.run_to_end(acts)
    assert isinstance(refusal(federation, name, honest), TranscriptError)
    assert federation.memory(name).setup is None
