"""How the agent's services are put together from their methods."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from enclave.serving.prpc import Dialect, Procedure, PrpcService, Reception, Refusal
from shared.rpc.codec import MAX_BODY_BYTES

LOCAL: Final = "local"
"""The caller of every method: reaching the socket is the authority, and who it was decides nothing."""

AGENT_DIALECT: Final = Dialect(
    unknown_status=404,
    oversize_status=413,
    unknown_body=MAX_BODY_BYTES,
    header_counts_early=True,
    ascii=True,
)

Method = tuple[type[Message], Callable[[Any], Message]]
Methods = dict[str, Procedure[str]]


def methods(
    limits: Mapping[str, int], *, prompt: Mapping[str, Method], blocking: Mapping[str, Method]
) -> Methods:
    """Return the methods of a service. `limits` are bytes of a request by method, where it is not 10 MiB.

    Those of `prompt` compute for less than a thread costs, and answer on the event loop; those of `blocking`
    ask devices, files or a KMS.
    """
    made: Methods = {}
    for name, (request, handler) in {**prompt, **blocking}.items():
        call = _ignoring_caller(handler)
        made[name] = Procedure(
            request,
            call,
            prompt=call if name in prompt else None,
            max_body=min(limits.get(name, MAX_BODY_BYTES), MAX_BODY_BYTES),
        )
    return made


def service(name: str, found: Methods) -> PrpcService[str]:
    """Return a service for its routes; `name` is the prefix that its methods may have, empty for none."""
    return PrpcService(name, found, _identify, _identify, reception=_Quiet(), dialect=AGENT_DIALECT)


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
