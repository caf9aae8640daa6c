"""The institutions of one plan, each with its own connection to a serving coordinator."""

from __future__ import annotations

from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceStub

from federation.content_hash import content_digest
from federation.plan import Plan, digest
from security.secure_sum.upload import Upload
from tests.coordinator.members import Follower, request_for
from tests.coordinator.serving import SECONDS, Serving, institution, start_run
from tests.plans import example_plan

PLAN = example_plan(5, deadlines={"keys": 60.0, "upload": 60.0, "signatures": 60.0, "openings": 60.0})
RUN = digest(PLAN.to_bytes())
NAMES = PLAN.roster


def start(serving: Serving, plan: Plan = PLAN) -> None:
    with serving.as_operator() as operator:
        assert start_run(operator, plan.to_bytes()) == digest(plan.to_bytes())


class Party:
    """One institution with its connection."""

    def __init__(self, stub: InstitutionServiceStub, name: str) -> None:
        self.stub, self.name = stub, name
        self.follower = Follower(PLAN, name)

    def enrol(self) -> str:
        return self.stub.Enrol(pb.EnrolRequest(run=RUN), timeout=SECONDS).reason

    def told(self, known: int = 0, wait: float = 0.0) -> pb.Directive:
        request = pb.NextDirectiveRequest(run=RUN, known=known, wait_seconds=wait)
        return self.stub.NextDirective(request, timeout=SECONDS).directive

    def act(self) -> None:
        request = request_for(self.follower, self.told())
        assert request is not None
        self.stub.Submit(request, timeout=SECONDS)

    def vector(self) -> Upload:
        upload = self.follower.upload(self.told())
        assert upload is not None
        return upload

    def upload(self, *messages: pb.UploadRequest) -> pb.UploadResponse:
        return self.stub.Upload(iter(messages), timeout=SECONDS)

    def reached(self, upload: Upload) -> pb.GetUploadResponse:
        return self.stub.GetUpload(pb.GetUploadRequest(run=RUN, header=upload.header.to_proto()), timeout=SECONDS)


class Connections:
    """One stub for each institution."""

    def __init__(self, serving: Serving) -> None:
        self._open = [serving.as_institution(institution(name, i)) for i, name in enumerate(NAMES)]

    def __enter__(self) -> list[InstitutionServiceStub]:
        return [context.__enter__() for context in self._open]

    def __exit__(self, *exception: object) -> None:
        for context in self._open:
            context.__exit__(None, None, None)


def to_uploads(parties: list[Party]) -> None:
    for _ in range(2):
        for party in parties:
            party.act()


def pieces(upload: Upload, size: int = 50) -> tuple[pb.UploadRequest, list[pb.UploadRequest], pb.UploadRequest]:
    """Header, chunks and trailer of an honest upload."""
    data = b"".join(upload.chunks())
    first = pb.UploadRequest(start=pb.UploadStart(run=RUN, header=upload.header.to_proto()))
    chunks = [pb.UploadRequest(chunk=data[at : at + size]) for at in range(0, len(data), size)]
    return first, chunks, pb.UploadRequest(trailer=pb.UploadTrailer(hash=bytes.fromhex(content_digest(data))))


def finish_sum(parties: list[Party]) -> pb.Directive:
    """Uploads, signatures, openings of the first sum; the directive of the second."""
    to_uploads(parties)
    for party in parties:
        upload = party.follower.upload(party.told())
        if upload is not None:
            first, chunks, trailer = pieces(upload)
            party.upload(first, *chunks, trailer)
    before = parties[0].told()
    for party in parties[: PLAN.secure_sum.threshold]:
        party.act()
    for party in parties[: PLAN.secure_sum.threshold]:
        party.act()
    told = parties[0].told(before.serial)
    while told.WhichOneof("kind") != "contribute":
        told = parties[0].told(told.serial, wait=10.0)
    return told
