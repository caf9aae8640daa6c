"""Turns of transfers: never more institutions than allowed, first come first served, and none waits for itself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import given
from hypothesis import strategies as st

from coordinator.turns import Turns


async def settle() -> None:
    """Lets everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_next_in_line_begins_when_one_ends() -> None:
    async def story() -> list[str]:
        turns, told = Turns(1), list[str]()
        ends = {name: asyncio.Event() for name in "abc"}

        async def transfer(name: str) -> None:
            async with turns.of(name):
                told.append(name)
                await ends[name].wait()

        tasks = [asyncio.create_task(transfer(name)) for name in "abc"]
        await settle()
        assert (told, turns.waiting) == (["a"], 2)
        for name in "abc":
            ends[name].set()
            await settle()
        await asyncio.gather(*tasks)
        return told

    assert asyncio.run(story()) == ["a", "b", "c"]


def test_an_institution_that_has_its_turn_waits_for_no_second_one() -> None:
    async def story() -> None:
        turns = Turns(1)
        async with turns.of("a"), AsyncExitStack() as others:
            await others.enter_async_context(turns.of("a"))  # it could not go on without
            waiting = [asyncio.create_task(others.enter_async_context(turns.of("b"))) for _ in range(2)]
            await settle()
            assert turns.waiting == 2
        await settle()
        assert turns.waiting == 0  # both of b's, at once
        await asyncio.gather(*waiting)

    asyncio.run(story())


def test_who_gives_up_waiting_leaves_the_line_and_gives_a_turn_back() -> None:
    async def story() -> None:
        turns, begun = Turns(1), list[str]()

        async def transfer(name: str) -> None:
            async with turns.of(name):
                begun.append(name)

        async with turns.of("a"):
            gone, kept = (asyncio.create_task(transfer(name)) for name in "bc")
            await settle()
            gone.cancel()
            await settle()
            assert turns.waiting == 1
            late = asyncio.create_task(transfer("d"))
            await settle()
            kept.cancel()  # may be given its turn in the moment in which it goes
        await asyncio.gather(gone, kept, late, return_exceptions=True)
        assert begun[-1] == "d"
        async with turns.of("e"):
            assert turns.waiting == 0

    asyncio.run(story())


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=30))
def test_never_more_than_allowed_and_nobody_is_forgotten(at_once: int, transfers: list[tuple[str, int]]) -> None:
    async def story() -> None:
        turns, now, done = Turns(at_once), list[str](), 0

        async def transfer(name: str, steps: int) -> None:
            nonlocal done
            async with turns.of(name):
                now.append(name)
                assert len(set(now)) <= at_once
                for _ in range(steps):
                    await asyncio.sleep(0)
                now.remove(name)
            done += 1

        await asyncio.gather(*(transfer(*t) for t in transfers))
        assert done == len(transfers)

    asyncio.run(asyncio.wait_for(story(), 10))
