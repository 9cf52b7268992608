"""The chain as a command's options name it: which blocks count, and who is asked for proofs."""

from collections.abc import Sequence
from typing import Final

from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.quorum import ChainQuorum

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def chain_quorum(rpc_urls: Sequence[str], chain_id: int) -> tuple[ChainQuorum, tuple[JsonRpc, ...]]:
    """Return who names the blocks, and the endpoints in their order.

    Two hosts must agree, over TLS. A development chain on this machine may be alone, and plain http. Raises
    `ConfigError`: `rpc.url.invalid`, `quorum.config.*`.
    """
    http = HttpClient(DirectDialer())
    endpoints = tuple(JsonRpc(url, http) for url in rpc_urls)
    is_here = all(endpoint.host in _LOOPBACK for endpoint in endpoints)
    quorum = ChainQuorum(
        endpoints,
        chain_id=chain_id,
        quorum=min(2, len(endpoints)) if is_here else 2,
        allow_plain_http=is_here,
        allow_single=is_here,
    )
    return quorum, endpoints
