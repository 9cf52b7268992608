"""The Lambda entries of the worker, with moto's DynamoDB, S3 and SQS behind them."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from functions.deploy import aws_worker
from functions.deploy.engine import Engine
from functions.deploy.reconcile import OVERDUE_SECONDS
from functions.deploy.record import Goal, Step
from functions.deploy.store import Schedule
from functions.deploy.worker import encode_message
from functions.queues.sqs import SqsSchedule
from functions.stores.dynamodb import DynamoDbStore
from functions.stores.s3 import S3Blobs
from shared.errors import ConfigError
from tests.fakes.aws import REGION, AwsServer, make_table
from tests.functions.deploy.memory_cloud import (
    NOW,
    Clock,
    Killed,
    MemoryCloud,
    MemoryTools,
    some_deployment,
    want,
)

CONTEXT = SimpleNamespace(
    function_name="deploy-worker",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-west-1:0:function:deploy-worker",
    aws_request_id="1",
)


def record(number: str, body: str, sent_at: int = NOW) -> dict[str, Any]:
    """Return a message as Lambda's event source hands it over."""
    return {
        "messageId": number,
        "body": body,
        "attributes": {"SentTimestamp": str(sent_at * 1000), "ApproximateReceiveCount": "1"},
        "eventSource": "aws:sqs",
    }


class Account:
    """A table, a bucket and a queue, and Lambda's event source between the queue and the handler."""

    def __init__(self, aws: AwsServer) -> None:
        self.name = f"worker-{uuid4()}"
        self.sqs = aws.client("sqs")
        self.queue = self.sqs.create_queue(
            QueueName=self.name, Attributes={"VisibilityTimeout": "0", "DelaySeconds": "0"}
        )["QueueUrl"]
        aws.client("s3").create_bucket(
            Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        self.store = DynamoDbStore(make_table(aws, self.name), aws.client("dynamodb"))
        self.blobs = S3Blobs(self.name, aws.client("s3"))
        self.cloud = MemoryCloud()
        self.clock = Clock()
        self.send = SqsSchedule(self.queue, self.sqs)
        self.engine = Engine(
            self.store,
            self.blobs,
            {"gcp-tdx": self.cloud},
            MemoryTools(),
            clock=self.clock,
            holder="worker",
        )
        self.failures = 0

    @property
    def schedule(self) -> Schedule:
        """The queue, with a clock that moves instead of a wait."""

        def send(name: str, seconds: int) -> None:
            self.clock.now += seconds
            self.send(name, 0)

        return send

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.sqs.receive_message(
            QueueUrl=self.queue, MaxNumberOfMessages=10
        ).get("Messages", [])
        return found

    def run(self, limit: int = 200) -> None:
        """Deliver messages as Lambda does until the queue is empty."""
        for _ in range(limit):
            messages = self.messages()
            if not messages:
                return
            records = [record(one["MessageId"], one["Body"], self.clock.now) for one in messages]
            try:
                answer = aws_worker.handler({"Records": records}, CONTEXT)
            except Killed:
                self.failures += 1
                # a function that died keeps its lease: time passes, and the message becomes visible
                self.clock.now += 1000
                continue
            again = {one["itemIdentifier"] for one in answer["batchItemFailures"]}
            self.failures += len(again)
            for one in messages:
                if one["MessageId"] not in again:
                    self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=one["ReceiptHandle"])
        raise AssertionError("the queue does not become empty")


@pytest.fixture
def account(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> Account:
    made = Account(aws)
    monkeypatch.setattr(aws_worker, "runtime", lambda: made)
    return made


def test_messages_carry_a_deployment_to_running_and_to_removed(account: Account) -> None:
    account.store.create(some_deployment())
    account.send("web", 0)
    account.run()
    assert account.store.get("web").step is Step.RUNNING
    assert account.failures == 0

    want(account.store, "web", Goal.REMOVED)
    account.send("web", 0)
    account.run()
    assert account.store.get("web").step is Step.REMOVED
    assert account.cloud.things == {}


def test_a_worker_that_dies_between_calls_is_followed_by_another(account: Account) -> None:
    account.store.create(some_deployment())
    account.send("web", 0)
    deaths = iter(range(3))

    def die(call: str, when: str) -> None:
        if call == "create instance" and when == "after" and next(deaths, None) is not None:
            raise Killed

    account.cloud.on_call = die
    account.run()
    assert account.failures == 1  # it was created, and is found by those that follow
    assert account.store.get("web").step is Step.RUNNING


def test_a_failing_table_leaves_the_message_in_the_queue(aws: AwsServer, account: Account) -> None:
    account.store.create(some_deployment())
    account.send("web", 0)
    aws.fail("GetItem", "InternalServerError", status=500, times=2)
    aws.fail("SendMessage", "ThrottlingException")
    account.run()
    assert account.failures == 3
    assert account.store.get("web").step is Step.RUNNING


def test_an_answer_lost_at_each_write_does_no_harm(aws: AwsServer, account: Account) -> None:
    account.store.create(some_deployment())
    account.send("web", 0)
    for _ in range(6):
        aws.fail("TransactWriteItems", after=True)
        aws.fail("GetItem", "")
    account.run()
    assert account.store.get("web").step is Step.RUNNING
    assert sorted(kind for kind, _ in account.cloud.made) == ["disk", "image", "instance"]


def test_one_bad_message_does_not_hold_up_its_batch(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.store.create(some_deployment())
    real = account.engine.advance

    def advance(name: str) -> Any:
        if name == "bug":
            raise ZeroDivisionError
        if name == "settings":
            raise ConfigError("deploy.settings", "not set")
        return real(name)

    monkeypatch.setattr(account.engine, "advance", advance)
    bodies = {
        "1": encode_message("bug").decode(),
        "2": "no message",
        "3": encode_message("nobody").decode(),
        "4": encode_message("settings").decode(),
        "5": encode_message("web").decode(),
    }
    records = [record(number, body) for number, body in bodies.items()]
    answer = aws_worker.handler({"Records": records}, CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "1"}, {"itemIdentifier": "4"}]}
    assert account.store.get("web").version > 1


def test_dropped_messages_and_failures_are_logged(
    account: Account, caplog: pytest.LogCaptureFixture, aws: AwsServer
) -> None:
    account.store.create(some_deployment())
    aws.fail("GetItem", "ThrottlingException")
    records = [
        record("1", encode_message("web").decode()),
        record("2", "no message"),
        record("3", encode_message("nobody").decode()),
    ]
    aws_worker.handler({"Records": records}, CONTEXT)
    assert [(line.levelname, getattr(line, "code", "")) for line in caplog.records] == [
        ("WARNING", "aws.throttled"),
        ("ERROR", "worker.message"),
        ("ERROR", "deploy.unknown"),
    ]


def test_messages_too_many_end_at_the_first_one_that_is_early(account: Account) -> None:
    account.store.create(some_deployment(due=NOW + 60, updated_at=NOW))
    old = [record(str(number), encode_message("web").decode(), NOW - 100) for number in range(5)]
    own = record("own", encode_message("web").decode(), NOW)
    assert aws_worker.handler({"Records": [*old, own]}, CONTEXT) == {"batchItemFailures": []}
    assert len(account.messages()) == 1


def test_a_message_that_is_delivered_again_is_not_dropped_for_being_early(account: Account) -> None:
    """Its first delivery wrote the record, and died before it sent the next one."""
    account.store.create(some_deployment(due=NOW + 60, updated_at=NOW))
    again = record("1", encode_message("web").decode(), NOW - 100)
    again["attributes"]["ApproximateReceiveCount"] = "2"
    assert aws_worker.handler({"Records": [again]}, CONTEXT) == {"batchItemFailures": []}
    assert len(account.messages()) == 1


def test_a_sweep_brings_back_what_lost_its_message(account: Account) -> None:
    account.store.create(some_deployment())
    assert aws_worker.sweep_handler({}, CONTEXT) == {"overdue": 0}
    account.clock.now += OVERDUE_SECONDS
    assert aws_worker.sweep_handler({}, CONTEXT) == {"overdue": 1}
    account.run()
    assert account.store.get("web").step is Step.RUNNING
    account.clock.now += 10 * OVERDUE_SECONDS
    assert aws_worker.sweep_handler({}, CONTEXT) == {"overdue": 0}


def test_the_runtime_is_made_of_the_environment_and_kept(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account(aws)
    old = msgspec.structs.replace(some_deployment(), updated_at=NOW - 10**9, since=NOW - 10**9)
    account.store.create(old)
    for name, value in {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "DSTACK_STORE": f"dynamodb:{account.name}",
        "DSTACK_BLOBS": f"s3:{account.name}",
        "DSTACK_QUEUE": f"sqs:{account.queue}",
    }.items():
        monkeypatch.setenv(name, value)
    aws_worker.runtime.cache_clear()
    try:
        assert aws_worker.sweep_handler({}, CONTEXT) == {"overdue": 1}
        assert aws_worker.runtime() is aws_worker.runtime()
    finally:
        aws_worker.runtime.cache_clear()
    assert [one["Body"] for one in account.messages()] == ['{"name":"web"}']
