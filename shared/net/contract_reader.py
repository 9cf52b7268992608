"""Asks one RPC endpoint what the contracts say, every answer at one block (contracts section 1.3).

The endpoint is believed: this is for a plan that a person reads. `shared.net.agreed_reader` has several of
them agree; a KMS wants proofs of the same facts.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from shared.boot_info import BootInfo
from shared.chain import abi, views
from shared.chain.approval import AppState, ChainState
from shared.chain.header import BlockRef
from shared.errors import ConfigError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, Endpoint, data, fields, quantity

# A contract that lacks our views answers by reverting, or with something else than one word.
_FOREIGN: Final = frozenset({"rpc.reverted", "abi.malformed"})

_BlockId = Mapping[str, str | bool]


class ContractReader:
    """Views of the KMS contract at `kms` (20 bytes), and of app contracts, at the newest block.

    `chain_id` is the chain that must answer; None takes any.
    """

    def __init__(self, endpoint: Endpoint, kms: bytes, chain_id: int | None = None) -> None:
        self._endpoint = endpoint
        self._kms = kms
        self._chain_id = chain_id

    def read(self, boot_info: BootInfo) -> ChainState:
        """Return what the contracts say about one workload; an empty app id is no app.

        Raises `ConfigError("plan.chain_id")` where another chain answers, `ConfigError("plan.kms_contract")`
        where the address has no code, `ProtocolError("abi.malformed")` or `UnavailableError("rpc.reverted")`
        where it is another contract, and what the endpoint raises.
        """
        answered, head = self._endpoint.batch(
            [("eth_chainId", []), ("eth_getBlockByNumber", ["latest", False])]
        )
        chain_id = quantity(answered, what="the chain id")
        if self._chain_id not in {None, chain_id}:
            raise ConfigError(
                "plan.chain_id", f"the endpoint is of chain {chain_id}, expected chain {self._chain_id}"
            )
        block = fields(head, what="the newest block")
        block_hash = data(block.get("hash"), what="the block hash", length=32)
        return self._state(boot_info, chain_id, block, {"blockHash": _hex(block_hash)})

    def read_at(self, block: BlockRef, boot_info: BootInfo, chain_id: int) -> ChainState:
        """Return the same at a block that somebody else vouches for, on a chain that answered before.

        Raises as `read`, and `UnavailableError("rpc.block.unknown")` where the endpoint does not have it.
        """
        at: _BlockId = {"blockHash": _hex(block.hash), "requireCanonical": True}
        [answered] = self._endpoint.batch([("eth_getBlockByHash", [_hex(block.hash), False])])
        if answered is None:
            raise UnavailableError(
                "rpc.block.unknown", f"{self._endpoint.host} does not know block {block.number}"
            )
        found = fields(answered, what="the block")
        if data(found.get("hash"), what="the block hash", length=32) != block.hash:
            raise ProtocolError("rpc.malformed", f"asked for block {block.number}, got another one")
        return self._state(boot_info, chain_id, found, at)

    def _state(
        self, boot_info: BootInfo, chain_id: int, block: Mapping[str, object], at: _BlockId
    ) -> ChainState:
        app_id = boot_info.app_id.rjust(20, b"\0")
        self._require_contract(at)
        nonce, app_code, *words = self._endpoint.batch(
            [
                ("eth_getTransactionCount", [_hex(self._kms), at]),
                ("eth_getCode", [_hex(app_id), at]),
                *self._views(
                    self._kms,
                    at,
                    abi.call(views.OWNER),
                    abi.call(abi.APP_IMPLEMENTATION),
                    abi.call(views.ALLOWED_OS_IMAGES, boot_info.os_image_hash),
                    abi.call(views.REGISTERED_APPS, app_id),
                ),
            ]
        )
        owner, implementation, os_image, registered = (data(word, what="a view") for word in words)
        app_has_code = bool(data(app_code, what="the app's code"))
        return ChainState(
            chain_id=chain_id,
            block_number=quantity(block.get("number"), what="the block number"),
            block_hash=data(block.get("hash"), what="the block hash", length=32),
            block_time=quantity(block.get("timestamp"), what="the block's time"),
            kms_owner=abi.decode_address(owner),
            kms_nonce=quantity(nonce, what="the nonce of the kms contract"),
            app_implementation=abi.decode_address(implementation),
            os_image_allowed=abi.decode_bool(os_image),
            app_registered=abi.decode_bool(registered),
            app_has_code=app_has_code,
            app=self._app(app_id, boot_info, at) if app_has_code else None,
            decision=self._decision(boot_info, at) if app_has_code else None,
        )

    def _require_contract(self, at: _BlockId) -> None:
        code = self._endpoint.batch([("eth_getCode", [_hex(self._kms), at])])[0]
        if not data(code, what="the code of the kms contract"):
            raise ConfigError(
                "plan.kms_contract", f"no contract is at {abi.checksum_address(self._kms)} on this chain"
            )

    def _app(self, app_id: bytes, boot_info: BootInfo, at: _BlockId) -> AppState | None:
        """Return the app's settings, or None where it is no contract of our kind."""
        try:
            words = self._endpoint.batch(
                self._views(
                    app_id,
                    at,
                    abi.call(views.OWNER),
                    abi.call(views.ALLOWED_COMPOSE_HASHES, boot_info.compose_hash),
                    abi.call(views.ALLOW_ANY_DEVICE),
                    abi.call(views.ALLOWED_DEVICE_IDS, boot_info.device_id),
                    abi.call(views.REQUIRE_TCB_UP_TO_DATE),
                )
            )
            owner, compose, any_device, device, tcb = (data(word, what="a view") for word in words)
            return AppState(
                owner=abi.decode_address(owner),
                compose_hash_allowed=abi.decode_bool(compose),
                allow_any_device=abi.decode_bool(any_device),
                device_allowed=abi.decode_bool(device),
                require_tcb_up_to_date=abi.decode_bool(tcb),
            )
        except (UnavailableError, ProtocolError) as error:
            if error.code in _FOREIGN:
                return None
            raise

    def _decision(self, boot_info: BootInfo, at: _BlockId) -> str | None:
        """Return why `isAppAllowed` refuses, empty where it allows, None where it reverts."""
        call = abi.boot_info_call(abi.IS_APP_ALLOWED, boot_info)
        try:
            answer = self._endpoint.batch(self._views(self._kms, at, call))[0]
        except UnavailableError as error:
            if error.code == "rpc.reverted":
                return None
            raise
        return abi.decode_verdict(data(answer, what="the decision"))

    @staticmethod
    def _views(contract: bytes, at: _BlockId, *calls: bytes) -> Sequence[Call]:
        return [("eth_call", [{"to": _hex(contract), "data": _hex(call)}, at]) for call in calls]


def _hex(raw: bytes) -> str:
    return f"0x{raw.hex()}"
