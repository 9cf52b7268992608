"""A Safe on a development chain: Safe's own contracts, from npm, and owners that sign what a file asks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from eth_account import Account
from eth_typing import HexStr
from web3 import Web3
from web3.contract import Contract

from cli.devchain.accounts import DevAccount
from cli.devchain.governance import Governance

PACKAGE: Final = Path(__file__).parent / "node_modules/@safe-global/safe-smart-account"
ZERO: Final = "0x" + "00" * 20
CALL, DELEGATE_CALL = 0, 1
GAS: Final = 10_000_000
Asked = tuple[str, int, bytes, int, int, int, int, str, str]
"""What a Safe is asked for: the arguments of `getTransactionHash` before the nonce."""


def need_safe() -> None:
    """Skip where npm has not brought Safe's contracts."""
    if not PACKAGE.is_dir():
        pytest.skip("Safe's contracts are not installed: npm ci --ignore-scripts in tests/safe")


class _Artifact(msgspec.Struct):
    abi: list[dict[str, Any]]
    bytecode: str


class RealSafe:
    """A Safe of `owners`, of whom `threshold` must sign; `payer` only sends what they signed."""

    def __init__(self, payer: Governance, owners: Sequence[DevAccount], threshold: int) -> None:
        self._payer = payer
        self._owners = sorted(owners, key=lambda owner: owner.address_bytes)
        singleton, factory, self._multi_send = (
            self._deployed(name)
            for name in (
                "Safe.sol/Safe",
                "proxies/SafeProxyFactory.sol/SafeProxyFactory",
                "libraries/MultiSendCallOnly.sol/MultiSendCallOnly",
            )
        )
        addresses = [owner.address for owner in owners]
        setup = singleton.encode_abi("setup", [addresses, threshold, ZERO, b"", ZERO, ZERO, 0, ZERO])
        create = factory.functions.createProxyWithNonce(singleton.address, HexStr(setup), 0)
        (receipt,) = payer.settle(payer.send(create, gas=GAS))
        made = factory.events.ProxyCreation().process_log(receipt["logs"][-1])
        self.contract = payer.web3.eth.contract(address=made["args"]["proxy"], abi=singleton.abi)
        self.address = str(self.contract.address)

    def execute(self, batch: Path, signers: int) -> None:
        """Have the first `signers` owners sign what a file for Transaction Builder asks; wait until final."""
        document = json.loads(batch.read_text())
        assert document["version"] == "1.0"
        assert document["chainId"] == str(self._payer.web3.eth.chain_id)
        asked = self.batch([(one["to"], bytes.fromhex(one["data"][2:])) for one in document["transactions"]])
        nonce = self.contract.functions.nonce().call()
        self._payer.finalize(self.send(asked, self.signatures(self.hash_of(asked, nonce), signers)))

    def batch(self, calls: Sequence[tuple[str, bytes]]) -> Asked:
        """Return what owners sign to have several calls made, as Safe's own app writes it."""
        packed = b"".join(_packed(to, data) for to, data in calls)
        data = self._multi_send.encode_abi("multiSend", [packed])
        return self.asked(str(self._multi_send.address), bytes.fromhex(data[2:]), DELEGATE_CALL)

    def asked(self, to: str, data: bytes, operation: int = CALL, value: int = 0, gas_price: int = 0) -> Asked:
        """Return what owners sign to have one call made."""
        return (Web3.to_checksum_address(to), value, data, operation, 0, 0, gas_price, ZERO, ZERO)

    def hash_of(self, asked: Asked, nonce: int) -> bytes:
        """Return the hash that the contract itself wants signed."""
        return bytes(self.contract.functions.getTransactionHash(*asked, nonce).call())

    def signatures(self, digest: bytes, signers: int) -> dict[str, bytes]:
        """Return the signatures of the first owners, in the contract's order."""
        return {
            owner.address: bytes(Account.unsafe_sign_hash(digest, owner.private_key).signature)
            for owner in self._owners[:signers]
        }

    def send(self, asked: Asked, signatures: dict[str, bytes]) -> bytes:
        """Send what was signed; returns the transaction's hash."""
        together = b"".join(signatures.values())
        return self._payer.send(self.contract.functions.execTransaction(*asked, together), gas=GAS)

    def _deployed(self, name: str) -> Contract:
        path = (PACKAGE / "build/artifacts/contracts" / name).with_suffix(".json")
        artifact = msgspec.json.decode(path.read_bytes(), type=_Artifact)
        made = self._payer.web3.eth.contract(abi=artifact.abi, bytecode=HexStr(artifact.bytecode))
        (receipt,) = self._payer.settle(self._payer.send(made.constructor(), gas=GAS))
        address = receipt["contractAddress"]
        assert address is not None
        return self._payer.web3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact.abi)


def _packed(to: str, data: bytes) -> bytes:
    """Return one call as MultiSend takes it: kind, address, value, length, data."""
    return (
        bytes([CALL]) + bytes.fromhex(to[2:]) + (0).to_bytes(32, "big") + len(data).to_bytes(32, "big") + data
    )
