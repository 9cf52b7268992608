"""What guests say of their own boot: taken from whoever knows a deployment's word, kept, and never believed.

A guest has no identity before it has booted, so nothing is signed. The word in the URL keeps strangers out,
the rest is bounded: few fields, short ones, and few of them in a minute. Evidence alone shows what runs.
"""

import re
from collections.abc import Callable
from hmac import compare_digest
from typing import Annotated, Final, Literal

import msgspec

from functions.deploy.record import Deployment, ProgressHint, Step
from functions.deploy.store import ConflictError, DeploymentStore, NotFoundError
from shared.errors import ProtocolError
from shared.strict_json import decode_json

MAX_EVENT: Final = 1024
"""Bytes of one event; a real one has less than 300."""

MAX_KEPT: Final = 32
"""Events that a deployment remembers: two boots of an enclave."""

RATE_SECONDS: Final = 60
"""No more than `MAX_KEPT` are taken within this time."""

_TRIES: Final = 5
"""Of a write that the engine overtakes; then the hint is lost, as any may be."""

_Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}\Z")]
_Code = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9_]+(\.[a-z0-9_]+)*)?\Z", max_length=80)]
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{20,80}")


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body, as `enclave.init.progress` sends it."""

    version: Literal[1]
    boot: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    sequence: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    app_id: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{40})?\Z")] = ""
    step: _Word
    status: Literal["started", "done", "failed"]
    code: _Code = ""


class ProgressDesk:
    """Takes events for deployments of a store; `clock` gives unix seconds."""

    def __init__(self, store: DeploymentStore, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock

    def take(self, name: str, token: str, body: bytes) -> None:
        """Keep one event with its deployment.

        The word is looked at first, and whoever does not know it is told nothing. Raises
        `NotFoundError("deploy.progress.unknown")`; `ProtocolError`: `deploy.request.size`,
        `deploy.request.json.*`, `deploy.request.field`; `ConflictError("deploy.progress.rate")`; and what the
        store raises.
        """
        for _ in range(_TRIES):
            found = self._known(name, token)
            hint = _hint(body, self._clock())
            kept = found.progress
            if len(kept) >= MAX_KEPT and kept[-MAX_KEPT].at > hint.at - RATE_SECONDS:
                raise _too_many()
            # nothing else is written: a runner's messages and a sweep go by `updated_at`
            told = msgspec.structs.replace(
                found, progress=(*kept, hint)[-MAX_KEPT:], version=found.version + 1
            )
            try:
                self._store.replace(told, found.version)
            except ConflictError as error:
                if error.code != "deploy.conflict":
                    raise
            else:
                return
        raise _too_many()

    def _known(self, name: str, token: str) -> Deployment:
        unknown = NotFoundError("deploy.progress.unknown", "nobody listens here")
        if _TOKEN.fullmatch(token) is None:
            raise unknown
        try:
            found = self._store.get(name)
        except NotFoundError:
            raise unknown from None
        known = found.progress_token
        if not known or not compare_digest(known.encode(), token.encode()) or found.step is Step.REMOVED:
            raise unknown
        return found


def _hint(body: bytes, now: int) -> ProgressHint:
    if len(body) > MAX_EVENT:
        raise ProtocolError("deploy.request.size", f"an event has at most {MAX_EVENT} bytes")
    document = decode_json(
        body, what="the event", code="deploy.request.json", max_bytes=MAX_EVENT, max_depth=2
    )
    try:
        event = msgspec.convert(document, _Event)
    except ValueError:
        raise ProtocolError("deploy.request.field", "the event is none of a guest's boot") from None
    return ProgressHint(
        at=now,
        boot=event.boot,
        sequence=event.sequence,
        step=event.step,
        status=event.status,
        code=event.code,
    )


def _too_many() -> ConflictError:
    return ConflictError("deploy.progress.rate", f"a deployment takes {MAX_KEPT} events in {RATE_SECONDS} s")
