"""What the contract says at a block, by the word of endpoints that must agree.

The blocks come from `ChainQuorum`; the state at each is asked of every endpoint by the block's hash, and
counts where as many give the same answer as the quorum is. Nothing here believes one endpoint.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import msgspec

from functions.governance.delivery import LogHint, read_log
from functions.governance.events import EVENTS
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.abi import MALFORMED, REVERTED
from shared.chain.agreement import is_agreed
from shared.chain.header import BlockRef
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.at_once import AtOnce
from shared.net.json_rpc import Call, Endpoint, data, fields, quantity
from shared.net.quorum import ChainQuorum

MAX_GAS: Final = 2_000_000
"""For one decision, of which an honest one burns 60,000: a batch of them is answered before it times out."""

MAX_CALLS: Final = 50
"""In one batch; nodes refuse longer ones."""

MAX_DOUBTFUL: Final = 50
"""Logs of a range that fewer endpoints show than must agree: each costs a look into what is remembered."""

_OVERSIZE: Final = frozenset({"rpc.malformed", "net.response.oversize"})
"""What an answer beyond our own bounds is refused with."""

_TOO_MUCH: Final = _OVERSIZE | {"rpc.error"}
"""Where a smaller range may be answered: an endpoint that is down, or has no more calls for us, has none."""

_OF_ONE: Final = frozenset({"rpc.reverted", "rpc.error", "net.response.oversize"})
"""What one call of a batch fails all of them with: any app's contract can, and anyone registers one."""

_T = TypeVar("_T")


class TooManyLogsError(UnavailableError):
    """A smaller range may be answered. With `is_oversize` this one's answer was beyond our own bounds."""

    def __init__(self, message: str, *, is_oversize: bool) -> None:
        super().__init__("governance.quorum.too_few", message)
        self.is_oversize = is_oversize


class View(msgspec.Struct, frozen=True):
    """What a quorum says of workloads at one block, in their order.

    A verdict is the contract's reason, empty where it allows, None where no quorum agrees. `doubt` says why.
    """

    block: BlockRef
    verdicts: tuple[str | None, ...]
    doubt: str = ""


class AgreedChain:
    """Asks `endpoints`, on distinct hosts, of which `quorum` must agree, about one contract.

    `kms` is its address of 20 bytes. `max_head_age` is in seconds: an agreed head that is older shows nothing
    of what happened since.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        blocks: ChainQuorum,
        kms: bytes,
        *,
        quorum: int,
        max_head_age: int,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._at_once = AtOnce(endpoints)
        self._blocks = blocks
        self.kms = kms
        self._quorum = quorum
        self._max_head_age = max_head_age

    def blocks(self, now: int) -> tuple[BlockRef, BlockRef]:
        """Return the newest finalised block and the newest one.

        Raises what `ChainQuorum.blocks` raises, and `UnavailableError("governance.chain.behind")` for a head
        that is too old.
        """
        finalized, head = self._blocks.blocks()
        times = self._ask(partial(_block_time, head.hash))
        age = now - self._agreed([time for time in times if isinstance(time, int)], "the newest block's time")
        if age > self._max_head_age:
            raise UnavailableError(
                "governance.chain.behind",
                f"the newest block that a quorum knows is {age} seconds old, expected at most"
                f" {self._max_head_age}",
            )
        return finalized, head

    def view(
        self, block: BlockRef, workloads: Sequence[BootInfo], selector: bytes = abi.IS_APP_ALLOWED
    ) -> View:
        """Ask whether workloads are allowed at a block; what one contract does is its own verdict alone.

        `selector` is of the function that decides: of apps, or of key servers (`abi.IS_KMS_ALLOWED`).

        Raises `UnavailableError("governance.quorum.too_few")` where fewer than the quorum answer.
        """
        answers = self._ask(partial(self._verdicts, block, tuple(workloads), selector))
        given = [answer for answer in answers if isinstance(answer, tuple)]
        if len(given) < self._quorum:
            raise self._too_few(answers, len(given))
        verdicts: list[str | None] = []
        doubt = ""
        for position in range(len(workloads)):
            words = [answer[position] for answer in given if answer[position] is not None]
            (verdict, votes), *_ = Counter(words).most_common(1) or [(None, 0)]
            if is_agreed(votes, len(words), self._quorum):
                verdicts.append(verdict)
            else:
                verdicts.append(None)
                said = "nothing" if verdict is None else verdict[:200] or "allowed"
                doubt = f"{votes} of {len(words)} say {said!a}, expected {self._quorum} and a majority"
        return View(block, tuple(verdicts), doubt)

    def is_canonical(self, block: BlockRef) -> bool:
        """Tell whether a block is still on the chain, by the quorum's word; what is above its end is not.

        Raises as `view`, and `UnavailableError("governance.quorum.disagreement")`.
        """
        answers = self._ask(partial(_hash_at, block.number))
        given = [answer for answer in answers if isinstance(answer, bytes)]
        if len(given) < self._quorum:
            raise self._too_few(answers, len(given))
        has_it = sum(one == block.hash for one in given)
        if not any(is_agreed(votes, len(given), self._quorum) for votes in (has_it, len(given) - has_it)):
            raise UnavailableError(
                "governance.quorum.disagreement",
                f"{has_it} of {len(given)} have block {block.number}, expected {self._quorum} and a majority",
            )
        return 2 * has_it > len(given)

    def logs(self, addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
        """Return what any endpoint shows of our events in a range: hints, so one too many does no harm.

        Of those that no quorum shows, since endpoints lag or lie, the first `MAX_DOUBTFUL`.
        Raises as `view`: where fewer answer than the quorum is, a log could be missing. It is a
        `TooManyLogsError` where a smaller range may be answered.
        """
        wanted = {
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "address": [f"0x{one.hex()}" for one in addresses],
            "topics": [[f"0x{one.hex()}" for one in EVENTS]],
        }
        answers = self._ask(lambda endpoint: endpoint.batch([("eth_getLogs", [wanted])])[0])
        given = [answer for answer in answers if isinstance(answer, list)]
        if len(given) < self._quorum:
            error = self._too_few(answers, len(given))
            codes = {answer.code for answer in answers if isinstance(answer, DstackError)}
            if codes & _TOO_MUCH:
                raise TooManyLogsError(error.message, is_oversize=bool(codes & _OVERSIZE))
            raise error
        known = frozenset(addresses)
        # what was not asked for comes of an endpoint that lies, and there is no end to that
        shown = Counter(
            hint
            for answer in given
            for hint in set(_hints(answer))
            if hint.address in known and hint.topic in EVENTS and first <= hint.block_number <= last
        )
        doubtful = [hint for hint, votes in shown.items() if votes < self._quorum]
        dropped = sorted(doubtful, key=_place)[MAX_DOUBTFUL:]
        return sorted(shown.keys() - set(dropped), key=_place)

    def _verdicts(
        self, block: BlockRef, workloads: tuple[BootInfo, ...], selector: bytes, endpoint: Endpoint
    ) -> tuple[str | None, ...]:
        calls = [self._call(block, abi.boot_info_call(selector, workload)) for workload in workloads]
        verdicts: list[str | None] = []
        for start in range(0, len(calls), MAX_CALLS):
            part = calls[start : start + MAX_CALLS]
            try:
                answers = endpoint.batch(part)
            except DstackError as error:
                if error.code not in _OF_ONE:
                    raise
                if error.code == "rpc.error":
                    # what fails here as well is not a contract's doing
                    endpoint.batch([self._call(block, abi.call(abi.GATEWAY_APP_ID))])
                verdicts += [_alone(endpoint, call) for call in part]
            else:
                verdicts += map(_verdict, answers)
        return tuple(verdicts)

    def _call(self, block: BlockRef, calldata: bytes) -> Call:
        at = {"blockHash": f"0x{block.hash.hex()}", "requireCanonical": True}
        transaction = {"to": f"0x{self.kms.hex()}", "data": f"0x{calldata.hex()}", "gas": hex(MAX_GAS)}
        return "eth_call", [transaction, at]

    def _ask(self, question: Callable[[Endpoint], _T]) -> Sequence[_T | DstackError]:
        return self._at_once.ask(self._endpoints, question)

    def _agreed(self, answers: Sequence[int], what: str) -> int:
        counted = Counter(answers).most_common(1)
        if not counted or not is_agreed(counted[0][1], len(answers), self._quorum):
            raise UnavailableError("governance.quorum.disagreement", f"no quorum agrees on {what}")
        return counted[0][0]

    def _too_few(self, answers: Sequence[object], count: int) -> UnavailableError:
        failures = [answer for answer in answers if isinstance(answer, DstackError)]
        reasons = "; ".join(f"{failure.code}: {failure.message}" for failure in failures)[:300]
        return UnavailableError(
            "governance.quorum.too_few",
            f"{count} of {len(self._endpoints)} endpoints answer, expected {self._quorum}: {reasons}",
        )


def _place(hint: LogHint) -> tuple[int, int, bytes]:
    return hint.block_number, hint.log_index, hint.block_hash


def _hints(logs: Sequence[object]) -> Iterator[LogHint]:
    for index, log in enumerate(logs):
        try:
            hint = read_log(log, index=index)
        except ProtocolError:  # what is no log is no hint
            continue
        if not hint.removed:
            yield hint


def _verdict(answer: object) -> str:
    raw = data(answer, what="the decision")
    try:
        return abi.decode_verdict(raw)
    except ProtocolError:
        if not raw:  # an address without code answers nothing, which is no word of a contract
            raise
        return MALFORMED


def _alone(endpoint: Endpoint, call: Call) -> str | None:
    """Return one verdict; None where this endpoint alone failed, such as by a time limit of its own."""
    try:
        return _verdict(endpoint.batch([call])[0])
    except DstackError as error:
        if error.code not in _OF_ONE:
            raise
        return {"rpc.reverted": REVERTED, "net.response.oversize": MALFORMED}.get(error.code)


def _block_time(block_hash: bytes, endpoint: Endpoint) -> int:
    [answer] = endpoint.batch([("eth_getBlockByHash", [f"0x{block_hash.hex()}", False])])
    return quantity(fields(answer, what="a block").get("timestamp"), what="the block's time")


def _hash_at(number: int, endpoint: Endpoint) -> bytes:
    [answer] = endpoint.batch([("eth_getBlockByNumber", [hex(number), False])])
    if answer is None:
        return b""
    return data(fields(answer, what="a block").get("hash"), what="the block hash", length=32)
