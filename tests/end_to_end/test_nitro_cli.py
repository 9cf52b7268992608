"""An enclave on AWS from `new` to `remove`, by the commands that a user types."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.keys.env_encryption import EnvPolicy, decrypt_env
from tests.end_to_end.aws_site import PROFILE, AwsSite, aws_site
from tests.end_to_end.commands import become, run, shown
from tests.fakes.guests import Roots
from tests.fakes.nitro_aws import NitroAws
from tests.functions.deploy.kms_stand_in import KmsStandIn, serving
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

APP_ID = "22" * 20
ENCLAVE_TOML = f"""
app_id = "0x{APP_ID}"
key_epoch = 3
[kms]
url = "https://kms.example.com"
[boot]
command = ["/app"]
allowed_envs = ["TOKEN"]
"""
COMPOSE = "services:\n  web:\n    image: demo-web\n    ports: ['8443:443']\n"


@pytest.fixture(scope="module")
def aws() -> Iterator[NitroAws]:
    with NitroAws() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, aws: NitroAws, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsSite]:
    with aws_site(tmp_path, aws, roots, bytes.fromhex(APP_ID)) as made:
        become(monkeypatch, made.environment, tmp_path)
        settings = {"nitro": {"bucket": made.bucket, "iam_instance_profile": PROFILE, "region": "eu-west-1"}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        run(f"dstack-cloud new web --platform nitro --app-id {APP_ID}")
        write_image(tmp_path / "web")
        yield made


def write_image(project: Path) -> None:
    """Give the project an image of its own, and the files that an enclave boots with."""
    (project / "docker-compose.yaml").write_text(COMPOSE)
    for name in ("kernel", "init", "nsm.ko"):
        (project / name).write_bytes(f"{name} bytes".encode())
    Layout(layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755))).write(project / "layout")
    document = json.loads((project / "app.json").read_text())
    document["nitro_config"] |= {"image": "layout", "kernel": "kernel", "init": "init", "nsm_ko": "nsm.ko"}
    (project / "app.json").write_text(json.dumps(document))


def test_a_whole_life(site: AwsSite) -> None:
    plan = shown("dstack-cloud -C web plan", 4)
    run("dstack-cloud -C web doctor")

    deployed = shown("dstack-cloud -C web deploy")
    assert (deployed["status"], deployed["cloud"]) == ("running", "aws-nitro")
    assert deployed["running"]["external_ip"] == site.address
    assert deployed["running"]["simulated"] is True
    assert deployed["planned"]["plan_id"] == plan["plan_id"]
    assert shown("dstack-cloud -C web plan")["outcome"] == "nothing"

    status = shown("dstack-cloud -C web status")
    assert status["machine"]["confidential"] == "NITRO_ENCLAVE"
    run("dstack-cloud -C web logs")
    run("dstack-cloud -C web fw allow 8443 --source 192.0.2.0/24")
    assert "tcp 8443" in run("dstack-cloud -C web fw list")

    assert shown("dstack-cloud -C web stop")["status"] == "stopped"
    assert shown("dstack-cloud -C web start")["status"] == "running"

    assert shown("dstack-cloud -C web remove --yes")["status"] == "removed"
    assert site.left(deployed["uid"]) == {}


def test_a_variable_is_sealed_for_the_images_key_epoch_and_offered_by_the_parent(
    site: AwsSite, tmp_path: Path
) -> None:
    project = tmp_path / "web"
    with serving(KmsStandIn(seed=7, timestamp=int(time.time())), tmp_path) as kms:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"services": {"kms_urls": [kms.url]}}))
        whitelist = {"trusted_signers": [kms.signer.hex()]}
        (tmp_path / "kms-whitelist.json").write_text(json.dumps(whitelist))
        places = directory("etc"), directory("etc/dstack")
        measured = file("etc/dstack/enclave.toml", ENCLAVE_TOML.encode())
        Layout(layer_tar(*places, measured, file("app", b"#!/bin/sh\n", mode=0o755))).write(project / "new")
        document = json.loads((project / "app.json").read_text())
        document["nitro_config"]["image"] = "new"
        (project / "app.json").write_text(json.dumps(document))
        (project / ".env").write_text("TOKEN=hunter2\n")
        deployed = shown("dstack-cloud -C web deploy")
    assert (deployed["status"], deployed["env_names"]) == ("running", ["TOKEN"])
    (parent,) = (one for one in site.aws.parents.values() if one.enclaves())
    offered = parent.file("/var/lib/dstack/encrypted-env").read_bytes()
    key = kms.private_key(bytes.fromhex(APP_ID), epoch=3)
    policy = EnvPolicy(allowed=frozenset({"TOKEN"}))
    opened = decrypt_env(offered, key, policy=policy, app_id=bytes.fromhex(APP_ID))
    assert opened.values == {"TOKEN": "hunter2"}
    assert shown("dstack-cloud -C web remove --yes")["status"] == "removed"
    assert site.left(deployed["uid"]) == {}


def test_n80_an_instance_without_enclaves_is_caught(site: AwsSite) -> None:
    site.aws.lies["enclave"] = "false"
    refused = shown("dstack-cloud -C web deploy", 3)
    assert refused["failure"]["code"] == "deploy.machine.confidential"
    assert "instance" not in site.left(refused["uid"])


def test_another_image_is_caught_by_its_evidence(site: AwsSite, tmp_path: Path) -> None:
    run_enclave = site.aws.hooks.on_run_enclave
    other = tmp_path / "other"
    other.mkdir()
    write_image_of_another_app(other)
    eif = tmp_path / "other.eif"
    run(
        f"dstack-cloud image build {other}/layout --kernel {other}/kernel --init {other}/init "
        f"--nsm-ko {other}/nsm.ko --output {eif}"
    )
    site.aws.hooks.on_run_enclave = lambda parent, _eif, cid: run_enclave(parent, eif, cid)
    refused = shown("dstack-cloud -C web deploy", 3)
    assert refused["failure"]["code"] == "deploy.evidence.workload"
    assert "instance" not in site.left(refused["uid"])


def write_image_of_another_app(directory_: Path) -> None:
    for name in ("kernel", "init", "nsm.ko"):
        (directory_ / name).write_bytes(f"{name} bytes".encode())
    Layout(layer_tar(directory("etc"), file("app", b"another", mode=0o755))).write(directory_ / "layout")
