"""The governance function, free of any cloud: routes and statuses, the queue's messages, the sweep.

`POST /webhooks/PROVIDER` takes a delivery; `GET` of it answers 200, as Tenderly asks. Everything else is for
the queue and the schedule, which the entries let in.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from functions.deploy.store import Schedule
from functions.governance.governor import AheadError, Governor
from functions.governance.look import Look, read_look
from functions.governance.notice import Notice, Notify
from functions.governance.providers import PROVIDERS
from functions.governance.receiver import Receiver
from functions.governance.reconciler import Reconciler, Report
from functions.governance.state import Memory
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError

CONTENT_TYPE: Final = "application/json; charset=utf-8"
WEBHOOKS: Final = "/webhooks/"

LAST_TRY: Final = 30
"""Of a message, on queues that have no dead letters of their own: it is buried, and operators are told."""

AHEAD_SECONDS: Final = 5
"""Until a look is made again whose block no quorum knows yet: a provider may see it some seconds before."""

AHEAD_WAITS: Final = 12
"""A minute of them. A block that is not known then is kept from the endpoints, or is a provider's lie."""

_OF_ANYBODY: Final = frozenset({"governance.provider", "governance.body.size", "governance.body.gzip"})


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and a JSON object."""

    status: int
    body: dict[str, Any]

    def encode(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(self.body)


class GovernanceService:
    """Receives, acts and reconciles. `schedule` has a look made later; `clock` gives unix seconds."""

    def __init__(
        self,
        receiver: Receiver,
        governor: Governor,
        reconciler: Reconciler,
        memory: Memory,
        schedule: Schedule,
        notify: Notify,
        clock: Callable[[], int],
    ) -> None:
        self._receiver = receiver
        self._governor = governor
        self._reconciler = reconciler
        self._memory = memory
        self._schedule = schedule
        self._notify = notify
        self._clock = clock

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request of a provider."""
        provider = path.removeprefix(WEBHOOKS)
        if not path.startswith(WEBHOOKS) or method not in {"GET", "POST"}:
            return Answer(
                HTTPStatus.NOT_FOUND, {"code": "governance.route", "error": "there is no such path"}
            )
        if method == "GET":
            return Answer(HTTPStatus.OK if provider in PROVIDERS else HTTPStatus.NOT_FOUND, {})
        try:
            received = self._receiver.receive(provider, headers, body, self._clock())
        except DstackError as error:
            self._notify(
                Notice(
                    code=error.code,
                    message=f"a delivery of {provider[:40]!a} was not taken: {error.message}",
                    # what anybody can send calls nobody
                    severity="info" if _is_unproven(error) else "warning",
                )
            )
            return refused(error)
        return Answer(HTTPStatus.OK, received.to_json())

    def act(self, name: str) -> None:
        """Do what a queue's message asks. What can never succeed is reported and dropped.

        Whatever else is raised has the queue deliver the message again.
        """
        try:
            look = read_look(name)
        except ProtocolError as error:
            self._notify(
                Notice(code=error.code, message=f"dropped a message: {error.message}", severity="warning")
            )
            return
        try:
            self._governor.look(look.address, look.at_least)
        except AheadError as error:
            self._wait(look, error)

    def _wait(self, look: Look, error: AheadError) -> None:
        """Have a look made again soon. Raises `error` where it waited long enough: operators are told."""
        may_wait = look.waits < AHEAD_WAITS
        if may_wait:
            self._schedule(look.later.name, AHEAD_SECONDS)
        self._notify(
            Notice(
                code=error.code,
                message=f"{look.name} is ahead: {error.message}",
                severity="info" if may_wait else "alarm",
            )
        )
        if not may_wait:
            raise error

    def act_or_bury(self, name: str, tries: int) -> None:
        """As `act`, for a queue without dead letters: the last try keeps the message, and tells operators."""
        try:
            self.act(name)
        except DstackError as error:
            if tries < LAST_TRY:
                raise
            self._memory.bury(name, error.code, self._clock())
            self._notify(
                Notice(
                    code="governance.dead_letter",
                    message=f"{name} failed {tries} times: {error.message}",
                    severity="alarm",
                )
            )

    def reconcile(self) -> Report:
        """Run the sweep."""
        return self._reconciler.run()


def _is_unproven(error: DstackError) -> bool:
    """Tell whether a delivery was refused before it was known to be a provider's."""
    return isinstance(error, InvalidEvidence) or error.code in _OF_ANYBODY


def refused(error: DstackError) -> Answer:
    """Return the answer for an error; the sentence is for operators' logs, the code for the provider's."""
    if error.code == "governance.provider":
        status = HTTPStatus.NOT_FOUND
    elif error.code == "governance.body.size":
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    elif isinstance(error, InvalidEvidence):
        status = HTTPStatus.UNAUTHORIZED
    elif isinstance(error, ProtocolError):
        status = HTTPStatus.BAD_REQUEST
    elif isinstance(error, ConfigError):
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    else:
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, {"code": error.code})
