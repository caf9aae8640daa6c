"""The durable book of one institution's privacy budget, over all its runs: spend first, release after.

Three files beside each other, all of mode 0600:

- `<path>`: append-only lines of `ledger_format`
- `<path>.anchor`: how many charges have been confirmed, and the chain's checksum there; replaced whole
- `<path>.lock`: empty, locked while a process has the ledger open

A charge is appended and synced, then the anchor is replaced and synced, then `reserve` returns. Hence, at
whatever instant the machine stops: every charge that was returned is below the anchor, and a ledger that is
shorter than its anchor has lost something and is refused. One line above the anchor, whole or torn, was never
returned, so nothing was released for it; as far as it can be read it is charged nevertheless.

What this cannot see: both files replaced by equally old copies. A backup must hold the whole state folder,
and a node restored from one must be treated as having spent its budget (docs/privacy-accounting.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from security.errors import ConfigurationError, ConsiliumError, LocalMisuseError
from security.privacy.accountant import Accountant
from security.privacy.events import PrivacyEvent
from security.privacy.ledger_files import disk, lock, read, replace, write_all
from security.privacy.ledger_format import (
    HEADER,
    START,
    TORN_PURPOSE,
    Charge,
    Content,
    damaged,
    encode_charge,
    parse,
    salvage,
)

_TOLERANCE: Final = 1e-9  # relative; three charges of 0.2 add up to 0.6000000000000001 and still fit 0.6


class BudgetExceededError(ConsiliumError):
    """A release would take the institution past its limit. Nothing was written, nothing may be released.

    Attributes:
        spent: epsilon so far. would_be: epsilon with the release. limit: the policy's.
    """

    code = "privacy-budget"

    def __init__(self, *, spent: float, would_be: float, limit: float, delta: float, place: str) -> None:
        super().__init__(
            f"the release would take epsilon from {spent:.4g} to {would_be:.4g} at delta {delta:g}, "
            f"past the limit {limit:.4g}.",
            remedy="Stop here, use more noise or fewer rounds, or have the privacy officer raise the policy's epsilon.",
            place=place,
        )
        self.spent, self.would_be, self.limit = spent, would_be, limit


@dataclass(frozen=True)
class Receipt:
    """Leave to release: the charge is on disk.

    Attributes:
        charge: the line of the ledger.
        repeated: True when the same key had been charged before, and this call cost nothing.
        epsilon: spent in all, after this call.
    """

    charge: Charge
    repeated: bool
    epsilon: float


def release_key(released: bytes) -> str:
    """A key for exactly these bytes: a restart that sends them again pays once, other bytes (fresh noise) pay
    anew."""
    return hashlib.sha256(released).hexdigest()


def read_charges(path: Path) -> tuple[Charge, ...]:
    """The charges of a ledger, for a look from outside; a node may have it open.

    Raises:
        LedgerDamagedError, LedgerWriteError: it cannot be read.
    """
    return parse(read(path), str(path)).charges


class PrivacyLedger:
    """The open ledger of one institution; one at a time, held until `close`.

    Args:
        path: the ledger's file, in an existing folder; made if there is none.
        limit_epsilon: the local policy's epsilon over all runs, `>= 0`. It may be lower than what is spent:
            then nothing more fits.
        delta: the delta at which epsilon is stated, in (0, 1); well below one over the number of patients. It
            may change, too: charges are kept as what was done, not as epsilons.
        clock: seconds since 1970 UTC, written beside each charge for people.

    Raises:
        ConfigurationError: limit or delta out of range.
        LedgerLockedError: somebody has it open.
        LedgerDamagedError: it does not hold everything that it once held.
        LedgerWriteError: the folder is missing, full or forbidden.
    """

    def __init__(
        self, path: Path, *, limit_epsilon: float, delta: float, clock: Callable[[], float] = time.time
    ) -> None:
        if not (math.isfinite(limit_epsilon) and limit_epsilon >= 0):
            raise ConfigurationError(
                f"the epsilon limit is {limit_epsilon}.", remedy="Give a finite number of at least 0.", place="policy"
            )
        if not 0.0 < delta < 1.0:
            raise ConfigurationError(
                f"delta is {delta}.", remedy="Give a number in (0, 1), below one over the patients.", place="policy"
            )
        self._path, self._anchor = Path(path), Path(f"{path}.anchor")
        self._limit, self._delta, self._clock = limit_epsilon, delta, clock
        self._process = os.getpid()
        self._usable = True
        self._turn = threading.Lock()
        with disk(self._path):
            self._lock = lock(Path(f"{path}.lock"))
        try:
            with disk(self._path):
                self._charges = list(self._recover().charges)
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        except BaseException:
            os.close(self._lock)
            raise
        self._accountant = Accountant(charge.event for charge in self._charges)

    def reserve(self, purpose: str, run: str, round_number: int, event: PrivacyEvent, *, key: str | None) -> Receipt:
        """Charges one release, durably, before it is made.

        Args:
            purpose: what is released, for people: `count`, `update`, `losses`, `schema` …
            run: the run's name.
            round_number: its round, 0 before the first.
            event: what it costs.
            key: **a choice that the caller must make.** None: charge, whatever was charged before; right
                wherever noise is drawn after this call, as in training. A string: the name of noised bytes
                that are *already drawn and stored* (best, `release_key(bytes)`); asked again for the same
                run, round, purpose and key, as after a restart, the same bytes are sent again and cost
                nothing. Fresh noise under an old key would be a second release that nobody paid for.

        Raises:
            BudgetExceededError: it would pass the limit; nothing was written.
            LocalMisuseError: the key was charged for another event, an argument is malformed, or the ledger
                is closed.
            LedgerWriteError: the disk failed; release nothing. The ledger is unusable until it is opened
                again.
        """
        _check_arguments(purpose, run, round_number, key)
        with self._turn:
            return self._reserve(purpose, run, round_number, event, key)

    def _reserve(self, purpose: str, run: str, round_number: int, event: PrivacyEvent, key: str | None) -> Receipt:
        self._check_open()
        if key is not None and (earlier := self._find(purpose, run, round_number, key)) is not None:
            if earlier.event != event:
                raise LocalMisuseError(
                    "a key of the privacy ledger was used for another event.",
                    remedy="Key the stored bytes of one release.",
                    place=f"{run}, round {round_number}, {purpose}",
                )
            return Receipt(earlier, repeated=True, epsilon=self._epsilon())
        candidate = self._accountant.copy()
        candidate.add(event)
        would_be = candidate.epsilon(self._delta)
        if not would_be <= self._limit * (1 + _TOLERANCE):  # so written, a NaN is refused too
            raise BudgetExceededError(
                spent=self._epsilon(), would_be=would_be, limit=self._limit, delta=self._delta, place=str(self._path)
            )
        charge, line = encode_charge(
            self._charges[-1].checksum if self._charges else START,
            sequence=len(self._charges) + 1,
            event=event,
            purpose=purpose,
            run=run,
            round_number=round_number,
            key=key,
            at=int(self._clock()),
        )
        # Until both files are synced nobody knows what is on disk, so a failure half-way ends this object.
        self._usable = False
        with disk(self._path):
            write_all(self._file, line)
            os.fsync(self._file)
            self._write_anchor(charge.sequence, charge.checksum)
        self._usable = True
        self._charges.append(charge)
        self._accountant = candidate
        return Receipt(charge, repeated=False, epsilon=would_be)

    def spent(self) -> tuple[float, float]:
        """(epsilon, delta) of everything charged so far."""
        return self._epsilon(), self._delta

    def left(self) -> float:
        """The limit less what is spent, at least 0. Releases do not simply add up: `would_spend` asks about
        one."""
        return max(0.0, self._limit - self._epsilon())

    def would_spend(self, event: PrivacyEvent) -> float:
        """The epsilon in all if `event` were charged next. Charges nothing."""
        candidate = self._accountant.copy()
        candidate.add(event)
        return candidate.epsilon(self._delta)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every charge, oldest first."""
        return tuple(self._charges)

    def close(self) -> None:
        """Lets another process open the ledger. May be called twice."""
        self._usable = False
        if self._lock >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> PrivacyLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _epsilon(self) -> float:
        return self._accountant.epsilon(self._delta)

    def _find(self, purpose: str, run: str, round_number: int, key: str) -> Charge | None:
        wanted = (purpose, run, round_number, key)
        return next((c for c in self._charges if (c.purpose, c.run, c.round, c.key) == wanted), None)

    def _check_open(self) -> None:
        if not self._usable or os.getpid() != self._process:
            raise LocalMisuseError(
                "this privacy ledger is closed, failed earlier, or belongs to the parent process.",
                remedy="Open it again.",
                place=str(self._path),
            )

    def _recover(self) -> Content:
        """Reads both files, mends what a crash may leave, and refuses everything else."""
        place = str(self._path)
        if not self._path.exists():
            if self._anchor.exists():
                raise damaged("the file is gone, its anchor is still there", place)
            replace(self._path, HEADER)
        content = parse(read(self._path), place)
        if not self._anchor.exists() and (content.charges or content.torn):
            raise damaged("its anchor is gone", place)
        os.chmod(self._path, 0o600)
        confirmed, checksum = self._read_anchor()
        whole = len(content.charges)
        if not 0 <= confirmed <= whole or checksum != (START, *(c.checksum for c in content.charges))[confirmed]:
            raise damaged(f"{confirmed} charges were confirmed, and the file does not hold them", place)
        # A crash leaves at most one line that was not confirmed, whole or torn.
        if whole + bool(content.torn) > confirmed + 1:
            raise damaged(f"{confirmed} charges were confirmed, and the file holds others as well", place)
        if content.torn:
            content = self._mend(content)
        self._write_anchor(len(content.charges), content.checksum)
        return content

    def _mend(self, content: Content) -> Content:
        """Replaces a torn last line by the charge that it was to be, or by nothing where even that is
        unreadable."""
        charges, lines = list(content.charges), read(self._path)[: -len(content.torn)]
        if (event := salvage(content.torn)) is not None:
            charge, line = encode_charge(
                content.checksum,
                sequence=len(charges) + 1,
                event=event,
                purpose=TORN_PURPOSE,
                run="",
                round_number=0,
                key=None,
                at=int(self._clock()),
            )
            charges.append(charge)
            lines += line
        replace(self._path, lines)
        return Content(tuple(charges), b"")

    def _read_anchor(self) -> tuple[int, str]:
        """(confirmed charges, the chain's checksum there); (0, START) for a ledger that was only just
        made."""
        if not self._anchor.exists():
            return 0, START
        try:
            record = json.loads(read(self._anchor))
            return int(record["sequence"]), str(record["checksum"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged("its anchor cannot be read", str(self._anchor)) from error

    def _write_anchor(self, sequence: int, checksum: str) -> None:
        replace(self._anchor, json.dumps({"sequence": sequence, "checksum": checksum}).encode() + b"\n")


def _check_arguments(purpose: str, run: str, round_number: int, key: str | None) -> None:
    texts = {"purpose": purpose, "run": run} | ({} if key is None else {"key": key})
    for name, text in texts.items():
        if not (1 <= len(text) <= 200 and text.isprintable()) or (name, text) == ("purpose", TORN_PURPOSE):
            raise LocalMisuseError(
                f"{name} is {text!r}.", remedy="Give 1 to 200 printable characters.", place="the privacy ledger"
            )
    if round_number < 0:
        raise LocalMisuseError(f"the round is {round_number}.", remedy="Count from 0.", place="the privacy ledger")
