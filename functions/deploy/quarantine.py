"""What governance does to deployments: have one stopped, let one go again, have one ask again.

Nothing here decides. Each change is one compare-and-swap and one message; the engine stops and starts
machines by its own steps, so a change that is repeated, or comes twice, has no further effect.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from functions.deploy.record import (
    Deployment,
    Event,
    Goal,
    Quarantine,
    Step,
    Workload,
    event_id,
    workload,
)
from functions.deploy.store import ConflictError, DeploymentStore, NotFoundError, Schedule

_TRIES: Final = 20
"""Of a write that others overtake, as in the service."""

_LAUNCHING: Final = frozenset({Step.RETIRE, Step.LAUNCH, Step.START, Step.AWAIT_ATTESTATION})
_PLANNING: Final = frozenset({Step.PREPARE, Step.BUILD, Step.PROPOSE, Step.AWAIT_APPROVAL})

Change = Callable[[Deployment], dict[str, Any] | None]
"""From a record to the fields that change, or None where it is so already."""


class Quarantines:
    """Changes records in `store`, and has the engine called through `schedule`.

    Each method but `hold` returns whether it changed anything, and each raises what the store and the queue
    raise, and `ConflictError("deploy.busy")`. `uid` is of the use of the name that was judged: another is
    left alone.
    """

    def __init__(self, store: DeploymentStore, schedule: Schedule, clock: Callable[[], int]) -> None:
        self._store = store
        self._schedule = schedule
        self._clock = clock

    def impose(self, name: str, uid: str, judged: Workload, quarantine: Quarantine) -> bool:
        """Have a deployment stopped that runs, or would start, `judged`; its user's goal is kept."""

        def stop(found: Deployment) -> dict[str, Any] | None:
            if at_stake(found) != judged:
                return None
            changes: dict[str, Any] = {}
            if found.quarantine is None:
                changes["quarantine"] = quarantine
            if found.step is Step.FAILED and found.may_have_machine:
                # an earlier stop was given up: what must not run is stopped again
                changes |= {
                    "step": Step.STOP,
                    "failure": None,
                    "since": self._clock(),
                    "attempt": 0,
                    "due": 0,
                }
            return changes or None

        return self._change(
            name, uid, stop, f"governance: stopped, {quarantine.reason}", "governance.stopped"
        )

    def hold(self, name: str, uid: str, held: Quarantine, newer: Quarantine) -> bool:
        """Have a quarantine rest on a newer block, where `held` is what it rests on. Nobody is told of it.

        Who read older state, and would lift it by that, then finds another one than was judged. Returns
        whether there is still a quarantine: nobody was faster to lift it.
        """
        is_held = False

        def renew(found: Deployment) -> dict[str, Any] | None:
            nonlocal is_held
            is_held = found.quarantine is not None
            renewed = msgspec.structs.replace(newer, at=held.at)
            is_newer = newer.block_number >= held.block_number and renewed != held
            return {"quarantine": renewed} if found.quarantine == held and is_newer else None

        self._change(name, uid, renew, "", "")
        return is_held

    def lift(self, name: str, uid: str, held: Quarantine, why: str) -> bool:
        """Let a deployment go to where its user wants it, if `held` is still the quarantine it is in."""

        def free(found: Deployment) -> dict[str, Any] | None:
            return {"quarantine": None} if found.quarantine == held else None

        return self._change(name, uid, free, f"governance: free again, {why}", "governance.freed")

    def recognise(self, name: str, uid: str, mr_aggregated: str) -> bool:
        """Remember that the contract allows what runs as a key server, so that it can be told when not."""

        def remember(found: Deployment) -> dict[str, Any] | None:
            return None if found.key_server == mr_aggregated else {"key_server": mr_aggregated}

        return self._change(name, uid, remember, "", "")

    def resume(self, name: str, uid: str) -> bool:
        """Have a deployment that waits for approval ask the chain now."""

        def hurry(found: Deployment) -> dict[str, Any] | None:
            is_waiting = found.step is Step.AWAIT_APPROVAL and found.goal is Goal.RUNNING
            return {"due": 0} if is_waiting and found.due > self._clock() else None

        return self._change(name, uid, hurry, "governance: the approval is final", "governance.resumed")

    def _change(self, name: str, uid: str, change: Change, message: str, code: str) -> bool:
        for _ in range(_TRIES):
            try:
                found = self._store.get(name)
            except NotFoundError:
                return False
            if found.uid != uid:
                return False
            changes = change(found)
            if changes is None:
                # the message of an earlier change may have been lost
                self._see_to(found)
                return False
            now = self._clock()
            wanted = msgspec.structs.replace(found, **changes, version=found.version + 1, updated_at=now)
            told = Event(
                id=event_id(wanted.version, 0),
                uid=uid,
                at=now,
                step=found.step.value,
                message=message,
                code=code,
                data={"quarantine": msgspec.to_builtins(wanted.quarantine)} if wanted.quarantine else {},
            )
            try:
                self._store.replace(wanted, found.version, [told] if message else [])
            except ConflictError:
                continue
            self._see_to(wanted)
            return True
        raise ConflictError("deploy.busy", f"deployment {name} was changed {_TRIES} times meanwhile")

    def _see_to(self, found: Deployment) -> None:
        if not found.is_resting:
            self._schedule(found.name, 0)


def at_stake(found: Deployment) -> Workload | None:
    """Return what runs, or would run without being asked about again; None where nothing does.

    A machine that is up counts for what it was launched with, whatever was planned since. A stopped one
    counts for what `start` would start.
    """
    if found.goal is Goal.REMOVED or found.step in {Step.REMOVE, Step.REMOVED, Step.ROLLBACK}:
        return None
    if found.launched is not None:
        return found.launched
    if found.step in _PLANNING or (found.step is Step.FAILED and not found.may_have_machine):
        return None
    is_launched = found.step in _LAUNCHING or found.is_current
    return workload(found.planned) if is_launched or found.step is Step.FAILED else None


def next_up(found: Deployment) -> Workload | None:
    """Return what a deployment that waits, or is held, would run: the newest plan's."""
    is_waiting = found.step is Step.AWAIT_APPROVAL or found.quarantine is not None
    return workload(found.planned) if is_waiting and found.goal is not Goal.REMOVED else None
