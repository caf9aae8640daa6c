"""Every reason for which a certificate, or a request for one, is refused. Codes may travel, messages not."""

from __future__ import annotations

from security.errors import ConsiliumError


class CertificateError(ConsiliumError):
    """A certificate, or the authority that it is checked against, is not acceptable."""

    code = "certificate"


class MalformedCertificateError(CertificateError):
    """Not one certificate in PEM form."""

    code = "certificate-malformed"


class ForeignAuthorityError(CertificateError):
    """Signed by another authority than the federation's, or the authority's own certificate is not one."""

    code = "certificate-foreign-authority"


class CertificateExpiredError(CertificateError):
    """Its time, or its authority's, is over."""

    code = "certificate-expired"


class CertificateNotYetValidError(CertificateError):
    """Its time, or its authority's, has not begun: as a rule a wrong clock."""

    code = "certificate-not-yet-valid"


class CertificateRevokedError(CertificateError):
    """Its fingerprint is on the revocation list."""

    code = "certificate-revoked"


class WrongRoleError(CertificateError):
    """Made for another role, or its key usage does not fit its role."""

    code = "certificate-wrong-role"


class WrongFederationError(CertificateError):
    """Made for another federation."""

    code = "certificate-wrong-federation"


class CertificateIdentityError(CertificateError):
    """It names no party, several, or one in a form that is not ours."""

    code = "certificate-identity"


class WrongKeyKindError(CertificateError):
    """Its key is not ECDSA P-256, or it was not signed with SHA-256."""

    code = "certificate-wrong-key-kind"


class RequestRefusedError(CertificateError):
    """The authority does not sign this certificate request."""

    code = "certificate-request-refused"
