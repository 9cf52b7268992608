"""What the engine needs of a cloud. A cloud reconciles: each call looks, does what is missing, and returns.

No method waits. Where the cloud is at work, the answer is `Wait`, and the method is called again. A method
may have been killed at any point before: what it created last time is found by its recorded name and by its
tags, and is taken over if the tags say that it is this deployment's.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from functions.deploy.record import Deployment, Resource
from functions.deploy.store import BlobStore
from functions.plan.model import Plan
from shared.compose.findings import Finding
from shared.errors import CloudError

MANAGED_BY: Final = "dstack-managed-by"
MANAGER: Final = "dstack-cloud"
DEPLOYMENT: Final = "dstack-deployment"
"""Tags, or labels, of every resource: who manages it, and the `uid` of its deployment."""

LOCAL: Final = "local"
"""The cloud whose machines are simulated; their roots count for it alone."""

EVIDENCE_PORT: Final = 8090
"""Where an app's side answers `POST /evidence`, upstream's external port of the guest agent."""


class TransientCloudError(CloudError):
    """The cloud is busy or failing: throttled, 5xx, a lost connection. The same call may succeed later."""


class DeniedError(CloudError):
    """The cloud will not, until somebody changes something; `hint` says what, as a command where it can."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message)
        self.hint = hint


class Wait(msgspec.Struct, frozen=True):
    """Call again in so many seconds; `what` is being waited for, as a clause."""

    seconds: int
    what: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as the cloud describes it. `status` is its word in upper case, `NOT_FOUND` without a machine.

    `machine_type` and `confidential` (`TDX`, `NITRO_ENCLAVE`, or what else it says) are what it claims to be;
    `traits` holds further claims that the plan can be held against (`vtpm`, `secure_boot`, `debug`).
    """

    status: str
    machine_type: str = ""
    confidential: str = ""
    external_ip: str = ""
    internal_ip: str = ""
    evidence_url: str = ""
    traits: dict[str, Any] = {}


class LogPage(msgspec.Struct, frozen=True):
    """Console text from a cursor on; hand `cursor` in to read on."""

    text: str
    cursor: str


class FirewallRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule for a port. `sources` are CIDRs."""

    action: Literal["allow", "deny"]
    protocol: Literal["tcp", "udp"]
    port: int
    sources: tuple[str, ...]


def progress_egress(url: str) -> dict[str, list[int]]:
    """Return what a guest must be able to reach to tell its progress: a host and its port, or nothing."""
    parts = urlsplit(url)
    if not parts.hostname:
        return {}
    return {parts.hostname: [parts.port or (443 if parts.scheme == "https" else 80)]}


class Work(Protocol):
    """One deployment in a cloud's hands: what it shall be, and a pen for what becomes of it."""

    @property
    def deployment(self) -> Deployment:
        """The record as it is now, with what was written through this object."""
        ...

    @property
    def now(self) -> int:
        """The time, in unix seconds."""
        ...

    @property
    def plan(self) -> Plan:
        """The whole plan. Raises `StorageError` where there is none yet."""
        ...

    @property
    def blobs(self) -> BlobStore:
        """The blobs that the record names."""
        ...

    @property
    def progress_url(self) -> str:
        """Where the guest may tell how its boot goes, empty where nobody listens. It holds a secret word."""
        ...

    def config_files(self) -> dict[str, bytes]:
        """Return the files of the config disk, the encrypted env included."""
        ...

    def intend(
        self,
        kind: str,
        name: str,
        place: str = "",
        *,
        keep: bool = False,
        facts: dict[str, str] | None = None,
    ) -> Resource:
        """Record a resource before it is created; one that is recorded already is returned as it is."""
        ...

    def present(self, resource: Resource, **facts: str) -> Resource:
        """Record that a resource exists, and what the cloud says of it."""
        ...

    def gone(self, resource: Resource) -> None:
        """Record that a resource does not exist any more."""
        ...

    def say(self, message: str, **data: Any) -> None:  # noqa: ANN401 - facts of an event
        """Add an event."""
        ...

    def renew(self, seconds: int) -> None:
        """Keep other runners away for another so many seconds: a single call is about to take minutes."""
        ...


class Cloud(Protocol):
    """One cloud. Every method raises `TransientCloudError`, `DeniedError` or another `CloudError`."""

    def check(self, work: Work) -> Sequence[Finding]:
        """Say what would stop a launch: credential, quota, a name in foreign hands. Creates nothing."""
        ...

    def launch(self, work: Work) -> Wait | Machine:
        """Make all resources that the plan needs, and return the running machine."""
        ...

    def start(self, work: Work) -> Wait | Machine:
        """Start a machine that was stopped, and return it running."""
        ...

    def stop(self, work: Work) -> Wait | Machine:
        """Stop the machine and keep its disks."""
        ...

    def retire(self, work: Work) -> Wait | None:
        """Remove what a redeploy makes anew: all but the resources that are kept."""
        ...

    def remove(self, work: Work) -> Wait | None:
        """Remove every resource, recorded or found by tag; None when a look at the cloud finds none."""
        ...

    def describe(self, work: Work) -> Machine:
        """Look at the machine."""
        ...

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        """Return console text of at most `limit` bytes from `cursor` on."""
        ...

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        """List the rules of this deployment."""
        ...

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        """Make one rule, in the place of any other for its port and protocol."""
        ...

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        """Remove the rules of a port; False where there is none."""
        ...
