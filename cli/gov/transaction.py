"""A transaction of EIP-1559, signed: nothing here sends it."""

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.chain import rlp
from shared.keccak import keccak256
from shared.keys.k256 import SigningKey, public_key

_TYPE = b"\x02"


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. Fees are in wei per gas; `to` is None for a new contract."""

    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: bytes | None
    data: bytes

    def signed(self, key: SigningKey) -> bytes:
        """Return the bytes to send, whose Keccak-256 is the transaction's hash."""
        fields: list[rlp.Encodable] = [
            *map(
                rlp.encode_int,
                (self.chain_id, self.nonce, self.max_priority_fee, self.max_fee, self.gas),
            ),
            self.to or b"",
            rlp.encode_int(0),
            self.data,
            [],
        ]
        signature = key.sign(_TYPE + rlp.encode(fields))
        r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:64]))
        return _TYPE + rlp.encode([*fields, *map(rlp.encode_int, (signature[64], r, s))])


def address_of(private: bytes) -> bytes:
    """Return the 20-byte address of a private key. Raises `ConfigError("keys.k256.scalar")`."""
    point = EllipticCurvePublicKey.from_encoded_point(SECP256K1(), public_key(private))
    return keccak256(point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:])[12:]
