"""What an error answer of a Google API means for whoever asked."""

import re
from typing import Any, Final

import msgspec

from functions.deploy.cloud import DeniedError, TransientCloudError
from shared.errors import CloudError

LOGIN: Final = "gcloud auth application-default login"
CONTENTION: Final = "gcp.contention"
"""Given up for another writer's sake: the same call, at once, may succeed."""

_TRANSIENT: Final = frozenset({408, 500, 502, 503, 504})
_THROTTLED: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"})
_QUOTA: Final = frozenset({"quotaExceeded", "QUOTA_EXCEEDED"})
_DISABLED: Final = frozenset({"accessNotConfigured", "SERVICE_DISABLED"})
_CODES: Final = {404: "gcp.missing", 409: "gcp.conflict", 412: "gcp.conflict"}
# `compute.instances.create` in quotes, or `storage.objects.get access`: how messages without details name one
_PERMISSION: Final = re.compile(r"'([a-z]+(?:\.[A-Za-z]+){2})'|\b([a-z]+(?:\.[A-Za-z]+){2}) access\b")
_LONGEST: Final = 240
"""Characters of Google's own sentence in ours."""


class GoogleError(CloudError):
    """The API says no to this request, whoever asks: `status` is HTTP's, `reason` Google's word for it.

    Codes: `gcp.missing` (404), `gcp.conflict` (409, 412), `gcp.request` (everything else).
    """

    def __init__(self, code: str, message: str, status: int, reason: str) -> None:
        super().__init__(code, message)
        self.status = status
        self.reason = reason


class _Detail(msgspec.Struct):
    reason: str = ""
    metadata: dict[str, Any] = {}


class _Error(msgspec.Struct):
    message: str = ""
    status: str = ""
    errors: list[_Detail] = []
    details: list[_Detail] = []


class _Body(msgspec.Struct):
    error: _Error


def error_of(what: str, status: int, body: bytes) -> CloudError:
    """Return the error for an answer; `what` says which call it was.

    `TransientCloudError`: `gcp.throttled`, `gcp.unavailable`, `gcp.contention`; `DeniedError`:
    `gcp.credentials`, `gcp.permission`, `gcp.quota`, `gcp.api_disabled`; otherwise `GoogleError`.
    """
    error = _parsed(body)
    reasons = {error.status, *(one.reason for one in (*error.errors, *error.details))}
    reason = next((one.reason for one in error.errors if one.reason), error.status)
    said = error.message.strip().rstrip(".")
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + "..."
    message = f"{what} was answered with {status} {reason}".rstrip() + (f": {said}" if said else "")
    message = message.rstrip(".")
    if status == 429 or reasons & _THROTTLED:
        return TransientCloudError("gcp.throttled", message)
    if "ABORTED" in reasons:
        return TransientCloudError(CONTENTION, message)
    if status in _TRANSIENT:
        return TransientCloudError("gcp.unavailable", message)
    if status == 401:
        return DeniedError("gcp.credentials", message, LOGIN)
    if status == 403:
        return _denied(message, reasons, error)
    return GoogleError(_CODES.get(status, "gcp.request"), message, status, reason)


def _denied(message: str, reasons: set[str], error: _Error) -> DeniedError:
    facts = {key: str(value) for one in error.details for key, value in one.metadata.items()}
    if reasons & _QUOTA:
        metric = facts.get("quota_metric") or facts.get("quotaMetric") or "the quota"
        hint = f"raise {metric} at https://console.cloud.google.com/iam-admin/quotas, or free what uses it"
        return DeniedError("gcp.quota", message, hint)
    if reasons & _DISABLED:
        service = facts.get("service", "API_OF_THE_MESSAGE")
        project = facts.get("consumer", "PROJECT").removeprefix("projects/")
        return DeniedError(
            "gcp.api_disabled", message, f"gcloud services enable {service} --project {project}"
        )
    found = _PERMISSION.search(error.message)
    permission = facts.get("permission") or (found and (found[1] or found[2])) or "the permission"
    where = f" on {facts['resource']}" if "resource" in facts else ""
    return DeniedError("gcp.permission", message, f"grant the caller a role that holds {permission}{where}")


def _parsed(body: bytes) -> _Error:
    try:
        found = msgspec.json.decode(body, type=_Body | list[_Body])
    except (msgspec.DecodeError, ValueError):
        # a proxy on the way answers with a page, which says nothing that the status does not
        return _Error()
    if isinstance(found, list):
        return found[0].error if found else _Error()
    return found.error
