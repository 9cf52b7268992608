"""What follows from two views of the contract for one deployment. Pure: it asks and changes nothing.

A refusal at the head counts at once; an allow counts where the head and the newest final block both have it.
"""

from hashlib import sha256
from typing import Final, Literal

import msgspec

from functions.deploy.quarantine import at_stake, next_up
from functions.deploy.record import Deployment, Workload
from shared.boot_info import BootInfo
from shared.chain.header import BlockRef
from shared.chain.rules import DEVICE_NOT_ALLOWED, UP_TO_DATE

ALLOWED: Final = ""
UNTOLD: Final = "the app lists its devices, and this machine's id is not known"
"""A verdict that neither stops nor frees anything: everything before the device was allowed."""

NITRO_DEVICE: Final = sha256(b"i").digest()
"""The device id of every Nitro enclave (spec kms, trap 8)."""

Action = Literal["none", "stop", "hold", "free", "resume", "unsure"]
"""`hold` has a quarantine rest on this look's block: another look may be about to lift it by an older one."""


class Views(msgspec.Struct, frozen=True):
    """Verdicts on one workload: at the head and at the newest final block. None where no quorum agrees."""

    head: str | None
    final: str | None

    @property
    def is_allowed(self) -> bool:
        """Whether both views allow it."""
        return self.head == self.final == ALLOWED

    @property
    def is_refused(self) -> bool:
        """Whether the head refuses it, for what is known of it."""
        return self.head not in {None, ALLOWED, UNTOLD}

    @property
    def is_refused_nowhere(self) -> bool:
        """Whether both views allow it, apart from a device that nobody knows."""
        return {self.head, self.final} <= {ALLOWED, UNTOLD}


class Question(msgspec.Struct, frozen=True):
    """A workload as the contract is asked about it. `device_id` of 32 bytes, None where nobody knows it."""

    workload: Workload
    device_id: bytes | None
    tcb_status: str

    def boot_info(self) -> BootInfo:
        """Return what `isAppAllowed` is called with."""
        return BootInfo(
            tee_variant="",
            mr_aggregated=b"",
            os_image_hash=bytes.fromhex(self.workload.os_image_hash),
            mr_system=b"",
            app_id=bytes.fromhex(self.workload.app_id),
            compose_hash=bytes.fromhex(self.workload.compose_hash),
            instance_id=b"",
            device_id=self.device_id or b"",
            key_provider_info=b"",
            tcb_status=self.tcb_status,
            advisory_ids=(),
        )

    def read(self, verdict: str | None) -> str | None:
        """Return what a verdict says of this workload: of a device that nobody knows it says nothing."""
        return UNTOLD if verdict == DEVICE_NOT_ALLOWED and self.device_id is None else verdict


class Judgement(msgspec.Struct, frozen=True):
    """What is to be done. `reason` is the contract's; `drift` names how chain and deployment differ."""

    action: Action
    reason: str = ""
    drift: str = ""


def question(found: Deployment, workload: Workload) -> Question:
    """Return what to ask about a deployment's workload.

    A TCB status that no evidence gave is taken as up to date: that is the app's condition on evidence, and it
    would hide what the contract says of the hashes.
    """
    is_nitro = workload.platform == "nitro"
    text = str(found.settings.get("device_id", "")).removeprefix("0x")
    device = bytes.fromhex(text) if text else (NITRO_DEVICE if is_nitro else None)
    verdict = found.running.verdict if found.running is not None else {}
    status = str(verdict.get("tcb_status") or "") if found.launched == workload else ""
    return Question(workload, device, status or ("" if is_nitro else UP_TO_DATE))


def questions(found: Deployment) -> tuple[Question, ...]:
    """Return all that must be asked to judge a deployment."""
    wanted = (at_stake(found), next_up(found))
    return tuple({question(found, one): None for one in wanted if one is not None})


def judge(
    found: Deployment, views: dict[Question, Views], final: BlockRef, *, is_orphaned: bool
) -> Judgement:
    """Decide. `is_orphaned` tells that the block of the quarantine is no longer on the chain."""
    held = found.quarantine
    is_past = held is not None and (is_orphaned or final.number >= held.block_number)
    running = _views(found, at_stake(found), views)
    waiting = _views(found, next_up(found), views)
    if held is None and running is not None and running.head is None:
        return Judgement("unsure", drift="unknown")
    if running is not None and running.is_refused and (held is None or found.launched is not None):
        return Judgement("stop", running.head or "", "runs_what_is_not_allowed")
    if held is not None:
        # what was stopped for what is known is let go by what is known
        if is_past and waiting is not None and waiting.is_refused_nowhere:
            return Judgement("free", held.reason, "stopped_what_is_allowed")
        refused = next((one for one in (running, waiting) if one is not None and one.is_refused), None)
        return Judgement("hold", refused.head or "") if is_past and refused is not None else Judgement("none")
    if waiting is not None and waiting.is_allowed:
        return Judgement("resume", drift="waits_for_what_is_allowed")
    return Judgement("none")


def _views(found: Deployment, workload: Workload | None, views: dict[Question, Views]) -> Views | None:
    return None if workload is None else views[question(found, workload)]
