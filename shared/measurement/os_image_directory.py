"""A dstack OS image's directory: what it must hold, and the documents that its files make (spec 4.1).

The image's name is the hash of its checksum list. A directory need not be whole: a cloud bundle lacks QEMU's
files, a verifier's bundle the root file system. What is missing is reported, and what is there must match.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256, sha384
from typing import BinaryIO, Final, Literal, Protocol

import msgspec

from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.measurement.boot_disk import GcpBootMeasurement, measure_boot_disk
from shared.measurement.documents import (
    MAX_MEASUREMENT_BYTES,
    SHA384_BYTES,
    AwsMeasurement,
    GcpMeasurement,
    Kind,
    encode_measurement,
    parse_aws_measurement,
    parse_gcp_measurement,
    parse_tdx_measurement,
)
from shared.measurement.images import AWS_BOOT_PCRS, aws_boot_pcr_digest
from shared.measurement.os_image import MAX_SUMS_BYTES, SUMS_NAME, os_image_hash, parse_sha256sums
from shared.measurement.tdvf import MAX_FIRMWARE_BYTES
from shared.measurement.tdx_prediction import TdxArtifacts, measure_tdx
from shared.strict_json import decode_json

METADATA_NAME: Final = "metadata.json"
DIGEST_NAME: Final = "digest.txt"
DISK_NAME: Final = "disk.raw"
UKI_DIGEST_NAME: Final = "auth_hash.txt"
AWS_REPLAY_NAME: Final = "measurement.aws.replay.json"

MAX_METADATA_BYTES: Final = 64 * 1024  # a real one has under 1 KB
MAX_REPLAY_BYTES: Final = 256 * 1024  # a real one has about 40 events of 150 bytes
MAX_REPLAY_EVENTS: Final = 512

_KINDS: Final[tuple[Kind, ...]] = ("tdx", "gcp", "aws")
_PARSERS: Final = {
    "tdx": parse_tdx_measurement,
    "gcp": parse_gcp_measurement,
    "aws": parse_aws_measurement,
}
_CHUNK: Final = 1 << 20
_TEXT_LINE: Final = 128
_FLAT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_VERSION: Final = re.compile(r"[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}(\.[A-Za-z0-9_-]{1,40})?")
_ROOTFS_HASH: Final = re.compile(r"(?:^| )dstack\.rootfs_hash=([0-9a-f]{64})(?= |$)")


class ImageFiles(Protocol):
    """The files of one directory, by plain names without a path."""

    def open(self, name: str) -> BinaryIO:
        """Open a file to read and seek; `FileNotFoundError` where there is none."""
        ...


class ImageMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """metadata.json: names of the image's files, and its kernel command line without QEMU's suffix.

    A field that it lacks is refused: a later image may say by it that its files are measured otherwise
    (measurement trap 9).
    """

    bios: str
    kernel: str
    cmdline: str
    initrd: str
    version: str
    rootfs: str | None = None
    git_revision: str | None = None
    shared_ro: bool = False
    is_dev: bool = False
    ovmf_variant: Literal["pre202505"] | None = None
    bios_sev: str | None = msgspec.field(name="bios-sev", default=None)
    hda: str | None = None
    rootfs_hash: str | None = None


class ImageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's directory says, all of it checked against the list whose hash names the image.

    `measurements` are the listed documents that are there, raw, by kind; those in `rebuilt` were made again
    from the image's files, and are equal. `absent` are listed files that the directory lacks. `boot` is what
    a vTPM measures of the boot disk, where that is there.
    """

    os_image_hash: bytes
    checksum_file: bytes
    metadata: ImageMetadata | None
    measurements: dict[Kind, bytes]
    rebuilt: tuple[Kind, ...]
    absent: tuple[str, ...]
    boot: GcpBootMeasurement | None


def check_image_directory(files: ImageFiles) -> ImageReport:
    """Read an image's directory, and check every file of it that its checksum list names.

    Steps: (1) the list and digest.txt, (2) the listed files, (3) metadata.json, (4) the documents, each
    rebuilt where its sources are there. Raises `InvalidEvidence`: `os_image.missing` (no list),
    `os_image.digest`, `os_image.file` (another one than the list names), `os_image.file_size`,
    `os_image.metadata.*`, `os_image.measurement` (a document that the files do not make, or whose UKI is not
    the disk's), `os_image.replay`, `os_image.sums.*`, `measurement.*`, and those of the readers: `pe.*`,
    `tdvf.*`, `kernel.*`, `gpt.*`, `fat.*`.
    """
    sums_raw = _read(files, SUMS_NAME, MAX_SUMS_BYTES)
    if sums_raw is None:
        raise InvalidEvidence("os_image.missing", f"directory has no {SUMS_NAME}")
    sums = parse_sha256sums(sums_raw)
    image = os_image_hash(sums_raw)
    _check_hex_file(files, DIGEST_NAME, image, "os_image.digest")
    absent = []
    for name, expected in sums.items():
        got = _digest(files, name)
        if got is None:
            absent.append(name)
        elif got != expected:
            raise InvalidEvidence(
                "os_image.file", f"{name} has sha256 {got.hex()}, the list says {expected.hex()}"
            )
    metadata_raw = _read(files, METADATA_NAME, MAX_METADATA_BYTES) if METADATA_NAME in sums else None
    metadata = None if metadata_raw is None else parse_metadata(metadata_raw)
    measurements: dict[Kind, bytes] = {}
    for kind in _KINDS:
        name = f"measurement.{kind}.cbor"
        if name in sums and (raw := _read(files, name, MAX_MEASUREMENT_BYTES)) is not None:
            _PARSERS[kind](raw)
            measurements[kind] = raw
    made, boot = measure_image(files, metadata)
    rebuilt = []
    for kind, raw in made.items():
        if kind in measurements:
            if measurements[kind] != raw:
                raise InvalidEvidence(
                    "os_image.measurement", f"measurement.{kind}.cbor is not what the image's files make"
                )
            rebuilt.append(kind)
    return ImageReport(
        os_image_hash=image,
        checksum_file=sums_raw,
        metadata=metadata,
        measurements=measurements,
        rebuilt=tuple(rebuilt),
        absent=tuple(absent),
        boot=boot,
    )


def measure_image(
    files: ImageFiles, metadata: ImageMetadata | None
) -> tuple[dict[Kind, bytes], GcpBootMeasurement | None]:
    """Return the documents that an image's files make, raw and by kind, and what its boot disk measures.

    `tdx` needs the three files that `metadata` names, `gcp` disk.raw, `aws` the replay file of the tool that
    predicts its registers. A kind whose sources are missing is left out. Raises as `check_image_directory`.
    """
    made: dict[Kind, bytes] = {}
    boot = None
    if metadata is not None and (tdx := _measure_tdx(files, metadata)) is not None:
        made["tdx"] = tdx
    with ExitStack() as opened:
        disk = _open(files, DISK_NAME, opened)
        if disk is not None:
            boot = measure_boot_disk(disk)
            _check_hex_file(files, UKI_DIGEST_NAME, boot.uki_auth, "os_image.measurement")
            made["gcp"] = encode_measurement(GcpMeasurement(boot.uki_auth))
    replay = _read(files, AWS_REPLAY_NAME, MAX_REPLAY_BYTES)
    if replay is not None:
        made["aws"] = encode_measurement(AwsMeasurement(aws_boot_pcr_digest(replay_boot_pcrs(replay))))
    return made, boot


def finish_image(files: ImageFiles) -> dict[str, bytes]:
    """Return the files that complete an image's directory, by name: documents, checksum list, digest.txt.

    The directory holds the built files and metadata.json. Raises `InvalidEvidence`: `os_image.missing` for
    one of the four that every image has, and as `check_image_directory`.
    """
    raw = _read(files, METADATA_NAME, MAX_METADATA_BYTES)
    if raw is None:
        raise InvalidEvidence("os_image.missing", f"directory has no {METADATA_NAME}")
    metadata = parse_metadata(raw)
    made, boot = measure_image(files, metadata)
    documents = {f"measurement.{kind}.cbor": document for kind, document in made.items()}
    digests: dict[str, bytes] = {}
    for name in (metadata.bios, metadata.kernel, metadata.initrd, METADATA_NAME):
        digest = _digest(files, name)
        if digest is None:
            raise InvalidEvidence("os_image.missing", f"directory has no {name}")
        digests[name] = digest
    for name in (
        "measurement.tdx.cbor",
        "measurement.snp.cbor",
        "measurement.gcp.cbor",
        "measurement.aws.cbor",
        AWS_REPLAY_NAME,
    ):
        made_here = documents.get(name)
        digest = _digest(files, name) if made_here is None else sha256(made_here).digest()
        if digest is not None:
            digests[name] = digest
    listed = checksum_list(digests)
    finished = {
        **documents,
        SUMS_NAME: listed,
        DIGEST_NAME: os_image_hash(listed).hex().encode() + b"\n",
    }
    if boot is not None:
        finished[UKI_DIGEST_NAME] = boot.uki_auth.hex().encode() + b"\n"
    return finished


def checksum_list(digests: Mapping[str, bytes]) -> bytes:
    """Return sha256sum.txt for these files, in the mapping's order, which is part of the image's hash."""
    return "".join(f"{digest.hex()}  {name}\n" for name, digest in digests.items()).encode()


def parse_metadata(raw: bytes) -> ImageMetadata:
    """Read metadata.json.

    Raises `InvalidEvidence`: `os_image.metadata.size`, `.syntax`, `.duplicate_key`, `.depth`, `.field` (a
    field that is missing, of another type, or not known), `.name` (a file that is not named plainly),
    `.version`, `.cmdline` (without `dstack.rootfs_hash` and 64 hex digits).
    """
    document = _json(raw, METADATA_NAME, "os_image.metadata", MAX_METADATA_BYTES)
    try:
        metadata = msgspec.convert(document, ImageMetadata)
    except ValueError as error:  # msgspec's own, or a lone surrogate where it wanted a known word
        raise InvalidEvidence(
            "os_image.metadata.field", f"{METADATA_NAME} does not fit its fields: {_shown(error)}"
        ) from error
    names = (metadata.bios, metadata.kernel, metadata.initrd, metadata.rootfs, metadata.bios_sev)
    if any(name is not None and not _FLAT_NAME.fullmatch(name) for name in names):
        raise InvalidEvidence("os_image.metadata.name", f"{METADATA_NAME} names a file by more than a name")
    if not _VERSION.fullmatch(metadata.version):
        raise InvalidEvidence(
            "os_image.metadata.version", f"version is {metadata.version!r:.60}, expected MAJOR.MINOR.PATCH"
        )
    if len(_ROOTFS_HASH.findall(metadata.cmdline)) != 1:
        raise InvalidEvidence("os_image.metadata.cmdline", "the command line has not one dstack.rootfs_hash")
    return metadata


class _ReplayEvent(msgspec.Struct, frozen=True):
    pcr: int
    digest: str
    event_type: int | str


class _Replay(msgspec.Struct, frozen=True):
    version: Literal[1]
    events: list[_ReplayEvent]
    pcr4: str
    pcr7: str
    pcr12: str


def replay_boot_pcrs(raw: bytes) -> dict[int, bytes]:
    """Return PCR4, PCR7 and PCR12 (48 bytes each) of measurement.aws.replay.json, replayed from its events.

    Raises `InvalidEvidence("os_image.replay")` for another form, over 512 events, or registers that the
    events do not make, and `os_image.replay.*` for its JSON.
    """
    document = _json(raw, AWS_REPLAY_NAME, "os_image.replay", MAX_REPLAY_BYTES)
    try:
        replay = msgspec.convert(document, _Replay)
        if len(replay.events) > MAX_REPLAY_EVENTS:
            raise InvalidEvidence("os_image.replay", f"{AWS_REPLAY_NAME} has {len(replay.events)} events")
        pcrs = dict.fromkeys(AWS_BOOT_PCRS, bytes(SHA384_BYTES))
        for event in replay.events:
            digest = _digest_of(event.digest)
            if event.pcr in pcrs:
                pcrs[event.pcr] = sha384(pcrs[event.pcr] + digest).digest()
        stated = {4: _digest_of(replay.pcr4), 7: _digest_of(replay.pcr7), 12: _digest_of(replay.pcr12)}
    except (ValueError, ProtocolError) as error:
        raise InvalidEvidence(
            "os_image.replay", f"{AWS_REPLAY_NAME} does not fit its fields: {_shown(error)}"
        ) from error
    if stated != pcrs:
        raise InvalidEvidence("os_image.replay", f"the events of {AWS_REPLAY_NAME} do not make its registers")
    return pcrs


def _digest_of(text: str) -> bytes:
    return decode_hex(text, what="a digest", length=SHA384_BYTES, prefix=False)


def _measure_tdx(files: ImageFiles, metadata: ImageMetadata) -> bytes | None:
    with ExitStack() as opened:
        firmware = _read(files, metadata.bios, MAX_FIRMWARE_BYTES)
        kernel, initrd = (_open(files, name, opened) for name in (metadata.kernel, metadata.initrd))
        if firmware is None or kernel is None or initrd is None:
            return None
        return encode_measurement(measure_tdx(TdxArtifacts(firmware, kernel, initrd, metadata.cmdline)))


def _open(files: ImageFiles, name: str, opened: ExitStack) -> BinaryIO | None:
    try:
        return opened.enter_context(files.open(name))
    except FileNotFoundError:
        return None


def _read(files: ImageFiles, name: str, limit: int) -> bytes | None:
    with ExitStack() as opened:
        file = _open(files, name, opened)
        if file is None:
            return None
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise InvalidEvidence("os_image.file_size", f"{name} has over {limit} bytes")
    return raw


def _digest(files: ImageFiles, name: str) -> bytes | None:
    with ExitStack() as opened:
        file = _open(files, name, opened)
        if file is None:
            return None
        digest = sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def _check_hex_file(files: ImageFiles, name: str, expected: bytes, code: str) -> None:
    """Compare a file of one line of hex, where it is there."""
    raw = _read(files, name, _TEXT_LINE)
    if raw is not None and raw != expected.hex().encode() + b"\n":
        raise InvalidEvidence(code, f"{name} does not hold {expected.hex()} and a line's end")


def _json(raw: bytes, what: str, code: str, max_bytes: int) -> object:
    try:
        return decode_json(raw, what=what, code=code, max_bytes=max_bytes, max_depth=4)
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error


def _shown(error: Exception) -> str:
    return str(error)[:160].encode("ascii", "replace").decode()
