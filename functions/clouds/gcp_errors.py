"""Turns what Google's Compute client raises, and what an operation ends with, into our errors."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api.credentials import refresh_error
from functions.google_api.errors import GoogleError, error_of
from shared.errors import CloudError

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError

BUSY: Final = "gcp.busy"
"""Another operation of the same resource is not done: the same call succeeds later."""

_SHOWN: Final = 300
_PERMISSION: Final = re.compile(r"'([a-z]+\.[A-Za-z]+\.[A-Za-z]+)' permission")
_BUSY: Final = frozenset(
    {"resourceNotReady", "resourceInUseByAnotherResource", "resourceOperationRateExceeded"}
)
# an operation's codes are other words for what a call's reasons say
_TRANSIENT_CODES: Final = {
    "RATE_LIMIT_EXCEEDED": "gcp.throttled",
    "INTERNAL_ERROR": "gcp.unavailable",
    "SERVICE_UNAVAILABLE": "gcp.unavailable",
    "BACKEND_ERROR": "gcp.unavailable",
    "RESOURCE_NOT_READY": BUSY,
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE": BUSY,
    "RESOURCE_OPERATION_RATE_EXCEEDED": BUSY,
}
_STOCKOUT: Final = "RESOURCE_POOL_EXHAUSTED"
_QUOTA: Final = frozenset({"QUOTA_EXCEEDED", "LIMIT_EXCEEDED"})
_TAKEN: Final = "RESOURCE_ALREADY_EXISTS"
_FORBIDDEN: Final = frozenset({"PERMISSIONS_ERROR", "PERMISSION_DENIED", "FORBIDDEN"})


@contextmanager
def translated(what: str, project: str, member: str = "") -> Iterator[None]:
    """Raise our errors in the place of the client library's. `what` was asked for, as a clause.

    `member` is who asked, as IAM names it, for the command that a refusal hints at.
    """
    import requests  # noqa: PLC0415 - comes with the client library
    from google.api_core import exceptions as api  # noqa: PLC0415 - heavy
    from google.auth import exceptions as auth  # noqa: PLC0415 - heavy
    from google.protobuf.json_format import ParseError  # noqa: PLC0415 - heavy

    try:
        yield
    except api.GoogleAPICallError as error:
        raise call_error(error, what, project, member) from error
    except auth.TransportError as error:
        raise _unavailable(what, error) from error
    except auth.GoogleAuthError as error:
        raise refresh_error(error) from error
    except (requests.RequestException, api.GoogleAPIError) as error:
        raise _unavailable(what, error) from error
    except ParseError as error:
        raise CloudError("gcp.answer", f"the answer to {what} cannot be read: {_short(error)}") from error


def call_error(error: "GoogleAPICallError", what: str, project: str, member: str = "") -> CloudError:
    """Return the error for a call that was refused, as `google_api.errors` does, with commands for hints."""
    body = b"" if error.response is None else bytes(error.response.content)
    found = error_of(what, int(error.code or 0), body)
    if isinstance(found, GoogleError) and found.reason in _BUSY:
        return TransientCloudError(BUSY, found.message)
    if isinstance(found, DeniedError) and found.code == "gcp.permission":
        return DeniedError(found.code, found.message, permission_hint(str(error.message), project, member))
    if isinstance(found, DeniedError) and found.code == "gcp.quota":
        return DeniedError(found.code, found.message, quota_hint(project))
    if isinstance(found, DeniedError) and found.code == "gcp.api_disabled":
        return DeniedError(
            found.code, found.message, f"gcloud services enable compute.googleapis.com --project={project}"
        )
    return found


def operation_error(
    errors: Sequence[Any], *, what: str, project: str, zone: str = "", member: str = ""
) -> CloudError:
    """Return the error for what an operation says about its end: entries with a code and a message."""
    code = next((str(one.code) for one in errors if one.code), "")
    message = "; ".join(str(one.message or one.code) for one in errors)
    said = f"cannot {what}: {_short(message)}"
    if code in _TRANSIENT_CODES:
        return TransientCloudError(_TRANSIENT_CODES[code], said)
    denials = {
        "gcp.quota": (code in _QUOTA, quota_hint(project)),
        "gcp.stockout": (_STOCKOUT in code or code == "STOCKOUT", stockout_hint(project, zone)),
        "gcp.name_taken": (code == _TAKEN, "dstack-cloud doctor"),
        "gcp.permission": (code in _FORBIDDEN, permission_hint(message, project, member)),
    }
    for ours, (applies, hint) in denials.items():
        if applies:
            return DeniedError(ours, said, hint)
    return CloudError("gcp.operation", f"{said} ({code})" if code else said)


def quota_hint(project: str) -> str:
    """Return where quotas are seen and raised."""
    return (
        "remove what is not needed, or ask for more at "
        f"https://console.cloud.google.com/iam-admin/quotas?project={project}"
    )


def stockout_hint(project: str, zone: str) -> str:
    """Return what to do where a zone has no machine of a type left."""
    return (
        f"set another zone than {zone} in gcp_config, or deploy again later: "
        f"gcloud compute machine-types list --project={project} --filter='name~^c3-standard'"
    )


def permission_hint(message: str, project: str, member: str = "") -> str:
    """Return the command that grants what Google's sentence says is missing."""
    found = _PERMISSION.search(message)
    permission = found[1] if found else ""
    who = member or '"user:$(gcloud config get account)"'
    role = "roles/compute.instanceAdmin.v1"
    if permission.startswith(("compute.firewalls.", "compute.networks.")):
        role = "roles/compute.securityAdmin"
    elif permission.startswith("iam.serviceAccounts."):
        role = "roles/iam.serviceAccountUser"
    command = f"gcloud projects add-iam-policy-binding {project} --member={who} --role={role}"
    return f"{command}  # for {permission}" if permission else command


def _unavailable(what: str, error: Exception) -> TransientCloudError:
    return TransientCloudError("gcp.unavailable", f"no answer when asked to {what}: {_short(error)}")


def _short(message: object) -> str:
    text = " ".join(str(message).split())[:_SHOWN]
    return text.rstrip(".") or "no reason given"
