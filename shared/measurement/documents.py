"""Measurement documents: what an OS image will measure on one platform (spec attestation 5.3, 7.5, 7.6).

A document is `measurement.<kind>.cbor` together with the checksum list that names it. The list's hash is the
os_image_hash, so a document that passes `bound_measurement` says what the named image says, whoever sent it.
The readers take one spelling only; the writers produce it byte for byte as the image build does.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from hashlib import sha256
from typing import Final, Literal, NoReturn

import msgspec

from shared.attestation.cbor import Value, decode_strict
from shared.errors import InvalidEvidence
from shared.measurement.os_image import os_image_hash, parse_sha256sums

Kind = Literal["tdx", "gcp", "aws"]

MAX_MEASUREMENT_BYTES: Final = 4096  # the largest real one, tdx, has about 400
SHA256_BYTES: Final = 32
SHA384_BYTES: Final = 48
# Name of the one firmware layout that RTMR0 can be rebuilt for.
OVMF_PRE202505: Final = "pre202505"

_TDX_VERSION: Final = 3
_GCP_VERSION: Final = 1


class MeasurementDocument(msgspec.Struct, frozen=True):
    """The two files, raw: the image's sha256sum.txt and its measurement.<kind>.cbor."""

    checksum_file: bytes
    measurement: bytes

    @property
    def os_image_hash(self) -> bytes:
        """The 32-byte hash of the image that this document belongs to."""
        return os_image_hash(self.checksum_file)


class TdxMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """measurement.tdx.cbor: 48-byte SHA-384 digests and the firmware's memory ranges (`td_hob`, packed)."""

    cmdline_sha384: bytes
    kernel_authenticode: bytes
    initrd_sha384: bytes
    mrtd_single_pass: bytes
    mrtd_two_pass: bytes
    td_hob: bytes
    ovmf: str = OVMF_PRE202505


class GcpMeasurement(msgspec.Struct, frozen=True):
    """measurement.gcp.cbor: the 32-byte Authenticode SHA-256 of the unified kernel image."""

    uki_auth: bytes


class AwsMeasurement(msgspec.Struct, frozen=True):
    """measurement.aws.cbor: the 32-byte SHA-256 of PCR4, PCR7 and PCR12."""

    boot_pcr_digest: bytes


def document_from_base64(checksum_file: str, measurement: str) -> MeasurementDocument:
    """Return the document of vm_config's two base64 texts; `InvalidEvidence("measurement.base64")`."""
    return MeasurementDocument(
        _from_base64(checksum_file, "checksum_file"), _from_base64(measurement, "measurement")
    )


def document_to_base64(document: MeasurementDocument) -> dict[str, str]:
    """Return the JSON object that vm_config carries for `document`."""
    return {
        "checksum_file": b2a_base64(document.checksum_file, newline=False).decode(),
        "measurement": b2a_base64(document.measurement, newline=False).decode(),
    }


def bound_measurement(document: MeasurementDocument | None, kind: Kind, image: bytes) -> bytes:
    """Return the bytes of measurement.<kind>.cbor once `image`, the os_image_hash, vouches for them.

    Raises `InvalidEvidence`: `measurement.missing` (no document), `measurement.size`,
    `measurement.os_image_hash` (the checksum list is another image's), `measurement.entry` (the list does not
    name the file), `measurement.checksum` (the list names other bytes), or `os_image.sums.*`.
    """
    name = f"measurement.{kind}.cbor"
    if document is None:
        raise InvalidEvidence("measurement.missing", f"vm_config has no {kind}_measurement, expected one")
    if len(document.measurement) > MAX_MEASUREMENT_BYTES:
        raise InvalidEvidence(
            "measurement.size",
            f"{name} has {len(document.measurement)} bytes, expected at most {MAX_MEASUREMENT_BYTES}",
        )
    if (got := document.os_image_hash) != image:
        raise InvalidEvidence(
            "measurement.os_image_hash",
            f"the checksum file belongs to image {got.hex()}, expected {image.hex() or 'no image'}",
        )
    expected = parse_sha256sums(document.checksum_file).get(name)
    if expected is None:
        raise InvalidEvidence("measurement.entry", f"the checksum file does not list {name}")
    if (digest := sha256(document.measurement).digest()) != expected:
        raise InvalidEvidence(
            "measurement.checksum",
            f"{name} has sha256 {digest.hex()}, the checksum file says {expected.hex()}",
        )
    return document.measurement


def parse_tdx_measurement(raw: bytes) -> TdxMeasurement:
    """Read measurement.tdx.cbor, version 3.

    Raises `InvalidEvidence`: `measurement.format` (not these maps with exactly these keys),
    `measurement.version`, `measurement.ovmf`, `measurement.length`, or `cbor.*`.
    """
    top = _fields(decode_strict(raw), "measurement", "version", "image", "tdvf")
    _check_version(top["version"], _TDX_VERSION)
    image = _fields(top["image"], "image", "cmdline_sha384", "kernel_authenticode", "initrd_sha384")
    tdvf = _fields(top["tdvf"], "tdvf", "ovmf", "mrtd", "td_hob")
    if tdvf["ovmf"] != OVMF_PRE202505:
        raise InvalidEvidence(
            "measurement.ovmf", f"ovmf is {tdvf['ovmf']!r:.80}, expected {OVMF_PRE202505!r}"
        )
    mrtd = _fields(tdvf["mrtd"], "mrtd", "single_pass", "two_pass")
    td_hob = tdvf["td_hob"]
    if not isinstance(td_hob, bytes):
        _refuse_type("td_hob")
    return TdxMeasurement(
        cmdline_sha384=_digest(image, "cmdline_sha384", SHA384_BYTES),
        kernel_authenticode=_digest(image, "kernel_authenticode", SHA384_BYTES),
        initrd_sha384=_digest(image, "initrd_sha384", SHA384_BYTES),
        mrtd_single_pass=_digest(mrtd, "single_pass", SHA384_BYTES),
        mrtd_two_pass=_digest(mrtd, "two_pass", SHA384_BYTES),
        td_hob=td_hob,
    )


def parse_gcp_measurement(raw: bytes) -> GcpMeasurement:
    """Read measurement.gcp.cbor, version 1; raises as `parse_tdx_measurement` does."""
    top = _fields(decode_strict(raw), "measurement", "version", "uki_auth")
    _check_version(top["version"], _GCP_VERSION)
    return GcpMeasurement(_digest(top, "uki_auth", SHA256_BYTES))


def parse_aws_measurement(raw: bytes) -> AwsMeasurement:
    """Read measurement.aws.cbor, which has no version; raises as `parse_tdx_measurement` does."""
    top = _fields(decode_strict(raw), "measurement", "boot_pcr_digest")
    return AwsMeasurement(_digest(top, "boot_pcr_digest", SHA256_BYTES))


def encode_measurement(measurement: TdxMeasurement | GcpMeasurement | AwsMeasurement) -> bytes:
    """Write a measurement as the image build does: definite lengths, keys in the spec's order (trap 16)."""
    if isinstance(measurement, GcpMeasurement):
        return _map(("version", _uint(_GCP_VERSION)), ("uki_auth", _bytes(measurement.uki_auth)))
    if isinstance(measurement, AwsMeasurement):
        return _map(("boot_pcr_digest", _bytes(measurement.boot_pcr_digest)))
    image = _map(
        ("cmdline_sha384", _bytes(measurement.cmdline_sha384)),
        ("kernel_authenticode", _bytes(measurement.kernel_authenticode)),
        ("initrd_sha384", _bytes(measurement.initrd_sha384)),
    )
    mrtd = _map(
        ("single_pass", _bytes(measurement.mrtd_single_pass)),
        ("two_pass", _bytes(measurement.mrtd_two_pass)),
    )
    tdvf = _map(("ovmf", _text(measurement.ovmf)), ("mrtd", mrtd), ("td_hob", _bytes(measurement.td_hob)))
    return _map(("version", _uint(_TDX_VERSION)), ("image", image), ("tdvf", tdvf))


def tdx_measurement_document(measurement: TdxMeasurement) -> tuple[bytes, bytes, bytes]:
    """Return (checksum_file, measurement, os_image_hash) of an image that consists of this document alone."""
    return _single_file_image("tdx", encode_measurement(measurement))


def gcp_measurement_document(uki_auth: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (checksum_file, measurement, os_image_hash) for a unified kernel image's 32-byte digest."""
    return _single_file_image("gcp", encode_measurement(GcpMeasurement(uki_auth)))


def aws_measurement_document(boot_pcr_digest: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (checksum_file, measurement, os_image_hash) for the 32-byte digest of the boot registers."""
    return _single_file_image("aws", encode_measurement(AwsMeasurement(boot_pcr_digest)))


def _single_file_image(kind: Kind, measurement: bytes) -> tuple[bytes, bytes, bytes]:
    checksum_file = f"{sha256(measurement).hexdigest()}  measurement.{kind}.cbor\n".encode()
    return checksum_file, measurement, os_image_hash(checksum_file)


def _from_base64(text: str, what: str) -> bytes:
    """Decode standard base64 with padding; a second spelling of the same bytes is refused."""
    try:
        raw = a2b_base64(text, strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise InvalidEvidence("measurement.base64", f"{what} is not standard base64") from error
    if b2a_base64(raw, newline=False).decode() != text:
        raise InvalidEvidence("measurement.base64", f"{what} is not in base64's canonical form")
    return raw


def _fields(value: Value, what: str, *names: str) -> dict[int | str, Value]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise InvalidEvidence("measurement.format", f"{what} is not a map of exactly {', '.join(names)}")
    return value


def _check_version(got: Value, expected: int) -> None:
    if type(got) is not int or got != expected:  # true equals 1, and is no version
        raise InvalidEvidence(
            "measurement.version", f"measurement version is {got!r:.80}, expected {expected}"
        )


def _digest(fields: dict[int | str, Value], name: str, length: int) -> bytes:
    value = fields[name]
    if not isinstance(value, bytes):
        _refuse_type(name)
    if len(value) != length:
        raise InvalidEvidence("measurement.length", f"{name} has {len(value)} bytes, expected {length}")
    return value


def _refuse_type(name: str) -> NoReturn:
    raise InvalidEvidence("measurement.format", f"{name} is not a byte string")


def _map(*entries: tuple[str, bytes]) -> bytes:
    return _head(5, len(entries)) + b"".join(_text(name) + value for name, value in entries)


def _uint(value: int) -> bytes:
    return _head(0, value)


def _bytes(value: bytes) -> bytes:
    return _head(2, len(value)) + value


def _text(value: str) -> bytes:
    return _head(3, len(value)) + value.encode()


def _head(major: int, argument: int) -> bytes:
    """Return the shortest CBOR head (RFC 8949 section 3) of a small argument: ours stay below 64 KiB."""
    if argument < 24:
        return bytes([major << 5 | argument])
    if argument < 256:
        return bytes([major << 5 | 24, argument])
    return bytes([major << 5 | 25]) + argument.to_bytes(2, "big")
