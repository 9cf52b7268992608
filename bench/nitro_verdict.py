"""The Nitro verdict against the signatures in it.

A document of our simulator has the chain of a real one: root, region, zone, instance, leaf. The root is the
anchor, so five P-384 signatures are verified: four certificates and the document.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import cycle

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from bench.enclaves import Kms
from bench.measure import Bar, Result, compare
from shared.attestation.verify import VerifierCache, verify_attestation

SIGNATURES = 5
SIGNED_BYTES = 600  # about a certificate of the chain


def cold() -> Result:
    """Measure with nothing remembered."""
    verdict, raw = _subjects(None)
    what = "verify_attestation, cold chain, against five raw P-384 verifications"
    return compare("nitro-cold", what, verdict, raw, bar=Bar("at most", 1.2))


def warm() -> Result:
    """Measure with the chain remembered: the document itself is verified every time."""
    verdict, raw = _subjects(VerifierCache())
    what = "verify_attestation, chain cached, against five raw P-384 verifications"
    return compare("nitro-warm", what, verdict, raw, bar=Bar("at most", 0.5))


def _subjects(cache: VerifierCache | None) -> tuple[Callable[[], object], Callable[[], object]]:
    with redirect_stdout(io.StringIO()):  # its log lines
        kms = Kms()
    now = kms.now()
    clients = cycle([kms.new_client() for _ in range(8)])

    def verdict() -> None:
        client = next(clients)
        verify_attestation(
            client.envelope,
            now=now,
            anchors=kms.anchors,
            report_data=client.report_data,
            cache=cache,
        )

    algorithm = ec.ECDSA(SHA384())
    key = ec.generate_private_key(ec.SECP384R1())
    messages = [bytes([index]) * SIGNED_BYTES for index in range(SIGNATURES)]
    signed = [(key.sign(message, algorithm), message) for message in messages]
    public = key.public_key()

    def raw() -> None:
        for signature, message in signed:
            public.verify(signature, message, algorithm)

    return verdict, raw
