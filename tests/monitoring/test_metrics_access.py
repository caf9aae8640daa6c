"""Who may fetch metrics: TLS with a token, with a client's certificate, or both; and nobody keeps others from them."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from monitoring import exposition
from monitoring.exposition import Access, MetricsAddressError, MetricsServer
from monitoring.metrics import CoordinatorMetrics

TOKEN = "0123456789abcdef0123456789abcdef"


class Place:
    """An authority, the server's files and a client's."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.chain, self.key, self.clients, self.token = (
            folder / n for n in ("chain.pem", "key.pem", "ca.pem", "token")
        )
        issued = self.authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.authority.cert_pem.write_to_path(str(self.clients))
        self.token.write_text(TOKEN + "\n")

    def serve(self, *, clients: bool = False, token: bool = False) -> MetricsServer:
        access = Access((self.chain, self.key), self.clients if clients else None, self.token if token else None)
        return MetricsServer(CoordinatorMetrics(CollectorRegistry()), "127.0.0.1", 0, access)

    def client(self, *authorities: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        for authority in authorities:
            authority.issue_cert("prometheus", key_type=trustme.KeyType.ECDSA).configure_cert(context)
        return context


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def fetch(server: MetricsServer, context: ssl.SSLContext, token: str | None = None) -> tuple[int, bytes]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with closing(http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)) as line:
        line.request("GET", "/metrics", headers=headers)
        answer = line.getresponse()
        return answer.status, answer.read()


def test_a_token_opens_and_nothing_else_does(place: Place) -> None:
    with place.serve(token=True) as server:
        status, page = fetch(server, place.client(), TOKEN)
        assert status == 200
        assert b"consilium_current_round" in page
        for wrong in (None, "", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\u00e9"):
            status, page = fetch(server, place.client(), wrong)
            assert status == 401
            assert b"consilium" not in page


def test_a_client_s_certificate_opens_and_nothing_else_does(place: Place) -> None:
    with place.serve(clients=True) as server:
        assert fetch(server, place.client(place.authority))[0] == 200
        for stranger in (place.client(), place.client(trustme.CA(key_type=trustme.KeyType.ECDSA))):
            with pytest.raises((OSError, http.client.HTTPException)):
                fetch(server, stranger)


def test_where_both_are_asked_for_both_are_needed(place: Place) -> None:
    with place.serve(clients=True, token=True) as server:
        assert fetch(server, place.client(place.authority), TOKEN)[0] == 200
        assert fetch(server, place.client(place.authority))[0] == 401
        with pytest.raises((OSError, http.client.HTTPException)):
            fetch(server, place.client(), TOKEN)


def test_attack_a_connection_that_says_nothing_keeps_nobody_waiting(place: Place) -> None:
    with place.serve(token=True) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10):
        assert fetch(server, place.client(), TOKEN)[0] == 200


def test_attack_hundreds_of_silent_connections_take_a_bounded_number_of_threads(place: Place) -> None:
    before = threading.active_count()
    with ExitStack() as lines, place.serve(token=True) as server:
        silent = [
            lines.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5)) for _ in range(120)
        ]
        assert fetch(server, place.client(), TOKEN)[0] == 200
        assert silent[0].recv(1) == b""  # the oldest gave way, before its own patience ended
        for line in silent[:80]:
            assert line.recv(1) == b""
        assert threading.active_count() - before <= 40


def test_attack_a_byte_now_and_then_keeps_no_connection_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_LONGEST_SECONDS", 0.0)
    with (
        MetricsServer(CoordinatorMetrics(CollectorRegistry()), "127.0.0.1", 0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as line,
    ):
        line.sendall(b"G")
        with suppress(ConnectionResetError):
            assert line.recv(1) == b""


def test_attack_a_stranger_s_bytes_end_its_own_connection_only(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    with place.serve(token=True) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
            line.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"consilium" not in line.recv(4096)
        assert fetch(server, place.client(), TOKEN)[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [("short", "shorter"), ("", "shorter"), ("with spaces in the middle of it", "spaces"), ("\u00e9" * 40, "read")],
)
def test_a_token_that_is_none_is_refused(place: Place, text: str, said: str) -> None:
    place.token.write_text(text, encoding="utf-8")
    with pytest.raises(MetricsAddressError, match=said) as refused:
        place.serve(token=True)
    assert refused.value.place == str(place.token)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("field", ["clients", "token"])
def test_neither_goes_without_tls(place: Place, field: str) -> None:
    access = Access(None, place.clients if field == "clients" else None, place.token if field == "token" else None)
    with pytest.raises(MetricsAddressError, match="TLS"):
        MetricsServer(CoordinatorMetrics(CollectorRegistry()), "127.0.0.1", 0, access)
