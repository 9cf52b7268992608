"""The audit log: one line per release, refusal, handover, onboarding, bootstrap and certificate.

Lines are chained: each has the hash of the one before it, so that a line which was removed from the
collected log, altered in it or added to it shows (`check_chain`). Nothing here is signed. Who rewrites every
line from one on, or cuts the end off, is found out by what was kept elsewhere: an earlier copy, or the number
of lines in `/metrics`, read over attested TLS.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

import msgspec

from enclave.kms.authorization import Decide, Decision
from enclave.log import write_line
from shared.attestation.identity import claimed_boot_info
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import BootInfo
from shared.chain.facts import Kind
from shared.errors import DstackError, InvalidEvidence, ProtocolError
from shared.strict_json import decode_json

Value = str | int | bool | list[str] | None

MAX_LINE: Final = 16 * 1024
"""Bytes. The names of the largest certificate request fit; a longer line has its texts cut."""

MAX_TEXT: Final = 256
MAX_ITEMS: Final = 32

GENESIS: Final = "0" * 64
"""What the first line of a process has in the place of a hash."""

_DELETE: Final = 0x7F
_NOT_ASCII: Final = b"\xff"
_CASE: Final = "audit_case"
_CLAIMABLE: Final = ("app_id", "compose_hash", "instance_id", "device_id")


class AuditLog:
    """The chain of one process, named by a random id. Safe to use from several threads."""

    def __init__(self, write: Callable[[str], None] = write_line) -> None:
        self.process = secrets.token_hex(8)
        self._write = write
        self._lock = threading.Lock()
        self._lines = 0
        self._previous = GENESIS

    @property
    def lines(self) -> int:
        """How many lines were written."""
        return self._lines

    def record(self, event: str, fields: dict[str, Value]) -> None:
        """Write one line. Whoever is about to release something does it after this returned.

        A line that cannot be written leaves a gap in the chain.
        """
        with self._lock:
            entry: dict[str, Value] = {
                "event": event,
                "seq": self._lines,
                "process": self.process,
                "previous": self._previous,
                **fields,
            }
            line = _encoded(entry)
            if len(line) > MAX_LINE:
                entry = {name: _bounded(value) for name, value in entry.items()}
                line = _encoded(entry)
            self._lines += 1
            self._previous = line_hash(entry)
            self._write(line.decode())


AUDIT: Final = AuditLog()
"""This process's: it has one standard output, and so one chain."""


class Case:
    """What is known so far of one question to a KMS, for the line that tells how it ended.

    As a context manager it goes with an error on its way out; `case_of` finds it there.
    """

    def __init__(self, auth_mode: str = "", verified: VerifiedAttestation | None = None) -> None:
        self.auth_mode = auth_mode
        self.verified = verified
        self.evidence = b""
        """An envelope that is still to be verified."""
        self.subject: BootInfo | None = None
        """What the policy is asked about: `verified`, with the config of the request."""
        self.decision: Decision | None = None

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the error this case, unless it has one."""
        if isinstance(error, DstackError):
            error.__dict__.setdefault(_CASE, self)

    def noting(self, decide: Decide) -> Decide:
        """Return `decide`, noting what it decides."""

        def noted(kind: Kind, boot_info: BootInfo) -> Decision:
            self.decision = decide(kind, boot_info)
            return self.decision

        return noted

    def fields(self) -> dict[str, Value]:
        """Return who asks, what was verified of that, and which blocks the decision rests on."""
        fields: dict[str, Value] = {"evidence_verified": self.verified is not None}
        if self.verified is not None:
            fields |= _identity(self.verified, self.subject or _claimed(self.verified))
        if self.evidence:
            fields["evidence_sha256"] = hashlib.sha256(self.evidence).hexdigest()
        if self.auth_mode:
            fields["auth_mode"] = self.auth_mode
        decision = self.decision
        if decision is not None:
            fields["finalized_block"] = decision.finalized_block
            fields["finalized_hash"] = (decision.finalized_hash or b"").hex() or None
            fields["head_block"] = decision.head_block
        return fields


def case_of(error: DstackError) -> Case | None:
    """Return what was known when the error was raised; None where no case was open."""
    case: Case | None = error.__dict__.get(_CASE)
    return case


def _claimed(verified: VerifiedAttestation) -> BootInfo | None:
    try:
        return claimed_boot_info(verified)
    except DstackError:  # no compose hash, or a config that cannot be read
        return None


def _identity(verified: VerifiedAttestation, subject: BootInfo | None) -> dict[str, Value]:
    """Return who verified evidence belongs to. `self_asserted` are the names here that nothing signs."""
    verdict = verified.verdict
    fields: dict[str, Value] = {"tee_variant": verdict.platform}
    if subject is None:
        fields["app_id"] = verified.events.app_id.hex()
    else:
        fields |= {
            "app_id": subject.app_id.hex(),
            "instance_id": subject.instance_id.hex(),
            "device_id": subject.device_id.hex(),
            "compose_hash": subject.compose_hash.hex(),
            "os_image_hash": subject.os_image_hash.hex(),
            "mr_aggregated": subject.mr_aggregated.hex(),
        }
    lanes = verdict.lanes
    fields["self_asserted"] = [
        name for name in _CLAIMABLE if getattr(lanes, name).status is Status.SELF_ASSERTED
    ]
    fields["simulated"] = verdict.simulated
    fields["anchors"] = list(verdict.anchors)
    fields["disabled_checks"] = list(verdict.disabled_checks)
    return fields


class Chain(msgspec.Struct, frozen=True):
    """The lines of one process that were found to be whole: how many, and the hash of the last."""

    lines: int
    last: str


def check_chain(lines: Iterable[str]) -> dict[str, Chain]:
    """Return the chains in a collected log by their process, once each line follows from the one before it.

    Lines of several processes may be mixed; other lines are passed over. What was cut off at the end does
    not show: compare the number of lines. Raises `InvalidEvidence`: `audit.gap` where lines are missing,
    doubled or out of order, `audit.altered` where a line is not the one that was written.
    """
    chains: dict[str, Chain] = {}
    for line in lines:
        entry = _read(line)
        if entry is None:
            continue
        process, seq = str(entry["process"]), entry["seq"]
        chain = chains.get(process, Chain(0, GENESIS))
        if seq != chain.lines:
            raise InvalidEvidence("audit.gap", f"process {process} has line {seq}, expected {chain.lines}")
        if entry["previous"] != chain.last:
            raise InvalidEvidence(
                "audit.altered", f"line {seq} of process {process} follows another one than is here"
            )
        chains[process] = Chain(chain.lines + 1, line_hash(entry))
    return chains


def line_hash(entry: dict[str, Value]) -> str:
    """Return the SHA-256 of a line, as hex: of its JSON with sorted keys, no spaces, in printable ASCII.

    So it survives a collector that parses lines and writes them again.
    """
    return hashlib.sha256(_encoded(entry, sort_keys=True)).hexdigest()


def _encoded(entry: dict[str, Value], *, sort_keys: bool = False) -> bytes:
    """Return JSON without spaces in printable ASCII: nothing that any reader takes for the end of a line."""
    try:
        quick = msgspec.json.encode(entry, order="deterministic" if sort_keys else None)
    except UnicodeEncodeError:  # half a surrogate pair
        quick = _NOT_ASCII
    if quick.isascii() and _DELETE not in quick:
        return quick
    return json.dumps(entry, separators=(",", ":"), sort_keys=sort_keys).encode()


def _bounded(value: Value) -> Value:
    if isinstance(value, list):
        return [text[:MAX_TEXT] for text in value[:MAX_ITEMS]]
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _read(line: str) -> dict[str, Value] | None:
    """Return an audit line's fields; None for a line of another kind."""
    try:
        entry = decode_json(line.encode(), what="the line", code="audit", max_bytes=16 * MAX_LINE)
    except (ProtocolError, UnicodeEncodeError):
        return None
    if not isinstance(entry, dict):
        return None
    kinds = [type(entry.get(name)) for name in ("seq", "process", "previous")]
    return entry if kinds == [int, str, str] else None
