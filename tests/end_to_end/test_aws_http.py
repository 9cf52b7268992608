"""An enclave on AWS by the deploy function's HTTP API, its built package at work over the stand-ins."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from shared.measurement.oci import OCI_MANIFEST
from tests.end_to_end.aws_functions import AwsFunctions, WatchedAws, aws_functions
from tests.end_to_end.aws_site import PROFILE, AwsSite, aws_site
from tests.end_to_end.commands import run, shown
from tests.end_to_end.pipeline import Job, become_job, identities
from tests.end_to_end.shared_clock import SharedClock
from tests.fakes.guests import Roots
from tests.packaging.conftest import Artefacts
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar
from tests.shared.net.registry_stand_in import REPOSITORY, Answer, Registry

APP_ID = "22" * 20
COMPOSE = "services:\n  web:\n    image: demo-web\n    ports: ['8443:443']\n"


class Stage(msgspec.Struct):
    """A job, and where what it deploys ends up."""

    job: Job
    site: AwsSite
    functions: AwsFunctions


@pytest.fixture(scope="module")
def aws() -> Iterator[WatchedAws]:
    with WatchedAws() as server:
        yield server


@pytest.fixture
def stage(
    tmp_path: Path, aws: WatchedAws, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    clock = SharedClock(tmp_path / "clock")
    with (
        Roots(clock) as roots,
        identities(tmp_path, clock) as who,
        Registry(tls=who.tls()) as registry,
        aws_site(tmp_path, aws, roots, bytes.fromhex(APP_ID)) as site,
        aws_functions(site, artefacts, tmp_path / "functions", who, clock, monkeypatch) as functions,
    ):
        settings = {"nitro": {"bucket": site.bucket, "iam_instance_profile": PROFILE, "region": "eu-west-1"}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        become_job(monkeypatch, who, tmp_path)
        run(f"dstack-cloud new web --platform nitro --app-id {APP_ID}")
        name_image(tmp_path / "web", registry)
        yield Stage(Job(tmp_path, functions.url, who, monkeypatch), site, functions)
    aws.after = lambda _action: None


def name_image(project: Path, registry: Registry) -> None:
    """Have the project name an image of the registry, and boot files that are downloaded."""
    (project / "docker-compose.yaml").write_text(COMPOSE)
    image = Layout(layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755)))
    registry.manifests[image.root] = (OCI_MANIFEST, image.manifest)
    registry.blobs.update(image.blobs)
    host = registry.host.replace("127.0.0.1", "localhost")
    named = {"image": f"{host}/{REPOSITORY}@{image.root}"}
    for name in ("kernel", "init", "nsm_ko"):
        content = f"{name} bytes".encode()
        registry.answers[f"/boot/{name}"] = Answer(200, {}, content, len(content))
        named[name] = f"https://{host}/boot/{name}@sha256:{sha256(content).hexdigest()}"
    document = json.loads((project / "app.json").read_text())
    document["nitro_config"] |= named
    (project / "app.json").write_text(json.dumps(document))


def test_a_whole_life(stage: Stage, aws: WatchedAws) -> None:
    job = stage.job
    rival = job.rival()
    aws.after = lambda action: rival() if action == "RunInstances" else None
    plan = shown("dstack-cloud -C web plan", 4)
    deployed = job.gets("deploy --timeout 120")
    assert (deployed["status"], deployed["cloud"]) == ("running", "aws-nitro")
    assert (deployed["running"]["external_ip"], deployed["running"]["simulated"]) == (
        stage.site.address,
        True,
    )
    assert deployed["planned"]["plan_id"] == plan["plan_id"]
    assert rival.codes == [("deploy.exists", 409), ("deploy.busy", 409)]

    assert job.refusal("stop", job.who.job(repository_id="9")) == ("deploy.forbidden", 403)
    assert job.refusal("stop", job.who.forged()) == ("api.status", 401)

    assert job.gets("status")["machine"]["confidential"] == "NITRO_ENCLAVE"
    job.asks("logs")
    job.asks("fw allow 8443 --source 192.0.2.0/24")
    assert "tcp 8443" in job.asks("fw list")

    assert "dstack-web" in run(f"dstack-cloud list --api {job.url}")

    assert job.gets("stop --timeout 120")["status"] == "stopped"
    assert job.gets("start --timeout 120")["status"] == "running"

    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert stage.functions.left(deployed["uid"]) == {}
    assert (stage.functions.failed, stage.functions.worker.starts) == (0, 1)


def test_a_worker_that_is_killed_in_a_call_of_the_cloud_leaves_one_machine_that_runs(
    stage: Stage, aws: WatchedAws
) -> None:
    def kill(action: str) -> None:
        if action == "RunInstances" and stage.functions.worker.starts == 1:
            stage.functions.worker.kill()

    aws.after = kill
    job = stage.job
    deployed = job.gets("deploy --timeout 120")
    assert (deployed["status"], stage.functions.worker.starts, stage.functions.failed) == ("running", 2, 1)
    assert len(stage.functions.left(deployed["uid"])["instance"]) == 1
    assert len(aws.orders) == 1
    assert job.gets("remove --yes --timeout 120")["status"] == "removed"
    assert stage.functions.left(deployed["uid"]) == {}
