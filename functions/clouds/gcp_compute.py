"""Google's Compute API as this cloud calls it: no call waits or repeats, and every error is one of ours."""

from collections.abc import Callable, Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from functions.clouds.gcp_errors import translated
from functions.deploy.cloud import TransientCloudError
from functions.google_api.credentials import default_credentials
from functions.google_api.errors import GoogleError
from shared.errors import CloudError, StorageError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

CALL_SECONDS: Final = 30.0
"""Of one call; a call that takes longer is as good as lost, and is found out by the next look."""

_ENDPOINT: Final = "https://compute.googleapis.com"
_PAGE: Final = 500
_MAX_PAGES: Final = 1000  # far more than a project can hold: a fuse against an endless answer


class Place(msgspec.Struct, frozen=True):
    """Where a resource is: a project and a zone, or the whole project without one."""

    project: str
    zone: str = ""

    @property
    def region(self) -> str:
        """The zone's region."""
        return self.zone.rpartition("-")[0]

    @property
    def path(self) -> str:
        """The place as a record holds it, which is how Google's own paths begin."""
        return f"projects/{self.project}/" + (f"zones/{self.zone}" if self.zone else "global")

    @property
    def fields(self) -> dict[str, str]:
        """The request fields that name it."""
        return {"project": self.project} | ({"zone": self.zone} if self.zone else {})

    @classmethod
    def of(cls, path: str) -> "Place":
        """Read a recorded place. Raises `StorageError("gcp.place")`."""
        match path.split("/"):
            case ["projects", project, "zones", zone]:
                return cls(project, zone)
            case ["projects", project, "global"]:
                return cls(project)
        raise StorageError("gcp.place", f"a recorded resource is in {path[:80]!a}, which is no place")


class Kind(msgspec.Struct, frozen=True):
    """A kind of resource: its service, the request field that names one, and gcloud's word for it."""

    service: str
    noun: str
    group: str


KINDS: Final = {
    "instance": Kind("Instances", "instance", "instances"),
    "disk": Kind("Disks", "disk", "disks"),
    "image": Kind("Images", "image", "images"),
    "firewall": Kind("Firewalls", "firewall", "firewall-rules"),
}


class Compute:
    """Clients are made when they are first needed: the library takes most of a second to import.

    `credentials` gives google-auth's, the application's default ones unless told otherwise.
    """

    def __init__(
        self, credentials: "Callable[[], Credentials]" = default_credentials, endpoint: str = _ENDPOINT
    ) -> None:
        self._make_credentials = credentials
        self._endpoint = urlsplit(endpoint)
        self._clients: dict[str, Any] = {}
        self._credentials: Credentials | None = None
        self._lock = Lock()

    def call(self, service: str, method: str, what: str, **fields: Any) -> Any:  # noqa: ANN401 - Google's types
        """Call one method with its request's fields, and return Google's answer.

        Raises `TransientCloudError`, `DeniedError`, `GoogleError`, `CloudError("gcp.answer")`.
        """
        project = str(fields.get("project", ""))
        with translated(what, project):
            client = self._client(service)
        with translated(what, project, self.member):
            return getattr(client, method)(request=fields, retry=None, timeout=CALL_SECONDS)

    def find(self, service: str, what: str, **fields: Any) -> Any:  # noqa: ANN401 - Google's types
        """Return what `get` finds, None where there is nothing of this name."""
        try:
            return self.call(service, "get", what, **fields)
        except GoogleError as error:
            if error.status == 404:
                return None
            raise

    def look(self, kind: str, name: str, place: Place) -> Any:  # noqa: ANN401 - Google's types
        """Return one resource, or None."""
        known = KINDS[kind]
        return self.find(known.service, f"look at {kind} {name}", **place.fields, **{known.noun: name})

    def operation(self, place: Place, name: str) -> Any:  # noqa: ANN401 - Google's types
        """Return an operation, or None where it is forgotten."""
        service = "ZoneOperations" if place.zone else "GlobalOperations"
        return self.find(service, f"look at operation {name}", **place.fields, operation=name)

    def list(self, service: str, what: str, **fields: Any) -> Iterator[Any]:  # noqa: ANN401 - a request
        """Yield all pages' items."""
        for page in self._pages(service, "list", what, fields):
            yield from page.items

    def list_everywhere(
        self,
        service: str,
        group: str,
        what: str,
        **fields: Any,  # noqa: ANN401 - a request's fields
    ) -> Iterator[Any]:
        """Yield the items of all zones.

        Raises `TransientCloudError("gcp.unreachable")` where a zone cannot say what it has.
        """
        for page in self._pages(service, "aggregated_list", what, fields):
            for scope, listed in page.items.items():
                if str(listed.warning.code) == "UNREACHABLE":
                    raise TransientCloudError("gcp.unreachable", f"cannot {what}: {scope} does not answer")
                yield from getattr(listed, group)

    @property
    def member(self) -> str:
        """Who calls, as IAM names it; empty where the credentials do not say."""
        email = getattr(self._credentials, "service_account_email", "") or ""
        return f"serviceAccount:{email}" if "@" in str(email) else ""

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for client in self._clients.values():
                client.transport.close()
            self._clients.clear()

    def _pages(self, service: str, method: str, what: str, fields: dict[str, Any]) -> Iterator[Any]:
        token = ""
        for _ in range(_MAX_PAGES):
            # a pager of the library asks for further pages by itself: take it as the page that it starts with
            page = self.call(service, method, what, **fields, max_results=_PAGE, page_token=token)
            yield page
            token = page.next_page_token
            if not token:
                return
        raise CloudError("gcp.answer", f"the list does not end when asked to {what}")

    def _client(self, service: str) -> Any:  # noqa: ANN401 - Google's types
        with self._lock:
            if service not in self._clients:
                from google.cloud import compute_v1  # noqa: PLC0415 - takes most of a second

                made = getattr(compute_v1, f"{service}Client")
                transport = made.get_transport_class("rest")(
                    host=self._endpoint.netloc,
                    url_scheme=self._endpoint.scheme,
                    credentials=self._own_credentials(),
                )
                self._clients[service] = made(transport=transport)
            return self._clients[service]

    def _own_credentials(self) -> "Credentials":
        if self._credentials is None:
            self._credentials = self._make_credentials()
        return self._credentials
