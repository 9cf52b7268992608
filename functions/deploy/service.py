"""What a user asks of deployments: the same for the command line in process and for the HTTP API.

The service changes nothing in a cloud but firewall rules. It writes down what is wanted, and has a runner
called that brings it about. Who may ask is decided before.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final

import msgspec

from functions.deploy.cloud import Cloud, FirewallRule, LogPage, Machine
from functions.deploy.progress import ProgressDesk
from functions.deploy.record import (
    MAX_REQUESTS,
    Deployment,
    Event,
    Files,
    Goal,
    Lease,
    Step,
    event_id,
)
from functions.deploy.request import RuleBody, Upload, check_name, check_port, check_rule, check_upload
from functions.deploy.store import BlobStore, ConflictError, DeploymentStore, NotFoundError, Schedule
from functions.deploy.work import LeasedWork
from shared.compose.findings import Finding
from shared.errors import ConfigError, ProtocolError

MAX_KEY: Final = 128
MAX_PAGE: Final = 200
MAX_LOG_PAGE: Final = 1 << 20
"""Bytes of console text in one answer; a Lambda function may answer with six times as much."""

MAX_CURSOR: Final = 1024
FIREWALL_LEASE: Final = 60
"""Seconds for which a change of the firewall keeps the engine away; it takes a few calls of the cloud."""

_TRIES: Final = 20
"""Of a write that others overtake: the engine makes a handful in a minute."""

_VERBS: Final = {Goal.STOPPED: "stop", Goal.RUNNING: "start", Goal.REMOVED: "remove"}

Change = Callable[[Deployment], Deployment | None]
"""From a record to what it shall be, or None where it is that already."""


class Page(msgspec.Struct, frozen=True):
    """Deployments by name; `after` is where the next page starts, empty where there is none."""

    deployments: tuple[Deployment, ...]
    after: str


class EventPage(msgspec.Struct, frozen=True):
    """Events, oldest first; hand `after` in to read on, now or later."""

    events: tuple[Event, ...]
    after: str


class DeploymentService:
    """`clouds` by their names, `schedule` has a runner called for a name, `clock` gives unix seconds.

    A `key` is the caller's own for one request: a second request with it is answered and not done again.
    `caller` says who asked, for the record. Every method raises what the store raises.
    """

    def __init__(
        self,
        store: DeploymentStore,
        blobs: BlobStore,
        clouds: Mapping[str, Cloud],
        schedule: Schedule,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clouds = clouds
        self._schedule = schedule
        self._clock = clock

    # ---- what is there ----

    def get(self, name: str) -> Deployment:
        """Return the record. Raises `NotFoundError("deploy.unknown")`, `ProtocolError` for no name."""
        check_name(name)
        return self._store.get(name)

    def list(self, after: str = "", limit: int = 100) -> Page:
        """Return deployments by name, those that were removed too."""
        limit = _page(limit)
        found = tuple(self._store.list(after, limit))
        return Page(found, found[-1].name if len(found) == limit else "")

    def events(self, name: str, after: str = "", limit: int = MAX_PAGE) -> EventPage:
        """Return what happened, from the event behind `after` on."""
        self.get(name)
        found = tuple(self._store.events(name, after, _page(limit)))
        return EventPage(found, found[-1].id if found else after)

    def logs(self, name: str, cursor: str = "", limit: int = MAX_LOG_PAGE) -> LogPage:
        """Return console text from `cursor` on, as the cloud has it: nobody vouches for it.

        Raises `ConflictError("deploy.nothing_there")` where there is no machine, and what the cloud raises.
        """
        if len(cursor) > MAX_CURSOR or not cursor.isascii():
            raise ProtocolError("deploy.request.cursor", "the cursor is none that was handed out")
        work = self._look(name)
        return self._cloud(work.deployment).logs(work, cursor, min(max(limit, 1), MAX_LOG_PAGE))

    def machine(self, name: str) -> Machine:
        """Return what the cloud says of the machine now; its evidence alone is to be believed.

        Raises as `logs`.
        """
        work = self._look(name)
        return self._cloud(work.deployment).describe(work)

    def check(self, upload: Upload) -> Sequence[Finding]:
        """Say what would stop a deployment of these files in its cloud; nothing is stored but blobs.

        Raises as `create` for files that are none, and what the cloud raises.
        """
        cloud = check_upload(upload)
        now = self._clock()
        asked = Deployment(
            name=upload.name,
            uid=secrets.token_hex(8),
            version=1,
            cloud=cloud,
            goal=Goal.RUNNING,
            step=Step.PREPARE,
            files=self._keep(upload),
            settings=_settings(upload),
            created_at=now,
            updated_at=now,
        )
        found = self._find(upload.name)
        if found is not None and found.step is not Step.REMOVED:
            asked = msgspec.structs.replace(found, files=asked.files, settings=asked.settings)
        return self._cloud(asked).check(_Look(self._store, self._blobs, asked, self._clock))

    def firewall(self, name: str) -> Sequence[FirewallRule]:
        """Return the rules of a deployment, as the cloud has them."""
        work = self._look(name)
        return self._cloud(work.deployment).firewall(work)

    def take_progress(self, name: str, token: str, body: bytes) -> None:
        """Keep what a guest says of its boot. Raises as `ProgressDesk.take`."""
        ProgressDesk(self._store, self._clock).take(name, token, body)

    # ---- what is wanted ----

    def create(self, upload: Upload, *, key: str = "", caller: str = "") -> Deployment:
        """Start a deployment; with `upload.replace` one of the name may be there, and is deployed anew.

        Raises `ConflictError`: `deploy.exists`, `deploy.busy`, `deploy.idempotency`; `ConfigError`
        (`deploy.cloud`); what `check_upload` raises.
        """
        return self._deploy(upload, key, caller, may_create=True)

    def redeploy(self, upload: Upload, *, key: str = "", caller: str = "") -> Deployment:
        """Deploy other files under a name that is there.

        Raises as `create`, and `NotFoundError("deploy.unknown")`, `ConflictError("deploy.cloud_change")`.
        """
        return self._deploy(msgspec.structs.replace(upload, replace=True), key, caller, may_create=False)

    def stop(self, name: str, *, key: str = "", caller: str = "") -> Deployment:
        """Have the machine stopped; its disks stay. Raises `ConflictError`: `deploy.removed`."""
        return self._want(name, Goal.STOPPED, key, caller)

    def start(self, name: str, *, key: str = "", caller: str = "") -> Deployment:
        """Have it running again. Raises as `stop`, and `ConflictError("deploy.quarantined")`."""
        return self._want(name, Goal.RUNNING, key, caller)

    def remove(self, name: str, *, key: str = "", caller: str = "") -> Deployment:
        """Have everything removed, disks too."""
        return self._want(name, Goal.REMOVED, key, caller)

    def retry(self, name: str, *, key: str = "", caller: str = "") -> Deployment:
        """Try again what failed, with the files that are there.

        Raises `ConflictError`: `deploy.not_failed`, `deploy.removed`.
        """

        def again(found: Deployment) -> Deployment:
            if found.goal is Goal.REMOVED:
                raise _removed(found)
            if found.step is not Step.FAILED:
                raise ConflictError(
                    "deploy.not_failed", f"deployment {name} is {found.status}, nothing of it failed"
                )
            return self._from_the_start(found)

        return self._change(name, again, "retry", key, caller)

    def set_firewall(self, name: str, rule: RuleBody, *, caller: str = "") -> FirewallRule:
        """Make a rule, in the place of any other for its port.

        Raises `ConflictError("deploy.busy")`, what `check_rule` and the cloud raise.
        """
        check_rule(rule)
        made = FirewallRule(
            action=rule.action,
            protocol=rule.protocol,
            port=rule.port,
            sources=tuple(sorted(set(rule.sources))),
        )
        with self._hold(name) as work:
            self._cloud(work.deployment).set_firewall(work, made)
            work.say(
                f"firewall: {made.action} {made.protocol} {made.port}", sources=made.sources, caller=caller
            )
        return made

    def clear_firewall(self, name: str, protocol: str, port: int, *, caller: str = "") -> bool:
        """Remove the rules of a port; False where there is none. Raises as `set_firewall`."""
        check_port(protocol, port)
        with self._hold(name) as work:
            cleared = self._cloud(work.deployment).clear_firewall(work, protocol, port)
            if cleared:
                work.say(f"firewall: no rule for {protocol} {port} any more", caller=caller)
        return cleared

    # ---- deploying ----

    def _deploy(self, upload: Upload, key: str, caller: str, *, may_create: bool) -> Deployment:
        cloud = check_upload(upload)
        _check_key(key)
        if cloud not in self._clouds:
            raise ConfigError(
                "deploy.cloud",
                f"{cloud} is not reached from here, only {', '.join(self._clouds) or 'no cloud'}",
            )
        upload = msgspec.structs.replace(upload, cloud=cloud)
        request = _digest("deploy", upload)
        for _ in range(_TRIES):
            found = self._find(upload.name)
            if found is not None and _is_known(found, key, request):
                return self._answer(found)
            is_new = found is None or found.step is Step.REMOVED
            if is_new and not may_create:
                raise NotFoundError(
                    "deploy.unknown", f"there is no deployment {upload.name}: create it first"
                )
            try:
                if found is None or is_new:
                    return self._create(upload, found, {key: request} if key else {}, caller)
                wanted = self._redeployed(found, upload)
                return self._write(found, _remember(wanted, key, request), "deploy", caller)
            except ConflictError as error:
                if error.code not in {"deploy.conflict", "deploy.name_taken"}:
                    raise
        raise _overtaken(upload.name)

    def _create(
        self, upload: Upload, removed: Deployment | None, request: dict[str, str], caller: str
    ) -> Deployment:
        now = self._clock()
        # a late repetition of a request for the name's earlier use must not be taken for a new one
        known = {} if removed is None else removed.requests
        made = Deployment(
            name=upload.name,
            uid=secrets.token_hex(8),
            version=1,
            cloud=upload.cloud or "local",
            goal=Goal.RUNNING,
            step=Step.PREPARE,
            files=self._keep(upload),
            settings=_settings(upload),
            created_at=now,
            updated_at=now,
            created_by=caller,
            since=now,
            requests=_bounded(known | request),
        )
        self._store.create(made, [self._event(made, "deploy was asked for", caller)])
        return self._answer(made)

    def _redeployed(self, found: Deployment, upload: Upload) -> Deployment:
        is_nothing = found.step is Step.FAILED and not found.may_have_machine
        if not upload.replace and not is_nothing:
            raise ConflictError(
                "deploy.exists",
                f"there is a deployment {found.name} already: use replace, or --delete, to deploy over it",
            )
        if found.cloud != upload.cloud:
            raise ConflictError(
                "deploy.cloud_change",
                f"deployment {found.name} is on {found.cloud}, not {upload.cloud}: remove it first",
            )
        if found.goal is Goal.REMOVED:
            raise _removed(found)
        # while governance is waited for nothing of the earlier files has been made
        self._check_rests(found, or_at=Step.AWAIT_APPROVAL)
        return msgspec.structs.replace(
            self._from_the_start(found),
            goal=Goal.RUNNING,
            files=self._keep(upload),
            settings=_settings(upload),
            quarantine=None,
        )

    def _keep(self, upload: Upload) -> Files:
        return Files(
            project={name: self._blobs.put(content) for name, content in sorted(upload.files.items())},
            encrypted_env=self._blobs.put(upload.encrypted_env) if upload.encrypted_env else "",
        )

    def _check_rests(self, found: Deployment, *, or_at: Step | None = None) -> None:
        lease = found.lease
        if not (found.is_resting or found.step is or_at) or (
            lease is not None and lease.until > self._clock()
        ):
            raise ConflictError(
                "deploy.busy",
                f"deployment {found.name} is {found.status}: wait until that is done, or stop it first",
            )

    def _from_the_start(self, found: Deployment) -> Deployment:
        return msgspec.structs.replace(
            found, step=Step.PREPARE, failure=None, since=self._clock(), attempt=0, due=0
        )

    # ---- goals ----

    def _want(self, name: str, goal: Goal, key: str, caller: str) -> Deployment:
        def want(found: Deployment) -> Deployment | None:
            if goal is not Goal.REMOVED and found.goal is Goal.REMOVED:
                raise _removed(found)
            if goal is Goal.RUNNING and found.quarantine is not None:
                raise ConflictError(
                    "deploy.quarantined",
                    f"governance does not allow what {found.name} runs ({found.quarantine.reason}): have it"
                    " allowed, or deploy what is",
                )
            if found.is_removal_refused:
                return msgspec.structs.replace(self._from_the_start(found), step=Step.REMOVE)
            if found.step is Step.FAILED and goal is not Goal.REMOVED:
                return msgspec.structs.replace(self._from_the_start(found), goal=goal)
            return None if found.goal is goal else msgspec.structs.replace(found, goal=goal)

        return self._change(name, want, _VERBS[goal], key, caller)

    def _change(self, name: str, change: Change, what: str, key: str, caller: str) -> Deployment:
        check_name(name)
        _check_key(key)
        request = _digest(what)
        for _ in range(_TRIES):
            found = self._store.get(name)
            if _is_known(found, key, request):
                return self._answer(found)
            wanted = change(found)
            if wanted is None and not key:
                return self._answer(found)
            try:
                return self._write(found, _remember(wanted or found, key, request), what, caller)
            except ConflictError as error:
                if error.code != "deploy.conflict":
                    raise
        raise _overtaken(name)

    # ---- the store ----

    def _find(self, name: str) -> Deployment | None:
        try:
            return self._store.get(name)
        except NotFoundError:
            return None

    def _write(self, found: Deployment, wanted: Deployment, what: str, caller: str) -> Deployment:
        changed = msgspec.structs.replace(wanted, version=found.version + 1, updated_at=self._clock())
        self._store.replace(changed, found.version, [self._event(changed, f"{what} was asked for", caller)])
        return self._answer(changed)

    def _answer(self, found: Deployment) -> Deployment:
        """Have a runner called where something is to be done, also for an answer that is given again.

        The first call may have been lost between the record and the queue.
        """
        if not found.is_resting:
            self._schedule(found.name, 0)
        return found

    def _event(self, deployment: Deployment, message: str, caller: str) -> Event:
        return Event(
            id=event_id(deployment.version, 0),
            uid=deployment.uid,
            at=self._clock(),
            step=deployment.step.value,
            message=message,
            data={"caller": caller} if caller else {},
        )

    # ---- clouds ----

    def _cloud(self, deployment: Deployment) -> Cloud:
        if deployment.cloud not in self._clouds:
            raise ConfigError("deploy.cloud", f"{deployment.cloud} is not reached from here")
        return self._clouds[deployment.cloud]

    def _look(self, name: str) -> "_Look":
        return _Look(self._store, self._blobs, self._planned(name), self._clock)

    def _planned(self, name: str) -> Deployment:
        found = self.get(name)
        if found.planned is None or found.step is Step.REMOVED:
            raise ConflictError(
                "deploy.nothing_there",
                f"deployment {name} is {found.status}: there is no machine yet, or any more",
            )
        return found

    @contextmanager
    def _hold(self, name: str) -> Iterator[LeasedWork]:
        """Keep the engine away while rules change: the cloud writes down what it makes."""
        found = self._planned(name)
        # an app whose evidence nobody reaches may want a rule before it can be attested
        self._check_rests(found, or_at=Step.AWAIT_ATTESTATION)
        lease = Lease("service", secrets.token_hex(8), self._clock() + FIREWALL_LEASE)
        held = msgspec.structs.replace(
            found, lease=lease, version=found.version + 1, updated_at=self._clock()
        )
        try:
            self._store.replace(held, found.version)
        except ConflictError as error:
            raise ConflictError("deploy.busy", f"deployment {name} is being changed: try again") from error
        work = LeasedWork(self._store, self._blobs, held, self._clock)
        try:
            yield work
        finally:
            work.save(lease=None)
            self._answer(work.deployment)


class _Look(LeasedWork):
    """For calls that look at a cloud, without a lease: what they note down is theirs alone."""

    def save(self, **changes: Any) -> None:  # noqa: ANN401 - fields of the record
        """Keep changes for this object's own readers."""
        self._current = msgspec.structs.replace(self._current, **changes)


def _settings(upload: Upload) -> dict[str, Any]:
    """Return what the steps read beside the files."""
    settings = {
        "env_names": sorted(set(upload.env_names)),
        "wait_for_approval": upload.wait_for_approval,
        **msgspec.to_builtins(upload.options),
        "directory": upload.directory,
    }
    return {name: value for name, value in settings.items() if value not in ("", [], ())}


def _digest(what: str, upload: Upload | None = None) -> str:
    """Return what tells one request from another under the same key."""
    digest = sha256(what.encode())
    if upload is not None:
        facts = {
            "files": {name: sha256(content).hexdigest() for name, content in sorted(upload.files.items())},
            "encrypted_env": sha256(upload.encrypted_env).hexdigest(),
            "cloud": upload.cloud,
            "settings": _settings(upload),
        }
        digest.update(msgspec.json.encode(facts, order="deterministic"))
    return digest.hexdigest()


def _is_known(found: Deployment, key: str, request: str) -> bool:
    """Whether a request was made before. Raises `ConflictError("deploy.idempotency")` for another one."""
    known = found.requests.get(key) if key else None
    if known is None:
        return False
    if known != request:
        raise ConflictError(
            "deploy.idempotency", "another request was made with this idempotency key: use a new one"
        )
    return True


def _check_key(key: str) -> None:
    if len(key) > MAX_KEY or not key.isascii() or not key.isprintable():
        raise ProtocolError(
            "deploy.request.key", f"the idempotency key is no printable ascii of at most {MAX_KEY} characters"
        )


def _remember(wanted: Deployment, key: str, request: str) -> Deployment:
    if not key:
        return wanted
    return msgspec.structs.replace(wanted, requests=_bounded(wanted.requests | {key: request}))


def _bounded(requests: dict[str, str]) -> dict[str, str]:
    return dict(list(requests.items())[-MAX_REQUESTS:])


def _page(limit: int) -> int:
    return min(max(limit, 1), MAX_PAGE)


def _removed(found: Deployment) -> ConflictError:
    if found.step is Step.REMOVED:
        return ConflictError("deploy.removed", f"deployment {found.name} is removed: create it anew")
    return ConflictError(
        "deploy.removed", f"deployment {found.name} is to be removed: once it is, create it anew"
    )


def _overtaken(name: str) -> ConflictError:
    return ConflictError("deploy.busy", f"deployment {name} was changed {_TRIES} times meanwhile: try again")
