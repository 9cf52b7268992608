"""A project on Google Cloud by the deploy function's HTTP API, its built source at work over the fakes."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from functions.deploy.engine import LEASE_SECONDS
from functions.deploy.reconcile import OVERDUE_SECONDS
from tests.end_to_end.commands import run, shown
from tests.end_to_end.gcp_functions import APIS, GcpFunctions, gcp_functions
from tests.end_to_end.gcp_site import BUCKET, PROJECT, GcpSite, gcp_site
from tests.end_to_end.pipeline import Job, become_job, identities
from tests.end_to_end.shared_clock import SharedClock
from tests.fakes.cloud_tasks import CREATE
from tests.fakes.google_rest import ApiRequest
from tests.fakes.guests import Roots
from tests.fakes.os_images import write_whole_os_image
from tests.packaging.conftest import Artefacts

INSERT = "compute.instances.insert"
PINNED = "nginx@sha256:" + "ab" * 32


class Stage(msgspec.Struct):
    """A job, and where what it deploys ends up."""

    job: Job
    site: GcpSite
    functions: GcpFunctions
    clock: SharedClock


@pytest.fixture
def stage(tmp_path: Path, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    clock = SharedClock(tmp_path / "clock")
    with (
        Roots(clock) as roots,
        identities(tmp_path, clock) as who,
        gcp_site(tmp_path, roots, APIS) as site,
        gcp_functions(site, artefacts, tmp_path / "functions", who, clock) as functions,
    ):
        write_whole_os_image(tmp_path / "images")
        settings = {
            "image_search_paths": [str(tmp_path / "images")],
            "gcp": {"project": PROJECT, "bucket": BUCKET},
        }
        (tmp_path / "config.json").write_text(json.dumps(settings))
        become_job(monkeypatch, who, tmp_path)
        with monkeypatch.context() as operator:
            operator.setenv("DSTACK_GCP_ENDPOINT", site.rest.url)
            run(f"dstack-cloud image push dstack-0.6.0 --bucket {BUCKET}")
        run("dstack-cloud new web --kp tpm")
        compose = tmp_path / "web" / "docker-compose.yaml"
        compose.write_text(compose.read_text().replace("nginx:alpine", PINNED))
        yield Stage(Job(tmp_path, functions.api.url, who, monkeypatch), site, functions, clock)


def test_a_whole_life(stage: Stage) -> None:
    job, site = stage.job, stage.site
    rival = job.rival()

    def while_it_launches(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "before" and request.method_id == INSERT:
            rival()

    site.rest.hook = while_it_launches
    plan = shown("dstack-cloud -C web plan", 4)
    deployed = job.gets("deploy --timeout 120")
    site.rest.hook = None
    assert deployed["status"] == "running"
    assert (deployed["running"]["external_ip"], deployed["running"]["simulated"]) == (site.address, True)
    assert deployed["planned"]["plan_id"] == plan["plan_id"]
    assert rival.codes == [("deploy.exists", 409), ("deploy.busy", 409)]

    assert job.refusal("stop", job.who.job(repository_id="9")) == ("deploy.forbidden", 403)
    assert job.refusal("stop", job.who.forged()) == ("deploy.token.signature", 401)

    machine = job.gets("status")["machine"]
    assert (machine["status"], machine["confidential"]) == ("RUNNING", "TDX")
    site.compute.write_console("dstack-web", b"hello from the guest\n")
    assert "hello from the guest" in job.asks("logs -n 3")
    job.asks("fw allow 443 --source 192.0.2.0/24")
    assert "allow  tcp 443" in job.asks("fw list")

    assert "dstack-web" in run(f"dstack-cloud list --api {job.url}")

    assert job.gets("stop --timeout 120")["status"] == "stopped"
    assert not site.guests.is_running("dstack-web")
    assert job.gets("start --timeout 120")["status"] == "running"

    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert site.left() == {}
    assert set(stage.functions.answers) == {200}
    assert len(site.rest.called(INSERT)) == 1


def test_a_worker_that_is_killed_in_a_call_of_the_cloud_leaves_one_machine_that_runs(stage: Stage) -> None:
    job, site = stage.job, stage.site

    def kill(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "after" and request.method_id == INSERT and stage.functions.worker.starts == 1:
            site.rest.hook = None
            stage.functions.worker.kill()
            raise ConnectionError

    site.rest.hook = kill
    deployed = job.gets("deploy --timeout 120")
    assert (deployed["status"], stage.functions.worker.starts) == ("running", 2)
    assert 503 in stage.functions.answers
    assert site.compute.names("instance") == ["dstack-web"]
    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert site.left() == {}


def test_a_deployment_whose_task_is_lost_is_found_by_the_sweep(stage: Stage) -> None:
    job, functions = stage.job, stage.functions
    functions.attempts = 1
    killed = threading.Event()

    def kill(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "before" and request.method_id == INSERT:
            stage.site.rest.hook = None
            functions.worker.kill()
            killed.set()
            raise ConnectionError

    stage.site.rest.hook = kill
    job.gets("deploy --timeout 3", 6)
    assert killed.wait(60)
    while functions.tasks.tasks:
        time.sleep(0.01)
    assert functions.sweep() == {"scheduled": []}
    stage.clock.skip(LEASE_SECONDS + OVERDUE_SECONDS)
    assert functions.sweep() == {"scheduled": ["dstack-web"]}
    assert job.gets("deploy --timeout 120")["status"] == "running"
    job.gets("remove --yes --timeout 120")
    assert stage.site.left() == {}


def test_a_request_whose_task_was_not_made_is_sent_again_and_done_once(stage: Stage) -> None:
    job, functions = stage.job, stage.functions

    def kill(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "before" and request.method_id == CREATE:
            stage.site.rest.hook = None
            functions.api.kill()
            raise ConnectionError

    stage.site.rest.hook = kill
    assert job.gets("deploy --timeout 120")["status"] == "running"
    assert functions.api.starts == 2
    events, _ = job.deployments().events("dstack-web", "")
    assert [event["message"] for event in events].count("deploy was asked for") == 1
    job.gets("remove --yes --timeout 120")
    assert stage.site.left() == {}
