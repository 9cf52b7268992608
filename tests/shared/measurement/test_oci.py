"""Manifests, indexes and configurations: what is chosen, and what could be taken for two things."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import ProtocolError
from shared.measurement import oci
from shared.measurement.oci import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Arch,
    Descriptor,
    Image,
    check_layout,
    parse_config,
    parse_index,
    parse_manifest,
    resolve_image,
)
from tests.shared.measurement.image_making import (
    LAYER_GZIP,
    LAYER_TAR,
    SMALL_LAYERS,
    Layout,
    config_json,
    descriptor,
    sha256,
)

LINUX = {"os": "linux", "architecture": "amd64"}
CONFIG = config_json(SMALL_LAYERS)
BLOBS = {sha256(CONFIG): CONFIG}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


def manifest(**changes: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, CONFIG),
        "layers": [descriptor(LAYER_TAR, layer) for layer in SMALL_LAYERS],
        **changes,
    }
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def index(*manifests: Any, **changes: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests), **changes}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def resolve(root: bytes, *blobs: bytes, arch: Arch = "x86_64", pinned: bytes | None = None) -> Image:
    by_digest = {**BLOBS, **{sha256(blob): blob for blob in blobs}}
    return resolve_image(root, arch, lambda one: by_digest[f"sha256:{one.digest.hex()}"], pinned=pinned)


def entry(blob: bytes, kind: str = OCI_MANIFEST, **platform: str) -> dict[str, Any]:
    return descriptor(kind, blob, platform=platform) if platform else descriptor(kind, blob)


def test_reads_a_layout_s_image() -> None:
    layout = Layout(*SMALL_LAYERS)
    image = resolve_image(layout.index, "x86_64", lambda one: layout.blobs[f"sha256:{one.digest.hex()}"])
    assert f"sha256:{image.descriptor.digest.hex()}" == layout.root
    assert [layer.compression for _, layer in image.layers] == ["gzip", "gzip"]
    assert [f"sha256:{layer.diff_id.hex()}" for _, layer in image.layers] == [
        sha256(one) for one in SMALL_LAYERS
    ]
    assert image.config.argv("oci") == ("/app", "serve")


def test_reads_docker_s_own_media_types() -> None:
    raw = manifest(
        mediaType=DOCKER_MANIFEST,
        config=descriptor(DOCKER_CONFIG, CONFIG),
        layers=[
            descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", SMALL_LAYERS[0]),
            descriptor("application/vnd.docker.image.rootfs.diff.tar", SMALL_LAYERS[1]),
        ],
    )
    root = index(entry(raw, DOCKER_MANIFEST, **LINUX), mediaType=DOCKER_INDEX)
    assert resolve(root, raw).manifest.compressions == ("gzip", "none")


def test_members_that_are_not_used_are_ignored() -> None:
    raw = manifest(annotations={"a": "b"}, x=[1])
    assert resolve(index(entry(raw, **LINUX), x=1), raw).config.os == "linux"


def test_chooses_by_platform_and_skips_statements() -> None:
    right, wrong = manifest(), manifest(annotations={"for": "another"})
    root = index(
        entry(wrong, os="linux", architecture="arm64", variant="v8"),
        entry(wrong, os="windows", architecture="amd64"),
        entry(wrong, os="unknown", architecture="unknown"),
        entry(wrong, "application/vnd.in-toto+json"),
        {**entry(wrong, **LINUX), "artifactType": "application/x"},
        entry(wrong, os="linux", architecture="amd64", variant="v3"),
        entry(right, **LINUX),
    )
    assert resolve(root, right).descriptor == Descriptor(
        OCI_MANIFEST, bytes.fromhex(sha256(right)[7:]), len(right)
    )


@pytest.mark.parametrize("variant", [{}, {"variant": "v8"}])
def test_chooses_64_bit_arm(variant: dict[str, str]) -> None:
    config = config_json(SMALL_LAYERS, architecture="arm64")
    raw = manifest(config=descriptor(OCI_CONFIG, config))
    root = index(entry(raw, os="linux", architecture="arm64", **variant))
    assert resolve(root, raw, config, arch="aarch64").config.architecture == "arm64"


def test_one_image_alone_needs_no_platform() -> None:
    raw = manifest()
    assert resolve(index(entry(raw)), raw).config.architecture == "amd64"


def test_an_index_may_lie_in_an_index() -> None:
    raw = manifest()
    inner = index(entry(raw, **LINUX))
    assert resolve(index(entry(inner, OCI_INDEX)), inner, raw).manifest.layers


def test_too_many_nested_indexes_are_refused() -> None:
    at = manifest()
    blobs, kind = [at], OCI_MANIFEST
    for _ in range(oci.MAX_INDEX_DEPTH):
        at = index(entry(at, kind))
        kind = OCI_INDEX
        blobs.append(at)
    assert refused(lambda: resolve(index(entry(at, OCI_INDEX)), *blobs)) == "image.depth"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry(b"x", os="linux", architecture="arm64")],
        [entry(b"x", **LINUX), entry(b"y", **LINUX)],
        [entry(b"x"), entry(b"y")],
        [entry(b"x", os="linux", architecture="amd64", variant="v2")],
    ],
)
def test_none_or_several_fitting_images_are_refused(entries: list[Any]) -> None:
    assert refused(lambda: resolve(index(*entries))) == "image.platform"


def test_a_configuration_for_another_platform_is_refused() -> None:
    raw = manifest()
    assert refused(lambda: resolve(index(entry(raw)), raw, arch="aarch64")) == "image.platform"


def test_a_pinned_image_is_chosen_among_several() -> None:
    one, two = manifest(), manifest(annotations={"a": "b"})
    root = index(entry(one, **LINUX), entry(two, **LINUX))
    for raw in (one, two):
        pinned = bytes.fromhex(sha256(raw)[7:])
        assert resolve(root, one, two, pinned=pinned).descriptor.digest == pinned


def test_a_pinned_index_s_image_is_taken() -> None:
    raw = manifest()
    inner = index(entry(raw, **LINUX))
    root = index(entry(inner, OCI_INDEX))
    assert resolve(root, inner, raw, pinned=bytes.fromhex(sha256(raw)[7:])).manifest.layers
    assert resolve(root, inner, raw, pinned=bytes.fromhex(sha256(inner)[7:])).manifest.layers


def test_n73_another_image_than_the_pinned_one_is_refused() -> None:
    raw = manifest()
    assert refused(lambda: resolve(index(entry(raw)), raw, pinned=bytes(32))) == "image.pinned"


def test_a_descriptor_can_be_the_root() -> None:
    raw = manifest()
    root = Descriptor(OCI_MANIFEST, bytes.fromhex(sha256(raw)[7:]), len(raw))
    found = resolve_image(root, "x86_64", lambda one: raw if one == root else CONFIG)
    assert found.descriptor == root


@pytest.mark.parametrize("change", [lambda raw: raw + b" ", lambda raw: raw.replace(b"2", b"3", 1)])
def test_a_document_with_another_size_or_digest_is_refused(change: Callable[[bytes], bytes]) -> None:
    raw = manifest()
    root = index(entry(raw))
    assert refused(lambda: resolve_image(root, "x86_64", lambda _: change(raw))) == "image.blob"


def test_a_configuration_with_other_bytes_is_refused() -> None:
    raw = manifest()
    blobs = {sha256(raw): raw, sha256(CONFIG): CONFIG[:-1] + b" "}
    root = index(entry(raw))
    assert (
        refused(lambda: resolve_image(root, "x86_64", lambda one: blobs[f"sha256:{one.digest.hex()}"]))
        == "image.blob"
    )


def test_layers_without_diff_ids_are_refused() -> None:
    raw = manifest(layers=[])
    assert refused(lambda: resolve(index(entry(raw)), raw)) == "image.config"


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("application/vnd.oci.image.layer.v1.tar+zstd", "image.layer.zstd"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "image.layer.foreign"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "image.layer.foreign"),
        ("application/octet-stream", "image.media_type"),
    ],
)
def test_a_layer_that_is_not_read_is_refused(media_type: str, code: str) -> None:
    raw = manifest(layers=[descriptor(media_type, b"")])
    assert refused(lambda: parse_manifest(raw)) == code


@pytest.mark.parametrize(
    "raw",
    [
        manifest(schemaVersion=1),
        manifest(schemaVersion=None),
        manifest(schemaVersion=True),
        manifest(manifests=[]),
        manifest(fsLayers=[]),
        manifest(layers=None),
        manifest(layers={}),
        manifest(layers=[descriptor(LAYER_TAR, b"")] * (oci.MAX_LAYERS + 1)),
        manifest(layers=["x"]),
        manifest(config=[]),
        manifest(config={"mediaType": OCI_CONFIG, "size": 1}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "digest": "sha512:" + "00" * 64}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "mediaType": 1}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "size": -1}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "size": "1"}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "size": True}),
        manifest(config={**descriptor(OCI_CONFIG, b""), "size": oci.MAX_DOCUMENT + 1}),
        manifest(layers=[{**descriptor(LAYER_GZIP, b""), "size": oci.MAX_BLOB + 1}]),
        b"[]",
    ],
)
def test_a_manifest_that_is_none_is_refused(raw: bytes) -> None:
    assert refused(lambda: parse_manifest(raw)) == "image.manifest"


@pytest.mark.parametrize(
    ("raw", "described"),
    [
        (manifest(), OCI_INDEX),
        (manifest(), DOCKER_MANIFEST),
        (manifest(mediaType=OCI_INDEX), None),
        (manifest(mediaType=7), None),
        (manifest(config=descriptor("application/vnd.unknown", b"")), None),
    ],
)
def test_another_media_type_is_refused(raw: bytes, described: str | None) -> None:
    assert refused(lambda: parse_manifest(raw, described)) == "image.media_type"


def test_a_document_may_leave_its_media_type_to_the_descriptor() -> None:
    assert parse_manifest(manifest(mediaType=None), DOCKER_MANIFEST).layers


@pytest.mark.parametrize(
    "raw",
    [
        index(layers=[]),
        index(config={}),
        index(schemaVersion=3),
        index(manifests={}),
        index(manifests=None),
        index(*[descriptor(OCI_MANIFEST, b"")] * (oci.MAX_MANIFESTS + 1)),
        index("x"),
        index({**entry(b""), "platform": []}),
        index({**entry(b""), "platform": {"os": 7}}),
        b"null",
    ],
)
def test_an_index_that_is_none_is_refused(raw: bytes) -> None:
    assert refused(lambda: parse_index(raw)) == "image.index"


def test_a_platform_may_be_null() -> None:
    assert parse_index(index({**entry(b""), "platform": None}))[0].os is None


@pytest.mark.parametrize("raw", [b"{", b'{"a":1,"a":2}', b"\xff", b"[" * 5000])
def test_documents_that_are_no_json_are_refused(raw: bytes) -> None:
    for call in (check_layout, parse_index, parse_manifest, parse_config):
        assert refused(lambda call=call: call(raw)).startswith("image.")  # type: ignore[misc]  # bound now


def test_n03_a_huge_document_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "MAX_DOCUMENT", 100)
    assert refused(lambda: parse_config(CONFIG)) == "image.config.size"


def test_a_layout_of_version_1_is_read() -> None:
    check_layout(b'{"imageLayoutVersion": "1.0.0", "x": 1}')


@pytest.mark.parametrize("version", ["1.0.1", None, 1])
def test_a_layout_of_another_version_is_refused(version: object) -> None:
    assert (
        refused(lambda: check_layout(json.dumps({"imageLayoutVersion": version}).encode())) == "image.layout"
    )


def config(**run: Any) -> oci.ImageConfig:
    return parse_config(config_json(SMALL_LAYERS, **run))


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "docker", "nitro_cli"),
    [
        (["a"], ["b"], ("a", "b"), ("b",)),
        (["a"], None, ("a",), ("a",)),
        (None, ["b", "c"], ("b", "c"), ("b", "c")),
        ([], [], (), ()),
    ],
)
def test_argv_is_entrypoint_and_cmd_unless_nitro_cli_is_asked_for(
    entrypoint: object, cmd: object, docker: object, nitro_cli: object
) -> None:
    found = config(Entrypoint=entrypoint, Cmd=cmd)
    assert (found.argv("oci"), found.argv("nitro-cli")) == (docker, nitro_cli)


def test_user_and_working_directory_are_warned_of() -> None:
    assert [text.split()[0] for text in config(User="1000", WorkingDir="/srv").warnings] == [
        "User",
        "WorkingDir",
    ]
    assert not config(User="root", WorkingDir="/").warnings


@pytest.mark.parametrize("text", ["a\nb", "a\0b"])
@pytest.mark.parametrize("name", ["Env", "Entrypoint", "Cmd"])
def test_a_line_break_in_argv_or_env_is_refused(name: str, text: str) -> None:
    assert refused(lambda: config(**{name: [text]})) == "image.config"


@pytest.mark.parametrize(
    "run",
    [
        {"Env": "PATH=/"},
        {"Env": [1]},
        {"Cmd": ["x" * (oci.MAX_ARGUMENT + 1)]},
        {"Cmd": ["x"] * (oci.MAX_ARGUMENTS + 1)},
        {"User": 0},
        {"WorkingDir": []},
    ],
)
def test_a_configuration_of_wrong_types_is_refused(run: dict[str, Any]) -> None:
    assert refused(lambda: config(**run)) == "image.config"


@pytest.mark.parametrize(
    "rootfs",
    [
        None,
        [],
        {"type": "x", "diff_ids": []},
        {"type": "layers", "diff_ids": ["x"]},
        {"type": "layers", "diff_ids": [sha256(b"")] * (oci.MAX_LAYERS + 1)},
        {"type": "layers", "diff_ids": {}},
    ],
)
def test_a_configuration_without_diff_ids_is_refused(rootfs: object) -> None:
    assert (
        refused(lambda: parse_config(json.dumps({"os": "linux", "rootfs": rootfs}).encode()))
        == "image.config"
    )
