"""Simulated machines on this computer, from `new` to `remove`: by the command, and by the function's API."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.commands import become, run, shown
from tests.end_to_end.gcp_service import SERVE, Service
from tests.end_to_end.gcp_site import user_environment
from tests.end_to_end.pipeline import GRANTS, Identities, Job, become_job, identities
from tests.end_to_end.shared_clock import PRELUDE, SharedClock
from tests.fakes.os_images import write_whole_os_image
from tests.packaging.conftest import Artefacts

PINNED = "nginx@sha256:" + "ab" * 32


def make_project(place: Path) -> None:
    """Make the project `web`, with an OS image that lies where commands look for it."""
    write_whole_os_image(place / "images")
    (place / "config.json").write_text(json.dumps({"image_search_paths": [str(place / "images")]}))
    run("dstack-cloud new web --kp tpm")
    compose = place / "web" / "docker-compose.yaml"
    compose.write_text(compose.read_text().replace("nginx:alpine", PINNED))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    become(monkeypatch, user_environment(tmp_path), tmp_path)
    make_project(tmp_path)
    yield tmp_path
    run("dstack-cloud -C web remove --yes")


def test_a_whole_life_by_the_command(here: Path) -> None:
    plan = shown("dstack-cloud -C web plan", 4)
    run("dstack-cloud -C web doctor --local")
    deployed = shown("dstack-cloud -C web deploy --local")
    assert (deployed["status"], deployed["cloud"]) == ("running", "local")
    assert deployed["running"]["simulated"] is True
    assert deployed["planned"]["plan_id"] == plan["plan_id"]
    assert shown("dstack-cloud -C web plan")["outcome"] == "nothing"
    assert shown("dstack-cloud -C web status")["machine"]["status"] == "RUNNING"
    assert "evidence" in run("dstack-cloud -C web logs -n 5")
    assert shown("dstack-cloud -C web stop")["status"] == "stopped"
    assert shown("dstack-cloud -C web start")["status"] == "running"
    assert shown("dstack-cloud -C web remove --yes")["status"] == "removed"
    assert list((here / "state" / "dstack-cloud" / "local" / "machines").iterdir()) == []


def test_a_whole_life_by_the_functions_api(
    tmp_path: Path, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SharedClock(tmp_path / "clock")
    with identities(tmp_path, clock) as who:
        become_job(monkeypatch, who, tmp_path)
        make_project(tmp_path)
        service = start_function(tmp_path / "function", artefacts.wheel(), who, clock)
        with closing(service):
            job = Job(tmp_path, service.url, who, monkeypatch)
            deployed = job.gets("deploy --local --timeout 120")
            assert (deployed["status"], deployed["cloud"]) == ("running", "local")
            assert deployed["running"]["simulated"] is True
            assert job.gets("status")["machine"]["status"] == "RUNNING"
            assert "evidence" in job.asks("logs -n 5")
            assert job.gets("stop --timeout 120")["status"] == "stopped"
            assert job.gets("start --timeout 120")["status"] == "running"
            assert job.gets("remove --yes --timeout 120")["status"] == "removed"
            assert list((tmp_path / "function" / "machines" / "machines").iterdir()) == []


def start_function(
    place: Path, wheel: Path, who: Identities, clock: SharedClock, **variables: str
) -> Service:
    """Start the deploy function as one process with everything on this machine, and these `variables`.

    It runs from the built wheel: the packages for clouds leave simulated machines out.
    """
    place.mkdir(exist_ok=True)
    source = wheel / "functions" / "deploy" / "gcp.py"
    options = ["--target", "deploy", "--source", str(source), "--host", "127.0.0.1", "--port", "0"]
    command = [sys.executable, "-c", PRELUDE + SERVE, str(wheel), str(wheel), *options]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "TMPDIR": str(place),
        "GUNICORN_LOG_LEVEL": "info",
        "THREADS": "4",
        "SSL_CERT_FILE": str(who.ca_file),
        "DSTACK_STORE": f"sqlite:{place / 'store.sqlite'}",
        "DSTACK_BLOBS": f"dir:{place / 'blobs'}",
        "DSTACK_QUEUE": "here",
        "DSTACK_CLOUDS": "local",
        "DSTACK_LOCAL_DIR": str(place / "machines"),
        "DSTACK_GRANTS": GRANTS.decode(),
        "DSTACK_CACHE_DIR": str(place / "cache"),
        **clock.environment(who.hosts),
        **variables,
    }
    return Service("dstack-deploy", command, environment, place)
