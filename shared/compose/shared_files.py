"""The files of the config disk, as the guest reads them at boot (spec deploy section 1.5).

Their bytes are upstream's: JSON with Python's default separators for the vm_config that is a text inside
another document, two-space indent for the files.
"""

import json
from typing import Final, Literal

import msgspec

from shared.compose.project import APP_ID_BYTES, SEED_BYTES, Services
from shared.errors import ProtocolError
from shared.hex import decode_hex
from shared.measurement.config_disk import MAX_BYTES
from shared.measurement.documents import (
    MeasurementDocument,
    bound_measurement,
    document_to_base64,
    parse_aws_measurement,
    parse_gcp_measurement,
)
from shared.strict_json import decode_json

APP_COMPOSE: Final = "app-compose.json"
SYS_CONFIG: Final = ".sys-config.json"
INSTANCE_INFO: Final = ".instance_info"
ENCRYPTED_ENV: Final = ".encrypted-env"
USER_CONFIG: Final = ".user-config"

_SPEC_VERSION: Final = 2
ImageKind = Literal["gcp", "aws"]


class InstanceInfo(msgspec.Struct, frozen=True):
    """.instance_info: `seed` and `app_id` have 20 bytes each, or none where the guest shall derive them."""

    seed: bytes
    app_id: bytes


def encode_instance_info(info: InstanceInfo) -> bytes:
    """Return the bytes of .instance_info."""
    document = {"instance_id_seed": info.seed.hex(), "app_id": info.app_id.hex()}
    return json.dumps(document, indent=2).encode()


def parse_instance_info(raw: bytes) -> InstanceInfo:
    """Read an .instance_info.

    Raises `ProtocolError`: `instance_info.size`, `.syntax`, `.duplicate_key`, `.depth`, `.type`, `.field`
    (not hex, or not 0 or 20 bytes).
    """
    document = decode_json(
        raw, what=INSTANCE_INFO, code="instance_info", max_bytes=MAX_BYTES[INSTANCE_INFO], max_depth=8
    )
    if not isinstance(document, dict):
        raise ProtocolError("instance_info.type", f"{INSTANCE_INFO} is not a json object")
    return InstanceInfo(
        _id(document.get("instance_id_seed", ""), "instance_id_seed", SEED_BYTES),
        _id(document.get("app_id", ""), "app_id", APP_ID_BYTES),
    )


def encode_vm_config(kind: ImageKind, document: MeasurementDocument) -> str:
    """Return the vm_config text of a cloud guest, once its image's files belong together.

    The measurement must be the one that the checksum list names, and of this kind's format: a guest would
    boot on anything, and every verifier would refuse it. Raises `InvalidEvidence` as `bound_measurement` and
    the parser of the kind do.
    """
    measurement = bound_measurement(document, kind, document.os_image_hash)
    if kind == "gcp":
        parse_gcp_measurement(measurement)
    else:
        parse_aws_measurement(measurement)
    return json.dumps(
        {
            "spec_version": _SPEC_VERSION,
            "os_image_hash": document.os_image_hash.hex(),
            f"{kind}_measurement": document_to_base64(document),
        }
    )


def encode_sys_config(services: Services, vm_config: str) -> bytes:
    """Return the bytes of .sys-config.json; `vm_config` is a text in it, not an object."""
    document: dict[str, object] = {
        "kms_urls": services.kms_urls,
        "gateway_urls": services.gateway_urls,
        "pccs_url": services.pccs_url,
        "vm_config": vm_config,
    }
    if services.nvidia_attestation_proxy_url:
        document["nvidia_attestation_proxy_url"] = services.nvidia_attestation_proxy_url
    return json.dumps(document, indent=2).encode()


def _id(value: object, what: str, length: int) -> bytes:
    if not isinstance(value, str):
        raise ProtocolError("instance_info.field", f"{what} is not text")
    try:
        return decode_hex(value, what=what, length=length if value else 0, prefix=False)
    except ProtocolError as error:
        raise ProtocolError("instance_info.field", error.message) from error
