"""Keys from a KMS while a guest boots (spec deploy section 6.3 step 7).

The host names the addresses, the measured app-compose the root CA's key. An address adds no trust: whoever
answers there presents a certificate under the pinned key, of usage `kms:rpc`, with evidence of its own.
"""

import time
from collections.abc import Callable, Sequence
from random import SystemRandom

import msgspec

from enclave.dstack_util.enclave_config import KmsEndpoint, kms_endpoint
from enclave.dstack_util.get_keys import KeyBundle, KeyQuestion, ask_for_keys
from enclave.dstack_util.kms_client import KmsClient
from enclave.log import log_event
from enclave.tee.peers import PeerVerifier, Trust
from enclave.tee.tee import Attestor
from shared.errors import ConfigError, DstackError, UnavailableError
from shared.net.dialer import Dialer
from shared.ratls.peer import check_kms_certificate_of_key, ratls_report_data

FIRST_DELAY = 1.0
MAX_DELAY = 30.0


class Waiting(msgspec.Struct, frozen=True):
    """How long a boot waits for a KMS that does not answer: `limit` seconds in all.

    The clock is monotonic. Each pause is shortened by up to a half, by `chance` from 0 to 1: guests that lost
    one KMS together do not come back together. A boot that gave up is stopped until somebody looks, so it is
    patient; a machine that waited for ever would say nothing.
    """

    limit: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = SystemRandom().random


class KeyPinnedClient(KmsClient):
    """Speaks to a KMS whose root CA is pinned by its key, SPKI in DER."""

    def __init__(
        self, endpoint: KmsEndpoint, *, root_spki: bytes, dialer: Dialer, verifier: PeerVerifier
    ) -> None:
        super().__init__(endpoint, root_pem=b"", dialer=dialer, verifier=verifier)
        self._root_spki = root_spki

    def check_server(self, leaf_der: bytes) -> None:
        """Refuse a server that is not an attested KMS under the pinned key (spec kms section 4.7)."""
        envelope = check_kms_certificate_of_key(
            leaf_der, root_spki=self._root_spki, hostname=self._host, now=self._verifier.now()
        )
        self._verifier.verify(envelope, ratls_report_data(leaf_der))


def fetch_keys(
    urls: Sequence[str],
    question: KeyQuestion,
    *,
    dialer: Dialer,
    attestor: Attestor,
    trust: Trust,
    waiting: Waiting,
) -> KeyBundle:
    """Ask the KMSes in order until one gives keys; while one of them does not answer, ask all again.

    Nothing is recorded in between, so that any of them sees the same guest (SECURITY N-62). Raises the first
    KMS's error once nothing is to be waited for or the time is up, and `ConfigError`: `setup.kms_urls`
    without a URL, `setup.root_pin` where app-compose pins no root.
    """
    if not question.root_spki:
        raise ConfigError(
            "setup.root_pin", "app-compose pins no key_provider_id, so no KMS can be told apart from another"
        )
    endpoints = [kms_endpoint(url) for url in urls]
    if not endpoints:
        raise ConfigError("setup.kms_urls", "key_provider is kms, and the host names no kms_urls")
    clients = [
        (KeyPinnedClient(one, root_spki=question.root_spki, dialer=dialer, verifier=trust.verifier), one.url)
        for one in endpoints
    ]
    deadline = waiting.monotonic() + waiting.limit
    delay = FIRST_DELAY
    while True:
        failures: list[DstackError] = []
        for client, url in clients:
            try:
                return ask_for_keys(client, question, url, attestor, trust.clock)
            except DstackError as error:
                log_event("setup.kms_failed", url=url, code=error.code, message=error.message)
                failures.append(error)
        may_come = any(isinstance(error, UnavailableError) for error in failures)
        pause = delay * (1 + waiting.chance()) / 2
        if not may_come or waiting.monotonic() + pause > deadline:
            raise failures[0]
        waiting.sleep(pause)
        delay = min(2 * delay, MAX_DELAY)
