"""Carries deployments forward, one idempotent step at a time (DESIGN section 4).

`advance` may be called by any number of runners, any number of times, and may be killed at any point. What
holds: a record changes only by compare-and-swap; one runner at a time works on it, under a lease; a resource
is recorded before it is created; and each step finds out for itself what is done already.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from functions.deploy.cloud import Cloud, DeniedError, TransientCloudError
from functions.deploy.record import Deployment, Failure, Goal, Lease, Step
from functions.deploy.steps import STEPS, Outcome, StepTools
from functions.deploy.store import BlobStore, ConflictError, DeploymentStore
from functions.deploy.work import LeasedWork, LeaseLostError
from shared.errors import (
    ConfigError,
    DstackError,
    ExitCode,
    PolicyDenied,
    StorageError,
    UnavailableError,
)

LEASE_SECONDS: Final = 180
"""How long a runner that vanished keeps others away. A step's calls take less, or renew it."""

MAX_ATTEMPTS: Final = 8
FIRST_RETRY: Final = 2
LAST_RETRY: Final = 120
"""Seconds between attempts at a step that failed for the moment: doubled each time up to the last."""

LEFT_ALONE: Final = LEASE_SECONDS
"""After so many seconds in which nobody called, nobody was at work: they count for no step's time."""

_IN_CLOUD: Final = frozenset({Step.LAUNCH, Step.AWAIT_ATTESTATION})
"""Steps whose failure leaves a machine that must not go on running."""

_NOTHING_LAUNCHED: Final = frozenset({Step.PREPARE, Step.BUILD, Step.PROPOSE, Step.AWAIT_APPROVAL})
_STOPPABLE: Final = frozenset({Step.RUNNING, Step.START, Step.AWAIT_ATTESTATION})
_TO_REMOVE: Final = frozenset({Step.REMOVE, Step.REMOVED})

_log: Final = logging.getLogger(__name__)


class Next(msgspec.Struct, frozen=True):
    """When to call `advance` again: in so many seconds, or not at all (None).

    `written_at` is given where it was too early to do anything: when the record was last written.
    """

    seconds: int | None
    step: Step
    why: str = ""
    written_at: int | None = None


class Engine:
    """`clouds` by their names; `holder` names this runner, and `is_gone` tells of another that it died.

    `progress_url` is the base URL at which guests reach the API to tell their progress, or empty.
    """

    def __init__(
        self,
        store: DeploymentStore,
        blobs: BlobStore,
        clouds: Mapping[str, Cloud],
        tools: StepTools,
        *,
        clock: Callable[[], int],
        holder: str,
        is_gone: Callable[[str], bool] = lambda _: False,
        progress_url: str = "",
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clouds = clouds
        self._tools = tools
        self._clock = clock
        self._holder = holder
        self._is_gone = is_gone
        self._progress_url = progress_url

    def advance(self, name: str, *, early: bool = False) -> Next:
        """Run one step of a deployment, if it is time for one, or with `early` before its time.

        Raises `NotFoundError` for an unknown name and `StorageError` of the store; what a step raises ends in
        the record.
        """
        found = self._store.get(name)
        now = self._clock()
        if found.lease is not None and found.lease.until > now and not self._is_gone(found.lease.holder):
            return Next(found.lease.until - now, found.step, f"{found.lease.holder} is at work on it")
        redirected = redirect(found)
        if redirected.is_resting:
            return self._rest(found, redirected)
        if redirected.step is found.step and found.due > now and not early:
            return Next(found.due - now, found.step, written_at=found.updated_at)
        lease = Lease(self._holder, secrets.token_hex(8), now + LEASE_SECONDS)
        claimed = msgspec.structs.replace(
            redirected,
            lease=lease,
            version=found.version + 1,
            updated_at=now,
            since=_since(found, redirected, now),
        )
        try:
            self._store.replace(claimed, found.version)
        except ConflictError:
            return Next(1, found.step, "another runner was faster")
        work = LeasedWork(self._store, self._blobs, claimed, self._clock, listens_at=self._progress_url)
        try:
            return self._run(work)
        except LeaseLostError:
            return Next(1, found.step, "another runner took over")

    def _rest(self, found: Deployment, resting: Deployment) -> Next:
        """Write where a deployment rests without having to do anything: stopped before it was launched."""
        if resting.step is not found.step:
            moved = msgspec.structs.replace(
                resting,
                version=found.version + 1,
                updated_at=(now := self._clock()),
                since=now,
                lease=None,
            )
            try:
                self._store.replace(moved, found.version)
            except ConflictError:
                return Next(1, found.step, "another runner was faster")
        return Next(None, resting.step)

    def _run(self, work: LeasedWork) -> Next:
        step = work.deployment.step
        try:
            cloud = self._cloud(work.deployment)
            outcome = STEPS[step](work, cloud, self._tools)
        except LeaseLostError:
            raise
        except (TransientCloudError, UnavailableError, ConflictError) as error:
            outcome = self._retry(work, error)
        except DstackError as error:
            outcome = self._give_up(work, error)
        except Exception as error:  # noqa: BLE001 - unrecorded, it would be tried for ever, and nobody told
            _log.exception("deployment %s: %s failed", work.deployment.name, step.value)
            kind = type(error).__name__
            outcome = self._retry(
                work, DstackError("deploy.internal", f"{step.value} ended in an unexpected {kind}")
            )
        return self._settle(work, outcome)

    def _cloud(self, deployment: Deployment) -> Cloud:
        if deployment.cloud not in self._clouds:
            raise ConfigError(
                "deploy.cloud",
                f"this runner reaches {', '.join(self._clouds) or 'no cloud'}, not {deployment.cloud}",
            )
        return self._clouds[deployment.cloud]

    def _retry(self, work: LeasedWork, error: DstackError) -> Outcome:
        attempt = work.deployment.attempt + 1
        # a removal is never given up: what is left would cost money and run on
        if attempt >= MAX_ATTEMPTS and work.deployment.step not in {Step.REMOVE, Step.ROLLBACK}:
            return self._give_up(work, error)
        seconds = min(FIRST_RETRY << min(attempt - 1, 10), LAST_RETRY)
        work.report(
            f"{error.message}; attempt {attempt}, again in {seconds} s", error.code, {"retry": seconds}
        )
        return Outcome(work.deployment.step, seconds, changes={"attempt": attempt})

    def _give_up(self, work: LeasedWork, error: DstackError) -> Outcome:
        step = work.deployment.step
        work.report(error.message, error.code, {"failed": step.value})
        refused = error.exit_code is ExitCode.REFUSED
        failure = Failure(
            code=error.code,
            message=error.message + self._last_word(work.deployment),
            hint=_hint(error),
            step=step,
            at=self._clock(),
            refused=refused,
        )
        first = work.deployment.failure
        if step is Step.ROLLBACK and first is not None:
            # what it was that failed still counts; what is to be done comes of this one
            left = f"{first.message}; what was launched is still there: {error.message}"
            failure = msgspec.structs.replace(first, message=left, hint=failure.hint)
        rolls_back = step in _IN_CLOUD or (step is Step.START and refused)
        return Outcome(Step.ROLLBACK if rolls_back else Step.FAILED, 0, changes={"failure": failure})

    def _last_word(self, deployment: Deployment) -> str:
        """Return what the guest said of its failure since the step began, for people: it decides nothing."""
        if deployment.step not in _IN_CLOUD | {Step.START}:
            return ""
        found = self._store.get(deployment.name)  # hints come in while a step runs
        said = [one for one in found.progress if one.status == "failed" and one.at >= deployment.since]
        if found.uid != deployment.uid or not said:
            return ""
        return f"; the guest said, unverified, that {said[-1].step} failed [{said[-1].code}]"

    def _settle(self, work: LeasedWork, outcome: Outcome) -> Next:
        now = self._clock()
        moved = outcome.step is not work.deployment.step
        changes = dict(outcome.changes)
        if moved:
            changes = {"since": now, "attempt": 0} | changes
            work.say(f"{work.deployment.step.value} -> {outcome.step.value}")
        elif "attempt" not in changes:
            changes["attempt"] = 0
        work.save(step=outcome.step, due=now + outcome.seconds, lease=None, **changes)
        after = redirect(work.deployment)
        if after.is_resting and after.step is work.deployment.step:
            return Next(None, after.step, outcome.why)
        if after.step is not work.deployment.step:
            return Next(0, after.step)
        return Next(outcome.seconds, work.deployment.step, outcome.why)


def redirect(deployment: Deployment) -> Deployment:
    """Return the record with the step that its goal asks for; the same record where it is on its way."""
    step = _redirected(deployment)
    if step is deployment.step:
        return deployment
    return msgspec.structs.replace(deployment, step=step, attempt=0, due=0)


def _redirected(deployment: Deployment) -> Step:
    step, goal = deployment.step, deployment.effective_goal
    if goal is Goal.REMOVED:
        return step if step in _TO_REMOVE or deployment.is_removal_refused else Step.REMOVE
    if step in {Step.ROLLBACK, Step.FAILED}:
        return step
    if goal is Goal.STOPPED:
        if step in _NOTHING_LAUNCHED and not deployment.may_have_machine:
            return Step.STOPPED
        # a machine that is being made is stopped when it is there
        return Step.STOP if step in _STOPPABLE | _NOTHING_LAUNCHED else step
    if step in {Step.STOPPED, Step.STOP, Step.REMOVED, Step.REMOVE}:
        return Step.START if deployment.is_current else Step.PREPARE
    return step


def _since(found: Deployment, redirected: Deployment, now: int) -> int:
    """Return when the step began that is run now, without the time in which everybody was away."""
    if redirected.step is not found.step:
        return now
    away = now - max(found.due, found.updated_at)
    return found.since + away if away > LEFT_ALONE else found.since


def _hint(error: DstackError) -> str:
    if isinstance(error, DeniedError):
        return error.hint
    if isinstance(error, ConfigError):
        return "correct the project or the configuration, then deploy again"
    if isinstance(error, PolicyDenied):
        return "ask the policy's owner, or change what is deployed; then deploy again"
    if isinstance(error, StorageError):
        return "look at the store of deployments, then deploy again"
    if isinstance(error, TransientCloudError | UnavailableError):
        return "it did not come back in time: look at its status page, then deploy again"
    return "look at the events, then deploy again or remove the deployment"
