"""What can go wrong in a secure sum. Every error leaves the machine that raised it unchanged."""

from __future__ import annotations

from security.errors import LocalMisuseError, ProtocolError


class SecureSumError(ProtocolError):
    """A peer's message breaks a rule of the secure sum."""

    code = "secure-sum"


class MalformedMessageError(SecureSumError):
    """Bytes that do not parse, or whose fields cannot be."""

    code = "malformed-message"


class WrongContextError(SecureSumError):
    """A message of another federation, run, round, attempt, sum or opening (rule 7)."""

    code = "wrong-context"


class UnknownMemberError(SecureSumError):
    """A signer or receiver that the plan's roster does not have, or has no business in this step."""

    code = "unknown-member"


class EquivocationError(SecureSumError):
    """One signer, two contradictory signed messages. `evidence` holds both, and convicts the signer to anybody."""

    code = "equivocation"

    def __init__(self, message: str, *, signer: str, evidence: tuple[bytes, bytes], remedy: str = "") -> None:
        super().__init__(message, remedy=remedy, culprits=(signer,))
        self.evidence = evidence


class TamperedKeysError(SecureSumError):
    """The relayed key messages are not those that their senders signed, or leave this institution out."""

    code = "tampered-keys"


class RevealError(SecureSumError):
    """A revealed value that is not the one committed to, or missing (rule 10)."""

    code = "reveal"


class BadShareError(SecureSumError):
    """A share or reconstructed secret that does not match what its dealer committed to (rule 5)."""

    code = "bad-share"


class BelowFloorError(SecureSumError):
    """Fewer than `k_min` institutions would be summed (rule 9)."""

    code = "below-floor"


class ContradictoryListError(SecureSumError):
    """A survivor list that is no exact partition of the cohort, or a second one for a sum (rule 5)."""

    code = "contradictory-list"


class TranscriptError(SecureSumError):
    """Another institution, or the coordinator, consumed something else for this sum than this one did (rule 6)."""

    code = "transcript"


class UnprovenUploadError(SecureSumError):
    """A survivor list counts an institution as alive that did not upload for the list's transcript (rule 6)."""

    code = "unproven-upload"


class MissingSignaturesError(SecureSumError):
    """Fewer than `threshold` shareholders signed this list. `culprits` names those whose signature is missing."""

    code = "missing-signatures"


class DifferencingError(SecureSumError):
    """Opening this list would let two opened sums be subtracted to fewer than `k_min` institutions (rule 9)."""

    code = "differencing"


class StaleAttemptError(SecureSumError):
    """An attempt at or below the durable high-water mark, or of a round whose list is signed already (rule 7)."""

    code = "stale-attempt"


class TooFewMembersError(SecureSumError):
    """Too few institutions are left for the attempt to go on."""

    code = "too-few-members"


class OutOfPhaseError(SecureSumError):
    """A message that this phase does not take."""

    code = "out-of-phase"


class SecondUploadError(SecureSumError):
    """A second, different upload of one institution for one sum (rule 8)."""

    code = "second-upload"


class MemberMisuseError(LocalMisuseError):
    """This institution's own code asked the machine for a step that it cannot take now."""

    code = "member-misuse"
