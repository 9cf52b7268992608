"""The checksum list of an OS image, whose hash is the image's name (spec attestation 7.4, measurement 4.1).

The list travels in a measurement document, and beside the files of a downloaded image: one reader for both.
"""

import re
from hashlib import sha256
from typing import Final

from shared.errors import InvalidEvidence

SUMS_NAME: Final = "sha256sum.txt"
MAX_SUMS_BYTES: Final = 64 * 1024  # a real list has ten lines of about 90 bytes
MAX_SUMS_LINES: Final = 256
MAX_NAME: Final = 128  # the longest real name has 25 characters

_DIGEST: Final = re.compile(rb"[0-9a-fA-F]{64}")
# A flat name that means the same to every tool: no separator, no leading dot or dash, no `*` of sha256sum's
# binary mode (upstream's verifier takes that for a part of the name), no backslash of its escaped form.
_NAME: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._+-]*")


def os_image_hash(sha256sum_txt: bytes) -> bytes:
    """Return the 32-byte os_image_hash: SHA-256 of the exact bytes of the image's sha256sum.txt."""
    return sha256(sha256sum_txt).digest()


def parse_sha256sums(sha256sum_txt: bytes) -> dict[str, bytes]:
    """Return the 32-byte SHA-256 of each listed file, by name, in the list's order.

    Each line is `<64 hex> <flat name>`; blank lines are skipped. Raises `InvalidEvidence`:
    `os_image.sums.size` (more than 64 KiB or 256 lines), `os_image.sums.empty`, `os_image.sums.line` (not
    exactly two fields), `os_image.sums.digest`, `os_image.sums.name` (a path, an option, or over-long),
    `os_image.sums.self` (the list names itself), `os_image.sums.duplicate`.
    """
    if len(sha256sum_txt) > MAX_SUMS_BYTES or sha256sum_txt.count(b"\n") > MAX_SUMS_LINES:
        raise InvalidEvidence(
            "os_image.sums.size",
            f"{SUMS_NAME} has {len(sha256sum_txt)} bytes, expected at most {MAX_SUMS_BYTES} "
            f"in at most {MAX_SUMS_LINES} lines",
        )
    sums: dict[str, bytes] = {}
    for number, line in enumerate(sha256sum_txt.split(b"\n"), start=1):
        if fields := line.split():
            name, digest = _entry(fields, number)
            if name in sums:
                raise InvalidEvidence("os_image.sums.duplicate", f"{SUMS_NAME} lists {name} twice")
            sums[name] = digest
    if not sums:
        raise InvalidEvidence("os_image.sums.empty", f"{SUMS_NAME} lists no file, expected at least one")
    return sums


def _entry(fields: list[bytes], number: int) -> tuple[str, bytes]:
    if len(fields) != 2:
        raise InvalidEvidence(
            "os_image.sums.line", f"line {number} of {SUMS_NAME} has {len(fields)} fields, expected 2"
        )
    digest, name = fields
    if not _DIGEST.fullmatch(digest):
        raise InvalidEvidence(
            "os_image.sums.digest", f"line {number} of {SUMS_NAME} does not start with 64 hex digits"
        )
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidEvidence(
            "os_image.sums.name", f"line {number} of {SUMS_NAME} does not name a file by a plain flat name"
        )
    text = name.decode()
    if text == SUMS_NAME:
        raise InvalidEvidence("os_image.sums.self", f"{SUMS_NAME} lists itself, which no hash can satisfy")
    return text, bytes.fromhex(digest.decode())
