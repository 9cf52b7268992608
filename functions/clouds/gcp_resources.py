"""Makes and removes resources so that a kill at any point leaves nothing unknown and nothing twice.

A resource is recorded with a request id of its own before it is asked for, so that Google drops a repeated
request; the operation's name is recorded after that. Whatever is not recorded any more is seen by a look.
"""

from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from functions.clouds.gcp_compute import KINDS, Compute, Place
from functions.clouds.gcp_errors import BUSY, operation_error
from functions.clouds.gcp_settings import is_ours, name_taken
from functions.deploy.cloud import DEPLOYMENT, DeniedError, TransientCloudError, Wait, Work
from functions.deploy.record import Resource
from functions.google_api.errors import GoogleError
from shared.errors import CloudError

POLL: Final = 3
"""Seconds between looks at an operation: most take between 5 and 60."""

GRACE_SECONDS: Final = 60
"""How long a removal waits for what was asked for and never answered; a call takes half as long at most."""

_OPERATION: Final = "operation"
_DOING: Final = "doing"
_REQUEST: Final = "request_id"
_CREATE: Final = "create"
SHARED: Final = "shared"
"""The fact of a resource that other deployments use too; it is never removed with one of them."""


class Resources:
    """One deployment's resources."""

    def __init__(self, compute: Compute, work: Work) -> None:
        self._compute = compute
        self._work = work
        self._uid = work.deployment.uid

    def ensure(
        self,
        kind: str,
        name: str,
        place: Place,
        make: Callable[[], dict[str, Any]],
        *,
        is_current: Callable[[Any], bool] | None = None,
        keep: bool = False,
        shared: bool = False,
    ) -> Any:  # noqa: ANN401 - Google's types
        """Return the resource as Google describes it, or `Wait`. `make` returns the body to create it with.

        A resource of ours that is not `is_current` is removed first and made anew. A `shared` one is taken
        over whoever made it, but from another deployment. Raises `DeniedError("gcp.name_taken")` for one that
        is not ours.
        """
        facts = {_REQUEST: str(uuid4())} | ({SHARED: "yes"} if shared else {})
        resource = self._work.intend(kind, name, place.path, keep=keep or shared, facts=facts)
        ended = self._ended(resource)
        if isinstance(ended, Wait):
            return ended
        if isinstance(ended, CloudError):
            raise self._failed(resource, ended)
        found = self._compute.look(kind, name, place)
        is_foreign = found is not None and not is_ours(found.labels, self._uid)
        if is_foreign and (not shared or DEPLOYMENT in found.labels):
            raise name_taken(kind, KINDS[kind].group, name, place)
        if found is not None and is_current is not None and not is_current(found):
            waiting = self.drop(resource)
            return waiting if waiting is not None else Wait(0, f"the old {kind} {name} was removed")
        if found is None:
            return self._create(resource, place, make)
        facts = {"id": str(found.id)} | ({_OPERATION: ""} if _OPERATION in resource.facts else {})
        if resource.state != "present" or facts.items() - resource.facts.items():
            self._work.present(resource, **facts)
        return found

    def act(self, resource: Resource, method: str, doing: str, **fields: Any) -> Wait:  # noqa: ANN401 - request
        """Ask for a change of a resource, and record the operation."""
        place = Place.of(resource.place)
        known = KINDS[resource.kind]
        operation = self._compute.call(
            known.service,
            method,
            f"{doing} {resource.kind} {resource.name}",
            **place.fields,
            **{known.noun: resource.name},
            **fields,
        )
        self._work.present(resource, **{_OPERATION: operation.name, _DOING: doing})
        return Wait(POLL, f"to {doing} {resource.kind} {resource.name}")

    def settle(self, resource: Resource) -> Wait | Resource:
        """Return the resource once no operation of it runs; raise what the last one failed with."""
        ended = self._ended(resource)
        if isinstance(ended, Wait):
            return ended
        if isinstance(ended, CloudError):
            raise self._failed(resource, ended)
        return (
            self._work.present(resource, **{_OPERATION: ""}) if resource.facts.get(_OPERATION) else resource
        )

    def drop(self, resource: Resource) -> Wait | None:
        """Remove a resource; None once a look finds it gone, or in foreign hands."""
        ended = self._ended(resource)
        if isinstance(ended, Wait):
            return ended
        if isinstance(ended, CloudError) and resource.facts.get(_DOING) != _CREATE:
            raise self._failed(resource, ended)
        place = Place.of(resource.place)
        found = self._compute.look(resource.kind, resource.name, place)
        if found is None and self._may_still_appear(resource):
            return Wait(POLL, f"for {resource.kind} {resource.name}, which was asked for and not answered")
        if found is None or not is_ours(found.labels, self._uid):
            self._work.gone(resource)
            return None
        try:
            return self.act(resource, "delete_unary", "delete", request_id=str(uuid4()))
        except GoogleError as error:
            if error.status != 404:
                raise
            self._work.gone(resource)
            return None
        except TransientCloudError as error:
            if error.code != BUSY:
                raise
            return Wait(POLL, f"until {resource.kind} {resource.name} can be removed")

    def _may_still_appear(self, resource: Resource) -> bool:
        """Tell whether a request whose answer was lost may have been taken, and shows nothing yet.

        Whatever was asked for was asked for before the present step began.
        """
        is_unanswered = resource.state == "intended" and _REQUEST in resource.facts
        return is_unanswered and self._work.now - self._work.deployment.since < GRACE_SECONDS

    def _ended(self, resource: Resource) -> Wait | CloudError | None:
        """Look at the operation that runs; return what it failed with, None where none runs any more."""
        operation_name = resource.facts.get(_OPERATION, "")
        if not operation_name:
            return None
        place = Place.of(resource.place)
        what = f"{resource.facts.get(_DOING, 'change')} {resource.kind} {resource.name}"
        operation = self._compute.operation(place, operation_name)
        if operation is not None and operation.status.name != "DONE":
            return Wait(POLL, f"to {what}")
        if operation is None or not operation.error.errors:
            return None
        return operation_error(
            operation.error.errors,
            what=what,
            project=place.project,
            zone=place.zone,
            member=self._compute.member,
        )

    def _failed(self, resource: Resource, error: CloudError) -> CloudError:
        """Record that an operation came to nothing."""
        if resource.facts.get(_DOING) == _CREATE:
            self._work.gone(resource)
        else:
            self._work.present(resource, **{_OPERATION: ""})
        return error

    def _create(self, resource: Resource, place: Place, make: Callable[[], dict[str, Any]]) -> Wait:
        if resource.facts.get(_DOING):
            # it was there and somebody removed it: a used request id would be taken for a repetition
            self._work.gone(resource)
            return Wait(0, f"{resource.kind} {resource.name} is made anew")
        known = KINDS[resource.kind]
        body = make()
        try:
            operation = self._compute.call(
                known.service,
                "insert_unary",
                f"{_CREATE} {resource.kind} {resource.name}",
                **place.fields,
                **{f"{known.noun}_resource": body},
                request_id=resource.facts[_REQUEST],
            )
        except DeniedError:
            self._work.gone(resource)  # refused is answered: nobody has to wait for it
            raise
        except GoogleError as error:
            if error.status != 409:
                raise
            if self._compute.look(resource.kind, resource.name, place) is not None:
                # somebody was faster, this runner's own lost request included: the next look says who
                return Wait(1, f"for a look at {resource.kind} {resource.name}")
            # something that comes with it has a name that is taken: an instance's boot disk
            raise DeniedError("gcp.name_taken", error.message, "dstack-cloud doctor") from error
        self._work.present(resource, **{_OPERATION: operation.name, _DOING: _CREATE})
        return Wait(POLL, f"to {_CREATE} {resource.kind} {resource.name}")
