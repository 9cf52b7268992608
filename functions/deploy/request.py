"""What is handed in to be deployed: a project's files, ciphertext, and nothing that is plain and secret.

The same checks hold for a body of the HTTP API and for a project that the command line hands over in process.
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NoReturn, TypeVar

import msgspec

from functions.deploy.record import CloudName
from functions.plan.project_files import APP_JSON, MAX_SCRIPT_BYTES, STATE_JSON
from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.compose.project import (
    MAX_APP_JSON_BYTES,
    AppProject,
    AwsConfig,
    GcpConfig,
    NitroConfig,
    read_app_json,
    with_defaults,
)
from shared.compose.shared_files import ENCRYPTED_ENV, USER_CONFIG
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.measurement.config_disk import MAX_BYTES
from shared.measurement.documents import MAX_MEASUREMENT_BYTES
from shared.measurement.image_reference import match_digest, parse_reference, pinned_digest
from shared.measurement.os_image import MAX_SUMS_BYTES
from shared.strict_json import decode_json

MAX_BODY_BYTES: Final = 5_900_000
"""Of a request. A Lambda function is given at most 6 MiB of event, the gateway's own fields included."""

MAX_PROJECT_BYTES: Final = 64 << 20
"""Of all files of a project together: an app-compose or a .user-config of 50 MiB, and the rest."""

MAX_FILES: Final = 8
MAX_NAME: Final = 200
MAX_ENCRYPTED_ENV: Final = MAX_BYTES[ENCRYPTED_ENV]
MIN_ENCRYPTED_ENV: Final = 32 + 12 + 16
"""An ephemeral key, an initial value and a tag: the ciphertext of nothing."""

MAX_ENV_NAMES: Final = 1024
MAX_ENV_NAMES_BYTES: Final = 64 << 10
"""Of all names together. They stand in the record, and no store takes more than some 380 KB of that."""

MAX_DROPS: Final = 64
MAX_SOURCES: Final = 64

_WIDEST: Final = {4: 8, 6: 16}
"""The shortest prefix, by IP version, that a rule may allow without saying that it means everybody."""

OS_IMAGE_FILES: Final = {
    "os-image/digest.txt": 1024,
    "os-image/sha256sum.txt": MAX_SUMS_BYTES,
    "os-image/measurement.gcp.cbor": MAX_MEASUREMENT_BYTES,
}
"""The small files of an OS image, which say what it measures; the image itself is in the cloud already."""

Model = TypeVar("Model", bound=msgspec.Struct)

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_FILE: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,7}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_CLOUDS: Final[dict[str, CloudName]] = {"gcp": "gcp-tdx", "nitro": "aws-nitro"}
_BOOT_FILES: Final = ("kernel", "init", "nsm_ko")
_RESERVED: Final = frozenset({APP_JSON, STATE_JSON, USER_CONFIG, "shared", "os-image"})


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What else a plan takes: ids and addresses in hex, and the fields that an update may drop."""

    app_id: str = ""
    device_id: str = ""
    app_owner: str = ""
    may_drop: tuple[str, ...] = ()


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A project to be deployed under `name`. `files` are bytes by relative name.

    `env_names` are the variables inside `encrypted_env`, which is ciphertext. `directory` is where a project
    lies on this machine: set by the command line in process, never by a request, and then app.json may name
    images by their paths.
    """

    name: str
    files: dict[str, bytes]
    cloud: CloudName | None = None
    encrypted_env: bytes = b""
    env_names: tuple[str, ...] = ()
    replace: bool = False
    wait_for_approval: bool = True
    options: Options = Options()
    directory: str = ""

    def __repr__(self) -> str:
        return f"Upload(name={self.name!r}, files={sorted(self.files)})"


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of a request; files and ciphertext in base64. In a PUT the path has the name."""

    files: dict[str, str]
    name: str = ""
    cloud: CloudName | None = None
    encrypted_env: str = ""
    env_names: tuple[str, ...] = ()
    replace: bool = False
    wait_for_approval: bool = True
    options: Options = Options()


class RuleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of a firewall rule. `anywhere` says that much of the internet is meant."""

    action: Literal["allow", "deny"]
    port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    sources: tuple[str, ...] = ()
    anywhere: bool = False


def read_upload(raw: bytes, name: str = "") -> Upload:
    """Read the body of a request; `name` is the path's, where it has one.

    Raises `ProtocolError`: `deploy.request.json.*` for what is no strict JSON, `deploy.request.field`,
    `deploy.request.base64`, `deploy.request.size`; and as `check_upload` does.
    """
    body = _body(raw, _Body)
    if name and body.name not in {"", name}:
        _refuse("name", f"the path names {name!a}, the body {body.name[:80]!a}")
    if len(body.files) > MAX_FILES:
        _refuse("files", f"got {len(body.files)} files, expected at most {MAX_FILES}")
    upload = Upload(
        name=name or body.name,
        files={file: _base64(text, _shown(file)) for file, text in body.files.items()},
        cloud=body.cloud,
        encrypted_env=_base64(body.encrypted_env, "encrypted_env"),
        env_names=body.env_names,
        replace=body.replace,
        wait_for_approval=body.wait_for_approval,
        options=body.options,
    )
    check_upload(upload)
    return upload


def read_rule(raw: bytes) -> RuleBody:
    """Read the body of a firewall rule. Raises as `read_upload`."""
    return _body(raw, RuleBody)


def check_upload(upload: Upload) -> CloudName:
    """Refuse what is no project, and return the cloud that it is for.

    Raises `ProtocolError`: `deploy.request.name`, `.file` (a name that is no plain one, or that the project
    does not name), `.files`, `.missing`, `.size`, `.plaintext_env`, `.env_size`, `.encrypted_env`,
    `.env_names`, `.path` (app.json names a path of the machine), `.platform`, `.cloud`, `.option`;
    `ConfigError` for an app.json that does not read.
    """
    check_name(upload.name)
    _check_sizes(upload.files)
    if APP_JSON not in upload.files:
        _refuse("missing", f"there is no {APP_JSON} among the files")
    project = with_defaults(read_app_json(upload.files[APP_JSON]))
    _check_names(project, upload.files)
    _check_env(upload)
    _check_options(upload.options)
    if not upload.directory:
        _check_places(project)
    return _cloud(project, upload.cloud)


def check_name(name: str) -> None:
    """Refuse a name that no cloud would take. Raises `ProtocolError("deploy.request.name")`."""
    if not _NAME.fullmatch(name):
        _refuse(
            "name",
            f"got the name {name[:80]!a}, expected a letter, then up to 62 letters, digits and hyphens, all"
            " lower case and no hyphen last",
        )


def check_rule(rule: RuleBody) -> None:
    """Refuse a rule that no firewall would take, or that opens a port to everybody unasked.

    Raises `ProtocolError`: `deploy.request.port`, `deploy.request.source`, `deploy.request.anywhere`.
    """
    import ipaddress  # noqa: PLC0415 - few requests are about firewalls

    check_port(rule.protocol, rule.port)
    if not 1 <= len(rule.sources) <= MAX_SOURCES:
        _refuse(
            "source",
            f"got {len(rule.sources)} sources, expected 1 to {MAX_SOURCES} networks like 192.0.2.0/24",
        )
    for source in rule.sources:
        try:
            network = ipaddress.ip_network(source)
        except ValueError:
            _refuse("source", f"got the source {source[:80]!a}, expected a network like 192.0.2.0/24")
        # halves and quarters of the internet make the whole of it when asked for together, or in turn
        if network.prefixlen < _WIDEST[network.version] and rule.action == "allow" and not rule.anywhere:
            _refuse("anywhere", f"{source} is much of the internet: say anywhere where that is meant")


def check_port(protocol: str, port: int) -> None:
    """Raise `ProtocolError("deploy.request.port")` for what is no port of TCP or UDP."""
    if protocol not in {"tcp", "udp"} or not 1 <= port <= 65535:
        _refuse("port", f"got port {port} of {protocol[:20]!a}, expected 1 to 65535 of tcp or udp")


def materialise(files: Mapping[str, bytes], directory: Path, env_names: Collection[str] = ()) -> None:
    """Write a project's files below `directory`, for the planner to read.

    Where there are `env_names`, an .env names them and gives them no values: those are in the ciphertext.
    Raises as `check_upload` for names that must not be written.
    """
    project = with_defaults(read_app_json(files[APP_JSON]))
    _check_names(project, files)
    written = dict(files)
    if env_names and project.env_file:
        written[project.env_file] = "".join(f"{name}=\n" for name in sorted(set(env_names))).encode()
    for name, content in written.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---- files ----


def _check_sizes(files: Mapping[str, bytes]) -> None:
    if len(files) > MAX_FILES:
        _refuse("files", f"got {len(files)} files, expected at most {MAX_FILES}")
    total = sum(map(len, files.values()))
    if total > MAX_PROJECT_BYTES:
        _refuse("size", f"the files have {total} bytes, expected at most {MAX_PROJECT_BYTES}")
    if len(files.get(APP_JSON, b"")) > MAX_APP_JSON_BYTES:
        _refuse("size", f"{APP_JSON} has more than {MAX_APP_JSON_BYTES} bytes")


def _check_names(project: AppProject, files: Mapping[str, bytes]) -> None:
    """Let through the files that the project names, each within its limit, and no others."""
    named = {
        str(project.docker_compose_file): MAX_SCRIPT_BYTES,
        str(project.prelaunch_script): MAX_SCRIPT_BYTES,
        str(project.app_compose_file): MAX_COMPOSE_BYTES,
    }
    named.pop("", None)
    for name in named.keys() | {str(project.env_file)} - {""}:
        _check_file(name)
        if name.split("/")[0] in _RESERVED:
            _refuse("file", f"app.json names {_shown(name)}, which has another use")
    limits = {APP_JSON: MAX_APP_JSON_BYTES, USER_CONFIG: MAX_BYTES[USER_CONFIG], **OS_IMAGE_FILES, **named}
    for name, content in files.items():
        _check_file(name)
        if name == project.env_file or _is_env(name):
            _refuse(
                "plaintext_env",
                f"{_shown(name)} holds variables in plain text: hand in their ciphertext alone",
            )
        if name not in limits:
            _refuse("file", f"{_shown(name)} is no file that this project names")
        if len(content) > limits[name]:
            _refuse("size", f"{_shown(name)} has {len(content)} bytes, expected at most {limits[name]}")
    _check_apart(files.keys() | named.keys() | {str(project.env_file)} - {""})
    needed = str(project.app_compose_file or project.docker_compose_file)
    if needed not in files:
        _refuse("missing", f"app.json names {_shown(needed)}, which is not among the files")


def _check_file(name: str) -> None:
    if len(name) > MAX_NAME or not _FILE.fullmatch(name) or {".", ".."} & set(name.split("/")):
        _refuse("file", f"got the file name {_shown(name)}, expected a plain name below the project")


def _check_apart(names: Collection[str]) -> None:
    """Refuse a name below another one: no file is a directory too."""
    for name in names:
        for above in PurePosixPath(name).parents:
            if str(above) in names:
                _refuse("file", f"{_shown(str(above))} is a file, and {_shown(name)} would be below it")


def _is_env(name: str) -> bool:
    """Whether a name is one that files of variables have: .env, .env.production, web.env."""
    last = PurePosixPath(name).name.lower()
    return last == ".env" or last.startswith(".env.") or last.endswith(".env")


# ---- environment ----


def _check_env(upload: Upload) -> None:
    size = len(upload.encrypted_env)
    if size > MAX_ENCRYPTED_ENV:
        _refuse(
            "env_size", f"the encrypted env has {size} bytes, the guest takes at most {MAX_ENCRYPTED_ENV}"
        )
    if size and _is_text(upload.encrypted_env):
        _refuse("plaintext_env", "encrypted_env is text, expected ciphertext: encrypt it to the app's key")
    if 0 < size < MIN_ENCRYPTED_ENV:
        _refuse("encrypted_env", f"the encrypted env has {size} bytes, the shortest has {MIN_ENCRYPTED_ENV}")
    names = upload.env_names
    if names and not size:
        _refuse("encrypted_env", "there are env_names and no encrypted_env")
    if len(names) > MAX_ENV_NAMES or sum(map(len, names)) > MAX_ENV_NAMES_BYTES:
        _refuse(
            "env_names",
            f"got {len(names)} names, expected at most {MAX_ENV_NAMES} of {MAX_ENV_NAMES_BYTES} bytes in all",
        )
    if any(not _ENV_NAME.fullmatch(name) for name in names):
        # what stands there may be a value: it is not repeated
        _refuse("env_names", "an env name is none: expected letters, digits and underscores")


def _is_text(raw: bytes) -> bool:
    """Whether bytes are text throughout; of 60 random bytes, one in 10^26 is."""
    return all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in raw)


# ---- what app.json says ----


def _check_places(project: AppProject) -> None:
    """Refuse places on the machine that plans: a request must not have it read its own files."""
    for section, config in (("gcp_config", project.gcp_config), ("aws_config", project.aws_config)):
        if isinstance(config, GcpConfig | AwsConfig) and config.boot_image_tar:
            _refuse("path", f"{section}.boot_image_tar is a path, which has no meaning here")
    nitro = project.nitro_config
    if not isinstance(nitro, NitroConfig):
        return
    for name in _BOOT_FILES:
        if place := getattr(nitro, name):
            url, _, digest = place.rpartition("@")
            if not url.startswith("https://") or match_digest(digest) is None:
                _refuse("path", f"nitro_config.{name} is {place[:80]!a}, expected https://...@sha256:HEX")
    if nitro.image:
        try:
            pinned_digest(parse_reference(nitro.image))
        except ConfigError as error:
            raise ProtocolError("deploy.request.path", f"nitro_config.image: {error.message}") from error


def _cloud(project: AppProject, wanted: CloudName | None) -> CloudName:
    platform = str(project.platform)
    if platform == "aws":
        _refuse(
            "platform",
            "platform aws is a NitroTPM instance, which is not launched yet: set platform to nitro, for an"
            " enclave, or to gcp",
        )
    if wanted not in {None, "local", _CLOUDS[platform]}:
        _refuse("cloud", f"got cloud {wanted} for platform {platform}, expected {_CLOUDS[platform]} or local")
    return wanted or _CLOUDS[platform]


def _check_options(options: Options) -> None:
    for name, length in (("app_id", 20), ("device_id", 32), ("app_owner", 20)):
        if text := getattr(options, name):
            try:
                decode_hex(text, what=name, length=length)
            except ProtocolError as error:
                raise ProtocolError("deploy.request.option", error.message) from error
    if len(options.may_drop) > MAX_DROPS or any(len(name) > MAX_NAME for name in options.may_drop):
        _refuse("option", f"may_drop names more than {MAX_DROPS} fields, or one too long")


# ---- json ----


def _body(raw: bytes, model: type[Model]) -> Model:
    if len(raw) > MAX_BODY_BYTES:
        _refuse("size", f"the body has {len(raw)} bytes, expected at most {MAX_BODY_BYTES}")
    document = decode_json(
        raw, what="the body", code="deploy.request.json", max_bytes=MAX_BODY_BYTES, max_depth=8
    )
    try:
        return msgspec.convert(document, model)
    except ValueError as error:  # msgspec's own, or a lone surrogate
        detail = str(error).splitlines()[0][:200].encode("ascii", "replace").decode().rstrip(".")
        raise ProtocolError("deploy.request.field", f"the body does not fit: {detail}") from None


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("deploy.request.base64", f"{what} is not base64") from None


def _shown(name: str) -> str:
    return ascii(name[:80])


def _refuse(code: str, message: str) -> NoReturn:
    raise ProtocolError(f"deploy.request.{code}", message)
