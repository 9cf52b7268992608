"""What would stop a launch on Google Cloud is found before it, with the command that mends it."""

from typing import Any

import msgspec
import pytest

from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.cloud import DEPLOYMENT, MANAGED_BY, TransientCloudError
from functions.deploy.record import Files, Step
from shared.compose.findings import Finding, Severity
from shared.compose.project import GcpConfig
from tests.functions.clouds.gcp_world import BUCKET, NAME, OS_IMAGE_HASH, PROJECT, UID, World
from tests.shared.refusal import refuses


def check(gcp: World, **settings: Any) -> list[Finding]:
    """Check a project before it is planned."""
    config = {"project": PROJECT, "zone": "us-central1-a"} | settings
    app_json = msgspec.json.encode({"name": "web", "gcp_config": config})
    gcp.change(files=Files(project={"app.json": gcp.blobs.put(app_json)}), step=Step.PREPARE)
    found = list(gcp.cloud.check(gcp.work()))
    assert all(one.severity is Severity.ERROR and one.detail for one in found)
    return found


def codes(found: list[Finding]) -> list[str]:
    return [one.code for one in found]


def test_a_project_that_can_be_launched_has_no_findings_and_nothing_is_made(gcp: World) -> None:
    assert check(gcp) == []
    assert {call.http_method for call in gcp.rest.calls} == {"GET"}
    assert gcp.resources() == ()


def test_a_running_deployment_has_none_either(gcp: World) -> None:
    gcp.launch()
    assert list(gcp.cloud.check(gcp.work())) == []


@pytest.mark.parametrize(
    ("settings", "code", "mend"),
    [
        ({"project": ""}, "gcp.project", "gcloud config get project"),
        ({"project": "nobody"}, "gcp.project", "gcloud projects list"),
        ({"zone": "mars-1-a"}, "gcp.zone", "gcloud compute zones list --project=project"),
        ({"machine_type": "n2-standard-4"}, "gcp.machine_type.tdx", "--filter='name~^c3-standard-[0-9]+$'"),
        ({"machine_type": "c3-standard-4-lssd"}, "gcp.machine_type.tdx", "machine-types list"),
        ({"machine_type": "c3-standard-999"}, "gcp.machine_type", "--zones=us-central1-a"),
        ({"bucket": "absent"}, "gcp.bucket", "gcloud storage buckets create gs://absent"),
        ({"boot_image": "absent"}, "gcp.boot_image.missing", "dstack-cloud image push"),
        ({"scopes": ["x"]}, "gcp.scopes", "service_account"),
    ],
)
def test_a_setting_that_cannot_be_is_found(gcp: World, settings, code: str, mend: str) -> None:
    (found,) = check(gcp, **settings)
    assert found.code == code
    assert mend in found.detail


def test_a_zone_that_is_down_is_found(gcp: World) -> None:
    gcp.fake.zones["us-central1-a"] = "DOWN"
    assert codes(check(gcp)) == ["gcp.zone"]


@pytest.mark.parametrize(
    ("metric", "limit", "settings"),
    [
        ("C3_CPUS", 3, {}),
        ("INSTANCES", 0, {}),
        ("SSD_TOTAL_GB", 30, {}),
        ("IN_USE_ADDRESSES", 0, {}),
        ("CPUS_ALL_REGIONS", 2, {}),
        ("PREEMPTIBLE_CPUS", 3, {"provisioning_model": "SPOT"}),
    ],
)
def test_a_quota_without_room_is_found(gcp: World, metric: str, limit: int, settings) -> None:
    gcp.fake.limits[metric] = limit
    (found,) = check(gcp, **settings)
    assert found.code == "gcp.quota"
    assert found.where.endswith(metric)
    assert f"quotas?project={PROJECT}" in found.detail


def test_quotas_that_do_not_count_are_left_out(gcp: World) -> None:
    gcp.fake.limits |= {"PREEMPTIBLE_CPUS": 0, "IN_USE_ADDRESSES": 0}
    assert check(gcp, provisioning_model="SPOT", no_public_ip=True) == []


@pytest.mark.parametrize(
    ("kind", "name", "zone"),
    [
        ("instance", NAME, "us-central1-a"),
        ("disk", NAME, "us-central1-a"),
        ("disk", f"{NAME}-data", "us-central1-a"),
        ("disk", f"{NAME}-shared", "us-central1-a"),
        ("image", f"{NAME}-shared", ""),
    ],
)
def test_a_name_in_foreign_hands_is_found_and_one_in_ours_is_not(
    gcp: World, kind: str, name: str, zone: str
) -> None:
    fields: dict[str, Any] = {"sizeGb": "10"} if kind == "disk" else {}
    if kind == "instance":
        fields["machineType"] = "zones/us-central1-a/machineTypes/c3-standard-4"
    item = gcp.fake.put(kind, name, zone=zone, labels={DEPLOYMENT: "other"}, **fields)
    (found,) = check(gcp)
    assert (found.code, found.where) == ("gcp.name_taken", name)
    item.json["labels"] = {MANAGED_BY: "dstack-cloud", DEPLOYMENT: UID}
    assert check(gcp) == []


def test_a_name_that_google_would_not_take_is_found(gcp: World) -> None:
    gcp.create(name="Web_1", uid="named")
    (found,) = gcp.cloud.check(gcp.work("Web_1"))
    assert found.code == "gcp.name"


def test_a_move_that_leaves_data_behind_is_found(gcp: World) -> None:
    gcp.launch()
    gcp.until_done(gcp.cloud.retire)
    found = check(gcp, zone="us-central1-b")
    assert codes(found) == ["gcp.data.zone"]


def test_a_planned_boot_image_that_is_nowhere_is_found(gcp: World) -> None:
    assert list(gcp.cloud.check(gcp.work())) == []
    gcp.storage.objects.clear()
    (found,) = gcp.cloud.check(gcp.work())
    assert found.code == "gcp.boot_image.missing"
    gcp.fake.put("image", f"dstack-{OS_IMAGE_HASH[:16]}", labels={}, guestOsFeatures=[])
    (found,) = gcp.cloud.check(gcp.work())
    assert found.code == "gcp.boot_image.other"


@pytest.mark.parametrize("method", ["compute.projects.get", "compute.instances.get"])
def test_what_is_denied_to_the_check_is_found_too(gcp: World, method: str) -> None:
    gcp.rest.fail(method, 403, message="Required 'compute.x.get' permission", times=9)
    assert set(codes(check(gcp))) == {"gcp.permission"}


def test_missing_credentials_are_found(gcp: World) -> None:
    gcp.rest.fail("compute.projects.get", 401)
    (found,) = check(gcp)
    assert (found.code, found.detail) == ("gcp.credentials", "gcloud auth application-default login")


def test_a_service_that_fails_is_no_finding(gcp: World) -> None:
    gcp.rest.fail("compute.zones.get", 503)
    with refuses("gcp.unavailable", TransientCloudError):
        check(gcp)


def test_an_operators_settings_count_where_the_project_says_nothing(gcp: World) -> None:
    gcp.cloud = GcpTdxCloud(gcp.compute, gcp.bucket, defaults=GcpConfig(bucket="elsewhere"))
    (found,) = check(gcp)
    assert "gs://elsewhere" in found.detail
    assert check(gcp, bucket=BUCKET) == []


def test_an_app_json_that_cannot_be_read_is_found(gcp: World) -> None:
    gcp.change(files=Files(project={"app.json": gcp.blobs.put(b"{")}), step=Step.PREPARE)
    (found,) = gcp.cloud.check(gcp.work())
    assert found.code == "project.app_json.syntax"
