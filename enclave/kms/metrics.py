"""The counters of `/metrics`, in Prometheus's text format.

Upstream's two keep their names and their meaning (spec kms section 1.1); ours have labels. No label holds
what a caller wrote: methods are ours or `other`, codes are those of our errors, platforms those of verified
evidence.
"""

from collections import Counter
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

COUNTED = frozenset({"GetAppKey", "GetKmsKey", "SignCert"})
"""The methods that upstream's two counters count (spec kms section 1.1)."""

SERVER_HEADER = (b"server", b"DStack KMS")

MAX_SERIES = 2048
"""Of one counter. Methods times platforms times codes are fewer by far; beyond it the code is `other`."""

ANSWERED = "ok"


class Counted:
    """ASGI middleware: the response headers of spec kms section 1.1, and its two counters."""

    def __init__(self, app: ASGIApp, version: str) -> None:
        self._app = app
        self._version = (b"x-app-version", version.encode())
        self.requests = 0
        self.failures = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = scope["path"].removeprefix("/prpc/").removeprefix("KMS.") in COUNTED
        self.requests += counted

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.failures += counted and message["status"] >= 400
                message["headers"] = [*message["headers"], SERVER_HEADER, self._version]
            await send(message)

        await self._app(scope, receive, observed)


class Calls:
    """How calls ended: by method, by platform of the caller's evidence, and by code. Event loop only."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def count(self, method: str, tee_variant: str, code: str = ANSWERED) -> None:
        """Count one call; `tee_variant` is empty for a caller without evidence."""
        key = (method, tee_variant, code)
        if key not in self.counts and len(self.counts) >= MAX_SERIES:
            key = (method, tee_variant, "other")
        self.counts[key] += 1


def metrics_text(
    upstream: Counted, calls: Calls, rate_limited: Mapping[str, int], *, connections: int, audit_lines: int
) -> str:
    """Return the page. `connections` are those open, `rate_limited` is by limit."""
    lines = [
        "# TYPE dstack_kms_attestation_requests_total counter",
        f"dstack_kms_attestation_requests_total {upstream.requests}",
        "# TYPE dstack_kms_attestation_failures_total counter",
        f"dstack_kms_attestation_failures_total {upstream.failures}",
        "# TYPE dstack_kms_calls_total counter",
    ]
    lines += [
        f'dstack_kms_calls_total{{method="{method}",tee_variant="{tee_variant}",code="{code}"}} {count}'
        for (method, tee_variant, code), count in sorted(calls.counts.items())
    ]
    lines.append("# TYPE dstack_kms_rate_limited_total counter")
    lines += [
        f'dstack_kms_rate_limited_total{{limit="{name}"}} {count}' for name, count in rate_limited.items()
    ]
    lines += [
        "# TYPE dstack_kms_connections gauge",
        f"dstack_kms_connections {connections}",
        "# TYPE dstack_kms_audit_lines_total counter",
        f"dstack_kms_audit_lines_total {audit_lines}",
    ]
    return "\n".join(lines) + "\n"
