"""What is asked of Google for a machine, field by field."""

from typing import Any

import pytest

from functions.clouds.gcp_compute import Place
from functions.clouds.gcp_instance import data_disk_body, instance_body
from functions.clouds.gcp_settings import Site, config_digest, read_settings
from shared.errors import ConfigError, StorageError
from tests.functions.clouds.gcp_world import World, make_plan
from tests.shared.refusal import refuses

PLAN_ID = "c1" * 32


def site(**settings: Any) -> Site:
    machine = make_plan(PLAN_ID, **settings).machine
    return Site(name="web", uid="uid", settings=read_settings(machine), config="cf" * 16)


def body(**settings: Any) -> dict[str, Any]:
    return instance_body(site(**settings), PLAN_ID, "boot", "web-shared")


def test_the_machine_is_confidential_with_a_vtpm_and_does_not_migrate() -> None:
    made = body()
    assert made["machine_type"] == "zones/us-central1-a/machineTypes/c3-standard-4"
    assert made["confidential_instance_config"] == {"confidential_instance_type": "TDX"}
    assert made["shielded_instance_config"]["enable_vtpm"] is True
    assert made["scheduling"]["on_host_maintenance"] == "TERMINATE"


def test_disks_are_boot_data_and_config_and_the_data_stays() -> None:
    boot, data, config = body()["disks"]
    assert (boot["boot"], boot["auto_delete"], boot["initialize_params"]["disk_size_gb"]) == (True, True, 10)
    assert (data["auto_delete"], data["source"]) == (
        False,
        "projects/project/zones/us-central1-a/disks/web-data",
    )
    assert config["initialize_params"]["disk_name"] == "web-shared"
    assert config["initialize_params"]["disk_type"] == "zones/us-central1-a/diskTypes/pd-balanced"
    assert data_disk_body(site(data_size=30), "dstack-data-disk")["size_gb"] == 30


def test_no_service_account_is_attached_unless_one_is_named() -> None:
    assert "service_accounts" not in body()
    named = body(service_account="app@project.iam.gserviceaccount.com")
    assert named["service_accounts"] == [
        {
            "email": "app@project.iam.gserviceaccount.com",
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }
    ]
    with refuses("gcp.scopes", ConfigError):
        body(scopes=["https://www.googleapis.com/auth/compute"])


def test_a_spot_machine_is_stopped_and_not_deleted() -> None:
    assert body(provisioning_model="SPOT")["scheduling"] == {
        "on_host_maintenance": "TERMINATE",
        "automatic_restart": False,
        "provisioning_model": "SPOT",
        "instance_termination_action": "STOP",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"network": "global/networks/default", "access_configs": 1}),
        ({"no_public_ip": True}, {"network": "global/networks/default"}),
        ({"network": "private"}, {"network": "global/networks/private", "access_configs": 1}),
        (
            {"network": "projects/host/global/networks/x", "no_public_ip": True},
            {"network": "projects/host/global/networks/x"},
        ),
        (
            {"subnet": "s", "no_public_ip": True},
            {"subnetwork": "regions/us-central1/subnetworks/s"},
        ),
        (
            {"subnet": "s", "network": "private", "no_public_ip": True},
            {"subnetwork": "regions/us-central1/subnetworks/s", "network": "global/networks/private"},
        ),
        (
            {"private_ip": "10.0.0.9", "no_public_ip": True},
            {"subnetwork": "regions/us-central1/subnetworks/default", "network_i_p": "10.0.0.9"},
        ),
    ],
)
def test_the_network_is_the_one_that_is_named(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    (interface,) = body(**settings)["network_interfaces"]
    expected = {"nic_type": "GVNIC"} | expected
    if expected.get("access_configs"):
        expected["access_configs"] = [{"type_": "ONE_TO_ONE_NAT", "name": "External NAT"}]
    assert interface == expected


def test_tags_and_labels_are_the_users_and_ours() -> None:
    made = body(tags=["http", "fw-web"], labels={"team": "a", "dstack-deployment": "forged"})
    assert made["tags"] == {"items": ["fw-web", "http"]}
    assert made["labels"] == {
        "team": "a",
        "dstack-managed-by": "dstack-cloud",
        "dstack-deployment": "uid",
        "dstack-plan": PLAN_ID[:32],
        "dstack-config": "cf" * 16,
    }


@pytest.mark.parametrize(("given", "bucket"), [("", "project-dstack"), ("gs://b/", "b"), ("b", "b")])
def test_the_bucket_is_named_as_upstream_names_it(given: str, bucket: str) -> None:
    assert site(bucket=given).bucket == bucket


def test_google_takes_every_form_of_a_machine(gcp: World) -> None:
    gcp.replan(
        "d2" * 32,
        provisioning_model="SPOT",
        network="private",
        private_ip="10.0.0.9",
        no_public_ip=True,
        service_account="app@project.iam.gserviceaccount.com",
        tags=["http"],
        labels={"team": "a"},
    )
    machine = gcp.launch()
    assert machine.internal_ip == "10.0.0.9"
    assert machine.external_ip == ""
    assert machine.evidence_url == "http://10.0.0.9:8090/evidence"
    assert machine.traits["service_accounts"] == ["app@project.iam.gserviceaccount.com"]


@pytest.mark.parametrize("path", ["", "projects/p", "projects/p/zones", "regions/r", "projects/p/zones/z/x"])
def test_a_place_that_is_none_is_refused(path: str) -> None:
    with refuses("gcp.place", StorageError):
        Place.of(path)


@pytest.mark.parametrize("place", [Place("p"), Place("p", "us-central1-a")])
def test_a_place_is_read_back(place: Place) -> None:
    assert Place.of(place.path) == place


def test_the_config_digest_follows_every_file(gcp: World) -> None:
    first = gcp.store.get("web")
    assert len(config_digest(first)) == 32
    assert config_digest(first) == config_digest(gcp.store.get("web"))
