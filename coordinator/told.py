"""What an attempt tells its institutions, made once a phase: hundreds of them ask again and again for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Told(Generic[T]):
    """Values that hold while an attempt stays at one place; all are forgotten when it moves on, and end with it."""

    def __init__(self) -> None:
        self._place: Hashable = None
        self._made: dict[Hashable, T] = {}

    def once(self, place: Hashable, key: Hashable, make: Callable[[], T]) -> T:
        """What was made under `key` at this place; makes it where nobody asked before.

        Args:
            place: where the attempt stands (`Attempt.place`).
            key: what is asked for, and by whom where not all are told the same. The same key at the same place must
                always mean the same value.
            make: makes it.
        """
        if place != self._place:
            self._place, self._made = place, {}
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
