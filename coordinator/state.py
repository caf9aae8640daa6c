"""What a run knows between rounds, and its checkpoint within one; to and from what the store keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consilium.v1 import round_pb2 as pb

from coordinator.selection import BestRound, Selection
from federation.blending import BlendingState
from federation.rounds import FORMAT, Cohorts, ComponentDigests, Figures, Setup
from federation.vectors import ContentStore
from security.secure_sum.spec import Sum


@dataclass(frozen=True)
class RunState:
    """A run between two rounds. Immutable; the store keeps it as JSON in the round's one transaction.

    Attributes:
        setup: what round 0 settled; None before.
        components: w(t) and the server optimiser's state, by component.
        blending: DGB's memory.
        scores: published blending scores `b_s`, by subset.
        median_squared_overfitting: published, so that an institution's own score is on the federation's scale.
        temperatures: of the last round.
        selection: which round would be exported, and for early stopping.
    """

    setup: Setup | None = None
    components: Mapping[str, ComponentDigests] = field(default_factory=dict)
    blending: BlendingState = field(default_factory=BlendingState)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    median_squared_overfitting: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)

    def figures(self) -> bytes:
        """The blending scores as they are published."""
        return Figures(self.scores, self.median_squared_overfitting, self.temperatures).to_bytes()

    def sums(self, cohorts: Cohorts, content: ContentStore, round_: int) -> tuple[Sum, ...]:
        """The sums of a round that begins from this state."""
        if round_ == 0:
            return cohorts.setup_sums()
        assert self.setup is not None
        sizes = {name: content.size(c.weights) // 4 for name, c in self.components.items()}
        return cohorts.training_sums(sizes, self.setup, round_)

    def round_start(self, run: bytes, round_: int) -> bytes:
        """RoundStart of a round that begins from this state: exact bytes.

        Args:
            run: digest of the plan.
            round_: its number; 0 has nothing to begin from.
        """
        start = pb.RoundStart(format=FORMAT, run=run, round=round_)
        if round_ > 0:
            assert self.setup is not None
            start.setup.CopyFrom(self.setup.to_proto())
            start.components.extend(c.to_proto(name) for name, c in sorted(self.components.items()))
            start.figures = self.figures()
        return start.SerializeToString(deterministic=True)

    def final(self, run: bytes, round_: int, *, last: bool) -> bytes:
        """RoundStart of what would follow the exported round.

        Args:
            run: digest of the plan.
            round_: what would come next now.
            last: the plan exports the last round.
        """
        best = self.selection.chosen
        if best is None or last:
            return self.round_start(run, round_)
        state = replace(self, components=best.components, temperatures=best.temperatures)
        return state.round_start(run, best.round + 1)

    def digests(self) -> set[str]:
        """Content that must not be collected."""
        kept: set[str] = set()
        if self.setup is not None:
            kept.add(self.setup.schema)
        for c in self.components.values():
            kept |= {c.weights, *c.slots.values()}
        for chosen in (self.selection.best, self.selection.instead):  # for export: nothing goes on from them
            kept |= {c.weights for c in chosen.components.values()} if chosen is not None else set()
        return kept

    def to_json(self) -> str:
        """For the store."""
        return json.dumps(
            {
                "setup": None if self.setup is None else self.setup.to_json(),
                "components": _components(self.components),
                "blending": self.blending.to_json(),
                "scores": dict(self.scores),
                "median_squared_overfitting": self.median_squared_overfitting,
                "temperatures": dict(self.temperatures),
                "selection": {
                    "by": self.selection.by,
                    "best": _best(self.selection.best),
                    "instead": _best(self.selection.instead),
                    "unscored": self.selection.unscored,
                    "lossless": self.selection.lossless,
                    "without_gain": self.selection.without_gain,
                },
            },
            sort_keys=True,
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> RunState:
        """As the store kept it."""
        d: dict[str, Any] = json.loads(text)
        s, chosen = d["setup"], d["selection"]
        return RunState(
            None if s is None else Setup.from_json(s),
            _read_components(d["components"]),
            BlendingState.from_json(d["blending"]),
            d["scores"],
            d["median_squared_overfitting"],
            d["temperatures"],
            Selection(
                chosen["by"],
                _read_best(chosen["best"]),
                _read_best(chosen["instead"]),
                chosen["unscored"],
                chosen["lossless"],
                chosen["without_gain"],
            ),
        )


def _best(best: BestRound | None) -> dict[str, Any] | None:
    if best is None:
        return None
    return {
        "round": best.round,
        "score": best.score,
        "components": _components(best.components),
        "temperatures": dict(best.temperatures),
        "losses": dict(best.losses),
    }


def _read_best(data: dict[str, Any] | None) -> BestRound | None:
    if data is None:
        return None
    components = _read_components(data["components"])
    return BestRound(data["round"], data["score"], components, data["temperatures"], data["losses"])


def _components(components: Mapping[str, ComponentDigests]) -> dict[str, Any]:
    return {name: {"weights": c.weights, "slots": dict(c.slots)} for name, c in components.items()}


def _read_components(data: Mapping[str, Any]) -> dict[str, ComponentDigests]:
    return {name: ComponentDigests(c["weights"], c["slots"]) for name, c in data.items()}
