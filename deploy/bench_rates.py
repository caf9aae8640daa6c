"""How fast this machine expands, sends, hashes and stores when it does nothing else: measured, on both cores.

Each rate is taken by as many processes as there are cores, started together, so that no lock of one interpreter is
measured instead of the machine.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from deploy.bench_floors import Rates
from security.pki import Role, create_authority, create_request, sign_request
from security.secure_sum.masks import Masker, SignedKey
from security.signing import IdentityKey

BLOCK: Final = 1 << 20
_KEYS: Final = 8

A = TypeVar("A")
T = TypeVar("T")


class RateMeter:
    """Processes that measure, started once and used for every reading.

    Args:
        folder: on the disk that the bench's federation uses.
        seconds: each reading of a processor's rate takes; a disk's takes `disk_bytes`.
        disk_bytes: written and read by each process.
    """

    def __init__(self, folder: Path, seconds: float = 0.4, disk_bytes: int = 128 << 20) -> None:
        self._folder, self._seconds, self._disk_bytes = folder, seconds, disk_bytes
        self._cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(self._cores, mp_context=get_context("spawn"))
        self._together(time.sleep, 0.1)  # every process is up and has imported this module

    def __enter__(self) -> RateMeter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def measure(self) -> Rates:
        """All rates, once."""
        written, read = self._disk()
        return Rates(
            keystream=sum(self._together(_expand, self._seconds)),
            tls=tls_rate(self._seconds),
            hash=sum(self._together(_hash, self._seconds)),
            write=written,
            read=read,
        )

    def _together(self, work: Callable[[float], T], argument: float) -> list[T]:
        # A common start: a process that begins early would have the machine to itself for a while.
        start = time.monotonic() + 0.05
        return list(self._pool.map(partial(_at, start, work), [argument] * self._cores))

    def _disk(self) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            rates = self._together(partial(_store, Path(folder)), self._disk_bytes)
        return sum(w for w, _ in rates), sum(r for _, r in rates)


def median_rates(readings: list[Rates]) -> Rates:
    """The median of each rate."""
    return Rates(**{name: statistics.median(getattr(r, name) for r in readings) for name in Rates.__dataclass_fields__})


def _at(start: float, work: Callable[[A], T], argument: A) -> T:
    time.sleep(max(0.0, start - time.monotonic()))
    return work(argument)


def _for(seconds: float, step: Callable[[], int]) -> float:
    """Bytes a second of repeated steps, the first not counted."""
    step()
    begun, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        done += step()
    return done / passed


def expander(blocks: int = 1) -> Callable[[], int]:
    """A step that expands and adds keystreams as an institution does while it masks; it returns the bytes."""
    masker = Masker([SignedKey(1 if k % 2 else -1, secrets.token_bytes(32)) for k in range(_KEYS)])
    words = np.zeros(blocks * BLOCK // 4, np.uint32)

    def step() -> int:
        masker.apply(words, 0)
        return _KEYS * words.nbytes

    return step


def hasher() -> Callable[[], int]:
    """A step that hashes a block the way that content and uploads are hashed; it returns the bytes."""
    block, running = secrets.token_bytes(BLOCK), hashlib.sha256()

    def step() -> int:
        running.update(block)
        return BLOCK

    return step


def _expand(seconds: float) -> float:
    return _for(seconds, expander())


def _hash(seconds: float) -> float:
    return _for(seconds, hasher())


def _store(folder: Path, size: float) -> tuple[float, float]:
    block = secrets.token_bytes(BLOCK)
    path = folder / str(os.getpid())
    count = max(1, int(size) // BLOCK)
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter()
    into = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass
    done = time.perf_counter()
    return count * BLOCK / (written - begun), count * BLOCK / (done - written)


# ---------------------------------------------------------------------------------------------------------- TLS


def tls_rate(seconds: float) -> float:
    """Bytes a second through one TLS 1.3 connection on loopback; sealing has one core and opening the other."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listening:
        server, client = _contexts(Path(folder))
        received: list[int] = []

        def receive() -> None:
            raw, _ = listening.accept()
            with server.wrap_socket(raw, server_side=True) as connection:
                buffer = bytearray(BLOCK)
                while got := connection.recv_into(buffer):
                    received.append(got)

        receiver = threading.Thread(target=receive, daemon=True)  # OpenSSL works without the interpreter's lock
        receiver.start()
        with client.wrap_socket(
            socket.create_connection(listening.getsockname()), server_hostname="127.0.0.1"
        ) as connection:
            block = secrets.token_bytes(BLOCK)

            def step() -> int:
                connection.sendall(block)
                return BLOCK

            rate = _for(seconds, step)
        receiver.join(10.0)
        return rate


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    now = datetime.now(UTC)
    authority_key, authority = create_authority("bench", now, 2)
    key, named = IdentityKey.generate(), (Role.COORDINATOR, "coordinator")
    request = create_request(key, "bench", *named, (), ("127.0.0.1",))
    signed = sign_request(authority_key, authority, request, now, 1, role=named[0], name=named[1])
    (folder / "certificate.pem").write_bytes(signed)
    (folder / "key.pem").write_bytes(key.to_pem())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authority.decode())
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return server, client
