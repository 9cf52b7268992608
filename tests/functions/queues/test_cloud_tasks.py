"""A call that is asked for comes, once per second at most, and never gets lost behind one that ran."""

from collections.abc import Iterator

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.rest import GoogleSession
from functions.queues.cloud_tasks import MAX_SECONDS, CloudTasksSchedule
from tests.fakes.cloud_tasks import CREATE, GET, QUEUE, CloudTasks
from tests.fakes.google_rest import GoogleRest
from tests.shared.refusal import refuses

WORKER = "https://worker.example/advance"
ACCOUNT = "worker@p1.iam.gserviceaccount.com"


@pytest.fixture
def rest() -> Iterator[GoogleRest]:
    with GoogleRest(["cloudtasks.v2"]) as served:
        yield served
    assert not served.violations


@pytest.fixture
def tasks(rest: GoogleRest) -> CloudTasks:
    return CloudTasks(rest)


@pytest.fixture
def schedule(rest: GoogleRest, tasks: CloudTasks) -> CloudTasksSchedule:
    return schedule_on(rest, tasks)


def schedule_on(rest: GoogleRest, tasks: CloudTasks, queue: str = QUEUE) -> CloudTasksSchedule:
    session = GoogleSession(anonymous_credentials())
    return CloudTasksSchedule(session, queue, WORKER, ACCOUNT, clock=lambda: tasks.now, base_url=rest.url)


def test_posts_the_name_to_the_worker_with_a_token(tasks: CloudTasks, schedule: CloudTasksSchedule) -> None:
    schedule("app", 90)

    (task,) = tasks.tasks.values()
    assert tasks.bodies() == [b'{"name":"app"}']
    assert task["scheduleTime"] == "2026-01-01T00:01:30Z"
    assert task["httpRequest"]["url"] == WORKER
    assert task["httpRequest"]["oidcToken"] == {"serviceAccountEmail": ACCOUNT, "audience": WORKER}
    tasks.now += 89
    assert tasks.due() == []
    tasks.now += 1
    assert len(tasks.due()) == 1


def test_asks_once_for_a_second(tasks: CloudTasks, schedule: CloudTasksSchedule) -> None:
    for name in ("app", "app", "other", "app"):
        schedule(name, 5)
    schedule("app", 6)

    assert sorted(tasks.bodies()) == [b'{"name":"app"}'] * 2 + [b'{"name":"other"}']


@pytest.mark.parametrize("is_done", [True, False])
def test_a_call_that_runs_or_ran_does_not_stand_for_the_next(
    tasks: CloudTasks, schedule: CloudTasksSchedule, *, is_done: bool
) -> None:
    schedule("app", 0)
    (running,) = tasks.due()
    if is_done:
        tasks.finish(running["name"])
    schedule("app", 0)
    schedule("app", 0)

    tasks.now += 1
    waiting = [task for task in tasks.tasks.values() if not task.get("dispatchCount")]
    assert [task["scheduleTime"] for task in waiting] == ["2026-01-01T00:00:01Z"]


def test_finds_a_second_even_after_many_calls(tasks: CloudTasks, schedule: CloudTasksSchedule) -> None:
    for _ in range(10):
        schedule("app", 0)
        tasks.now += 60
        for task in tasks.due():
            tasks.finish(task["name"])
        tasks.now -= 60

    schedule("app", 0)
    assert len(tasks.tasks) == 1


def test_holds_back_no_longer_than_the_queue_does(tasks: CloudTasks, schedule: CloudTasksSchedule) -> None:
    schedule("app", 1 << 40)
    schedule("app", -5)

    assert [task["scheduleTime"][:10] for task in tasks.tasks.values()] == ["2026-01-30", "2026-01-01"]
    assert MAX_SECONDS < 30 * 86_400


def test_a_lost_answer_makes_no_second_task(
    rest: GoogleRest, tasks: CloudTasks, schedule: CloudTasksSchedule
) -> None:
    rest.fail(CREATE, 0, after=True)
    with refuses("gcp.unavailable", TransientCloudError):
        schedule("app", 5)
    schedule("app", 5)

    assert tasks.bodies() == [b'{"name":"app"}']


@pytest.mark.parametrize("method", [CREATE, GET])
def test_says_that_throttling_passes(rest: GoogleRest, schedule: CloudTasksSchedule, method: str) -> None:
    schedule("app", 5)
    rest.fail(method, 429)

    with refuses("gcp.throttled", TransientCloudError):
        schedule("app", 5)


def test_says_which_queue_is_missing(rest: GoogleRest, tasks: CloudTasks) -> None:
    missing = QUEUE.replace("advance", "none")

    with refuses("gcp.tasks.queue", DeniedError) as caught:
        schedule_on(rest, tasks, missing)("app", 0)
    assert caught.value.hint == "gcloud tasks queues create none --location=us-central1 --project=p1"


def test_says_what_the_caller_may_not(rest: GoogleRest, schedule: CloudTasksSchedule) -> None:
    rest.fail(
        CREATE, 403, message="The principal lacks IAM permission 'cloudtasks.tasks.create' for the resource"
    )

    with refuses("gcp.permission", DeniedError) as caught:
        schedule("app", 0)
    assert caught.value.hint.endswith("cloudtasks.tasks.create")
