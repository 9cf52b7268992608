"""Where Google's APIs are: Google's own, or a stand-in on this machine that tests start.

`DSTACK_GCP_ENDPOINT` is the stand-in's address. boto3 has `AWS_ENDPOINT_URL` of its own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from shared.errors import ConfigError

if TYPE_CHECKING:
    from functions.google_api.rest import GoogleSession

GCP_ENDPOINT: Final = "DSTACK_GCP_ENDPOINT"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def gcp_endpoint(environ: Mapping[str, str]) -> str:
    """Return the stand-in's address, or nothing. Raises `ConfigError("gcp.endpoint")` for one elsewhere.

    No credential is sent to it.
    """
    endpoint = environ.get(GCP_ENDPOINT, "").rstrip("/")
    if endpoint and urlsplit(endpoint).hostname not in _LOOPBACK:
        raise ConfigError("gcp.endpoint", f"{GCP_ENDPOINT} is {endpoint[:80]!a}, expected this machine's own")
    return endpoint


def google_session(environ: Mapping[str, str]) -> "GoogleSession":
    """Return a session with the environment's credentials, or with none for a stand-in."""
    from functions.google_api.credentials import (  # noqa: PLC0415 - heavy
        anonymous_credentials,
        default_credentials,
    )
    from functions.google_api.rest import GoogleSession  # noqa: PLC0415 - heavy

    credentials = anonymous_credentials() if gcp_endpoint(environ) else default_credentials()
    return GoogleSession(credentials)
