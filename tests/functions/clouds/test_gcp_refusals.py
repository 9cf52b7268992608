"""What Google Cloud refuses, fails at or loses: an error says who must act, or the next call mends it."""

from typing import Any

import msgspec
import pytest
import requests
from google.auth import exceptions as auth

from functions.clouds.gcp_compute import Compute
from functions.clouds.gcp_images import boot_object_key
from functions.clouds.gcp_resources import GRACE_SECONDS
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.cloud import DEPLOYMENT, MANAGED_BY, DeniedError, TransientCloudError
from functions.deploy.record import Files, Step
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.errors import GoogleError
from shared.errors import CloudError, ConfigError, StorageError
from tests.functions.clouds.gcp_world import BUCKET, NAME, OS_IMAGE_HASH, World
from tests.shared.refusal import refuses

MUTATIONS = [
    "compute.images.insert",
    "compute.disks.insert",
    "compute.instances.insert",
    "storage.objects.insert",
]
GRANT = 'gcloud projects add-iam-policy-binding project --member="user:$(gcloud config get account)"'
OURS = {MANAGED_BY: "dstack-cloud"}


# ---- operations that fail ----


@pytest.mark.parametrize(
    ("operation", "code", "hint"),
    [
        ("QUOTA_EXCEEDED", "gcp.quota", "quotas?project=project"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "gcp.stockout", "gcloud compute machine-types list"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "gcp.stockout", "us-central1-a"),
        ("RESOURCE_ALREADY_EXISTS", "gcp.name_taken", "dstack-cloud doctor"),
        ("PERMISSIONS_ERROR", "gcp.permission", "gcloud projects add-iam-policy-binding project"),
    ],
)
def test_a_denied_creation_says_what_to_do_and_leaves_nothing(
    gcp: World, operation: str, code: str, hint: str
) -> None:
    gcp.fake.fail_operation("compute.instances.insert", operation)
    with refuses(code, DeniedError) as caught:
        gcp.launch()
    assert isinstance(caught.value, DeniedError)
    assert hint in caught.value.hint
    assert gcp.work().deployment.resource("instance") is None
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("images", "INTERNAL_ERROR"), ("disks", "RATE_LIMIT_EXCEEDED"), ("instances", "RESOURCE_NOT_READY")],
)
def test_a_creation_that_failed_for_the_moment_is_tried_again(gcp: World, kind: str, operation: str) -> None:
    gcp.fake.fail_operation(f"compute.{kind}.insert", operation)
    with pytest.raises(TransientCloudError):
        gcp.launch()
    gcp.launch()
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_another_failure_of_an_operation_is_told_in_googles_words(gcp: World) -> None:
    gcp.fake.fail_operation("compute.instances.insert", "UNSUPPORTED_OPERATION", "No TDX here.")
    with refuses("gcp.operation", CloudError) as caught:
        gcp.launch()
    assert "No TDX here (UNSUPPORTED_OPERATION)" in caught.value.message


def test_a_start_that_finds_no_machine_left_is_a_stockout(gcp: World) -> None:
    gcp.launch()
    gcp.until_done(gcp.cloud.stop)
    gcp.fake.fail_operation("compute.instances.start", "ZONE_RESOURCE_POOL_EXHAUSTED")
    with refuses("gcp.stockout", DeniedError):
        gcp.until_done(gcp.cloud.start)
    assert gcp.fake.find("instance", NAME).json["status"] == "TERMINATED"
    assert gcp.until_done(gcp.cloud.start).status == "RUNNING"


def test_a_deletion_that_failed_is_asked_for_again(gcp: World) -> None:
    gcp.launch()
    gcp.fake.fail_operation("compute.instances.delete", "INTERNAL_ERROR")
    with refuses("gcp.unavailable", TransientCloudError):
        gcp.until_done(gcp.cloud.remove)
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_a_machine_over_the_quota_is_refused(gcp: World) -> None:
    gcp.fake.limits["C3_CPUS"] = 3
    with refuses("gcp.quota", DeniedError):
        gcp.launch()


def test_an_archive_that_is_no_disk_is_refused(gcp: World) -> None:
    gcp.storage.objects[BUCKET, boot_object_key(OS_IMAGE_HASH)].data = b"no archive"
    with refuses("gcp.operation", CloudError):
        gcp.launch()


# ---- calls that fail ----


@pytest.mark.parametrize("method", MUTATIONS)
def test_a_call_that_fails_and_then_loses_its_answer_is_made_good(gcp: World, method: str) -> None:
    gcp.rest.fail(method, 503)
    gcp.rest.fail(method, 0, after=True)
    for _ in range(2):
        with refuses("gcp.unavailable", TransientCloudError):
            gcp.launch()
    gcp.launch()
    assert len(gcp.fake.names("disk")) == 3
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


@pytest.mark.parametrize("method", MUTATIONS[:3])
def test_a_lost_request_is_repeated_and_not_made_twice(gcp: World, method: str) -> None:
    gcp.fake.late = True
    gcp.rest.fail(method, 0, after=True)
    with refuses("gcp.unavailable", TransientCloudError):
        gcp.launch()
    gcp.launch()
    names = [(one.kind, one.name) for one in gcp.resources() if one.state != "gone"]
    assert len(names) == len({*names})
    first, second = gcp.rest.called(method)[-2:] if method != MUTATIONS[0] else gcp.rest.called(method)[:2]
    assert first.query["requestId"] == second.query["requestId"]


def make_shared_images(gcp: World) -> None:
    """Leave nothing for a launch to make but what is its deployment's alone."""
    gcp.launch()
    gcp.until_done(gcp.cloud.remove)


@pytest.mark.parametrize("method", MUTATIONS[:3])
def test_what_a_lost_request_makes_later_is_removed(gcp: World, method: str) -> None:
    make_shared_images(gcp)
    gcp.fake.late = True
    gcp.fake.polls = 6
    gcp.rest.fail(method, 0, after=True)
    with refuses("gcp.unavailable", TransientCloudError):
        gcp.launch()
    gcp.change(step=Step.REMOVE, since=gcp.now)
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


@pytest.mark.parametrize("method", MUTATIONS[:3])
def test_what_a_lost_request_never_makes_is_waited_for_and_no_longer_than_that(
    gcp: World, method: str
) -> None:
    make_shared_images(gcp)
    gcp.rest.fail(method, 0)
    with refuses("gcp.unavailable", TransientCloudError):
        gcp.launch()
    before = gcp.now
    gcp.change(step=Step.REMOVE, since=before)
    gcp.until_done(gcp.cloud.remove)
    assert GRACE_SECONDS <= gcp.now - before < 2 * GRACE_SECONDS
    assert gcp.left() == {}


def test_nobody_waits_for_what_was_refused(gcp: World) -> None:
    gcp.rest.fail("compute.instances.insert", 403, reason="quotaExceeded")
    with refuses("gcp.quota", DeniedError):
        gcp.launch()
    before = gcp.now
    gcp.change(step=Step.ROLLBACK, since=gcp.now)
    gcp.until_done(gcp.cloud.retire)
    assert gcp.now - before < GRACE_SECONDS
    assert gcp.left() == {"disk": [f"{NAME}-data"]}


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("method", ["compute.images.get", "storage.buckets.get"])
def test_a_failing_service_is_transient(gcp: World, method: str, status: int) -> None:
    gcp.rest.fail(method, status)
    code = "gcp.throttled" if status == 429 else "gcp.unavailable"
    with refuses(code, TransientCloudError):
        gcp.cloud.launch(gcp.work())


@pytest.mark.parametrize("method", ["compute.instances.delete", "compute.images.delete"])
def test_a_deletion_whose_answer_is_lost_is_seen(gcp: World, method: str) -> None:
    gcp.launch()
    gcp.rest.fail(method, 503, after=True)
    with pytest.raises(TransientCloudError):
        gcp.until_done(gcp.cloud.remove)
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


@pytest.mark.parametrize(
    ("status", "reason", "message", "code", "hint"),
    [
        (
            403,
            "forbidden",
            "Required 'compute.instances.create' permission for 'projects/project/zones/a/instances/web'",
            "gcp.permission",
            f"{GRANT} --role=roles/compute.instanceAdmin.v1  # for compute.instances.create",
        ),
        (
            403,
            "forbidden",
            "Required 'iam.serviceAccounts.actAs' permission",
            "gcp.permission",
            f"{GRANT} --role=roles/iam.serviceAccountUser  # for iam.serviceAccounts.actAs",
        ),
        (403, "quotaExceeded", "Quota exceeded", "gcp.quota", ""),
        (
            403,
            "accessNotConfigured",
            "Compute Engine API has not been used",
            "gcp.api_disabled",
            "gcloud services enable compute.googleapis.com --project=project",
        ),
        (401, "authError", "Invalid Credentials", "gcp.credentials", "gcloud auth application-default login"),
    ],
)
def test_a_denied_call_has_the_command_that_mends_it(
    gcp: World, status: int, reason: str, message: str, code: str, hint: str
) -> None:
    gcp.rest.fail("compute.instances.insert", status, reason=reason, message=message, times=3)
    with refuses(code, DeniedError) as caught:
        gcp.launch()
    assert isinstance(caught.value, DeniedError)
    assert caught.value.hint == hint or (not hint and caught.value.hint)


def test_a_service_account_is_named_in_the_hint(gcp: World) -> None:
    credentials = anonymous_credentials()
    credentials.service_account_email = "deploy@project.iam.gserviceaccount.com"
    compute = Compute(lambda: credentials, gcp.rest.url)
    gcp.rest.fail("compute.images.get", 403, message="Required 'compute.images.get' permission")
    with refuses("gcp.permission", DeniedError) as caught:
        GcpTdxCloud(compute, gcp.bucket).launch(gcp.work())
    compute.close()
    assert isinstance(caught.value, DeniedError)
    assert "--member=serviceAccount:deploy@project.iam.gserviceaccount.com " in caught.value.hint


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded"])
def test_a_throttled_call_is_transient_though_it_is_a_403(gcp: World, reason: str) -> None:
    gcp.rest.fail("compute.images.get", 403, reason=reason)
    with refuses("gcp.throttled", TransientCloudError):
        gcp.launch()


def test_a_request_that_google_does_not_understand_is_told(gcp: World) -> None:
    gcp.rest.fail("compute.instances.insert", 400, message="Invalid value for field 'resource.x'.")
    with refuses("gcp.request", GoogleError) as caught:
        gcp.launch()
    assert "Invalid value for field 'resource.x'" in caught.value.message


class Raising(Compute):
    """A client whose connection or token fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(anonymous_credentials)
        self._error = error

    def _client(self, service: str) -> Any:
        del service
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (requests.ConnectionError("no route."), "gcp.unavailable", TransientCloudError),
        (requests.ReadTimeout("slow"), "gcp.unavailable", TransientCloudError),
        (auth.TransportError("no route"), "gcp.unavailable", TransientCloudError),
        (auth.RefreshError("busy", retryable=True), "gcp.unavailable", TransientCloudError),
        (auth.RefreshError("expired"), "gcp.credentials", DeniedError),
        (auth.DefaultCredentialsError("none"), "gcp.credentials", DeniedError),
    ],
)
def test_what_the_client_library_raises_is_ours(error: Exception, code: str, kind: Any) -> None:
    with refuses(code, kind):
        Raising(error).find("Projects", "look at project", project="project")


# ---- foreign names ----


@pytest.mark.parametrize(
    ("kind", "name", "zone"),
    [
        ("instance", NAME, "us-central1-a"),
        ("disk", f"{NAME}-data", "us-central1-a"),
        ("image", f"{NAME}-shared", ""),
    ],
)
@pytest.mark.parametrize("labels", [{}, {DEPLOYMENT: "other", **OURS}])
def test_a_name_in_foreign_hands_is_refused_and_left_alone(
    gcp: World, kind: str, name: str, zone: str, labels: dict[str, str]
) -> None:
    fields = {"sizeGb": "10"} if kind == "disk" else {}
    foreign = gcp.fake.put(kind, name, zone=zone, labels=labels, **fields)
    with refuses("gcp.name_taken", DeniedError) as caught:
        gcp.launch()
    assert isinstance(caught.value, DeniedError)
    assert f"gcloud compute {kind}s delete {name} --project=project" in caught.value.hint
    gcp.until_done(gcp.cloud.remove)
    assert gcp.fake.find(kind, name).json["id"] == foreign.json["id"]
    foreign_only = [name] if kind != "image" else []
    assert gcp.left().get(kind, []) == foreign_only or kind == "image"


def test_a_foreign_boot_disk_is_found_by_the_creation_and_left_alone(gcp: World) -> None:
    gcp.fake.put("disk", NAME, zone="us-central1-a", labels={}, sizeGb="10")
    with refuses("gcp.name_taken", DeniedError):
        gcp.launch()
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {"disk": [NAME]}


def test_a_foreign_machine_is_neither_stopped_nor_described(gcp: World) -> None:
    gcp.fake.put("instance", NAME, zone="us-central1-a", labels={DEPLOYMENT: "other"})
    assert gcp.cloud.stop(gcp.work()).status == "NOT_FOUND"
    assert gcp.cloud.describe(gcp.work()).status == "NOT_FOUND"
    assert not gcp.rest.called("compute.instances.stop")


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"project": ""}, "gcp.project"),
        ({"machine_type": 4}, "gcp.settings"),
        ({"scopes": ["https://www.googleapis.com/auth/devstorage.read_only"]}, "gcp.scopes"),
        ({"project": "other/zones/x"}, "gcp.settings.project"),
        ({"zone": "us/../x"}, "gcp.settings.zone"),
        ({"machine_type": "c3-standard-4?"}, "gcp.settings.machine_type"),
        ({"boot_image": "projects/other/global/images/x"}, "gcp.settings.boot_image"),
        ({"data_image": "projects/other/global/images/x"}, "gcp.settings.data_image"),
        ({"bucket": f"gs://{BUCKET}/x"}, "gcp.settings.bucket"),
        ({"bucket": "b; rm -r x"}, "gcp.settings.bucket"),
        ({"network": "a b"}, "gcp.settings.network"),
        ({"service_account": "$(id)"}, "gcp.settings.service_account"),
        ({"data_size": -1}, "gcp.settings.data_size"),
        ({"data_size": 70000}, "gcp.settings.data_size"),
    ],
)
def test_settings_that_cannot_be_launched_are_refused(gcp: World, settings, code: str) -> None:
    gcp.replan("d2" * 32, **settings)
    with refuses(code, ConfigError):
        gcp.launch()
    if code.startswith("gcp.settings."):
        assert not gcp.rest.calls
        app_json = msgspec.json.encode({"name": NAME, "gcp_config": gcp.settings})
        gcp.change(files=Files(project={"app.json": gcp.blobs.put(app_json)}), step=Step.PREPARE)
        assert [one.code for one in gcp.cloud.check(gcp.work())] == [code]


@pytest.mark.parametrize("name", ["Web", "1web", "web_1", "web-", "w" * 48])
def test_a_name_that_google_would_not_take_is_refused(gcp: World, name: str) -> None:
    gcp.create(name=name, uid="named")
    with refuses("gcp.name", ConfigError):
        gcp.launch(name)
    assert not gcp.rest.calls


def test_a_record_with_a_place_that_is_none_is_refused(gcp: World) -> None:
    gcp.work().save()
    work = gcp.work()
    work.intend("instance", NAME, "elsewhere")
    with refuses("gcp.place", StorageError):
        gcp.cloud.describe(gcp.work())
