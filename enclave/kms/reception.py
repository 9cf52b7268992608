"""What the KMS does around each call: limit it, count it, and tell the audit log of a refusal."""

import hashlib
import time
from collections.abc import Callable

from enclave.kms.audit import AuditLog, Case, Value, case_of
from enclave.kms.limits import CallLimits
from enclave.kms.metrics import Calls
from enclave.serving.prpc import MAX_MESSAGE, OTHER, Reception, Refusal
from enclave.serving.rate_limit import Rate, RateLimited, TokenBuckets
from shared.attestation.verify import VerifiedAttestation

Caller = VerifiedAttestation | None

LIMIT_LINES = Rate(per_minute=600, burst=100)
"""Lines about calls that a limit refused. Everybody may have as many refused as the network carries: the rest
is counted in the next line and in the metrics."""


class Audited(Reception[Caller]):
    """Writes refusals to the audit log: what was asked, who asked, and why it is refused."""

    def __init__(self, audit: AuditLog, auth_mode: str = "") -> None:
        self._audit = audit
        self._auth_mode = auth_mode

    def refused(self, refusal: Refusal[Caller]) -> None:
        """Write one line. A certificate whose evidence was not verified is named by its hash."""
        self._tell(refusal, {})

    def _tell(self, refusal: Refusal[Caller], more: dict[str, Value]) -> None:
        error = refusal.error
        case = case_of(error) or Case(self._auth_mode, refusal.caller)
        if case.verified is None:
            case.verified = refusal.caller
        fields = case.fields()
        if case.verified is None and refusal.peer_chain:
            fields["certificate_sha256"] = hashlib.sha256(refusal.peer_chain[0]).hexdigest()
        told: dict[str, Value] = {
            "method": refusal.method,
            "code": error.code,
            "message": error.message[:MAX_MESSAGE],
        }
        self._audit.record("prpc.refused", told | more | fields)


class KmsReception(Audited):
    """The main listener's. `monotonic` tells seconds."""

    def __init__(
        self,
        audit: AuditLog,
        auth_mode: str,
        *,
        methods: frozenset[str],
        limits: CallLimits,
        calls: Calls,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(audit, auth_mode)
        self._methods = methods
        self._limits = limits
        self._calls = calls
        self._monotonic = monotonic
        self._limit_lines = TokenBuckets(LIMIT_LINES)
        self._unlogged = 0

    def before_identification(self) -> None:
        """Apply the limit on certificates that were not seen before."""
        self._limits.take_evidence("certificate", self._monotonic())

    def before_verification(self, caller: Caller) -> None:
        """Apply the limit on evidence in a request to a caller without evidence; in a worker thread."""
        if caller is None:
            self._limits.take_evidence("request", self._monotonic())

    def before_call(self, method: str, caller: Caller) -> None:
        """Apply the limits of the caller's evidence, or of the method for a caller without."""
        if caller is None:
            self._limits.take_method(method, self._monotonic())
        else:
            self._limits.take_caller(caller, self._monotonic())

    def judged(self, verified: VerifiedAttestation) -> None:
        """Apply the limits of evidence that came in a request; in a worker thread."""
        self._limits.take_caller(verified, self._monotonic())

    def answered(self, method: str, caller: Caller) -> None:
        """Count."""
        self._calls.count(method, caller.verdict.platform if caller else "")

    def refused(self, refusal: Refusal[Caller]) -> None:
        """Count, and write the line: of many that a limit refused, the number of those between two lines."""
        method = refusal.method if refusal.method in self._methods else OTHER
        platform = refusal.caller.verdict.platform if refusal.caller else ""
        self._calls.count(method, platform, refusal.error.code)
        if not isinstance(refusal.error, RateLimited):
            self._tell(refusal, {})
        elif self._limit_lines.take(None, self._monotonic()):
            self._unlogged += 1
        else:
            more: dict[str, Value] = {"unlogged": self._unlogged} if self._unlogged else {}
            self._unlogged = 0
            self._tell(refusal, more)
