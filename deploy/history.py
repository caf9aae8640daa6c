"""The records of the committed rounds as they came from the coordinator, which may lie: each is read once, whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from consilium.v1 import service_pb2 as pb

from coordinator.scalars import scalars
from deploy.figures import UNCLAMPED, Record, blending, losses_of_institutions, proximity, training_rounds, weights
from deploy.log_lines import round_line
from federation.blending import BlendingSettings
from security.errors import ConsiliumError, ProtocolError


class RecordError(ProtocolError):
    """A record that is not that of a committed round."""

    code = "record"


def _parsed(text: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(text)
        # Read once, all that is drawn later: what cannot be read stops here and not in the middle of a screen.
        following = record | {"round": int(record["round"]) + 1}
        round_line(record, 1)
        losses_of_institutions([record])
        scalars(record)
        for subset in record.get("blending") or {}:
            proximity(record, subset)
            blending(record, subset, "dogr")
            weights([record, following], subset)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, ConsiliumError):
        raise RecordError(
            "the coordinator sent a round's record that cannot be read.",
            remedy="Use a command of the coordinator's own version.",
        ) from None
    return record


@dataclass
class History:
    """Records of the committed rounds that have come so far.

    Args:
        settings: the plan's DGB settings, where they are known; plain shares without.
    """

    settings: BlendingSettings = UNCLAMPED
    _records: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Of training rounds, in order."""
        return training_rounds(self._records.values())

    def take(self, status: pb.RunStatus) -> list[Record]:
        """Adds a status's records, each round once, and returns those that are new, in order.

        Raises:
            RecordError: a record is not that of a round.
        """
        return self.read(status.records)

    def read(self, texts: Iterable[str]) -> list[Record]:
        """The same of records by themselves."""
        new = []
        for text in texts:
            record = _parsed(text)
            if record["round"] not in self._records:
                self._records[record["round"]] = record
                new.append(record)
        return sorted(new, key=lambda r: int(r["round"]))
