"""Looks at the chain, judges deployments, and has the engine act on it.

A look does not depend on what caused it: it reads the chain's state, not events. So looks may come twice,
late and in any order, and the last one that saw the newest state decides.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final, Protocol

import msgspec

from functions.deploy.quarantine import Quarantines, at_stake, next_up
from functions.deploy.record import Deployment, Quarantine
from functions.deploy.store import DeploymentStore
from functions.governance.chain import View
from functions.governance.judgement import (
    RUNS_REFUSED,
    Judgement,
    Question,
    Views,
    judge,
    key_server_questions,
    questions,
)
from functions.governance.notice import Notice, Notify
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.header import BlockRef
from shared.errors import DstackError, UnavailableError

_PAGE: Final = 100


class Chain(Protocol):
    """See `functions.governance.chain.AgreedChain`."""

    kms: bytes

    def blocks(self, now: int) -> tuple[BlockRef, BlockRef]:
        """Return the newest finalised block and the head."""
        ...

    def view(
        self, block: BlockRef, workloads: Sequence[BootInfo], selector: bytes = abi.IS_APP_ALLOWED
    ) -> View:
        """Return what a quorum says of workloads at a block, by the function of this selector."""
        ...

    def is_canonical(self, block: BlockRef) -> bool:
        """Tell whether a block is still on the chain."""
        ...


class AheadError(UnavailableError):
    """The agreed head is below the block that a look is about: mostly for seconds, and no alarm yet."""

    def __init__(self, known: int, expected: int) -> None:
        super().__init__("governance.chain.behind", f"a quorum knows block {known}, expected {expected}")


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Where chain and deployment differ, and whether this look changed the deployment (`acted`).

    `kind` is `runs_what_is_not_allowed`, `waits_for_what_is_allowed`, `stopped_what_is_allowed` or `unknown`.
    """

    name: str
    kind: str
    reason: str
    acted: bool


class Governor:
    """Acts on deployments in `store` by what `chain` says. `clock` gives unix seconds."""

    def __init__(
        self,
        chain: Chain,
        store: DeploymentStore,
        quarantines: Quarantines,
        notify: Notify,
        *,
        chain_id: int,
        clock: Callable[[], int],
    ) -> None:
        self._chain = chain
        self._store = store
        self._quarantines = quarantines
        self._notify = notify
        self._chain_id = chain_id
        self._clock = clock

    def look(
        self,
        address: bytes | None = None,
        at_least: int = 0,
        *,
        named: tuple[BlockRef, BlockRef] | None = None,
    ) -> Sequence[Drift]:
        """Judge the deployments that a contract (20 bytes) rules; the KMS's, and None, rule all.

        At the blocks that are `named`, the newest final one and the newest one; else they are asked for.

        Raises `AheadError` where the agreed head is below block `at_least`; `UnavailableError`:
        `governance.chain.behind` for a head that is old, `governance.quorum.disagreement` where endpoints
        differ about a workload; what the chain, the store and the queue raise. Operators are told before, of
        all but `AheadError`. What could be decided was done then; all of it may be repeated.
        """
        concerned = [found for found in self.deployments() if _concerns(found, address, self._chain.kms)]
        asked = tuple({one: None for found in concerned for one in questions(found)})
        if not asked:
            return ()
        try:
            finalized, head = named or self._blocks(at_least)
            views, doubt = self._views(asked, finalized, head)
            servers = tuple({one: None for found in concerned for one in key_server_questions(found, views)})
            if servers:
                more, other_doubt = self._views(servers, finalized, head, abi.IS_KMS_ALLOWED)
                views, doubt = views | more, doubt or other_doubt
        except AheadError:
            raise
        except DstackError as error:
            self._alarm(error.code, f"nothing can be decided: {error.message}", address)
            raise
        # those that were stopped together have their block in common
        is_canonical = cache(self._chain.is_canonical)
        failures: list[DstackError] = []
        drifts: list[Drift] = []
        for found in concerned:
            try:
                is_orphaned = _is_orphaned(found.quarantine, head, is_canonical)
                drifts += self._settle(found, views, finalized, head, is_orphaned=is_orphaned)
            except DstackError as error:
                self._alarm(error.code, f"{found.name}: {error.message}", address, name=found.name)
                failures.append(error)
        if failures:
            raise failures[0]
        if doubt:
            disagreement = UnavailableError("governance.quorum.disagreement", doubt)
            if not any(drift.kind == "unknown" for drift in drifts):
                self._alarm(disagreement.code, f"what waits or is held stays so: {doubt}", address)
            raise disagreement
        return drifts

    def deployments(self) -> Iterator[Deployment]:
        """Return all records."""
        after = ""
        while page := self._store.list(after, _PAGE):
            yield from page
            after = page[-1].name

    def app_ids(self) -> frozenset[bytes]:
        """Return the apps that are deployed or wait."""
        return frozenset(
            bytes.fromhex(one.app_id)
            for found in self.deployments()
            for one in (at_stake(found), next_up(found))
            if one is not None and one.app_id
        )

    def _blocks(self, at_least: int) -> tuple[BlockRef, BlockRef]:
        finalized, head = self._chain.blocks(self._clock())
        if head.number < at_least:
            raise AheadError(head.number, at_least)
        return finalized, head

    def _views(
        self,
        asked: Sequence[Question],
        finalized: BlockRef,
        head: BlockRef,
        *selector: bytes,
    ) -> tuple[dict[Question, Views], str]:
        workloads = [one.boot_info() for one in asked]
        at_head = self._chain.view(head, workloads, *selector)
        at_final = self._chain.view(finalized, workloads, *selector)
        views = {
            one: Views(one.read(newest), one.read(final))
            for one, newest, final in zip(asked, at_head.verdicts, at_final.verdicts, strict=True)
        }
        return views, at_head.doubt or at_final.doubt

    def _settle(
        self,
        found: Deployment,
        views: dict[Question, Views],
        finalized: BlockRef,
        head: BlockRef,
        *,
        is_orphaned: bool,
    ) -> Sequence[Drift]:
        judged = judge(found, views, finalized, is_orphaned=is_orphaned)
        if judged.action == "none":
            return ()
        if judged.action == "unsure":
            self._alarm(
                "governance.quorum.disagreement",
                f"{found.name}: endpoints disagree whether it is allowed, so it runs on",
                None,
                name=found.name,
            )
            return [Drift(name=found.name, kind=judged.drift, reason="", acted=False)]
        if judged.action == "tell":
            self._warn(found, judged)
            return ()
        acted = self._act(found, judged, head)
        if judged.action == "hold" and acted:
            judged = msgspec.structs.replace(judged, action="stop", drift=RUNS_REFUSED)
        elif judged.action in {"hold", "recognise"}:  # which change nothing that anyone sees
            return ()
        if acted:
            self._tell(found, judged, head, is_orphaned=is_orphaned)
        return [Drift(name=found.name, kind=judged.drift, reason=judged.reason, acted=acted)]

    def _act(self, found: Deployment, judged: Judgement, head: BlockRef) -> bool:
        held = found.quarantine
        if judged.action == "free":
            return held is not None and self._quarantines.lift(
                found.name, found.uid, held, "the contract allows it"
            )
        if judged.action == "resume":
            return self._quarantines.resume(found.name, found.uid)
        if judged.action == "recognise":
            return self._quarantines.recognise(found.name, found.uid, judged.reason)
        quarantine = Quarantine(
            reason=judged.reason[:200],
            chain_id=self._chain_id,
            block_number=head.number,
            block_hash=head.hash.hex(),
            at=self._clock(),
        )
        is_held = held is not None and self._quarantines.hold(found.name, found.uid, held, quarantine)
        if judged.refused is None or (judged.action == "hold" and is_held):
            return False
        # one that was held, and is not, was let go by who read older state
        return self._quarantines.impose(found.name, found.uid, judged.refused, quarantine)

    def _tell(self, found: Deployment, judged: Judgement, head: BlockRef, *, is_orphaned: bool) -> None:
        code, sentence = {
            "stop": ("governance.stopped", f"is stopped: {judged.reason[:200]}"),
            "free": (
                "governance.freed",
                "may run again: " + ("its block is orphaned" if is_orphaned else "allowed"),
            ),
            "resume": ("governance.resumed", "goes on: what it waited for is final"),
        }[judged.action]
        self._notify(
            Notice(
                code=code,
                message=f"{found.name} {sentence}",
                severity="warning" if judged.action == "stop" else "info",
                facts={
                    "name": found.name,
                    "uid": found.uid,
                    "block": head.number,
                    "chain_id": self._chain_id,
                },
            )
        )

    def _warn(self, found: Deployment, judged: Judgement) -> None:
        facts = {"name": found.name, "uid": found.uid, "chain_id": self._chain_id}
        self._notify(
            Notice(
                code=judged.code,
                message=f"{found.name} runs on: {judged.reason[:200]}",
                severity="warning",
                facts=facts,
            )
        )

    def _alarm(self, code: str, message: str, address: bytes | None, *, name: str = "") -> None:
        facts = {"chain_id": self._chain_id} | ({"name": name} if name else {})
        if address is not None:
            facts["address"] = f"0x{address.hex()}"
        self._notify(Notice(code=code, message=message, severity="alarm", facts=facts))


def _is_orphaned(held: Quarantine | None, head: BlockRef, is_canonical: Callable[[BlockRef], bool]) -> bool:
    """Tell whether a quarantine's block was replaced; a chain that has not come so far may yet have it."""
    if held is None or held.block_number > head.number:
        return False
    return not is_canonical(BlockRef(held.block_number, bytes.fromhex(held.block_hash)))


def _concerns(found: Deployment, address: bytes | None, kms: bytes) -> bool:
    if address is None or address == kms:
        return True
    text = address.hex()
    return any(one is not None and one.app_id == text for one in (at_stake(found), next_up(found)))
