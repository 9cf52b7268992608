"""Receives deliveries (contracts section 5.2): authenticate the raw bytes, take hints, queue looks, answer.

The order is the security argument: nothing of a body is parsed before its signature and time hold, and
nothing of it is believed after.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final

import msgspec

from functions.deploy.store import Schedule
from functions.governance.delivery import Delivery, LogHint, check_texts
from functions.governance.events import EVENTS
from functions.governance.look import Look
from functions.governance.notice import Notice, Notify
from functions.governance.providers import MAX_BODY, PROVIDERS, plain_body, verify
from functions.governance.state import Memory
from shared.errors import ConfigError, ProtocolError
from shared.strict_json import decode_json

MAX_DEPTH: Final = 24

SecretSource = Callable[[str, int], Sequence[bytes]]
"""From a provider's name and the time to its valid secrets, newest first. Raises `ConfigError`."""


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a delivery. `ignored` are codes with how often each was met."""

    accepted: int = 0
    ignored: dict[str, int] = {}
    replayed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the answer's object."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | ({"code": "governance.replay"} if self.replayed else {})


class Receiver:
    """Takes deliveries of `providers` about the contract `kms` and `apps()`, on `chain_id`.

    `schedule` has a look made. `memory` remembers deliveries and logs.
    """

    def __init__(
        self,
        secrets: SecretSource,
        memory: Memory,
        schedule: Schedule,
        notify: Notify,
        *,
        kms: bytes,
        apps: Callable[[], frozenset[bytes]],
        chain_id: int,
    ) -> None:
        self._secrets = secrets
        self._memory = memory
        self._schedule = schedule
        self._notify = notify
        self._kms = kms
        self._apps = apps
        self._chain_id = chain_id

    def receive(self, name: str, headers: Mapping[str, str], body: bytes, now: int) -> Received:
        """Take one delivery; header names in any case, `now` in unix seconds.

        Raises `ConfigError("governance.provider")` for one that is not known or has no secret here;
        `InvalidEvidence` as `verify`; `ProtocolError`: `governance.body.size`, `governance.body.json.*`,
        `governance.body.shape`, `governance.body.logs`; `UnavailableError("governance.busy")`; what the queue
        and the store raise. Whatever is raised was not remembered, and may be delivered again.
        """
        if len(body) > MAX_BODY:
            raise ProtocolError("governance.body.size", f"the body has more than {MAX_BODY} bytes")
        provider = PROVIDERS.get(name)
        if provider is None:
            raise ConfigError("governance.provider", f"there is no provider {name[:40]!a}")
        secrets = self._secrets(name, now)
        lower = {key.lower(): value for key, value in headers.items()}
        raw = plain_body(lower, body) if provider.unpacks else body
        verify(provider, secrets, lower, raw, now)
        document = decode_json(
            raw, what="the body", code="governance.body.json", max_bytes=MAX_BODY, max_depth=MAX_DEPTH
        )
        if not isinstance(document, dict):
            raise ProtocolError("governance.body.shape", "the body is no object")
        check_texts(document)
        delivery = provider.read(document)
        took: list[Received] = []
        key = f"delivery:{name}:{sha256(delivery.id.encode()).hexdigest()}"
        self._memory.do(key, lambda: took.append(self._take(delivery)))
        return took[0] if took else Received(replayed=True)

    def _take(self, delivery: Delivery) -> Received:
        """Queue a look for every contract with a log that is news."""
        ignored: dict[str, int] = {}
        accepted = 0
        looks: dict[bytes, int] = {}
        fresh: list[LogHint] = []
        apps: frozenset[bytes] | None = None
        for hint in delivery.hints:
            if hint.address != self._kms and apps is None:
                apps = self._apps()
            code = self._why_not(hint, apps or frozenset())
            if code:
                ignored[code] = ignored.get(code, 0) + 1
            else:
                fresh.append(hint)
        for hint in fresh:
            # the look is queued before the log counts as seen: a crash between the two repeats it
            if self._memory.do(hint.key(self._chain_id), partial(self._see, hint, looks)):
                accepted += 1
            else:
                ignored["governance.event.seen"] = ignored.get("governance.event.seen", 0) + 1
        if delivery.anywhere:
            self._schedule(Look(None, 0).name, 0)
            accepted += 1
        return Received(accepted=accepted, ignored=ignored)

    def _see(self, hint: LogHint, looks: dict[bytes, int]) -> None:
        # a dropped block's number tells nothing of how far the chain has come since
        at_least = 0 if hint.removed else hint.block_number
        if looks.get(hint.address, -1) < at_least:
            self._schedule(Look(hint.address, at_least).name, 0)
            looks[hint.address] = at_least
        # what drops a log has it counted again when it is back, and the other way round
        self._memory.forget(hint.opposite.key(self._chain_id))
        self._tell(hint)

    def _why_not(self, hint: LogHint, apps: frozenset[bytes]) -> str:
        if hint.chain_id not in {None, self._chain_id}:
            return "governance.event.chain"
        if hint.address != self._kms and hint.address not in apps:
            return "governance.event.contract"
        return "" if hint.topic in EVENTS else "governance.event.unknown"

    def _tell(self, hint: LogHint) -> None:
        event = EVENTS[hint.topic]
        word = "was dropped with its block" if hint.removed else "is reported"
        self._notify(
            Notice(
                code="governance.event",
                message=f"{event.name} {word}",
                severity="info" if event.effect in {"grant", "either"} else "warning",
                facts={
                    "event": event.name,
                    "effect": event.effect,
                    "address": f"0x{hint.address.hex()}",
                    "block": hint.block_number,
                    "removed": hint.removed,
                },
            )
        )
