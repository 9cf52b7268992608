"""An app's secrets and its boot's hints, from a deployer's .env to the app, by the command and by the API."""

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.upload import Sealing, project_upload, with_env
from functions.clouds.local_vendors import LocalVendors
from functions.plan.project_files import read_config
from shared.measurement.oci import OCI_MANIFEST
from tests.end_to_end.app_kms import AppKms, app_kms
from tests.end_to_end.commands import become, run, shown
from tests.end_to_end.gcp_service import Service
from tests.end_to_end.gcp_site import user_environment
from tests.end_to_end.pipeline import Job, become_job, identities
from tests.end_to_end.shared_clock import SharedClock
from tests.end_to_end.test_local import start_function
from tests.functions.clouds.local_deployments import wait_until
from tests.packaging.conftest import Artefacts
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar
from tests.shared.net.registry_stand_in import REPOSITORY, Answer, Registry

APP_ID = "22" * 20
EPOCH = 3
COMPOSE = "services:\n  web:\n    image: demo-web\n"
APP = """
import os, signal, sys
with open(sys.argv[1] + ".new", "w") as file:
    file.write(os.environ.get("TOKEN", "none"))
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.pause()
"""


def stand_in(place: Path) -> str:
    """Return the command of an app that writes down its variable."""
    return shlex.join([sys.executable, "-I", "-c", APP, str(place / "seen")])


def written(place: Path) -> str:
    """Return what the app wrote, and take it away. A deployment counts as running when its agent answers."""
    wait_until((place / "seen").exists)
    text = (place / "seen").read_text()
    (place / "seen").unlink()
    return text


def image(kms: AppKms) -> Layout:
    """Return the image of an app that takes one variable, of a key epoch of its own."""
    config = f"""
app_id = "0x{APP_ID}"
key_epoch = {EPOCH}
[kms]
url = "{kms.url}"
root_ca = "/etc/dstack/kms.pem"
[trust]
nitro_roots = ["/etc/dstack/vendor.pem"]
[boot]
command = ["/bin/app"]
allowed_envs = ["TOKEN"]
proxy_port = 3128
progress_url = "parent"
"""
    return Layout(
        layer_tar(
            directory("etc"),
            directory("etc/dstack"),
            file("etc/dstack/enclave.toml", config.encode()),
            file("etc/dstack/kms.pem", kms.root_ca),
            file("etc/dstack/vendor.pem", kms.vendor),
        )
    )


def make_project(place: Path, kms: AppKms, named: dict[str, str]) -> Path:
    """Make the project `web`, whose app has one variable."""
    (place / "config.json").write_text(json.dumps({"services": {"kms_urls": [kms.url]}}))
    (place / "kms-whitelist.json").write_text(kms.whitelist())
    run(f"dstack-cloud new web --platform nitro --app-id {APP_ID}")
    project = place / "web"
    (project / "docker-compose.yaml").write_text(COMPOSE)
    document = json.loads((project / "app.json").read_text())
    document["nitro_config"] |= {"egress": [kms.address]} | named
    (project / "app.json").write_text(json.dumps(document))
    (project / ".env").write_text("TOKEN=first\n")
    return project


@pytest.fixture
def by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    become(monkeypatch, user_environment(tmp_path) | {"DSTACK_LOCAL_APP": stand_in(tmp_path)}, tmp_path)
    vendors = LocalVendors(tmp_path / "state" / "dstack-cloud" / "local" / "vendors", sys.executable)
    with app_kms(tmp_path, vendors) as kms:
        named = {"image": "layout", "kernel": "kernel", "init": "init", "nsm_ko": "nsm.ko"}
        project = make_project(tmp_path, kms, named)
        for name in ("kernel", "init", "nsm.ko"):
            (project / name).write_bytes(f"{name} bytes".encode())
        image(kms).write(project / "layout")
        yield project
        run("dstack-cloud -C web remove --yes")


def machines(place: Path) -> list[Path]:
    return list((place / "state" / "dstack-cloud" / "local" / "machines").iterdir())


def test_an_app_deployed_by_the_command_reads_its_variable_and_a_changed_one_needs_no_new_image(
    by_command: Path, tmp_path: Path
) -> None:
    first = shown("dstack-cloud -C web deploy --local")
    assert (first["status"], first["env_names"]) == ("running", ["TOKEN"])
    assert written(tmp_path) == "first"

    (by_command / ".env").write_text("TOKEN=second\n")
    second = shown("dstack-cloud -C web deploy --local --delete")
    assert second["status"] == "running"
    assert written(tmp_path) == "second"
    assert second["planned"] == first["planned"]
    assert second["encrypted_env"] != first["encrypted_env"]

    assert shown("dstack-cloud -C web remove --yes")["status"] == "removed"
    assert machines(tmp_path) == []


@pytest.mark.usefixtures("by_command")
def test_n71_a_blob_that_was_changed_in_the_store_reaches_no_machine(tmp_path: Path) -> None:
    assert shown("dstack-cloud -C web deploy --local")["status"] == "running"
    assert written(tmp_path) == "first"
    shown("dstack-cloud -C web stop")
    (blob,) = (
        path for path in (tmp_path / "state" / "dstack-cloud" / "blobs").rglob("*") if path.name == stored()
    )
    blob.chmod(0o600)
    blob.write_bytes(flipped(blob.read_bytes()))
    failed = shown("dstack-cloud -C web start", 1)
    assert failed["failure"]["code"] == "deploy.blob.corrupt"
    assert not (tmp_path / "seen").exists()


def stored() -> str:
    found = shown("dstack-cloud -C web status")["encrypted_env"]
    assert isinstance(found, str)
    return found


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_n71_a_ciphertext_that_does_not_open_stops_the_boot_and_the_deployment_says_why(
    by_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.keys.env_encryption import encrypt_env  # noqa: PLC0415 - what is bent

    monkeypatch.setattr(
        "functions.deploy.env_sealing.encrypt_env", lambda *a, **k: flipped(encrypt_env(*a, **k))
    )
    failed = shown("dstack-cloud -C web deploy --local", 1)
    assert failed["failure"]["code"] == "local.machine.ended"
    assert "[env.ciphertext.tag]" in failed["failure"]["message"]
    assert not (tmp_path / "seen").exists()
    assert by_command.exists()


# ---- by the API ----


class Stage(msgspec.Struct):
    """A job, its function, and the place of both."""

    job: Job
    service: Service
    place: Path

    def deploys_tampered(self) -> dict[str, Any]:
        """Hand in what no enclave can open, and return what becomes of it."""
        project, config = self.place / "web", read_config(self.place / "config.json")
        sealed = with_env(
            project_upload(project, config),
            project,
            config,
            Sealing(signers=self.place / "kms-whitelist.json"),
        )
        bent = msgspec.structs.replace(sealed, directory="", encrypted_env=flipped(sealed.encrypted_env))
        deployments = self.job.deployments()
        deployments.deploy(msgspec.structs.replace(bent, cloud="local", replace=True), "")
        return deployments.follow(bent.name, lambda _event: None, timeout=120)


class Gate(ThreadingHTTPServer):
    """Where guests reach the function, at an address that is known before it starts."""

    daemon_threads = True
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Gate

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {"Content-Type": self.headers["Content-Type"]}
        status, _, _ = self.server.service.request("POST", self.path, headers, body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@contextmanager
def gate() -> Iterator[Gate]:
    made = Gate(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def stage(tmp_path: Path, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    clock = SharedClock(tmp_path / "clock")
    place = tmp_path / "function"
    with (
        identities(tmp_path, clock) as who,
        Registry(tls=who.tls()) as registry,
        gate() as guests,
        app_kms(tmp_path, LocalVendors(place / "machines" / "vendors", sys.executable)) as kms,
    ):
        become_job(monkeypatch, who, tmp_path)
        make_project(tmp_path, kms, publish(image(kms), registry))
        service = start_function(
            place,
            artefacts.wheel(),
            who,
            clock,
            DSTACK_INTERNAL_HOSTS="localhost",
            DSTACK_LOCAL_APP=stand_in(tmp_path),
            DSTACK_PROGRESS_URL=guests.url,
        )
        guests.service = service
        job = Job(tmp_path, service.url, who, monkeypatch)
        try:
            yield Stage(job, service, tmp_path)
        finally:
            job.asks("remove --yes --timeout 120")
            service.close()


def publish(layout: Layout, registry: Registry) -> dict[str, str]:
    """Put an image and boot files into a registry, and return how a project names them."""
    registry.manifests[layout.root] = (OCI_MANIFEST, layout.manifest)
    registry.blobs.update(layout.blobs)
    host = registry.host.replace("127.0.0.1", "localhost")
    named = {"image": f"{host}/{REPOSITORY}@{layout.root}"}
    for name in ("kernel", "init", "nsm_ko"):
        content = f"{name} bytes".encode()
        registry.answers[f"/boot/{name}"] = Answer(200, {}, content, len(content))
        named[name] = f"https://{host}/boot/{name}@sha256:{sha256(content).hexdigest()}"
    return named


def test_an_app_deployed_by_the_api_reads_its_variable_and_tells_how_it_boots(stage: Stage) -> None:
    deployed = stage.job.gets("deploy --local --timeout 120")
    assert (deployed["status"], deployed["env_names"]) == ("running", ["TOKEN"])
    assert written(stage.place) == "first"

    def done() -> list[str]:
        told = stage.job.gets("status")["unverified_progress"]
        return [one["step"] for one in told if one["status"] == "done"]

    wait_until(lambda: "app" in done())
    assert done() == ["kernel", "app_id", "network", "keys", "environment", "agent", "app"]
    assert "progress       unverified: app done" in stage.job.asks("status")


def test_n71_a_tampered_blob_stops_the_boot_and_the_guests_own_code_is_shown_as_a_hint(stage: Stage) -> None:
    failed = stage.deploys_tampered()
    assert failed["failure"]["code"] == "local.machine.ended"
    told = "the guest said, unverified, that environment failed [env.ciphertext.tag]"
    assert told in failed["failure"]["message"]
    assert failed["unverified_progress"][-1]["code"] == "env.ciphertext.tag"
    assert not (stage.place / "seen").exists()
