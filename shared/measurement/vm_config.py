"""vm_config: what the host says about the machine and its image (spec attestation 1.5, 7.5, trap 4).

The text is a claim. Its os_image_hash is what policies ask about, and only the image checks make it more
than a claim. Upstream ignores unknown fields; a verifier that ignores one may miss what it means, so they
are refused here (SECURITY N-05): an old verifier then says so instead of half-reading a new host's config.
"""

import json
from typing import Annotated, Any, Final, Literal

import msgspec

from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.measurement.documents import MeasurementDocument, document_from_base64, document_to_base64
from shared.strict_json import decode_json

# The guest reads a sys-config of at most 32 KiB; vm_config is a part of it, twice escaped at worst.
MAX_VM_CONFIG_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 8  # a whole sys-config has two levels

_HASH_BYTES: Final = 32
_SHOWN: Final = 160  # characters of a foreign sentence that an error repeats
_DOCUMENT_FIELDS: Final = frozenset({"checksum_file", "measurement"})

_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # upstream's u64 as far as msgspec can bound it
# Names end in logs and error sentences: printable, and short.
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]*\Z", max_length=128)]


class VmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of vm_config; every one has upstream's default.

    `os_image_hash` has 0 or 32 bytes. `memory_size` and `pci_hole64_size` count bytes.
    `qemu_single_pass_add_pages` means two-pass when true (trap 10). `mr_config` is the v3 document as UTF-8
    bytes, which older hosts carry here. `spec_version` and `image` decide nothing.
    """

    spec_version: _U32 | None = None
    os_image_hash: bytes = b""
    cpu_count: _U32 = 0
    memory_size: _Bytes = 0
    qemu_single_pass_add_pages: bool | None = None
    pic: bool | None = None
    qemu_version: _Name | None = None
    pci_hole64_size: _Bytes = 0
    hugepages: bool = False
    num_gpus: _U32 = 0
    num_nvswitches: _U32 = 0
    num_nics: _U32 = 1
    num_verity_volumes: _U32 = 0
    swtpm: bool = False
    hotplug_off: bool = False
    image: _Name | None = None
    host_share_mode: _Name = ""
    ovmf_variant: Literal["pre202505"] | None = None
    tdx_attestation_variant: Literal["legacy", "lite"] = "legacy"
    tdx_measurement: MeasurementDocument | None = None
    gcp_measurement: MeasurementDocument | None = None
    aws_measurement: MeasurementDocument | None = None
    mr_config: bytes | None = None


_FIELDS: Final = frozenset(VmConfig.__struct_fields__)
_DOCUMENTS: Final = ("tdx_measurement", "gcp_measurement", "aws_measurement")


def parse_vm_config(text: str) -> VmConfig:
    """Read the config of an envelope or a request: a vm_config, or a sys-config that holds one as a string.

    Empty text means `{}`. Of a sys-config only the member `vm_config` is read; unwrapping happens once.
    Raises `InvalidEvidence`: `vm_config.size`, `vm_config.syntax`, `vm_config.duplicate_key`,
    `vm_config.depth`, `vm_config.type` (not an object), `vm_config.unknown` (a field that §7.5 lacks),
    `vm_config.field` (a value of the wrong type or range), `vm_config.os_image_hash`, `measurement.base64`.
    """
    document = _object(text)
    if isinstance(nested := document.get("vm_config"), str):
        document = _object(nested)
    _refuse_unknown(document, _FIELDS, "vm_config")
    raw: dict[str, Any] = dict(document)
    if "os_image_hash" in raw:
        raw["os_image_hash"] = _image_hash(raw["os_image_hash"])
    for name in _DOCUMENTS:
        if raw.get(name) is not None:
            raw[name] = _document(raw[name], name)
    if raw.get("mr_config") is not None:
        raw["mr_config"] = _utf8(raw["mr_config"])
    try:
        return msgspec.convert(raw, VmConfig, builtin_types=(bytes,))
    except ValueError as error:  # msgspec's own, or a lone surrogate where it wanted a known word
        # The sentence may quote the config, which may hold what no encoder takes.
        detail = str(error)[:_SHOWN].encode("ascii", "replace").decode()
        raise InvalidEvidence("vm_config.field", f"vm_config does not fit its fields: {detail}") from error


def encode_vm_config(config: VmConfig) -> str:
    """Return the JSON text that `parse_vm_config` reads back; fields that have their default are left out.

    Fields keep the declared order. Raises nothing for a config that `parse_vm_config` returned.
    """
    built: dict[str, Any] = {}
    for name in VmConfig.__struct_fields__:
        value = getattr(config, name)
        if value == getattr(_DEFAULT, name):
            continue
        if isinstance(value, MeasurementDocument):
            value = document_to_base64(value)
        elif name == "os_image_hash":
            value = value.hex()
        elif name == "mr_config":
            value = value.decode()
        built[name] = value
    return json.dumps(built, separators=(",", ":"))


def attestation_variant(config: VmConfig) -> Literal["legacy", "lite"]:
    """Return which TDX image check applies; a tdx_measurement beside `legacy` does not change it."""
    return config.tdx_attestation_variant


_DEFAULT: Final = VmConfig()


def _object(text: str) -> dict[str, Any]:
    if not text:
        return {}
    # A lone surrogate passes here and is then refused as text that is not utf-8.
    raw = text.encode(errors="surrogatepass")
    try:
        document = decode_json(
            raw, what="vm_config", code="vm_config", max_bytes=MAX_VM_CONFIG_BYTES, max_depth=MAX_DEPTH
        )
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error
    if not isinstance(document, dict):
        raise InvalidEvidence("vm_config.type", "vm_config is not a json object")
    return document


def _refuse_unknown(document: dict[str, Any], known: frozenset[str], what: str) -> None:
    if unknown := sorted(document.keys() - known):
        raise InvalidEvidence(
            "vm_config.unknown", f"{what} has the unknown field {unknown[0][:64]!a}, expected none"
        )


def _image_hash(value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidEvidence("vm_config.os_image_hash", "os_image_hash is not a string")
    try:
        return decode_hex(value, what="os_image_hash", length=_HASH_BYTES if value else 0, prefix=False)
    except ProtocolError as error:
        raise InvalidEvidence("vm_config.os_image_hash", error.message) from error


def _document(value: object, what: str) -> MeasurementDocument:
    if not isinstance(value, dict):
        raise InvalidEvidence("vm_config.field", f"{what} is not a json object")
    _refuse_unknown(value, _DOCUMENT_FIELDS, what)
    checksum_file, measurement = value.get("checksum_file"), value.get("measurement")
    if not isinstance(checksum_file, str) or not isinstance(measurement, str):
        raise InvalidEvidence("vm_config.field", f"{what} lacks one of its two base64 strings")
    return document_from_base64(checksum_file, measurement)


def _utf8(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvidence("vm_config.field", "mr_config holds a lone surrogate, expected text") from error
    raise InvalidEvidence("vm_config.field", "mr_config is not a string")
