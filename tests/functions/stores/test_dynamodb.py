"""DynamoDB as a store, over HTTP against moto, with lost answers, throttling and refusals."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.record import Step
from functions.deploy.store import MAX_EVENTS, ConflictError, NotFoundError
from functions.stores.dynamodb import MAX_RECORD, DynamoDbStore
from shared.errors import CloudError, StorageError
from tests.fakes.aws import AwsServer, make_table
from tests.functions.stores.records import event, following, record
from tests.shared.refusal import refuses


@pytest.fixture
def table(aws: AwsServer) -> str:
    return make_table(aws, f"deployments-{uuid4()}")


@pytest.fixture
def store(aws: AwsServer, table: str) -> DynamoDbStore:
    return DynamoDbStore(table, aws.client("dynamodb"))


def test_a_record_comes_back_as_it_was(store: DynamoDbStore) -> None:
    deployment = record(settings={"é": [1, None, {"x": "ü"}]})
    store.create(deployment, [event(deployment)])
    assert (store.get("app"), store.events("app")) == (deployment, [event(deployment)])


def test_a_name_is_taken_until_it_is_removed(store: DynamoDbStore) -> None:
    first = record()
    store.create(first, [event(first)])
    with refuses("deploy.name_taken", ConflictError):
        store.create(record(uid="other"))
    store.replace(following(first, step=Step.REMOVED), 1)
    second = record(uid="second")
    store.create(second, [event(second, message="anew")])
    assert store.get("app") == second
    assert [one.message for one in store.events("app")] == ["anew"]
    assert [one.uid for one in store.list()] == ["second"]


def test_only_the_newest_version_of_the_same_use_is_replaced(store: DynamoDbStore) -> None:
    first = record()
    store.create(first)
    second = following(first)
    store.replace(second, 1)
    for stale, expected in ((following(first, attempt=7), 1), (following(second, uid="other"), 2)):
        with refuses("deploy.conflict", ConflictError):
            store.replace(stale, expected, [event(stale, 9)])
    assert (store.get("app"), store.events("app")) == (second, [])


def test_nothing_replaces_what_was_never_created(store: DynamoDbStore) -> None:
    with refuses("deploy.conflict", ConflictError):
        store.replace(following(record()), 1)
    with refuses("deploy.unknown", NotFoundError):
        store.get("app")
    assert store.events("app") == []
    assert store.list() == []


def test_an_equal_record_of_another_writer_is_no_success(aws: AwsServer, table: str) -> None:
    first, second = (DynamoDbStore(table, aws.client("dynamodb")) for _ in range(2))
    deployment = record()
    first.create(deployment)
    changed = following(deployment, attempt=1)
    first.replace(changed, 1)
    for store in (first, second):
        with refuses("deploy.conflict", ConflictError):
            store.replace(changed, 1)


def test_a_lost_answer_that_boto3_repeats_is_a_success(aws: AwsServer, table: str) -> None:
    store = DynamoDbStore(table, aws.client("dynamodb", attempts=2))
    deployment = record()
    store.create(deployment)
    aws.fail("TransactWriteItems", after=True)
    changed = following(deployment)
    store.replace(changed, 1, [event(changed)])
    assert (store.get("app"), store.events("app")) == (changed, [event(changed)])
    assert aws.calls.count("DynamoDB TransactWriteItems") == 3


@pytest.mark.parametrize("code", ["", "InternalServerError"])
@pytest.mark.parametrize("after", [True, False])
def test_a_write_of_unknown_outcome_may_be_repeated(
    aws: AwsServer, store: DynamoDbStore, code: str, *, after: bool
) -> None:
    deployment = record()
    aws.fail("TransactWriteItems", code, status=500, after=after)
    with refuses("aws.unavailable", TransientCloudError):
        store.create(deployment, [event(deployment)])
    store.create(deployment, [event(deployment)])
    changed = following(deployment)
    aws.fail("TransactWriteItems", code, status=500, after=after)
    with refuses("aws.unavailable", TransientCloudError):
        store.replace(changed, 1, [event(changed)])
    store.replace(changed, 1, [event(changed)])
    assert (store.get("app"), store.events("app")) == (changed, [event(deployment), event(changed)])
    with refuses("deploy.conflict", ConflictError):
        store.replace(changed, 1, [event(changed)])


def test_a_write_that_was_overtaken_while_its_outcome_was_unknown_is_a_conflict(
    aws: AwsServer, store: DynamoDbStore
) -> None:
    deployment = record()
    store.create(deployment)
    aws.fail("TransactWriteItems")
    with refuses("aws.unavailable", TransientCloudError):
        store.replace(following(deployment, attempt=1), 1)
    store.replace(following(deployment, attempt=2), 1)
    with refuses("deploy.conflict", ConflictError):
        store.replace(following(deployment, attempt=1), 1)
    assert store.get("app").attempt == 2


def test_what_is_not_repeated_is_forgotten(store: DynamoDbStore) -> None:
    for number in range(300):
        store._remember(number.to_bytes(32), "token")
    assert len(store._unsure) == 256


def test_events_come_in_order_and_by_pages(store: DynamoDbStore) -> None:
    deployment = record()
    said = [event(deployment, number) for number in range(5)]
    store.create(deployment, said)
    changed = following(deployment)
    said += [event(changed, number) for number in range(3)]
    store.replace(changed, 1, said[5:])
    assert store.events("app") == said
    found = []
    while page := store.events("app", found[-1].id if found else "", 3):
        assert len(page) <= 3
        found += page
    assert found == said
    assert store.events("app", "0000000001-0025") == said[3:]


def test_events_of_a_name_that_begins_alike_stay_apart(store: DynamoDbStore) -> None:
    for name in ("app", "app-2", "ap"):
        deployment = record(name)
        store.create(deployment, [event(deployment, message=name)])
    assert [one.message for one in store.events("app")] == ["app"]


def test_deployments_are_listed_by_name_in_pages(store: DynamoDbStore) -> None:
    names = ["a", "a-1", "a1", "ab", "b", "c"]
    for name in reversed(names):
        store.create(record(name))
    found: list[str] = []
    while page := store.list(found[-1] if found else "", 2):
        assert len(page) <= 2
        found += [one.name for one in page]
    assert found == names


def test_a_list_longer_than_a_batch_and_than_an_answer_is_whole(store: DynamoDbStore) -> None:
    names = [f"app-{number:03d}" for number in range(103)]
    for name in names[:-3]:
        store.create(record(name))
    for name in names[-3:]:
        store.create(record(name, settings={"x": "y" * (MAX_RECORD - 1000)}))
    assert [one.name for one in store.list(limit=1000)] == names


def test_a_throttled_part_of_a_list_is_not_taken_for_the_whole(aws: AwsServer, store: DynamoDbStore) -> None:
    store.create(record())
    unprocessed = {"Responses": {}, "UnprocessedKeys": {store._table: {"Keys": [{"pk": {"S": "name#app"}}]}}}
    aws.answer("BatchGetItem", unprocessed)
    with refuses("aws.throttled", TransientCloudError):
        store.list()


def test_writers_that_compete_lose_no_update(aws: AwsServer, table: str) -> None:
    DynamoDbStore(table, aws.client("dynamodb")).create(record())

    def add(worker: int) -> None:
        store = DynamoDbStore(table, aws.client("dynamodb"))
        for _ in range(4):
            while True:
                found = store.get("app")
                changed = following(found, attempt=found.attempt + 1)
                try:
                    store.replace(changed, found.version, [event(changed, worker)])
                except ConflictError:
                    continue
                break

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, range(3)))
    store = DynamoDbStore(table, aws.client("dynamodb"))
    assert (store.get("app").attempt, store.get("app").version) == (12, 13)
    assert [one.id[:10] for one in store.events("app")] == [f"{version:010d}" for version in range(2, 14)]


def test_a_record_that_dynamodb_cannot_hold_is_refused_before_the_call(
    aws: AwsServer, store: DynamoDbStore
) -> None:
    large = record(settings={"x": "y" * MAX_RECORD})
    with refuses("deploy.record.size", StorageError):
        store.create(large)
    deployment = record()
    with refuses("deploy.events.size", StorageError):
        store.create(deployment, [event(deployment, message="x" * MAX_RECORD)])
    with refuses("deploy.events.count", StorageError):
        store.create(deployment, [event(deployment, number) for number in range(MAX_EVENTS + 1)])
    assert "DynamoDB TransactWriteItems" not in aws.calls


def test_the_largest_record_and_most_events_are_stored(store: DynamoDbStore) -> None:
    empty = record(settings={"x": ""})
    from functions.deploy.record import encode_record  # noqa: PLC0415

    largest = record(settings={"x": "y" * (MAX_RECORD - len(encode_record(empty)))})
    said = [event(largest, number) for number in range(MAX_EVENTS)]
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
    store.create(record())
    aws.fail("TransactWriteItems", "TransactionCanceledException", reasons=reasons)
    with refuses(code, kind):
        store.replace(following(record()), 1)


@pytest.mark.parametrize("call", ["GetItem", "Query", "BatchGetItem", "TransactWriteItems"])
def test_throttling_is_said_to_pass(aws: AwsServer, store: DynamoDbStore, call: str) -> None:
    deployment = record()
    store.create(deployment)
    aws.fail(call, "ProvisionedThroughputExceededException")
    with refuses("aws.throttled", TransientCloudError):
        store.get("app")
        store.list()
        store.replace(following(deployment), 1)


def test_a_table_that_is_not_there_is_named_with_what_to_do(aws: AwsServer) -> None:
    with refuses("aws.dynamodb.table", DeniedError) as caught:
        DynamoDbStore("nowhere", aws.client("dynamodb")).get("app")
    assert isinstance(caught.value, DeniedError)
    assert "nowhere" in caught.value.message
    assert "stack" in caught.value.hint


def test_an_unreadable_record_is_said(aws: AwsServer, store: DynamoDbStore, table: str) -> None:
    store.create(record())
    aws.client("dynamodb").update_item(
        TableName=table,
        Key={"pk": {"S": "name#app"}, "sk": {"S": "record"}},
        UpdateExpression="SET #r = :r",
        ExpressionAttributeNames={"#r": "record"},
        ExpressionAttributeValues={":r": {"S": "{}"}},
    )
    with refuses("deploy.record", StorageError):
        store.get("app")
