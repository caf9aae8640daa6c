"""A bad line: passes connections of loopback on to another port, and breaks them off at the bytes that a test names."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence

UP, DOWN = 0, 1


class BadLine:
    """Passes TCP connections on; until `close`.

    Args:
        port: of 127.0.0.1, where they go.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._lock = threading.Lock()
        self._passed = [0, 0]
        self._cuts: list[list[int]] = [[], []]
        self.broken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def cut_at(self, up: Sequence[int] = (), down: Sequence[int] = ()) -> None:
        """Counts from now on what passes over all connections; the one that carries one of these bytes breaks off."""
        with self._lock:
            self._passed, self._cuts, self.broken = [0, 0], [sorted(up), sorted(down)], 0

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> BadLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # nobody listens there now
                near.close()
                continue
            for way, source, target in ((UP, near, far), (DOWN, far, near)):
                threading.Thread(target=self._pass, args=(way, source, target), daemon=True).start()

    def _pass(self, way: int, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                keep, cut = self._admit(way, len(data))
                target.sendall(data[:keep])
                if cut:
                    break
        _break_off(source, target)

    def _admit(self, way: int, size: int) -> tuple[int, bool]:
        """How much of so many bytes still passes, and whether the line breaks then."""
        with self._lock:
            cuts, passed = self._cuts[way], self._passed[way]
            if not cuts or passed + size <= cuts[0]:
                self._passed[way] += size
                return size, False
            keep = max(0, cuts.pop(0) - passed)
            self._passed[way] += keep
            self.broken += 1
            return keep, True


def _break_off(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            end.close()
