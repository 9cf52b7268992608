"""Makes a plan of facts that were gathered: pure, so that equal facts give equal plans, byte for byte."""

import json
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256, sha384
from typing import Any, Final

import msgspec

from functions.plan.model import (
    AppIdentity,
    AppIdSource,
    ApprovalPlan,
    ChainPlan,
    ComposePlan,
    Deployed,
    DiskFile,
    DiskPlan,
    Event,
    GovernanceCall,
    ImagePlan,
    Outcome,
    Plan,
)
from functions.plan.standing import Standing, judged
from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE, BootInfo
from shared.chain.abi import checksum_address
from shared.chain.approval import Approval, Call, ChainState, ChainViews, Wanted, needed_approval
from shared.chain.rules import UP_TO_DATE
from shared.compose.diff import Change, ComposeDiff, diff_app_compose
from shared.compose.findings import Finding, error, has_errors, note, warning
from shared.compose.model import AppCompose
from shared.compose.shared_files import ENCRYPTED_ENV
from shared.errors import ConfigError, ProtocolError
from shared.measurement.config_disk import config_disk
from shared.measurement.mr_config import KeyProvider, KeyProviderKind, mr_config_id_v2

# How each platform's evidence names itself, and what it says of the platform's TCB when all is well.
TEE_VARIANTS: Final = {"gcp": GCP_TDX, "aws": AWS_NITRO_TPM, "nitro": NITRO_ENCLAVE}
_TCB_STATUS: Final = {"gcp": UP_TO_DATE, "aws": UP_TO_DATE, "nitro": ""}
# Upstream cuts an enclave's module id at its first dash, so every enclave has this device id (deploy 5B.3).
NITRO_DEVICE_ID: Final = sha256(b"i").digest()

# Calldata is easily sent without reading the outcome, so a refused plan has none.
_NOT_ASKED_FOR: Final = Approval(
    checked=False, calls=(), blocked=(), notes=("a refused plan asks nobody for approval",)
)

AskChain = Callable[[BootInfo], ChainState]
AskViews = Callable[[BootInfo], ChainViews]


class Asked(msgspec.Struct, frozen=True):
    """What an operator chooses about the contracts; raw bytes, None where it is not known."""

    device_id: bytes | None = None
    app_owner: bytes | None = None
    kms_contract: bytes | None = None


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A measured image; hashes are raw bytes, `registers` by the names that evidence uses.

    `warnings` says what of the image the build leaves out. `enclave_toml` is the text of an enclave's own
    configuration, empty where its image has none, and None where nobody looked.
    """

    os_image_hash: bytes
    source: str
    registers: dict[str, bytes]
    inputs: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    enclave_toml: str | None = None


class ComposeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The app-compose that would be shipped, and its model; None on Nitro, where no guest reads one."""

    raw: bytes
    verbatim: bool
    model: AppCompose


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan is made of.

    `app_id` has 20 bytes or none, `config_files` are the config disk's files so far, `pending` says what of
    it is made later. `machine` holds the platform's settings. `may_drop` names fields of the app-compose that
    an update may lose.
    """

    name: str
    platform: str
    app_id: bytes
    app_id_source: AppIdSource
    compose: ComposeFacts | None
    image: ImageFacts
    config_files: Mapping[str, bytes] | None
    pending: tuple[str, ...]
    machine: dict[str, Any]
    findings: tuple[Finding, ...]
    deployed: Deployed | None
    device_id: bytes | None = None
    app_owner: bytes | None = None
    kms_contract: bytes | None = None
    may_drop: Collection[str] = ()


def make_plan(facts: Facts, ask_chain: AskChain | None) -> Plan:
    """Return the plan.

    Steps: name the compose hash and the app id, predict the registers, compare with what is deployed, ask the
    chain what it allows now, and say what is missing. Raises what `ask_chain` and `needed_approval` raise.
    """
    compose = _compose_plan(facts)
    compose_hash = bytes.fromhex(compose.compose_hash)
    app_id, source = _identity(facts, compose_hash)
    registers = dict(facts.image.registers) | _config_registers(facts, compose_hash, app_id)
    image = ImagePlan(
        os_image_hash=facts.image.os_image_hash.hex(),
        source=facts.image.source,
        registers={name: value.hex() for name, value in registers.items()},
        inputs=facts.image.inputs,
    )
    disk = _disk_plan(facts)
    identity = AppIdentity(app_id.hex(), source)
    plan_id = _plan_id(facts, identity, compose, image, disk)
    changes, problems = _changes(facts, plan_id, identity, compose, image, disk)
    left_out = (warning("plan.image", facts.image.source, text) for text in facts.image.warnings)
    findings = (*problems, *facts.findings, *left_out)
    refused = has_errors(findings)
    asked = Asked(facts.device_id, facts.app_owner, facts.kms_contract)
    wanted, boot_info = wanted_of(facts.platform, identity, compose_hash, facts.image.os_image_hash, asked)
    state = None if ask_chain is None or refused else ask_chain(boot_info)
    approval = _NOT_ASKED_FOR if refused else needed_approval(wanted, facts.kms_contract, state)
    return Plan(
        plan_id=plan_id,
        name=facts.name,
        platform=facts.platform,
        outcome=_outcome(refused=refused, approval=approval, changes=changes, deployed=facts.deployed),
        app=identity,
        compose=compose,
        image=image,
        events=_events(facts, compose_hash, app_id),
        config_disk=disk,
        machine=facts.machine,
        findings=findings,
        deployed=facts.deployed,
        changes=changes,
        chain=_chain_plan(facts.kms_contract, state),
        approval=_approval_plan(approval),
    )


def ask_again(plan: Plan, asked: Asked, ask_views: AskViews | None) -> Standing:
    """Return how a plan that was made before stands with the contracts now.

    Raises what `ask_views` and `needed_approval` raise.
    """
    compose_hash = bytes.fromhex(plan.compose.compose_hash)
    image = bytes.fromhex(plan.image.os_image_hash)
    wanted, boot_info = wanted_of(plan.platform, plan.app, compose_hash, image, asked)
    views = None if ask_views is None else ask_views(boot_info)
    state = None if views is None else views.head
    approval = needed_approval(wanted, asked.kms_contract, state)
    standing = Standing(approval=_approval_plan(approval), chain=_chain_plan(asked.kms_contract, state))
    if views is None:
        return standing
    final = None if views.final is None else needed_approval(wanted, asked.kms_contract, views.final)
    return judged(standing, views, final)


def _outcome(
    *, refused: bool, approval: Approval, changes: tuple[Change, ...], deployed: Deployed | None
) -> Outcome:
    if refused:
        return "refused"
    if approval.checked and not approval.is_complete:
        return "approval"
    return "changes" if changes or deployed is None else "nothing"


# ---- what would run ----


def _compose_plan(facts: Facts) -> ComposePlan:
    if facts.compose is None:  # an enclave's image holds all that it runs (deploy 5B.3)
        return ComposePlan(compose_hash=facts.image.os_image_hash.hex(), form="image", size=0, text="")
    raw = facts.compose.raw
    return ComposePlan(
        compose_hash=sha256(raw).hexdigest(),
        form="verbatim" if facts.compose.verbatim else "canonical",
        size=len(raw),
        text=raw.decode(),
    )


def _identity(facts: Facts, compose_hash: bytes) -> tuple[bytes, AppIdSource]:
    """Return the app id: the project's, else what the guest derives, else none (deploy 2.3)."""
    if facts.app_id:
        return facts.app_id, facts.app_id_source
    if facts.compose is None:
        return b"", "none"
    return compose_hash[:20], "compose_hash"


def _config_registers(facts: Facts, compose_hash: bytes, app_id: bytes) -> dict[str, bytes]:
    """Predict what binds the app to the machine: on NitroTPM the guest extends PCR8 (measurement 6)."""
    if facts.platform != "aws" or facts.compose is None:
        return {}
    model = facts.compose.model
    # the pin, not the provider that answers: so the register can be told before the boot
    provider = KeyProvider(
        KeyProviderKind(model.effective_key_provider), bytes.fromhex(model.key_provider_id)
    )
    config_id = mr_config_id_v2(compose_hash, app_id, provider)
    return {"PCR8": sha384(bytes(48) + config_id).digest()}


def _events(facts: Facts, compose_hash: bytes, app_id: bytes) -> tuple[Event, ...]:
    """List the events up to the instance id, which a cloud's machine decides only at boot (deploy 6.3)."""
    if facts.compose is None:
        return (Event("app-id", app_id.hex()),) if app_id else ()
    model = facts.compose.model
    return (
        Event("system-preparing", ""),
        Event("app-id", app_id.hex()),
        Event("compose-hash", compose_hash.hex()),
        *(Event("init-script-hash", digest.hex()) for digest in model.init_script_hashes),
        Event("gpu-policy-hash", model.gpu_policy_hash.hex()),
    )


def _disk_plan(facts: Facts) -> DiskPlan | None:
    if facts.config_files is None:
        return None
    disk = config_disk(facts.config_files)
    digest = sha256()
    if not facts.pending:
        for piece in disk.chunks():
            digest.update(piece)
    return DiskPlan(
        files=tuple(
            DiskFile(name, len(content), sha256(content).hexdigest())
            for name, content in facts.config_files.items()
        ),
        size=disk.size,
        sha256="" if facts.pending else digest.hexdigest(),
        pending=facts.pending,
    )


def _plan_id(
    facts: Facts, app: AppIdentity, compose: ComposePlan, image: ImagePlan, disk: DiskPlan | None
) -> str:
    """Hash what decides the deployment; findings, chain and what is deployed are not a part of it."""
    parts = [
        *(facts.name, facts.platform, app.app_id, compose.compose_hash, image.os_image_hash),
        msgspec.to_builtins(disk),
        facts.machine,
    ]
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- what is deployed ----


def _changes(
    facts: Facts,
    plan_id: str,
    app: AppIdentity,
    compose: ComposePlan,
    image: ImagePlan,
    disk: DiskPlan | None,
) -> tuple[tuple[Change, ...], tuple[Finding, ...]]:
    old = facts.deployed
    if old is None:
        return (), ()
    pairs = [
        ("platform", old.platform, facts.platform),
        ("app_id", old.app_id, app.app_id),
        ("compose_hash", old.compose_hash, compose.compose_hash),
        ("os_image_hash", old.os_image_hash, image.os_image_hash),
        ("config_disk", old.config_disk_sha256, "" if disk is None else disk.sha256),
    ]
    # an empty text says that one side does not know
    changes = [Change(name, "changed", was, now) for name, was, now in pairs if was and now and was != now]
    problems: list[Finding] = []
    if old.machine is not None:
        for key in sorted(old.machine.keys() | facts.machine.keys()):
            was, now = old.machine.get(key), facts.machine.get(key)
            if was != now:
                changes.append(Change(f"machine.{key}", "changed", json.dumps(was), json.dumps(now)))
    if any(one.path == "compose_hash" for one in changes):
        problems.append(
            note("plan.old_hash", old.compose_hash, "stays allowed on chain until the app's owner removes it")
        )
    if old.app_compose and compose.text:
        diff = _compose_diff(old, compose)
        changes += [msgspec.structs.replace(one, path=f"app_compose.{one.path}") for one in diff.changes]
        problems += [
            error("plan.compose.dropped", path[:80], "is in the deployed app-compose and would be lost")
            for path in diff.dropped
            if path not in facts.may_drop
        ]
    if not changes and old.plan_id != plan_id:
        # it covers what has no pair above: the machine, and a disk whose hash is not known
        changes.append(Change("plan_id", "changed", old.plan_id, plan_id))
    if not old.plan_id:
        problems.append(
            note("plan.unknown", old.source, "names no plan, so what it does not say counts as changed")
        )
    elif disk is not None and any(one.startswith(ENCRYPTED_ENV) for one in disk.pending):
        problems.append(
            note("plan.env_values", ".env", "is encrypted when it is deployed: other values show no change")
        )
    return tuple(changes), tuple(problems)


def _compose_diff(old: Deployed, compose: ComposePlan) -> ComposeDiff:
    try:
        # a lone surrogate, which a file can hold escaped, is then no utf-8
        return diff_app_compose(old.app_compose.encode(errors="surrogatepass"), compose.text.encode())
    except ProtocolError as problem:
        raise ConfigError(
            "plan.deployed.compose", f"the app-compose deployed by {old.source}: {problem.message}"
        ) from problem


# ---- what the chain allows ----


def wanted_of(
    platform: str, app: AppIdentity, compose_hash: bytes, image: bytes, asked: Asked
) -> tuple[Wanted, BootInfo]:
    """Return what the contracts shall allow, and what they are asked to tell whether they do."""
    app_id = bytes.fromhex(app.app_id)
    is_nitro = platform == "nitro"
    device_id = asked.device_id or (NITRO_DEVICE_ID if is_nitro else None)
    wanted = Wanted(
        app_id=app_id,
        compose_hash=compose_hash,
        os_image_hash=image,
        device_id=device_id,
        tcb_status=_TCB_STATUS[platform],
        app_owner=asked.app_owner,
        has_contract=app.source != "compose_hash",
    )
    boot_info = BootInfo(
        tee_variant=TEE_VARIANTS[platform],
        mr_aggregated=image if is_nitro else bytes(32),
        os_image_hash=image,
        mr_system=image if is_nitro else bytes(32),
        app_id=app_id,
        compose_hash=compose_hash,
        instance_id=b"",
        device_id=device_id or b"",
        key_provider_info=b"",
        tcb_status=wanted.tcb_status,
        advisory_ids=(),
    )
    return wanted, boot_info


def _chain_plan(kms_contract: bytes | None, state: ChainState | None) -> ChainPlan | None:
    if state is None:
        return None
    return ChainPlan(
        chain_id=state.chain_id,
        block_number=state.block_number,
        block_time=state.block_time,
        block_hash=f"0x{state.block_hash.hex()}",
        kms_contract=_address(kms_contract),
    )


def _approval_plan(approval: Approval) -> ApprovalPlan:
    return ApprovalPlan(
        checked=approval.checked,
        calls=tuple(_call_plan(call) for call in approval.calls),
        blocked=approval.blocked,
        notes=approval.notes,
        new_app_id=(approval.new_app_id or b"").hex(),
    )


def _call_plan(call: Call) -> GovernanceCall:
    return GovernanceCall(
        to=_address(call.to),
        sender=_address(call.sender),
        owner_only=call.owner_only,
        function=call.function,
        arguments=call.arguments,
        calldata=f"0x{call.calldata.hex()}",
        why=call.why,
    )


def _address(address: bytes | None) -> str:
    return "" if address is None else checksum_address(address)
