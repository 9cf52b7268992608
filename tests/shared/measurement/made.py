"""Images made on the spot, hashed by hand: none of the code under test computes what these expect."""

import hashlib
import json
from base64 import b64encode
from struct import pack
from typing import Any

import cbor2

from shared.attestation.envelope import TdxEvent
from shared.measurement.tdx_registers import LiteRegisters

GIB = 1 << 30


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def h48(label: str) -> bytes:
    return sha384(label.encode())


# base page 0x10, the hob at page 0x12; page 0x10 alone, then pages 0x12 and 0x13
TD_HOB = bytes([0x10, 0x02, 0x02, 0x00, 0x01, 0x02, 0x02])


def tdx_tree(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "version": 3,
        "image": {
            "cmdline_sha384": h48("cmdline"),
            "kernel_authenticode": h48("kernel"),
            "initrd_sha384": h48("initrd"),
        },
        "tdvf": {
            "ovmf": "pre202505",
            "mrtd": {"single_pass": h48("single"), "two_pass": h48("two")},
            "td_hob": TD_HOB,
        },
    }
    return {**tree, **changes}


def document(kind: str, measurement: bytes, *, extra: bytes = b"") -> tuple[dict[str, str], bytes]:
    """Return vm_config's object for a measurement, and the image hash, as the image build makes them."""
    line = f"{hashlib.sha256(measurement).hexdigest()}  measurement.{kind}.cbor\n".encode()
    sums = extra + line
    return (
        {"checksum_file": b64encode(sums).decode(), "measurement": b64encode(measurement).decode()},
        hashlib.sha256(sums).digest(),
    )


def config_text(kind: str, tree: Any, **fields: Any) -> str:
    carried, image = document(kind, cbor2.dumps(tree))
    return json.dumps({"os_image_hash": image.hex(), f"{kind}_measurement": carried, **fields})


def lite_text(tree: Any = None, **fields: Any) -> str:
    tree = tdx_tree() if tree is None else tree
    return config_text("tdx", tree, **{"tdx_attestation_variant": "lite", "memory_size": 2 * GIB, **fields})


def acpi_events() -> list[TdxEvent]:
    names = ("acpi-loader", "acpi-rsdp", "acpi-tables")
    return [
        TdxEvent(imr=0, event_type=10, digest=h48(name), event=name, event_payload=b"ACPI DATA")
        for name in names
    ]


def resource(kind: int, start: int, length: int) -> bytes:
    return pack("<HHI", 3, 48, 0) + bytes(16) + pack("<IIQQ", kind, 7, start, length)


def hob(base: int, resources: list[bytes]) -> bytes:
    end = base + 56 + 48 * len(resources) + 8
    return pack("<HHI", 1, 56, 0) + pack("<II", 9, 0) + bytes(32) + pack("<Q", end) + b"".join(resources)


FIRMWARE = [
    resource(7, 0, 0x10000),
    resource(0, 0x10000, 0x1000),
    resource(7, 0x11000, 0x1000),
    resource(0, 0x12000, 0x2000),
]
HOB_2_GIB = hob(0x12000, [*FIRMWARE, resource(7, 0x14000, 2 * GIB - 0x14000)])
HOB_2816_MIB = hob(
    0x12000, [*FIRMWARE, resource(7, 0x14000, 2 * GIB - 0x14000), resource(7, 4 * GIB, 0x3000_0000)]
)
HOB_4_GIB = hob(0x12000, [*FIRMWARE, resource(7, 0x14000, 2 * GIB - 0x14000), resource(7, 4 * GIB, 2 * GIB)])


def fold(*digests: bytes) -> bytes:
    register = bytes(48)
    for digest in digests:
        register = sha384(register + digest)
    return register


# The digests that both upstream fixtures log, as the spec lists them (measurement 4.3 and 4.7).
RTMR0_LOG = (
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790",
    "9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf72b42166fb70d50325e37b36f93537a863769bcf9bedae6fb",
    "6f2e3cbc14f9def86980f5f66fd85e99d63e69a73014ed8a5633ce56eca5b64b692108c56110e22acadcef58c3250f1b",
    "d607c0efb41c0d757d69bca0615c3a9ac0b1db06c557d992e906c6b7dee40e0e031640c7bfd7bcd35844ef9edeadc6f9",
    "08a74f8963b337acb6c93682f934496373679dd26af1089cb4eaf0c30cf260a12e814856385ab8843e56a9acea19e127",
    "18cc6e01f0c6ea99aa23f8a280423e94ad81d96d0aeb5180504fc0f7a40cb3619dd39bd6a95ec1680a86ed6ab0f9828d",
    "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
)
RTMR0_TAIL = (
    "1dd6f7b457ad880d840d41c961283bab688e94e4b59359ea45686581e90feccea3c624b1226113f824f315eb60ae0a7c",
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298",
)
RTMR1_LOG = (
    "77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada819d0a98988078d3d740f6346bfe0abaa938ca20439a8d71",
    "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
    "214b0bef1379756011344877743fdc2a5382bac6e70362d624ccf3f654407c1b4badf7d8f9295dd3dabdef65b27677e0",
    "0a2e01c85deae718a530ad8c6d20a84009babe6c8989269e950d8cf440c6e997695e64d455c4174a652cd080f6230b74",
)


def lite_quoted(hob_bytes: bytes = HOB_2_GIB, mrtd: str = "single") -> LiteRegisters:
    acpi = [event.digest for event in acpi_events()]
    return LiteRegisters(
        mrtd=h48(mrtd),
        rtmr0=fold(sha384(hob_bytes), *map(bytes.fromhex, RTMR0_LOG), *acpi, *map(bytes.fromhex, RTMR0_TAIL)),
        rtmr1=fold(h48("kernel"), *map(bytes.fromhex, RTMR1_LOG)),
        rtmr2=fold(h48("cmdline"), h48("initrd")),
    )
