"""Parts of a run's status in words, for screens and logs: bounded, and without control characters."""

from __future__ import annotations

from typing import Final

from consilium.v1 import service_pb2 as pb

ENDED: Final = frozenset({"finished", "stopped", "failed"})
METRICS: Final = (("accuracy", "accuracy"), ("balanced_accuracy", "balanced acc."), ("auroc", "AUROC"))
_SUMS: Final = {
    "updates": "training",
    "statistics": "evaluation",
    "weights": "set-up, patient weights",
}
_PHASES: Final = {
    "keys": "exchanging keys",
    "reveals": "drawing the mask graph",
    "shares": "dealing shares",
    "uploads": "institutions compute and send, masked",
    "signatures": "institutions sign who is in",
    "openings": "opening the sum",
    "opening": "adding up",
    "done": "committing",
}
_CHOSEN: Final = {
    "loss": "the metric stays shut, an institution being gone: validation losses choose",
    "last": "neither metric nor losses open: the last round is taken",
}


def plain(words: str, limit: int = 160) -> str:
    """Text from the wire without control characters, bounded: none may move the cursor or end a line."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def combinations_of(institution: pb.InstitutionStatus) -> tuple[str, ...]:
    """The combinations that an institution's patients come in: all of its modalities, or what the plan lists."""
    return tuple(institution.combinations) or (institution.combination,)


def combinations_words(institution: pb.InstitutionStatus) -> str:
    """The same in words, `mrna, mrna+image`, fit for a terminal."""
    return plain(", ".join(combinations_of(institution)), 200)


def clock(seconds: float) -> str:
    """1:05, or 2:03:04."""
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def phase_words(phase: str) -> str:
    """A phase for people: `updates: uploads` is `training: institutions compute and send, masked`."""
    name, found, rest = phase.rpartition(": ")
    words = _PHASES.get(rest, plain(rest, 40))
    return f"{_SUMS.get(name, 'set-up, ' + plain(name, 30))}: {words}" if found else words


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.1e}"


def chosen_words(status: pb.RunStatus) -> str:
    """What chooses the round to export, where it is not the plan's metric; otherwise empty."""
    words = _CHOSEN.get(status.chosen_by, "")
    return f"{words} (now round {status.chosen_round})" if words and status.chosen_round else words
