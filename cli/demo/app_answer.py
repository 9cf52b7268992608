"""What the app's owner checks of an app's answer: its key, its evidence and its certificate."""

from hashlib import sha512

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cli.demo.guests import Measured
from cli.demo.kms_operator import Audit
from functions.deploy.evidence import Verifier
from shared.errors import InvalidEvidence
from shared.hex import decode_hex
from shared.keys.guest_keys import SIGN_PURPOSE, claim_v0, verify_key_chain
from shared.keys.guest_signature import verify
from shared.ratls.app_peer import SERVER, check_app_chain


class AppAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The `app.answer` event of `cli.demo.sdk_app`: hex, and PEMs."""

    app_id: str
    wallet_bytes: int
    public_key: str
    signature: str
    signature_chain: tuple[str, ...]
    attestation: str
    certificate_chain: tuple[str, ...]


def check_answer(
    answer: AppAnswer,
    *,
    challenge: bytes,
    app_id: bytes,
    planned: Measured,
    audit: Audit,
    verifier: Verifier,
) -> None:
    """Check an app's answer to `challenge` by what its owner knows of the app, its image and its KMS.

    1. The key that signed is the app's, by the KMS's word. 2. It signed the challenge. 3. Fresh evidence of
    the planned image names that key. 4. The certificate is one that this KMS gave this app.

    Raises `InvalidEvidence`: `demo.app.signature`, `demo.app.image`, `demo.app.certificate`, and what the
    checks raise.
    """
    public = decode_hex(answer.public_key, what="public_key", length=33)
    chain = [decode_hex(link, what="signature_chain", length=65) for link in answer.signature_chain]
    verify_key_chain(claim_v0(SIGN_PURPOSE, public), chain, app_id=app_id, root_pubkey=audit.k256_pubkey)
    if not verify("secp256k1", challenge, decode_hex(answer.signature, what="signature"), public):
        raise InvalidEvidence("demo.app.signature", "the app's signature is not one of the challenge")
    verifier.verify_workload(
        decode_hex(answer.attestation, what="attestation"),
        sha512(challenge + public).digest(),
        os_image_hash=planned.os_image_hash,
        compose_hash=planned.compose_hash,
        code="demo.app.image",
    )
    try:
        certificates = [
            x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
            for pem in answer.certificate_chain
        ]
    except ValueError as error:
        raise InvalidEvidence("demo.app.certificate", "the app's certificate is none") from error
    certificate = check_app_chain(certificates, root_ca_pem=audit.root_pem, now=verifier.now(), role=SERVER)
    if certificate.app_id != app_id:
        raise InvalidEvidence("demo.app.certificate", "the app's certificate is another app's")
