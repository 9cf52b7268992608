"""The owner's side of the contracts: deploy them, and change what they allow. For the demo and the tests.

A method that changes something sends its transaction and returns the hash at once, so that many changes share
a block; `settle` waits until they are mined, `finalize` until their blocks are final.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import rlp
from eth_typing import URI, HexStr
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.contract.contract import ContractConstructor, ContractFunction
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3Exception
from web3.types import Nonce, TxParams, TxReceipt, Wei

from cli.devchain.accounts import DevAccount
from cli.devchain.artifacts import artifact
from shared.boot_info import BootInfo
from shared.errors import PolicyDenied, ProtocolError, UnavailableError
from shared.keccak import keccak256

ZERO32 = bytes(32)
# Estimating is impossible for a call to a contract that is not mined yet; these cover each kind with room.
DEPLOY_GAS = 4_000_000
CALL_GAS = 1_000_000
STORED_BYTE_GAS = 1_000  # a new storage word costs 22,100, and calldata 16 a byte
WAIT_TIMEOUT = 60.0
REQUEST_TIMEOUT = 10.0
_POLL = 0.05

Answer = TypeVar("Answer")


class Deployment(msgspec.Struct, frozen=True):
    """Addresses of 20 bytes: both implementations, and the KMS proxy that everybody talks to."""

    app_implementation: bytes
    kms_implementation: bytes
    kms: bytes


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn web3's errors into ours."""
    try:
        yield
    except ContractLogicError as error:
        raise PolicyDenied("governance.reverted", f"the contract reverted: {error.message}") from error
    except Web3Exception as error:
        raise ProtocolError("governance.rpc", f"the chain refused the request: {error}") from error
    except OSError as error:
        raise UnavailableError("governance.unreachable", f"the chain does not answer: {error}") from error


class Governance:
    """Acts for one account on one chain. `account` owns the contracts that it deploys."""

    @_translated()
    def __init__(self, url: str, account: DevAccount, *, kms: bytes | None = None) -> None:
        self._web3 = Web3(HTTPProvider(URI(url), request_kwargs={"timeout": REQUEST_TIMEOUT}))
        self._account = account
        self._nonce: int = self._web3.eth.get_transaction_count(
            Web3.to_checksum_address(account.address), "pending"
        )
        self._kms = kms

    @property
    def address(self) -> str:
        """The acting account, in checksum form."""
        return self._account.address

    @property
    def web3(self) -> Web3:
        """The web3 client, for what this class does not name."""
        return self._web3

    @property
    def kms(self) -> Contract:
        """The KMS contract behind its proxy."""
        if self._kms is None:
            raise ValueError("deploy() first, or pass the address of a deployed KMS contract")
        return self._contract("DstackKms", self._kms)

    def app(self, app_id: bytes) -> Contract:
        """Return the app contract at an app id of 20 bytes."""
        return self._contract("DstackApp", app_id)

    # ---- deploying ----

    def deploy(self, owner: str | None = None) -> Deployment:
        """Deploy app implementation, KMS implementation and KMS proxy, in upstream's order, and settle.

        `owner` owns the proxy, this account where none is named. The addresses follow from the account's
        nonces, so all three transactions can share a block.
        """
        app, kms, proxy = (_create_address(self._account.address_bytes, self._nonce + n) for n in range(3))
        initialization = self._contract("DstackKms", proxy).encode_abi(
            "initialize", [owner or self._account.address, app]
        )
        sent = [
            self.send(self.constructor("DstackApp"), gas=DEPLOY_GAS),
            self.send(self.constructor("DstackKms"), gas=DEPLOY_GAS),
            self.send(self.constructor("ERC1967Proxy", kms, initialization), gas=DEPLOY_GAS),
        ]
        self.settle(*sent)
        self._kms = proxy
        return Deployment(app, kms, proxy)

    def constructor(self, name: str, *arguments: bytes | str) -> ContractConstructor:
        """Return the constructor of one of the contracts, to be sent."""
        code = artifact(name)
        return self._web3.eth.contract(abi=code.abi, bytecode=HexStr(code.bytecode)).constructor(*arguments)

    def deploy_app(
        self,
        *,
        compose_hash: bytes = ZERO32,
        device_id: bytes = ZERO32,
        allow_any_device: bool = False,
        require_tcb_up_to_date: bool = False,
        disable_upgrades: bool = False,
        owner: bytes | None = None,
    ) -> bytes:
        """Make and register an app with the factory, settle, and return its app id of 20 bytes."""
        create = self.kms.get_function_by_signature(
            "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
        )
        receipt = self.settle(
            self.send(
                create(
                    owner or self._account.address_bytes,
                    disable_upgrades,
                    require_tcb_up_to_date,
                    allow_any_device,
                    device_id,
                    compose_hash,
                )
            )
        )[0]
        events = self.kms.events.AppDeployedViaFactory().process_log(receipt["logs"][-1])
        return bytes.fromhex(events["args"]["appId"][2:])

    # ---- changing what is allowed ----

    def add_os_image(self, os_image_hash: bytes) -> bytes:
        """Allow an OS image (32 bytes)."""
        return self.send(self.kms.functions.addOsImageHash(os_image_hash))

    def remove_os_image(self, os_image_hash: bytes) -> bytes:
        """Revoke an OS image."""
        return self.send(self.kms.functions.removeOsImageHash(os_image_hash))

    def add_kms_mr(self, mr_aggregated: bytes) -> bytes:
        """Allow a KMS measurement (32 bytes)."""
        return self.send(self.kms.functions.addKmsAggregatedMr(mr_aggregated))

    def remove_kms_mr(self, mr_aggregated: bytes) -> bytes:
        """Revoke a KMS measurement."""
        return self.send(self.kms.functions.removeKmsAggregatedMr(mr_aggregated))

    def add_kms_device(self, device_id: bytes) -> bytes:
        """Allow a KMS to boot on a device (32 bytes)."""
        return self.send(self.kms.functions.addKmsDevice(device_id))

    def remove_kms_device(self, device_id: bytes) -> bytes:
        """Revoke a KMS device."""
        return self.send(self.kms.functions.removeKmsDevice(device_id))

    def set_kms_info(
        self, *, k256_pubkey: bytes, ca_pubkey: bytes, quote: bytes = b"", eventlog: bytes = b""
    ) -> bytes:
        """Publish the public keys of the KMS and what attests them."""
        call = self.kms.functions.setKmsInfo((k256_pubkey, ca_pubkey, quote, eventlog))
        return self.send(call, gas=CALL_GAS + STORED_BYTE_GAS * (len(quote) + len(eventlog)))

    def set_gateway_app_id(self, gateway_app_id: str) -> bytes:
        """Name the gateway that apps may trust."""
        return self.send(self.kms.functions.setGatewayAppId(gateway_app_id))

    def add_compose_hash(self, app_id: bytes, compose_hash: bytes) -> bytes:
        """Allow a compose hash (32 bytes) for an app."""
        return self.send(self.app(app_id).functions.addComposeHash(compose_hash))

    def remove_compose_hash(self, app_id: bytes, compose_hash: bytes) -> bytes:
        """Revoke a compose hash."""
        return self.send(self.app(app_id).functions.removeComposeHash(compose_hash))

    # ---- asking ----

    @_translated()
    def is_app_allowed(self, boot_info: BootInfo) -> tuple[bool, str]:
        """Ask the KMS contract, at the head, whether an app may have its keys, and why not."""
        allowed, reason = self.kms.functions.isAppAllowed(boot_tuple(boot_info)).call()
        return bool(allowed), str(reason)

    @_translated()
    def is_kms_allowed(self, boot_info: BootInfo) -> tuple[bool, str]:
        """Ask the KMS contract, at the head, whether a KMS may hold the root keys, and why not."""
        allowed, reason = self.kms.functions.isKmsAllowed(boot_tuple(boot_info)).call()
        return bool(allowed), str(reason)

    # ---- transactions ----

    @_translated()
    def send(self, call: ContractConstructor | ContractFunction, *, gas: int = CALL_GAS) -> bytes:
        """Sign and send a web3 contract call or constructor; returns the transaction hash (32 bytes)."""
        eth = self._web3.eth
        base_fee = eth.get_block("latest")["baseFeePerGas"]
        tip = eth.max_priority_fee
        parameters: TxParams = {
            "from": Web3.to_checksum_address(self._account.address),
            "chainId": eth.chain_id,
            "nonce": Nonce(self._nonce),
            "gas": gas,
            "maxFeePerGas": Wei(2 * base_fee + tip),
            "maxPriorityFeePerGas": tip,
        }
        signed = eth.account.sign_transaction(call.build_transaction(parameters), self._account.private_key)
        sent = eth.send_raw_transaction(signed.raw_transaction)
        self._nonce += 1
        return bytes(sent)

    @_translated()
    def settle(self, *hashes: bytes) -> Sequence[TxReceipt]:
        """Wait until the transactions are mined and return their receipts.

        Raises `PolicyDenied("governance.transaction.reverted")` with the contract's reason when one failed.
        """
        receipts = [_await("a transaction to be mined", partial(self._receipt, one)) for one in hashes]
        for receipt in receipts:
            if receipt["status"] != 1:
                named = Web3.to_hex(receipt["transactionHash"])
                raise PolicyDenied("governance.transaction.reverted", f"transaction {named} reverted")
        return receipts

    @_translated()
    def finalize(self, *hashes: bytes) -> int:
        """Settle the transactions, wait until their blocks are final, and return the final block's number."""
        highest = max(receipt["blockNumber"] for receipt in self.settle(*hashes))

        def final() -> int | None:
            number = self._web3.eth.get_block("finalized")["number"]
            return number if number >= highest else None

        return _await(f"block {highest} to become final", final)

    def _receipt(self, transaction_hash: bytes) -> TxReceipt | None:
        try:
            return self._web3.eth.get_transaction_receipt(HexStr("0x" + transaction_hash.hex()))
        except TransactionNotFound:
            return None

    def _contract(self, name: str, address: bytes) -> Contract:
        return self._web3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name).abi)


def boot_tuple(boot_info: BootInfo) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, str, list[str]]:
    """Return the contract's struct: short and empty fields padded on the left, as the webhook servers do."""
    return (
        boot_info.app_id.rjust(20, b"\0"),
        boot_info.compose_hash.rjust(32, b"\0"),
        boot_info.instance_id.rjust(20, b"\0"),
        boot_info.device_id.rjust(32, b"\0"),
        boot_info.mr_aggregated.rjust(32, b"\0"),
        boot_info.mr_system.rjust(32, b"\0"),
        boot_info.os_image_hash.rjust(32, b"\0"),
        boot_info.tcb_status,
        list(boot_info.advisory_ids),
    )


def _create_address(sender: bytes, nonce: int) -> bytes:
    return keccak256(rlp.encode([sender, nonce]))[12:]


def _await(what: str, read: Callable[[], Answer | None]) -> Answer:
    """Poll until `read` answers; raises `UnavailableError("governance.wait")` when the time is up."""
    deadline = time.monotonic() + WAIT_TIMEOUT
    while True:
        answer = read()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise UnavailableError("governance.wait", f"waited {WAIT_TIMEOUT} s for {what}")
        time.sleep(_POLL)
