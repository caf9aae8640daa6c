"""Before any test module imports gRPC: no cipher suite of TLS 1.2 (STYLE.md, "Facts found", gRPC)."""

from __future__ import annotations

from security.tls import require_tls13_environment

require_tls13_environment()
