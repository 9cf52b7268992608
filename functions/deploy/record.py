"""A deployment as data: one record per name, changed by compare-and-swap alone (DESIGN section 4).

Three writers share a record. The engine owns `step`, `resources` and whatever a step finds; the service, on
behalf of a user, owns `goal` and `requests`; governance owns `quarantine`. Each rereads and tries again when
another was faster.
"""

from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from shared.errors import StorageError

RECORD_FORMAT: Final = 1
MAX_REQUESTS: Final = 32
"""How many idempotency keys a deployment remembers."""


class Goal(StrEnum):
    """What the user wants."""

    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"


class Step(StrEnum):
    """The cursor: what is done next. The last four are places to rest."""

    PREPARE = "prepare"
    BUILD = "build"
    PROPOSE = "propose"
    AWAIT_APPROVAL = "await_approval"
    RETIRE = "retire"
    LAUNCH = "launch"
    START = "start"
    AWAIT_ATTESTATION = "await_attestation"
    STOP = "stop"
    REMOVE = "remove"
    ROLLBACK = "rollback"
    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"
    FAILED = "failed"


RESTING: Final = frozenset({Step.RUNNING, Step.STOPPED, Step.REMOVED, Step.FAILED})
"""Where nothing happens until somebody asks for something."""

CloudName = Literal["gcp-tdx", "aws-nitro", "local"]
ResourceState = Literal["intended", "present", "gone"]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in a cloud, recorded before it is created.

    `kind` is the cloud's word (`instance`, `image`), `name` unique in its kind and `place`, `facts` ids and
    addresses that the cloud gave. With `keep` a redeploy leaves it (a data disk) and only a removal ends it.
    """

    kind: str
    name: str
    place: str = ""
    state: ResourceState = "intended"
    keep: bool = False
    facts: dict[str, str] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same resource."""
        return self.kind, self.place, self.name


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a deployment failed, at which step, and what to do next.

    `refused` tells a verdict (evidence, policy, a machine that is not the one ordered) from what went wrong.
    """

    code: str
    message: str
    hint: str
    step: Step
    at: int
    refused: bool = False


class Lease(msgspec.Struct, frozen=True):
    """Who is at work on the record, and until when (unix seconds) others keep away."""

    holder: str
    token: str
    until: int


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """The project as it was handed in: SHA-256 (hex) of each file's blob, by name.

    `encrypted_env` is the ciphertext's blob, empty without one; nobody here can read it.
    """

    project: dict[str, str]
    encrypted_env: str = ""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan fixed; hashes in hex. `plan` is the plan's blob, `config` those of the disk's files.

    `image` is the blob of the enclave image; empty where an OS image is named instead.
    """

    plan_id: str
    app_id: str
    compose_hash: str
    os_image_hash: str
    platform: str
    plan: str
    config: dict[str, str] = {}
    image: str = ""
    image_source: str = ""
    config_disk_sha256: str = ""
    machine: dict[str, Any] = {}


class Approved(msgspec.Struct, frozen=True, kw_only=True):
    """What the chain said last, at its newest block. `calls` is how many governance calls are missing.

    `code` says why the deployment waits, empty where it does not, and `why` says it to people. `final_block`
    is the newest final one. `quorum` of `asked` endpoints had to agree: of one, its word is all there is.
    """

    calls: int
    block_number: int = 0
    block_hash: str = ""
    chain_id: int = 0
    checked_at: int = 0
    is_asked: bool = True
    code: str = ""
    why: str = ""
    final_block: int = 0
    asked: int = 0
    quorum: int = 0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine was launched to run, as governance decides on it; hashes and the id in hex."""

    platform: str
    app_id: str
    compose_hash: str
    os_image_hash: str


def workload(planned: Planned | None) -> Workload | None:
    """Return what a plan runs, as governance decides on it."""
    if planned is None:
        return None
    return Workload(
        platform=planned.platform,
        app_id=planned.app_id,
        compose_hash=planned.compose_hash,
        os_image_hash=planned.os_image_hash,
    )


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Why governance has a deployment stopped: the contract's reason, at a block that a quorum agreed on.

    `block_hash` is hex without a prefix. It outlives what the user asks for, until the contract allows the
    workload again or other files are deployed.
    """

    reason: str
    chain_id: int
    block_number: int
    block_hash: str
    at: int


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """What verified evidence showed of the machine itself: hashes of 32 bytes in hex, the vendor's word."""

    mr_aggregated: str
    device_id: str
    tcb_status: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud says of the machine, and what its evidence proved. Only the second is to be believed.

    `plan_id` and `encrypted_env` are of the launch: the plan, and the blob of the ciphertext on its disk.
    `proven` outlives a stop: what was stopped for something in it is let go by the same.
    """

    external_ip: str = ""
    internal_ip: str = ""
    machine_status: str = ""
    evidence_url: str = ""
    plan_id: str = ""
    encrypted_env: str = ""
    attested_at: int = 0
    simulated: bool = False
    verdict: dict[str, Any] = {}
    proven: Proven | None = None


class ProgressHint(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a guest said of its boot, received `at` (unix seconds).

    Nobody vouches for it: whoever knows the deployment's `progress_token` may have said it. `boot` tells two
    boots apart, `sequence` counts within one, `code` is an error's, or empty.
    """

    at: int
    boot: str
    sequence: int
    step: str
    status: Literal["started", "done", "failed"]
    code: str = ""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are unix seconds; `version` grows by one with each write.

    `uid` is new each time the name is used and stands in every tag. `since` is when the present step began,
    put off by the time in which nobody carried it forward. `attempt` counts its failures, `due` is when it is
    to be tried next. `launched` is what the machine runs while one is up; `quarantine` is governance's.
    So is `key_server`: the `mr_aggregated` of what the contract once allowed as a key server, or empty.

    `progress` are the newest hints of guests that know `progress_token`: nothing is ever decided by them, and
    writing them down changes no other field, `updated_at` included.
    """

    name: str
    uid: str
    version: int
    cloud: CloudName
    goal: Goal
    step: Step
    files: Files
    created_at: int
    updated_at: int
    format: int = RECORD_FORMAT
    created_by: str = ""
    settings: dict[str, Any] = {}
    planned: Planned | None = None
    approved: Approved | None = None
    running: Running | None = None
    launched: Workload | None = None
    quarantine: Quarantine | None = None
    key_server: str = ""
    resources: tuple[Resource, ...] = ()
    failure: Failure | None = None
    lease: Lease | None = None
    since: int = 0
    attempt: int = 0
    due: int = 0
    requests: dict[str, str] = {}
    progress_token: str = ""
    progress: tuple[ProgressHint, ...] = ()

    @property
    def effective_goal(self) -> Goal:
        """The user's goal, or to be stopped where governance does not let it run."""
        is_held = self.quarantine is not None and self.goal is Goal.RUNNING
        return Goal.STOPPED if is_held else self.goal

    @property
    def is_resting(self) -> bool:
        """Whether nothing is to be done: the place to rest is the one that was asked for."""
        if self.step is Step.FAILED:
            return self.goal is not Goal.REMOVED or self.is_removal_refused
        return self.step in RESTING and self.step.value == self.effective_goal.value

    @property
    def is_removal_refused(self) -> bool:
        """Whether a removal failed, and somebody must act before it is asked for again."""
        return self.step is Step.FAILED and self.failure is not None and self.failure.step is Step.REMOVE

    @property
    def may_have_machine(self) -> bool:
        """Whether a machine is known, or something of a launch that may be one was not taken away."""
        return self.running is not None or any(one.state != "gone" and not one.keep for one in self.resources)

    @property
    def is_current(self) -> bool:
        """Whether the machine that is there was launched by the plan, and with the ciphertext, in force."""
        running, planned = self.running, self.planned
        return (
            running is not None
            and planned is not None
            and running.plan_id == planned.plan_id
            and running.encrypted_env == self.files.encrypted_env
        )

    @property
    def status(self) -> str:
        """One word for people: the step, or what is being waited for."""
        if self.step is Step.STOPPED and self.quarantine is not None:
            return "quarantined"
        return _WORDS.get(self.step, self.step.value)

    def resource(self, kind: str) -> Resource | None:
        """Return the one resource of a kind that is not gone."""
        return next((one for one in self.resources if one.kind == kind and one.state != "gone"), None)


_WORDS: Final = {
    Step.PREPARE: "preparing",
    Step.BUILD: "building",
    Step.PROPOSE: "checking_approval",
    Step.AWAIT_APPROVAL: "awaiting_approval",
    Step.RETIRE: "replacing",
    Step.LAUNCH: "launching",
    Step.START: "starting",
    Step.AWAIT_ATTESTATION: "attesting",
    Step.STOP: "stopping",
    Step.REMOVE: "removing",
    Step.ROLLBACK: "rolling_back",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `id` grows; `version` is the record's that it was written with."""

    id: str
    uid: str
    at: int
    step: str
    message: str
    code: str = ""
    data: dict[str, Any] = {}


def encode_record(deployment: Deployment) -> bytes:
    """Return the record as JSON."""
    return msgspec.json.encode(deployment)


def decode_record(raw: bytes) -> Deployment:
    """Read a record back. Raises `StorageError("deploy.record")` for one that this version cannot read."""
    try:
        found = msgspec.json.decode(raw, type=Deployment)
    except (msgspec.DecodeError, ValueError) as error:
        raise StorageError("deploy.record", f"a stored deployment cannot be read: {error}") from error
    if found.format != RECORD_FORMAT:
        raise StorageError(
            "deploy.record",
            f"a stored deployment has format {found.format}, this version reads {RECORD_FORMAT}",
        )
    return found


def event_id(version: int, number: int) -> str:
    """Return an event's id: it sorts by the version it was written with, then by its place in that write."""
    return f"{version:010d}-{number:03d}"
