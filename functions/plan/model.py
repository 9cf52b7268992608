"""The plan as data: all that `dstack-cloud plan --json` prints, and reads back to compare with."""

from typing import Any, Final, Literal

import msgspec

from shared.chain.approval import Argument
from shared.compose.diff import Change
from shared.compose.findings import Finding
from shared.errors import ConfigError, ExitCode, ProtocolError
from shared.strict_json import decode_json

PLAN_VERSION: Final = 1
# It holds an app-compose, which the guest takes up to 50 MiB; as text in JSON it may double.
MAX_PLAN_BYTES: Final = 128 * 1024 * 1024
_SHOWN: Final = 200

AppIdSource = Literal["option", "app.json", "compose_hash", "none"]
Outcome = Literal["nothing", "changes", "approval", "refused"]
EXIT_CODES: Final[dict[str, ExitCode]] = {
    "nothing": ExitCode.OK,
    "changes": ExitCode.CHANGES_PENDING,
    "approval": ExitCode.NEEDS_APPROVAL,
    "refused": ExitCode.REFUSED,
}


class AppIdentity(msgspec.Struct, frozen=True):
    """`app_id` in hex, empty where there is none yet; `source` says who chose it."""

    app_id: str
    source: AppIdSource


class ComposePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The app-compose: its hash, size, the form of its bytes, and the text itself.

    On Nitro no guest reads one: `form` is `image`, the hash is the image's, and `text` is empty.
    """

    compose_hash: str
    form: Literal["canonical", "verbatim", "image"]
    size: int
    text: str


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The image: its hash, where it comes from, and the values that evidence will show.

    `registers` maps names (`PCR0`, `uki_auth`) to hex, `inputs` names what the image was made of.
    """

    os_image_hash: str
    source: str
    registers: dict[str, str]
    inputs: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True):
    """One runtime event that the guest will measure, in order; `payload` in hex."""

    name: str
    payload: str


class DiskFile(msgspec.Struct, frozen=True):
    """One file of the config disk."""

    name: str
    size: int
    sha256: str


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The config disk. `sha256` is empty where a file is made later; `pending` then says which and why."""

    files: tuple[DiskFile, ...]
    size: int
    sha256: str
    pending: tuple[str, ...] = ()


class ChainPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which chain was asked, and at which block, made at `block_time` (unix seconds); EIP-55 addresses."""

    chain_id: int
    block_number: int
    block_hash: str
    kms_contract: str
    block_time: int = 0


class GovernanceCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call to be sent: `to` and `sender` are addresses, or empty where they are not known.

    Where `owner_only` is False, anyone may send it.
    """

    to: str
    sender: str
    owner_only: bool
    function: str
    arguments: tuple[Argument, ...]
    calldata: str
    why: str


class ApprovalPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing on chain; `checked` is False where no chain was asked."""

    checked: bool
    calls: tuple[GovernanceCall, ...]
    blocked: tuple[str, ...]
    notes: tuple[str, ...]
    new_app_id: str


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What is deployed, as a file says: empty texts are unknown, `app_compose` is the document's text."""

    source: str
    plan_id: str = ""
    platform: str = ""
    app_id: str = ""
    compose_hash: str = ""
    os_image_hash: str = ""
    config_disk_sha256: str = ""
    app_compose: str = ""
    machine: dict[str, Any] | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole plan. `plan_id` is the hash of what would be deployed, so equal plans have equal ids."""

    plan_version: int = PLAN_VERSION
    plan_id: str
    name: str
    platform: str
    outcome: Outcome
    app: AppIdentity
    compose: ComposePlan
    image: ImagePlan
    events: tuple[Event, ...]
    config_disk: DiskPlan | None
    machine: dict[str, Any]
    findings: tuple[Finding, ...]
    deployed: Deployed | None
    changes: tuple[Change, ...]
    chain: ChainPlan | None
    approval: ApprovalPlan

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command that made it."""
        return EXIT_CODES[self.outcome]

    def as_deployed(self, source: str) -> Deployed:
        """Return what would be deployed, for a later plan to compare with."""
        return Deployed(
            source=source,
            plan_id=self.plan_id,
            platform=self.platform,
            app_id=self.app.app_id,
            compose_hash=self.compose.compose_hash,
            os_image_hash=self.image.os_image_hash,
            config_disk_sha256="" if self.config_disk is None else self.config_disk.sha256,
            app_compose=self.compose.text,
            machine=self.machine,
        )


def read_plan(raw: bytes) -> Plan:
    """Read the JSON of an earlier plan.

    Raises `ConfigError`: `plan.file.size`, `.syntax`, `.duplicate_key`, `.depth`, `.format`, `.version`.
    """
    try:
        document = decode_json(raw, what="the plan", code="plan.file", max_bytes=MAX_PLAN_BYTES)
    except ProtocolError as error:
        raise ConfigError(error.code, error.message) from error
    if not isinstance(document, dict) or document.get("plan_version") != PLAN_VERSION:
        raise ConfigError("plan.file.version", f"the file is no plan of version {PLAN_VERSION}")
    try:
        return msgspec.convert(document, Plan)
    except ValueError as error:
        detail = str(error)[:_SHOWN].encode("ascii", "replace").decode()
        raise ConfigError("plan.file.format", f"the plan does not fit its fields: {detail}") from error
