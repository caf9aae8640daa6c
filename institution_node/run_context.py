"""What every room of one run's work at an institution is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from federation.plan import Plan
from federation.rounds import Cohorts
from institution_node.global_model import Library
from institution_node.memory import Memory, RunMemory
from institution_node.noise import Charges
from institution_node.recorder import Recorder
from security.privacy.randomness import Randomness


@dataclass(frozen=True)
class RunContext:
    """One run at one institution.

    Attributes:
        plan: the plan.
        run: its digest, 32 bytes.
        institution: this one.
        cohorts: of the plan.
        library: content by digest.
        memory: what survives a restart.
        randomness: the node's own generator, for this run.
        charges: the privacy ledger's way in.
        recorder: told local figures.
    """

    plan: Plan
    run: bytes
    institution: str
    cohorts: Cohorts
    library: Library
    memory: Memory
    randomness: Randomness
    charges: Charges
    recorder: Recorder

    @property
    def private(self) -> bool:
        """Whether the plan has differential privacy."""
        return self.plan.differential_privacy.enabled

    def recall(self) -> RunMemory:
        """What is remembered of the run."""
        return self.memory.load(self.run.hex())

    def remember(self, memory: RunMemory) -> None:
        """Durable on return."""
        self.memory.save(self.run.hex(), memory)

    def note(self, memory: RunMemory) -> None:
        """Remembered in this process, and durable with whatever is remembered next: the mark of the next key message or
        signature at the latest."""
        self.memory.note(self.run.hex(), memory)

    def patients(self, pieces: Iterable[str]) -> int:
        """ñ_i of the pieces that are this institution's (`Layout.pieces`)."""
        memory = self.recall()
        own = [combination for i, _, combination in (p.partition("/") for p in pieces) if i == self.institution]
        return sum(memory.noised_by_combination[c] if c else memory.noised_patients for c in own)

    def share(self, patients: Mapping[str, int], cohort: str) -> float:
        """ñ_i over a cohort's total. 1 where a coordinator understates it: an error would tell by how much."""
        return min(1.0, self.patients(self.cohorts.counted[cohort]) / patients[cohort])
