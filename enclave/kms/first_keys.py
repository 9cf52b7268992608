"""A first set of root keys, made here or taken over, with the CA certificates that each KMS makes itself."""

from cryptography.hazmat.primitives.asymmetric import ec

from enclave.kms.key_store import KeyMaterial
from shared.ratls.certificates import (
    BACKDATE,
    CA_LIFETIME,
    ROOT_CA_NAME,
    TEMP_CA_NAME,
    rpc_certificate,
    self_signed_ca,
)


def first_keys(
    root: ec.EllipticCurvePrivateKey,
    temporary: ec.EllipticCurvePrivateKey,
    k256: bytes,
    *,
    domain: str,
    now: int,
) -> KeyMaterial:
    """Return what is to be stored: the two CAs' P-256 keys and the k256 key (32 bytes), certified at `now`.

    Raises `ConfigError("ratls.domain.invalid")`, before any key is stored, for a domain that no certificate
    can carry.
    """
    material = KeyMaterial(
        root_ca_key=root,
        temp_ca_key=temporary,
        k256=k256,
        root_ca_cert=self_signed_ca(root, ROOT_CA_NAME, 1, now - BACKDATE, now + CA_LIFETIME),
        temp_ca_cert=self_signed_ca(temporary, TEMP_CA_NAME, 0, now - BACKDATE, now + CA_LIFETIME),
        domain=domain,
    )
    rpc_certificate(temporary, domain=domain, issuer=(material.root_ca_cert, root), attestation=None, now=now)
    return material
