"""A machine without privileges: it keeps what it is asked, acts it out on files, and fails where told."""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from enclave.dstack_util.luks_header import PAYLOAD_OFFSET
from enclave.dstack_util.machine import Completed, LinuxMachine
from shared.errors import StorageError

HEADER_SIZE = 16384
_MADE = b"ext4"


def luks_document(secret: bytes = b"secret") -> dict[str, Any]:
    """Return what cryptsetup 2.6 writes for `secret`, with a made-up digest of it."""
    salt = base64.b64encode(bytes(32)).decode()
    return {
        "keyslots": {
            "0": {
                "type": "luks2",
                "key_size": 64,
                "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
                "area": {
                    "type": "raw",
                    "offset": "32768",
                    "size": "258048",
                    "encryption": "aes-xts-plain64",
                    "key_size": 64,
                },
                "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": salt},
            }
        },
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": "16777216",
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 4096,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": ["0"],
                "segments": ["0"],
                "hash": "sha256",
                "iterations": 1000,
                "salt": salt,
                "digest": base64.b64encode(hashlib.sha256(secret).digest()).decode(),
            }
        },
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    }


def luks_copy(text: bytes, *, at: int = 0, **fields: bytes) -> bytes:
    """Return one copy of a header around a JSON text, with its checksum."""
    values: dict[str, tuple[int, bytes]] = {
        "magic": (0, b"SKUL\xba\xbe" if at else b"LUKS\xba\xbe"),
        "version": (6, b"\0\x02"),
        "size": (8, HEADER_SIZE.to_bytes(8)),
        "sequence": (16, (3).to_bytes(8)),
        "algorithm": (72, b"sha256"),
        "uuid": (168, b"50b6f356-8b77-4c4a-97b0-20d75d3f563d"),
        "offset": (256, at.to_bytes(8)),
    }
    places = {"label": 24, "subsystem": 208, "padding": 300, "behind": 600}
    copy = bytearray(4096) + text.ljust(HEADER_SIZE - 4096, b"\0")
    written = [(place, fields.pop(name, value)) for name, (place, value) in values.items()]
    for place, content in (*written, *((places[name], value) for name, value in fields.items())):
        copy[place : place + len(content)] = content
    copy[448:480] = hashlib.sha256(copy).digest()
    return bytes(copy)


def luks_header(document: dict[str, Any] | None = None, **fields: bytes) -> bytes:
    """Return a whole header area of a disk."""
    text = json.dumps(document or luks_document()).encode()
    copies = luks_copy(text, **fields) + luks_copy(text, at=HEADER_SIZE, **fields)
    return copies.ljust(PAYLOAD_OFFSET, b"\0")


class RecordedMachine(LinuxMachine):
    """A machine whose system files are below `root`. `failing` is the number of an operation that fails.

    `argv` are the commands that ran, `inputs` what went into them. `tools` are installed; `answers` gives the
    end of commands by their first words.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.argv: list[tuple[str, ...]] = []
        self.inputs: list[bytes] = []
        self.operations = 0
        self.failing = 0
        self.tools: set[str] = set()
        self.answers: dict[tuple[str, ...], Completed] = {}
        self.mounted: dict[str, str] = {}
        for directory in ("dev/mapper", "dev/disk/by-label", "etc", "proc"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        (root / "etc/os-release").write_text('NAME="dstack"\nVERSION_ID="0.6.0"\n')
        (root / "proc/cmdline").write_text("console=ttyS0\n")

    def reboot(self) -> None:
        """Lose what is in memory: mounts and mappings."""
        self.mounted.clear()
        for mapping in (self.root / "dev/mapper").iterdir():
            mapping.unlink()

    def words(self) -> list[str]:
        """Return the first two words of each command."""
        return [" ".join(argv[:2]) for argv in self.argv]

    def has(self, tool: str) -> bool:
        return tool in self.tools

    def is_mounted(self, point: Path) -> bool:
        return str(point) in self.mounted

    def write(self, path: Path, content: bytes, mode: int) -> None:
        self._count(f"write {path.name}")
        super().write(path, content, mode)

    def link(self, path: Path, target: Path) -> None:
        self._count(f"link {path.name}")
        super().link(path, target)

    def run(self, *argv: str, stdin: bytes = b"") -> Completed:
        self._count(" ".join(argv[:2]))
        self.argv.append(argv)
        self.inputs.append(stdin)
        for length in range(len(argv), 0, -1):
            if argv[:length] in self.answers:
                return self.answers[argv[:length]]
        act = getattr(self, f"_{argv[0].replace('.', '_')}", None)
        return Completed(0) if act is None else act(argv, stdin)

    def _count(self, what: str) -> None:
        self.operations += 1
        if self.operations == self.failing:
            raise StorageError("test.failure", f"{what} failed")

    def _mount(self, argv: tuple[str, ...], _stdin: bytes) -> Completed:
        source, point = Path(argv[-2]), Path(argv[-1])
        if source.is_dir():
            shutil.copytree(source, point, symlinks=True, dirs_exist_ok=True)
        elif not source.exists() or _MADE not in self._payload(source):
            return Completed(32, stderr=b"wrong fs type")
        self.mounted[str(point)] = str(source)
        return Completed(0)

    def _umount(self, argv: tuple[str, ...], _stdin: bytes) -> Completed:
        del self.mounted[argv[-1]]
        shutil.rmtree(argv[-1])
        return Completed(0)

    def _cryptsetup(self, argv: tuple[str, ...], stdin: bytes) -> Completed:
        if argv[1] == "luksClose":
            (self.root / "dev/mapper" / argv[2]).unlink()
            return Completed(0)
        header = Path(argv[argv.index("--header") + 1])
        if argv[1] == "luksFormat":
            header.write_bytes(luks_header(luks_document(stdin)))
            return Completed(0)
        expected = base64.b64encode(hashlib.sha256(stdin).digest())
        if expected not in header.read_bytes():
            return Completed(2, stderr=b"No key available with this passphrase.")
        mapping = self.root / "dev/mapper" / argv[-1]
        if mapping.exists():
            return Completed(5, stderr=b"Device already exists.")
        mapping.write_text(argv[-2])
        return Completed(0)

    def _mkfs_ext4(self, argv: tuple[str, ...], _stdin: bytes) -> Completed:
        with self._device(Path(argv[-1])).open("r+b") as file:
            file.seek(PAYLOAD_OFFSET)
            file.write(_MADE)
        return Completed(0)

    def _e2fsck(self, argv: tuple[str, ...], _stdin: bytes) -> Completed:
        return Completed(1 if _MADE in self._payload(Path(argv[-1])) else 8)

    def _payload(self, block: Path) -> bytes:
        with self._device(block).open("rb") as file:
            file.seek(PAYLOAD_OFFSET)
            return file.read(16)

    def _device(self, block: Path) -> Path:
        return Path(block.read_text()) if block.parent.name == "mapper" else block
