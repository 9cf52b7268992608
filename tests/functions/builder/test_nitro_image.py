"""Images that are built: what is in them, what measures them, and where they are not built."""

import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from functions.builder.cache import BuildCache
from functions.builder.sources import OciLayoutSource, SaveTarSource
from shared.compose.enclave_toml import MAX_ENCLAVE_TOML
from shared.errors import DstackError, InvalidEvidence, ProtocolError, StorageError
from shared.measurement.eif import measure_eif, read_eif
from shared.measurement.eif_registers import extended
from tests.functions.builder.building import BOOT, blob, build, build_layers, ramdisk
from tests.shared.measurement.image_making import (
    SMALL_LAYERS,
    Layout,
    directory,
    file,
    layer_tar,
    save_tar,
    special,
    symlink,
)


def code_of(call: Callable[[], object], kind: type[DstackError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


def test_the_image_s_files_are_below_rootfs(tmp_path: Path) -> None:
    found = ramdisk(build_layers(tmp_path, *SMALL_LAYERS).path)
    assert {path: data for path, (entry, data) in found.items() if stat.S_ISREG(entry.mode)} == {
        "rootfs/etc/motd": b"hello again\n",
        "rootfs/etc/motd.link": b"hello again\n",
        "rootfs/srv/data/number": b"7",
        "rootfs/usr/bin/app": b"#!/bin/sh\n" * 300,
        "cmd": b"/app\nserve\n",
        "env": b"PATH=/usr/bin:/bin\n",
    }
    assert found["rootfs/app"][1] == b"usr/bin/app"
    assert "rootfs/etc/secret" not in found


def test_modes_and_owners_are_the_image_s_and_times_the_epoch_s(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    found = ramdisk(build(layout, tmp_path, epoch=1234).path)
    motd, tmp = found["rootfs/etc/motd"][0], found["rootfs/tmp"][0]
    assert (motd.uid, motd.gid, motd.mode) == (1000, 1000, 0o100644)
    assert tmp.mode == 0o041777
    assert {entry.mtime for entry, _ in found.values()} == {1234}


def test_what_init_mounts_over_is_there(tmp_path: Path) -> None:
    found = ramdisk(build_layers(tmp_path, layer_tar(file("app"))).path)
    assert {f"rootfs/{name}" for name in ("dev", "proc", "run", "sys", "tmp", "var")} <= found.keys()


def test_the_bootstrap_is_aws_s_layout(tmp_path: Path) -> None:
    found = ramdisk(build_layers(tmp_path, *SMALL_LAYERS).path, -2)
    assert list(found) == ["dev", "init", "nsm.ko"]
    assert found["init"][1] == BOOT.init.content


def test_the_measurement_is_the_file_s(tmp_path: Path) -> None:
    built = build_layers(tmp_path, *SMALL_LAYERS)
    with built.path.open("rb") as image:
        assert measure_eif(image) == built.measurement


def test_a_changed_byte_changes_pcr0_and_pcr2_alone(tmp_path: Path) -> None:
    one = build_layers(tmp_path / "1", layer_tar(file("app", b"a"))).measurement
    two = build_layers(tmp_path / "2", layer_tar(file("app", b"b"))).measurement
    assert one.pcr1 == two.pcr1
    assert one.pcr0 != two.pcr0
    assert one.pcr2 != two.pcr2


@pytest.mark.parametrize("kind", ["pipe", "link", "owner", "mode"])
def test_metadata_of_files_is_measured(tmp_path: Path, kind: str) -> None:
    changed = {
        "pipe": special("app", tarfile.FIFOTYPE),
        "link": symlink("app", "x"),
        "owner": file("app", b"x", uid=1),
        "mode": file("app", b"x", mode=0o755),
    }[kind]
    one = build_layers(tmp_path / "1", layer_tar(file("app", b"x")))
    two = build_layers(tmp_path / "2", layer_tar(changed))
    assert one.measurement.pcr2 != two.measurement.pcr2


def test_the_metadata_name_the_builder_and_the_digests(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS)
    built = build(layout.write(tmp_path / "layout"), tmp_path, name="shop")
    with built.path.open("rb") as image:
        metadata = read_eif(image).metadata
    assert metadata.image_name == "shop"
    assert metadata.docker_info is None
    assert metadata.build_metadata.build_time == "1970-01-01T00:00:00+00:00"
    assert metadata.build_metadata.build_tool == "dstack-cloud"
    assert metadata.custom_metadata["oci_manifest"] == layout.root


def test_metadata_are_not_measured(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    one, two = (build(layout, tmp_path / name, name=name) for name in ("one", "two"))
    assert one.measurement.os_image_hash == two.measurement.os_image_hash
    assert one.path.read_bytes() != two.path.read_bytes()


def test_what_the_image_says_of_its_enclave_is_found_and_no_link_is_followed(tmp_path: Path) -> None:
    text = b'app_id = "0x22"\n'
    places = directory("etc"), directory("etc/dstack")
    real = build_layers(tmp_path / "a", layer_tar(*places, file("etc/dstack/enclave.toml", text)))
    assert real.built.enclave_toml == text.decode()
    link = symlink("etc/dstack/enclave.toml", "/etc/elsewhere")
    assert not build_layers(tmp_path / "b", layer_tar(*places, link)).built.enclave_toml
    large = file("etc/dstack/enclave.toml", b"#" * (MAX_ENCLAVE_TOML + 1))
    assert not build_layers(tmp_path / "c", layer_tar(*places, large)).built.enclave_toml


def test_argv_is_docker_s_unless_nitro_cli_s_is_asked_for(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    assert ramdisk(build(layout, tmp_path / "1", argv_mode="nitro-cli").path)["cmd"][1] == b"serve\n"
    assert ramdisk(build(layout, tmp_path / "2").path)["cmd"][1] == b"/app\nserve\n"


def test_what_is_left_out_is_warned_of(tmp_path: Path) -> None:
    layer = layer_tar(file("a", pax_headers={"SCHILY.xattr.user.x": "y"}))
    built = build_layers(tmp_path, layer, User="nobody", WorkingDir="/srv").built
    assert [warning.split()[0] for warning in built.warnings] == ["User", "WorkingDir", "1"]


def test_the_same_image_from_a_layout_a_tar_and_docker_save_measures_the_same(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS)
    (tmp_path / "layout.tar").write_bytes(layout.tar())
    (tmp_path / "save.tar").write_bytes(save_tar(*SMALL_LAYERS))
    one = build(layout.write(tmp_path / "layout"), tmp_path / "1")
    two = build(OciLayoutSource(tmp_path / "layout.tar"), tmp_path / "2")
    three = build(SaveTarSource(tmp_path / "save.tar"), tmp_path / "3")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.measurement.os_image_hash == three.measurement.os_image_hash


def test_pcr1_is_that_of_the_bootstrap_alone(tmp_path: Path) -> None:
    import hashlib  # noqa: PLC0415 - for this one test

    built = build_layers(tmp_path, *SMALL_LAYERS)
    with built.path.open("rb") as image:
        sections = read_eif(image).sections
        boot = hashlib.sha384()
        for section in (sections[0], sections[1], sections[3]):
            image.seek(section.offset)
            boot.update(image.read(section.size))
    assert built.measurement.pcr1 == extended(boot.digest())


def test_an_architecture_chooses_its_image(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS, architecture="arm64").write(tmp_path / "layout")
    assert build(layout, tmp_path, arch="aarch64").inputs.arch == "aarch64"
    assert code_of(lambda: build(layout, tmp_path / "x"), ProtocolError) == "image.platform"


def test_an_image_without_a_program_is_refused(tmp_path: Path) -> None:
    call = lambda: build_layers(tmp_path, *SMALL_LAYERS, Entrypoint=[], Cmd=[])  # noqa: E731 - it is called once
    assert code_of(call, InvalidEvidence) == "ramdisk.argv"


def test_a_mount_point_that_is_a_link_is_refused(tmp_path: Path) -> None:
    call = lambda: build_layers(tmp_path, layer_tar(symlink("proc", "x")))  # noqa: E731 - it is called once
    assert code_of(call, InvalidEvidence) == "ramdisk.mount_point"


def test_a_damaged_layer_gives_no_output(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS)
    place = layout.write(tmp_path / "layout")
    last = max((place / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(last.read_bytes())
    raw[-1] ^= 1
    last.write_bytes(raw)
    assert code_of(lambda: build(place, tmp_path), ProtocolError) == "image.blob"
    assert not (tmp_path / "image.eif").exists()
    assert not list((tmp_path / "cache" / "builds").iterdir())


def test_nothing_is_left_in_the_workspace(tmp_path: Path) -> None:
    build_layers(tmp_path, *SMALL_LAYERS)
    assert [path.name for path in (tmp_path / "cache" / "work").iterdir()] == [".lock"]


def test_a_second_build_comes_from_the_cache(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    cache = BuildCache(tmp_path / "cache")
    first = build(layout, tmp_path / "1", cache=cache)
    for blob_file in (layout / "blobs/sha256").iterdir():  # layers are not read again
        if blob_file.read_bytes()[:2] == b"\x1f\x8b":
            blob_file.unlink()
    second = build(layout, tmp_path / "2", cache=cache)
    assert (first.is_cached, second.is_cached) == (False, True)
    assert second.built == first.built
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize("change", ["kernel", "init", "nsm_ko", "cmdline", "epoch", "argv_mode", "name"])
def test_whatever_an_image_is_made_of_is_its_key(tmp_path: Path, change: str) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    cache = BuildCache(tmp_path / "cache")
    build(layout, tmp_path / "1", cache=cache)
    blobs, options = BOOT, {}
    if change in {"kernel", "init", "nsm_ko"}:
        blobs = msgspec.structs.replace(BOOT, **{change: blob(b"other")})
    elif change == "cmdline":
        blobs = msgspec.structs.replace(BOOT, cmdline=b"console=ttyS1")
    else:
        options = {change: {"epoch": 1, "argv_mode": "nitro-cli", "name": "x"}[change]}
    assert not build(layout, tmp_path / "2", blobs, cache=cache, **options).is_cached


def test_a_record_of_another_shape_is_built_again(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    cache = BuildCache(tmp_path / "cache")
    build(layout, tmp_path / "1", cache=cache)
    record = next((tmp_path / "cache" / "builds").iterdir()) / "build.json"
    record.write_bytes(msgspec.json.encode({**msgspec.json.decode(record.read_bytes()), "build": {}}))
    assert not build(layout, tmp_path / "1", cache=cache).is_cached


def test_an_output_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    layout = Layout(*SMALL_LAYERS).write(tmp_path / "layout")
    (tmp_path / "w" / "image.eif").mkdir(parents=True)
    assert code_of(lambda: build(layout, tmp_path / "w"), StorageError) == "build.storage"


def test_an_empty_image_is_refused_for_its_program_only(tmp_path: Path) -> None:
    assert ramdisk(build_layers(tmp_path, layer_tar(directory("./"))).path)["cmd"][1] == b"/app\nserve\n"
