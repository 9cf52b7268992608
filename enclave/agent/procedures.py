"""How the agent's services are put together from their methods."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from enclave.serving.prpc import Dialect, Procedure, PrpcService, Reception, Refusal
from shared.rpc.codec import MAX_BODY_BYTES

LOCAL: Final = "local"
"""The caller of every method: reaching the socket is the authority, and who it was decides nothing."""

PUBLIC_BODY_BYTES: Final = 8 * 1024
"""What everybody may send: its methods take a word. Ten mebibytes from each of two thousand connections
would be more memory than guests have."""

Method = tuple[type[Message], Callable[[Any], Message]]
Methods = dict[str, Procedure[str]]

NO_METHODS: Final[Mapping[str, Method]] = {}


def methods(
    limits: Mapping[str, int],
    *,
    prompt: Mapping[str, Method],
    blocking: Mapping[str, Method],
    certifying: Mapping[str, Method] = NO_METHODS,
    largest: int = MAX_BODY_BYTES,
) -> Methods:
    """Return the methods of a service. `limits` are bytes of a request by method, below the `largest`.

    Those of `prompt` compute for less than a thread costs, and answer on the event loop; those of `blocking`
    ask devices or files. Those of `certifying` may wait half a minute for a KMS, long after their callers
    left: they have threads of their own, or a KMS that is down would take evidence away as well.
    """
    made: Methods = {}
    for name, (request, handler) in {**prompt, **blocking, **certifying}.items():
        call = _ignoring_caller(handler)
        made[name] = Procedure(
            request,
            call,
            prompt=call if name in prompt else None,
            max_body=min(limits.get(name, largest), largest),
            judges_evidence=name in certifying,
        )
    return made


def service(name: str, found: Methods, *, largest: int = MAX_BODY_BYTES) -> PrpcService[str]:
    """Return a service for its routes; `name` is the prefix that its methods may have, empty for none."""
    dialect = Dialect(
        unknown_status=404,
        oversize_status=413,
        unknown_body=largest,
        header_counts_early=True,
        ascii=True,
    )
    return PrpcService(name, found, _identify, _identify, reception=_Quiet(), dialect=dialect)


class _Quiet(Reception[str]):
    """Logs nothing of a refusal: an app's mistakes are its own, and its log is not ours to fill."""

    def refused(self, refusal: Refusal[str]) -> None:
        """Do nothing."""


def _identify(_peer_chain: list[bytes]) -> str:
    return LOCAL


def _ignoring_caller(handler: Callable[[Any], Message]) -> Callable[[Any, str], Message]:
    def call(request: Any, _caller: str) -> Message:  # noqa: ANN401 - each method has a request of its own
        return handler(request)

    return call
