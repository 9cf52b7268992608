"""Whoever may deploy one app reaches neither what other apps rely on nor identities of the operator's."""

from typing import Any

import msgspec
import pytest

from functions.clouds.gcp_images import boot_object_key
from functions.clouds.gcp_limits import Limits
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.assembly import Runtime
from functions.deploy.cloud import DeniedError
from functions.deploy.record import Files, Step
from shared.compose.project import GcpConfig
from tests.fakes.storage import StoredObject
from tests.functions.clouds.gcp_world import BUCKET, OS_IMAGE_HASH, PROJECT, World, boot_archive
from tests.shared.refusal import refuses

ACCOUNT = "app@project.iam.gserviceaccount.com"
QUEUE = "dstack-tasks@project.iam.gserviceaccount.com"


def limit(gcp: World, **limits: Any) -> None:
    limits_ = Limits(**limits)
    gcp.cloud = GcpTdxCloud(gcp.compute, gcp.bucket, defaults=limits_.operator, limits=limits_)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"service_account": QUEUE}, "gcp.limits.service_account"),
        ({"service_account": ACCOUNT.upper()}, "gcp.limits.service_account"),
        ({"service_account": "default"}, "gcp.limits.service_account"),
        ({"bucket": "evil"}, "gcp.limits.bucket"),
        ({"bucket": f"gs://{BUCKET}.x"}, "gcp.limits.bucket"),
        ({"data_image": "other-shared"}, "gcp.limits.data_image"),
    ],
)
def test_what_the_operator_did_not_name_is_found_and_not_launched(
    gcp: World, settings: dict[str, str], code: str
) -> None:
    gcp.storage.buckets.add("evil")
    gcp.storage.objects["evil", boot_object_key(OS_IMAGE_HASH)] = StoredObject(boot_archive(), 1)
    limit(gcp, accounts=frozenset({ACCOUNT}))
    gcp.replan("d2" * 32, **settings)
    with refuses(code, DeniedError):
        gcp.launch()
    assert gcp.left() == {}
    assert gcp.fake.names("image") == []
    config = {"project": PROJECT, "zone": "us-central1-a"} | settings
    app_json = msgspec.json.encode({"name": "web", "gcp_config": config})
    gcp.change(files=Files(project={"app.json": gcp.blobs.put(app_json)}), step=Step.PREPARE)
    (found,) = gcp.cloud.check(gcp.work())
    assert (found.code, found.where) == (code, f"gcp_config.{next(iter(settings))}")


@pytest.mark.parametrize(
    ("settings", "operator"),
    [
        ({}, {}),
        ({"service_account": ACCOUNT}, {}),
        ({"service_account": QUEUE}, {"service_account": QUEUE}),
        ({"bucket": BUCKET}, {}),
        ({"bucket": f"gs://{BUCKET}/"}, {"bucket": BUCKET}),
        ({"data_image": "data-2"}, {"data_image": "data-2"}),
    ],
)
def test_what_the_operator_named_is_launched(
    gcp: World, settings: dict[str, str], operator: dict[str, str]
) -> None:
    limit(gcp, accounts=frozenset({ACCOUNT}), operator=GcpConfig(**operator))
    gcp.replan("d2" * 32, **settings)
    assert gcp.launch().status == "RUNNING"


def test_a_function_has_the_limits_of_its_environment() -> None:
    runtime = Runtime(
        {
            "DSTACK_CLOUDS": "gcp-tdx",
            "DSTACK_GCP_ENDPOINT": "http://127.0.0.1:9",
            "DSTACK_SERVICE_ACCOUNTS": f" {ACCOUNT}, ,",
            "DSTACK_CONFIG": '{"gcp": {"bucket": "ours"}}',
        }
    )
    cloud = runtime.clouds["gcp-tdx"]
    assert isinstance(cloud, GcpTdxCloud)
    assert cloud._limits == Limits(accounts=frozenset({ACCOUNT}), operator=GcpConfig(bucket="ours"))


def test_no_data_disk_starts_as_another_deployments_configuration(gcp: World) -> None:
    gcp.create(name="other", uid="fedcba9876543210")
    gcp.launch("other")
    gcp.replan("d2" * 32, data_image="other-shared")
    with refuses("gcp.name_taken", DeniedError):
        gcp.launch()
    assert gcp.fake.names("instance") == ["other"]
