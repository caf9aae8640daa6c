"""So many institutions transfer at a time; the others wait in the order in which they came, and hold next to nothing.

A transfer under way keeps a window and two or three chunks in memory. Without a bound the coordinator's memory would
grow with the institutions; with one it does not, and nothing is lost: disk and processor are shared either way.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Of one event loop. An institution whose turn it is may have several transfers under way: some need two at once.

    Args:
        at_once: institutions that have a turn at a time, at least 1.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._under_way: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Transfers that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def of(self, institution: str) -> AsyncIterator[None]:
        """One transfer of an institution; begins when it has its turn."""
        await self._begin(institution)
        try:
            yield
        finally:
            self._end(institution)

    async def _begin(self, institution: str) -> None:
        if institution in self._under_way or (len(self._under_way) < self._at_once and not self._waiting):
            self._under_way[institution] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((institution, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(institution)  # it was given in the same moment
            else:
                self._waiting = deque(w for w in self._waiting if w[1] is not turn)
            raise

    def _end(self, institution: str) -> None:
        self._under_way[institution] -= 1
        if not self._under_way[institution]:
            del self._under_way[institution]
        self._waiting = deque(w for w in self._waiting if not w[1].done())  # who gave up has not left the line yet
        while self._waiting and len(self._under_way) < self._at_once:
            self._give(self._waiting[0][0])

    def _give(self, institution: str) -> None:
        """A turn to an institution, for all of its transfers that wait."""
        for name, turn in self._waiting:
            if name == institution:
                self._under_way[name] += 1
                turn.set_result(None)
        self._waiting = deque(w for w in self._waiting if w[0] != institution)
