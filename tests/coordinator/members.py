"""Institutions without patients: they follow directives through the secure sum with vectors of ones."""

from __future__ import annotations

import numpy as np
from consilium.v1 import service_pb2 as pb

from federation.plan import Plan
from federation.rounds import Cohorts, consumed, digest
from security.privacy.randomness import SeededRandomness
from security.secure_sum.masks import word_type
from security.secure_sum.member import Member
from security.secure_sum.messages import Signed, UploadHeader
from security.secure_sum.phases import MemberPhase
from security.secure_sum.spec import Context
from security.secure_sum.upload import ArrayWords, Upload
from tests.plans import example_identity


class Follower:
    """One institution in round 0."""

    def __init__(self, plan: Plan, name: str, seed: int = 1) -> None:
        self.plan, self.name = plan, name
        self.run = digest(plan.to_bytes())
        self.identity = example_identity(plan.roster.index(name))
        self._randomness = SeededRandomness(seed, name)
        self._cohorts = Cohorts(plan)
        self.member: Member | None = None
        self.vector: Upload | None = None

    def keys(self, directive: pb.Directive) -> Signed:
        start = directive.make_keys.round_start
        context = Context(self.plan.federation, self.run, 0, directive.make_keys.attempt, digest(start))
        attempt = self._cohorts.attempt(context, self._cohorts.setup_sums())
        self.member = Member(attempt, self.name, self.identity, self._randomness)
        return self.member.make_keys()

    def shares(self, directive: pb.Directive) -> list[Signed]:
        assert self.member is not None
        return list(self.member.deal([Signed.from_proto(k) for k in directive.deal_shares.keys]).values())

    def upload(self, directive: pb.Directive) -> Upload | None:
        assert self.member is not None
        m = directive.contribute
        if not self.member.cohort:
            self.member.accept(list(m.cohort), [Signed.from_proto(s) for s in m.shares])
        self.member.enter(m.sum, consumed(m.opened))
        if not self.member.uploads:
            return None
        ones = {p.name: ArrayWords(np.ones(p.length, word_type(p.ring))) for p in self.member.uploads}
        self.vector = self.member.mask(ones)
        return self.vector

    def signature(self, directive: pb.Directive) -> Signed:
        assert self.member is not None
        return self.member.sign(directive.sign_list.list)

    def opening(self, directive: pb.Directive) -> Signed:
        assert self.member is not None
        if self.member.phase in (MemberPhase.READY, MemberPhase.MASKED):
            self.member.sign(directive.open_shares.list)  # the others decided without this one
        m = directive.open_shares
        return self.member.open([Signed.from_proto(s, m.list) for s in m.signatures])


def request_for(follower: Follower, directive: pb.Directive) -> pb.SubmitRequest | None:
    """What the institution submits for a directive; None for one that asks for no message."""
    match directive.WhichOneof("kind"):
        case "make_keys":
            return pb.SubmitRequest(run=follower.run, keys=follower.keys(directive).to_proto())
        case "deal_shares":
            request = pb.SubmitRequest(run=follower.run)
            request.shares.sender = follower.name
            request.shares.messages.extend(s.to_proto() for s in follower.shares(directive))
            return request
        case "sign_list":
            return pb.SubmitRequest(run=follower.run, signature=follower.signature(directive).to_proto())
        case "open_shares":
            return pb.SubmitRequest(run=follower.run, opening=follower.opening(directive).to_proto())
    return None


def header_of(upload: Upload) -> UploadHeader:
    return UploadHeader.decode(upload.header.payload)
