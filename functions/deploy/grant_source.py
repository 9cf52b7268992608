"""Where grants come from: the environment itself, or an object that can change while functions run."""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

from functions.deploy.grants import MAX_GRANTS_BYTES, Grants, parse_grants
from shared.errors import ConfigError

READ_AGAIN_AFTER: Final = 60
"""Seconds for which a withdrawn grant may still serve."""


class GrantSource:
    """The grants that `read` returns, read again when they are a minute old. Threads may share it.

    Where they cannot be read nothing is granted: `get` raises what `read` raises, and as `parse_grants`.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._grants: Grants | None = None
        self._read_at = 0
        self._lock = threading.Lock()

    def get(self, now: int) -> Grants:
        """Return the grants at `now` (unix seconds)."""
        with self._lock:
            if self._grants is None or not 0 <= now - self._read_at < READ_AGAIN_AFTER:
                self._grants = None
                self._grants = parse_grants(self._read())
                self._read_at = now
            return self._grants


def grants_from(place: str, environ: Mapping[str, str] = os.environ) -> GrantSource:
    """Return the source that `DSTACK_GRANTS` names: JSON text, `s3:BUCKET/KEY`, `gcs:BUCKET/KEY`.

    Raises `ConfigError("deploy.grants.place")`.
    """
    if place.lstrip().startswith("{"):
        return GrantSource(place.encode)
    kind, _, where = place.partition(":")
    bucket, _, key = where.partition("/")
    if kind == "s3" and bucket and key:
        return GrantSource(lambda: _from_s3(bucket, key))
    if kind == "gcs" and bucket and key:
        return GrantSource(lambda: _from_gcs(environ, bucket, key))
    raise ConfigError(
        "deploy.grants.place",
        "DSTACK_GRANTS is no json object, s3:BUCKET/KEY or gcs:BUCKET/KEY: set it to one",
    )


def _from_s3(bucket: str, key: str) -> bytes:
    from functions.aws_api import aws_client, aws_errors  # noqa: PLC0415 - nobody else pays for it

    with aws_errors(f"reading the grants at s3:{bucket}/{key}"):
        body = aws_client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        content: bytes = body.read(MAX_GRANTS_BYTES + 1)
    return content


def _from_gcs(environ: Mapping[str, str], bucket: str, key: str) -> bytes:
    from functions.clouds.making import google_bucket  # noqa: PLC0415 - as above

    return google_bucket(environ, bucket).download(key, MAX_GRANTS_BYTES)
