"""Creations carried out on a copy of the chain's state: each on its own, as `eth_call` keeps nothing.

The proxy wants the implementation's code in place. Where it is not there yet, the endpoint is asked to
pretend that it is; not every endpoint takes that, and then the proxy is not simulated, which is said.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cli.gov.chain import Block, Contracts, as_hex
from cli.gov.creation import Creation, is_made_of, runtime_code
from cli.gov.reverts import revert_reason
from shared.chain.code import KMS, PROXY
from shared.errors import DstackError, PolicyDenied, ProtocolError
from shared.net.json_rpc import RevertedError, data, quantity

_NO_IMPLEMENTATION: Final = bytes.fromhex("4c9c8ce3")  # ERC1967InvalidImplementation(address)
# What endpoints answer to a parameter that they do not know.
_NOT_TAKEN: Final = frozenset({"rpc.error", "rpc.status", "rpc.malformed"})


class Simulated(msgspec.Struct, frozen=True):
    """What came of a simulation: the gas it needs, or None and the reason where it was not carried out."""

    gas: int | None
    why_not: str = ""


def simulate_creation(contracts: Contracts, one: Creation, sender: bytes, at: Block) -> Simulated:
    """Carry a creation out, and hold what comes of it to what was compiled.

    Raises `PolicyDenied("gov.would_revert")`, `ProtocolError("gov.deploy.code")` where the endpoint makes
    something else of it, and what the endpoint raises.
    """
    pretended: dict[str, Any] = {}
    if one.name == PROXY and not contracts.code(one.implementation, at):
        code = runtime_code(KMS, one.implementation)
        pretended = {as_hex(one.implementation): {"code": as_hex(code)}}
    try:
        return Simulated(_carried_out(contracts, one, sender, at, pretended))
    except RevertedError as error:
        if not pretended or error.data[:4] != _NO_IMPLEMENTATION:
            raise PolicyDenied(
                "gov.would_revert", f"creating {one.name} reverts: {revert_reason(error.data)}"
            ) from error
    except DstackError as error:
        if not pretended or error.code not in _NOT_TAKEN:
            raise
    return Simulated(
        None, f"{KMS} is not there yet, and the endpoint takes no state override that would pretend it"
    )


def _carried_out(
    contracts: Contracts, one: Creation, sender: bytes, at: Block, pretended: Mapping[str, Any]
) -> int:
    """Return the gas that a creation needs."""
    where = {"blockHash": as_hex(at.hash)}
    more = [pretended] if pretended else []
    create = {"from": as_hex(sender), "data": as_hex(one.code)}
    answer = contracts.endpoint.batch([("eth_call", [create, where, *more])])[0]
    if not is_made_of(one.name, data(answer, what="the code that was created")):
        raise ProtocolError("gov.deploy.code", f"the endpoint makes other code of {one.name} than is in it")
    asked = create | {"data": as_hex(one.calldata)}
    if one.to is not None:
        asked["to"] = as_hex(one.to)
        answer = contracts.endpoint.batch([("eth_call", [asked, where, *more])])[0]
        if data(answer, what="the address") != one.address:
            raise ProtocolError("gov.deploy.code", f"the endpoint creates {one.name} at another address")
    # without a block endpoints estimate for the newest one; where state is pretended it must be named
    estimate = contracts.endpoint.batch([("eth_estimateGas", [asked, *(["latest", *more] if more else [])])])[
        0
    ]
    return quantity(estimate, what="the gas")
