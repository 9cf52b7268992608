"""Asks several endpoints the same thing at once, and waits for all of them.

None of those who ask may go on when enough agree. In `ChainQuorum` a late endpoint may name a newer block, or
keep a majority from being one: whoever is fast could hide a revocation for as long as a head may be old. In
authorize's `ChainReader` all that answer must say the same, so the late one's word is the one to wait for. In
governance and in the operators' commands it is a vote against a majority. So what bounds the wait is each
endpoint's timeout, and for what serves others `shared.net.breaker`: who hangs is waited for once in a while.
"""

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
