"""The engine's hold on one record while a step runs: every change is saved before anything relies on it."""

import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec

from functions.deploy.record import Deployment, Event, Lease, Resource, event_id
from functions.deploy.store import MAX_EVENTS, BlobStore, ConflictError, DeploymentStore
from functions.plan.model import MAX_PLAN_BYTES, Plan, read_plan
from shared.compose.shared_files import ENCRYPTED_ENV
from shared.errors import StorageError
from shared.measurement.config_disk import MAX_BYTES

TOKEN_BYTES: Final = 32

_TRIES: Final = 20
"""Of a write that the service's own writes keep overtaking; it makes a handful in a minute."""


class LeaseLostError(ConflictError):
    """Another runner took the record over while this one was at work."""


class LeasedWork:
    """See `functions.deploy.cloud.Work`. Writes the engine's fields, and takes in what the service wrote.

    `listens_at` is the base URL of the API that takes guests' progress, empty where there is none. The
    service may change `goal`, `requests` and `progress` at any time. Such a write is read and kept; one by a
    runner with another lease ends this one's work (`LeaseLostError`).
    """

    def __init__(
        self,
        store: DeploymentStore,
        blobs: BlobStore,
        deployment: Deployment,
        clock: Callable[[], int],
        *,
        listens_at: str = "",
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._current = deployment
        self._clock = clock
        self._listens_at = listens_at
        self._plan: Plan | None = None
        self._said: list[Event] = []

    @property
    def deployment(self) -> Deployment:
        """See `Work`."""
        return self._current

    @property
    def blobs(self) -> BlobStore:
        """See `Work`."""
        return self._blobs

    @property
    def now(self) -> int:
        """The time, in unix seconds."""
        return self._clock()

    @property
    def plan(self) -> Plan:
        """See `Work`."""
        if self._current.planned is None:
            raise StorageError("deploy.plan", f"deployment {self._current.name} has no plan yet")
        if self._plan is None:
            self._plan = read_plan(self._blobs.get(self._current.planned.plan, MAX_PLAN_BYTES))
        return self._plan

    @property
    def progress_url(self) -> str:
        """See `Work`."""
        name, token = self._current.name, self._current.progress_token
        if not self._listens_at or not token:
            return ""
        return f"{self._listens_at}/v1/deployments/{name}/progress/{token}"

    def make_progress_token(self) -> None:
        """Draw the word that the deployment's guests show when they tell progress, where somebody listens."""
        if self._listens_at and not self._current.progress_token:
            self.save(progress_token=secrets.token_urlsafe(TOKEN_BYTES))

    def config_files(self) -> dict[str, bytes]:
        """See `Work`."""
        if self._current.planned is None:
            raise StorageError("deploy.plan", f"deployment {self._current.name} has no plan yet")
        digests = dict(self._current.planned.config)
        if digests and self._current.files.encrypted_env:
            digests[ENCRYPTED_ENV] = self._current.files.encrypted_env
        return {name: self._blobs.get(digest, MAX_BYTES[name]) for name, digest in digests.items()}

    def intend(
        self,
        kind: str,
        name: str,
        place: str = "",
        *,
        keep: bool = False,
        facts: dict[str, str] | None = None,
    ) -> Resource:
        """See `Work`."""
        wanted = Resource(kind=kind, name=name, place=place, keep=keep, facts=facts or {})
        for known in self._current.resources:
            if known.key == wanted.key and known.state != "gone":
                return known
        self._put(wanted)
        return wanted

    def present(self, resource: Resource, **facts: str) -> Resource:
        """See `Work`."""
        now = msgspec.structs.replace(resource, state="present", facts=resource.facts | facts)
        if now not in self._current.resources:
            self._put(now)
        return now

    def gone(self, resource: Resource) -> None:
        """See `Work`."""
        self._put(msgspec.structs.replace(resource, state="gone"))

    def say(self, message: str, **data: Any) -> None:  # noqa: ANN401 - facts of an event
        """See `Work`. The event is written with the next change, at the latest when the step ends."""
        self.report(message, "", data)

    def report(self, message: str, code: str, data: dict[str, Any]) -> None:
        """Add an event with a code; it is written at once where as many wait as one write takes."""
        self._said.append(
            Event(
                id="",
                uid=self._current.uid,
                at=self._clock(),
                step=self._current.step.value,
                message=message,
                code=code,
                data=data,
            )
        )
        if len(self._said) >= MAX_EVENTS:
            self.save()

    def save(self, **changes: Any) -> None:  # noqa: ANN401 - fields of the record
        """Write fields of the engine, and the events so far.

        Raises `LeaseLostError("deploy.lease")`.
        """
        for _ in range(_TRIES):
            base = self._current
            changed = msgspec.structs.replace(
                base, **changes, version=base.version + 1, updated_at=self._clock()
            )
            events = [
                msgspec.structs.replace(event, id=event_id(changed.version, number))
                for number, event in enumerate(self._said)
            ]
            try:
                self._store.replace(changed, base.version, events)
            except ConflictError:
                self._current = self._reread(base)
                continue
            self._current = changed
            self._said.clear()
            return
        raise ConflictError(
            "deploy.conflict", f"deployment {self._current.name} was changed {_TRIES} times during one write"
        )

    def renew(self, seconds: int) -> None:
        """Hold on for another so many seconds."""
        lease = self._current.lease
        if lease is not None:
            self.save(lease=Lease(lease.holder, lease.token, self._clock() + seconds))

    def _reread(self, base: Deployment) -> Deployment:
        found = self._store.get(base.name)
        if found.uid != base.uid or found.lease is None or found.lease.token != (base.lease or _NOBODY).token:
            raise LeaseLostError("deploy.lease", f"another runner took deployment {base.name} over")
        return found

    def _put(self, resource: Resource) -> None:
        known = self._current.resources
        position = next((at for at, one in enumerate(known) if one.key == resource.key), len(known))
        changed = [*known[:position], resource, *known[position + 1 :]]
        self.save(resources=tuple(one for one in changed if not _is_outlived(one, resource)))


def _is_outlived(one: Resource, gone: Resource) -> bool:
    """Whether a resource that is gone tells nothing beside one of its kind and place that is gone too.

    Names may hold a hash: else each redeploy would leave another one, until no store takes the record.
    """
    return (
        one.state == gone.state == "gone"
        and (one.kind, one.place) == (gone.kind, gone.place)
        and one.key != gone.key
    )


_NOBODY: Final = Lease("", "", 0)
