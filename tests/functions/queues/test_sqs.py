"""The SQS queue as a schedule, over HTTP against moto."""

import json
from typing import Any
from uuid import uuid4

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.queues.sqs import MAX_DELAY, SqsSchedule
from tests.fakes.aws import AwsServer
from tests.shared.refusal import refuses


@pytest.fixture
def queue(aws: AwsServer) -> str:
    url: str = aws.client("sqs").create_queue(QueueName=f"advance-{uuid4()}")["QueueUrl"]
    return url


def test_a_message_names_the_deployment(aws: AwsServer, queue: str) -> None:
    SqsSchedule(queue, aws.client("sqs"))("app", 0)
    (message,) = aws.client("sqs").receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(message["Body"]) == {"name": "app"}


def test_a_message_for_later_is_held_back(aws: AwsServer, queue: str) -> None:
    SqsSchedule(queue, aws.client("sqs"))("app", 60)
    counts = aws.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert (counts["ApproximateNumberOfMessages"], counts["ApproximateNumberOfMessagesDelayed"]) == ("0", "1")


@pytest.mark.parametrize(
    ("seconds", "delay"), [(-5, 0), (0, 0), (1, 1), (900, 900), (901, MAX_DELAY), (86400, MAX_DELAY)]
)
def test_no_message_waits_longer_than_sqs_can(aws: AwsServer, queue: str, seconds: int, delay: int) -> None:
    sent: list[dict[str, Any]] = []
    client = aws.new_client("sqs")
    client.meta.events.register(
        "before-parameter-build.sqs.SendMessage", lambda params, **_: sent.append(params)
    )
    SqsSchedule(queue, client)("app", seconds)
    assert [one["DelaySeconds"] for one in sent] == [delay]


def test_a_queue_that_is_not_there_is_named_with_what_to_do(aws: AwsServer) -> None:
    url = f"{aws.url}/123456789012/nowhere"
    with refuses("aws.sqs.queue", DeniedError) as caught:
        SqsSchedule(url, aws.client("sqs"))("app", 0)
    assert isinstance(caught.value, DeniedError)
    assert url in caught.value.message
    assert "stack" in caught.value.hint


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [("ThrottlingException", 400, "aws.throttled"), ("", 0, "aws.unavailable")],
)
def test_a_queue_that_fails_is_said_to_pass(
    aws: AwsServer, queue: str, code: str, status: int, expected: str
) -> None:
    aws.fail("SendMessage", code, status=status)
    with refuses(expected, TransientCloudError):
        SqsSchedule(queue, aws.client("sqs"))("app", 0)
