"""What docker save writes: its files, its manifest, its layers' compression."""

import hashlib
import io
import json
from collections.abc import Callable

import pytest

from shared.errors import ProtocolError
from shared.measurement import save_tar as module
from shared.measurement.save_tar import (
    SavedFile,
    digest_in_name,
    layer_compression,
    list_files,
    parse_save_manifest,
)
from tests.shared.measurement.image_making import (
    SMALL_LAYERS,
    Entry,
    directory,
    file,
    layer_tar,
    save_tar,
    symlink,
)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


def files(*entries: Entry) -> dict[str, SavedFile]:
    return list_files(io.BytesIO(layer_tar(*entries)))


def test_reads_what_docker_saves() -> None:
    raw = save_tar(*SMALL_LAYERS)
    found = list_files(io.BytesIO(raw))
    part = found["manifest.json"]
    saved = parse_save_manifest(raw[part.offset : part.offset + part.size])
    config = raw[found[saved.config].offset :][: found[saved.config].size]
    assert digest_in_name(saved.config) == hashlib.sha256(config).digest()
    assert [raw[found[name].offset :][: found[name].size] for name in saved.layers] == list(SMALL_LAYERS)


def test_directories_links_and_leading_dots_are_passed_over() -> None:
    assert list(files(directory("./a"), file("./a/b"), symlink("c", "a/b"))) == ["a/b"]


@pytest.mark.parametrize("other", [file("./a"), symlink("a", "b"), directory("./a")])
def test_a_name_twice_is_refused(other: Entry) -> None:
    assert refused(lambda: files(file("a"), other)) == "image.save.entry"


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 1)
    assert refused(lambda: files(file("a"), file("b"))) == "image.save.entries"


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        [1],
        [{"Config": "a", "Layers": []}] * 2,
        [{"Layers": []}],
        [{"Config": "a"}],
        [{"Config": "a", "Layers": [1]}],
        [{"Config": "a", "Layers": ["x"] * 257}],
    ],
)
def test_a_manifest_that_is_none_is_refused(document: object) -> None:
    assert refused(lambda: parse_save_manifest(json.dumps(document).encode())) == "image.save.manifest"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        (f"{'ab' * 32}.json", b"\xab" * 32),
        (f"blobs/sha256/{'ab' * 32}", b"\xab" * 32),
        ("config.json", None),
    ],
)
def test_a_name_may_carry_the_digest(name: str, digest: bytes | None) -> None:
    assert digest_in_name(name) == digest


def test_compression_is_told_by_the_first_bytes() -> None:
    assert layer_compression(b"\x1f\x8b\x08\x00") == "gzip"
    assert layer_compression(b"usr/") == "none"
    assert refused(lambda: layer_compression(b"\x28\xb5\x2f\xfd")) == "image.layer.zstd"
