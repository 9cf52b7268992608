"""What runs that the contracts do not allow: deployments, judged as the governance function judges them."""

from collections.abc import Iterable
from typing import Final

import msgspec

from cli.gov.chain import Block, Contracts, unread
from functions.deploy.quarantine import at_stake
from functions.deploy.record import Deployment, Step, Workload
from functions.governance.judgement import (
    NOT_ALLOWED_YET,
    Question,
    Views,
    judge,
    key_server_questions,
    questions,
)
from shared.chain import abi
from shared.chain.abi import MALFORMED, REVERTED
from shared.chain.header import BlockRef
from shared.errors import DstackError

_REFUSALS: Final = {
    "rpc.reverted": REVERTED,
    "abi.malformed": MALFORMED,
    "net.response.oversize": MALFORMED,
}
_MAX_REASON: Final = 200


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment that is up, what it runs, and why a KMS would refuse it now: empty where it would not.

    `refused` is the contract's reason. `unread` says why it is not known, where that is so.
    """

    name: str
    app_id: str
    compose_hash: str
    os_image_hash: str
    refused: tuple[str, ...] = ()
    unread: str = ""


def held_to_policy(contracts: Contracts, deployments: Iterable[Deployment], at: Block) -> list[Held]:
    """Return the deployments that are up, or come up without being asked about again, each judged."""
    return [
        _held(contracts, found, workload, at)
        for found in deployments
        if (workload := at_stake(found)) is not None and not _is_down(found)
    ]


def _is_down(found: Deployment) -> bool:
    # what `start` would start is at stake too, and does not run
    return found.step is Step.STOPPED and found.is_resting


def _held(contracts: Contracts, found: Deployment, workload: Workload, at: Block) -> Held:
    failures: list[str] = []

    def ask(asked: Iterable[Question], selector: bytes) -> dict[Question, Views]:
        # of one block, as all that is shown here: what is final is not asked
        return {one: Views(_verdict(contracts, one, selector, at, failures), None) for one in asked}

    # a quarantine was governance's answer, and this asks anew
    found = msgspec.structs.replace(found, quarantine=None)
    views = ask(questions(found), abi.IS_APP_ALLOWED)
    views |= ask(key_server_questions(found, views), abi.IS_KMS_ALLOWED)
    judged = judge(found, views, BlockRef(at.number, at.hash), is_orphaned=False)
    is_refused = judged.action == "stop" or judged.code == NOT_ALLOWED_YET
    untold = {"unsure": "; ".join(failures), "tell": judged.reason}.get(judged.action, "")
    return Held(
        name=found.name,
        app_id=workload.app_id,
        compose_hash=workload.compose_hash,
        os_image_hash=workload.os_image_hash,
        refused=(judged.reason[:_MAX_REASON],) if is_refused else (),
        unread="" if is_refused else untold,
    )


def _verdict(
    contracts: Contracts, asked: Question, selector: bytes, at: Block, failures: list[str]
) -> str | None:
    call = abi.boot_info_call(selector, asked.boot_info())
    try:
        return asked.read(abi.decode_verdict(contracts.views(at, (contracts.kms, call))[0]))
    except DstackError as error:
        if error.code in _REFUSALS:
            return _REFUSALS[error.code]
        failures.append(unread(error))
        return None
