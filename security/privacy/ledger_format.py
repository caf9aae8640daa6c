"""The lines of a privacy ledger and how they are read back: bytes in, records out, no files.

A ledger is JSON, one record a line. The first names the format; each other is one charge:

    {"event": {…}, "purpose": …, "run": …, "round": …, "key": …, "at": …, "sequence": 7, "checksum": "…"}

`checksum` is the SHA-256 of the checksum before it and of the rest of the line, so that a changed, lost,
doubled or moved line breaks the chain from there on. It finds accidents and edits by hand; it is not keyed,
so it cannot stop somebody who owns the file from computing a new chain.

`event` comes first on purpose: of a line that a crash tore, the charge is the part most likely to be whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from security.errors import ConsiliumError
from security.privacy.events import PrivacyEvent, PrivacyEventError, event_from_json, event_to_json

HEADER: Final = b'{"format": "consilium-privacy-ledger", "version": 1}\n'
START: Final = hashlib.sha256(HEADER).hexdigest()
"""The checksum before the first charge."""

TORN_PURPOSE: Final = "torn"
"""The purpose of a charge that was recovered from a line which a crash tore."""


class LedgerDamagedError(ConsiliumError):
    """The ledger cannot be trusted to hold everything that was spent, so nothing more is spent from it."""

    code = "privacy-ledger-damaged"


@dataclass(frozen=True)
class Charge:
    """One line of the ledger.

    Attributes:
        sequence: 1 for the first charge, then one more each.
        at: when, in whole seconds since 1970 UTC.
        key: names the stored release that a restart may repeat for nothing; None: every repetition is
            charged.
        checksum: of the chain up to and with this line.
    """

    sequence: int
    event: PrivacyEvent
    purpose: str
    run: str
    round: int
    key: str | None
    at: int
    checksum: str


@dataclass(frozen=True)
class Content:
    """What `parse` found: the charges, and the bytes behind them that are not a whole line (b"" as a
    rule)."""

    charges: tuple[Charge, ...]
    torn: bytes

    @property
    def checksum(self) -> str:
        """The end of the chain."""
        return self.charges[-1].checksum if self.charges else START


def encode_charge(
    before: str,
    *,
    sequence: int,
    event: PrivacyEvent,
    purpose: str,
    run: str,
    round_number: int,
    key: str | None,
    at: int,
) -> tuple[Charge, bytes]:
    """A charge and its line, chained to the checksum `before` it."""
    body: dict[str, Any] = {
        "event": event_to_json(event),
        "purpose": purpose,
        "run": run,
        "round": round_number,
        "key": key,
        "at": at,
        "sequence": sequence,
    }
    checksum = _chain(before, body)
    charge = Charge(sequence, event, purpose, run, round_number, key, at, checksum)
    return charge, _dump(body | {"checksum": checksum}) + b"\n"


def parse(data: bytes, place: str) -> Content:
    """Reads a whole ledger.

    Args:
        data: the file's bytes.
        place: the file's name, for the error.

    Raises:
        LedgerDamagedError: anything but whole, correctly chained lines and perhaps a torn last one.
    """
    if not data.startswith(HEADER):
        raise damaged("it does not begin as a privacy ledger of version 1 does", place)
    lines = data[len(HEADER) :].split(b"\n")
    charges: list[Charge] = []
    before = START
    for number, line in enumerate(lines[:-1], start=1):
        charge = _read_line(line, number, before, f"{place}, line {number + 1}")
        charges.append(charge)
        before = charge.checksum
    return Content(tuple(charges), lines[-1])


def salvage(torn: bytes) -> PrivacyEvent | None:
    """The event of a torn line, if it got that far."""
    prefix = '{"event": '
    text = torn.decode("utf-8", errors="replace")
    if not text.startswith(prefix):
        return None
    try:
        record, _ = json.JSONDecoder().raw_decode(text, len(prefix))
        return event_from_json(record)
    except (ValueError, PrivacyEventError):
        return None


def damaged(what: str, place: str) -> LedgerDamagedError:
    """The error for a ledger of which `what` is wrong."""
    return LedgerDamagedError(
        f"the privacy ledger is damaged: {what}.",
        remedy=(
            "Restore the newest backup of the whole state folder and keep the damaged files for your privacy officer. "
            "Without a backup, count the budget of these patients as spent. Never start an empty ledger for them."
        ),
        place=place,
    )


def _read_line(line: bytes, sequence: int, before: str, place: str) -> Charge:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise damaged("a line is not JSON", place) from error
    if not isinstance(record, dict):
        raise damaged("a line is not a record", place)
    checksum = record.pop("checksum", None)
    if checksum != _chain(before, record) or _dump(record | {"checksum": checksum}) != line:
        raise damaged("a checksum does not match: a line was changed, lost or moved", place)
    if record.get("sequence") != sequence:
        raise damaged(f"sequence {record.get('sequence')!r} where {sequence} is due", place)
    try:
        event = event_from_json(record["event"])
        purpose, run, round_number, key, at = (record[name] for name in ("purpose", "run", "round", "key", "at"))
    except (KeyError, PrivacyEventError) as error:
        raise damaged("a line was written by a version that this one does not know", place) from error
    return Charge(sequence, event, purpose, run, round_number, key, at, checksum)


def _chain(before: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(before.encode() + _dump(body)).hexdigest()


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
