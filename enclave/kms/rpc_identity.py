"""The KMS's TLS certificate: made at start, renewed before its evidence goes stale.

Clients refuse a Nitro document older than one hour (spec attestation 4.4), so a certificate that was attested
only at start, as upstream's is, would stop working after that hour. A pyOpenSSL context cannot change after
its first connection, so each renewal makes a new one, and connections under way keep theirs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from enclave.kms.key_store import KeyMaterial
from enclave.log import log_event
from enclave.tee.evidence import certificate_evidence
from enclave.tee.tee import Attestor
from shared.errors import DstackError
from shared.ratls.certificates import rpc_certificate
from shared.ratls.tls import server_context

RENEW_AFTER = 1200
"""Seconds: three attempts fit into the hour for which evidence is fresh."""

RETRY_AFTER = 60


class RpcIdentity:
    """Holds the current TLS context. `context` is called for each new connection."""

    def __init__(self, keys: KeyMaterial, attestor: Attestor | None, now: Callable[[], int]) -> None:
        self._keys = keys
        self._attestor = attestor
        self._now = now
        self._context = self._issue()

    def context(self) -> SSL.Context:
        """Return the context of the newest certificate."""
        return self._context

    @asynccontextmanager
    async def renewing(self, _app: object) -> AsyncIterator[None]:
        """Renew in the background for as long as the application runs (an ASGI lifespan)."""
        renewal = asyncio.create_task(self._renew_forever())
        try:
            yield
        finally:
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal

    async def _renew_forever(self) -> None:
        """Renew until cancelled. A failed renewal is logged and tried again; the old one serves on."""
        delay = RENEW_AFTER
        while True:
            await asyncio.sleep(delay)
            try:
                self._context = await asyncio.to_thread(self._issue)
                delay = RENEW_AFTER
            except DstackError as error:
                log_event("kms.rpc_certificate.renewal_failed", code=error.code, message=error.message)
                delay = RETRY_AFTER
            except Exception as error:  # noqa: BLE001 - an hour after this task ends no client believes us
                log_event("kms.rpc_certificate.renewal_failed", code="internal", message=repr(error))
                delay = RETRY_AFTER

    def _issue(self) -> SSL.Context:
        key = ec.generate_private_key(ec.SECP256R1())
        attestation = None
        if self._attestor is not None:
            attestation = certificate_evidence(self._attestor, key.public_key())
        certificate = rpc_certificate(
            key,
            domain=self._keys.domain,
            issuer=(self._keys.root_ca_cert, self._keys.root_ca_key),
            attestation=attestation,
            now=self._now(),
        )
        log_event("kms.rpc_certificate.issued", domain=self._keys.domain, attested=attestation is not None)
        return server_context(key=key, chain=(certificate,), client_ca=self._keys.temp_ca_cert)
