"""What an enclave image needs besides the application: kernel, `init`, `nsm.ko` (spec measurement 1.6).

They are given by a path, or by an https URL with the SHA-256 that its bytes must have.
"""

import hashlib
import hmac
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from functions.builder.cache import BuildCache
from shared.errors import ConfigError, ProtocolError, UnavailableError
from shared.measurement.image_reference import format_digest, match_digest

if TYPE_CHECKING:  # a path is read without the network's modules
    from shared.net.fetch import HttpClient

MAX_BOOT_BLOB = 64 << 20
"""Of one of them, held in memory: AWS's kernel has some 10 MB."""

DOWNLOAD_TIMEOUT = 300.0

_PLACE = re.compile(r"(.+?)(?:@(sha256:[0-9a-f]{64}))?", re.DOTALL)


class BootBlob(msgspec.Struct, frozen=True):
    """A blob's bytes, and their SHA-256 (32 bytes)."""

    content: bytes
    digest: bytes


class BootBlobs(msgspec.Struct, frozen=True):
    """Kernel, bootstrap programs, and the kernel's command line (bytes, without a newline)."""

    kernel: BootBlob
    init: BootBlob
    nsm_ko: BootBlob
    cmdline: bytes


def load_blob(place: str, cache: BuildCache, http: "HttpClient") -> BootBlob:
    """Return the blob at `place`: `PATH`, `PATH@sha256:HEX` or `https://...@sha256:HEX`.

    A download is kept in `cache`. Raises `ConfigError`: `blob.place`, `blob.unpinned` (a URL without a
    digest), `blob.missing`, `blob.size`; `ProtocolError("blob.digest")`; `UnavailableError("blob.status")`;
    what the HTTP client and the cache raise.
    """
    match = _PLACE.fullmatch(place)
    if match is None:
        raise ConfigError("blob.place", "a boot file is given as nothing, expected a path or an https url")
    digest = match_digest(match[2])
    is_url = "://" in match[1]
    content = _download(match[1], digest, cache, http) if is_url else _read(Path(match[1]))
    got = hashlib.sha256(content).digest()
    if digest is not None and not hmac.compare_digest(got, digest):
        raise ProtocolError(
            "blob.digest", f"{match[1][:200]} is {format_digest(got)}, expected {format_digest(digest)}"
        )
    return BootBlob(content, got)


def _download(url: str, digest: bytes | None, cache: BuildCache, http: "HttpClient") -> bytes:
    if not url.startswith("https://"):
        raise ConfigError("blob.place", f"got {url[:200]!r}, expected a path or an https url")
    if digest is None:
        raise ConfigError("blob.unpinned", f"{url[:200]} has no digest, expected @sha256:HEX behind it")
    kept = cache.blob(digest)
    if kept is not None:
        return kept
    answer = http.request("GET", url, timeout=DOWNLOAD_TIMEOUT, max_bytes=MAX_BOOT_BLOB)
    if answer.status != 200:
        raise UnavailableError("blob.status", f"got status {answer.status} for {url[:200]}")
    if hmac.compare_digest(hashlib.sha256(answer.body).digest(), digest):
        cache.keep_blob(digest, answer.body)
    return answer.body


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError("blob.missing", f"there is no file {str(path)[:200]}")
        with path.open("rb") as file:
            content = file.read(MAX_BOOT_BLOB + 1)
    except OSError as error:
        raise ConfigError("blob.missing", f"cannot read {str(path)[:200]}: {error.strerror}") from error
    if len(content) > MAX_BOOT_BLOB:
        raise ConfigError("blob.size", f"{path} has more than {MAX_BOOT_BLOB} bytes")
    return content
