import io
import json
from hashlib import sha256, sha384
from typing import Any, BinaryIO

import cbor2
import msgspec
import pytest

from shared.measurement.boot_disk import gcp_boot_disk
from shared.measurement.documents import parse_tdx_measurement
from shared.measurement.os_image_directory import (
    check_image_directory,
    checksum_list,
    finish_image,
    measure_image,
    parse_metadata,
    replay_boot_pcrs,
)
from shared.measurement.tdx_prediction import TdxArtifacts, measure_tdx
from tests.shared.measurement.made_disks import CMDLINE, make_firmware, make_kernel, make_uki, pe_digest
from tests.shared.refusal import refuses

UKI = make_uki()
METADATA = {
    "bios": "ovmf.fd",
    "kernel": "bzImage",
    "cmdline": CMDLINE,
    "initrd": "initramfs.cpio.gz",
    "rootfs": "rootfs.img.parted.verity",
    "version": "0.6.0",
    "git_revision": "0" * 40,
    "shared_ro": True,
    "ovmf_variant": "pre202505",
}
QEMU_FILES = {
    "ovmf.fd": make_firmware(),
    "bzImage": make_kernel(),
    "initramfs.cpio.gz": b"initrd" * 1000,
    "metadata.json": json.dumps(METADATA).encode(),
}


def replay(**changes: Any) -> bytes:
    events = [
        {"pcr": pcr, "event_type": kind, "digest": sha384(f"{pcr}{kind}".encode()).hexdigest()}
        for pcr, kind in ((4, 4), (7, "EV_SEPARATOR"), (4, 5), (12, 1), (11, 9))
    ]
    document = {"version": 1, "events": events}
    for pcr in (4, 7, 12):
        register = bytes(48)
        for event in events:
            if event["pcr"] == pcr:
                register = sha384(register + bytes.fromhex(str(event["digest"]))).digest()
        document[f"pcr{pcr}"] = register.hex()
    return json.dumps({**document, **changes}).encode()


class Files(dict[str, bytes]):
    """A directory in memory, and every handle that was opened of it."""

    handles: list[BinaryIO]

    def open(self, name: str) -> BinaryIO:
        if name not in self:
            raise FileNotFoundError(name)
        handle = io.BytesIO(self[name])
        self.__dict__.setdefault("handles", []).append(handle)
        return handle


@pytest.fixture(scope="module")
def disk() -> bytes:
    return b"".join(gcp_boot_disk(io.BytesIO(UKI), io.BytesIO(b"rootfs")).chunks())


def qemu_image(**changes: bytes) -> Files:
    files = Files({**QEMU_FILES, **changes})
    files.update(finish_image(files))
    return files


@pytest.fixture(scope="module")
def whole(disk: bytes) -> Files:
    """Return a finished image with everything that an image may have."""
    files = Files(
        {
            **QEMU_FILES,
            "disk.raw": disk,
            "measurement.aws.replay.json": replay(),
            "measurement.snp.cbor": b"snp",
        }
    )
    files.update(finish_image(files))
    return files


def changed(whole: Files, **changes: bytes | None) -> Files:
    """Return the image with other files; a file of None is taken away. Underscores stand for dots."""
    files = Files(whole)
    for name, data in changes.items():
        place = name.replace("__", ".")
        if data is None:
            del files[place]
        else:
            files[place] = data
    return files


def relisted(files: Files, **changes: bytes) -> Files:
    """Return an image whose list and digest.txt belong to the changed files."""
    made = changed(files, **changes)
    names = [line.split()[1].decode() for line in files["sha256sum.txt"].splitlines()]
    made["sha256sum.txt"] = checksum_list({name: sha256(made[name]).digest() for name in names})
    made["digest.txt"] = sha256(made["sha256sum.txt"]).hexdigest().encode() + b"\n"
    return made


def test_a_finished_image_holds(whole: Files) -> None:
    report = check_image_directory(whole)
    assert report.os_image_hash == sha256(whole["sha256sum.txt"]).digest()
    assert report.checksum_file == whole["sha256sum.txt"]
    assert report.rebuilt == ("tdx", "gcp", "aws")
    assert report.measurements == {kind: whole[f"measurement.{kind}.cbor"] for kind in ("tdx", "gcp", "aws")}
    assert report.absent == ()
    assert report.metadata is not None
    assert report.metadata.version == "0.6.0"
    assert report.boot is not None
    assert report.boot.uki_auth == pe_digest(UKI, "sha256")
    assert all(handle.closed for handle in whole.handles)


def test_the_list_has_the_order_that_images_have(whole: Files) -> None:
    names = [line.split(b"  ")[1].decode() for line in whole["sha256sum.txt"].splitlines()]
    assert names == [
        "ovmf.fd",
        "bzImage",
        "initramfs.cpio.gz",
        "metadata.json",
        "measurement.tdx.cbor",
        "measurement.snp.cbor",
        "measurement.gcp.cbor",
        "measurement.aws.cbor",
        "measurement.aws.replay.json",
    ]
    assert whole["sha256sum.txt"].startswith(
        sha256(QEMU_FILES["ovmf.fd"]).hexdigest().encode() + b"  ovmf.fd\n"
    )


def test_digest_and_uki_hash_are_lines_of_hex(whole: Files) -> None:
    assert whole["digest.txt"] == sha256(whole["sha256sum.txt"]).hexdigest().encode() + b"\n"
    assert whole["auth_hash.txt"] == pe_digest(UKI, "sha256").hex().encode() + b"\n"


def test_the_documents_are_those_of_the_files(whole: Files) -> None:
    kernel, initrd = (io.BytesIO(QEMU_FILES[name]) for name in ("bzImage", "initramfs.cpio.gz"))
    expected = measure_tdx(TdxArtifacts(QEMU_FILES["ovmf.fd"], kernel, initrd, CMDLINE))
    assert parse_tdx_measurement(whole["measurement.tdx.cbor"]) == expected
    assert cbor2.loads(whole["measurement.gcp.cbor"]) == {"version": 1, "uki_auth": pe_digest(UKI, "sha256")}
    pcrs = json.loads(replay())
    registers = b"".join(bytes.fromhex(pcrs[name]) for name in ("pcr4", "pcr7", "pcr12"))
    assert cbor2.loads(whole["measurement.aws.cbor"]) == {"boot_pcr_digest": sha256(registers).digest()}


def test_an_image_for_qemu_alone_has_no_other_document() -> None:
    files = qemu_image()
    report = check_image_directory(files)
    assert report.rebuilt == ("tdx",)
    assert report.boot is None
    assert "auth_hash.txt" not in files


def test_a_cloud_bundle_lacks_files_and_says_so(whole: Files) -> None:
    report = check_image_directory(
        changed(whole, ovmf__fd=None, bzImage=None, metadata__json=None, digest__txt=None)
    )
    assert report.absent == ("ovmf.fd", "bzImage", "metadata.json")
    assert report.metadata is None
    assert report.rebuilt == ("gcp", "aws")


@pytest.mark.parametrize("name", ["ovmf__fd", "bzImage", "initramfs__cpio__gz"])
def test_the_tdx_document_is_not_rebuilt_from_less_than_all_its_files(whole: Files, name: str) -> None:
    report = check_image_directory(changed(whole, **{name: None}))
    assert report.rebuilt == ("gcp", "aws")
    assert "tdx" in report.measurements


def test_a_document_that_the_image_lacks_is_not_made_up() -> None:
    listed = checksum_list({name: sha256(data).digest() for name, data in QEMU_FILES.items()})
    report = check_image_directory(Files({**QEMU_FILES, "sha256sum.txt": listed}))
    assert report.measurements == {}
    assert report.rebuilt == ()


def test_metadata_that_is_not_listed_is_not_believed() -> None:
    listed = checksum_list({"bzImage": sha256(QEMU_FILES["bzImage"]).digest()})
    assert check_image_directory(Files({**QEMU_FILES, "sha256sum.txt": listed})).metadata is None


def test_a_document_shipped_without_its_sources_is_bound_by_the_list_alone(whole: Files) -> None:
    report = check_image_directory(
        changed(whole, disk__raw=None, auth_hash__txt=None, measurement__aws__replay__json=None)
    )
    assert report.rebuilt == ("tdx",)
    assert set(report.measurements) == {"tdx", "gcp", "aws"}


def test_refuses_a_directory_without_a_list() -> None:
    with refuses("os_image.missing"):
        check_image_directory(Files(QEMU_FILES))


@pytest.mark.parametrize("text", [b"00" * 32 + b"\n", b"", b"x" * 200])
def test_refuses_another_digest(whole: Files, text: bytes) -> None:
    with refuses("os_image.file_size" if len(text) > 128 else "os_image.digest"):
        check_image_directory(changed(whole, digest__txt=text))


@pytest.mark.parametrize("name", ["ovmf.fd", "bzImage", "metadata.json", "measurement.tdx.cbor"])
def test_refuses_a_file_that_is_not_the_listed_one(whole: Files, name: str) -> None:
    with refuses("os_image.file"):
        check_image_directory(changed(whole, **{name: whole[name] + b"\n"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"bzImage": make_kernel(extended=0)},
        {"initramfs__cpio__gz": b"another"},
        {"metadata__json": json.dumps({**METADATA, "cmdline": CMDLINE + " debug"}).encode()},
        {"measurement__gcp__cbor": cbor2.dumps({"version": 1, "uki_auth": bytes(32)})},
        {"measurement__aws__cbor": cbor2.dumps({"boot_pcr_digest": bytes(32)})},
        {"auth_hash__txt": b"00" * 32 + b"\n"},
    ],
)
def test_n19_refuses_a_document_that_the_files_do_not_make(whole: Files, changes: dict[str, bytes]) -> None:
    with refuses("os_image.measurement"):
        check_image_directory(relisted(whole, **changes))


def test_refuses_a_document_that_is_none(whole: Files) -> None:
    with refuses("measurement.format"):
        check_image_directory(relisted(whole, measurement__gcp__cbor=cbor2.dumps({"version": 1})))


def test_refuses_a_list_over_its_limit() -> None:
    with refuses("os_image.file_size"):
        check_image_directory(Files({"sha256sum.txt": bytes(1 << 17)}))


@pytest.mark.parametrize("name", ["metadata.json", "bzImage", "ovmf.fd", "initramfs.cpio.gz"])
def test_an_image_is_not_finished_without_what_every_image_has(name: str) -> None:
    with refuses("os_image.missing"):
        finish_image(Files({other: data for other, data in QEMU_FILES.items() if other != name}))


def test_nothing_is_measured_of_an_empty_directory() -> None:
    assert measure_image(Files(), None) == ({}, None)


def test_metadata_keeps_what_it_says() -> None:
    metadata = parse_metadata(json.dumps({**METADATA, "bios-sev": "ovmf-sev.fd", "is_dev": True}).encode())
    assert metadata.is_dev
    assert metadata.bios_sev == "ovmf-sev.fd"
    assert not parse_metadata(json.dumps(METADATA).encode()).is_dev


@pytest.mark.parametrize("version", ["0.5.4", "0.5.4.1", "10.20.30.rc-1"])
def test_versions_have_three_numbers_and_a_suffix(version: str) -> None:
    assert parse_metadata(json.dumps({**METADATA, "version": version}).encode()).version == version


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("field", {"kernel_header_normalized": True}),
        ("field", {"is_dev": "no"}),
        ("field", {"ovmf_variant": "post202505"}),
        ("field", {"ovmf_variant": "\ud800"}),
        ("field", {"bios": None}),
        ("name", {"bios": "../ovmf.fd"}),
        ("name", {"kernel": "/bzImage"}),
        ("name", {"initrd": ""}),
        ("name", {"bios-sev": "a/b"}),
        ("version", {"version": "0.5"}),
        ("version", {"version": "0.5.4-rc\n"}),
        ("cmdline", {"cmdline": "console=ttyS0"}),
        ("cmdline", {"cmdline": "dstack.rootfs_hash=abc"}),
        ("cmdline", {"cmdline": f"{CMDLINE} {CMDLINE}"}),
    ],
)
def test_refuses_metadata_that_is_not_known(code: str, change: dict[str, Any]) -> None:
    with refuses(f"os_image.metadata.{code}"):
        parse_metadata(json.dumps({**METADATA, **change}).encode())


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("syntax", b"{"),
        ("duplicate_key", b'{"bios":"a","bios":"b"}'),
        ("size", b" " * (64 * 1024 + 1)),
        ("depth", b"[[[[[[]]]]]]"),
    ],
)
def test_refuses_metadata_that_is_no_json(code: str, raw: bytes) -> None:
    with refuses(f"os_image.metadata.{code}"):
        parse_metadata(raw)


def test_metadata_must_be_an_object() -> None:
    with refuses("os_image.metadata.field"):
        parse_metadata(b"[]")


def test_registers_follow_from_their_events() -> None:
    pcrs = replay_boot_pcrs(replay())
    assert {f"pcr{pcr}": value.hex() for pcr, value in pcrs.items()}.items() <= json.loads(replay()).items()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"pcr4": "00" * 48},
        {"pcr7": "00"},
        {"pcr12": "zz"},
        {"events": []},
        {"events": [{"pcr": 4, "event_type": 1, "digest": "00"}]},
        {"events": [{"pcr": "4", "event_type": 1, "digest": "00" * 48}]},
        {"events": [{"pcr": 3, "event_type": 1, "digest": "00" * 48}] * 513},
    ],
)
def test_refuses_a_replay_that_does_not_hold(changes: dict[str, Any]) -> None:
    with refuses("os_image.replay"):
        replay_boot_pcrs(replay(**changes))


def test_refuses_a_replay_that_is_no_json() -> None:
    with refuses("os_image.replay.syntax"):
        replay_boot_pcrs(b"")


def test_reports_are_values(whole: Files) -> None:
    assert msgspec.structs.asdict(check_image_directory(whole)) == msgspec.structs.asdict(
        check_image_directory(whole)
    )
