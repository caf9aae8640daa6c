"""TLS 1.3 only, said before anything here imports gRPC."""

from __future__ import annotations

from security.tls import require_tls13_environment

require_tls13_environment()
