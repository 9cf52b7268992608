"""PCR0 to PCR2 of an enclave image, and the hash that stands for them (measurement spec 2).

A register is sha384(48 zeros || sha384(payloads)). The payloads are hashed without headers or lengths: the
registers tell their bytes, not where one ends and the next begins. The command line's first words may so be
lost to the kernel's end.
"""

from collections.abc import Callable
from enum import IntEnum
from hashlib import sha256, sha384
from typing import Final

from shared.errors import InvalidEvidence

PCR_SIZE: Final = 48
STOCK_PCR1: Final = frozenset(
    bytes.fromhex(value)
    for value in (
        "0343b056cd8485ca7890ddd833476d78460aed2aa161548e4e26bedf321726696257d623e8805f3f605946b3d8b0c6aa",
        "4b4d5b3661b3efc12920900c80e126e4ce783c522de6c02a2a5bf7af3a2b9327b86776f188e4be1c1c404a129dbda493",
    )
)
"""PCR1 of the kernels and bootstraps that nitro-cli releases shipped for x86_64 (spec 2.1)."""


class SectionKind(IntEnum):
    """The types of an image's sections, by their numbers."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


class Registers:
    """Hashes payloads, section after section in the file's order.

    Up to the end of the first ramdisk PCR0 and PCR1 are over the same bytes: one hash serves both.
    """

    def __init__(self) -> None:
        self._all = sha384()
        self._later = sha384()
        self._boot: bytes | None = None

    def begin(self, kind: SectionKind) -> tuple[Callable[[bytes], object], ...]:
        """Return the functions that each take the section's whole payload."""
        if kind in {SectionKind.KERNEL, SectionKind.CMDLINE}:
            return (self._all.update,)
        if kind is not SectionKind.RAMDISK:
            return ()
        return (self._all.update,) if self._boot is None else (self._all.update, self._later.update)

    def end(self, kind: SectionKind) -> None:
        """Say that the section is over."""
        if kind is SectionKind.RAMDISK and self._boot is None:
            self._boot = self._all.digest()

    def values(self) -> tuple[bytes, bytes, bytes]:
        """Return PCR0, PCR1 and PCR2; `InvalidEvidence("eif.sections")` if there was no ramdisk."""
        if self._boot is None:
            raise InvalidEvidence("eif.sections", "image has no ramdisk, expected at least one")
        return extended(self._all.digest()), extended(self._boot), extended(self._later.digest())


def extended(digest: bytes) -> bytes:
    """Return the 48 bytes of a register that was zero and is extended once by `digest`."""
    return sha384(bytes(PCR_SIZE) + digest).digest()


def image_hash(pcr0: bytes, pcr1: bytes, pcr2: bytes) -> bytes:
    """Return OS_IMAGE_HASH, the 32 bytes that stand for an enclave image."""
    return sha256(pcr0 + pcr1 + pcr2).digest()
