"""A chain in memory, deployments in SQLite, a queue in a list: the whole function without a cloud."""

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import msgspec

from functions.deploy.quarantine import Quarantines
from functions.deploy.record import Deployment, Goal, Planned, Running, Step, Workload, workload
from functions.governance.chain import View
from functions.governance.delivery import LogHint
from functions.governance.governor import Governor
from functions.governance.notice import Notice
from functions.governance.receiver import Receiver
from functions.governance.reconciler import Reconciler
from functions.governance.service import Answer, GovernanceService
from functions.governance.sqlite_state import SqliteMemory
from functions.stores.sqlite import SqliteStore
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.header import BlockRef
from shared.chain.rules import COMPOSE_HASH_NOT_ALLOWED
from shared.errors import DstackError, UnavailableError
from shared.keccak import keccak256
from tests.functions.deploy.memory_cloud import NOW, some_deployment

CHAIN_ID = 31337
KMS = bytes.fromhex("9fe46736679d2d9a65f0992f2272de9f3c7fa6e0")
APP = bytes.fromhex("22" * 20)
SECRET = b"a secret of a provider"
OLD_SECRET = b"the secret before that"
COMPOSE_HASH_REMOVED = keccak256(b"ComposeHashRemoved(bytes32)")
COMPOSE_HASH_ADDED = keccak256(b"ComposeHashAdded(bytes32)")


def block_hash(number: int, fork: str = "") -> bytes:
    return keccak256(f"{fork}{number}".encode())


class Dropped(NamedTuple):
    """Blocks that were taken off a chain."""

    allowed: list[frozenset[str]]
    forks: list[str]
    events: list[LogHint]


class MemoryChain:
    """Blocks by number, each with the compose hashes that it allows; the quorum's word, or its failure.

    Handlers may ask while it changes.
    """

    def __init__(self) -> None:
        self.kms = KMS
        self._lock = RLock()
        self.allowed: list[frozenset[str]] = [frozenset()]
        self.forks: list[str] = [""]
        self.final = 0
        self.failure: DstackError | None = None
        self.doubt = False
        self.lag = 0
        self.events: list[LogHint] = []
        self.asked = 0

    @property
    def head(self) -> int:
        return len(self.allowed) - 1

    def mine(self, *, add: str = "", remove: str = "", app: bytes = APP, fork: str = "") -> LogHint | None:
        """Make a block in which a compose hash is allowed, or not any more."""
        with self._lock:
            return self._mine(add, remove, app, fork)

    def _mine(self, add: str, remove: str, app: bytes, fork: str) -> LogHint | None:
        self.allowed.append(self.allowed[-1] | ({add} if add else set()) - ({remove} if remove else set()))
        if remove:
            self.allowed[-1] -= {remove}
        self.forks.append(fork)
        if not add and not remove:
            return None
        hint = LogHint(
            address=app,
            block_hash=self.ref(self.head).hash,
            block_number=self.head,
            log_index=0,
            topic=COMPOSE_HASH_ADDED if add else COMPOSE_HASH_REMOVED,
        )
        self.events.append(hint)
        return hint

    def reorganise(self, depth: int) -> Dropped:
        """Drop the newest blocks, with what happened in them."""
        with self._lock:
            first = len(self.allowed) - depth
            events = [one for one in self.events if one.block_number >= first]
            dropped = Dropped(self.allowed[first:], self.forks[first:], events)
            del self.allowed[first:], self.forks[first:]
            self.events = [one for one in self.events if one.block_number < first]
            return dropped

    def restore(self, dropped: Dropped) -> None:
        """Have blocks back that were dropped from where the chain ends now."""
        with self._lock:
            self.allowed += dropped.allowed
            self.forks += dropped.forks
            self.events += dropped.events

    def ref(self, number: int) -> BlockRef:
        with self._lock:
            return BlockRef(number, block_hash(number, self.forks[number]))

    def blocks(self, now: int) -> tuple[BlockRef, BlockRef]:
        del now
        if self.failure is not None:
            raise self.failure
        with self._lock:
            return self.ref(self.final), self.ref(self.head - self.lag)

    def view(
        self, block: BlockRef, workloads: Sequence[BootInfo], selector: bytes = abi.IS_APP_ALLOWED
    ) -> View:
        self.asked += 1
        with self._lock:
            if not self.is_canonical(block):
                raise UnavailableError(
                    "governance.quorum.too_few", f"block {block.number} is not the chain's"
                )
            allowed = self.allowed[block.number]
        if self.doubt:
            return View(block, tuple(None for _ in workloads), "1 of 2 say one thing")
        return View(block, tuple(self.verdict(block, one, selector, allowed) for one in workloads))

    def verdict(self, block: BlockRef, one: BootInfo, selector: bytes, allowed: frozenset[str]) -> str:
        """Return what the contract says of one workload at a block."""
        del block
        assert selector == abi.IS_APP_ALLOWED
        return "" if one.compose_hash.hex() in allowed else COMPOSE_HASH_NOT_ALLOWED

    def is_canonical(self, block: BlockRef) -> bool:
        with self._lock:
            return block.number <= self.head and self.ref(block.number) == block

    def logs(self, addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
        return [one for one in self.events if one.address in addresses and first <= one.block_number <= last]


class World:
    """All of it. `queue` is what waits for the worker, `advanced` what the engine was called for."""

    def __init__(self, directory: Path, chain: MemoryChain | None = None) -> None:
        self.chain = chain or MemoryChain()
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.memory = SqliteMemory(directory / "governance.sqlite", self.clock)
        self.now = NOW
        self.queue: list[str] = []
        self.advanced: list[str] = []
        self.notices: list[Notice] = []
        self.secrets: tuple[bytes, ...] = (SECRET,)
        self.quarantines = Quarantines(self.store, lambda name, _: self.advanced.append(name), self.clock)
        self.governor = Governor(
            self.chain, self.store, self.quarantines, self.notices.append, chain_id=CHAIN_ID, clock=self.clock
        )
        self.receiver = Receiver(
            lambda *_: self.secrets,
            self.memory,
            lambda name, _: self.queue.append(name),
            self.notices.append,
            kms=KMS,
            apps=self.governor.app_ids,
            chain_id=CHAIN_ID,
        )
        self.reconciler = Reconciler(
            self.chain,
            self.governor,
            self.memory,
            lambda name, _: self.queue.append(name),
            self.notices.append,
            chain_id=CHAIN_ID,
            clock=self.clock,
        )
        self.service = GovernanceService(
            self.receiver,
            self.governor,
            self.reconciler,
            self.memory,
            lambda name, _: self.queue.append(name),
            self.notices.append,
            self.clock,
        )

    def clock(self) -> int:
        return self.now

    def deploy(
        self, compose: str, name: str = "web", *, step: Step = Step.RUNNING, **fields: Any
    ) -> Deployment:
        """Put a deployment there that runs, or waits for, a compose hash."""
        planned = Planned(
            plan_id=compose,
            app_id=fields.pop("app_id", APP.hex()),
            compose_hash=compose,
            os_image_hash="44" * 32,
            platform="gcp",
            plan="",
        )
        running = Running(evidence_url="http://192.0.2.7", plan_id=compose) if step is Step.RUNNING else None
        made = some_deployment(
            name,
            step=step,
            planned=planned,
            running=running,
            launched=workload(planned) if running else None,
            **fields,
        )
        self.store.create(made)
        return made

    def get(self, name: str = "web") -> Deployment:
        return self.store.get(name)

    def post(
        self, document: object, *, provider: str = "plain", secret: bytes = SECRET, **headers: str
    ) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        stamp = headers.pop("stamp", str(self.now))
        signature = hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        given = {"X-Dstack-Timestamp": stamp, "X-Dstack-Signature": f"sha256={signature}"} | headers
        return self.service.handle("POST", f"/webhooks/{provider}", given, body)

    def drain(self, *, failing: Callable[[DstackError], object] = lambda _: None) -> None:
        """Have the worker do what is queued; what fails goes back to the end."""
        for _ in range(len(self.queue)):
            name = self.queue.pop(0)
            try:
                self.service.act(name)
            except DstackError as error:
                failing(error)
                self.queue.append(name)

    def codes(self) -> list[str]:
        return [one.code for one in self.notices]


def plain(*hints: LogHint, id: str = "1", chain_id: int = CHAIN_ID) -> dict[str, Any]:  # noqa: A002 - the field
    """Return the plain form of a delivery."""
    return {"id": id, "chainId": chain_id, "logs": [wire(hint) for hint in hints]}


def wire(hint: LogHint) -> dict[str, Any]:
    return {
        "address": f"0x{hint.address.hex()}",
        "topics": [f"0x{hint.topic.hex()}"],
        "data": "0x",
        "blockHash": f"0x{hint.block_hash.hex()}",
        "blockNumber": hex(hint.block_number),
        "transactionHash": f"0x{'00' * 32}",
        "logIndex": hex(hint.log_index),
        "removed": hint.removed,
    }


def settle(store: SqliteStore, name: str = "web") -> None:
    """Do what the engine would do about a quarantine, without a cloud: stop, or start again."""
    found = store.get(name)
    if found.effective_goal is Goal.STOPPED and found.step is Step.RUNNING:
        running = msgspec.structs.replace(found.running or Running(), evidence_url="")
        changes: dict[str, Any] = {"step": Step.STOPPED, "launched": None, "running": running}
    elif found.effective_goal is Goal.RUNNING and found.step is Step.STOPPED:
        launched: Workload | None = workload(found.planned)
        changes = {"step": Step.RUNNING, "launched": launched}
    else:
        return
    store.replace(msgspec.structs.replace(found, **changes, version=found.version + 1), found.version)
