"""References to images: `host/repository[:tag][@digest]` (spec measurement 3.3 step 1, trap N-73).

A tag names whatever its owner last pushed, so it is never enough for what is measured.
"""

import re
from typing import Final

import msgspec

from shared.errors import ConfigError

DOCKER_HUB: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_MAX_LENGTH: Final = 255  # of a repository with its host, in the reference grammar
_SHA256: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class ImageReference(msgspec.Struct, frozen=True):
    """An image in a registry. `digest` is 32 bytes of SHA-256; of `tag` and `digest` one may be None.

    `registry` is as people write it (`docker.io`), `repository` complete (`library/debian`).
    """

    registry: str
    repository: str
    tag: str | None
    digest: bytes | None

    @property
    def api_host(self) -> str:
        """The host, with its port, that answers for the registry."""
        return "registry-1.docker.io" if self.registry == DOCKER_HUB else self.registry

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{format_digest(self.digest)}"
        return f"{self.registry}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> ImageReference:
    """Parse a reference as docker does. Raises `ConfigError`: `image.reference.syntax`, `image.digest`."""
    name, at, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = head
    else:
        colon, tag = "", ""
    host, slash, repository = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, repository = DOCKER_HUB, name
    if host in {DOCKER_HUB, "index.docker.io"}:
        host = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    if (
        len(name) > _MAX_LENGTH
        or not _HOST.fullmatch(host)
        or not _REPOSITORY.fullmatch(repository)
        or (colon and not _TAG.fullmatch(tag))
    ):
        raise ConfigError(
            "image.reference.syntax", f"got {text[:_MAX_LENGTH]!r}, expected host/repository@sha256:digest"
        )
    return ImageReference(
        host,
        repository,
        (tag if colon else None) if colon or at else DEFAULT_TAG,
        _digest(digest) if at else None,
    )


def pinned_digest(reference: ImageReference) -> bytes:
    """Return the digest (32 bytes) of a reference that has one.

    Raises `ConfigError("image.reference.unpinned")`: a tag may mean another image tomorrow (N-73).
    """
    if reference.digest is None:
        raise ConfigError(
            "image.reference.unpinned",
            f"image {reference} has no digest, expected one like @sha256:<64 hex digits>: a tag can be moved",
        )
    return reference.digest


def match_digest(text: object) -> bytes | None:
    """Return the 32 bytes of `sha256:<64 lowercase hex digits>`, None for anything else."""
    match = _SHA256.fullmatch(text) if isinstance(text, str) else None
    return bytes.fromhex(match[1]) if match else None


def format_digest(digest: bytes) -> str:
    """Write a digest as registries do."""
    return f"sha256:{digest.hex()}"


def _digest(text: str) -> bytes:
    digest = match_digest(text)
    if digest is None:
        raise ConfigError("image.digest", f"got the digest {text[:80]!r}, expected sha256:<64 hex digits>")
    return digest
