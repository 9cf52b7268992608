"""What the contracts say in one block, read from a state that trie proofs support.

Which accounts and slots are read depends on the question and on what is deployed, never on the answer or on a
list of known code. So whoever gathers a proof and whoever checks it walk the same path.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from shared.boot_info import BootInfo
from shared.chain import slots
from shared.chain.bundle import Witness
from shared.chain.state import Account, State
from shared.errors import InvalidEvidence

Kind = Literal["app", "kms"]
# What a view can be asked: about a workload of a kind, or whose keys the KMS contract publishes. Who checks a
# signature needs one of the two keys, and is not kept from it by what the contract says of the other.
Question = Literal["app", "kms", "signer", "roots"]


class Deployed(msgspec.Struct, frozen=True):
    """How a contract is deployed: the proxy's code hash, where it delegates to, and the code there.

    `implementation` is 20 bytes, or None where the ERC-1967 slot holds none; `code` is None where the
    implementation has no code.
    """

    code_hash: bytes
    implementation: bytes | None
    code_hash_there: bytes | None
    code: bytes | None


class AppFacts(msgspec.Struct, frozen=True):
    """The app contract's part of the question, meaningful only where its code is a known DstackApp."""

    deployed: Deployed
    require_tcb_up_to_date: bool
    compose_hash_allowed: bool
    allow_any_device: bool
    device_allowed: bool


class ViewFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one block. What was not asked is False or None."""

    kms: Deployed
    gateway_app_id: str
    app_implementation: bytes
    os_image_allowed: bool = False
    app_registered: bool = False
    app: AppFacts | None = None
    aggregated_mr_allowed: bool = False
    kms_device_allowed: bool = False
    k256_pubkey: bytes = b""
    ca_pubkey: bytes = b""


def read_views(
    witness: Witness,
    state_root: bytes,
    *,
    kms_contract: bytes,
    questions: Sequence[tuple[Question | None, BootInfo | None]],
) -> list[ViewFacts]:
    """Read from one state what each question needs, of a kind and about a boot info (None asks neither).

    A question about the `signer` or the `roots` needs no boot info.

    Raises `InvalidEvidence`: `proof.kms.absent` where there is no contract at `kms_contract`, `proof.node.*`,
    `proof.code.missing`, `proof.slot.malformed`, `proof.string.*`.
    """
    state = State(witness.nodes, state_root)
    kms = state.account(kms_contract)
    if kms is None or not kms.has_code:
        raise InvalidEvidence(
            "proof.kms.absent", f"there is no contract at the kms address 0x{kms_contract.hex()}"
        )
    gateway, more = _dynamic(state, kms, slots.KMS_GATEWAY_APP_ID)
    view = ViewFacts(
        kms=_deployed(witness, state, kms),
        gateway_app_id=slots.string_of(gateway, more),
        app_implementation=slots.address_in(state.slot(kms, slots.KMS_APP_IMPLEMENTATION)),
    )
    return [_answered(view, witness, state, kms, kind, boot_info) for kind, boot_info in questions]


def _answered(
    view: ViewFacts,
    witness: Witness,
    state: State,
    kms: Account,
    kind: Question | None,
    boot_info: BootInfo | None,
) -> ViewFacts:
    """Add to what every question needs what this one does."""
    if kind in {"signer", "roots"}:
        view = msgspec.structs.replace(
            view, k256_pubkey=slots.bytes_of(*_dynamic(state, kms, slots.KMS_K256_PUBKEY))
        )
    if kind == "roots":
        return msgspec.structs.replace(
            view, ca_pubkey=slots.bytes_of(*_dynamic(state, kms, slots.KMS_CA_PUBKEY))
        )
    if kind is None or boot_info is None:
        return view

    def listed(slot: bytes) -> bool:
        return slots.bool_at(state.slot(kms, slot))

    os_image_allowed = listed(slots.kms_os_image(boot_info.os_image_hash))
    if kind == "kms":
        return msgspec.structs.replace(
            view,
            os_image_allowed=os_image_allowed,
            aggregated_mr_allowed=listed(slots.kms_aggregated_mr(boot_info.mr_aggregated)),
            kms_device_allowed=listed(slots.kms_device(boot_info.device_id)),
        )
    return msgspec.structs.replace(
        view,
        os_image_allowed=os_image_allowed,
        app_registered=listed(slots.kms_registered_app(boot_info.app_id)),
        app=_app(witness, state, boot_info),
    )


def kms_slots(kind: Question | None, boot_info: BootInfo | None) -> tuple[bytes, ...]:
    """Return the slots of the KMS proxy that `read_views` reads, without the tails of `dynamic_slots`."""
    always = (slots.ERC1967_IMPLEMENTATION, slots.KMS_APP_IMPLEMENTATION, *dynamic_slots(kind))
    if kind is None or boot_info is None:
        return always
    image = slots.kms_os_image(boot_info.os_image_hash)
    if kind == "kms":
        return (
            *always,
            image,
            slots.kms_aggregated_mr(boot_info.mr_aggregated),
            slots.kms_device(boot_info.device_id),
        )
    return (*always, image, slots.kms_registered_app(boot_info.app_id))


def dynamic_slots(kind: Question | None) -> tuple[bytes, ...]:
    """Return the slots of strings and bytes among the `kms_slots`: long ones continue elsewhere."""
    if kind == "signer":
        return (slots.KMS_GATEWAY_APP_ID, slots.KMS_K256_PUBKEY)
    if kind == "roots":
        return (slots.KMS_GATEWAY_APP_ID, slots.KMS_K256_PUBKEY, slots.KMS_CA_PUBKEY)
    return (slots.KMS_GATEWAY_APP_ID,)


def app_slots(boot_info: BootInfo) -> tuple[bytes, ...]:
    """Return the slots of the app proxy that `read_views` reads."""
    return (
        slots.ERC1967_IMPLEMENTATION,
        slots.APP_REQUIRE_TCB,
        slots.app_compose_hash(boot_info.compose_hash),
        slots.APP_FLAGS,
        slots.app_device(boot_info.device_id),
    )


def _dynamic(state: State, account: Account, slot: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the own slot of a string or bytes, and the further slots that it needs."""
    word = state.slot(account, slot)
    return word, tuple(state.slot(account, key) for key in slots.string_slots(word, slot))


def _app(witness: Witness, state: State, boot_info: BootInfo) -> AppFacts | None:
    app = state.account(boot_info.app_id)
    if app is None or not app.has_code:
        return None
    return AppFacts(
        deployed=_deployed(witness, state, app),
        require_tcb_up_to_date=slots.bool_at(state.slot(app, slots.APP_REQUIRE_TCB)),
        compose_hash_allowed=slots.bool_at(state.slot(app, slots.app_compose_hash(boot_info.compose_hash))),
        # byte 0 of the same slot is _upgradesDisabled
        allow_any_device=slots.bool_at(state.slot(app, slots.APP_FLAGS), 1),
        device_allowed=slots.bool_at(state.slot(app, slots.app_device(boot_info.device_id))),
    )


def _deployed(witness: Witness, state: State, proxy: Account) -> Deployed:
    word = state.slot(proxy, slots.ERC1967_IMPLEMENTATION)
    if not any(word) or any(word[:12]):
        return Deployed(proxy.code_hash, None, None, None)
    address = word[12:]
    there = state.account(address)
    if there is None or not there.has_code:
        return Deployed(proxy.code_hash, address, None, None)
    return Deployed(proxy.code_hash, address, there.code_hash, witness.code(there.code_hash))
