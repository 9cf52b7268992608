"""A project on Google Cloud from `new` to `remove`, by the commands that a user types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.deploy.cloud import DeniedError
from shared.errors import ConfigError
from tests.end_to_end.commands import become, run, shown
from tests.end_to_end.gcp_site import BUCKET, PROJECT, GcpSite, gcp_site
from tests.fakes.guests import Roots
from tests.fakes.os_images import boot_disk, write_whole_os_image
from tests.shared.measurement.made_disks import make_kernel
from tests.shared.refusal import refuses

PINNED = "nginx@sha256:" + "ab" * 32


@pytest.fixture
def site(tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcpSite]:
    with gcp_site(tmp_path, roots) as made:
        write_whole_os_image(tmp_path / "images")
        settings = {
            "image_search_paths": [str(tmp_path / "images")],
            "gcp": {"project": PROJECT, "bucket": BUCKET},
        }
        (tmp_path / "config.json").write_text(json.dumps(settings))
        become(monkeypatch, made.environment, tmp_path)
        yield made


def pin_image(site: GcpSite) -> None:
    compose = site.place / "web" / "docker-compose.yaml"
    compose.write_text(compose.read_text().replace("nginx:alpine", PINNED))


def test_a_whole_life(site: GcpSite) -> None:
    run("dstack-cloud new web --kp tpm")
    pin_image(site)
    plan = shown("dstack-cloud -C web plan", 4)
    run("dstack-cloud -C web doctor")

    deployed = shown("dstack-cloud -C web deploy")
    assert deployed["status"] == "running"
    assert deployed["running"]["external_ip"] == site.address
    assert deployed["running"]["simulated"] is True
    assert deployed["planned"]["plan_id"] == plan["plan_id"]
    assert shown("dstack-cloud -C web plan")["outcome"] == "nothing"

    status = shown("dstack-cloud -C web status")
    assert (status["machine"]["status"], status["machine"]["confidential"]) == ("RUNNING", "TDX")
    site.compute.write_console("dstack-web", b"hello from the guest\n")
    assert "hello from the guest" in run("dstack-cloud -C web logs -n 3")
    run("dstack-cloud -C web fw allow 443 --source 192.0.2.0/24")
    assert "allow  tcp 443" in run("dstack-cloud -C web fw list")

    assert shown("dstack-cloud -C web stop")["status"] == "stopped"
    assert not site.guests.is_running("dstack-web")
    assert shown("dstack-cloud -C web start")["status"] == "running"

    assert shown("dstack-cloud -C web remove --yes")["status"] == "removed"
    assert site.left() == {}
    assert json.loads((site.place / "web" / "state.json").read_text())["status"] == "REMOVED"


def test_n80_a_cloud_that_gives_no_confidential_machine_is_caught(site: GcpSite) -> None:
    run("dstack-cloud new web --kp tpm")
    pin_image(site)
    site.compute.lie(confidential="")
    refused = shown("dstack-cloud -C web deploy", 3)
    assert refused["failure"]["code"] == "deploy.machine.confidential"
    assert "instance" not in site.left()
    run("dstack-cloud -C web remove --yes")
    assert site.left() == {}


def test_a_machine_with_other_software_is_caught_by_its_evidence(site: GcpSite) -> None:
    run("dstack-cloud new web --kp tpm")
    pin_image(site)
    boot = site.guests.on_boot

    def boot_another(instance: dict[str, Any], disks: Any) -> None:
        other = b"".join(boot_disk(make_kernel(limit=1)).chunks())
        sizes = {len(disk) for disk in disks.values()}
        boot(instance, {name: other if len(disk) == max(sizes) else disk for name, disk in disks.items()})

    site.compute.on_boot = boot_another
    refused = shown("dstack-cloud -C web deploy", 3)
    assert refused["failure"]["code"] == "gcp.uki.missing"
    assert "instance" not in site.left()


def test_an_image_that_was_pushed_needs_no_disk_here(site: GcpSite) -> None:
    run("dstack-cloud new web --kp tpm")
    pin_image(site)
    assert "uploaded" in run(f"dstack-cloud -C web image push --bucket {BUCKET}")
    assert "was there already" in run(f"dstack-cloud image push dstack-0.6.0 --bucket {BUCKET}")
    (site.place / "images" / "dstack-0.6.0" / "disk.raw").unlink()
    assert shown("dstack-cloud -C web deploy")["status"] == "running"
    run("dstack-cloud -C web remove --yes")


def test_an_image_that_is_nowhere_is_asked_for(site: GcpSite) -> None:
    run("dstack-cloud new web --kp tpm")
    pin_image(site)
    (site.place / "images" / "dstack-0.6.0" / "disk.raw").unlink()
    failed = shown("dstack-cloud -C web deploy", 1)
    assert failed["failure"]["code"] == "gcp.boot_image.missing"
    assert "dstack-cloud image push" in json.dumps(failed)
    assert site.left() == {}
    with refuses("image.push.disk", ConfigError):
        run(f"dstack-cloud -C web image push --bucket {BUCKET}")


@pytest.mark.usefixtures("site")
def test_a_bucket_that_is_not_there_is_named() -> None:
    with refuses("gcp.bucket", DeniedError):
        run("dstack-cloud image push dstack-0.6.0 --bucket nobodys")
