"""The governance function, free of any cloud: routes and statuses, the queue's messages, the sweep.

`POST /webhooks/PROVIDER` takes a delivery; `GET` of it answers 200, as Tenderly asks. Everything else is for
the queue and the schedule, which the entries let in.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from functions.governance.governor import Governor
from functions.governance.look import read_look
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


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and a JSON object."""

    status: int
    body: dict[str, Any]

    def encode(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(self.body)


class GovernanceService:
    """Receives, acts and reconciles. `clock` gives unix seconds."""

    def __init__(
        self,
        receiver: Receiver,
        governor: Governor,
        reconciler: Reconciler,
        memory: Memory,
        notify: Notify,
        clock: Callable[[], int],
    ) -> None:
        self._receiver = receiver
        self._governor = governor
        self._reconciler = reconciler
        self._memory = memory
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
                    severity="warning",
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
        self._governor.look(look.address, look.at_least)

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
