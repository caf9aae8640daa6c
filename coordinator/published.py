"""What an institution may download of a run."""

from __future__ import annotations

from coordinator.attempt import Attempt
from coordinator.run import Run
from federation.rounds import opened_by
from federation.vectors import UploadKey, VectorReader, check_digest, unknown_content
from security.secure_sum.phases import AggregatorPhase


def open_published(run: Run, institution: str, digest: str) -> VectorReader:
    """Content that the run has shown to its institutions and keeps, or an upload that this one is asked to decrypt.

    Raises:
        UnknownContentError: neither.
        StorageError: it cannot be read.
    """
    check_digest(digest)
    if run.attempt is not None:
        uploader = _to_decrypt(run.attempt, institution).get(digest)
        if uploader is not None:
            context, name = run.attempt.machine.attempt.context, run.attempt.machine.current.name
            return run.spool.open(UploadKey(run.key, context.round, context.attempt, name, uploader))
    if digest not in _published(run):
        raise unknown_content(digest)
    return run.content.open(digest)


def _published(run: Run) -> set[str]:
    shown = run.state.digests()
    if run.attempt is not None:
        for data in run.attempt.opened:
            message, _ = opened_by(data)
            shown |= {part.words for part in message.parts}
            for state in message.components:
                shown |= {state.weights, *state.slots.values()}
    return shown


def _to_decrypt(attempt: Attempt, institution: str) -> dict[str, str]:
    """Content hash of uploads to uploaders. Whoever is asked could read each by itself: nobody else gets them."""
    machine = attempt.machine
    if machine.phase is not AggregatorPhase.OPENINGS or institution not in machine.asked(attempt.withdrawn.keys()):
        return {}
    return dict(machine.shown())
