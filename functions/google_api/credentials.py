"""Who we are to Google: application default credentials, by google-auth over urllib3."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api.errors import LOGIN
from shared.errors import CloudError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.exceptions import GoogleAuthError

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
"""What a caller may do is IAM's matter; this scope takes nothing away."""

TOKEN_SECONDS: Final = 10.0
"""How long a token may take: the metadata server answers in milliseconds, the token endpoint within one."""


def default_credentials(scopes: Sequence[str] = SCOPES) -> "Credentials":
    """Return the credentials of this environment: a key file, the SDK's login, or the machine's account.

    Raises `DeniedError("gcp.credentials")` where there are none.
    """
    import google.auth  # noqa: PLC0415 - heavy
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - heavy
    from google.auth.transport.urllib3 import Request  # noqa: PLC0415 - heavy
    from urllib3 import PoolManager  # noqa: PLC0415 - heavy

    try:
        found, _ = google.auth.default(scopes, request=Request(PoolManager(timeout=TOKEN_SECONDS)))
    except (GoogleAuthError, OSError, ValueError) as error:
        raise _none(error) from error
    return found


def anonymous_credentials() -> "Credentials":
    """Return credentials that add nothing to a request, for a server on this machine."""
    from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415 - heavy

    return AnonymousCredentials()


def refresh_error(error: "GoogleAuthError") -> CloudError:
    """Return the error for a token that could not be had: transient only if google-auth says so."""
    if getattr(error, "retryable", False):
        return TransientCloudError("gcp.unavailable", f"no token for google cloud yet: {_said(error)}")
    return _none(error)


def _none(error: Exception) -> DeniedError:
    return DeniedError("gcp.credentials", f"there are no credentials for google cloud: {_said(error)}", LOGIN)


def _said(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().partition("\n")[0][:240].rstrip(".")
