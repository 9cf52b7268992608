"""Image room: manifests, indexes, configurations, references, saved tars, layers."""

import gzip
import hashlib
import io
import json
import tarfile

import hypothesis.strategies as st

from shared.measurement.gzip_stream import inflated
from shared.measurement.image_layers import Layer, Unpacking, apply_layers
from shared.measurement.image_reference import parse_reference
from shared.measurement.oci import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    check_layout,
    parse_config,
    parse_index,
    parse_manifest,
    resolve_image,
)
from shared.measurement.save_tar import list_files, parse_save_manifest
from shared.measurement.tar_stream import read_tar
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.measurement.image_making import (
    SMALL_LAYERS,
    Entry,
    Layout,
    config_json,
    directory,
    file,
    hard_link,
    layer_tar,
    save_tar,
    symlink,
)

LAYOUT = Layout(*SMALL_LAYERS)
DOCUMENTS = [
    LAYOUT.manifest,
    LAYOUT.index,
    config_json(SMALL_LAYERS),
    b'{"imageLayoutVersion":"1.0.0"}',
    b'[{"Config":"a.json","Layers":["b/layer.tar"]}]',
]
KINDS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
TARS = [
    *SMALL_LAYERS,
    *(
        layer_tar(file("a/b", b"x" * 700), symlink("s", "t"), hard_link("h", "a/b"), kind=kind)
        for kind in KINDS
    ),
    *(layer_tar(file("n" * 300), symlink("s", "t" * 300), kind=kind) for kind in KINDS[:2]),
]
NAMES = st.lists(
    st.sampled_from(["a", "b", "c", ".", "..", "", ".wh.a", ".wh.b", ".wh..wh..opq"]), min_size=1, max_size=4
).map("/".join)
ENTRIES = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=8)),
    st.builds(directory, NAMES),
    st.builds(symlink, NAMES, NAMES),
    st.builds(hard_link, NAMES, NAMES),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([OCI_MANIFEST, OCI_INDEX, LAYOUT.root, 2, "linux", "amd64", "layers"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size"),
                    *("platform", "os", "architecture", "rootfs", "diff_ids", "type", "Env", "Cmd"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
).map(lambda tree: json.dumps(tree).encode())


@fuzz(JSON | mutated(DOCUMENTS) | st.binary(max_size=200))
def test_documents(data: bytes) -> None:
    for parse in (check_layout, parse_index, parse_manifest, parse_config, parse_save_manifest):
        outcome(parse, data)


@fuzz(mutated([LAYOUT.manifest, LAYOUT.index]) | JSON)
def test_resolution_ends(data: bytes) -> None:
    """Whatever a blob says, its digest is right: a hostile author's own image."""
    root = Descriptor(OCI_INDEX, hashlib.sha256(data).digest(), len(data))
    for start in (root, data):
        outcome(resolve_image, start, "x86_64", lambda _: data)


@fuzz(st.text(max_size=40) | st.from_regex(r"[a-z./:@0-9]{0,30}(@sha256:[0-9a-f]{60,66})?"))
def test_references(text: str) -> None:
    found = outcome(parse_reference, text)
    assert found is None or parse_reference(str(found)) == found


@fuzz(mutated(TARS) | st.binary(max_size=2048))
def test_layer_bytes(data: bytes) -> None:
    merged = outcome(apply_layers, [io.BytesIO(data)])
    for path, node in outcome(merged.tree.entries) or [] if merged else []:
        assert path
        assert not path.startswith(b"/")
        assert b".." not in path.split(b"/")
        assert not path.rpartition(b"/")[2].startswith(b".wh.")
        assert node.offset + node.size <= len(data)


@fuzz(st.lists(st.lists(ENTRIES, max_size=6), min_size=1, max_size=3))
def test_layer_trees(layers: list[list[Entry]]) -> None:
    """What is merged is a tree: every parent is a directory, and comes first."""
    merged = outcome(apply_layers, [io.BytesIO(layer_tar(*entries)) for entries in layers])
    directories = {b""}
    for path, node in merged.tree.entries() if merged else []:
        assert path.rpartition(b"/")[0] in directories
        assert not any(part.startswith(b".wh.") for part in path.split(b"/"))
        if node.is_directory:
            directories.add(path)


@fuzz(mutated([save_tar(*SMALL_LAYERS), LAYOUT.tar()]))
def test_saved_tars(data: bytes) -> None:
    for part in (outcome(list_files, io.BytesIO(data)) or {}).values():
        assert part.offset + part.size <= len(data)


def _entries_of(data: bytes) -> list[object]:
    return list(read_tar(io.BytesIO(data), code="t", what="tar", max_blocks=100, renames=False))


@fuzz(mutated(TARS))
def test_tar_headers(data: bytes) -> None:
    outcome(_entries_of, data)


def _inflate(data: bytes) -> bytes:
    return b"".join(inflated(io.BytesIO(data), code="g", what="stream"))


@fuzz(mutated([gzip.compress(layer, mtime=0) for layer in SMALL_LAYERS]) | st.binary(max_size=300))
def test_compressed_layers(data: bytes) -> None:
    found = outcome(_inflate, data)
    assert found is None or found == gzip.decompress(data)
    outcome(
        Unpacking().unpack_layer, io.BytesIO(data), len(data), Layer("gzip", bytes(32)), bytearray().extend
    )
