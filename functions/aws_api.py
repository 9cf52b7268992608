"""Clients of AWS, and what their errors mean to us. boto3 is loaded by the first client, not before."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from functions.deploy.cloud import DeniedError, TransientCloudError
from shared.errors import CloudError

AwsClient = Any  # boto3 makes its clients while it runs and ships no types

ATTEMPTS: Final = 4
"""Of one call, by boto3, for what may pass: about 5 seconds in all, then it is the caller's turn."""

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 30
_CONNECTIONS: Final = 16
_MAX_DETAIL: Final = 240
"""Characters of AWS's own words: enough for an IAM action, its principal and its resource."""

_CODES: Final = {
    "aws.throttled": {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "KMS.ThrottlingException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingError",
        "ThrottlingException",
        "TooManyRequestsException",
    },
    "aws.unavailable": {
        "ConditionalRequestConflict",
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "TransactionInProgressException",
        "Unavailable",
    },
    "aws.expired": {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"},
    "aws.credentials": {
        "AuthFailure",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    },
    "aws.clock": {"RequestInTheFuture", "RequestTimeTooSkewed"},
    "aws.denied": {
        "AccessDenied",
        "AccessDeniedException",
        "KMS.AccessDeniedException",
        "UnauthorizedOperation",
    },
}
"""Which of AWS's codes mean what to us; any other goes by its status."""

LOG_IN: Final = "sign in again: `aws sso login`, or `aws configure`, or give the function its role"

_PASSING: Final = {"aws.throttled": "aws asks for fewer calls", "aws.unavailable": "aws failed"}
_TO_MEND: Final = {
    "aws.expired": ("the credentials have expired", LOG_IN),
    "aws.credentials": ("aws does not accept the credentials", LOG_IN),
    "aws.clock": ("this machine's clock is wrong", "set the clock, for instance by ntp"),
}
# the messages of these are left out: they may quote the signed request with its session token
_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9-]+:\w+)(?: on resource: (\S+))?")


def aws_client(
    service: str, *, region: str = "", endpoint_url: str = "", attempts: int = ATTEMPTS, **credentials: str
) -> AwsClient:
    """Return a client that threads may share; without arguments, as boto3 finds region and credentials.

    Raises `DeniedError`: `aws.region` without a region, `aws.credentials` for a profile that is not there.
    """
    from boto3.session import Session  # noqa: PLC0415 - 300 ms that only a deployment to AWS is to pay
    from botocore.config import Config  # noqa: PLC0415 - as above
    from botocore.session import get_session  # noqa: PLC0415 - as above

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
    )
    with aws_errors(f"making a client of {service}"):
        core = get_session()
        core.register_component("data_loader", _loader())
        return Session(botocore_session=core, **credentials).client(
            service, region_name=region or None, endpoint_url=endpoint_url or None, config=config
        )


@cache
def _loader() -> AwsClient:
    """Return the reader of the service descriptions; it keeps what it read, so a second client is cheap."""
    from botocore.loaders import create_loader  # noqa: PLC0415 - as above

    return create_loader()


@contextmanager
def aws_errors(what: str) -> Iterator[None]:
    """Turn boto3's errors into ours (`aws_error`); `what` says what was being done."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - loaded by the client already

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise aws_error(error, what) from error


def error_code(error: BaseException | None) -> str:
    """Return AWS's code of a `ClientError`; empty for anything else."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def aws_error(error: Exception, what: str) -> CloudError:
    """Return our error for one of boto3's, by who must act.

    `TransientCloudError`: `aws.throttled`, `aws.unavailable`. `DeniedError`: `aws.denied`,
    `aws.credentials`, `aws.expired`, `aws.clock`, `aws.region`. `CloudError("aws.request")` for the rest.
    """
    if not isinstance(getattr(error, "response", None), dict):
        return _without_answer(error, what)
    word, status = error_code(error), _status(error)
    code = _our_code(word, status)
    if code in _PASSING:
        return TransientCloudError(code, f"{what}: {_PASSING[code]} ({word or status})")
    if code in _TO_MEND:
        message, hint = _TO_MEND[code]
        return DeniedError(code, f"{what}: {message} ({word})", hint)
    if code == "aws.denied":
        return _denied(error, what)
    return CloudError(code, f"{what}: aws refused with {word or status}: {_detail(error)}")


def _our_code(word: str, status: int) -> str:
    for code, words in _CODES.items():
        if word in words:
            return code
    if status >= 500:
        return "aws.unavailable"
    return {403: "aws.denied", 429: "aws.throttled"}.get(status, "aws.request")


def _without_answer(error: Exception, what: str) -> CloudError:
    from botocore import exceptions as boto  # noqa: PLC0415 - loaded by the client already

    name = type(error).__name__
    if isinstance(error, boto.NoRegionError):
        return DeniedError(
            "aws.region", f"{what}: no region is configured", "set AWS_REGION, or `aws configure set region`"
        )
    if isinstance(error, boto.SSOError | boto.LoginError | boto.TokenRetrievalError):
        return DeniedError("aws.expired", f"{what}: the sign-in has expired", LOG_IN)
    if isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.CredentialRetrievalError
        | boto.ProfileNotFound
        | boto.ConfigNotFound
        | boto.ConfigParseError,
    ):
        return DeniedError("aws.credentials", f"{what}: there are no usable credentials ({name})", LOG_IN)
    if isinstance(
        error,
        boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError | boto.FlexibleChecksumError,
    ):
        return TransientCloudError("aws.unavailable", f"{what}: no answer from aws ({name})")
    return CloudError("aws.request", f"{what}: {_shortened(str(error))} ({name})")


def _denied(error: Exception, what: str) -> DeniedError:
    detail = _detail(error)
    found = _ACTION.search(str(getattr(error, "response", {}).get("Error", {}).get("Message", "")))
    hint = "allow it in the role's policy"
    if found is not None:
        hint = f"allow {found[1]}" + (f" on {found[2]}" if found[2] else "") + " in the role's policy"
    return DeniedError("aws.denied", f"{what}: {detail or 'access is denied'}", hint)


def _status(error: Exception) -> int:
    response: dict[str, Any] = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _detail(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return _shortened(str(response.get("Error", {}).get("Message") or ""))


def _shortened(text: str) -> str:
    return " ".join(text.split())[:_MAX_DETAIL].rstrip(". ")
