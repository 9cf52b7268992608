"""Asks several endpoints the same thing at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import DstackError
from shared.net.json_rpc import Endpoint

_T = TypeVar("_T")
# Questions under way to one endpoint: a KMS answers as many calls at once.
MAX_AT_ONCE = 64


class AtOnce:
    """Endpoints on distinct hosts, with threads that are kept. Safe to share between threads."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        # of its own for each: one that hangs holds up the questions to itself alone
        self._threads = {
            endpoint.host: ThreadPoolExecutor(MAX_AT_ONCE, f"rpc {endpoint.host}") for endpoint in endpoints
        }

    def ask(
        self, endpoints: Sequence[Endpoint], question: Callable[[Endpoint], _T]
    ) -> list[_T | DstackError]:
        """Return the answers of `endpoints`, some of ours, in order; an endpoint's failure is its answer."""

        def attempt(endpoint: Endpoint) -> _T | DstackError:
            try:
                return question(endpoint)
            except DstackError as error:
                return error

        others = [self._threads[endpoint.host].submit(attempt, endpoint) for endpoint in endpoints[1:]]
        own = [attempt(endpoint) for endpoint in endpoints[:1]]
        return [*own, *(other.result() for other in others)]
