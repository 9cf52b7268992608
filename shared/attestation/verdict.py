"""The verdict: what a verification established, lane by lane, and what it did not.

One boolean hides too much. A lane is one property, the same on every platform; its status says whether the
evidence proves it, the attester merely claims it, the platform has no such thing, or nobody looked (and why).
"""

from enum import StrEnum
from typing import Any, Self

import msgspec


class Status(StrEnum):
    """How far one lane can be relied on."""

    VERIFIED = "verified"
    NOT_APPLICABLE = "not_applicable"
    SELF_ASSERTED = "self_asserted"
    SKIPPED = "skipped"


class Lane(msgspec.Struct, frozen=True):
    """One property. `reason` is a lowercase clause: what binds it, or why it was not looked at."""

    status: Status
    reason: str


def verified(reason: str) -> Lane:
    """Return a lane that the evidence proves."""
    return Lane(Status.VERIFIED, reason)


def not_applicable(reason: str) -> Lane:
    """Return a lane that the platform does not have."""
    return Lane(Status.NOT_APPLICABLE, reason)


def self_asserted(reason: str) -> Lane:
    """Return a lane that the attester claims and nothing signs."""
    return Lane(Status.SELF_ASSERTED, reason)


def skipped(reason: str) -> Lane:
    """Return a lane that nobody looked at."""
    return Lane(Status.SKIPPED, reason)


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """Every property, on every platform: leaving one out is a type error, not a silent gap.

    `signature`: the hardware's own over the evidence. `chain`: from there to a trust anchor. `revocation`: of
    that chain. `freshness`: the evidence's own time. `debug`: the workload cannot be looked into.
    `tcb_status`: the platform's patch state. `report_data`: the envelope's 64 bytes are the signed ones.
    `report_data_expected`: they are what the caller wanted. `firmware`: what ran before the image.
    `os_image`: the image. `command_line`: the kernel's. `boot_log`: the log of the boot registers.
    `mr_config`: the configuration id that the launcher fixed. `runtime_events` and the five below them: what
    the guest recorded of itself. `device_id`: the machine.
    """

    signature: Lane
    chain: Lane
    revocation: Lane
    freshness: Lane
    debug: Lane
    tcb_status: Lane
    report_data: Lane
    report_data_expected: Lane
    firmware: Lane
    os_image: Lane
    command_line: Lane
    boot_log: Lane
    mr_config: Lane
    runtime_events: Lane
    app_id: Lane
    compose_hash: Lane
    instance_id: Lane
    key_provider: Lane
    init_scripts: Lane
    device_id: Lane

    def items(self) -> tuple[tuple[str, Lane], ...]:
        """Return (name, lane) in the order above."""
        return tuple((name, getattr(self, name)) for name in self.__struct_fields__)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a successful verification; a failed one is an error.

    `made_at` is the evidence's own time, None where it carries none, and `verified_at` the time it was judged
    at, unix seconds. `anchors` names the trust anchors that the evidence chained to. `tcb_status` and
    `advisory_ids` are the platform vendor's words, empty where it has none. `disabled_checks` names each
    check that configuration turned off, relaxed or overrode.
    """

    platform: str
    anchors: tuple[str, ...]
    simulated: bool
    made_at: int | None
    verified_at: int
    lanes: Lanes
    tcb_status: str = ""
    advisory_ids: tuple[str, ...] = ()
    disabled_checks: tuple[str, ...] = ()

    def with_lanes(self, **lanes: Lane) -> Self:
        """Return this verdict with some lanes replaced."""
        return msgspec.structs.replace(self, lanes=msgspec.structs.replace(self.lanes, **lanes))

    def with_disabled(self, *checks: str) -> Self:
        """Return this verdict with more checks named as turned off."""
        return msgspec.structs.replace(self, disabled_checks=(*self.disabled_checks, *checks))

    def to_json(self) -> dict[str, Any]:
        """Return plain objects for a JSON encoder; the lanes keep their order."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
