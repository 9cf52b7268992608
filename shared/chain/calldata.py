"""Calldata of the governance functions (contracts section 1.3), and back.

Decoding is strict: what solc's encoder would not have written is refused, so what a person reads is what the
contract will do.
"""

from typing import Final, Literal

import msgspec

from shared.chain.abi import checksum_address
from shared.chain.abi_values import Kind, Value, decode_values, encode_values, is_dynamic
from shared.errors import ProtocolError

_WORD: Final = 32
_ADDRESS: Final = 20

Target = Literal["kms", "app", "both"]
Caller = Literal["owner", "pending owner", "anyone"]


class Function(msgspec.Struct, frozen=True):
    """A function of one of the contracts: `parameters` as (name, type), `selector` 4 bytes.

    `caller` is from whom the contract takes the call.
    """

    name: str
    target: Target
    selector: bytes
    parameters: tuple[tuple[str, Kind], ...]
    caller: Caller = "owner"

    @property
    def owner_only(self) -> bool:
        """Whether the contract takes the call from its owner alone."""
        return self.caller == "owner"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The parameters' types."""
        return tuple(kind for _, kind in self.parameters)

    @property
    def signature(self) -> str:
        """The canonical signature, whose hash begins with the selector."""
        return f"{self.name}({','.join(self.kinds)})"


def _one(name: str, target: Target, selector: str, parameter: str, kind: Kind = "bytes32") -> Function:
    return Function(name, target, bytes.fromhex(selector), ((parameter, kind),))


ADD_OS_IMAGE_HASH: Final = _one("addOsImageHash", "kms", "06a3ae96", "osImageHash")
REMOVE_OS_IMAGE_HASH: Final = _one("removeOsImageHash", "kms", "9425bac6", "osImageHash")
ADD_KMS_AGGREGATED_MR: Final = _one("addKmsAggregatedMr", "kms", "3e32d346", "mrAggregated")
REMOVE_KMS_AGGREGATED_MR: Final = _one("removeKmsAggregatedMr", "kms", "2adee48d", "mrAggregated")
ADD_KMS_DEVICE: Final = _one("addKmsDevice", "kms", "4d5922a1", "deviceId")
REMOVE_KMS_DEVICE: Final = _one("removeKmsDevice", "kms", "9e6f3114", "deviceId")
SET_KMS_INFO: Final = _one("setKmsInfo", "kms", "7d025352", "info", "(bytes,bytes,bytes,bytes)")
SET_GATEWAY_APP_ID: Final = _one("setGatewayAppId", "kms", "3971db27", "gatewayAppId", "string")
SET_APP_IMPLEMENTATION: Final = _one("setAppImplementation", "kms", "3ceaaa11", "implementation", "address")
INITIALIZE_KMS: Final = Function(
    "initialize",
    "kms",
    bytes.fromhex("485cc955"),
    (("initialOwner", "address"), ("appImplementation", "address")),
    caller="anyone",
)
REGISTER_APP: Final = Function(
    "registerApp", "kms", bytes.fromhex("17a1d80f"), (("appId", "address"),), caller="anyone"
)
DEPLOY_AND_REGISTER_APP: Final = Function(
    "deployAndRegisterApp",
    "kms",
    bytes.fromhex("9cb9c31f"),
    (
        ("initialOwner", "address"),
        ("disableUpgrades", "bool"),
        ("requireTcbUpToDate", "bool"),
        ("allowAnyDevice", "bool"),
        ("initialDeviceId", "bytes32"),
        ("initialComposeHash", "bytes32"),
    ),
    caller="anyone",
)
ADD_COMPOSE_HASH: Final = _one("addComposeHash", "app", "dfc77223", "composeHash")
REMOVE_COMPOSE_HASH: Final = _one("removeComposeHash", "app", "67b3f22c", "composeHash")
ADD_DEVICE: Final = _one("addDevice", "app", "2a819728", "deviceId")
REMOVE_DEVICE: Final = _one("removeDevice", "app", "1d266200", "deviceId")
SET_ALLOW_ANY_DEVICE: Final = _one("setAllowAnyDevice", "app", "7c4beeb8", "allowAny", "bool")
SET_REQUIRE_TCB_UP_TO_DATE: Final = _one(
    "setRequireTcbUpToDate", "app", "6e4c7422", "requireUpToDate", "bool"
)
DISABLE_UPGRADES: Final = Function("disableUpgrades", "app", bytes.fromhex("ec669036"), ())
TRANSFER_OWNERSHIP: Final = _one("transferOwnership", "both", "f2fde38b", "newOwner", "address")
ACCEPT_OWNERSHIP: Final = Function(
    "acceptOwnership", "both", bytes.fromhex("79ba5097"), (), caller="pending owner"
)
UPGRADE_TO_AND_CALL: Final = Function(
    "upgradeToAndCall",
    "both",
    bytes.fromhex("4f1ef286"),
    (("newImplementation", "address"), ("data", "bytes")),
)

FUNCTIONS: Final = {
    function.selector: function
    for function in (
        *(ADD_OS_IMAGE_HASH, REMOVE_OS_IMAGE_HASH, ADD_KMS_AGGREGATED_MR, REMOVE_KMS_AGGREGATED_MR),
        *(ADD_KMS_DEVICE, REMOVE_KMS_DEVICE, SET_KMS_INFO, SET_GATEWAY_APP_ID, SET_APP_IMPLEMENTATION),
        *(INITIALIZE_KMS, REGISTER_APP, DEPLOY_AND_REGISTER_APP),
        *(ADD_COMPOSE_HASH, REMOVE_COMPOSE_HASH, ADD_DEVICE, REMOVE_DEVICE, SET_ALLOW_ANY_DEVICE),
        *(SET_REQUIRE_TCB_UP_TO_DATE, DISABLE_UPGRADES),
        *(TRANSFER_OWNERSHIP, ACCEPT_OWNERSHIP, UPGRADE_TO_AND_CALL),
    )
}


def encode_call(function: Function, *arguments: Value) -> bytes:
    """Return the calldata of one call.

    Raises `ProtocolError("calldata.argument")` where an argument is not of its parameter's type and length.
    """
    try:
        return function.selector + encode_values(function.kinds, arguments)
    except ProtocolError as error:
        raise ProtocolError("calldata.argument", f"{function.signature}: {error.message}") from error


def decode_call(calldata: bytes) -> tuple[Function, tuple[Value, ...]]:
    """Return the function and the arguments that calldata means.

    Raises `ProtocolError`: `calldata.selector` (none of our functions), `calldata.length`, `calldata.word`
    (padding that is not zero, a bool above 1, or an offset that solc would not have written).
    """
    function = FUNCTIONS.get(calldata[:4])
    if function is None:
        raise ProtocolError("calldata.selector", f"the selector {calldata[:4].hex()} is none that we write")
    head = 4 + _WORD * len(function.parameters)
    is_fixed = not any(is_dynamic(kind) for kind in function.kinds)
    if len(calldata) < head or (is_fixed and len(calldata) > head):
        raise ProtocolError(
            "calldata.length", f"calldata of {function.name} has {len(calldata)} bytes, expected {head}"
        )
    try:
        return function, decode_values(function.kinds, calldata[4:])
    except ProtocolError as error:
        raise ProtocolError("calldata.word", f"calldata of {function.name}: {error.message}") from error


def shown(value: Value) -> str:
    """Return a value as people write it: an address in EIP-55 form, other bytes in hex, true or false.

    A string is quoted and in ASCII, so that nothing in it looks like something else.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return ascii(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    return checksum_address(value) if len(value) == _ADDRESS else f"0x{value.hex()}"
