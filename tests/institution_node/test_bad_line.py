"""Transfers over a line that breaks at any byte, TLS and all: they go on where they stopped, with the same bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.settings_files import Address
from institution_node.grpc_link import GrpcLink
from security.certificates import Role
from tests.bad_line import BadLine
from tests.institution_node.tiny_coordinator import RUN, Authority, Serving, TinyCoordinator, masked_upload

SIZE = 2_500_000
CUTS = st.lists(st.integers(0, SIZE + 20_000), max_size=4)
EACH = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Hasty(threading.Event):
    """Waits between attempts no longer than the operating system needs."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0.001)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinyCoordinator, GrpcLink, BadLine]]:
    """A coordinator, and a node's link to it over a bad line."""
    authority, coordinator = Authority(tmp_path_factory.mktemp("pki")), TinyCoordinator()
    with (
        Serving(coordinator, authority.files(Role.COORDINATOR, "coordinator")) as serving,
        BadLine(serving.port) as line,
    ):
        link = GrpcLink(Address("127.0.0.1", line.port), authority.files(Role.INSTITUTION, "brca-1"), stop=Hasty())
        yield coordinator, link, line
        link.close()


@EACH
@given(up=CUTS, down=st.lists(st.integers(0, 6000), max_size=2))
def test_an_upload_over_a_line_that_breaks_anywhere_arrives_whole(
    far: tuple[TinyCoordinator, GrpcLink, BadLine], up: list[int], down: list[int]
) -> None:
    coordinator, link, line = far
    coordinator.__init__()  # type: ignore[misc] # as new for every example
    upload = masked_upload(SIZE // 4)
    line.cut_at(up, down)
    link.upload(RUN, upload)
    assert coordinator.counted
    assert bytes(coordinator.received) == b"".join(upload.chunks())


@EACH
@given(down=CUTS, up=st.lists(st.integers(0, 6000), max_size=2))
def test_a_download_over_a_line_that_breaks_anywhere_arrives_whole(
    far: tuple[TinyCoordinator, GrpcLink, BadLine], up: list[int], down: list[int]
) -> None:
    coordinator, link, line = far
    coordinator.__init__()  # type: ignore[misc] # as new for every example
    content = os.urandom(SIZE)
    digest = coordinator.publish(content)
    line.cut_at(up, down)
    assert link.download(RUN, digest) == content
    begins = coordinator.starts
    assert begins == sorted(begins)  # what has arrived is kept
    line.cut_at(up, down)
    passed = bytearray()
    for piece in link.pieces(RUN, digest, SIZE):
        passed.extend(piece)
    assert passed == content


def test_a_download_that_broke_goes_on_behind_what_had_arrived(far: tuple[TinyCoordinator, GrpcLink, BadLine]) -> None:
    coordinator, link, line = far
    coordinator.__init__()  # type: ignore[misc] # as new
    digest = coordinator.publish(os.urandom(SIZE))
    link.invitation()  # the connection stands
    line.cut_at(down=[SIZE // 2])
    link.download(RUN, digest)
    assert line.broken == 1
    assert len(coordinator.starts) == 2
    assert SIZE // 4 < coordinator.starts[1] < SIZE
