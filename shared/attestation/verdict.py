"""The verdict: what a verification established, lane by lane, and what it did not.

One boolean hides too much. A lane names one property; its status says whether the evidence proves it, the
attester merely claims it, the platform has no such thing, or nobody looked (and why).
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

    name: str
    status: Status
    reason: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a successful verification; a failed one is an error.

    `made_at` is the evidence's own time and `verified_at` the time it was judged at, unix seconds.
    `disabled_checks` names each check that a deployment's configuration turned off or overrode.
    """

    platform: str
    anchors: tuple[str, ...]
    simulated: bool
    made_at: int
    verified_at: int
    lanes: tuple[Lane, ...]
    disabled_checks: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The trust anchor of the platform evidence (the first, where a platform has several)."""
        return self.anchors[0]

    def status(self, lane: str) -> Status:
        """Return the status of the lane of that name; an unknown one is a `KeyError`."""
        return {entry.name: entry.status for entry in self.lanes}[lane]

    def with_lane(self, lane: Lane) -> Self:
        """Return this verdict with one lane replaced in its place."""
        lanes = tuple(lane if entry.name == lane.name else entry for entry in self.lanes)
        return msgspec.structs.replace(self, lanes=lanes)

    def with_disabled(self, check: str) -> Self:
        """Return this verdict with one more check named as turned off."""
        return msgspec.structs.replace(self, disabled_checks=(*self.disabled_checks, check))

    def to_json(self) -> dict[str, Any]:
        """Return plain objects for a JSON encoder; the lanes keep their order."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
