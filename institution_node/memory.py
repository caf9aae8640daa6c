"""What an institution must not forget of a run, over restarts: the high-water mark above all (rule 7).

A value and its codec; `FolderMemory` keeps it in the state folder, `ProcessMemory` is for studies, where nothing
restarts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from federation.blending import BlendingState
from federation.rounds import Setup
from institution_node.similar_cohorts import Waiting
from security.errors import ConfigurationError
from security.secure_sum.cohorts import CohortHistory
from security.secure_sum.high_water import HighWaterMark

Float32 = npt.NDArray[np.float32]


class MemoryDamagedError(ConfigurationError):
    """The state folder's record of a run cannot be read; without it the node might repeat a mask."""

    code = "memory-damaged"


@dataclass(frozen=True)
class RunMemory:
    """One run at one institution. Stays at the institution.

    Attributes:
        mark: attempts joined and lists signed.
        fingerprint: of the data that the run began with.
        split_key: 32 secret bytes that the division into training and validation patients follows from.
        noised_patients: ñ_i, drawn once; 0 before.
        noised_by_combination: the same of the patients of each combination, where there are several; ñ_i is their sum.
        schema: hex digest of the feature schema that followed here from round 0's opened sums; empty before.
        setup: what round 0 settled; None before.
        known: component to digest of its weights, and `component.slot` to that of the server optimiser's state, after
            the last round that was followed to its end.
        known_round: that round; −1: none.
        models: digests of the models that rounds began with here, oldest first: none comes back once it was left.
        last_losses: subset to (training, validation), at the weights that were published last.
        last_model: names these weights (`Prepared.model_digest`); empty: there are no last losses.
        blending: DGB on this institution's own losses, for a combination below the floor.
        history: cohorts that this institution lately helped to open.
        waiting: statistics over a cohort like a recent one, which are not signed yet.
        private: components that stay here, float32[size].
    """

    mark: HighWaterMark = field(default_factory=HighWaterMark)
    fingerprint: str = ""
    split_key: bytes = b""
    noised_patients: int = 0
    schema: str = ""
    setup: Setup | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    known_round: int = -1
    models: tuple[str, ...] = ()
    last_losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    last_model: str = ""
    blending: BlendingState = field(default_factory=BlendingState)
    history: CohortHistory = field(default_factory=lambda: CohortHistory({}))
    waiting: Waiting = field(default_factory=Waiting)
    private: Mapping[str, Float32] = field(default_factory=dict)
    noised_by_combination: Mapping[str, int] = field(default_factory=dict)


class Memory(Protocol):
    """Where a RunMemory rests."""

    def load(self, run: str) -> RunMemory:
        """The memory of a run; an empty one for a new run."""

    def save(self, run: str, memory: RunMemory) -> None:
        """Durable when this returns."""

    def note(self, run: str, memory: RunMemory) -> None:
        """Loaded from now on, and durable with the next `save`: for what no message that leaves before it rests on."""


class ProcessMemory:
    """Forgets with the process: for studies and tests."""

    def __init__(self) -> None:
        self._kept: dict[str, RunMemory] = {}

    def load(self, run: str) -> RunMemory:
        """See Memory."""
        return self._kept.get(run) or RunMemory()

    def save(self, run: str, memory: RunMemory) -> None:
        """See Memory; not durable."""
        self._kept[run] = memory

    def note(self, run: str, memory: RunMemory) -> None:
        """See Memory."""
        self._kept[run] = memory


class FolderMemory:
    """One JSON file a run, and one safetensors file for its private components; written and renamed atomically.

    Args:
        folder: made if it is not there; mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept: dict[str, RunMemory] = {}  # the folder is this process's alone
        self._private: dict[str, Mapping[str, Float32]] = {}  # as on disk

    def load(self, run: str) -> RunMemory:
        """See Memory.

        Raises:
            MemoryDamagedError: a file is there and cannot be read.
        """
        if run in self._kept:
            return self._kept[run]
        path = self._folder / f"{run}.json"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return RunMemory()
        try:
            data: dict[str, Any] = json.loads(text)
            private = self._load_private(self._folder / f"{run}.safetensors") if data["private"] else {}
            self._kept[run], self._private[run] = _decode(data, private), private
            return self._kept[run]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise MemoryDamagedError(
                "the node's record of a run cannot be read.",
                remedy="Restore the state folder from its last state, never an older one; or leave this run: move the "
                "file away only if the run is over.",
                place=str(path),
            ) from error

    @staticmethod
    def _load_private(path: Path) -> Mapping[str, Float32]:
        return load(path.read_bytes())

    def save(self, run: str, memory: RunMemory) -> None:
        """See Memory."""
        self._kept.pop(run, None)  # until both files are written, nobody knows what is on disk
        written = self._private.pop(run, None)
        if memory.private and written is not memory.private:
            _write(self._folder / f"{run}.safetensors", save(dict(memory.private)))
        _write(self._folder / f"{run}.json", json.dumps(_encode(memory), sort_keys=True).encode())
        self._kept[run], self._private[run] = memory, memory.private

    def note(self, run: str, memory: RunMemory) -> None:
        """See Memory."""
        self._kept[run] = memory


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _encode(m: RunMemory) -> dict[str, Any]:
    return {
        "format": 1,
        "mark": {
            "round": m.mark.round,
            "attempt": m.mark.attempt,
            "signed": {name: digest.hex() for name, digest in m.mark.signed.items()},
        },
        "fingerprint": m.fingerprint,
        "split_key": m.split_key.hex(),
        "noised_patients": m.noised_patients,
        "schema": m.schema,
        "setup": None if m.setup is None else m.setup.to_json(),
        "known": dict(m.known),
        "known_round": m.known_round,
        "models": list(m.models),
        "last_losses": {s: list(losses) for s, losses in m.last_losses.items()},
        "last_model": m.last_model,
        "blending": m.blending.to_json(),
        "history": {part: [sorted(c) for c in cohorts] for part, cohorts in m.history.recent.items()},
        "waiting": {
            "survivors": sorted(m.waiting.survivors),
            "rounds": m.waiting.rounds,
            "last": m.waiting.last,
            "changes": m.waiting.changes,
        },
        "private": sorted(m.private),
        "noised_by_combination": dict(m.noised_by_combination),
    }


def _decode(data: Mapping[str, Any], private: Mapping[str, Float32]) -> RunMemory:
    if data["format"] != 1 or sorted(private) != data["private"]:
        raise ValueError("format")
    mark, setup, waiting = data["mark"], data["setup"], data["waiting"]
    return RunMemory(
        HighWaterMark(
            mark["round"], mark["attempt"], {name: bytes.fromhex(digest) for name, digest in mark["signed"].items()}
        ),
        data["fingerprint"],
        bytes.fromhex(data["split_key"]),
        data["noised_patients"],
        data["schema"],
        None if setup is None else Setup.from_json(setup),
        data["known"],
        data["known_round"],
        tuple(data["models"]),
        {s: (losses[0], losses[1]) for s, losses in data["last_losses"].items()},
        data.get("last_model", ""),
        BlendingState.from_json(data["blending"]),
        CohortHistory({part: tuple(frozenset(c) for c in cohorts) for part, cohorts in data["history"].items()}),
        Waiting(frozenset(waiting["survivors"]), waiting["rounds"], waiting["last"], waiting["changes"]),
        private,
        data.get("noised_by_combination", {}),
    )
