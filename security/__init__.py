"""Identity and TLS, the secure sum, privacy accounting and the audit log. Knows no gRPC and no torch."""
