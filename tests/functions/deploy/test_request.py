"""What is handed in is a project, bounded and without plain secrets, or it is refused by a code."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from functions.deploy.request import (
    MAX_BODY_BYTES,
    MAX_ENCRYPTED_ENV,
    Options,
    check_name,
    check_rule,
    check_upload,
    materialise,
    read_rule,
    read_upload,
)
from shared.compose.env_file import parse_env_file
from shared.errors import ConfigError, ProtocolError
from tests.functions.deploy.uploads import CIPHERTEXT, COMPOSE, app_json, body, project, upload
from tests.shared.refusal import refuses


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_reads_a_project_with_its_ciphertext() -> None:
    files = project() | {
        ".user-config": b"{}",
        "prelaunch.sh": b"true\n",
        "os-image/digest.txt": b"00",
        "os-image/sha256sum.txt": b"00",
        "os-image/measurement.gcp.cbor": b"\xa0",
    }
    raw = body(
        files=files,
        encrypted_env=encoded(CIPHERTEXT),
        env_names=["TOKEN"],
        replace=True,
        wait_for_approval=False,
    )
    read = read_upload(raw)
    assert (read.files, read.encrypted_env, read.env_names) == (files, CIPHERTEXT, ("TOKEN",))
    assert (read.replace, read.wait_for_approval, read.directory) == (True, False, "")


@pytest.mark.parametrize(
    ("platform", "cloud", "got"),
    [
        ("gcp", None, "gcp-tdx"),
        ("nitro", None, "aws-nitro"),
        ("nitro", "local", "local"),
        ("GCP", None, "gcp-tdx"),
    ],
)
def test_the_platform_chooses_the_cloud(platform: str, cloud: Any, got: str) -> None:
    assert check_upload(upload(files=project(platform=platform), cloud=cloud)) == got


@pytest.mark.parametrize("name", ["a", "web", "web-1", "a" * 63])
def test_takes_names_that_every_cloud_takes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", "1web", "Web", "web-", "-web", "a" * 64, "web_1", "wéb", "web\n", "a/b", "."]
)
def test_refuses_other_names(name: str) -> None:
    with refuses("deploy.request.name", ProtocolError):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../app.json", "file"),
        ("a/../../b", "file"),
        ("/etc/passwd", "file"),
        ("./docker-compose.yaml", "file"),
        ("a\0b", "file"),
        ("a\\..\\b", "file"),
        ("%2e%2e/x", "file"),
        ("a" * 201, "file"),
        ("état", "file"),
        ("", "file"),
        ("state.json", "file"),
        ("shared/app-compose.json", "file"),
        ("os-image/disk.raw", "file"),
        ("Dockerfile", "file"),
        (".env", "plaintext_env"),
        (".ENV", "plaintext_env"),
        (".env.production", "plaintext_env"),
        ("conf/.env", "plaintext_env"),
        ("web.env", "plaintext_env"),
    ],
)
def test_refuses_files_that_no_project_has(name: str, code: str) -> None:
    with refuses(f"deploy.request.{code}", ProtocolError):
        read_upload(body(files=project() | {name: b"x"}))


@pytest.mark.parametrize("field", ["docker_compose_file", "app_compose_file", "prelaunch_script", "env_file"])
@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "~/x\0", "os-image/x", "state.json", "shared/x"]
)
def test_app_json_names_no_place_outside_of_the_project(field: str, name: str) -> None:
    with refuses("deploy.request.file", ProtocolError):
        read_upload(body(files=project(**{field: name})))


@pytest.mark.parametrize(
    "names",
    [
        {"docker_compose_file": "a", "prelaunch_script": "a/b"},
        {"docker_compose_file": "a/b", "prelaunch_script": "a"},
        {"docker_compose_file": "a/b/c", "env_file": "a"},
        {"docker_compose_file": "a", "env_file": "a/.env"},
    ],
)
def test_refuses_files_of_which_one_would_be_a_directory(names: dict[str, str]) -> None:
    files = {"app.json": app_json(**names)} | {names[field]: COMPOSE for field in names.keys() - {"env_file"}}
    with refuses("deploy.request.file", ProtocolError):
        read_upload(body(files=files, encrypted_env=encoded(CIPHERTEXT), env_names=["TOKEN"]))


def test_a_file_of_variables_has_no_other_name() -> None:
    with refuses("deploy.request.plaintext_env", ProtocolError):
        read_upload(body(files=project(env_file="secrets.txt") | {"secrets.txt": b"A=1"}))
    with refuses("deploy.request.plaintext_env", ProtocolError):
        files = {"app.json": app_json(docker_compose_file=".env"), ".env": b"A=1"}
        read_upload(body(files=files))


def test_refuses_text_where_ciphertext_belongs() -> None:
    secret = b"TOKEN=hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2\n"
    with refuses("deploy.request.plaintext_env", ProtocolError) as refused:
        read_upload(body(encrypted_env=encoded(secret), env_names=["TOKEN"]))
    assert "hunter2" not in repr(refused.value)


def test_repeats_no_value_that_stands_in_the_place_of_a_name() -> None:
    with refuses("deploy.request.env_names", ProtocolError) as refused:
        read_upload(body(encrypted_env=encoded(CIPHERTEXT), env_names=["TOKEN=hunter2"]))
    assert "hunter2" not in repr(refused.value)


def test_an_upload_shows_no_content() -> None:
    assert (
        repr(upload(encrypted_env=CIPHERTEXT))
        == "Upload(name='web', files=['app.json', 'docker-compose.yaml'])"
    )


def test_takes_the_largest_env_and_not_a_byte_more() -> None:
    largest = bytes(1) * MAX_ENCRYPTED_ENV
    assert len(read_upload(body(encrypted_env=encoded(largest))).encrypted_env) == 256 * 1024
    with refuses("deploy.request.env_size", ProtocolError):
        read_upload(body(encrypted_env=encoded(largest + b"\0")))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"encrypted_env": encoded(bytes(59))}, "encrypted_env"),
        ({"env_names": ["A"]}, "encrypted_env"),
        ({"encrypted_env": encoded(CIPHERTEXT), "env_names": ["A"] * 1025}, "env_names"),
        ({"encrypted_env": encoded(CIPHERTEXT), "env_names": ["A" * 255] * 300}, "env_names"),
        ({"encrypted_env": encoded(CIPHERTEXT), "env_names": ["A" * 256]}, "env_names"),
        ({"encrypted_env": encoded(CIPHERTEXT), "env_names": ["A\nB"]}, "env_names"),
        ({"encrypted_env": "AAA"}, "base64"),
        ({"encrypted_env": "AA AA"}, "base64"),
        ({"encrypted_env": "ÄÄÄÄ"}, "base64"),
        ({"env": {"A": "1"}}, "field"),
        ({"directory": "/etc"}, "field"),
        ({"cloud": "azure"}, "field"),
        ({"cloud": "aws-nitro"}, "cloud"),
        ({"replace": "yes"}, "field"),
        ({"files": []}, "field"),
        ({"files": {}}, "missing"),
        ({"files": {f"f{number}": "" for number in range(9)}}, "files"),
        ({"files": {"app.json": encoded(app_json())}}, "missing"),
        ({"options": {"app_id": "12"}}, "option"),
        ({"options": {"device_id": "zz" * 32}}, "option"),
        ({"options": {"may_drop": ["a"] * 65}}, "option"),
        ({"options": {"debug": True}}, "field"),
    ],
)
def test_refuses_bodies_that_do_not_fit(changes: dict[str, Any], code: str) -> None:
    with refuses(f"deploy.request.{code}", ProtocolError):
        read_upload(json.dumps(json.loads(body()) | changes).encode())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "json.syntax"),
        (b"{", "json.syntax"),
        (b"\xff{}", "json.syntax"),
        (b'{"name": "a", "name": "b", "files": {}}', "json.duplicate_key"),
        (b'{"files": {"app.json": "", "app.json": ""}}', "json.duplicate_key"),
        (b'{"name": NaN, "files": {}}', "json.syntax"),
        (b"[" * 9 + b"]" * 9, "json.depth"),
        (b"[]", "field"),
        (b'{"name": "web", "files": {"\\ud800": ""}}', "json.syntax"),
        (b'{"name": "\\ud800", "files": {}}', "name"),
    ],
)
def test_refuses_what_is_no_strict_json(raw: bytes, code: str) -> None:
    with refuses(f"deploy.request.{code}", ProtocolError):
        read_upload(raw)


def test_the_path_and_the_body_name_one_deployment() -> None:
    assert read_upload(body(name=""), "web").name == "web"
    assert read_upload(body(), "web").name == "web"
    with refuses("deploy.request.name", ProtocolError):
        read_upload(body(), "other")


def test_bounds_the_body_before_it_is_parsed() -> None:
    with refuses("deploy.request.size", ProtocolError):
        read_upload(b"[" * (MAX_BODY_BYTES + 1))


def test_bounds_each_file() -> None:
    for name, size in (
        ("docker-compose.yaml", (1 << 20) + 1),
        ("prelaunch.sh", (1 << 20) + 1),
        ("os-image/digest.txt", 1025),
        ("os-image/measurement.gcp.cbor", 4097),
        (".user-config", (50 << 20) + 1),
    ):
        with refuses("deploy.request.size", ProtocolError):
            check_upload(upload(files=project() | {name: bytes(size)}))
    with refuses("deploy.request.size", ProtocolError):
        check_upload(upload(files=project() | {"app.json": bytes((256 << 10) + 1)}))


def test_bounds_all_files_together() -> None:
    files = project(app_compose_file="app-compose.json") | {
        "app-compose.json": bytes(40 << 20),
        ".user-config": bytes(40 << 20),
    }
    with refuses("deploy.request.size", ProtocolError):
        check_upload(upload(files=files))


def test_unpacks_nothing() -> None:
    bomb = gzip.compress(bytes(1 << 20))
    read = read_upload(body(files=project() | {".user-config": bomb}))
    assert read.files[".user-config"] == bomb


@pytest.mark.parametrize(
    "changes",
    [
        {"gcp_config": {"boot_image_tar": "/etc"}},
        {"aws_config": {"boot_image_tar": "disk.raw"}},
        *(
            {"platform": "nitro", "nitro_config": {field: place}}
            for field in ("kernel", "init", "nsm_ko")
            for place in (
                "/boot/vmlinuz",
                "boot/bzImage",
                "https://example.com/kernel",
                "http://example.com/k@sha256:" + "0" * 64,
                "file:///etc/passwd@sha256:" + "0" * 64,
                "https://example.com/k@sha256:12",
            )
        ),
        *(
            {"platform": "nitro", "nitro_config": {"image": place}}
            for place in (
                "layout",
                "/var/lib/image.tar",
                "../image.tar",
                "./image@sha256:" + "0" * 64,
                "/srv/image.tar@sha256:" + "0" * 64,
                "nginx:latest",
                "nginx@sha256:12",
            )
        ),
    ],
)
def test_a_request_names_no_file_of_the_machine_that_plans(changes: dict[str, Any]) -> None:
    with refuses("deploy.request.path", ProtocolError):
        read_upload(body(files=project(**changes)))


def test_a_project_of_this_machine_may_name_its_files() -> None:
    files = project(platform="nitro", nitro_config={"image": "layout", "kernel": "boot/bzImage"})
    assert check_upload(upload(files=files, directory="/home/me/web")) == "aws-nitro"


def test_takes_images_and_boot_files_by_digest() -> None:
    pin = "@sha256:" + "0" * 64
    nitro = {"image": f"ghcr.io/acme/web{pin}"} | {
        name: f"https://example.com/{name}{pin}" for name in ("kernel", "init", "nsm_ko")
    }
    assert check_upload(upload(files=project(platform="nitro", nitro_config=nitro))) == "aws-nitro"


def test_says_what_to_change_for_nitro_tpm() -> None:
    with refuses("deploy.request.platform", ProtocolError) as refused:
        check_upload(upload(files=project(platform="aws")))
    assert "set platform to nitro" in refused.value.message


def test_an_app_json_that_does_not_read_is_refused_as_everywhere() -> None:
    with refuses("project.app_json.platform", ConfigError):
        check_upload(upload(files=project(platform="azure")))
    with refuses("project.app_json.duplicate_key", ConfigError):
        check_upload(upload(files={"app.json": b'{"name":"a","name":"b"}', "docker-compose.yaml": COMPOSE}))


def test_an_app_compose_of_its_own_needs_no_other_file() -> None:
    check_upload(upload(files={"app.json": app_json(app_compose_file="c.json"), "c.json": b"{}"}))
    with refuses("deploy.request.missing", ProtocolError):
        check_upload(upload(files={"app.json": app_json(app_compose_file="c.json")}))


def test_writes_the_files_with_names_of_variables_alone(tmp_path: Path) -> None:
    files = project(docker_compose_file="deploy/compose.yaml") | {".user-config": b"{}"}
    files["deploy/compose.yaml"] = files.pop("docker-compose.yaml")
    materialise(files, tmp_path / "project", ["B", "A", "B"])
    written = {
        str(path.relative_to(tmp_path / "project")): path.read_bytes()
        for path in (tmp_path / "project").rglob("*")
        if path.is_file()
    }
    assert written.pop(".env") == b"A=\nB=\n"
    assert written == files
    assert parse_env_file((tmp_path / "project" / ".env").read_bytes()).values == {"A": "", "B": ""}


def test_writes_no_env_where_there_are_no_variables(tmp_path: Path) -> None:
    materialise(project(), tmp_path / "project")
    assert not (tmp_path / "project" / ".env").exists()


@pytest.mark.parametrize("name", ["../escaped", "/srv/escaped", "a/../../escaped"])
def test_writes_nothing_outside_of_its_directory(tmp_path: Path, name: str) -> None:
    with refuses("deploy.request.file", ProtocolError):
        materialise(project() | {name: b"x"}, tmp_path / "project")
    assert list(tmp_path.rglob("*")) == []


RULE: dict[str, Any] = {"action": "allow", "port": 443, "sources": ["192.0.2.0/24"]}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "443"}, "field"),
        ({"protocol": "icmp"}, "field"),
        ({"action": "log"}, "field"),
        ({"sources": []}, "source"),
        ({"sources": ["192.0.2.1/24"]}, "source"),
        ({"sources": ["anywhere"]}, "source"),
        ({"sources": ["192.0.2.0/24"] * 65}, "source"),
        ({"sources": ["0.0.0.0/0"]}, "anywhere"),
        ({"sources": ["::/0"]}, "anywhere"),
        ({"sources": ["0.0.0.0/1", "128.0.0.0/1"]}, "anywhere"),
        ({"sources": ["0.0.0.0/7"]}, "anywhere"),
        ({"sources": ["2000::/3"]}, "anywhere"),
    ],
)
def test_refuses_rules_that_are_none(changes: dict[str, Any], code: str) -> None:
    with refuses(f"deploy.request.{code}", ProtocolError):
        check_rule(read_rule(json.dumps(RULE | changes).encode()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sources": ["10.0.0.0/8", "2001::/16"]},
        {"sources": ["0.0.0.0/0"], "anywhere": True},
        {"action": "deny", "sources": ["0.0.0.0/0"]},
    ],
)
def test_takes_rules_that_say_what_they_mean(changes: dict[str, Any]) -> None:
    check_rule(read_rule(json.dumps(RULE | changes).encode()))


def test_options_are_what_a_plan_takes() -> None:
    check_upload(
        upload(options=Options(app_id="0x" + "11" * 20, device_id="22" * 32, may_drop=("features",)))
    )
