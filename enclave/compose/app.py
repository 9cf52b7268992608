"""What the guest's boot left for the app: its measured document and its variables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from enclave.bounded_file import read_bounded
from shared.compose.app_compose import MAX_COMPOSE_BYTES, compose_hash
from shared.compose.env_file import MAX_TOTAL_BYTES
from shared.compose.model import AppCompose, read_app_compose
from shared.errors import ConfigError, InvalidEvidence

WORK_DIRECTORY: Final = Path("/dstack")
MAX_ENVIRONMENT: Final = 8 * MAX_TOTAL_BYTES
"""Bytes of `.decrypted-env.json`: a character takes six in JSON at most."""

_MAX_SYS_CONFIG: Final = 32 * 1024
_MAX_URL: Final = 2048


class App(msgspec.Struct, frozen=True, kw_only=True):
    """One app. Its repr shows no value: `environment` holds its secrets."""

    compose: AppCompose
    work: Path
    environment: dict[str, str]
    pccs_url: str = ""
    host_api_url: str = ""

    def __repr__(self) -> str:
        return f"App({self.compose.name!r}, {', '.join(self.environment)})"

    @property
    def compose_path(self) -> Path:
        """Where docker-compose.yaml is written; its directory's name is the project's."""
        return self.work / "docker-compose.yaml"


def load_app(work: Path = WORK_DIRECTORY, *, recorded: bytes | None = None) -> App:
    """Read `app-compose.json` and `.host-shared/.decrypted-env.json` below `work`.

    `recorded` is the guest's own `compose-hash` event, 32 bytes; the document must be that one, and None
    compares nothing. Raises `InvalidEvidence("compose.hash")`, `ConfigError`: `compose.file`,
    `compose.environment`; `ProtocolError("compose.*")`.
    """
    raw = read_bounded(work / "app-compose.json", MAX_COMPOSE_BYTES, code="compose.file")
    if raw is None:
        raise ConfigError("compose.file", f"there is no app-compose.json in {work}")
    found = compose_hash(raw)
    if recorded is not None and found != recorded:
        raise InvalidEvidence(
            "compose.hash", f"app-compose.json hashes to {found.hex()}, the guest recorded {recorded.hex()}"
        )
    shared = work / ".host-shared"
    host = _host_text(read_bounded(shared / ".sys-config.json", _MAX_SYS_CONFIG, code="compose.file"))
    return App(
        compose=read_app_compose(raw),
        work=work,
        environment=_environment(
            read_bounded(shared / ".decrypted-env.json", MAX_ENVIRONMENT, code="compose.file")
        ),
        pccs_url=_url(host, "pccs_url"),
        host_api_url=_url(host, "host_api_url"),
    )


def _environment(raw: bytes | None) -> dict[str, str]:
    if raw is None:
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigError("compose.environment", "the decrypted env is no json object of texts") from None


def _host_text(raw: bytes | None) -> Mapping[str, Any]:
    """Return the host's document; nothing where it is none, for an app runs without a word of its host."""
    try:
        document: Any = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _url(document: Mapping[str, Any], name: str) -> str:
    """Return one of the host's addresses. Collateral is signed, and the host is told things alone."""
    url = document.get(name)
    if not isinstance(url, str) or len(url) > _MAX_URL or not url.isascii() or not url.isprintable():
        return ""
    return url
