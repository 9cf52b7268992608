"""Plans a deployment: reads a project, measures its image, asks the chain. Changes nothing but caches.

The steps are those of `plan_deployment`; what they find is put together in `assembly`, which is pure.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from functions.plan.assembly import TEE_VARIANTS, AskChain, ComposeFacts, Facts, ImageFacts, make_plan
from functions.plan.cloud_image import find_image, read_image
from functions.plan.enclave_env import enclave_env_findings
from functions.plan.enclave_image import EnclaveBuilder, enclave_network, measure_enclave
from functions.plan.model import MAX_PLAN_BYTES, AppIdSource, Deployed, Plan, read_plan
from functions.plan.project_files import ProjectFiles, read_file, read_project
from shared.compose.app_compose import canonical_bytes, compose_hash, parse_app_compose
from shared.compose.build import app_compose_document
from shared.compose.env_file import lint_env_file
from shared.compose.findings import Finding, error
from shared.compose.launch_token import lint_launch_token
from shared.compose.lint import lint_app_compose
from shared.compose.model import AppCompose, Requirements, model_of
from shared.compose.project import (
    GlobalConfig,
    aws_settings,
    gcp_settings,
    nitro_settings,
)
from shared.compose.shared_files import (
    APP_COMPOSE,
    ENCRYPTED_ENV,
    INSTANCE_INFO,
    SYS_CONFIG,
    USER_CONFIG,
    ImageKind,
    InstanceInfo,
    encode_instance_info,
    encode_sys_config,
    encode_vm_config,
)
from shared.errors import PolicyDenied, ProtocolError
from shared.measurement.documents import MeasurementDocument

AGAINST_STATE: Final = "state"


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller chooses. Ids and addresses are raw; `against` is `state` or the path of a plan."""

    app_id: bytes = b""
    device_id: bytes | None = None
    app_owner: bytes | None = None
    kms_contract: bytes | None = None
    against: str = AGAINST_STATE
    may_drop: Collection[str] = ()


def plan_deployment(
    directory: Path,
    config: GlobalConfig,
    options: PlanOptions,
    *,
    build_enclave: EnclaveBuilder,
    ask_chain: AskChain | None = None,
) -> Plan:
    """Return the plan of the project in `directory`: gather its facts, put them together, ask the chain.

    Raises what `gather_facts` does, and what the chain raises.
    """
    return make_plan(gather_facts(directory, config, options, build_enclave=build_enclave), ask_chain)


def gather_facts(
    directory: Path, config: GlobalConfig, options: PlanOptions, *, build_enclave: EnclaveBuilder
) -> Facts:
    """Return all that the plan of the project in `directory` is made of.

    1. Read the project's files. 2. Read what is deployed. 3. Make the app-compose and lint it. 4. Measure the
    image. 5. Lay out the config disk.

    Raises `ConfigError` for files that are missing or do not parse, `PolicyDenied` where the app-compose or
    the service cannot be deployed at all, and what the builder raises.
    """
    files = read_project(directory)
    deployed = _deployed(files, options)
    app_id = options.app_id or bytes.fromhex(files.project.app_id or "")
    source: AppIdSource = "option" if options.app_id else "app.json"
    if files.project.platform == "nitro":
        facts = _nitro(files, config, build_enclave, app_id)
    else:
        facts = _cloud(files, config, app_id)
    return msgspec.structs.replace(
        facts,
        app_id=app_id,
        app_id_source=source,
        deployed=deployed,
        device_id=options.device_id,
        app_owner=options.app_owner,
        kms_contract=options.kms_contract,
        may_drop=options.may_drop,
    )


# ---- what is deployed ----


def _deployed(files: ProjectFiles, options: PlanOptions) -> Deployed | None:
    if options.against != AGAINST_STATE:
        return read_plan(read_file(Path(options.against), MAX_PLAN_BYTES)).as_deployed(options.against)
    state = files.state
    if state is None or not state.is_live:
        return None
    ours = state.deployed
    text = "" if files.prepared is None else files.prepared.decode("utf-8", "replace")
    if ours is None:
        # upstream's state names no hash; what it shipped last is in shared/
        shipped = "" if files.prepared is None else compose_hash(files.prepared).hex()
        return Deployed(source="state.json", platform=state.platform, compose_hash=shipped, app_compose=text)
    same = files.prepared is not None and compose_hash(files.prepared).hex() == ours.compose_hash
    return Deployed(
        source="state.json",
        plan_id=ours.plan_id,
        platform=state.platform,
        app_id=ours.app_id,
        compose_hash=ours.compose_hash,
        os_image_hash=ours.os_image_hash,
        config_disk_sha256=ours.config_disk_sha256,
        app_compose=text if same else "",
    )


# ---- Nitro enclaves ----


def _nitro(files: ProjectFiles, config: GlobalConfig, build: EnclaveBuilder, app_id: bytes) -> Facts:
    settings = nitro_settings(files.project, config)
    image, findings = measure_enclave(files, settings, build)
    settings = enclave_network(files, settings, config.services.kms_urls)
    findings += enclave_env_findings(files, image.enclave_toml, app_id)
    return _facts(files, None, image, findings=findings, machine=settings)


# ---- VMs ----


def _cloud(files: ProjectFiles, config: GlobalConfig, app_id: bytes) -> Facts:
    project = files.project
    kind: ImageKind = "aws" if project.platform == "aws" else "gcp"
    compose, findings = make_app_compose(files)
    image_directory = find_image(project.os_image or "", config.image_search_paths, files.directory)
    image, document = read_image(image_directory, kind)
    disk, pending = _config_disk(files, config, kind, compose.raw, document, app_id)
    settings = aws_settings(project, config) if kind == "aws" else gcp_settings(project, config)
    return _facts(
        files,
        compose,
        image,
        findings=findings,
        machine=settings,
        config_files=disk,
        pending=pending,
    )


def make_app_compose(files: ProjectFiles) -> tuple[ComposeFacts, tuple[Finding, ...]]:
    """Return the app-compose that a project ships, and what is to be said about it.

    Raises `PolicyDenied` where it cannot be deployed at all.
    """
    if files.app_compose is not None:
        raw, verbatim = files.app_compose, True
    else:
        names = () if files.env is None else files.env.names
        document = app_compose_document(
            files.project, files.docker_compose or "", files.pre_launch_script, names
        )
        raw, verbatim = canonical_bytes(document), False
    findings = lint_app_compose(raw)
    try:
        model = model_of(parse_app_compose(raw))
    except ProtocolError as problem:
        raise PolicyDenied(problem.code, problem.message) from problem
    findings += (*_env_findings(files, model.allowed_envs), *_guest_findings(files, model))
    return ComposeFacts(raw=raw, verbatim=verbatim, model=model), findings


def _env_findings(files: ProjectFiles, allowed: Collection[str]) -> tuple[Finding, ...]:
    if files.env is None:
        return ()
    found = list(lint_env_file(files.env))
    if files.project.key_provider != "kms":
        found.append(error("lint.env.kms", ".env", "exists, and key_provider is not kms"))
    found += [
        error("lint.env.undeclared", name, "is in .env and not in allowed_envs: the guest would skip it")
        for name in files.env.names
        if name not in allowed
    ]
    return tuple(found)


def _guest_findings(files: ProjectFiles, model: AppCompose) -> tuple[Finding, ...]:
    """Say what would stop this guest at boot, on this platform (deploy 6.3 step 3, section 4)."""
    found: list[Finding] = []
    variant = TEE_VARIANTS[str(files.project.platform)]
    required = model.requirements or Requirements()
    if required.platforms is not None and variant not in required.platforms:
        found.append(
            error(
                "lint.platforms", "requirements.platforms", f"does not list {variant}, which is planned here"
            )
        )
    if required.launch_token_hash is not None:
        found += lint_launch_token(required.launch_token_hash, files.user_config)
    if model.effective_key_provider == "local":
        found.append(
            error("lint.key_provider", "key_provider", "is local, which needs a host that no cloud has")
        )
    return tuple(found)


def _config_disk(
    files: ProjectFiles,
    config: GlobalConfig,
    kind: ImageKind,
    app_compose: bytes,
    document: MeasurementDocument,
    app_id: bytes,
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    seed = bytes.fromhex(files.project.instance_id_seed or "")
    disk = {
        APP_COMPOSE: app_compose,
        SYS_CONFIG: encode_sys_config(config.services, encode_vm_config(kind, document)),
        INSTANCE_INFO: encode_instance_info(InstanceInfo(seed, app_id)),
    }
    if files.user_config is not None:
        disk[USER_CONFIG] = files.user_config
    pending = []
    if files.env is not None and files.env.names:
        pending.append(f"{ENCRYPTED_ENV}: encrypted to the app's key when it is deployed")
    if not seed:
        pending.append(f"{INSTANCE_INFO}: app.json has no instance_id_seed, so one is drawn")
    return disk, tuple(pending)


def _facts(
    files: ProjectFiles,
    compose: ComposeFacts | None,
    image: ImageFacts,
    *,
    findings: tuple[Finding, ...],
    machine: msgspec.Struct,
    config_files: dict[str, bytes] | None = None,
    pending: tuple[str, ...] = (),
) -> Facts:
    return Facts(
        name=str(files.project.name),
        platform=str(files.project.platform),
        app_id=b"",
        app_id_source="none",
        compose=compose,
        image=image,
        config_files=config_files,
        pending=pending,
        machine=msgspec.json.decode(msgspec.json.encode(machine)),  # as it will be read back
        findings=findings,
        deployed=None,
    )
