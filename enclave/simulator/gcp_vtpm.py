"""What Google puts into a vTPM before a guest starts: an attestation key's template and its certificate."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave.devices import tpm_wire as wire
from enclave.devices.gcp_ak import ECC_AK, RSA_AK, AkIndexes, ak_public_key
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_nv import (
    ATTR_AUTH_READ,
    ATTR_NO_DA,
    ATTR_OWNER_READ,
    ATTR_OWNER_WRITE,
    NvStorage,
)

_ATTRIBUTES = ATTR_OWNER_WRITE | ATTR_OWNER_READ | ATTR_AUTH_READ | ATTR_NO_DA

# Restricted signing keys of no policy, the profile of Google's own templates: fixedTPM, fixedParent,
# sensitiveDataOrigin, userWithAuth, restricted, sign.
_HEAD = wire.u16(wire.ALG_SHA256) + wire.u32(0x00050072) + wire.sized(b"") + wire.u16(wire.ALG_NULL)
ECC_TEMPLATE = (
    wire.u16(wire.ALG_ECC)
    + _HEAD
    + bytes.fromhex("0018 000b 0003 0010")  # ecdsa with sha256 on P-256, no kdf
    + wire.sized(bytes(32)) * 2
)
RSA_TEMPLATE = (
    wire.u16(wire.ALG_RSA)
    + _HEAD
    + bytes.fromhex("0014 000b 0800 00000000")  # rsassa with sha256, 2048 bits, exponent 65537
    + wire.sized(bytes(256))
)

TEMPLATES = {ECC_AK: ECC_TEMPLATE, RSA_AK: RSA_TEMPLATE}


def provision_ak(
    tpm: Tpm,
    issue: Callable[[ec.EllipticCurvePublicKey | rsa.RSAPublicKey], bytes],
    *,
    indexes: AkIndexes = ECC_AK,
) -> bytes:
    """Store a template and the certificate (DER) that `issue` makes for its key, and return the certificate.

    What the indexes held before is replaced. Raises what `Tpm` and `issue` do.
    """
    template = TEMPLATES[indexes]
    with tpm.primary(wire.RH_ENDORSEMENT, template) as primary:
        certificate = issue(ak_public_key(primary.public))
    storage = NvStorage(tpm)
    for index, content in ((indexes.template, template), (indexes.certificate, certificate)):
        if storage.find(index) is not None:
            storage.undefine(index)
        storage.define(index, len(content), _ATTRIBUTES)
        storage.write(index, content)
    return certificate
