"""When a plan may be launched by what two views of the contracts say, and the code where it may not."""

import msgspec
import pytest

from functions.plan.model import ApprovalPlan
from functions.plan.standing import (
    BLOCKED,
    DISAGREEMENT,
    MISSING,
    NOT_FINAL,
    REVOKED,
    UNANSWERED,
    Standing,
    judged,
    undecided,
)
from shared.chain.approval import Approval, ChainViews
from shared.errors import DstackError, InvalidEvidence, UnavailableError
from tests.functions.deploy.memory_cloud import CALL
from tests.shared.chain.test_approval import STATE

ALLOWED = Approval(checked=True, calls=(), blocked=(), notes=())
REFUSED = Approval(checked=True, calls=(), blocked=("isAppAllowed reverts",), notes=())


def views(final_time: int = STATE.block_time - 12) -> ChainViews:
    return ChainViews(
        head=STATE, final=STATE, final_number=STATE.block_number - 1, final_time=final_time, asked=3, quorum=2
    )


def standing(*, calls: int = 0, blocked: tuple[str, ...] = ()) -> Standing:
    approval = ApprovalPlan(checked=True, calls=(CALL,) * calls, blocked=blocked, notes=(), new_app_id="")
    return Standing(approval=approval, chain=None)


@pytest.mark.parametrize(
    ("newest", "final", "code"),
    [
        (standing(), ALLOWED, ""),
        (standing(), REFUSED, NOT_FINAL),
        (standing(), None, NOT_FINAL),
        (standing(calls=1), ALLOWED, REVOKED),
        (standing(blocked=("no",)), ALLOWED, REVOKED),
        (standing(calls=1), REFUSED, MISSING),
        (standing(blocked=("no",)), None, BLOCKED),
    ],
)
def test_both_views_must_allow(newest: Standing, final: Approval | None, code: str) -> None:
    found = judged(newest, views(), final)
    assert found.code == code
    assert bool(found.why) == bool(code)
    assert (found.asked, found.quorum, found.final_block) == (3, 2, STATE.block_number - 1)


def test_says_how_far_behind_the_final_block_is() -> None:
    found = judged(standing(), views(), None)
    assert found.lag == 12
    assert f"allowed at block {STATE.block_number}" in found.why
    assert "12 seconds behind" in found.why


def test_a_final_block_of_a_later_time_is_not_behind() -> None:
    assert judged(standing(), views(final_time=STATE.block_time + 5), None).lag == 0


def test_an_approval_that_nobody_checked_is_none() -> None:
    unchecked = msgspec.structs.replace(ALLOWED, checked=False)
    assert judged(standing(), views(), unchecked).code == NOT_FINAL


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("quorum.disagreement", "1 of 2"), DISAGREEMENT),
        (InvalidEvidence("quorum.finalized.regressed", "it went back"), DISAGREEMENT),
        (InvalidEvidence("quorum.finalized.conflict", "it changed"), DISAGREEMENT),
        (UnavailableError("quorum.too_few", "1 of 2 answer"), UNANSWERED),
        (UnavailableError("quorum.behind", "old"), UNANSWERED),
        (UnavailableError("net.timeout", "gone"), UNANSWERED),
    ],
)
def test_tells_endpoints_that_differ_from_endpoints_that_are_silent(error: DstackError, code: str) -> None:
    found, why = undecided(error)
    assert found == code
    assert error.message in why
