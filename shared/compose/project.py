"""app.json, a project's description, and the operator's global config (spec deploy sections 1.3 and 1.4).

Upstream drops keys that it does not know when it saves a file, and fills in defaults when it loads one, so
that a global setting never takes effect. Here unknown keys are kept, and what nobody wrote is `UNSET`.
"""

import json
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

MAX_APP_JSON_BYTES: Final = 256 * 1024  # a project's description has about 2 KiB
APP_ID_BYTES: Final = 20
SEED_BYTES: Final = 20

Platform = Literal["gcp", "aws", "nitro"]
_SHOWN: Final = 200  # characters of a foreign sentence that an error repeats

Section = TypeVar("Section", bound=msgspec.Struct)


class GcpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`gcp_config`: a confidential VM on Google Cloud. `data_size` in GB.

    `ingress`, ours, are the CIDRs that may ask the VM for evidence, on port 8090.
    """

    project: str | UnsetType = UNSET
    zone: str | UnsetType = UNSET
    instance_name: str | UnsetType = UNSET
    machine_type: str | UnsetType = UNSET
    boot_image: str | UnsetType = UNSET
    boot_image_tar: str | UnsetType = UNSET
    data_image: str | UnsetType = UNSET
    data_size: int | UnsetType = UNSET
    bucket: str | UnsetType = UNSET
    network: str | UnsetType = UNSET
    subnet: str | UnsetType = UNSET
    private_ip: str | UnsetType = UNSET
    no_public_ip: bool | UnsetType = UNSET
    service_account: str | UnsetType = UNSET
    scopes: tuple[str, ...] | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    provisioning_model: Literal["", "STANDARD", "SPOT"] | UnsetType = UNSET
    ingress: tuple[str, ...] | UnsetType = UNSET


class AwsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`aws_config`: an EC2 instance with a NitroTPM. `data_size` in GB."""

    region: str | UnsetType = UNSET
    instance_name: str | UnsetType = UNSET
    instance_type: str | UnsetType = UNSET
    ami_id: str | UnsetType = UNSET
    ami_name: str | UnsetType = UNSET
    boot_image: str | UnsetType = UNSET
    boot_image_tar: str | UnsetType = UNSET
    data_size: int | UnsetType = UNSET
    data_snapshot: str | UnsetType = UNSET
    shared_device_name: str | UnsetType = UNSET
    data_device_name: str | UnsetType = UNSET
    root_device_name: str | UnsetType = UNSET
    volume_type: str | UnsetType = UNSET
    subnet_id: str | UnsetType = UNSET
    security_group_ids: tuple[str, ...] | UnsetType = UNSET
    iam_instance_profile: str | UnsetType = UNSET
    metadata_hop_limit: int | UnsetType = UNSET


class NitroConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`nitro_config`: an enclave on an EC2 instance, ours. `memory_mib` and `cpu_count` are the enclave's.

    `image` is `NAME@sha256:DIGEST`, the path of an OCI layout or of a `docker save` tar; without it the one
    service of the compose file names it. `kernel`, `init` and `nsm_ko` are paths, or `https://...@sha256:HEX`.
    `cmdline` is the kernel's, AWS's default when absent;
    `epoch` (unix seconds) the time of every file. `argv` chooses how the image's Entrypoint and Cmd
    become the enclave's command: `oci`, or `nitro-cli` (which drops the Entrypoint beside a Cmd).

    Of the instance: `bucket` holds the image until the instance fetched it, `volume_size` is in GiB, and
    `iam_instance_profile` lets it read the bucket and be reached by Systems Manager. `ports` are
    `PORT:VSOCK_PORT`, open to the CIDRs of `ingress`; without them the compose file's count. `egress` are
    `HOST:PORT` that the enclave may reach, beside the KMS.
    """

    image: str | UnsetType = UNSET
    kernel: str | UnsetType = UNSET
    init: str | UnsetType = UNSET
    nsm_ko: str | UnsetType = UNSET
    cmdline: str | UnsetType = UNSET
    epoch: int | UnsetType = UNSET
    arch: Literal["", "x86_64", "aarch64"] | UnsetType = UNSET
    argv: Literal["", "oci", "nitro-cli"] | UnsetType = UNSET
    region: str | UnsetType = UNSET
    instance_name: str | UnsetType = UNSET
    instance_type: str | UnsetType = UNSET
    cpu_count: int | UnsetType = UNSET
    memory_mib: int | UnsetType = UNSET
    bucket: str | UnsetType = UNSET
    ami_id: str | UnsetType = UNSET
    subnet_id: str | UnsetType = UNSET
    security_group_ids: tuple[str, ...] | UnsetType = UNSET
    iam_instance_profile: str | UnsetType = UNSET
    volume_size: int | UnsetType = UNSET
    no_public_ip: bool | UnsetType = UNSET
    ports: tuple[str, ...] | UnsetType = UNSET
    ingress: tuple[str, ...] | UnsetType = UNSET
    egress: tuple[str, ...] | UnsetType = UNSET


class AppProject(msgspec.Struct, frozen=True, kw_only=True):
    """app.json as it was written; `extra` holds the keys that this version does not know, by section.

    The section `""` is the file's top level.
    """

    name: str | UnsetType = UNSET
    os_image: str | UnsetType = UNSET
    platform: str | UnsetType = UNSET
    gcp_config: GcpConfig | UnsetType = UNSET
    aws_config: AwsConfig | UnsetType = UNSET
    nitro_config: NitroConfig | UnsetType = UNSET
    docker_compose_file: str | UnsetType = UNSET
    app_compose_file: str | UnsetType = UNSET
    prelaunch_script: str | UnsetType = UNSET
    env_file: str | UnsetType = UNSET
    instance_id_seed: str | UnsetType = UNSET
    app_id: str | UnsetType = UNSET
    gateway_enabled: bool | UnsetType = UNSET
    public_logs: bool | UnsetType = UNSET
    public_sysinfo: bool | UnsetType = UNSET
    public_tcbinfo: bool | UnsetType = UNSET
    key_provider: Literal["kms", "local", "tpm", "none"] | UnsetType = UNSET
    key_provider_id: str | UnsetType = UNSET
    storage_fs: Literal["ext4", "zfs"] | UnsetType = UNSET
    no_instance_id: bool | UnsetType = UNSET
    secure_time: bool | UnsetType = UNSET
    allowed_envs: tuple[str, ...] | UnsetType = UNSET
    env_signer: str | UnsetType = UNSET
    env_min_version: int | UnsetType = UNSET
    key_epoch: int | UnsetType = UNSET
    extra: dict[str, dict[str, Any]] = {}


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """`services` of the global config; `nvidia_attestation_proxy_url` is left out where it is empty."""

    kms_urls: tuple[str, ...] = ("https://kms.tdxlab.dstack.org:12001",)
    gateway_urls: tuple[str, ...] = ("https://gateway.tdxlab.dstack.org:12002",)
    pccs_url: str = ""
    nvidia_attestation_proxy_url: str = ""


class ChainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`chain` of the global config, which upstream does not have: whom `dstack-cloud gov` asks.

    `rpc_quorum` of the endpoints must agree, more than half of them where it is absent.
    """

    rpc_urls: tuple[str, ...] = ()
    rpc_quorum: int | None = None
    safe_service: str = ""


class GlobalConfig(msgspec.Struct, frozen=True, kw_only=True):
    """~/.config/dstack-cloud/config.json. Keys that nobody knows (`_comment_...`) are ignored here."""

    services: Services = Services()
    image_search_paths: tuple[str, ...] = ("~/.dstack/images",)
    gcp: GcpConfig = GcpConfig()
    aws: AwsConfig = AwsConfig()
    nitro: NitroConfig = NitroConfig()
    chain: ChainConfig = ChainConfig()


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "gcp_config": GcpConfig,
    "aws_config": AwsConfig,
    "nitro_config": NitroConfig,
}
_TOP: Final = frozenset(AppProject.__struct_fields__) - {"extra"}

GCP_DEFAULTS: Final = GcpConfig(
    project="",
    zone="us-central1-a",
    instance_name="dstack-vm",
    machine_type="c3-standard-4",
    boot_image="",
    boot_image_tar="",
    data_image="dstack-data-disk",
    data_size=20,
    bucket="",
    network="default",
    subnet="",
    private_ip="",
    no_public_ip=False,
    service_account="",
    scopes=(),
    tags=(),
    labels={},
    provisioning_model="STANDARD",
    ingress=("0.0.0.0/0",),
)
AWS_DEFAULTS: Final = AwsConfig(
    region="us-east-1",
    instance_name="dstack-vm",
    instance_type="m6i.large",
    ami_id="",
    ami_name="",
    boot_image="",
    boot_image_tar="",
    data_size=20,
    data_snapshot="",
    shared_device_name="/dev/sdf",
    data_device_name="/dev/sdg",
    root_device_name="/dev/sda1",
    volume_type="gp3",
    subnet_id="",
    security_group_ids=(),
    iam_instance_profile="",
    metadata_hop_limit=1,
)
NITRO_DEFAULTS: Final = NitroConfig(
    image="",
    kernel="",
    init="",
    nsm_ko="",
    cmdline="",
    epoch=0,
    arch="x86_64",
    argv="oci",
    region="us-east-1",
    instance_name="dstack-enclave",
    instance_type="c5.xlarge",
    cpu_count=2,
    memory_mib=512,
    bucket="",
    ami_id="",
    subnet_id="",
    security_group_ids=(),
    iam_instance_profile="",
    volume_size=20,
    no_public_ip=False,
    ports=(),
    ingress=("0.0.0.0/0",),
    egress=(),
)
PROJECT_DEFAULTS: Final = AppProject(
    name="myapp",
    os_image="dstack-0.6.0",
    platform="gcp",
    docker_compose_file="docker-compose.yaml",
    app_compose_file="",
    prelaunch_script="prelaunch.sh",
    env_file=".env",
    instance_id_seed="",
    app_id="",
    gateway_enabled=True,
    public_logs=True,
    public_sysinfo=True,
    public_tcbinfo=True,
    key_provider="kms",
    key_provider_id="",
    storage_fs="ext4",
    no_instance_id=False,
    secure_time=False,
    allowed_envs=(),
)


def read_app_json(raw: bytes) -> AppProject:
    """Read an app.json.

    Raises `ConfigError`: `project.app_json.size`, `.syntax`, `.duplicate_key`, `.depth`, `.type` (no object),
    `.text` (a lone surrogate), `.field` (a wrong type, or an unknown word), `.platform`, `.hex` (app_id or
    instance_id_seed).
    """
    document = _object(raw, "app.json", "project.app_json")
    extra = {"": {key: value for key, value in document.items() if key not in _TOP}}
    known = {key: value for key, value in document.items() if key in _TOP}
    for name, section in _SECTIONS.items():
        if isinstance(value := document.get(name), dict):
            fields = frozenset(section.__struct_fields__)
            extra[name] = {key: item for key, item in value.items() if key not in fields}
    project = _convert(known, AppProject, "app.json", "project.app_json")
    if not isinstance(project.platform, UnsetType):
        platform = project.platform.lower()
        if platform not in {"gcp", "aws", "nitro"}:
            raise ConfigError(
                "project.app_json.platform", f"platform is {platform[:40]!a}, expected gcp, aws or nitro"
            )
        project = msgspec.structs.replace(project, platform=platform)
    for name, length in (("app_id", APP_ID_BYTES), ("instance_id_seed", SEED_BYTES)):
        _check_hex(getattr(project, name), name, length)
    return msgspec.structs.replace(project, extra={name: keys for name, keys in extra.items() if keys})


def write_app_json(project: AppProject) -> bytes:
    """Return the bytes of an app.json: what was set, and the unknown keys as they were; two-space indent."""
    document = msgspec.to_builtins(project)
    del document["extra"]
    for name, keys in project.extra.items():
        target = document.setdefault(name, {}) if name else document
        target.update(keys)
    return json.dumps(document, indent=2).encode() + b"\n"


def read_global_config(raw: bytes) -> GlobalConfig:
    """Read the global config; raises `ConfigError("project.config....")` as `read_app_json` does."""
    document = _object(raw, "the global config", "project.config")
    return _convert(document, GlobalConfig, "the global config", "project.config")


def with_defaults(project: AppProject) -> AppProject:
    """Return the project with upstream's default for each unset field; sections are left as they are.

    An empty name stays: `"prelaunch_script": ""` means that there is none.
    """
    names = (name for name in AppProject.__struct_fields__ if getattr(project, name) is UNSET)
    return msgspec.structs.replace(project, **{name: getattr(PROJECT_DEFAULTS, name) for name in names})


def gcp_settings(project: AppProject, config: GlobalConfig) -> GcpConfig:
    """Return `gcp_config` over the global section over the defaults; every field is set."""
    return merged(_set_or(project.gcp_config, GcpConfig()), config.gcp, GCP_DEFAULTS)


def aws_settings(project: AppProject, config: GlobalConfig) -> AwsConfig:
    """Return `aws_config` over the global section over the defaults; every field is set."""
    return merged(_set_or(project.aws_config, AwsConfig()), config.aws, AWS_DEFAULTS)


def nitro_settings(project: AppProject, config: GlobalConfig) -> NitroConfig:
    """Return `nitro_config` over the global section over the defaults; every field is set."""
    return merged(_set_or(project.nitro_config, NitroConfig()), config.nitro, NITRO_DEFAULTS)


def merged(local: Section, shared: Section, defaults: Section) -> Section:
    """Merge three layers field by field: what the project says, else the operator, else the default.

    As upstream, an empty text, list or map says nothing, and False and 0 do. Unlike upstream, a default is
    the last resort, so a global `zone` counts for every project that does not set one.
    """
    changes: dict[str, Any] = {}
    for name in local.__struct_fields__:
        values = (getattr(layer, name) for layer in (local, shared, defaults))
        changes[name] = next((one for one in values if not _says_nothing(one)), getattr(defaults, name))
    return msgspec.structs.replace(local, **changes)


def _says_nothing(value: object) -> bool:
    return value is UNSET or (isinstance(value, str | tuple | dict) and not value)


def _set_or(section: Section | UnsetType, empty: Section) -> Section:
    return empty if isinstance(section, UnsetType) else section


def _check_hex(value: str | UnsetType, what: str, length: int) -> None:
    if not value:  # unset, or empty: both mean that there is none yet
        return
    try:
        decode_hex(str(value), what=what, length=length, prefix=False)
    except ProtocolError as error:
        raise ConfigError("project.app_json.hex", error.message) from error


def _object(raw: bytes, what: str, code: str) -> dict[str, Any]:
    try:
        document = decode_json(raw, what=what, code=code, max_bytes=MAX_APP_JSON_BYTES)
    except ProtocolError as error:
        raise ConfigError(error.code, error.message) from error
    if not isinstance(document, dict):
        raise ConfigError(f"{code}.type", f"{what} is not a json object")
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{code}.text", f"{what} holds a lone surrogate, expected text") from error
    return document


def _convert(document: dict[str, Any], model: type[Section], what: str, code: str) -> Section:
    try:
        return msgspec.convert(document, model)
    except ValueError as error:  # msgspec's own, or a lone surrogate where it wanted a known word
        detail = str(error)[:_SHOWN].encode("ascii", "replace").decode()
        raise ConfigError(f"{code}.field", f"{what} does not fit its fields: {detail}") from error
