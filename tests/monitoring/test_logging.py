"""Whatever a line is given, it says sizes, names and codes, and never a value."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from monitoring.logging import FIELDS, OMITTED, configure_logging, only_known_fields
from security.errors import ConsiliumError

CANARY = 31415926.535


class NamedError(ConsiliumError):
    code = "named-error"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    out = io.StringIO()
    before = logging.getLogger().handlers[:]
    configure_logging(out)
    yield out
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = before


def line(stream: io.StringIO) -> dict[str, object]:
    (text,) = stream.getvalue().splitlines()
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_sizes_names_and_codes_pass(stream: io.StringIO) -> None:
    structlog.get_logger("x").info(
        "upload-complete",
        institution="north",
        component="encoder/mrna",
        subset="mrna+image",
        bytes=1024,
        seconds=0.25,
        path=Path("state/spool"),
        culprits=("south",),
        resumed=True,
    )
    found = line(stream)
    time = datetime.fromisoformat(str(found.pop("timestamp")))
    assert time.utcoffset() == timedelta(0)
    assert found == {
        "event": "upload-complete",
        "level": "info",
        "institution": "north",
        "component": "encoder/mrna",
        "subset": "mrna+image",
        "bytes": 1024,
        "seconds": 0.25,
        "path": "state/spool",
        "culprits": ["south"],
        "resumed": True,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": CANARY},
        {"weights": np.full(3, CANARY)},
        {"bytes": CANARY},
        {"bytes": np.int64(31415926)},
        {"round": [31415926]},
        {"run": {"loss": CANARY}},
        {"institution": np.float64(CANARY)},
        {"culprits": [CANARY]},
        {"institution": b"31415926"},
        {"complete": 31415926},
        {"left_out": ["31415926"]},
        {"31415926 as a\nfield": 1},
    ],
)
def test_values_do_not_pass_and_their_field_is_told(stream: io.StringIO, fields: dict[str, object]) -> None:
    structlog.get_logger().info("event", **fields)
    assert "31415926" not in stream.getvalue()
    assert "left_out" in line(stream)


@pytest.mark.parametrize("name", ["key", "private_key", "seed", "mask_seeds", "shares", "password", "seed_share"])
def test_secrets_read_omitted(stream: io.StringIO, name: str) -> None:
    structlog.get_logger().info("event", **{name: b"\x01canary"})
    assert "canary" not in stream.getvalue()
    assert line(stream)[name] == OMITTED


def test_numbers_formatted_into_an_event_do_not_pass(stream: io.StringIO) -> None:
    structlog.get_logger().info(f"loss is {CANARY}")
    assert "31415926" not in stream.getvalue()
    assert "535" not in stream.getvalue()


def test_an_error_leaves_its_code_and_not_its_message(stream: io.StringIO) -> None:
    def fail() -> None:
        raise NamedError(f"stage {CANARY} is unknown.", culprits=("south",))

    try:
        fail()
    except NamedError:
        structlog.get_logger().exception("round-failed")
    found = line(stream)
    assert (found["error"], found["code"], found["culprits"]) == ("NamedError", "named-error", ["south"])
    assert str(found["raised_at"]).startswith("test_logging.py:")
    assert "31415926" not in stream.getvalue()
    assert "left_out" not in found


def test_what_a_library_says_stays_out(stream: io.StringIO) -> None:
    logging.getLogger("some.library").warning("value %s of patient", CANARY)
    logging.getLogger("some.library").info("not worth a line")
    found = line(stream)
    assert (found["logger"], found["level"]) == ("some.library", "warning")
    assert "31415926" not in stream.getvalue()


def test_context_is_checked_too(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(run="demo", loss=CANARY):
        structlog.get_logger().info("event")
    assert line(stream)["run"] == "demo"
    assert "31415926" not in stream.getvalue()


def test_a_terminal_gets_lines_for_people() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = logging.getLogger().handlers[:]
    out = Terminal()
    try:
        configure_logging(out)
        structlog.get_logger().info("upload-complete", bytes=7)
        structlog.get_logger().debug("too quiet")
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = before
    assert "upload-complete" in out.getvalue()
    assert not out.getvalue().startswith("{")
    assert "too quiet" not in out.getvalue()


VALUES = st.one_of(
    st.none(),
    st.floats(),
    st.binary(),
    st.text(),
    st.lists(st.floats(), min_size=1),
    st.dictionaries(st.text(), st.floats()),
    st.builds(np.float32, st.floats(width=32)),
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(), VALUES))
def test_no_array_mapping_or_unknown_number_survives(fields: dict[str, object]) -> None:
    kept = only_known_fields(None, "info", dict(fields))
    for name, value in kept.items():
        assert isinstance(value, str | int | float | list | tuple)
        if type(value) is float:
            assert name.endswith("seconds") or name.endswith("per_second")
        if isinstance(value, list | tuple):
            assert all(isinstance(item, str) for item in value)
    json.dumps(kept)
