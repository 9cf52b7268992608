"""Attested TLS: certificates that carry evidence, the decisions about them, and the TLS contexts."""
