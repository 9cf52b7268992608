"""The files of a guest are exactly the configs that its app-compose measures."""

import json
from pathlib import Path
from typing import Any

import pytest

from enclave.simulator.compose import materialise, read_compose
from shared.errors import DstackError
from tests.enclave.gcp import app_compose


def _with_file(compose: Any, **changes: Any) -> bytes:
    text = compose if isinstance(compose, str) else json.dumps(compose)
    needed = {"manifest_version": 2, "name": "test", "runner": "docker-compose"}
    return json.dumps(needed | {"docker_compose_file": text} | changes).encode()


def test_configs_become_files(tmp_path: Path) -> None:
    compose = read_compose(app_compose({"/etc/a.toml": b"a = 1", "/b": "é".encode()}, no_instance_id=True))
    assert compose.no_instance_id
    assert compose.key_provider == "kms"
    materialise(compose.files, tmp_path / "root")
    written = {
        "/" + path.relative_to(tmp_path / "root").as_posix(): path.read_bytes()
        for path in (tmp_path / "root").rglob("*")
        if path.is_file()
    }
    assert written == {"/etc/a.toml": b"a = 1", "/b": "é".encode()}


def test_a_config_that_no_service_mounts_is_no_file() -> None:
    compose = {"services": {"a": {}}, "configs": {"unused": {"content": "x"}}}
    assert read_compose(_with_file(compose)).files == {}
    assert read_compose(_with_file(compose)).key_provider == "none"


def test_a_compose_file_may_be_yaml() -> None:
    text = """\
services:
  web:
    image: web:1
    ports: ['80:80']
    configs:
      - short
      - {source: long, target: /etc/long, mode: 0440}
  db:
    build: .
configs:
  short:
    content: |
      a line
  long: {content: yes}
"""
    compose = read_compose(_with_file(text, init_script=["a", "b"], manifest_version="3"))
    assert compose.services == {"web": "web:1", "db": ""}
    assert compose.files == {"/short": b"a line\n", "/etc/long": b"yes"}
    assert len(compose.init_script_hashes) == 2


def test_a_script_has_no_services() -> None:
    compose = read_compose(_with_file("", runner="bash", bash_script="true"))
    assert (compose.services, compose.runner, compose.key_provider) == ({}, "bash", "none")


@pytest.mark.parametrize(
    "compose",
    [
        "services: {}",
        "services: [",
        "services: {web: {image: a}}\n---\nservices: {}",
        "services: {web: {configs: [{source: a, target: /a}]}}\nconfigs: {a: {file: ./a}}",
        "",
        {"services": []},
        {"services": {"a": {"configs": [{"source": "absent", "target": "/a"}]}}},
        {"services": {"a": {"configs": ["short"]}}, "configs": {}},
        {"services": {}, "configs": {"a": {"file": "./a"}}},
        {
            "services": {"a": {"configs": [{"source": "c", "target": "a"}]}},
            "configs": {"c": {"content": ""}},
        },
        {
            "services": {"a": {"configs": [{"source": "c", "target": "/../a"}]}},
            "configs": {"c": {"content": ""}},
        },
    ],
)
def test_refuses_what_it_would_not_run_like_docker(compose: Any) -> None:
    with pytest.raises(DstackError) as refusal:
        read_compose(_with_file(compose))
    assert refusal.value.code == "simulator.compose"


def test_refuses_a_key_provider_that_it_does_not_have() -> None:
    with pytest.raises(DstackError) as refusal:
        read_compose(_with_file({"services": {}}, key_provider="local"))
    assert refusal.value.code == "simulator.compose"


def test_refuses_what_is_no_app_compose() -> None:
    with pytest.raises(DstackError) as refusal:
        read_compose(b"[]")
    assert refusal.value.code == "compose.type"
