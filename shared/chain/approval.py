"""Which governance calls a deployment still needs, from what the contracts say at one block.

Nothing here decides a release: a KMS proves the same facts for itself. This tells an operator what to ask the
owners for, and only what is missing (contracts sections 1.7 and 3).
"""

from typing import Final

import msgspec

from shared.chain import abi, calldata, rlp, rules
from shared.chain.abi_values import Value
from shared.chain.calldata import Function
from shared.errors import ConfigError
from shared.keccak import keccak256

ZERO_HASH: Final = bytes(32)
ZERO_ADDRESS: Final = bytes(20)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be allowed: `app_id` 20 bytes or empty (no contract yet), hashes of 32 bytes.

    `device_id` is None where it is known only after the first boot. `tcb_status` is what the platform's
    evidence will say. `app_owner` is who shall own an app contract that has to be made. `has_contract` is
    False where the app id is a hash, at which no contract can be.
    """

    app_id: bytes
    compose_hash: bytes
    os_image_hash: bytes
    device_id: bytes | None
    tcb_status: str
    app_owner: bytes | None = None
    has_contract: bool = True


class AppState(msgspec.Struct, frozen=True, kw_only=True):
    """What an app contract answers."""

    owner: bytes
    compose_hash_allowed: bool
    allow_any_device: bool
    device_allowed: bool
    require_tcb_up_to_date: bool


class ChainState(msgspec.Struct, frozen=True, kw_only=True):
    """What the contracts answer at one block, made at `block_time` (unix seconds).

    `app` is None where the app id has no code, or a contract of another kind (`app_has_code`). `decision` is
    the reason of `isAppAllowed`, empty where it allows, None where it was not asked or reverted.
    """

    chain_id: int
    block_number: int
    block_hash: bytes
    block_time: int
    kms_owner: bytes
    kms_nonce: int
    app_implementation: bytes
    os_image_allowed: bool
    app_registered: bool
    app_has_code: bool
    app: AppState | None = None
    decision: str | None = None


class ChainViews(msgspec.Struct, frozen=True, kw_only=True):
    """What endpoints agree on, at the newest block that they know, and at the newest one that is final.

    `final` is None where the KMS contract is not on the chain at block `final_number`, made at `final_time`
    (unix seconds). `quorum` of the `asked` endpoints had to agree.
    """

    head: ChainState
    final: ChainState | None
    final_number: int
    final_time: int
    asked: int
    quorum: int


class Argument(msgspec.Struct, frozen=True):
    """One decoded argument, as text."""

    name: str
    type: str
    value: str


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call to be sent. Addresses are 20 bytes; `why` is a lowercase sentence.

    `to` is None where the contract's address is not known. `sender` is the owner who must send it, None where
    that is not known, or where anyone may (`owner_only`).
    """

    to: bytes | None
    sender: bytes | None
    owner_only: bool
    function: str
    arguments: tuple[Argument, ...]
    calldata: bytes
    why: str


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing on chain. `blocked` says what no call of ours can mend.

    `checked` is False where no chain was asked: then `calls` is all that a deployment needs at most.
    `new_app_id` is the address that the factory will give the app, if nobody else uses it before.
    """

    checked: bool
    calls: tuple[Call, ...]
    blocked: tuple[str, ...]
    notes: tuple[str, ...]
    new_app_id: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the contracts were asked and allow the deployment now."""
        return self.checked and not self.calls and not self.blocked


def needed_approval(wanted: Wanted, kms: bytes | None, state: ChainState | None) -> Approval:
    """Return the calls that are missing for `wanted`, in the order in which they should be sent.

    `kms` is the contract's address. Raises `ConfigError("plan.zero_hash")`: an all-zero hash is what an
    absent one becomes on chain, so nobody may ask for it.
    """
    for name, value in (("compose_hash", wanted.compose_hash), ("os_image_hash", wanted.os_image_hash)):
        if value == ZERO_HASH:
            raise ConfigError("plan.zero_hash", f"{name} is all zeros: no contract should ever allow it")
    plan = _Plan(wanted, kms, state)
    plan.os_image()
    if state is None:
        plan.everything()
    elif not state.app_has_code:
        plan.new_app(state)
    else:
        plan.existing_app(state)
    return plan.approval()


def is_of_a_plan(function: Function, arguments: tuple[Value, ...]) -> bool:
    """Tell whether `needed_approval` could have written a call: nothing that it never writes is a plan's."""
    if function == calldata.DEPLOY_AND_REGISTER_APP:
        _, disable_upgrades, require_tcb, any_device, device, _ = arguments
        return (disable_upgrades, require_tcb, any_device) == (False, False, device == ZERO_HASH)
    if function == calldata.SET_REQUIRE_TCB_UP_TO_DATE:
        return arguments == (False,)
    return function in _ADDING


def create_address(sender: bytes, nonce: int) -> bytes:
    """Return the 20-byte address of a contract that `sender` makes with its `nonce` (contracts 1.7)."""
    return keccak256(rlp.encode([sender, rlp.encode_int(nonce)]))[12:]


_ADDING: Final = (
    calldata.ADD_OS_IMAGE_HASH,
    calldata.REGISTER_APP,
    calldata.ADD_COMPOSE_HASH,
    calldata.ADD_DEVICE,
)


class _Plan:
    def __init__(self, wanted: Wanted, kms: bytes | None, state: ChainState | None) -> None:
        self._wanted = wanted
        self._kms = kms
        self._state = state
        self._calls: list[Call] = []
        self._blocked: list[str] = []
        self._notes: list[str] = []
        self._new_app_id: bytes | None = None

    def approval(self) -> Approval:
        return Approval(
            checked=self._state is not None,
            calls=tuple(self._calls),
            blocked=tuple(self._blocked),
            notes=tuple(self._notes),
            new_app_id=self._new_app_id,
        )

    def os_image(self) -> None:
        if self._state is not None and self._state.os_image_allowed:
            return
        owner = None if self._state is None else self._state.kms_owner
        self._add(
            calldata.ADD_OS_IMAGE_HASH,
            (self._wanted.os_image_hash,),
            to=self._kms,
            sender=owner,
            why="the kms contract must allow this os image",
        )

    def everything(self) -> None:
        """List what an app contract needs, without knowing what it has."""
        app = self._wanted.app_id or None
        if not self._wanted.has_contract:
            # a call to an address without code succeeds, and does nothing
            app = None
            self._notes.append(
                "the app id is a part of the compose hash, where no contract can be: "
                "put the app contract's address into app.json"
            )
        self._add(
            calldata.ADD_COMPOSE_HASH,
            (self._wanted.compose_hash,),
            to=app,
            why="the app contract must allow this compose hash",
        )
        if self._wanted.device_id is not None:
            self._add(
                calldata.ADD_DEVICE,
                (self._wanted.device_id,),
                to=app,
                why="the app contract must allow this device, unless it allows any",
            )

    def new_app(self, state: ChainState) -> None:
        wanted = self._wanted
        if state.app_implementation == ZERO_ADDRESS:
            self._blocked.append("the kms contract has no app implementation: its owner must set one")
            return
        if wanted.app_owner is None:
            self._blocked.append(
                "no app contract is at the app id: name its owner, so that a call can make one"
            )
            return
        device = wanted.device_id
        self._new_app_id = create_address(self._kms or b"", state.kms_nonce)
        self._add(
            calldata.DEPLOY_AND_REGISTER_APP,
            (wanted.app_owner, False, False, device is None, device or ZERO_HASH, wanted.compose_hash),
            to=self._kms,
            why="no app contract is at the app id: the factory makes one and registers it",
        )
        self._notes.append("the new contract's address becomes the app id: set it in app.json and plan again")
        if device is None:
            self._notes.append("no device id is known, so the new app allows any device")

    def existing_app(self, state: ChainState) -> None:
        wanted = self._wanted
        if not state.app_registered:
            self._add(
                calldata.REGISTER_APP,
                (wanted.app_id,),
                to=self._kms,
                why="the kms contract does not know this app",
            )
        app = state.app
        if app is None:
            self._foreign(state)
            return
        if not app.compose_hash_allowed:
            self._add_to_app(
                app,
                calldata.ADD_COMPOSE_HASH,
                wanted.compose_hash,
                "the app does not allow this compose hash",
            )
        if not app.allow_any_device and not app.device_allowed:
            if wanted.device_id is None:
                self._blocked.append("the app lists its devices, and this device's id is not known yet")
            else:
                self._add_to_app(
                    app, calldata.ADD_DEVICE, wanted.device_id, "the app does not allow this device"
                )
        if app.require_tcb_up_to_date and wanted.tcb_status != rules.UP_TO_DATE:
            self._add_to_app(
                app,
                calldata.SET_REQUIRE_TCB_UP_TO_DATE,
                False,
                "the app wants a tcb status, and this platform's evidence has none",
            )
        if not self._calls and not self._blocked and state.decision != rules.ALLOWED:
            self._blocked.append(_denied(state.decision))

    def _foreign(self, state: ChainState) -> None:
        if state.decision == rules.ALLOWED:
            self._notes.append("the app contract is of another kind than ours, and allows this deployment")
        else:
            self._blocked.append(f"the app contract is of another kind than ours: {_denied(state.decision)}")

    def _add_to_app(self, app: AppState, function: Function, argument: Value, why: str) -> None:
        self._add(function, (argument,), to=self._wanted.app_id, sender=app.owner, why=why)

    def _add(
        self,
        function: Function,
        arguments: tuple[Value, ...],
        *,
        to: bytes | None,
        why: str,
        sender: bytes | None = None,
    ) -> None:
        self._calls.append(
            Call(
                to=to,
                sender=sender,
                owner_only=function.owner_only,
                function=function.signature,
                arguments=tuple(
                    Argument(name, kind, calldata.shown(value))
                    for (name, kind), value in zip(function.parameters, arguments, strict=True)
                ),
                calldata=calldata.encode_call(function, *arguments),
                why=why,
            )
        )


def _denied(decision: str | None) -> str:
    return abi.REVERTED if decision is None else f"isAppAllowed says {decision[:200]!a}"
