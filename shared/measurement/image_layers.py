"""Layers of an image, lowest first, merged into one tree (spec measurement 3.2, rules 1 to 7).

Anybody may have made a layer. It is inflated into a file by `unpack_layer`, which checks its digest, then
read by `apply_layers`, header by header: no data comes into memory, and nothing is written below a name that
a layer chose. What the rules leave open is refused: a name twice in one layer, a file below a file or a link,
device nodes.

A hard link is the node it links to, mode and owner included: one file has one set of them. Extended
attributes cannot be stored in a ramdisk; they are counted and left out.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from typing import BinaryIO, Literal, NoReturn

import msgspec

from shared.errors import ProtocolError
from shared.measurement.cpio import Readable
from shared.measurement.gzip_stream import inflated
from shared.measurement.image_tree import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    MAX_NAME,
    MAX_PATH,
    MAX_PATH_BYTES,
    MAX_TARGET,
    ImageTree,
    Node,
)
from shared.measurement.tar_stream import (
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    TarEntry,
    read_tar,
)

Compression = Literal["none", "gzip"]

MAX_UNPACKED = 8 << 30
"""Of all layers together: what an enclave could hold, see `image_tree.MAX_TREE_BYTES`."""

MAX_RATIO = 200
"""What gzip may inflate to: programs and text reach 10. Files of zeros reach 1000, hence the slack."""

RATIO_SLACK = 256 << 20
"""What a layer may inflate to whatever its ratio."""

MAX_OWNER = (1 << 32) - 1
"""Of uid and gid: a ramdisk's fields have 32 bits."""

_CHUNK = 1 << 20
_BLOCKS = 4  # of headers for each entry: an extended one fills two more, and a long name two
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_TYPES = {REGULAR: S_IFREG, DIRECTORY: S_IFDIR, SYMLINK: S_IFLNK, FIFO: S_IFIFO, HARD_LINK: S_IFREG}


class Layer(msgspec.Struct, frozen=True):
    """A layer as it is stored: how it is compressed, and the SHA-256 of its tar (`diff_id`, 32 bytes)."""

    compression: Compression
    diff_id: bytes


class MergedImage(msgspec.Struct, frozen=True):
    """A tree, and how many extended attributes and hard links its layers had."""

    tree: ImageTree
    attributes: int
    hard_links: int


class Unpacking:
    """Inflates the layers of one image, within one limit for all of them."""

    def __init__(self, max_unpacked: int = MAX_UNPACKED) -> None:
        self._left = self._limit = max_unpacked

    def unpack_layer(self, blob: Readable, size: int, layer: Layer, sink: Callable[[bytes], object]) -> int:
        """Write the tar of the layer in `blob` (`size` bytes) to `sink`; return its size.

        `sink` has had parts of it when this raises. Raises `ProtocolError`: `image.layer.gzip` (damaged),
        `image.layer.bomb` (more than the ratio or the image's limit), `image.layer.diff_id` (another tar).
        """
        digest = hashlib.sha256()
        total = 0
        # what is stored as it is was announced to the byte
        ratio_limit = MAX_RATIO * size + RATIO_SLACK if layer.compression == "gzip" else size
        pieces = (
            inflated(blob, code="image.layer.gzip", what="layer")
            if layer.compression == "gzip"
            else iter(lambda: blob.read(_CHUNK), b"")
        )
        for piece in pieces:
            total += len(piece)
            if total > ratio_limit:
                raise ProtocolError(
                    "image.layer.bomb", f"layer of {size} bytes unpacks to more than {ratio_limit}"
                )
            if total > self._left:
                raise ProtocolError(
                    "image.layer.bomb", f"layers of the image unpack to more than {self._limit} bytes"
                )
            digest.update(piece)
            sink(piece)
        if not hmac.compare_digest(digest.digest(), layer.diff_id):
            raise ProtocolError(
                "image.layer.diff_id",
                f"layer unpacks to sha256:{digest.hexdigest()}, expected sha256:{layer.diff_id.hex()}",
            )
        self._left -= total
        return total


def apply_layers(layers: Sequence[BinaryIO]) -> MergedImage:
    """Merge the tars in `layers` (seekable files, lowest first).

    Raises `ProtocolError`: `image.layer.archive`, `image.layer.entries`, `image.layer.entry` (a header, kind
    or number that is not taken), `image.layer.path` (leads out of the root, or is too long),
    `image.layer.duplicate`, `image.layer.parent`, `image.layer.link` (a hard link to nothing, or to a
    directory), `image.layer.device`.
    """
    tree = ImageTree()
    attributes = hard_links = 0
    blocks = _BLOCKS * MAX_ENTRIES  # of all layers together: headers of nothing would take hours
    for index, file in enumerate(layers):
        layer = _read_layer(file, index, blocks)
        blocks -= layer.blocks
        _apply_whiteouts(tree, layer)
        hard_links += _apply_changes(tree, layer)
        attributes += layer.attributes
    return MergedImage(tree, attributes, hard_links)


class _Layer:
    """One layer's changes in their order: nodes, or the path that a hard link names."""

    def __init__(self) -> None:
        self.changes: dict[bytes, Node | bytes] = {}
        self.removed: set[bytes] = set()
        self.emptied: set[bytes] = set()
        """Directories of which only what is below them is hidden (opaque whiteouts)."""
        self.attributes = self.blocks = 0


def _read_layer(file: BinaryIO, index: int, max_blocks: int) -> _Layer:
    layer = _Layer()
    name_bytes = 0
    for entry in read_tar(file, code="image.layer", what="layer", max_blocks=max_blocks):
        layer.blocks += entry.blocks
        path = normal_path(entry.name)
        name_bytes += len(path) + len(entry.link)
        if name_bytes > MAX_PATH_BYTES:
            _refuse("entries", f"more than {MAX_PATH_BYTES} bytes of names")
        if len(layer.changes) + len(layer.removed) + len(layer.emptied) == MAX_ENTRIES:
            _refuse("entries", f"more than {MAX_ENTRIES} entries")
        head, _, name = path.rpartition(b"/")
        if any(part.startswith(_WHITEOUT) for part in head.split(b"/")):
            _refuse("path", f"{path[:200]!r} below a whiteout")
        if name.startswith(_WHITEOUT):
            _read_whiteout(layer, head, name, entry)
            continue
        if path in layer.changes:
            _refuse("duplicate", f"{path[:200]!r} twice")
        layer.changes[path] = _change(entry, path, index)
        layer.attributes += entry.attributes
    return layer


def _read_whiteout(layer: _Layer, head: bytes, name: bytes, entry: TarEntry) -> None:
    if entry.kind != REGULAR or entry.size:
        _refuse("entry", f"a whiteout {name[:200]!r} that is not an empty file")
    if name == _OPAQUE:
        _hide(layer.emptied, head)
        return
    hidden = name.removeprefix(_WHITEOUT)
    # the rest of aufs's own names mean nothing here, and `.` and `..` are no names
    if hidden in {b"", b".", b".."} or hidden.startswith(_WHITEOUT):
        _refuse("entry", f"the whiteout {name[:200]!r}, which hides no name")
    _hide(layer.removed, head + b"/" + hidden if head else hidden)


def _hide(paths: set[bytes], path: bytes) -> None:
    if path in paths:
        _refuse("duplicate", f"a whiteout of {path[:200]!r} twice")
    paths.add(path)


def _change(entry: TarEntry, path: bytes, index: int) -> Node | bytes:
    shown = path[:200]
    if entry.kind != REGULAR and entry.size:
        _refuse("entry", f"{shown!r} of type {entry.kind!r} with {entry.size} bytes")
    if entry.kind not in _TYPES:
        code = "device" if entry.kind in {b"3", b"4"} else "entry"
        _refuse(code, f"{shown!r} of type {entry.kind!r}, expected a file, directory, link or pipe")
    if entry.uid > MAX_OWNER or entry.gid > MAX_OWNER:
        _refuse("entry", f"{shown!r} of owner {entry.uid}:{entry.gid}, expected at most {MAX_OWNER}")
    if entry.size > MAX_FILE_BYTES:
        _refuse("entry", f"{shown!r} of {entry.size} bytes, expected at most {MAX_FILE_BYTES}")
    if entry.kind != DIRECTORY and (not path or entry.name.endswith(b"/")):
        _refuse("entry", f"{shown!r} of type {entry.kind!r} with the name of a directory")
    if entry.kind == HARD_LINK:
        return normal_path(entry.link)
    if entry.kind == SYMLINK and not 0 < len(entry.link) <= MAX_TARGET:
        _refuse("entry", f"{shown!r} with a target of {len(entry.link)} bytes, expected 1 to {MAX_TARGET}")
    if entry.kind == SYMLINK:
        # Linux gives a symbolic link no mode of its own, and tools write what they like
        return Node(S_IFLNK | 0o777, entry.uid, entry.gid, target=entry.link)
    mode = _TYPES[entry.kind] | (entry.mode & 0o7777)
    return Node(mode, entry.uid, entry.gid, index, entry.offset, entry.size)


def normal_path(name: bytes) -> bytes:
    """Return a tar's name as a path of the tree: no `./`, no slash doubled or at an end (rule 1).

    A leading slash is refused, as is `..`: no builder writes them, and extractors disagree on them.
    Raises `ProtocolError("image.layer.path")`.
    """
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if not name or name.startswith(b"/") or b".." in parts:
        _refuse("path", f"the path {name[:200]!r}, expected a relative one without ..")
    path = b"/".join(parts)
    if len(path) > MAX_PATH or len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME for part in parts):
        _refuse("path", f"a path of {len(path)} bytes in {len(parts)} parts: {name[:200]!r}")
    return path


def _apply_whiteouts(tree: ImageTree, layer: _Layer) -> None:
    """Hide what lower layers have, before anything of this layer is there (rule 2).

    The order of a layer's whiteouts does not count: parents go first, and removing more than emptying.
    """
    for path in sorted(layer.removed):
        tree.remove(path)
    for path in sorted(layer.emptied):
        change = layer.changes.get(path)
        if path and isinstance(change, Node) and change.is_directory:
            tree.remove(path)  # overlayfs marks a new directory so, which replaces a file or link too
        else:
            tree.clear(path)


def _apply_changes(tree: ImageTree, layer: _Layer) -> int:
    """Place a layer's entries in their order; return how many are hard links."""
    placed: set[bytes] = set()
    hard_links = 0
    for path, change in layer.changes.items():
        if isinstance(change, Node):
            tree.put(path, change)
        else:
            # what this layer gives only later would be one file to some tools, and another to the rest
            node = None if change in layer.changes and change not in placed else tree.get(change)
            if node is None or node.is_directory:
                _refuse("link", f"{path[:200]!r} linked to {change[:200]!r}, which is no file before it")
            tree.put(path, node)
            hard_links += 1
        placed.add(path)
    # `put` refuses what is below a file; here is a file that came after what is below it
    for path in placed:
        if tree.get(path) is None:
            _refuse("duplicate", f"{path[:200]!r} below what it also has as no directory")
    return hard_links


def _refuse(code: str, what: str) -> NoReturn:
    raise ProtocolError(f"image.layer.{code}", f"layer has {what}")
