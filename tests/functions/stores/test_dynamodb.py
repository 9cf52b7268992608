"""DynamoDB as a store, over HTTP against moto, with lost answers, throttling and refusals."""

from uuid import uuid4

import msgspec
import pytest

from functions.deploy.cloud import TransientCloudError
from functions.deploy.record import encode_record
from functions.deploy.store import MAX_EVENTS, ConflictError
from functions.stores.dynamodb import MAX_RECORD, DynamoDbStore
from shared.errors import CloudError, StorageError
from tests.fakes.aws import AwsServer, make_table
from tests.functions.stores.contract import (
    RemoteStoreContract,
    RemoteStoreHarness,
    deployment,
    events_of,
    following,
)
from tests.shared.refusal import refuses


@pytest.fixture
def table(aws: AwsServer) -> str:
    return make_table(aws, f"deployments-{uuid4()}")


@pytest.fixture
def store(aws: AwsServer, table: str) -> DynamoDbStore:
    return DynamoDbStore(table, aws.client("dynamodb"))


class TestDynamoDbStore(RemoteStoreContract):
    @pytest.fixture
    def harness(self, aws: AwsServer, store: DynamoDbStore, table: str) -> RemoteStoreHarness:
        return RemoteStoreHarness(
            store,
            lambda: DynamoDbStore(table, aws.client("dynamodb")),
            lambda _: None,
            lose_answer=lambda: aws.fail("TransactWriteItems", after=True),
            throttle=lambda: aws.fail("DynamoDB", "ThrottlingException"),
            max_record=MAX_RECORD,
        )


def test_an_equal_record_of_another_writer_is_no_success(aws: AwsServer, table: str) -> None:
    one, other = (DynamoDbStore(table, aws.client("dynamodb")) for _ in range(2))
    one.create(deployment())
    changed = following(deployment(), attempt=1)
    one.replace(changed, 1)
    for store in (one, other):
        with refuses("deploy.conflict", ConflictError):
            store.replace(changed, 1)


def test_a_lost_answer_that_boto3_repeats_is_a_success(aws: AwsServer, table: str) -> None:
    store = DynamoDbStore(table, aws.client("dynamodb", attempts=2))
    first = deployment()
    store.create(first)
    aws.fail("TransactWriteItems", after=True)
    changed = following(first)
    store.replace(changed, 1, events_of(changed, 1))
    assert (store.get("app"), store.events("app")) == (changed, events_of(changed, 1))
    assert aws.calls.count("DynamoDB TransactWriteItems") == 3


@pytest.mark.parametrize("code", ["", "InternalServerError"])
@pytest.mark.parametrize("after", [True, False])
def test_a_write_of_unknown_outcome_may_be_repeated(
    aws: AwsServer, store: DynamoDbStore, code: str, *, after: bool
) -> None:
    first = deployment()
    aws.fail("TransactWriteItems", code, status=500, after=after)
    with refuses("aws.unavailable", TransientCloudError):
        store.create(first, events_of(first, 1))
    store.create(first, events_of(first, 1))
    changed = following(first)
    aws.fail("TransactWriteItems", code, status=500, after=after)
    with refuses("aws.unavailable", TransientCloudError):
        store.replace(changed, 1, events_of(changed, 1))
    store.replace(changed, 1, events_of(changed, 1))
    assert (store.get("app"), store.events("app")) == (
        changed,
        [*events_of(first, 1), *events_of(changed, 1)],
    )
    with refuses("deploy.conflict", ConflictError):
        store.replace(changed, 1, events_of(changed, 1))


def test_a_write_that_was_overtaken_while_its_outcome_was_unknown_is_a_conflict(
    aws: AwsServer, store: DynamoDbStore
) -> None:
    first = deployment()
    store.create(first)
    aws.fail("TransactWriteItems")
    with refuses("aws.unavailable", TransientCloudError):
        store.replace(following(first, attempt=1), 1)
    store.replace(following(first, attempt=2), 1)
    with refuses("deploy.conflict", ConflictError):
        store.replace(following(first, attempt=1), 1)
    assert store.get("app").attempt == 2


def test_what_is_not_repeated_is_forgotten(store: DynamoDbStore) -> None:
    for number in range(300):
        store._remember(number.to_bytes(32), "token")
    assert len(store._unsure) == 256


def test_events_of_a_name_that_begins_alike_stay_apart(store: DynamoDbStore) -> None:
    for name in ("app", "app-2", "ap"):
        first = deployment(name, uid=f"{name}-uid")
        store.create(first, events_of(first, 1))
    assert [one.uid for one in store.events("app")] == ["app-uid"]


def test_a_list_longer_than_a_batch_is_whole(store: DynamoDbStore) -> None:
    names = [f"app-{number:03d}" for number in range(101)]
    for name in names:
        store.create(deployment(name))
    assert [one.name for one in store.list(limit=1000)] == names


def test_what_an_answer_had_no_room_for_is_asked_for_again(aws: AwsServer, store: DynamoDbStore) -> None:
    first, second = deployment("a"), deployment("b")
    for one in (first, second):
        store.create(one)
    part = {"pk": {"S": "name#b"}, "record": {"S": encode_record(second).decode()}}
    rest = {"Keys": [{"pk": {"S": "name#a"}, "sk": {"S": "record"}}]}
    aws.answer("BatchGetItem", {"Responses": {store._table: [part]}, "UnprocessedKeys": {store._table: rest}})
    assert store.list() == [first, second]
    assert aws.calls.count("DynamoDB BatchGetItem") == 2


def test_a_throttled_part_of_a_list_is_not_taken_for_the_whole(aws: AwsServer, store: DynamoDbStore) -> None:
    store.create(deployment())
    unprocessed = {"Responses": {}, "UnprocessedKeys": {store._table: {"Keys": [{"pk": {"S": "name#app"}}]}}}
    aws.answer("BatchGetItem", unprocessed)
    with refuses("aws.throttled", TransientCloudError):
        store.list()


def test_a_record_that_dynamodb_cannot_hold_is_refused_before_the_call(
    aws: AwsServer, store: DynamoDbStore
) -> None:
    large = deployment(settings={"x": "y" * MAX_RECORD})
    with refuses("deploy.record.size", StorageError):
        store.create(large)
    first = deployment()
    with refuses("deploy.events.size", StorageError):
        store.create(first, [msgspec.structs.replace(events_of(first, 1)[0], message="x" * MAX_RECORD)])
    with refuses("deploy.events.count", StorageError):
        store.create(first, events_of(first, MAX_EVENTS + 1))
    assert "DynamoDB TransactWriteItems" not in aws.calls


def test_the_largest_record_and_most_events_are_stored(store: DynamoDbStore) -> None:
    empty = deployment(settings={"x": ""})
    largest = deployment(settings={"x": "y" * (MAX_RECORD - len(encode_record(empty)))})
    said = events_of(largest, MAX_EVENTS)
    store.create(largest, said)
    assert store.get("app") == largest
    assert store.events("app") == said


@pytest.mark.parametrize(
    ("reasons", "code", "kind"),
    [
        (("None", "TransactionConflict"), "deploy.conflict", ConflictError),
        (("ThrottlingError", "None"), "aws.throttled", TransientCloudError),
        (("ProvisionedThroughputExceeded",), "aws.throttled", TransientCloudError),
        (("ValidationError",), "aws.request", CloudError),
    ],
)
def test_a_canceled_transaction_says_why(
    aws: AwsServer, store: DynamoDbStore, reasons: tuple[str, ...], code: str, kind: type[CloudError]
) -> None:
    store.create(deployment())
    aws.fail("TransactWriteItems", "TransactionCanceledException", reasons=reasons)
    with refuses(code, kind):
        store.replace(following(deployment()), 1)


@pytest.mark.parametrize("call", ["GetItem", "Query", "BatchGetItem", "TransactWriteItems"])
def test_throttling_is_said_to_pass(aws: AwsServer, store: DynamoDbStore, call: str) -> None:
    first = deployment()
    store.create(first)
    aws.fail(call, "ProvisionedThroughputExceededException")
    with refuses("aws.throttled", TransientCloudError):
        store.get("app")
        store.list()
        store.replace(following(first), 1)


def test_an_unreadable_record_is_said(aws: AwsServer, store: DynamoDbStore, table: str) -> None:
    store.create(deployment())
    aws.client("dynamodb").update_item(
        TableName=table,
        Key={"pk": {"S": "name#app"}, "sk": {"S": "record"}},
        UpdateExpression="SET #r = :r",
        ExpressionAttributeNames={"#r": "record"},
        ExpressionAttributeValues={":r": {"S": "{}"}},
    )
    with refuses("deploy.record", StorageError):
        store.get("app")
