"""The demo's container images: equal bytes each time, and the builder finds in them what was put in."""

from pathlib import Path

import pytest

from cli.demo.images import AppImage, KmsImage, Roots
from cli.demo.oci_layout import ImageFile, write_oci_layout
from functions.builder.sources import OciLayoutSource
from shared.errors import DstackError
from tests.functions.builder.building import build, ramdisk

ROOTS = Roots(pems={"aws_nitro_enclave": b"root\n"})
KMS = KmsImage(
    chain_id=1,
    kms_contract="0x" + "11" * 20,
    rpc_url="http://127.0.0.1:1",
    authorize_url="http://127.0.0.1:2",
    roots=ROOTS,
)
APP = AppImage(
    app_id="0x" + "22" * 20,
    kms_url="https://localhost:3",
    kms_root=b"pem\n",
    k256_pubkey=b"\x02" * 33,
    roots=ROOTS,
)


def _bytes(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_equal_files_give_equal_layouts(tmp_path: Path) -> None:
    one = {"/a/b": ImageFile(b"1"), "/c": ImageFile(b"2", 0o755)}
    digests = {
        write_oci_layout(tmp_path / name, files, entrypoint=["/c"])
        for name, files in (("x", one), ("y", dict(reversed(one.items()))))
    }
    assert len(digests) == 1
    assert _bytes(tmp_path / "x") == _bytes(tmp_path / "y")


@pytest.mark.parametrize(("image", "daemon"), [(KMS, "kms"), (APP, "init")])
def test_the_built_root_file_system_has_the_images_files(
    image: KmsImage | AppImage, daemon: str, tmp_path: Path
) -> None:
    digest = image.write_oci_layout(tmp_path / "layout")
    built = build(OciLayoutSource(tmp_path / "layout", digest), tmp_path / "work")
    entries = ramdisk(built.path)
    for path, content in image.files().items():
        assert entries[f"rootfs{path}"][1] == content
    entrypoint, program = entries["rootfs/entrypoint.sh"]
    assert entrypoint.mode & 0o777 == 0o755
    assert program.endswith(f"exec python3 -m enclave.{daemon}\n".encode())
    assert built.built.argv == ("/entrypoint.sh",)


def test_a_changed_layer_is_refused(tmp_path: Path) -> None:
    digest = KMS.write_oci_layout(tmp_path / "layout")
    source = OciLayoutSource(tmp_path / "layout", digest)
    layer = tmp_path / "layout" / source.load("x86_64").layers[0].name
    layer.write_bytes(layer.read_bytes().replace(b"quorum = 1", b"quorum = 0"))
    with pytest.raises(DstackError) as caught:
        build(source, tmp_path / "work")
    assert caught.value.code in {"image.blob", "image.layer.diff_id"}
