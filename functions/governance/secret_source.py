"""Webhook secrets from the cloud's secret store, kept for a minute. They are in no package and no variable.

A secret's content is text: the valid secret on its first line, and on the second, while a provider is being
changed over, the one before it.
"""

import base64
import binascii
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from shared.errors import ConfigError, DstackError, UnavailableError

KEEP_SECONDS: Final = 60
"""For so long a secret that was withdrawn may still serve."""

MAX_SECRETS: Final = 2
MIN_LENGTH: Final = 16
"""Characters. What can be guessed protects nothing; providers' own have 30 and more."""

Fetch = Callable[[str], str]
"""From a place (`aws:NAME`) to the secret's content."""


class SecretCache:
    """Secrets by provider from `places`. Threads may share it."""

    def __init__(self, places: Mapping[str, str], fetch: Fetch) -> None:
        self._places = places
        self._fetch = fetch
        self._kept: dict[str, tuple[int, tuple[bytes, ...]]] = {}
        self._lock = threading.Lock()

    def get(self, provider: str, now: int) -> Sequence[bytes]:
        """Return a provider's valid secrets, newest first.

        Raises `ConfigError`: `governance.provider` for one without a secret here, `governance.secret` for
        content that is none; what `fetch` raises.
        """
        place = self._places.get(provider)
        if place is None:
            raise ConfigError("governance.provider", f"provider {provider[:40]!a} has no secret here")
        with self._lock:
            read_at, secrets = self._kept.get(provider, (0, ()))
            if not secrets or not 0 <= now - read_at < KEEP_SECONDS:
                secrets = _parse(provider, self._fetch(place))
                self._kept[provider] = (now, secrets)
            return secrets


def fetch_from(environ: Mapping[str, str]) -> Fetch:
    """Return what reads a secret wherever its place says."""

    def fetch(place: str) -> str:
        kind, _, where = place.partition(":")
        if kind == "env":
            return environ.get(where, "")
        return _from_aws(where) if kind == "aws" else _from_google(environ, where)

    return fetch


def _parse(provider: str, content: str) -> tuple[bytes, ...]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not 1 <= len(lines) <= MAX_SECRETS or min(map(len, lines)) < MIN_LENGTH:
        raise ConfigError(
            "governance.secret",
            f"the secret of {provider} has {len(lines)} lines, expected 1 or {MAX_SECRETS} of at least"
            f" {MIN_LENGTH} characters",
        )
    return tuple(line.encode() for line in lines)


def _from_aws(name: str) -> str:
    from functions.aws_api import aws_client, aws_errors  # noqa: PLC0415 - nobody else pays for it

    with aws_errors(f"reading the secret {name}"):
        answer = aws_client("secretsmanager").get_secret_value(SecretId=name)
    content = answer.get("SecretString")  # a binary secret has none
    if not isinstance(content, str):
        raise _unreadable(name)
    return content


def _from_google(environ: Mapping[str, str], name: str) -> str:
    from functions.google_api.endpoint import gcp_endpoint, google_session  # noqa: PLC0415 - as above

    base = gcp_endpoint(environ) or "https://secretmanager.googleapis.com"
    answer = google_session(environ).call("GET", f"{base}/v1/{name}/versions/latest:access")
    try:
        return base64.b64decode(answer["payload"]["data"], validate=True).decode()
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise _unreadable(name) from error


def _unreadable(name: str) -> DstackError:
    return UnavailableError(
        "governance.secret.answer", f"the secret store's answer for {name[:120]} holds no text"
    )
