"""The steps of a deployment. Each may run again after it was killed anywhere, and then ends the same way."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from functions.deploy.cloud import Cloud, DeniedError, Machine, Wait
from functions.deploy.machine_claims import check_machine
from functions.deploy.record import Approved, Deployment, Planned, Proven, Running, Step, workload
from functions.deploy.work import LeasedWork
from functions.plan.model import Plan
from functions.plan.standing import DISAGREEMENT, MISSING, NOT_FINAL, Standing, undecided
from shared.compose.findings import Severity
from shared.errors import ConfigError, DstackError, InvalidEvidence, PolicyDenied, UnavailableError

BUILD_LEASE: Final = 900
"""Building an enclave image of a gigabyte takes minutes on a small machine."""

APPROVAL_POLL: Final = 60
"""Seconds; a grant that only has to become final is looked for sooner where blocks are final sooner."""

ATTESTATION_POLL: Final = 5
ATTESTATION_SECONDS: Final = 900
"""How long a launched app may take to answer: images are pulled in this time."""

LAUNCH_SECONDS: Final = 3600


class Outcome(msgspec.Struct, frozen=True):
    """Where a step leads, and in how many seconds; the same step is not done. `changes` are fields."""

    step: Step
    seconds: int = 0
    why: str = ""
    changes: Mapping[str, Any] = {}


class BuiltPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan and what it leaves behind: files of the config disk, the blob of an enclave image."""

    plan: Plan
    config: Mapping[str, bytes]
    image: str = ""
    image_source: str = ""


class Attested(msgspec.Struct, frozen=True, kw_only=True):
    """What fresh evidence proved: the verdict as JSON, and whether it is of a simulated machine."""

    simulated: bool
    verdict: dict[str, Any]
    proven: Proven | None = None


class StepTools(Protocol):
    """What steps need beside a cloud."""

    def build(self, work: LeasedWork) -> BuiltPlan:
        """Plan the project of the record: measure, and build where there is something to build."""
        ...

    def ask_approval(self, work: LeasedWork) -> Standing:
        """Ask the chain what is missing. Where no chain is configured the answer is not `checked`."""
        ...

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        """Challenge the app and verify its evidence against the plan.

        Raises `UnavailableError` while nothing answers, `InvalidEvidence` and `PolicyDenied` otherwise.
        """
        ...


StepFunction = Callable[[LeasedWork, Cloud, StepTools], Outcome]


def _prepare(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Look for what would stop a launch before anything is built."""
    del tools
    problems = [found for found in cloud.check(work) if found.severity is Severity.ERROR]
    if problems:
        raise DeniedError(
            problems[0].code,
            "; ".join(f"{found.where} {found.message}" for found in problems),
            "correct it, then deploy again: `dstack-cloud doctor` shows all of it",
        )
    return Outcome(Step.BUILD)


def _build(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Measure what will run, and keep everything that a launch needs."""
    del cloud
    work.renew(BUILD_LEASE)
    built = tools.build(work)
    plan = built.plan
    if plan.outcome == "refused":
        first = next(found for found in plan.findings if found.severity is Severity.ERROR)
        raise PolicyDenied(first.code, f"{first.where} {first.message}")
    planned = Planned(
        plan_id=plan.plan_id,
        app_id=plan.app.app_id,
        compose_hash=plan.compose.compose_hash,
        os_image_hash=plan.image.os_image_hash,
        platform=plan.platform,
        plan=work.blobs.put(msgspec.json.encode(plan)),
        config={name: work.blobs.put(content) for name, content in built.config.items()},
        image=built.image,
        image_source=built.image_source,
        config_disk_sha256="" if plan.config_disk is None else plan.config_disk.sha256,
        machine=plan.machine,
    )
    work.say(
        f"planned {plan.plan_id[:16]}",
        plan_id=plan.plan_id,
        app_id=planned.app_id,
        compose_hash=planned.compose_hash,
        os_image_hash=planned.os_image_hash,
    )
    return Outcome(Step.PROPOSE, changes={"planned": planned, "approved": None})


def _propose(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Ask the chain, and tell which calls governance has to make."""
    del cloud
    may_wait = work.deployment.settings.get("wait_for_approval") is not False
    try:
        standing = tools.ask_approval(work)
    except (UnavailableError, InvalidEvidence) as error:
        # who lies once may do so for long: that is waited out, what does not answer is tried again
        if not may_wait or undecided(error)[0] != DISAGREEMENT:
            raise
        return _undecided(work, error)
    approval = standing.approval
    approved = _approved(standing, work.now)
    if not approval.checked:
        work.say("no chain is configured here: the key server alone will ask what governance allows")
        return Outcome(Step.RETIRE, changes={"approved": approved})
    if approval.blocked:
        raise PolicyDenied("deploy.approval.blocked", "; ".join(approval.blocked))
    if not standing.code:
        work.say(f"governance allows this deployment{_by_whom(standing)}", block=approved.block_number)
        return Outcome(Step.RETIRE, changes={"approved": approved})
    calls = [msgspec.to_builtins(call) for call in approval.calls]
    if calls:
        work.say(f"calls that governance must make first: {len(calls)}", calls=calls)
    if not may_wait:
        work.save(approved=approved)
        raise _nobody_waits(standing)
    return _waits(work, standing)


def _await_approval(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Ask the chain again, until nothing is missing in either view, whoever had this step run."""
    del cloud
    try:
        standing = _check_final(tools.ask_approval(work), work.deployment.approved)
    except (UnavailableError, InvalidEvidence, ConfigError) as error:
        # the chain was asked before, so it is no setting that an endpoint makes look wrong
        return _undecided(work, error)
    if standing.code or not standing.approval.checked:
        return _waits(work, standing)
    approved = _approved(standing, work.now)
    work.say(f"governance allows this deployment now{_by_whom(standing)}", block=approved.block_number)
    return Outcome(Step.RETIRE, changes={"approved": approved})


def _check_final(standing: Standing, known: Approved | None) -> Standing:
    """Refuse a final block below one that was seen before: another runner may have seen it."""
    is_same = known is not None and standing.chain is not None and known.chain_id == standing.chain.chain_id
    if known is not None and is_same and standing.final_block < known.final_block:
        raise InvalidEvidence(
            "quorum.finalized.regressed",
            f"the finalised block is {standing.final_block}, expected at least {known.final_block} as seen"
            " before",
        )
    return standing


def _waits(work: LeasedWork, standing: Standing) -> Outcome:
    """Stay, and tell why where that is news."""
    seconds = min(max(standing.lag, 1), APPROVAL_POLL) if standing.code == NOT_FINAL else APPROVAL_POLL
    return _stay(work, _approved(standing, work.now), seconds)


def _undecided(work: LeasedWork, error: DstackError) -> Outcome:
    code, why = undecided(error)
    known = work.deployment.approved or Approved(calls=0)
    return _stay(work, msgspec.structs.replace(known, code=code, why=why, checked_at=work.now), APPROVAL_POLL)


def _stay(work: LeasedWork, approved: Approved, seconds: int) -> Outcome:
    before = work.deployment.approved
    # the first look tells the calls themselves
    told = MISSING if work.deployment.step is Step.PROPOSE or before is None else before.code
    if approved.code != told:
        work.report(approved.why, approved.code, {"block": approved.block_number})
    return Outcome(Step.AWAIT_APPROVAL, seconds, approved.why, changes={"approved": approved})


def _nobody_waits(standing: Standing) -> DeniedError:
    calls = len(standing.approval.calls)
    if calls:
        return DeniedError(
            "deploy.approval.missing",
            f"calls that governance must make first: {calls}, and nobody asked to wait for them",
            "have the calls made that the events list, then deploy again",
        )
    return DeniedError(
        standing.code, f"{standing.why}, and nobody asked to wait", "deploy again when the grant is final"
    )


def _by_whom(standing: Standing) -> str:
    return ", by the word of one endpoint" if standing.asked == 1 else ""


def _retire(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Take away the machine of an earlier plan: both would have one name."""
    del tools
    if not work.deployment.may_have_machine or work.deployment.is_current:
        return Outcome(Step.LAUNCH)
    if (waiting := cloud.retire(work)) is not None:
        return Outcome(Step.RETIRE, waiting.seconds, waiting.what)
    work.say("the machine of the earlier plan is gone")
    return Outcome(Step.LAUNCH, changes={"running": None, "launched": None})


def _launch(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Have the cloud make the machine, and hold what it says of it against what was ordered."""
    del tools
    work.make_progress_token()
    return _machine_up(work, cloud.launch(work), Step.LAUNCH)


def _start(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Start a stopped machine; it is attested again as if it were new."""
    del tools
    return _machine_up(work, cloud.start(work), Step.START)


def _machine_up(work: LeasedWork, answer: Wait | Machine, step: Step) -> Outcome:
    if isinstance(answer, Wait):
        _check_time(work, LAUNCH_SECONDS, step.value)
        return Outcome(step, answer.seconds, answer.what)
    check_machine(work.plan, answer)
    running = Running(
        external_ip=answer.external_ip,
        internal_ip=answer.internal_ip,
        machine_status=answer.status,
        evidence_url=answer.evidence_url,
        plan_id=work.plan.plan_id,
        encrypted_env=work.deployment.files.encrypted_env,
    )
    work.say("the machine is up", external_ip=answer.external_ip, internal_ip=answer.internal_ip)
    return Outcome(
        Step.AWAIT_ATTESTATION, changes={"running": running, "launched": workload(work.deployment.planned)}
    )


def _await_attestation(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Verify fresh evidence of the app against the plan; nothing else makes a deployment `running`."""
    running = work.deployment.running
    if running is None:
        return Outcome(Step.LAUNCH)
    try:
        attested = tools.attest(work.deployment, running.evidence_url)
    except UnavailableError as error:
        waited = work.now - work.deployment.since
        if waited >= ATTESTATION_SECONDS:
            raise InvalidEvidence(
                "deploy.attestation.timeout",
                f"no evidence in {waited} s: {error.message}; can this machine reach {running.evidence_url}?",
            ) from error
        check_machine(work.plan, _still_up(cloud.describe(work)))
        return Outcome(Step.AWAIT_ATTESTATION, ATTESTATION_POLL, f"waiting for the app: {error.message}")
    known = msgspec.structs.replace(
        running,
        attested_at=work.now,
        simulated=attested.simulated,
        verdict=attested.verdict,
        proven=attested.proven,
    )
    word = "simulated evidence" if attested.simulated else "evidence"
    work.say(f"fresh {word} shows what was planned", plan_id=running.plan_id, simulated=attested.simulated)
    return Outcome(Step.RUNNING, changes={"running": known, "failure": None})


def _still_up(machine: Machine) -> Machine:
    if machine.status in {"TERMINATED", "STOPPED", "NOT_FOUND", "STOPPING", "ENCLAVE_DOWN"}:
        raise DeniedError(
            "deploy.machine.down",
            f"the machine is {machine.status} before it answered",
            "read `dstack-cloud logs`: a guest that cannot boot powers off",
        )
    return machine


def _stop(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Stop the machine; its disks stay."""
    del tools
    answer = cloud.stop(work)
    if isinstance(answer, Wait):
        return Outcome(Step.STOP, answer.seconds, answer.what)
    running = work.deployment.running or Running()
    stopped = msgspec.structs.replace(
        running, machine_status=answer.status, external_ip="", evidence_url="", attested_at=0, verdict={}
    )
    return Outcome(Step.STOPPED, changes={"running": stopped, "launched": None})


def _remove(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Remove everything, and look again that it is gone."""
    del tools
    if (waiting := cloud.remove(work)) is not None:
        return Outcome(Step.REMOVE, waiting.seconds, waiting.what)
    work.say("nothing is left in the cloud")
    return Outcome(
        Step.REMOVED, changes={"running": None, "launched": None, "quarantine": None, "failure": None}
    )


def _rollback(work: LeasedWork, cloud: Cloud, tools: StepTools) -> Outcome:
    """Take away the machine of a launch that failed; the failure stays on the record."""
    del tools
    if (waiting := cloud.retire(work)) is not None:
        return Outcome(Step.ROLLBACK, waiting.seconds, waiting.what)
    work.say("the machine of the failed launch is gone")
    return Outcome(Step.FAILED, changes={"running": None, "launched": None})


def _check_time(work: LeasedWork, limit: int, what: str) -> None:
    waited = work.now - work.deployment.since
    if waited > limit:
        raise DeniedError(
            "deploy.timeout",
            f"the {what} is not done after {waited} s",
            "look at the cloud's console for what it waits for, then deploy again",
        )


def _approved(standing: Standing, now: int) -> Approved:
    calls, chain = len(standing.approval.calls), standing.chain
    if chain is None:
        return Approved(calls=calls, checked_at=now, is_asked=False)
    return Approved(
        calls=calls,
        block_number=chain.block_number,
        block_hash=chain.block_hash,
        chain_id=chain.chain_id,
        checked_at=now,
        code=standing.code,
        why=standing.why,
        final_block=standing.final_block,
        asked=standing.asked,
        quorum=standing.quorum,
    )


STEPS: Final[Mapping[Step, StepFunction]] = {
    Step.PREPARE: _prepare,
    Step.BUILD: _build,
    Step.PROPOSE: _propose,
    Step.AWAIT_APPROVAL: _await_approval,
    Step.RETIRE: _retire,
    Step.LAUNCH: _launch,
    Step.START: _start,
    Step.AWAIT_ATTESTATION: _await_attestation,
    Step.STOP: _stop,
    Step.REMOVE: _remove,
    Step.ROLLBACK: _rollback,
}
