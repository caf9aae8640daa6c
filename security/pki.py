"""The federation's certificates, as the other packages import them (DESIGN.md, "Identity").

`security.authority` makes them, `security.certificates` reads and checks them, and
`security.certificate_errors` says why one is refused.
"""

from __future__ import annotations

from security.authority import (
    BACKDATE,
    RequestedIdentity,
    create_authority,
    create_request,
    inspect_request,
    sign_request,
)
from security.certificate_errors import (
    CertificateError,
    CertificateExpiredError,
    CertificateIdentityError,
    CertificateNotYetValidError,
    CertificateRevokedError,
    ForeignAuthorityError,
    MalformedCertificateError,
    RequestRefusedError,
    WrongFederationError,
    WrongKeyKindError,
    WrongRoleError,
)
from security.certificates import (
    Authority,
    Identity,
    Role,
    authority_of,
    check_certificate,
    federation_of_authority,
    identity_of,
    identity_uri,
    parse_revocations,
)

__all__ = [
    "BACKDATE",
    "RequestedIdentity",
    "create_authority",
    "create_request",
    "inspect_request",
    "sign_request",
    "CertificateError",
    "MalformedCertificateError",
    "ForeignAuthorityError",
    "CertificateExpiredError",
    "CertificateNotYetValidError",
    "CertificateRevokedError",
    "WrongRoleError",
    "WrongFederationError",
    "CertificateIdentityError",
    "WrongKeyKindError",
    "RequestRefusedError",
    "Authority",
    "Identity",
    "authority_of",
    "Role",
    "check_certificate",
    "federation_of_authority",
    "identity_of",
    "identity_uri",
    "parse_revocations",
]
