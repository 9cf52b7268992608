"""A project on Google Cloud by the deploy function's HTTP API, its built source at work over the fakes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from cli.remote import ApiError
from tests.end_to_end.commands import run, shown
from tests.end_to_end.gcp_functions import APIS, GcpFunctions, gcp_functions
from tests.end_to_end.gcp_site import BUCKET, PROJECT, GcpSite, gcp_site
from tests.end_to_end.pipeline import Identities, Rival, become_job, identities
from tests.end_to_end.shared_clock import SharedClock
from tests.fakes.google_rest import ApiRequest
from tests.fakes.guests import Roots
from tests.fakes.os_images import write_whole_os_image
from tests.packaging.conftest import Artefacts
from tests.shared.refusal import refuses

INSERT = "compute.instances.insert"
PINNED = "nginx@sha256:" + "ab" * 32


class Job:
    """A job of the repository, with the project `web` in its directory."""

    def __init__(self, place: Path, site: GcpSite, functions: GcpFunctions, who: Identities) -> None:
        self.place, self.site, self.functions, self.who = place, site, functions, who
        self.api = functions.api.url
        run("dstack-cloud new web --kp tpm")
        compose = place / "web" / "docker-compose.yaml"
        compose.write_text(compose.read_text().replace("nginx:alpine", PINNED))

    def asks(self, command: str, code: int = 0) -> str:
        return run(f"dstack-cloud -C web {command} --api {self.api}", code)

    def gets(self, command: str, code: int = 0) -> dict[str, object]:
        return shown(f"dstack-cloud -C web {command} --api {self.api}", code)


@pytest.fixture
def job(tmp_path: Path, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
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
        yield Job(tmp_path, site, functions, who)


def test_a_whole_life(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    site = job.site
    rival = Rival(job.api, job.who, job.place / "web", job.place / "config.json")

    def while_it_launches(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "before" and request.method_id == INSERT:
            rival()

    site.rest.hook = while_it_launches
    plan = shown("dstack-cloud -C web plan", 4)
    deployed = job.gets("deploy --timeout 120")
    site.rest.hook = None
    assert deployed["status"] == "running"
    running, planned = deployed["running"], deployed["planned"]
    assert isinstance(running, dict)
    assert isinstance(planned, dict)
    assert (running["external_ip"], running["simulated"]) == (site.address, True)
    assert planned["plan_id"] == plan["plan_id"]
    assert rival.codes == [("deploy.exists", 409), ("deploy.busy", 409)]

    with monkeypatch.context() as stranger, refuses("deploy.forbidden", ApiError) as refused:
        stranger.setenv("DSTACK_CLOUD_TOKEN", job.who.job(repository_id="9"))
        job.asks("stop")
    assert refused.value.status == 403
    with monkeypatch.context() as forger, refuses("deploy.token.signature", ApiError) as refused:
        forger.setenv("DSTACK_CLOUD_TOKEN", job.who.forged())
        job.asks("stop")
    assert refused.value.status == 401

    machine = job.gets("status")["machine"]
    assert isinstance(machine, dict)
    assert (machine["status"], machine["confidential"]) == ("RUNNING", "TDX")
    site.compute.write_console("dstack-web", b"hello from the guest\n")
    assert "hello from the guest" in job.asks("logs -n 3")
    job.asks("fw allow 443 --source 192.0.2.0/24")
    assert "allow  tcp 443" in job.asks("fw list")

    assert "dstack-web" in run(f"dstack-cloud list --api {job.api}")

    assert job.gets("stop --timeout 120")["status"] == "stopped"
    assert not site.guests.is_running("dstack-web")
    assert job.gets("start --timeout 120")["status"] == "running"

    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert site.left() == {}
    assert set(job.functions.answers) == {200}
    assert len(site.rest.called(INSERT)) == 1


def test_a_worker_that_is_killed_in_a_call_of_the_cloud_leaves_one_machine_that_runs(job: Job) -> None:
    site = job.site

    def kill(phase: Literal["before", "after"], request: ApiRequest) -> None:
        if phase == "after" and request.method_id == INSERT and job.functions.worker.starts == 1:
            site.rest.hook = None
            job.functions.worker.kill()
            raise ConnectionError

    site.rest.hook = kill
    deployed = job.gets("deploy --timeout 120")
    assert (deployed["status"], job.functions.worker.starts) == ("running", 2)
    assert 503 in job.functions.answers
    assert site.compute.names("instance") == ["dstack-web"]
    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert site.left() == {}
