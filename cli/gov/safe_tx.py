"""What a Safe's owners sign: its hash, who signed it, and the calls of a batch (Safe 1.0 and later).

Nothing here is read leniently. What a contract would take and this does not is shown to people as unreadable.
"""

from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.chain.abi_values import decode_values
from shared.errors import InvalidEvidence, ProtocolError
from shared.keccak import keccak256
from shared.keys.k256 import recover_digest

CALL, DELEGATE_CALL = 0, 1
MULTI_SEND: Final = bytes.fromhex("8d80ff0a")
# Code of Safe's MultiSend contracts, as github.com/safe-global/safe-deployments lists it: it makes the calls
# that it is handed, and nothing else. "only" takes no delegatecalls.
MULTI_SENDS: Final = {
    bytes.fromhex(digits)
    for digits in (
        "e4e9b4d4c1e3ff06cd51afe0b51eb1b22c0bab51eab38d428ee74540a5ff603e",  # 1.1.1
        "0208282bd262360d0320862c5ac70f375f5ed3b9d89a83a615b4d398415bdc83",  # 1.3.0
        "81db0e4afdf5178583537b58c5ad403bd47a4ac7f9bde2442ef3e341d433126a",  # 1.3.0, eip155
        "a9865ac2d9c7a1591619b188c4d88167b50df6cc0c5327fcbd1c8c75f7c066ad",  # 1.3.0, only
        "0e4f7fc66550a322d1e7688e181b75e217e662a4f3f4d6a29b22bc61217c4b77",  # 1.4.1
        "ecd5bd14a08c5d2122379900b2f272bdf107a7e92423c10dd5fe3254386c9939",  # 1.4.1, only
        "ca1147a12963172a93910c5cb2bfa5ad0e941c7f03fc7eb017dd06a8ea4e5604",  # 1.5.0
        "cdbdcec38d2f1c7d961b0029ff8416b7e86e9974d6f0e9c9580c7d17fcfb6663",  # 1.5.0, only
    )
}
# A batch of more calls was not written by hand.
MAX_INNER: Final = 500
_DOMAIN: Final = keccak256(b"EIP712Domain(uint256 chainId,address verifyingContract)")
_DOMAIN_BEFORE_1_3: Final = keccak256(b"EIP712Domain(address verifyingContract)")
_SAFE_TX: Final = keccak256(
    b"SafeTx(address to,uint256 value,bytes data,uint8 operation,uint256 safeTxGas,uint256 baseGas,"
    b"uint256 gasPrice,address gasToken,address refundReceiver,uint256 nonce)"
)
_ETH_SIGN: Final = b"\x19Ethereum Signed Message:\n32"
_SIGNATURE: Final = 65
_INNER_HEAD: Final = 1 + 20 + 32 + 32


class Inner(msgspec.Struct, frozen=True):
    """A call that a Safe makes: `to` 20 bytes, `value` in wei, `operation` 0 to call, 1 to delegatecall."""

    to: bytes
    value: int
    data: bytes
    operation: int


class SafeTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """All that a signature covers; addresses of 20 bytes, amounts in wei or units of gas."""

    call: Inner
    safe_tx_gas: int
    base_gas: int
    gas_price: int
    gas_token: bytes
    refund_receiver: bytes
    nonce: int

    def hash(self, domain: bytes) -> bytes:
        """Return the 32 bytes that owners sign, for a Safe of this domain separator."""
        words = (
            self.call.to.rjust(32, b"\0"),
            _word(self.call.value),
            keccak256(self.call.data),
            _word(self.call.operation),
            *map(_word, (self.safe_tx_gas, self.base_gas, self.gas_price)),
            self.gas_token.rjust(32, b"\0"),
            self.refund_receiver.rjust(32, b"\0"),
            _word(self.nonce),
        )
        return keccak256(b"\x19\x01", domain, keccak256(_SAFE_TX, *words))


class Signed(msgspec.Struct, frozen=True):
    """Who a signature says has signed: `is_approval` where only the Safe's own storage can show it."""

    owner: bytes
    is_approval: bool


def domain_separators(safe: bytes, chain_id: int) -> tuple[bytes, bytes]:
    """Return the domain separators that a Safe may have: as of 1.3, and as before, which names no chain."""
    contract = safe.rjust(32, b"\0")
    return keccak256(_DOMAIN, _word(chain_id), contract), keccak256(_DOMAIN_BEFORE_1_3, contract)


def signer_of(signature: bytes, digest: bytes) -> Signed | None:
    """Return who signed a transaction's hash; None for what no key signed, as a contract's own word."""
    if len(signature) != _SIGNATURE:
        return None
    kind = signature[64]
    if kind == 1:
        return None if any(signature[:12]) else Signed(signature[12:32], is_approval=True)
    if kind in {31, 32}:
        digest, kind = keccak256(_ETH_SIGN, digest), kind - 4
    if kind not in {27, 28}:
        return None
    try:
        point = recover_digest(digest, signature[:64] + bytes([kind - 27]))
    except InvalidEvidence:
        return None
    key = EllipticCurvePublicKey.from_encoded_point(SECP256K1(), point)
    raw = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return Signed(keccak256(raw[1:])[12:], is_approval=False)


def read_multi_send(calldata: bytes, safe: bytes) -> list[Inner]:
    """Return the calls of a batch. Raises `ProtocolError("gov.safe_batch")` for one that is not written so.

    The zero address is the Safe itself there.
    """
    try:
        (packed,) = decode_values(("bytes",), calldata[4:])
    except ProtocolError as error:
        raise ProtocolError("gov.safe_batch", f"a batch of calls cannot be read: {error.message}") from error
    if calldata[:4] != MULTI_SEND or not isinstance(packed, bytes):
        raise ProtocolError("gov.safe_batch", "the call is no batch of calls")
    found: list[Inner] = []
    at = 0
    while at < len(packed):
        head = packed[at : at + _INNER_HEAD]
        size = int.from_bytes(head[53:], "big")
        end = at + _INNER_HEAD + size
        if len(head) < _INNER_HEAD or end > len(packed) or len(found) >= MAX_INNER:
            raise ProtocolError("gov.safe_batch", "a batch of calls ends within a call, or has too many")
        found.append(
            Inner(
                to=head[1:21] if any(head[1:21]) else safe,
                value=int.from_bytes(head[21:53], "big"),
                data=packed[at + _INNER_HEAD : end],
                operation=head[0],
            )
        )
        at = end
    return found


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")
