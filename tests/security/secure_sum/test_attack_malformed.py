"""Bytes from outside: whatever they are, a typed error and no change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import ConsiliumError
from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
)
from security.secure_sum.messages import (
    MAX_PAYLOAD_BYTES,
    KeyMessage,
    Opening,
    ShareMessage,
    Signed,
    SurvivorList,
    UploadHeader,
)
from tests.security.secure_sum.harness import World, make_attempt
from tests.security.secure_sum.lies import (
    COLLUDER,
    SIX,
    signed,
)
from tests.security.secure_sum.refusals import aggregator_state, member_state, refuses


class TestMalformed:
    """Bytes from outside: whatever they are, a typed error and no change."""

    @staticmethod
    def feed(world: World, messages: dict[str, Signed]) -> None:
        """Every message to whoever takes it; each either is taken or raises a typed error and changes nothing."""
        machine, north = world.aggregator, world["north"]
        calls: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (partial(machine.take_keys, messages["keys"]), partial(aggregator_state, machine)),
            (partial(machine.take_shares, COLLUDER, [messages["shares"]]), partial(aggregator_state, machine)),
            (partial(machine.take_header, messages["header"]), partial(aggregator_state, machine)),
            (partial(machine.take_signature, messages["list"]), partial(aggregator_state, machine)),
            (partial(machine.take_opening, messages["opening"]), partial(aggregator_state, machine)),
            (partial(north.sign, messages["list"].payload), partial(member_state, north)),
            (partial(north.open, [messages["list"]]), partial(member_state, north)),
        ]
        for call, state in calls:
            before = state()
            try:
                call()
            except ConsiliumError:
                assert state() == before

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_random_and_mutated_bytes_never_crash_a_machine(self, data: st.DataObject) -> None:
        """Signed by a real key, so that the parser is reached; in every phase of the aggregator."""
        stage = data.draw(st.integers(0, 4))
        world = World(make_attempt(SIX))
        valid = valid_messages()
        if stage >= 1:
            world.send_keys()
        if stage >= 2:
            relayed = list(world.aggregator.keys.values())
            world.deal(relayed)
            world.accept()
            world.enter("A", SIX)
        if stage >= 3:
            for name in SIX:
                world.upload("A", name)
            payload = world.aggregator.close_uploads()
        if stage >= 4:
            for name in SIX[1:]:
                world.aggregator.take_signature(world[name].sign(payload))
            world.aggregator.decide()
        kinds = {"keys": derive.TAG_KEYS, "shares": derive.TAG_SHARES, "header": derive.TAG_UPLOAD}
        kinds |= {"list": derive.TAG_LIST, "opening": derive.TAG_OPENING}
        messages = {}
        for kind, tag in kinds.items():
            messages[kind] = signed(COLLUDER, tag, data.draw(mutations(valid[kind])))
        self.feed(world, messages)

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_decoders_raise_nothing_but_typed_errors(self, data: st.DataObject) -> None:
        valid = valid_messages()
        for kind, decode in (
            ("keys", KeyMessage.decode),
            ("shares", ShareMessage.decode),
            ("header", UploadHeader.decode),
            ("list", SurvivorList.decode),
            ("opening", Opening.decode),
        ):
            payload = data.draw(st.one_of(st.binary(max_size=80), mutations(valid[kind])))
            with suppress(MalformedMessageError):
                decode(payload)

    def test_oversized_messages_are_refused_unparsed(self) -> None:
        small = signed("north", derive.TAG_KEYS, b"x").to_proto()
        assert Signed.from_proto(small).payload == b"x"
        small.payload = bytes(MAX_PAYLOAD_BYTES + 1)
        with pytest.raises(MalformedMessageError):
            Signed.from_proto(small)
        small.payload, small.signature = b"x", bytes(81)
        with pytest.raises(MalformedMessageError):
            Signed.from_proto(small)

    def test_a_member_that_receives_garbage_for_shares_goes_on(self) -> None:
        world = World(make_attempt(SIX))
        world.deal(world.send_keys())
        good = list(world.aggregator.shares_for("north"))
        for garbage in (b"", b"\xff" * 40, good[0].payload[:-7]):
            lie = signed(good[0].signer, derive.TAG_SHARES, garbage)
            refuses(ConsiliumError, world["north"].accept, SIX, [lie, *good[1:]])
        world.accept()
        assert world.whole_sum("A") == world.expected("A", SIX)


_VALID: dict[str, bytes] = {}


def valid_messages() -> dict[str, bytes]:
    """Payloads of the colluder in an honest attempt with the default seed."""
    if not _VALID:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        _VALID["keys"] = world[COLLUDER].make_keys().payload
        _VALID["shares"] = world[COLLUDER].deal(relayed)["north"].payload
        world.deal(relayed)
        world.accept()
        _VALID["list"] = world.upload_all("A")
        _VALID["header"] = world.aggregator.current.headers[COLLUDER].payload
        world.sign_and_open("A", SIX, SIX)
        _VALID["opening"] = world.aggregator.current.openings[COLLUDER].payload
    return _VALID


@st.composite
def mutations(draw: st.DrawFn, payload: bytes) -> bytes:
    """`payload` with a few bytes changed, cut, doubled or inserted."""
    data = bytearray(payload)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "double")))
        if kind == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=6))
        else:
            data += data[at:]
    return bytes(data)
