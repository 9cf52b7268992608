"""boto3's errors, by who must act: over HTTP where AWS answers, and without an answer."""

import subprocess
import sys
from pathlib import Path

import pytest

from functions.aws_api import aws_client, aws_errors, error_code
from functions.deploy.cloud import DeniedError, TransientCloudError
from shared.errors import CloudError, DstackError
from tests.fakes.aws import REGION, AwsServer
from tests.shared.refusal import refuses

TOKEN = "AQoEXAMPLEH4aoAH0gNCAPyJxz4BlCFFxWNE1OPTgk5TthT"


def call(aws: AwsServer) -> None:
    with aws_errors("reading"):
        aws.client("dynamodb").list_tables()


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("ThrottlingException", 400, "aws.throttled"),
        ("ProvisionedThroughputExceededException", 400, "aws.throttled"),
        ("RequestLimitExceeded", 503, "aws.throttled"),
        ("Anything", 429, "aws.throttled"),
        ("InternalServerError", 500, "aws.unavailable"),
        ("Anything", 502, "aws.unavailable"),
        ("TransactionInProgressException", 400, "aws.unavailable"),
        ("", 0, "aws.unavailable"),
    ],
)
def test_what_passes_is_told_from_what_does_not(
    aws: AwsServer, code: str, status: int, expected: str
) -> None:
    aws.fail("ListTables", code, status=status)
    with refuses(expected, TransientCloudError):
        call(aws)
    call(aws)


@pytest.mark.parametrize(
    ("code", "status", "expected", "hint"),
    [
        ("ExpiredTokenException", 400, "aws.expired", "aws sso login"),
        ("RequestExpired", 400, "aws.expired", "aws sso login"),
        ("UnrecognizedClientException", 400, "aws.credentials", "aws configure"),
        ("SignatureDoesNotMatch", 403, "aws.credentials", "aws configure"),
        ("RequestTimeTooSkewed", 403, "aws.clock", "set the clock"),
        ("Anything", 403, "aws.denied", "policy"),
    ],
)
def test_what_somebody_must_mend_comes_with_what_to_do(
    aws: AwsServer, code: str, status: int, expected: str, hint: str
) -> None:
    aws.fail("ListTables", code, status=status)
    with refuses(expected, DeniedError) as caught:
        call(aws)
    assert isinstance(caught.value, DeniedError)
    assert hint in caught.value.hint


def test_a_denied_action_is_named(aws: AwsServer) -> None:
    aws.fail(
        "ListTables",
        "AccessDeniedException",
        message="User: arn:aws:sts::1:assumed-role/w/x is not authorized to perform: dynamodb:ListTables "
        "on resource: arn:aws:dynamodb:eu-west-1:1:table/* because no identity-based policy allows it.",
    )
    with refuses("aws.denied", DeniedError) as caught:
        call(aws)
    assert isinstance(caught.value, DeniedError)
    assert "allow dynamodb:ListTables on arn:aws:dynamodb:eu-west-1:1:table/*" in caught.value.hint


def test_a_quoted_request_does_not_reach_the_message(aws: AwsServer) -> None:
    aws.fail(
        "ListTables",
        "SignatureDoesNotMatch",
        status=403,
        message=f"The Canonical String should have been 'POST / x-amz-security-token:{TOKEN}'",
    )
    with refuses("aws.credentials", DeniedError) as caught:
        call(aws)
    assert isinstance(caught.value, DeniedError)
    assert TOKEN not in caught.value.message + caught.value.hint


def test_any_other_refusal_is_a_cloud_error_with_a_bounded_message(aws: AwsServer) -> None:
    aws.fail("ListTables", "ValidationException", message="One or more values\nwere invalid. " * 100)
    with refuses("aws.request", CloudError) as caught:
        call(aws)
    assert not isinstance(caught.value, TransientCloudError | DeniedError)
    assert "ValidationException: One or more values were invalid" in caught.value.message
    assert error_code(caught.value.__cause__) == "ValidationException"


def test_a_call_that_boto3_refuses_itself_is_a_cloud_error(aws: AwsServer) -> None:
    with refuses("aws.request", CloudError), aws_errors("reading"):
        aws.client("dynamodb").get_item(TableName=7)


def test_an_address_where_nobody_listens_is_unavailable() -> None:
    client = aws_client(
        "dynamodb",
        region=REGION,
        endpoint_url="http://127.0.0.1:1",
        attempts=1,
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    with refuses("aws.unavailable", TransientCloudError), aws_errors("reading"):
        client.list_tables()


@pytest.mark.usefixtures("no_credentials")
def test_missing_credentials_and_region_are_said() -> None:
    with refuses("aws.region", DeniedError):
        aws_client("dynamodb")
    with refuses("aws.credentials", DeniedError):
        aws_client("dynamodb", region=REGION, profile_name="nobody")
    client = aws_client("dynamodb", region=REGION, endpoint_url="http://127.0.0.1:1", attempts=1)
    with refuses("aws.credentials", DeniedError), aws_errors("reading"):
        client.list_tables()


@pytest.mark.usefixtures("no_credentials")
def test_a_sign_in_that_has_expired_is_said(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[profile sso]\nsso_session = s\nsso_account_id = 123456789012\nsso_role_name = r\n"
        "[sso-session s]\nsso_region = eu-west-1\nsso_start_url = https://example.awsapps.com/start\n"
    )
    with refuses("aws.expired", DeniedError), aws_errors("reading"):
        aws_client(
            "dynamodb", region=REGION, endpoint_url="http://127.0.0.1:1", profile_name="sso"
        ).list_tables()


def test_our_own_errors_pass_through() -> None:
    with refuses("x", DstackError), aws_errors("reading"):
        raise DstackError("x", "of our own")


@pytest.mark.parametrize(
    "module",
    ["functions.aws_api", "functions.stores.dynamodb", "functions.stores.s3", "functions.queues.sqs"],
)
def test_boto3_is_loaded_by_the_first_client_alone(module: str) -> None:
    script = (
        f"import sys, {module}; "
        "print(*(name for name in sys.modules if name.split('.')[0] in ('boto3', 'botocore', 's3transfer')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
