"""What the coordinator refuses: steps of a run, calls, callers and folders."""

from __future__ import annotations

from security.errors import ConfigurationError, ConsiliumError, ProtocolError


class RunEndedError(ProtocolError):
    """The run is over; nothing more is taken."""

    code = "run-ended"


class NotEnrolledError(ProtocolError):
    """The institution has not enrolled in this run, or sits it out."""

    code = "not-enrolled"


class MalformedRequestError(ProtocolError):
    """A request that does not parse, or leaves out what it must have."""

    code = "malformed-request"


class ProtocolVersionError(ProtocolError):
    """The caller speaks another version of the wire contract."""

    code = "protocol-version"


class NotTheSignerError(ProtocolError):
    """A message signed by, or sent for, another institution than the one in the caller's certificate."""

    code = "not-the-signer"


class CertificateKeyError(ProtocolError):
    """The caller's certificate has another key than the plan has for this institution."""

    code = "certificate-not-plan-key"


class TlsVersionError(ProtocolError):
    """The connection is not TLS 1.3, or does not say what it is."""

    code = "tls-version"


class TooManyCallsError(ProtocolError):
    """One caller has too many calls open."""

    code = "too-many-calls"


class OffsetError(ProtocolError):
    """A download that begins past the end."""

    code = "offset"


class RunActiveError(ConsiliumError):
    """An institution of the plan's roster is busy with another run."""

    code = "run-active"


class ExportError(ConsiliumError):
    """There is no such model to export."""

    code = "export"


class StateLockedError(ConfigurationError):
    """Another coordinator uses this state folder."""

    code = "state-locked"
