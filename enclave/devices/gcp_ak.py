"""Google's vTPM: quotes by the attestation key that Google put there (spec attestation section 5.1)."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Primary, Tpm, TpmQuoted
from enclave.devices.tpm_nv import NvStorage
from enclave.devices.tpm_wire import Reader
from shared.attestation.gcp import QUOTED_PCRS
from shared.attestation.tpm_quote import BANK_NAME, parse_attest
from shared.errors import ProtocolError, UnavailableError

# Another process may extend a register between quote and reading; three times in a row is no accident.
_MAX_TRIES = 3
_P256 = 0x0003


class AkIndexes(msgspec.Struct, frozen=True):
    """The NV indexes of one attestation key: its certificate (DER) and its template (TPMT_PUBLIC)."""

    certificate: int
    template: int


RSA_AK = AkIndexes(certificate=0x01C10000, template=0x01C10001)
ECC_AK = AkIndexes(certificate=0x01C10002, template=0x01C10003)


class GcpQuote(msgspec.Struct, frozen=True):
    """A quote over PCR 0, 2 and 14, the values it covers, and the key's certificate (DER)."""

    quoted: TpmQuoted
    values: dict[int, bytes]
    certificate: bytes


class GcpVtpm:
    """The attestation key of one vTPM: the first of `keys` that it has; the ECC one, else the RSA one.

    Methods raise what `Tpm` does, and `UnavailableError("tpm_device.ak.absent")` when neither is there.
    """

    def __init__(self, tpm: Tpm, keys: Sequence[AkIndexes] = (ECC_AK, RSA_AK)) -> None:
        self._tpm = tpm
        self._keys = tuple(keys)
        self._storage = NvStorage(tpm)

    def quote(self, qualifying_data: bytes) -> GcpQuote:
        """Quote PCR 0, 2 and 14 and return their values.

        Raises `UnavailableError("tpm_device.pcr.moving")` when they keep changing under the quote, and
        `InvalidEvidence("tpm.attest.*")` for a quote of another layout.
        """
        indexes = self._indexes()
        with self._loaded(indexes) as key:
            for _ in range(_MAX_TRIES):
                quoted = self._tpm.quote(key.handle, qualifying_data, BANK_NAME, QUOTED_PCRS)
                values = self._tpm.pcr_read(BANK_NAME, QUOTED_PCRS)
                digest = hashlib.sha256(b"".join(values[index] for index in QUOTED_PCRS)).digest()
                if digest == parse_attest(quoted.message).pcr_digest:
                    break
            else:
                raise UnavailableError(
                    "tpm_device.pcr.moving", f"registers changed during each of {_MAX_TRIES} quotes"
                )
        return GcpQuote(quoted, values, self._storage.read(indexes.certificate))

    def ak_public(self) -> bytes:
        """Return the key's TPMT_PUBLIC: the same for this vTPM's whole life, another one on a copied disk."""
        with self._loaded(self._indexes()) as key:
            return key.public

    def _indexes(self) -> AkIndexes:
        for indexes in self._keys:
            if self._storage.find(indexes.template) and self._storage.find(indexes.certificate):
                return indexes
        raise UnavailableError(
            "tpm_device.ak.absent", "tpm has no attestation key of google: no template with a certificate"
        )

    @contextmanager
    def _loaded(self, indexes: AkIndexes) -> Iterator[Primary]:
        template = self._storage.read(indexes.template)
        with self._tpm.primary(wire.RH_ENDORSEMENT, template) as key:
            yield key


def ak_public_key(public: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """Return the public key in a signing key's TPMT_PUBLIC: P-256, or RSA.

    Raises `ProtocolError`: `tpm_device.key` for another kind of key, `tpm_device.response.layout`.
    """
    reader = Reader(public, "tpm's public area")
    kind = reader.u16()
    reader.take(6)  # name algorithm and attributes
    reader.sized()  # policy
    symmetric, scheme = reader.u16(), reader.u16()
    if symmetric != wire.ALG_NULL or scheme not in {wire.ALG_ECDSA, wire.ALG_RSASSA}:
        raise ProtocolError("tpm_device.key", f"key has scheme {scheme:#x}, expected ecdsa or rsassa")
    reader.u16()  # the scheme's hash
    try:
        if kind == wire.ALG_ECC:
            curve = (reader.u16(), reader.u16())
            x, y = reader.sized(), reader.sized()
            reader.finish()
            if curve != (_P256, wire.ALG_NULL):
                raise ProtocolError("tpm_device.key", f"key is on curve {curve[0]:#x}, expected P-256")
            point = ec.EllipticCurvePublicNumbers(
                int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
            )
            return point.public_key()
        if kind == wire.ALG_RSA:
            reader.u16()  # bits
            exponent, modulus = reader.u32() or 65537, reader.sized()
            reader.finish()
            return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise ProtocolError("tpm_device.key", "key's numbers are no public key") from error
    raise ProtocolError("tpm_device.key", f"key has type {kind:#x}, expected ecc or rsa")
