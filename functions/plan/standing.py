"""Whether a plan may be launched by what the contracts say, and if not, why (DESIGN section 2, two views).

Pure. A grant counts when it is final and still there at the newest block; what either view refuses waits.
"""

from typing import Final

import msgspec

from functions.plan.model import ApprovalPlan, ChainPlan
from shared.chain.approval import Approval, ChainViews
from shared.errors import DstackError, InvalidEvidence

MISSING: Final = "deploy.approval.missing"
"""Calls are missing at the newest block."""

BLOCKED: Final = "deploy.approval.blocked"
"""The contracts refuse it at the newest block, and no call of ours mends that."""

NOT_FINAL: Final = "deploy.approval.not_final"
"""Allowed at the newest block, and not yet at the newest final one."""

REVOKED: Final = "deploy.approval.revoked"
"""Allowed at the newest final block, and not any more at the newest one."""

DISAGREEMENT: Final = "deploy.approval.disagreement"
"""The endpoints contradict each other, or take back what was final."""

UNANSWERED: Final = "deploy.approval.unanswered"
"""Too few endpoints answer, or what they know is old."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan stands. `approval` and `chain` are of the newest block; `chain` None: nobody was asked.

    `code` is empty where it may be launched, else it says why not, and `why` does for people. `lag` is how
    many seconds the newest final block is behind. `quorum` of `asked` endpoints had to agree.
    """

    approval: ApprovalPlan
    chain: ChainPlan | None
    code: str = ""
    why: str = ""
    final_block: int = 0
    lag: int = 0
    asked: int = 0
    quorum: int = 0


def judged(standing: Standing, views: ChainViews, final: Approval | None) -> Standing:
    """Return a standing with its code. `final` is what is missing at the newest final block, None for all."""
    head = standing.approval
    is_allowed = head.checked and not head.calls and not head.blocked
    was_allowed = final is not None and final.is_complete
    lag = max(views.head.block_time - views.final_time, 0)
    newest, last = views.head.block_number, views.final_number
    refusal = "; ".join(head.blocked) or f"calls missing: {len(head.calls)}"
    code, why = "", ""
    if is_allowed and not was_allowed:
        code = NOT_FINAL
        why = (
            f"allowed at block {newest}, but not at the newest final block {last}, which is {lag} seconds"
            " behind: waiting until the grant is final"
        )
    elif not is_allowed and was_allowed:
        code = REVOKED
        why = f"the newest final block {last} allows it, the newest block {newest} does not: {refusal}"
    elif head.calls:
        code, why = MISSING, f"waiting for governance, calls missing: {len(head.calls)}"
    elif not is_allowed:
        code, why = BLOCKED, f"waiting for governance: {refusal}"
    return msgspec.structs.replace(
        standing,
        code=code,
        why=why,
        final_block=last,
        lag=lag,
        asked=views.asked,
        quorum=views.quorum,
    )


def undecided(error: DstackError) -> tuple[str, str]:
    """Return the code and the sentence for a question that endpoints did not answer as one."""
    differs = error.code == "quorum.disagreement" or isinstance(error, InvalidEvidence)
    if differs:
        return DISAGREEMENT, f"the endpoints do not agree: {error.message}"
    return UNANSWERED, f"the chain cannot be read: {error.message} [{error.code}]"
