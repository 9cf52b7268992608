"""Tells a function outside how far the boot is: hints for whoever deploys, since an enclave has no console.

One POST of JSON per event, through the parent's proxy:

    {"version": 1, "boot": "<16 hex>", "sequence": 3, "app_id": "<40 hex>", "step": "keys",
     "status": "failed", "code": "kms.refused"}

`status` is `started`, `done` or `failed`; `code` is empty, or the stable code of an error: never its text,
and never a value. `boot` is random and tells two boots apart. Nothing is signed, so it proves nothing: only
evidence shows what runs. Reporting that fails is given up and never stops a boot.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import msgspec

from enclave.log import log_event
from shared.compose.enclave_toml import PROGRESS_PORT
from shared.errors import DstackError, ProtocolError, UnavailableError

if TYPE_CHECKING:
    from enclave.dstack_util.enclave_config import EnclaveConfig
    from enclave.platform import Platform

Status = Literal["started", "done", "failed"]
Send = Callable[[bytes], None]

SEND_SECONDS: Final = 3.0
MAX_ANSWER: Final = 4096
"""Bytes. Nothing in an answer is read."""

MAX_FAILURES: Final = 2
"""In a row; then nobody listens, and each attempt would only delay the boot."""

INTERNAL: Final = "internal"

FROM_PARENT: Final = "parent"
"""`boot.progress_url` of an image that leaves it to its parent who is told: each deployment has a URL."""

MAX_URL: Final = 2048

_URL: Final = re.compile(r"https?://[!-~]+")
_CODE: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*")
_MAX_CODE: Final = 80


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as it is sent."""

    version: int = 1
    boot: str
    sequence: int
    app_id: str
    step: str
    status: Status
    code: str = ""


class Progress:
    """Numbers the events of one boot, logs them, and sends them while somebody takes them."""

    def __init__(self, send: Send | None = None, *, app_id: bytes = b"") -> None:
        self._send = send
        self._app_id = app_id.hex()
        self._boot = secrets.token_hex(8)
        self._sequence = 0
        self._failures = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell that a step started, and how it ended."""
        self.tell(name, "started")
        try:
            yield
        except DstackError as error:
            self.tell(name, "failed", error.code)
            raise
        except BaseException:
            self.tell(name, "failed", INTERNAL)
            raise
        self.tell(name, "done")

    def tell(self, step: str, status: Status, code: str = "") -> None:
        """Log and send one event."""
        if code and (len(code) > _MAX_CODE or not _CODE.fullmatch(code)):
            code = INTERNAL
        self._sequence += 1
        log_event("init.step", step=step, status=status, code=code)
        if self._send is None or self._failures >= MAX_FAILURES:
            return
        event = Event(
            boot=self._boot,
            sequence=self._sequence,
            app_id=self._app_id,
            step=step,
            status=status,
            code=code,
        )
        try:
            self._send(msgspec.json.encode(event))
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - a hint that is lost must not cost a boot
            self._failures += 1
            log_event("init.progress_lost", code=getattr(error, "code", INTERNAL))


def http_sender(platform: "Platform", config: "EnclaveConfig") -> Send | None:
    """Return what posts to `boot.progress_url`, None where there is none.

    Where that is `parent`, the first event asks the parent for a URL: what is told is no secret of anybody's,
    and goes through the parent in any case.
    """
    known = config.boot.progress_url
    if not known:
        return None
    from shared.net.fetch import HttpClient  # noqa: PLC0415 - loaded where somebody is told

    roots = platform.read_measured(config.trust.tls_roots) if config.trust.tls_roots else None
    client = HttpClient(platform.dialer(), ca_roots=roots, timeout=SEND_SECONDS, max_bytes=MAX_ANSWER)
    url = "" if known == FROM_PARENT else known

    def send(body: bytes) -> None:
        nonlocal url
        url = url or fetch_progress_url(platform)
        client.request("POST", url, body=body, headers={"content-type": "application/json"})

    return send


def fetch_progress_url(platform: "Platform") -> str:
    """Return the URL that the parent offers.

    Raises `ProtocolError`: `init.progress.url` for what is none, `init.progress.oversize`;
    `UnavailableError`: `init.progress.none` where it offers nothing, and as `read_offer`.
    """
    from enclave.init.offers import read_offer  # noqa: PLC0415 - loaded where somebody is told
    from enclave.tee.nitro import NitroTee  # noqa: PLC0415 - as above

    tee = platform.tee
    if not isinstance(tee, NitroTee):
        raise UnavailableError("init.progress.none", "this guest has no parent")
    raw = read_offer(
        tee,
        PROGRESS_PORT,
        what="a progress url",
        limit=MAX_URL,
        seconds=SEND_SECONDS,
        connect=SEND_SECONDS,
        code="init.progress",
    )
    if not raw.strip():
        raise UnavailableError("init.progress.none", "the parent offers no progress url")
    text = raw.decode("ascii", "replace").strip()
    parts = urlsplit(text) if _URL.fullmatch(text) else None
    if parts is None or not parts.hostname or parts.username is not None:
        raise ProtocolError("init.progress.url", "what the parent offers is no url of http or https")
    return text
