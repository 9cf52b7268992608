"""The merged file tree of an image: what its ramdisk will hold, without the data (spec measurement 3.2).

A tree is built from layers by `image_layers`; paths are bytes, relative, without `.` and `..`, and compare
byte by byte, so case counts.
"""

from collections.abc import Iterator
from operator import itemgetter
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

import msgspec

from shared.errors import ProtocolError

MAX_ENTRIES = 500_000
"""Of all layers together, parents that no layer names included: some 300 bytes of memory each. A full desktop
system has about 250,000."""

MAX_PATH_BYTES = 64 << 20
"""Of all their paths together, for the same reason: a desktop system has about 20 MB of them."""

MAX_TREE_BYTES = 8 << 30
"""Of all files together, each hard link counted: an enclave needs four times its image as memory."""

MAX_FILE_BYTES = (1 << 32) - 1
"""Of one file: a ramdisk's size field has 32 bits."""

MAX_PATH = 4096 - len("rootfs/") - 1
"""Of a path in the image. The kernel leaves longer names out of a ramdisk without a word (PATH_MAX)."""

MAX_TARGET = 4095
"""Of a symbolic link's target; the kernel leaves out longer ones too."""

MAX_NAME = 255
"""Of one component (NAME_MAX)."""

MAX_DEPTH = 512
"""Components of a path. Real ones have under 40; each level is one step of every lookup."""


class Node(msgspec.Struct, frozen=True, gc=False):
    """One file, link or directory. `mode` has the type bits; times are not kept.

    A file's data are `size` bytes at `offset` of the uncompressed layer of index `layer`; `target` is a
    symbolic link's, as it was written.
    """

    mode: int
    uid: int
    gid: int
    layer: int = 0
    offset: int = 0
    size: int = 0
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return self.mode & 0o170000 == S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return self.mode & 0o170000 == S_IFREG

    @property
    def is_symlink(self) -> bool:
        """Whether this is a symbolic link."""
        return self.mode & 0o170000 == S_IFLNK

    @property
    def is_fifo(self) -> bool:
        """Whether this is a named pipe."""
        return self.mode & 0o170000 == S_IFIFO


DEFAULT_DIRECTORY = Node(S_IFDIR | 0o755, 0, 0)
"""What a parent that no layer names becomes (rule 4)."""


class _Directory:
    __slots__ = ("children", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.children: dict[bytes, _Directory | Node] = {}


class ImageTree:
    """A tree under construction, or done. Not for sharing between threads while it changes."""

    def __init__(self) -> None:
        self._root = _Directory(DEFAULT_DIRECTORY)
        self._made = self._path_bytes = 0

    def get(self, path: bytes) -> Node | None:
        """Return what is at `path`, no link followed; the root is `b""`."""
        found = self._find(path)
        return found.node if isinstance(found, _Directory) else found

    def put(self, path: bytes, node: Node) -> None:
        """Place `node` at `path`: a directory over a directory keeps its children, all else replaces.

        Raises `ProtocolError`: `image.layer.parent` where a parent is no directory (links are not followed),
        `image.layer.entries` where more was made than the limits allow.
        """
        if not path:
            self._root.node = node
            return
        *parents, name = path.split(b"/")
        at, length = self._root, 0
        for part in parents:
            length += len(part) + 1
            child = at.children.get(part)
            if child is None:
                self._count(length)
                child = at.children[part] = _Directory(DEFAULT_DIRECTORY)
            if isinstance(child, Node):
                raise _through(path)
            at = child
        old = at.children.get(name)
        if node.is_directory and isinstance(old, _Directory):
            old.node = node
            return
        self._count(len(path))
        at.children[name] = _Directory(node) if node.is_directory else node

    def _count(self, path_length: int) -> None:
        self._made += 1
        self._path_bytes += path_length
        if self._made > MAX_ENTRIES or self._path_bytes > MAX_PATH_BYTES:
            raise ProtocolError(
                "image.layer.entries",
                f"layers have more than {MAX_ENTRIES} entries or {MAX_PATH_BYTES} bytes of paths",
            )

    def remove(self, path: bytes) -> None:
        """Remove what is at `path`, with all below it; nothing there is no error.

        Raises `ProtocolError("image.layer.parent")`.
        """
        head, _, name = path.rpartition(b"/")
        found = self._below(head)
        if found is not None:
            found.children.pop(name, None)

    def clear(self, path: bytes) -> None:
        """Remove all below `path`, not what is there itself. Raises `ProtocolError("image.layer.parent")`."""
        found = self._below(path)
        if found is not None:
            found.children.clear()

    def entries(self) -> list[tuple[bytes, Node]]:
        """Return all paths but the root with their nodes, sorted by their bytes: parents come first.

        Raises `ProtocolError("image.layer.size")` where they hold more than `MAX_TREE_BYTES`.
        """
        found = list(self._walk())
        if sum(node.size for _, node in found) > MAX_TREE_BYTES:
            raise ProtocolError(
                "image.layer.size", f"files of the image have more than {MAX_TREE_BYTES} bytes"
            )
        found.sort(key=itemgetter(0))
        return found

    def _walk(self) -> Iterator[tuple[bytes, Node]]:
        waiting = [(b"", self._root)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, child in directory.children.items():
                path = prefix + name
                if isinstance(child, _Directory):
                    waiting.append((path + b"/", child))
                    yield path, child.node
                else:
                    yield path, child

    def _find(self, path: bytes) -> "_Directory | Node | None":
        at: _Directory | Node | None = self._root
        for name in path.split(b"/") if path else ():
            if not isinstance(at, _Directory):
                return None
            at = at.children.get(name)
        return at

    def _below(self, path: bytes) -> _Directory | None:
        """Return the directory at `path`, None where nothing is."""
        at: _Directory | Node | None = self._root
        for name in path.split(b"/") if path else ():
            if not isinstance(at, _Directory):
                break
            at = at.children.get(name)
        if isinstance(at, Node):
            raise _through(path)
        return at


def _through(path: bytes) -> ProtocolError:
    return ProtocolError(
        "image.layer.parent",
        f"layer has {path[:200]!r} below something that is no directory; links are not followed",
    )
