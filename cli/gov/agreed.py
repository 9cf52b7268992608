"""Several endpoints as one: an answer counts where enough of them give it.

For what is read, and for the checks before something is sent. A transaction goes to the first that takes it:
the chain alone decides what becomes of it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cli.gov.refusals import is_known, is_refused
from shared.chain.agreement import is_agreed
from shared.errors import ConfigError, DstackError, UnavailableError
from shared.net.at_once import AtOnce
from shared.net.json_rpc import Call, Endpoint, RevertedError, quantity
from shared.net.quorum import MAX_ENDPOINTS, ChainQuorum

# Of blocks, receipts and logs the fields that are read here: in others nodes differ without lying.
_BLOCK: Final = ("number", "hash", "timestamp", "baseFeePerGas")
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "eth_getBlockByNumber": _BLOCK,
    "eth_getBlockByHash": _BLOCK,
    "eth_getTransactionReceipt": (
        *("transactionHash", "blockNumber", "blockHash", "status", "contractAddress", "to", "logs"),
    ),
    "eth_getLogs": (
        *("address", "topics", "data", "blockNumber", "blockHash", "transactionHash", "logIndex", "removed"),
    ),
}
_LOGS: Final = "eth_getLogs"
# What each node reckons for itself: the middle answer counts. Of an even number, of which two alone have no
# middle, it is the lower tip, as the tip is paid: no endpoint alone can raise it. And it is the higher gas:
# what is not used costs nothing, and a transaction with too little fails at its sender's cost.
_RECKONED: Final = {"eth_maxPriorityFeePerGas": 1, "eth_estimateGas": 0}
_SEND: Final = "eth_sendRawTransaction"


class AgreedEndpoint:
    """Endpoints on distinct hosts, of which `quorum` and a majority of those that answer must agree.

    The newest block and the finalised one are those that so many of them name, and a question about `latest`
    is about that block. Raises `ConfigError("gov.rpc")` for hosts that are not distinct, and a quorum that
    cannot be.
    """

    def __init__(self, endpoints: Sequence[Endpoint], quorum: int) -> None:
        hosts = {one.host for one in endpoints}
        if len(hosts) != len(endpoints) or not 1 <= len(hosts) <= MAX_ENDPOINTS:
            raise ConfigError(
                "gov.rpc",
                f"{len(endpoints)} endpoints are on {len(hosts)} hosts, expected distinct ones, "
                f"{MAX_ENDPOINTS} at most",
            )
        if not 1 <= quorum <= len(endpoints):
            raise ConfigError("gov.rpc", f"a quorum of {quorum} out of {len(endpoints)} endpoints")
        self._endpoints = tuple(endpoints)
        self.quorum = quorum
        self._at_once = AtOnce(endpoints)
        self._blocks: ChainQuorum | None = None

    @property
    def host(self) -> str:
        """The hosts."""
        return ", ".join(one.host for one in self._endpoints)

    @property
    def secure(self) -> bool:
        """Whether all answer over TLS."""
        return all(one.secure for one in self._endpoints)

    @property
    def size(self) -> int:
        """How many are asked."""
        return len(self._endpoints)

    def batch(self, calls: Sequence[Call]) -> list[object]:
        """Return the results that were agreed on, in the order of `calls`.

        Raises `UnavailableError("quorum.disagreement")`, what an endpoint raises where too few answer, and
        `RevertedError` where so many say that the contract ended a call; of the blocks what
        `ChainQuorum.blocks` raises.
        """
        if any(method == _SEND for method, _ in calls):
            return self._sent(calls)
        asked = [self._about_a_block(method, params) for method, params in calls]
        answers = self._at_once.ask(self._endpoints, lambda endpoint: endpoint.batch(asked))
        given = [one for one in answers if not isinstance(one, DstackError)]
        reverts = [one for one in answers if isinstance(one, RevertedError)]
        if is_agreed(len(reverts), len(given) + len(reverts), self.quorum):
            raise reverts[0]
        if len(given) + len(reverts) < self.quorum:
            raise next(one for one in answers if isinstance(one, DstackError) and one not in reverts)
        if not is_agreed(len(given), len(given) + len(reverts), self.quorum):
            raise _disagreement(asked[0][0], len(given), len(given) + len(reverts), self.quorum)
        return [
            self._merged(method, params, [results[index] for results in given])
            for index, (method, params) in enumerate(asked)
        ]

    def _about_a_block(self, method: str, params: Sequence[object]) -> Call:
        """Name the block that a tag means to enough endpoints: each has its own newest one."""
        at = {"eth_getBlockByNumber": 0, "eth_getTransactionCount": 1}.get(method)
        if at is None or params[at] not in ("latest", "finalized"):  # or a block by its hash, which is a dict
            return method, params
        finalized, head = self._chain().blocks()
        number = hex(finalized.number if params[at] == "finalized" else head.number)
        return method, [*params[:at], number, *params[at + 1 :]]

    def _chain(self) -> ChainQuorum:
        if self._blocks is None:
            chain_id = quantity(self.batch([("eth_chainId", [])])[0], what="the chain id")
            self._blocks = ChainQuorum(
                self._endpoints,
                chain_id=chain_id,
                quorum=self.quorum,
                allow_plain_http=True,
                allow_single=True,
            )
        return self._blocks

    def _merged(self, method: str, params: Sequence[object], values: Sequence[object]) -> object:
        if method in _RECKONED:
            numbers = sorted(quantity(one, what=f"the answer to {method}") for one in values)
            return hex(numbers[(len(numbers) - _RECKONED[method]) // 2])
        if method == "eth_getTransactionCount" and params[1] == "pending":
            # what one endpoint knows to be on its way is on its way
            return hex(max(quantity(one, what="the nonce") for one in values))
        told = [msgspec.json.encode(_canonical(method, one), order="deterministic") for one in values]
        (most, votes), *_ = Counter(told).most_common(1)
        if not is_agreed(votes, len(told), self.quorum):
            raise _disagreement(method, votes, len(told), self.quorum)
        return msgspec.json.decode(most)

    def _sent(self, calls: Sequence[Call]) -> list[object]:
        """Hand calls to the first endpoint that takes them; else tell the failure that leaves most open."""
        failures: list[DstackError] = []
        for endpoint in self._endpoints:
            try:
                return endpoint.batch(calls)
            except DstackError as error:
                failures.append(error)
        raise min(failures, key=lambda one: (not is_known(one), is_refused(one)))


def _canonical(method: str, value: object) -> Any:  # noqa: ANN401 - JSON is untyped
    """Return an answer in the form that all honest nodes give it."""
    names = _FIELDS.get(method)
    if method == _LOGS and isinstance(value, list):
        return [_chosen(one, names or ()) for one in value]
    if isinstance(value, dict) and names is not None:
        chosen = _chosen(value, names)
        if isinstance(chosen.get("logs"), list):
            chosen["logs"] = [_canonical_log(one) for one in chosen["logs"]]
        return chosen
    return value.lower() if isinstance(value, str) else value


def _canonical_log(value: object) -> Any:  # noqa: ANN401 - as above
    return _chosen(value, _FIELDS[_LOGS])


def _chosen(value: object, names: Sequence[str]) -> Any:  # noqa: ANN401 - as above
    if not isinstance(value, dict):
        return value
    found = {name: value[name] for name in names if value.get(name) is not None and value[name] is not False}
    return {
        name: [_lower(part) for part in one] if isinstance(one, list) else _lower(one)
        for name, one in found.items()
    }


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _disagreement(method: str, votes: int, given: int, quorum: int) -> UnavailableError:
    return UnavailableError(
        "quorum.disagreement",
        f"{votes} of {given} endpoints give the same answer to {method}, expected {quorum} and a majority: "
        "ask again, or find out which one is wrong",
    )
