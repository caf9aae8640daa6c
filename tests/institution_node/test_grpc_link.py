"""The link over real mTLS on loopback: who may answer, what is retried, transfers cut at any byte."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from consilium.v1 import service_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.content_hash import content_digest
from federation.plan import MAX_BYTES, PlanError
from federation.settings_files import Address
from institution_node.grpc_link import GrpcLink
from institution_node.guard import WorkFailedError, guarded
from institution_node.library import LinkLibrary
from institution_node.link import (
    LARGEST_CONTENT,
    ContentMismatchError,
    CoordinatorIdentityError,
    CoordinatorRefusalError,
    CoordinatorUnreachableError,
    LinkWatcher,
    StoppedError,
)
from security.certificates import Role, identity_of
from security.errors import ConsiliumError
from security.secure_sum.masks import Words
from security.signing import IdentityKey
from tests.institution_node.tiny_coordinator import RUN, Authority, Serving, TinyCoordinator, free_port, masked_upload


class Hasty(threading.Event):
    """Waits between attempts no longer than the operating system needs."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0.001)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def standing(authority: Authority) -> Iterator[tuple[TinyCoordinator, GrpcLink]]:
    """One coordinator and one link for all tests of transfers."""
    coordinator = TinyCoordinator()
    files = authority.files(Role.INSTITUTION, "brca-1")
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), files, stop=Hasty())
        yield coordinator, link
        link.close()


@pytest.fixture
def pair(standing: tuple[TinyCoordinator, GrpcLink]) -> tuple[TinyCoordinator, GrpcLink]:
    standing[0].__init__()  # type: ignore[misc] # as new, behind the same server
    return standing


# -- calls --------------------------------------------------------------------------------------------------------


def test_every_call_arrives(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    assert link.invitation() == b"plan"
    assert link.enrol(RUN, "k-min") == ""
    assert coordinator.enrolments == [pb.EnrolRequest(run=RUN, refusal="k-min")]
    coordinator.directives = [pb.Directive(serial=7, wait=pb.Wait(phase="keys"))]
    assert link.next_directive(RUN, 3, 0.0) == coordinator.directives[0]
    message = pb.SubmitRequest(run=RUN, withdrawal=pb.Withdrawal(round=1, attempt=2, code="withdrawn"))
    link.submit(message)
    assert coordinator.submitted == [message]


def test_an_invitation_comes_in_pieces_and_only_once(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    coordinator.pieces = [b"pl", b"", b"an, in pieces"]
    assert link.invitation() == b"plan, in pieces"
    coordinator.plan, coordinator.pieces = b"plan, in pieces", []
    assert link.invitation() == b"plan, in pieces"
    coordinator.plan = b"another plan"
    assert link.invitation() == b"another plan"
    coordinator.plan = b""
    assert link.invitation() == b""
    assert coordinator.known[1:] == [hashlib.sha256(p).digest() for p in (b"plan, in pieces",) * 2 + (b"another plan",)]


def test_an_invitation_beyond_any_plans_size_is_not_gathered(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    coordinator.pieces = [bytes(1 << 20)] * ((MAX_BYTES >> 20) + 1)
    with pytest.raises(PlanError, match="more than 32 MiB"):
        link.invitation()
    coordinator.pieces = []
    assert link.invitation() == b"plan"


def test_a_refusal_carries_the_coordinators_code(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    coordinator.refuse = "run-ended"
    with pytest.raises(CoordinatorRefusalError) as refused:
        link.invitation()
    assert refused.value.reason == "run-ended"
    coordinator.refuse = ""
    assert link.invitation() == b"plan"


def test_a_stop_ends_the_wait_for_what_follows_a_message(authority: Authority) -> None:
    coordinator, stop = TinyCoordinator(), threading.Event()
    coordinator.heard = stop.set  # told to stop while the coordinator holds the answer back
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-2"), stop=stop)
        with pytest.raises(StoppedError):
            link.submit(pb.SubmitRequest(run=RUN, wait_seconds=10.0))
        assert len(coordinator.submitted) == 1
        link.close()


def test_a_message_brings_the_next_directive_back(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    coordinator.directives.append(pb.Directive(serial=7))
    assert link.submit(pb.SubmitRequest(run=RUN, known=3, wait_seconds=1.0)).serial == 7


def test_a_stop_ends_a_long_poll(authority: Authority) -> None:
    coordinator, stop = TinyCoordinator(), threading.Event()
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-2"), stop=stop)
        assert link.invitation() == b"plan"
        stop.set()
        with pytest.raises(StoppedError):
            link.next_directive(RUN, 0, 10.0)
        assert link.submit(pb.SubmitRequest(run=RUN, wait_seconds=10.0)) == pb.Directive()  # it is not waited for
        coordinator.submitted.clear()
        link.submit(pb.SubmitRequest(run=RUN))  # a goodbye is still possible
        assert len(coordinator.submitted) == 1
        link.close()


# -- uploads ------------------------------------------------------------------------------------------------------


def whole(upload: object) -> bytes:
    return b"".join(upload.chunks())  # type: ignore[attr-defined] # a Upload


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 3_000_039), max_size=3).map(sorted))
def test_an_upload_cut_at_any_bytes_arrives_whole(pair: tuple[TinyCoordinator, GrpcLink], cuts: list[int]) -> None:
    coordinator, link = pair
    coordinator.__init__(cuts=list(cuts))  # type: ignore[misc] # as new for every example
    upload = masked_upload(750_000)
    link.upload(RUN, upload)
    assert coordinator.counted
    assert bytes(coordinator.received) == whole(upload)
    assert coordinator.starts == [0, *cuts]  # nothing is sent twice
    link.upload(RUN, upload)  # again: counted already
    assert coordinator.starts[len(cuts) + 1 :] == [0]


def test_a_coordinator_killed_at_the_last_byte_still_counts_it(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    coordinator.forget_once = True
    link.upload(RUN, masked_upload(100))
    assert coordinator.counted


def test_an_upload_that_was_discarded_begins_again(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    upload = masked_upload(1000)
    coordinator.received[:] = b"somebody else's bytes"
    link.upload(RUN, upload)
    assert coordinator.starts == [0, 21, 0]  # only who is told that it goes on elsewhere asks where
    assert bytes(coordinator.received) == whole(upload)


def test_a_coordinator_that_never_takes_the_bytes_is_an_error(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = TinyCoordinator()

    def useless(*_: object) -> pb.UploadResponse:
        coordinator.starts.append(0)
        return pb.UploadResponse(offset=0)

    monkeypatch.setattr(TinyCoordinator, "Upload", useless)
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-3"), stop=Hasty())
        with pytest.raises(CoordinatorRefusalError) as refused:
            link.upload(RUN, masked_upload(10))
        link.close()
    assert refused.value.reason == "upload-refused"
    assert len(coordinator.starts) == 3


def test_a_fault_while_words_are_made_comes_out_as_it_is(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    class Broken:
        def fill(self, start: int, out: Words) -> None:
            guarded(lambda: 1 / 0)

    coordinator, link = pair
    with pytest.raises(WorkFailedError):
        link.upload(RUN, masked_upload(10, Broken()))
    assert not coordinator.counted


# -- downloads ----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 5000), cuts=st.lists(st.integers(0, 4999), max_size=3).map(sorted))
def test_a_download_cut_at_any_bytes_arrives_whole(
    pair: tuple[TinyCoordinator, GrpcLink], size: int, cuts: list[int]
) -> None:
    coordinator, link = pair
    cuts = [cut for cut in cuts if cut < size]
    coordinator.__init__(cuts=list(cuts))  # type: ignore[misc] # as new for every example
    content = os.urandom(size)
    assert link.download(RUN, coordinator.publish(content)) == content
    assert coordinator.starts == [0, *cuts]


def test_content_that_is_not_what_its_digest_says(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    digest = coordinator.publish(b"another model", content_digest(b"the model"))
    with pytest.raises(ContentMismatchError, match="digest"):
        link.download(RUN, digest)
    with pytest.raises(CoordinatorRefusalError) as refused:
        link.download(RUN, "0" * 64)
    assert refused.value.reason == "unknown-content"


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ([pb.DownloadResponse(length=LARGEST_CONTENT + 1)], "too large"),
        ([pb.DownloadResponse(length=3), pb.DownloadResponse(chunk=b"four")], "more bytes"),
        ([pb.DownloadResponse(length=9)], "early"),
        ([], "early"),
    ],
)
def test_a_download_that_lies_about_its_length(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, answers: list[pb.DownloadResponse], what: str
) -> None:
    monkeypatch.setattr(TinyCoordinator, "Download", lambda *_: iter(answers))
    with Serving(TinyCoordinator(), authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-3"), stop=Hasty())
        with pytest.raises(ContentMismatchError, match=what):
            link.download(RUN, "0" * 64)
        link.close()


def test_the_library_fetches_once_and_forgets_the_oldest(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    a, b, c = (coordinator.publish(bytes([k]) * 40) for k in range(3))
    library = LinkLibrary(link, RUN, capacity=100)
    for digest in (a, b, a, c, a):  # b makes room for c
        assert content_digest(library.fetch(digest)) == digest
    assert len(coordinator.starts) == 3
    library.fetch(b)
    assert len(coordinator.starts) == 4
    large = coordinator.publish(bytes(101))
    library.fetch(large)
    library.fetch(large)
    library.fetch(b)
    assert len(coordinator.starts) == 6


def test_more_than_was_agreed_is_refused_before_it_is_taken(pair: tuple[TinyCoordinator, GrpcLink]) -> None:
    coordinator, link = pair
    digest = coordinator.publish(bytes(101))
    library = LinkLibrary(link, RUN, capacity=100)
    assert library.fetch(digest, 101) == bytes(101)
    with pytest.raises(ContentMismatchError, match="101 bytes is too large, 100"):
        library.fetch(digest, 100)
    with pytest.raises(ContentMismatchError, match="too large"):
        next(library.pieces(digest, 50))  # small as it is said to be, it would be taken whole


# -- who answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.INSTITUTION, Role.OPERATOR])
def test_another_role_with_a_servers_certificate_is_refused(authority: Authority, role: Role) -> None:
    coordinator = TinyCoordinator()
    with Serving(coordinator, authority.forged_server(role, "impostor")) as serving:
        link = GrpcLink(Address("localhost", serving.port), authority.files(Role.INSTITUTION, "brca-4"), stop=Hasty())
        with pytest.raises(CoordinatorIdentityError, match="not the coordinator's"):
            link.invitation()
    assert coordinator.callers == []


def test_a_member_of_the_federation_cannot_answer_for_the_coordinator(authority: Authority) -> None:
    coordinator = TinyCoordinator()
    with Serving(coordinator, authority.files(Role.INSTITUTION, "lusc-1")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-4"), stop=Hasty())
        with pytest.raises(CoordinatorIdentityError):
            link.invitation()
    assert coordinator.callers == []


def test_a_coordinator_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)  # of the same name
    coordinator = TinyCoordinator()
    with Serving(coordinator, other.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-4"), stop=Hasty())
        with pytest.raises(CoordinatorIdentityError, match="not the coordinator's"):
            link.invitation()
    assert coordinator.callers == []


def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    with Serving(TinyCoordinator(), authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.2", serving.port), authority.files(Role.INSTITUTION, "brca-4"), attempts=1)
        with pytest.raises((CoordinatorIdentityError, CoordinatorUnreachableError)):
            link.invitation()


def test_a_node_that_the_coordinator_does_not_take_is_told_so(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    files = authority.files(Role.COORDINATOR, "coordinator")
    mistrusting = replace(files, authority=other.files(Role.COORDINATOR, "coordinator").authority)
    with Serving(TinyCoordinator(), mistrusting) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), authority.files(Role.INSTITUTION, "brca-4"), stop=Hasty())
        with pytest.raises(CoordinatorIdentityError, match="refuses this node's certificate"):
            link.invitation()


def test_tls_1_2_is_refused(authority: Authority) -> None:
    files = authority.files(Role.COORDINATOR, "coordinator")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            peer, _ = listening.accept()
            with peer, pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(peer, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        address = Address("127.0.0.1", listening.getsockname()[1])
        link = GrpcLink(address, authority.files(Role.INSTITUTION, "brca-4"), stop=Hasty())
        with pytest.raises(CoordinatorIdentityError, match=r"TLS 1\.3"):
            link.invitation()
        thread.join()


# -- going on -----------------------------------------------------------------------------------------------------


class Counting(LinkWatcher):
    def __init__(self, after: int, then: threading.Event) -> None:
        self.failures: list[str] = []
        self._after, self._then = after, then

    def unreachable(self, error: ConsiliumError, wait_seconds: float) -> None:
        assert wait_seconds >= 0
        self.failures.append(error.code)
        if len(self.failures) == self._after:
            self._then.set()


def test_nobody_there_is_tried_again_until_the_node_is_stopped(authority: Authority) -> None:
    stop = Hasty()
    counting = Counting(20, stop)
    address = Address("127.0.0.1", free_port())
    link = GrpcLink(address, authority.files(Role.INSTITUTION, "brca-4"), stop=stop, watcher=counting)
    with pytest.raises(StoppedError):
        link.invitation()
    assert counting.failures == ["coordinator-unreachable"] * 20
    once = GrpcLink(address, authority.files(Role.INSTITUTION, "brca-4"), attempts=1)
    with pytest.raises(CoordinatorUnreachableError):
        once.invitation()


def test_a_coordinator_that_comes_back_with_a_new_certificate_is_met_again(authority: Authority) -> None:
    coordinator = TinyCoordinator()
    node = authority.files(Role.INSTITUTION, "brca-5")
    back = threading.Event()
    serving = [Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator"))]
    port = serving[0].port

    class Restarting(LinkWatcher):
        def unreachable(self, error: ConsiliumError, wait_seconds: float) -> None:
            if not back.is_set():
                back.set()
                serving.append(Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator"), port))

    link = GrpcLink(Address("127.0.0.1", port), node, stop=Hasty(), watcher=Restarting())
    assert link.invitation() == b"plan"
    serving[0].close()
    assert link.invitation() == b"plan"
    assert back.is_set()
    link.close()
    serving[1].close()


def test_the_nodes_own_new_certificate_is_shown_without_a_restart(authority: Authority) -> None:
    coordinator = TinyCoordinator()
    key = IdentityKey.generate()
    files = authority.files(Role.INSTITUTION, "brca-6", key=key)
    with Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), files, stop=Hasty())
        link.invitation()
        link.invitation()
        authority.files(Role.INSTITUTION, "brca-6", key=key, days=60)
        link.invitation()
        link.close()
    first, again, renewed = coordinator.callers
    assert first == again != renewed
    assert renewed == identity_of(files.certificate.read_bytes()).fingerprint


def test_a_coordinator_that_this_node_revokes_is_left_at_the_next_call(authority: Authority) -> None:
    coordinator = TinyCoordinator()
    served = authority.files(Role.COORDINATOR, "coordinator-2")
    files = authority.files(Role.INSTITUTION, "brca-7")
    with Serving(coordinator, served) as serving:
        link = GrpcLink(Address("127.0.0.1", serving.port), files, stop=Hasty())
        link.invitation()
        assert files.revocations is not None
        files.revocations.write_text(identity_of(served.certificate.read_bytes()).fingerprint + "\n")
        with pytest.raises(CoordinatorIdentityError, match="revoked"):
            link.invitation()
    assert len(coordinator.callers) == 1


def test_whoever_takes_the_coordinators_place_later_gets_no_call(authority: Authority) -> None:
    honest, impostor = TinyCoordinator(), TinyCoordinator()
    first = Serving(honest, authority.files(Role.COORDINATOR, "coordinator"))
    link = GrpcLink(Address("localhost", first.port), authority.files(Role.INSTITUTION, "brca-8"), stop=Hasty())
    link.invitation()
    first.close()
    # Of the right authority, for the right host: the channel would go on with it, were it not held to one certificate.
    with Serving(impostor, authority.forged_server(Role.OPERATOR, "impostor"), first.port):
        with pytest.raises(CoordinatorIdentityError):
            link.invitation()
        assert impostor.callers == []
    link.close()
