"""What follows from two views of the contract for one deployment. Pure: it asks and changes nothing.

A refusal at the head counts at once; an allow counts where the head and the newest final block both have it.
What has no app of the contract's may be one of its key servers: that is asked with what its evidence proved.
"""

from hashlib import sha256
from typing import Final, Literal

import msgspec

from functions.deploy.quarantine import at_stake, next_up
from functions.deploy.record import Deployment, Proven, Quarantine, Workload
from shared.boot_info import BootInfo
from shared.chain.header import BlockRef
from shared.chain.rules import APP_NOT_DEPLOYED, APP_NOT_REGISTERED, DEVICE_NOT_ALLOWED, UP_TO_DATE

ALLOWED: Final = ""
UNTOLD: Final = "the app lists its devices, and this machine's id is not known"
"""A verdict that neither stops nor frees anything: everything before the device was allowed."""

NITRO_DEVICE: Final = sha256(b"i").digest()
"""The device id of every Nitro enclave (spec kms, trap 8)."""

NO_APP: Final = frozenset({APP_NOT_REGISTERED, APP_NOT_DEPLOYED})
"""What the contract says of what is none of its apps."""

DEVICE_UNKNOWN: Final = "governance.device.unknown"
UNPROVEN: Final = "governance.key_server.unproven"
NOT_ALLOWED_YET: Final = "governance.key_server.not_allowed"
_NO_EVIDENCE: Final = "it is no app of the contract's, and no evidence shows what it is"
_APP_ID_DIGITS: Final = 40

RUNS_REFUSED: Final = "runs_what_is_not_allowed"

Action = Literal["none", "stop", "hold", "free", "resume", "unsure", "recognise", "tell"]
"""`hold` has a quarantine rest on this look's block: another look may be about to lift it by an older one.

`recognise` remembers that a key server was allowed; `tell` changes nothing, and tells operators a code.
"""


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
    """A workload as the contract is asked about it. `device_id` of 32 bytes, None where nobody knows it.

    With `mr_aggregated`, 32 bytes, it is asked about as a key server.
    """

    workload: Workload
    device_id: bytes | None
    tcb_status: str
    mr_aggregated: bytes = b""

    def boot_info(self) -> BootInfo:
        """Return what `isAppAllowed`, or `isKmsAllowed`, is called with."""
        return BootInfo(
            tee_variant="",
            mr_aggregated=self.mr_aggregated,
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
        """Return what a verdict says of this workload: of a device that nobody knows it says nothing.

        An app's own contract may refuse in any words, ours among them.
        """
        if verdict == UNTOLD:
            return f"the contract says: {verdict}"
        return UNTOLD if verdict == DEVICE_NOT_ALLOWED and self.device_id is None else verdict


class Judgement(msgspec.Struct, frozen=True):
    """What is to be done. `reason` is the contract's; `drift` names how chain and deployment differ.

    `code` is what operators are told. `refused` is what the head refuses, where it is stopped or held.
    """

    action: Action
    reason: str = ""
    drift: str = ""
    code: str = ""
    refused: Workload | None = None


def question(found: Deployment, workload: Workload) -> Question:
    """Return what to ask about a deployment's workload.

    Its device is the one that evidence proved, else the one that its project names. A TCB status that no
    evidence gave is taken as up to date: that is the app's condition on evidence, and it would hide what the
    contract says of the hashes.
    """
    is_nitro = workload.platform == "nitro"
    proven = _proven(found, workload)
    text = str(found.settings.get("device_id", "")).removeprefix("0x")
    device = bytes.fromhex(text) if text else (NITRO_DEVICE if is_nitro else None)
    verdict = found.running.verdict if found.running is not None else {}
    status = str(verdict.get("tcb_status") or "") if found.launched == workload else ""
    if proven is not None:
        device, status = bytes.fromhex(proven.device_id), proven.tcb_status
    return Question(workload, device, status or ("" if is_nitro else UP_TO_DATE))


def key_server_question(found: Deployment, workload: Workload) -> Question | None:
    """Return what to ask about a workload that may be a key server, None where no evidence shows what it is.

    Evidence of an enclave has no TCB status. A key server's own setting decides what that counts for, so it
    is no reason to stop one.
    """
    proven = _proven(found, workload)
    if proven is None:
        return None
    return Question(
        workload,
        bytes.fromhex(proven.device_id),
        proven.tcb_status or UP_TO_DATE,
        bytes.fromhex(proven.mr_aggregated),
    )


def questions(found: Deployment) -> tuple[Question, ...]:
    """Return all that must be asked to judge a deployment."""
    wanted = (at_stake(found), next_up(found))
    return tuple({question(found, one): None for one in wanted if one is not None})


def key_server_questions(found: Deployment, views: dict[Question, Views]) -> tuple[Question, ...]:
    """Return what must be asked about key servers: of what runs and is none of the contract's apps."""
    running = at_stake(found)
    if running is None or views[question(found, running)].head not in NO_APP:
        return ()
    asked = key_server_question(found, running)
    return () if asked is None else (asked,)


def judge(
    found: Deployment, views: dict[Question, Views], final: BlockRef, *, is_orphaned: bool
) -> Judgement:
    """Decide. `is_orphaned` tells that the block of the quarantine is no longer on the chain."""
    held = found.quarantine
    running = _views(found, at_stake(found), views)
    waiting = _views(found, next_up(found), views)
    if held is None and (untouched := _untouched(found, views)) is not None:
        return untouched
    if held is None and running is not None and running.head is None:
        return Judgement("unsure", drift="unknown")
    if running is not None and running.is_refused and (held is None or found.launched is not None):
        return Judgement("stop", running.head or "", RUNS_REFUSED, refused=at_stake(found))
    if held is not None:
        is_past = is_orphaned or final.number >= held.block_number
        return _held(found, held, running, waiting) if is_past else Judgement("none")
    if waiting is not None and waiting.is_allowed:
        return Judgement("resume", drift="waits_for_what_is_allowed")
    is_untold = running is not None and running.head == UNTOLD and found.launched is not None
    return Judgement("tell", UNTOLD, code=DEVICE_UNKNOWN) if is_untold else Judgement("none")


def _held(found: Deployment, held: Quarantine, running: Views | None, waiting: Views | None) -> Judgement:
    # what was stopped for what is known is let go by what is known
    if waiting is not None and waiting.is_refused_nowhere:
        return Judgement("free", held.reason, "stopped_what_is_allowed")
    for seen, workload in ((running, at_stake(found)), (waiting, next_up(found))):
        if seen is not None and seen.is_refused:
            return Judgement("hold", seen.head or "", refused=workload)
    return Judgement("none")


def _untouched(found: Deployment, views: dict[Question, Views]) -> Judgement | None:
    """Return what is to be done about a key server that the contract did not take back; None for all else.

    Its measurement and device are known when it runs, so it is allowed after it was started. Until then it
    is told of, where no contract can be at its app id: it can be nothing but a key server.
    """
    workload = at_stake(found)
    if workload is None or views[question(found, workload)].head not in NO_APP:
        return None
    asked = key_server_question(found, workload)
    if asked is None:
        return None if _may_have_app(workload) else Judgement("tell", _NO_EVIDENCE, code=UNPROVEN)
    seen, known = views[asked], found.key_server == asked.mr_aggregated.hex()
    if seen.is_allowed and not known:
        return Judgement("recognise", asked.mr_aggregated.hex())
    if not seen.is_refused or known or seen.final == ALLOWED or _may_have_app(workload):
        return None
    return Judgement("tell", seen.head or "", code=NOT_ALLOWED_YET)


def _may_have_app(workload: Workload) -> bool:
    return bool(workload.app_id) and workload.app_id != workload.compose_hash[:_APP_ID_DIGITS]


def _proven(found: Deployment, workload: Workload) -> Proven | None:
    """Return what evidence proved of the machine that runs a workload, or that ran what is quarantined."""
    if found.running is None or (found.launched != workload and found.quarantine is None):
        return None
    return found.running.proven if workload == at_stake(found) else None


def _views(found: Deployment, workload: Workload | None, views: dict[Question, Views]) -> Views | None:
    if workload is None:
        return None
    asked, own = key_server_question(found, workload), views[question(found, workload)]
    # it was asked about where the contract knows no app
    seen = None if asked is None else views.get(asked)
    if asked is None or seen is None:
        return own
    was_allowed = ALLOWED in {seen.head, seen.final} or found.key_server == asked.mr_aggregated.hex()
    return seen if was_allowed or not _may_have_app(workload) else own
