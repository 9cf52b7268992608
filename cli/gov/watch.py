"""`gov watch`: events as they come, and those that a reorganisation took back."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import click

from cli.gov.chain import Block, Contracts, as_hex
from cli.gov.listed import start_of
from cli.gov.listing import read_allowed
from cli.gov.logs import Log, read_logs
from cli.gov.options import Where, address, contracts_of, where_options
from shared.chain import events, views
from shared.chain.abi import checksum_address
from shared.chain.calldata import shown
from shared.chain.events import EVENTS, policy_name
from shared.errors import DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.json_rpc import data, fields

# Nothing below this depth is asked about again where a chain finalizes nothing.
MAX_DEPTH: Final = 512


class Happened(NamedTuple):
    """An event, or one that is taken back (`removed`)."""

    log: Log
    removed: bool


class Watcher:
    """Follows the events of the KMS contract and its apps from `after`, a block number, on."""

    def __init__(self, contracts: Contracts, apps: set[bytes], after: int, *, all_apps: bool) -> None:
        self._contracts = contracts
        self._apps = set(apps)
        self._all_apps = all_apps
        self._after = after
        # blocks that were seen, by number: the head of each look, and those with events
        self._seen: dict[int, bytes] = {}
        self._told: list[Log] = []

    def look(self) -> list[Happened]:
        """Return what happened since the last look, taken back events first, newest of them first.

        Raises `ProtocolError("gov.reorg")` where the chain changes while it is read: look again.
        """
        head = self._contracts.pin()
        if not self._seen and 0 <= self._after <= head.number and (start := self._hash_at(self._after)):
            self._seen[self._after] = start
        removed = self._take_back(head)
        if head.number <= self._after:
            return removed
        logs = self._read(self._after + 1, head.number)
        self._require_hashes(head, logs)
        self._seen |= {log.block_number: log.block_hash for log in logs} | {head.number: head.hash}
        self._told += logs
        self._after = head.number
        self._forget(head)
        return removed + [Happened(log, removed=False) for log in logs]

    def _take_back(self, head: Block) -> list[Happened]:
        """Go back to the newest block that was seen and is still the chain's.

        What is above an endpoint's head is left alone: it may lag, and then nothing was taken back.
        """
        known = [number for number in sorted(self._seen, reverse=True) if number <= head.number]
        kept = next((number for number in known if self._hash_at(number) == self._seen[number]), -1)
        if not known or kept == known[0]:
            return []
        self._after = kept if kept >= 0 else min(self._seen) - 1
        self._seen = {number: one for number, one in self._seen.items() if number <= self._after}
        gone = [log for log in self._told if log.block_number > self._after]
        self._told = [log for log in self._told if log.block_number <= self._after]
        return [Happened(log, removed=True) for log in reversed(gone)]

    def _read(self, first: int, last: int) -> list[Log]:
        if self._all_apps:
            registered = read_logs(
                self._contracts, {self._contracts.kms}, [events.APP_REGISTERED], first, last
            )
            self._apps |= {
                value for log in registered if isinstance(value := log.decoded.arguments[0], bytes)
            }
        watched = {self._contracts.kms, *self._apps}
        return read_logs(self._contracts, watched, EVENTS, first, last, tolerant=True)

    def _require_hashes(self, head: Block, logs: list[Log]) -> None:
        """Refuse logs of a chain that is no longer the head's."""
        if self._hash_at(head.number) != head.hash or any(
            log.block_hash != head.hash for log in logs if log.block_number == head.number
        ):
            raise ProtocolError("gov.reorg", f"block {head.number} was replaced while it was read: ask again")

    def _hash_at(self, number: int) -> bytes | None:
        answer = self._contracts.endpoint.batch([("eth_getBlockByNumber", [hex(number), False])])[0]
        if answer is None:
            return None
        return data(fields(answer, what="a block").get("hash"), what="the block hash", length=32)

    def _forget(self, head: Block) -> None:
        """Ask no more about what is final."""
        try:
            final = self._contracts.pin("finalized").number
        except (UnavailableError, ProtocolError):
            final = 0  # a chain without the tag
        final = max(final, head.number - MAX_DEPTH)
        newest = max((number for number in self._seen if number <= final), default=-1)
        self._seen = {number: one for number, one in self._seen.items() if number >= newest}
        self._told = [log for log in self._told if log.block_number >= newest]


@click.command()
@click.option("--from-block", default="now", metavar="NUMBER|now", help="Begin here.", show_default=True)
@click.option("--app", "apps", multiple=True, metavar="ADDR", help="Watch this app, not all registered ones.")
@click.option("--no-follow", is_flag=True, help="Stop at the newest block.")
@click.option("--poll", type=click.FloatRange(min=0.1), default=4.0, show_default=True, metavar="SECONDS")
@where_options
def watch(from_block: str, apps: tuple[str, ...], poll: float, where: Where, *, no_follow: bool) -> None:
    """Print the contracts' events as they come; with --json one object a line.

    An event that a reorganisation of the chain took back is printed again as removed. An event is final when
    its block is. What an app logs that our contracts never would is printed as MalformedLog or LogsNotRead.

    Exit codes: 0 interrupted or at the newest block, 1 failed, 2 usage.
    """
    contracts = contracts_of(where)
    at = contracts.pin()
    contracts.require_kms(at)
    after = at.number if from_block == "now" else _number(from_block) - 1
    watched = {address(one, "--app") for one in apps}
    if not apps:
        watched = _registered(contracts, at)
    watcher = Watcher(contracts, watched, after, all_apps=not apps)
    for one in follow(watcher, poll=poll, stop=no_follow):
        if where.as_json:
            click.echo(json.dumps(event_json(one)))
        else:
            click.echo(event_text(one))
        sys.stdout.flush()


def follow(
    watcher: Watcher, *, poll: float, stop: bool, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Happened]:
    """Yield what happens; an endpoint that fails for a while is asked again, and said so."""
    while True:
        try:
            yield from watcher.look()
        except (UnavailableError, ProtocolError, InvalidEvidence) as error:
            if stop and error.code != "gov.reorg":
                raise
            click.echo(f"warning: {error} [{error.code}]", err=True)
        else:
            if stop:
                return
        sleep(poll)


def event_text(one: Happened) -> str:
    """Return an event as people read it."""
    log = one.log
    named = ", ".join(f"{name}={value}" for name, value in _arguments(log))
    mark = "removed " if one.removed else ""
    return (
        f"{mark}block {log.block_number}  {checksum_address(log.contract)}  {log.decoded.event.name}({named})"
    )


def event_json(one: Happened) -> dict[str, Any]:
    """Return an event as one JSON object."""
    log = one.log
    return {
        "block_number": log.block_number,
        "contract": checksum_address(log.contract),
        "event": log.decoded.event.name,
        "arguments": dict(_arguments(log)),
        "block_hash": as_hex(log.block_hash),
        "transaction_hash": as_hex(log.transaction_hash),
        "log_index": log.index,
        "removed": one.removed,
    }


def _arguments(log: Log) -> list[tuple[str, str]]:
    decoded = log.decoded
    shown_ones = [
        (name, shown(value))
        for (name, _), value in zip(decoded.event.parameters, decoded.arguments, strict=True)
    ]
    if decoded.event == events.POLICY_CHANGED and isinstance(policy := decoded.argument("policy"), bytes):
        shown_ones[1] = ("policy", policy_name(policy) or shown(policy))
    return shown_ones


def _registered(contracts: Contracts, at: Block) -> set[bytes]:
    try:
        first = start_of(contracts, contracts.kms, None, at)
    except DstackError as error:
        if error.code != "gov.from_block":
            raise
        click.echo(f"warning: apps registered before are not watched: {error}", err=True)
        return set()
    found = read_allowed(contracts, contracts.kms, events.APP_REGISTERED, views.REGISTERED_APPS, first, at)
    return {one.value for one in found}


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter("expected a block number or now", param_hint="--from-block")
    return int(text)
