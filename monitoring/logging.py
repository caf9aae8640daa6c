"""Logs that carry sizes, names and codes, and never values (DESIGN.md, "What a node shows").

Only the fields of `FIELDS` pass, each only with a value of its kind; there is no kind for arrays, mappings or numbers
of unknown meaning. What does not pass is left out, and its name (never its value) is told, so that a missing field is
noticed. Secrets read `(omitted)`. An error leaves its type, code and place in our code, not its message or its
arguments, which may hold what a patient's table said.

Readable lines on a terminal, JSON elsewhere; times are UTC.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path, PurePath
from typing import Any, Final, TextIO

import structlog

from security.errors import ConsiliumError

OMITTED: Final = "(omitted)"
_LONGEST: Final = 300

_SECRET: Final = re.compile(r"(^|_)(key|secret|seed|share|token|password|private|mask|nonce)s?($|_)")
_TEXT: Final = re.compile(rf"[^\x00-\x1f\x7f]{{0,{_LONGEST}}}")
_CODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+/ -]{0,120}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _CODE.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return (isinstance(value, str) and _TEXT.fullmatch(value) is not None) or isinstance(value, PurePath)


def _is_count(value: object) -> bool:
    return type(value) is int  # not bool, and not numpy's, which come out of computations


def _is_duration(value: object) -> bool:
    return type(value) in (int, float)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 200 and all(_is_name(item) for item in value)


_GROUPS: Final[Mapping[Callable[[object], bool], tuple[str, ...]]] = {
    _is_name: (
        *("event", "level", "logger", "timestamp", "error", "raised_at", "code", "reason", "status", "phase", "kind"),
        *("federation", "run", "institution", "component", "subset", "combination", "sum", "part", "method", "rule"),
        *("digest", "fingerprint", "not_after", "version", "role", "backend", "data", "signal", "peer", "host"),
    ),
    _is_text: ("place", "remedy", "path", "address"),
    _is_count: (
        *("round", "attempt", "seq", "serial", "port", "pid", "bytes", "length", "offset", "words", "parameters"),
        *("institutions", "survivors", "dropouts", "contributors", "components", "uploads", "shares_opened"),
        *("rounds", "attempts", "files", "revoked", "expected", "limit", "threshold", "k_min", "retries", "exit_code"),
    ),
    _is_duration: ("seconds", "wait_seconds", "deadline_seconds", "words_per_second", "bytes_per_second"),
    _is_flag: ("synthetic", "resumed", "complete", "durable"),
    _is_names: ("culprits", "missing", "alive", "gone", "left_out"),
}
# Every field that a log line may have. Add here, and nowhere else; never a kind for values.
FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    name: check for check, names in _GROUPS.items() for name in names
}

EventDict = MutableMapping[str, Any]


def only_known_fields(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Keeps the fields that `FIELDS` allows; names the others under `left_out`, without their values."""
    kept: EventDict = {}
    left_out = []
    for name, value in event_dict.items():
        check = FIELDS.get(name)
        if check is not None and name != "left_out" and check(value):
            kept[name] = str(value) if isinstance(value, PurePath) else value
        elif _SECRET.search(name):
            kept[name if _CODE.fullmatch(name) else "secret"] = OMITTED
        else:
            left_out.append(name if _CODE.fullmatch(name) else "?")
    # An event is a constant of the program: digits in it are a value that somebody formatted in.
    kept["event"] = re.sub(r"\d+", "#", str(kept.get("event", OMITTED)))
    if left_out:
        kept["left_out"] = sorted(left_out)
    return kept


def describe_error(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Puts an error's type, code, culprits and the place in the code where it was raised in for its traceback."""
    info = event_dict.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else None
    if error is None and info:
        error = info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    if error is None:
        return event_dict
    event_dict["error"] = type(error).__name__
    if isinstance(error, ConsiliumError):
        event_dict["code"] = error.code
        if error.culprits:
            event_dict["culprits"] = error.culprits
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        event_dict["raised_at"] = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}".strip("<>")
    return event_dict


class _Library(logging.Handler):
    """Passes on that a library warned of something; what it said stays out, since it may quote what it was given."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            log.log(record.levelno, "a library logged", logger=record.name, exc_info=record.exc_info)
        except Exception:  # a handler must never raise into the library
            self.handleError(record)


def configure_logging(stream: TextIO | None = None, *, level: int = logging.INFO, json: bool | None = None) -> None:
    """Sets structlog up for the process, and routes the warnings of libraries through it.

    Args:
        stream: where lines go; standard error by default.
        level: of the standard `logging`; lower ones are dropped.
        json: one JSON object per line, or lines for people; by default whether `stream` is no terminal.
    """
    out = stream if stream is not None else sys.stderr
    as_json = not out.isatty() if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            describe_error,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            only_known_fields,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,  # modules make their loggers before this is called
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Library | logging.StreamHandler)]:
        if type(handler) in (_Library, logging.StreamHandler):  # not pytest's, which derive from it
            root.removeHandler(handler)
    root.addHandler(_Library(logging.WARNING))
