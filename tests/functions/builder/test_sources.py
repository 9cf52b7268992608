"""Where images come from, and what each source checks."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from functions.builder.sources import (
    ImageSource,
    OciLayoutSource,
    RegistrySource,
    SaveTarSource,
    SourceImage,
    StoredLayer,
    open_source,
)
from shared.errors import ConfigError, DstackError, ProtocolError, StorageError
from shared.measurement import oci
from shared.measurement.image_layers import Layer
from shared.measurement.image_reference import ImageReference, parse_reference
from shared.net.registry import Credentials, RegistryClient
from tests.functions.builder.building import build
from tests.shared.measurement.image_making import (
    SMALL_LAYERS,
    Layout,
    descriptor,
    file,
    layer_tar,
    save_tar,
    sha256,
)
from tests.shared.net.registry_stand_in import REPOSITORY, Registry, serving


def code_of(call: Callable[[], object], kind: type[DstackError] = ProtocolError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


def layers_of(source: ImageSource, work: Path) -> list[bytes]:
    """Read all layers as they are stored."""
    work.mkdir(exist_ok=True)
    found = []
    for layer in source.load("x86_64").layers:
        with source.open_layer(layer, work) as content:
            found.append(content.read(1 << 20) + content.read(1 << 20))
    return found


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return Layout(*SMALL_LAYERS).write(tmp_path / "layout")


STORED = [gzip.compress(layer, 6, mtime=0) for layer in SMALL_LAYERS]


def test_a_layout_gives_its_layers(layout: Path, tmp_path: Path) -> None:
    assert layers_of(OciLayoutSource(layout), tmp_path / "w") == STORED


def test_a_layout_in_a_tar_gives_its_layers(tmp_path: Path) -> None:
    source = OciLayoutSource(write(tmp_path / "l.tar", Layout(*SMALL_LAYERS).tar()))
    assert layers_of(source, tmp_path / "w") == STORED


@pytest.mark.parametrize("stored", [None, STORED])
def test_a_saved_tar_gives_its_layers(tmp_path: Path, stored: list[bytes] | None) -> None:
    source = SaveTarSource(write(tmp_path / "s.tar", save_tar(*SMALL_LAYERS, stored=stored)))
    assert layers_of(source, tmp_path / "w") == (stored or list(SMALL_LAYERS))


def test_identities_differ_by_architecture_and_source(layout: Path, tmp_path: Path) -> None:
    saved = SaveTarSource(write(tmp_path / "s.tar", save_tar(*SMALL_LAYERS)))
    assert OciLayoutSource(layout).identity("x86_64") == f"x86_64 {Layout(*SMALL_LAYERS).root}"
    assert saved.identity("x86_64").startswith("x86_64 config sha256:")


@pytest.mark.parametrize("change", [lambda raw: raw + b"x", lambda raw: raw[:-1] + b"x"])
def test_a_layer_that_is_not_the_named_one_is_refused(
    layout: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    place = layout / "blobs/sha256" / sha256(STORED[1])[7:]
    place.write_bytes(change(place.read_bytes()))
    assert code_of(lambda: layers_of(OciLayoutSource(layout), tmp_path / "w")) == "image.blob"


def test_a_layer_that_is_missing_is_refused(layout: Path, tmp_path: Path) -> None:
    (layout / "blobs/sha256" / sha256(STORED[0])[7:]).unlink()
    call = lambda: layers_of(OciLayoutSource(layout), tmp_path / "w")  # noqa: E731 - it is called once
    assert code_of(call, ConfigError) == "image.source"


def test_a_saved_layer_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    other = layer_tar(file("etc/motd", b"evil"))
    saved = write(tmp_path / "s.tar", save_tar(*SMALL_LAYERS, stored=[SMALL_LAYERS[0], other]))
    assert code_of(lambda: build(SaveTarSource(saved), tmp_path / "w")) == "image.layer.diff_id"


def test_a_saved_tar_without_its_configuration_is_refused(tmp_path: Path) -> None:
    manifest = [{"Config": "gone.json", "Layers": []}]
    saved = write(tmp_path / "s.tar", layer_tar(file("manifest.json", json.dumps(manifest).encode())))
    assert code_of(lambda: SaveTarSource(saved).load("x86_64")) == "image.source.missing"


def test_a_saved_configuration_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    name = "ab" * 32 + ".json"
    manifest = json.dumps([{"Config": name, "Layers": []}]).encode()
    saved = write(tmp_path / "s.tar", layer_tar(file("manifest.json", manifest), file(name, b"{}")))
    assert code_of(lambda: SaveTarSource(saved).load("x86_64")) == "image.blob"


def test_n73_another_image_than_the_pinned_one_is_refused(layout: Path, tmp_path: Path) -> None:
    saved = write(tmp_path / "s.tar", save_tar(*SMALL_LAYERS))
    assert code_of(lambda: OciLayoutSource(layout, bytes(32)).load("x86_64")) == "image.pinned"
    assert code_of(lambda: SaveTarSource(saved, bytes(32)).load("x86_64")) == "image.blob"


def test_a_file_that_cannot_be_read_is_told(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert code_of(lambda: OciLayoutSource(layout).load("x86_64"), ConfigError) == "image.source"


def test_a_document_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    packed = write(tmp_path / "l.tar", Layout(*SMALL_LAYERS).tar())
    source = OciLayoutSource(packed)
    os.truncate(packed, 600)
    assert code_of(lambda: source.load("x86_64"), StorageError) == "image.source.changed"


def test_a_layer_without_a_digest_is_no_registry_s(tmp_path: Path) -> None:
    source = RegistrySource(parse_reference("a@sha256:" + "00" * 32), RegistryClient(parse_reference("a")))
    layer = StoredLayer("x", 1, None, Layer("none", bytes(32)))
    with pytest.raises(AssertionError), source.open_layer(layer, tmp_path):
        pass


def test_a_huge_document_is_not_read(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.builder.sources.MAX_DOCUMENT", 10)
    assert code_of(lambda: OciLayoutSource(layout).load("x86_64")) == "image.source.size"


@pytest.mark.parametrize("source", [OciLayoutSource, SaveTarSource])
def test_a_name_too_long_for_a_file_is_told(source: type[OciLayoutSource | SaveTarSource]) -> None:
    assert code_of(lambda: source(Path("x" * 300)), ConfigError) == "image.source"


def test_a_pipe_in_a_layout_does_not_block(layout: Path) -> None:
    (layout / "index.json").unlink()
    os.mkfifo(layout / "index.json")
    assert code_of(lambda: OciLayoutSource(layout).load("x86_64"), ConfigError) == "image.source"


def client(registry: Registry, credentials: Credentials | None = None) -> RegistryClient:
    reference = ImageReference(registry.host, REPOSITORY, None, None)
    return RegistryClient(reference, credentials=credentials, plain_loopback=True)


def reference_of(registry: Registry, digest: str) -> ImageReference:
    return parse_reference(f"{registry.host}/{REPOSITORY}@{digest}")


def test_a_registry_gives_the_same_image_as_the_layout(layout: Path, tmp_path: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    with serving({made.root: made.manifest}, made.blobs, user="u:p") as registry:
        source = RegistrySource(reference_of(registry, made.root), client(registry, Credentials("u", "p")))
        pulled = build(source, tmp_path / "1")
    assert pulled.path.read_bytes() == build(layout, tmp_path / "2").path.read_bytes()


def test_a_registry_s_index_is_followed(tmp_path: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    with serving({made.root: made.manifest}, made.blobs) as registry:
        index = sha256(made.index)
        registry.manifests[index] = (oci.OCI_INDEX, made.index)
        source = RegistrySource(reference_of(registry, index), client(registry))
        assert f"sha256:{source.load('x86_64').digest.hex()}" == made.root
        assert layers_of(source, tmp_path / "w") == STORED
        assert not list((tmp_path / "w").iterdir())


def test_a_built_image_is_not_pulled_again(tmp_path: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    with serving({made.root: made.manifest}, made.blobs) as registry:
        source = RegistrySource(reference_of(registry, made.root), client(registry))
        build(source, tmp_path / "w")
        asked = len(registry.requests)
        assert build(source, tmp_path / "w").is_cached
        assert len(registry.requests) == asked


def test_a_registry_that_serves_another_layer_is_refused(tmp_path: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    blobs = {**made.blobs, sha256(STORED[0]): STORED[1]}
    with serving({made.root: made.manifest}, blobs) as registry:
        source = RegistrySource(reference_of(registry, made.root), client(registry))
        assert code_of(lambda: build(source, tmp_path / "w")) in {"registry.blob", "net.response.oversize"}


def test_n73_a_tag_is_refused(layout: Path) -> None:
    del layout
    with pytest.raises(ConfigError) as caught:
        RegistrySource(parse_reference("debian:12"), RegistryClient(parse_reference("debian")))
    assert caught.value.code == "image.reference.unpinned"


def chosen(text: str) -> ImageSource:
    return open_source(text, RegistryClient)


def test_a_source_is_told_by_what_is_there(layout: Path, tmp_path: Path) -> None:
    saved = write(tmp_path / "s.tar", save_tar(*SMALL_LAYERS))
    packed = write(tmp_path / "l.tar", Layout(*SMALL_LAYERS).tar())
    assert isinstance(chosen(str(layout)), OciLayoutSource)
    assert isinstance(chosen(str(packed)), OciLayoutSource)
    assert isinstance(chosen(str(saved)), SaveTarSource)
    assert isinstance(chosen("debian@sha256:" + "00" * 32), RegistrySource)


def test_a_local_source_may_be_pinned(layout: Path) -> None:
    root = Layout(*SMALL_LAYERS).root
    assert _digest(chosen(f"{layout}@{root}").load("x86_64")) == root
    assert code_of(lambda: chosen(f"{layout}@sha256:{'00' * 32}").load("x86_64")) == "image.pinned"


def _digest(image: SourceImage) -> str:
    return f"sha256:{image.digest.hex()}"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("./nothing-here", "image.source"),
        ("./" + "x" * 300, "image.source"),
        ("/nothing/here", "image.source"),
        ("debian:12", "image.reference.unpinned"),
        ("UPPER", "image.reference.syntax"),
        ("debian@sha256:00", "image.digest"),
    ],
)
def test_a_source_that_is_none_is_refused(text: str, code: str) -> None:
    assert code_of(lambda: chosen(text), ConfigError) == code


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    assert code_of(lambda: chosen(str(write(tmp_path / "x", b"x" * 2000)))) == "image.save.archive"


def test_a_manifest_s_configuration_of_another_digest_is_refused(layout: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    document = json.loads(made.manifest)
    document["config"] = descriptor(oci.OCI_CONFIG, b"{}")
    raw = json.dumps(document).encode()
    index = json.loads(made.index)
    index["manifests"] = [descriptor(oci.OCI_MANIFEST, raw)]
    write(layout / "index.json", json.dumps(index).encode())
    write(layout / "blobs/sha256" / sha256(raw)[7:], raw)
    write(layout / "blobs/sha256" / sha256(b"{}")[7:], b"[]")
    assert code_of(lambda: OciLayoutSource(layout).load("x86_64")) == "image.blob"
