"""The one table from our errors to gRPC status, and what of an error may travel.

Errors on the wire are codes without values (DESIGN.md, "What a node shows"): messages go to operators only, who see
aggregates anyway and need to mend their own plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from coordinator.errors import (
    CertificateKeyError,
    ExportError,
    MalformedRequestError,
    NotTheSignerError,
    OffsetError,
    ProtocolVersionError,
    RunActiveError,
    TlsVersionError,
    TooManyCallsError,
)
from coordinator.restart import RunDamagedError
from coordinator.store import AttemptError, RecordConflictError, RunExistsError, StoreError, UnknownRunError
from federation.vectors import (
    StorageError,
    UnknownContentError,
    UploadConflictError,
    UploadLengthError,
    UploadMismatchError,
    UploadMissingError,
    UploadOffsetError,
)
from security.certificate_errors import CertificateError, WrongRoleError
from security.errors import ConfigurationError, ConsiliumError, LocalMisuseError, ProtocolError
from security.secure_sum.errors import (
    EquivocationError,
    MalformedMessageError,
    SecondUploadError,
    UnknownMemberError,
)
from security.signing import BadSignatureError

CODE_KEY: Final = "consilium-error-code"
OFFSET_KEY: Final = "consilium-upload-offset"
_LONGEST_DETAILS: Final = 1500  # characters; gRPC sends them percent-encoded, in 8 KB of metadata

_C = grpc.StatusCode
# By class; what is not here has its base's. Retrying helps with UNAVAILABLE and RESOURCE_EXHAUSTED, and nowhere else.
STATUS: Final[Mapping[type[ConsiliumError], grpc.StatusCode]] = {
    ConsiliumError: _C.INTERNAL,
    LocalMisuseError: _C.INTERNAL,
    # Who calls
    CertificateError: _C.UNAUTHENTICATED,
    TlsVersionError: _C.UNAUTHENTICATED,
    WrongRoleError: _C.PERMISSION_DENIED,
    CertificateKeyError: _C.PERMISSION_DENIED,
    NotTheSignerError: _C.PERMISSION_DENIED,
    UnknownMemberError: _C.PERMISSION_DENIED,
    BadSignatureError: _C.PERMISSION_DENIED,
    EquivocationError: _C.PERMISSION_DENIED,
    TooManyCallsError: _C.RESOURCE_EXHAUSTED,
    # What is asked
    ConfigurationError: _C.INVALID_ARGUMENT,
    MalformedRequestError: _C.INVALID_ARGUMENT,
    MalformedMessageError: _C.INVALID_ARGUMENT,
    OffsetError: _C.OUT_OF_RANGE,
    ProtocolVersionError: _C.UNIMPLEMENTED,
    # When
    ProtocolError: _C.FAILED_PRECONDITION,
    RunActiveError: _C.FAILED_PRECONDITION,
    RunDamagedError: _C.FAILED_PRECONDITION,
    ExportError: _C.FAILED_PRECONDITION,
    # Uploads and content
    SecondUploadError: _C.ALREADY_EXISTS,
    UploadConflictError: _C.ALREADY_EXISTS,
    UploadOffsetError: _C.OUT_OF_RANGE,
    UploadLengthError: _C.OUT_OF_RANGE,
    UploadMismatchError: _C.DATA_LOSS,
    UploadMissingError: _C.NOT_FOUND,
    UnknownContentError: _C.NOT_FOUND,
    StorageError: _C.UNAVAILABLE,
    # Runs
    StoreError: _C.UNAVAILABLE,
    UnknownRunError: _C.NOT_FOUND,
    RunExistsError: _C.ALREADY_EXISTS,
    AttemptError: _C.ABORTED,
    RecordConflictError: _C.ABORTED,
}


def status_of(error: ConsiliumError) -> grpc.StatusCode:
    """The status of an error: its class's, or that of its nearest base in `STATUS`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def details_of(error: ConsiliumError, *, to_operator: bool) -> str:
    """What travels beside the status.

    Args:
        error: what was raised.
        to_operator: also its message and remedy, where the mistake is the operator's own.
    """
    if not to_operator or not isinstance(error, ConfigurationError | StoreError | ExportError | RunActiveError):
        return error.code
    text = f"{error.code}: {error}"
    return text if len(text) <= _LONGEST_DETAILS else f"{text[: _LONGEST_DETAILS - 1]}…"


def metadata_of(error: ConsiliumError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: the code, and for an upload at the wrong place the offset to go on from."""
    if isinstance(error, UploadOffsetError):
        return (CODE_KEY, error.code), (OFFSET_KEY, str(error.expected))
    return ((CODE_KEY, error.code),)
