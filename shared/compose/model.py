"""What the guest reads in an app-compose.json, by the guest's rules (spec deploy section 2.1).

The guest measures the whole file, ignores unknown top-level fields, and refuses unknown ones inside
`requirements`. A verifier that ignores a field may miss code that runs (SECURITY N-05), so unknown names are
listed here, and `refuse_unknown` turns the list into a refusal.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

import msgspec

from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE, SEV_SNP, TDX
from shared.compose.app_compose import parse_app_compose
from shared.compose.env_envelope import MAX_ENV_VERSION
from shared.errors import ProtocolError
from shared.keys.epoch import MAX_EPOCH

MAX_MANIFEST_VERSION: Final = 3  # the newest that the guest reads
MAX_INIT_SCRIPTS: Final = 5
PLATFORMS: Final = (TDX, GCP_TDX, NITRO_ENCLAVE, SEV_SNP, AWS_NITRO_TPM)
# sha256 of `{}`: what a guest measures when no policy is written.
DEFAULT_GPU_POLICY_HASH: Final = sha256(b"{}").digest()

KeyProviderName = Literal["none", "kms", "local", "tpm"]
Runner = Literal["docker-compose", "nerdctl-compose", "bash"]

_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,8}")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_HEX32: Final = re.compile(r"[0-9a-fA-F]{64}")
# One comparator of Rust's semver: an operator, up to three numbers or wildcards, a pre-release, a build.
_COMPARATOR: Final = re.compile(
    r"\s*(?:=|>=|<=|>|<|~|\^)?\s*(?:\*|[0-9]{1,9}(?:\.(?:\*|x|X|[0-9]{1,9})){0,2}"
    r"(?:-[0-9A-Za-z.-]{1,64})?(?:\+[0-9A-Za-z.-]{1,64})?)\s*"
)
_MAX_SEMVER: Final = 256
_NONEMPTY_ID: Final = ("kms", "local")  # providers that a key_provider_id can pin
# The y coordinates of edwards25519's eight points of small order: 0, 1, -1, and two that are each other's
# negative.
_ED25519_P: Final = 2**255 - 19
_ORDER_EIGHT: Final = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER: Final = frozenset({0, 1, _ED25519_P - 1, _ORDER_EIGHT, _ED25519_P - _ORDER_EIGHT})
_SHOWN: Final = 160  # characters of a foreign sentence that an error repeats
_V3: Final = 3

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_EnvVersion = Annotated[int, msgspec.Meta(ge=0, le=MAX_ENV_VERSION)]
_KeyEpoch = Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]


class GpuPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`requirements.gpu_policy`."""

    attest_gpu: bool = True
    rego: str | None = None
    allow_devtools: bool = False
    allow_debug: bool = False
    allow_insecure_boot: bool = False


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`requirements`: what the guest must find before it goes on. `platforms` None means any, () none."""

    os_version: str | None = None
    platforms: tuple[str, ...] | None = None
    tdx_measure_acpi_tables: bool | None = None
    launch_token_hash: str | None = None
    gpu_policy: GpuPolicy | None = None


class PortRule(msgspec.Struct, frozen=True):
    """One port that the gateway may reach; `pp` asks for the PROXY protocol."""

    port: _Port
    pp: bool = False


class PortPolicy(msgspec.Struct, frozen=True):
    """`port_policy`, sent to the gateway."""

    ports: tuple[PortRule, ...] = ()
    restrict_mode: bool = False


class VerityVolume(msgspec.Struct, frozen=True):
    """A read-only volume; `verity_root` is 32 bytes in hex, `target` an absolute path."""

    source: str
    verity_root: str
    target: str


class DockerConfig(msgspec.Struct, frozen=True):
    """`docker_config`, which SDKs write and the guest ignores."""

    registry: str | None = None
    username: str | None = None
    token_key: str | None = None


class AppCompose(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of app-compose.json, with the guest's defaults.

    `unknown` holds the names of fields that no guest knows (dotted below the top), sorted. `gpu_policy_hash`
    is what the event of that name carries: 32 bytes, of the policy as written and not of defaults.
    `env_signer` (an Ed25519 key, 64 hex digits), `env_min_version` and `key_epoch` are ours: upstream's guest
    measures and ignores them.
    """

    manifest_version: int | str
    name: str
    runner: Runner
    snapshotter: Literal["overlayfs", "stargz"] | None = None
    features: tuple[str, ...] = ()
    docker_compose_file: str | None = None
    bash_script: str | None = None
    pre_launch_script: str | None = None
    init_script: str | tuple[str, ...] | None = None
    docker_config: DockerConfig | None = None
    public_logs: bool = False
    public_sysinfo: bool = False
    public_tcbinfo: bool = True
    gateway_enabled: bool = False
    tproxy_enabled: bool = False
    kms_enabled: bool = False
    local_key_provider_enabled: bool = False
    key_provider: KeyProviderName | None = None
    key_provider_id: str = ""
    allowed_envs: tuple[str, ...] = ()
    no_instance_id: bool = False
    secure_time: bool = True
    storage_fs: str | None = None
    swap_size: int | str = 0
    event_log_version: Literal[1, 2] = 1
    port_policy: PortPolicy = PortPolicy()
    verity_volumes: tuple[VerityVolume, ...] = ()
    requirements: Requirements | None = None
    launch_token_hash: str | None = None
    env_signer: str | None = None
    env_min_version: _EnvVersion = 0
    key_epoch: _KeyEpoch = 0
    unknown: tuple[str, ...] = ()
    gpu_policy_hash: bytes = DEFAULT_GPU_POLICY_HASH

    @property
    def manifest(self) -> int:
        """The manifest version as a number, 1 to 3."""
        return int(self.manifest_version)

    @property
    def scripts(self) -> tuple[str, ...]:
        """The init scripts, in the order in which they run: before Docker, measured one by one."""
        if self.init_script is None:
            return ()
        return (self.init_script,) if isinstance(self.init_script, str) else self.init_script

    @property
    def init_script_hashes(self) -> tuple[bytes, ...]:
        """The 32-byte SHA-256 of each init script, as its event carries it."""
        return tuple(sha256(script.encode()).digest() for script in self.scripts)

    @property
    def effective_key_provider(self) -> KeyProviderName:
        """Who keeps the keys: the field, else the two flags of older documents, else nobody."""
        if self.key_provider is not None:
            return self.key_provider
        if self.kms_enabled:
            return "kms"
        return "local" if self.local_key_provider_enabled else "none"

    @property
    def uses_gateway(self) -> bool:
        """Whether the guest registers with a gateway: either flag, or the feature of older documents."""
        return self.gateway_enabled or self.tproxy_enabled or "tproxy-net" in self.features


_COMPUTED: Final = frozenset({"unknown", "gpu_policy_hash"})
_KNOWN: Final = frozenset(AppCompose.__struct_fields__) - _COMPUTED
# Where unknown names are ignored one level down, as they are at the top.
_NESTED: Final[Mapping[str, frozenset[str]]] = {
    "port_policy": frozenset(PortPolicy.__struct_fields__),
    "docker_config": frozenset(DockerConfig.__struct_fields__),
}


def read_app_compose(raw: bytes) -> AppCompose:
    """Read the bytes of an app-compose.json as the guest does.

    Raises `ProtocolError`: what `parse_app_compose` raises, `compose.field` (a missing field, a wrong type or
    an unknown word), `compose.manifest_version`, `compose.init_script`, `compose.key_provider_id`,
    `compose.storage_fs`, `compose.verity_volume`, `compose.env_signer`, `compose.text` (a lone surrogate),
    `compose.requirements`
    (below manifest version 3, an unknown field, or a value that the guest refuses).
    """
    return model_of(parse_app_compose(raw))


def model_of(document: dict[str, Any]) -> AppCompose:
    """Return the model of a parsed document; raises as `read_app_compose` does."""
    for step in (_check_text, _check_manifest, _check_requirements):
        step(document)
    known = {name: value for name, value in document.items() if name in _KNOWN}
    try:
        compose = msgspec.convert(known, AppCompose)
    except msgspec.ValidationError as error:
        detail = str(error)[:_SHOWN].encode("ascii", "replace").decode()
        raise ProtocolError("compose.field", f"app-compose does not fit its fields: {detail}") from error
    for check in (_check_scripts, _check_key_provider, _check_storage, _check_volumes, _check_env_signer):
        check(compose)
    return msgspec.structs.replace(
        compose, unknown=_unknown(document), gpu_policy_hash=_gpu_policy_hash(document)
    )


def refuse_unknown(compose: AppCompose) -> None:
    """Refuse a document with a field that no guest knows: `ProtocolError("compose.unknown")` (N-05)."""
    if compose.unknown:
        raise ProtocolError(
            "compose.unknown", f"app-compose has the unknown field {compose.unknown[0][:64]!a}, expected none"
        )


def _check_manifest(document: dict[str, Any]) -> None:
    """Versions 1 and 2 may be numbers; from 3 on the guest wants the text, so that old guests refuse it."""
    version = document.get("manifest_version")
    number = 0
    if type(version) is int and version in {1, 2}:
        number = version
    elif isinstance(version, str) and _DECIMAL.fullmatch(version):
        number = int(version)
    if not 1 <= number <= MAX_MANIFEST_VERSION:
        raise ProtocolError(
            "compose.manifest_version",
            f"manifest_version is {version!a:.40}, expected 1, 2 or text '1' to '{MAX_MANIFEST_VERSION}'",
        )


def _check_requirements(document: dict[str, Any]) -> None:
    value = document.get("requirements")
    if value is None:
        return
    if int(document["manifest_version"]) < _V3:
        raise _requirements("needs manifest_version '3'")
    try:
        required = msgspec.convert(value, Requirements)
    except msgspec.ValidationError as error:
        raise _requirements(str(error)[:_SHOWN].encode("ascii", "replace").decode()) from error
    if required.os_version is not None and not _is_semver(required.os_version):
        raise _requirements(f"os_version {required.os_version[:40]!a} is no version requirement")
    if required.launch_token_hash is not None and not _HEX32.fullmatch(required.launch_token_hash):
        raise _requirements("launch_token_hash is not 64 hex digits")


def _is_semver(text: str) -> bool:
    return len(text) <= _MAX_SEMVER and all(_COMPARATOR.fullmatch(part) for part in text.split(","))


def _requirements(message: str) -> ProtocolError:
    return ProtocolError("compose.requirements", f"requirements: {message}")


def _check_scripts(compose: AppCompose) -> None:
    limit = MAX_INIT_SCRIPTS if compose.manifest >= _V3 else 1
    if len(compose.scripts) > limit:
        raise ProtocolError(
            "compose.init_script",
            f"init_script has {len(compose.scripts)} scripts, expected at most {limit} "
            f"with manifest_version {compose.manifest}",
        )


def _check_key_provider(compose: AppCompose) -> None:
    if not _HEX.fullmatch(compose.key_provider_id):
        raise ProtocolError("compose.key_provider_id", "key_provider_id is not hex")
    provider = compose.effective_key_provider
    if compose.key_provider_id and provider not in _NONEMPTY_ID:
        raise ProtocolError(
            "compose.key_provider_id", f"key_provider {provider} has no id, and key_provider_id is not empty"
        )


def _check_storage(compose: AppCompose) -> None:
    if compose.storage_fs is not None and compose.storage_fs.lower() not in {"zfs", "ext4"}:
        raise ProtocolError(
            "compose.storage_fs", f"storage_fs is {compose.storage_fs[:40]!a}, expected zfs or ext4"
        )


def _check_volumes(compose: AppCompose) -> None:
    targets: set[str] = set()
    for volume in compose.verity_volumes:
        if not _HEX32.fullmatch(volume.verity_root):
            raise ProtocolError("compose.verity_volume", "a verity_root is not 64 hex digits")
        if not volume.target.startswith("/") or volume.target in targets:
            raise ProtocolError(
                "compose.verity_volume",
                f"the verity target {volume.target[:40]!a} is no absolute path, or occurs twice",
            )
        targets.add(volume.target)


def _check_env_signer(compose: AppCompose) -> None:
    """Refuse what is no key, and one of the few under which signatures can be made that fit any text."""
    if compose.env_signer is None:
        return
    if not _HEX32.fullmatch(compose.env_signer):
        raise ProtocolError(
            "compose.env_signer", "env_signer is not the 64 hex digits of an ed25519 public key"
        )
    height = int.from_bytes(bytes.fromhex(compose.env_signer), "little") & ~(1 << 255)
    if height % _ED25519_P in _SMALL_ORDER:
        raise ProtocolError("compose.env_signer", "env_signer is a point of small order, which binds nobody")


def _check_text(document: dict[str, Any]) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ProtocolError("compose.text", "app-compose holds a lone surrogate, expected text") from error


def _gpu_policy_hash(document: dict[str, Any]) -> bytes:
    """Hash the policy as it is written; for texts, booleans and null this is RFC 8785's form."""
    requirements = document.get("requirements")
    policy = requirements.get("gpu_policy") if isinstance(requirements, dict) else None
    text = json.dumps(policy or {}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).digest()


def _unknown(document: dict[str, Any]) -> tuple[str, ...]:
    found = set(document.keys() - _KNOWN)
    for name, fields in _NESTED.items():
        if isinstance(value := document.get(name), dict):
            found |= {f"{name}.{key}" for key in value.keys() - fields}
    return tuple(sorted(found))
