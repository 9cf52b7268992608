"""The restricted signing keys of the TPM in process: their templates, and signatures by them."""

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm_wire import Reader, sized, u16

_RC_ATTRIBUTES = 0x2C2
_RC_HASH = 0x2C3
_RC_TYPE = 0x2CA
_RC_SCHEME = 0x2D2
_RC_SYMMETRIC = 0x2D6

_ROLES = 0x70000  # restricted, decrypt, sign
_RESTRICTED_SIGN = 0x50000
_P256 = 0x0003
_RSA_BITS = 2048

_ECC_PARAMETERS = (wire.ALG_ECDSA, wire.ALG_SHA256, _P256, wire.ALG_NULL)
_RSA_PARAMETERS = (wire.ALG_RSASSA, wire.ALG_SHA256, _RSA_BITS, 0)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Refusal(Exception):  # noqa: N818 - carries one of the TPM's return codes
    """The command is answered with this return code."""

    def __init__(self, rc: int) -> None:
        super().__init__(rc)
        self.rc = rc


class Template(msgspec.Struct, frozen=True):
    """A signing key's TPMT_PUBLIC without its last field, the public key."""

    head: bytes
    is_rsa: bool

    def new_key(self) -> SigningKey:
        """Make a key of this kind."""
        if self.is_rsa:
            return rsa.generate_private_key(65537, _RSA_BITS)
        return ec.generate_private_key(ec.SECP256R1())


def read_template(template: bytes) -> Template:
    """Read a TPMT_PUBLIC of a restricted signing key: ECDSA on P-256 or RSASSA of 2048 bits, with SHA-256.

    Raises `Refusal` for another, and what `Reader` raises.
    """
    reader = Reader(template, "template")
    kind = reader.u16()
    if reader.u16() != wire.ALG_SHA256:
        raise Refusal(_RC_HASH)
    if reader.u32() & _ROLES != _RESTRICTED_SIGN:
        raise Refusal(_RC_ATTRIBUTES)
    reader.sized()  # policy: authorisation is by the empty password
    if reader.u16() != wire.ALG_NULL:
        raise Refusal(_RC_SYMMETRIC)
    scheme, digest = reader.u16(), reader.u16()
    if kind == wire.ALG_ECC:
        if (scheme, digest, reader.u16(), reader.u16()) != _ECC_PARAMETERS:
            raise Refusal(_RC_SCHEME)
        last = sized(reader.sized()) + sized(reader.sized())
    elif kind == wire.ALG_RSA:
        if (scheme, digest, reader.u16(), reader.u32()) != _RSA_PARAMETERS:
            raise Refusal(_RC_SCHEME)
        last = sized(reader.sized())
    else:
        raise Refusal(_RC_TYPE)
    reader.finish()
    return Template(template[: len(template) - len(last)], kind == wire.ALG_RSA)


def unique(key: SigningKey) -> bytes:
    """Return the public key as the last field of a TPMT_PUBLIC."""
    if isinstance(key, rsa.RSAPrivateKey):
        return sized(key.public_key().public_numbers().n.to_bytes(_RSA_BITS // 8, "big"))
    point = key.public_key().public_numbers()
    return sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))


def sign(key: SigningKey, message: bytes) -> bytes:
    """Return the TPMT_SIGNATURE over `message`."""
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PKCS1v15(), SHA256())
        return u16(wire.ALG_RSASSA) + u16(wire.ALG_SHA256) + sized(signature)
    r, s = (sized(n.to_bytes(32, "big")) for n in decode_dss_signature(key.sign(message, ec.ECDSA(SHA256()))))
    return u16(wire.ALG_ECDSA) + u16(wire.ALG_SHA256) + r + s
