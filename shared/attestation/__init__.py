"""Attestation evidence: wire formats, verification, and the identity that verified evidence proves."""
