"""The stores and queues that an environment names (`functions.deploy.assembly` says which variables do).

Whoever reads or changes deployments needs these two, and none of the clouds.
"""

from collections.abc import Mapping
from pathlib import Path

from functions.deploy.store import DeploymentStore, Schedule
from functions.google_api.endpoint import gcp_endpoint, google_session
from shared.errors import ConfigError


def open_store(environ: Mapping[str, str], variable: str = "DSTACK_STORE") -> DeploymentStore:
    """Return the records' store. Raises `ConfigError("deploy.settings")`."""
    kind, place = split_place(environ, variable, "dynamodb", "firestore", "sqlite")
    if kind == "dynamodb":
        from functions.aws_api import aws_client  # noqa: PLC0415 - each environment has one of the three
        from functions.stores.dynamodb import DynamoDbStore  # noqa: PLC0415

        return DynamoDbStore(place, aws_client("dynamodb"))
    if kind == "firestore":
        from functions.stores.firestore import BASE_URL as FIRESTORE  # noqa: PLC0415
        from functions.stores.firestore import FirestoreStore  # noqa: PLC0415

        project, _, database = place.partition("/")
        return FirestoreStore(
            google_session(environ),
            project,
            database or "(default)",
            base_url=gcp_endpoint(environ) or FIRESTORE,
        )
    from functions.stores.sqlite import SqliteStore  # noqa: PLC0415

    return SqliteStore(Path(place))


def open_queue(environ: Mapping[str, str], variable: str = "DSTACK_QUEUE") -> Schedule:
    """Return a queue of names, an SQS or a Cloud Tasks one. Raises `ConfigError("deploy.settings")`."""
    kind, place = split_place(environ, variable, "sqs", "tasks")
    if kind == "sqs":
        from functions.aws_api import aws_client  # noqa: PLC0415
        from functions.queues.sqs import SqsSchedule  # noqa: PLC0415

        return SqsSchedule(place, aws_client("sqs"))
    from functions.queues.cloud_tasks import BASE_URL, CloudTasksSchedule  # noqa: PLC0415

    try:
        queue, worker, account = place.split("|")
    except ValueError as error:
        raise unset(variable, "tasks:QUEUE|WORKER_URL|SERVICE_ACCOUNT") from error
    base = gcp_endpoint(environ) or BASE_URL
    return CloudTasksSchedule(google_session(environ), queue, worker, account, base_url=base)


def split_place(environ: Mapping[str, str], variable: str, *kinds: str) -> tuple[str, str]:
    """Return the kind and the place of `KIND:PLACE`. Raises `ConfigError("deploy.settings")`."""
    kind, _, place = environ.get(variable, "").partition(":")
    if kind not in kinds or not place:
        raise unset(variable, " or ".join(f"{one}:PLACE" for one in kinds))
    return kind, place


def unset(variable: str, expected: str) -> ConfigError:
    """Return what is said of a variable that is wrong."""
    return ConfigError("deploy.settings", f"{variable} is not set as it should be, expected {expected}")
