"""How fast this machine expands, sends, hashes and stores when it does nothing else: measured, on both cores.

Each rate is taken by as many processes as there are cores, started together, so that no lock of one interpreter is
measured instead of the machine.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
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
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from deploy.bench_floors import Rates
from federation.content_hash import ContentHash
from security.pki import Role, create_authority, create_request, sign_request
from security.signing import IdentityKey

BLOCK: Final = 1 << 20
_CHUNK: Final = 1 << 18
_STREAMS: Final = 8

Clock = Callable[[], float]
A = TypeVar("A")
T = TypeVar("T")


class RateMeter:
    """Processes that measure, started once and used for every reading.

    Attributes:
        cores: that this process may use, as many as measuring processes.

    Args:
        folder: on the disk that the bench's federation uses.
        seconds: each reading of a processor's rate takes; a disk's takes `disk_bytes`.
        disk_bytes: written and read by each process.
    """

    def __init__(self, folder: Path, seconds: float = 0.25, disk_bytes: int = 64 << 20) -> None:
        self._folder, self._seconds, self._disk_bytes = folder, seconds, disk_bytes
        self.cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(self.cores, mp_context=get_context("spawn"))
        self._together(time.sleep, 0.1)  # every process is up and has imported this module

    def __enter__(self) -> RateMeter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def measure(self, clock: Clock = time.perf_counter) -> Rates:
        """All rates, once.

        Args:
            clock: `time.perf_counter`: as the machine is now; `time.process_time`: bytes a second of processor time,
                times the cores, which others on the machine hardly change.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            disk = self._together(partial(_store, Path(folder), clock), self._disk_bytes)
        tls = tls_rate(self._seconds, clock)
        return Rates(
            keystream=sum(self._together(partial(_expand, clock), self._seconds)),
            # Both ends are in this process: its processor time is that of both.
            tls=tls if clock is time.perf_counter else tls * self.cores,
            hash=sum(self._together(partial(_hash, clock), self._seconds)),
            write=sum(w for w, _ in disk),
            read=sum(r for _, r in disk),
        )

    def _together(self, work: Callable[[float], T], argument: float) -> list[T]:
        # A common start: a process that begins early would have the machine to itself for a while.
        start = time.monotonic() + 0.05
        return list(self._pool.map(partial(_at, start, work), [argument] * self.cores))


def _at(start: float, work: Callable[[A], T], argument: A) -> T:
    time.sleep(max(0.0, start - time.monotonic()))
    return work(argument)


def _for(seconds: float, step: Callable[[], int], clock: Clock) -> float:
    """Bytes a second of repeated steps, the first not counted."""
    step()
    end, begun, done = time.perf_counter() + seconds, clock(), 0
    while time.perf_counter() < end:
        done += step()
    return done / (clock() - begun)


def expander() -> Callable[[], int]:
    """A step that expands AES-256-CTR keystreams and adds them to words, in chunks that stay in the cache.

    It returns the bytes. Written out here: measured with the product's own masks, a slower product would have a lower
    floor.
    """
    streams = [Cipher(AES(secrets.token_bytes(32)), CTR(bytes(16))).encryptor() for _ in range(_STREAMS)]
    zeros, scratch = bytes(_CHUNK), bytearray(_CHUNK + 16)
    words = np.zeros(BLOCK // 4, np.uint32)
    added = np.frombuffer(scratch, np.uint32, _CHUNK // 4)

    def step() -> int:
        for start in range(0, len(words), _CHUNK // 4):
            chunk = words[start : start + _CHUNK // 4]
            for stream in streams:
                stream.update_into(zeros, scratch)
                np.add(chunk, added, out=chunk)
        return _STREAMS * BLOCK

    return step


def hasher() -> Callable[[], int]:
    """A step that hashes a block the way that content and uploads are hashed; it returns the bytes."""
    block, running = secrets.token_bytes(BLOCK), ContentHash()

    def step() -> int:
        running.update(block)
        return BLOCK

    return step


def _expand(clock: Clock, seconds: float) -> float:
    return _for(seconds, expander(), clock)


def _hash(clock: Clock, seconds: float) -> float:
    return _for(seconds, hasher(), clock)


def _store(folder: Path, clock: Clock, size: float) -> tuple[float, float]:
    block = secrets.token_bytes(BLOCK)
    path = folder / str(os.getpid())
    count = max(1, int(size) // BLOCK)
    begun = clock()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    written = clock()
    into = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass
    done = clock()
    return count * BLOCK / (written - begun), count * BLOCK / (done - written)


# ---------------------------------------------------------------------------------------------------------- TLS


def tls_rate(seconds: float, clock: Clock = time.perf_counter) -> float:
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

            rate = _for(seconds, step, clock)
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
