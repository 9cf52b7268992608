"""Compose room: app-compose documents, their linter and diff, YAML, and the files of a project."""

import json

import hypothesis.strategies as st

from shared.chain.calldata import FUNCTIONS, decode_call, encode_call
from shared.compose.app_compose import canonical_bytes, parse_app_compose
from shared.compose.diff import diff_app_compose, require_progress
from shared.compose.env_file import parse_env_file
from shared.compose.lint import lint_app_compose
from shared.compose.model import read_app_compose
from shared.compose.project import (
    GlobalConfig,
    gcp_settings,
    read_app_json,
    read_global_config,
    with_defaults,
    write_app_json,
)
from shared.compose.services import read_compose_file
from shared.compose.shared_files import parse_instance_info
from shared.compose.state import read_state, write_state
from tests.fuzz.budget import fuzz, mutated, outcome

YAML = """x: &a {k: "v", l: [1, *b]}
services:
  web:
    image: nginx@sha256:abababababababababababababababababababababababababababababababab
    environment: [A=$B, "C=${D:-x}", TOKEN=hunter2]
    <<: *a
"""
COMPOSE = {
    "manifest_version": "3",
    "name": "demo",
    "runner": "docker-compose",
    "docker_compose_file": YAML.replace("*b", "2"),
    "allowed_envs": ["B", "D"],
    "init_script": ["echo", "true"],
    "key_provider": "kms",
    "requirements": {"os_version": ">=0.6.0", "platforms": ["dstack-gcp-tdx"], "gpu_policy": {"rego": "x"}},
    "verity_volumes": [{"source": "s", "verity_root": "ab" * 32, "target": "/d"}],
    "port_policy": {"ports": [{"port": 80, "pp": True}], "restrict_mode": True},
}
DOCUMENTS = [canonical_bytes(COMPOSE), json.dumps(COMPOSE | {"z": None, "y": 1.5}, indent=2).encode()]
PROJECTS = [
    json.dumps(
        {
            "name": "demo",
            "platform": "GCP",
            "app_id": "22" * 20,
            "gcp_config": {"zone": "", "labels": {"a": "b"}, "new": [1]},
            "allowed_envs": ["A"],
        }
    ).encode()
]
STATES = [b'{"status":"RUNNING","deployed":{"compose_hash":"ab"},"future":{"a":null}}']


@fuzz(mutated(DOCUMENTS))
def test_app_compose(raw: bytes) -> None:
    lint_app_compose(raw)
    compose = outcome(read_app_compose, raw)
    document = outcome(parse_app_compose, raw)
    assert compose is None or document is not None
    if document is None:
        return
    canonical = outcome(canonical_bytes, document)
    assert canonical is None or canonical_bytes(parse_app_compose(canonical)) == canonical


@fuzz(st.tuples(mutated(DOCUMENTS), mutated(DOCUMENTS)))
def test_diff(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    found = outcome(diff_app_compose, old, new)
    if found is not None:
        outcome(require_progress, found)
        assert found.identical == (old == new)


@fuzz(
    mutated([YAML.encode(), COMPOSE["docker_compose_file"].encode()]).map(lambda raw: raw.decode("latin-1"))
)
def test_compose_file(text: str) -> None:
    outcome(read_compose_file, text)


@fuzz(mutated(PROJECTS))
def test_app_json(raw: bytes) -> None:
    project = outcome(read_app_json, raw)
    if project is not None:
        assert read_app_json(write_app_json(project)) == project
        with_defaults(project)
        gcp_settings(project, outcome(read_global_config, raw) or GlobalConfig())


@fuzz(mutated(STATES))
def test_state(raw: bytes) -> None:
    state = outcome(read_state, raw)
    if state is not None:
        assert read_state(write_state(state)) == state


@fuzz(mutated([b"A=x\nB='y'\n# c\n", b'{"instance_id_seed":"","app_id":"' + b"22" * 20 + b'"}']))
def test_small_files(raw: bytes) -> None:
    outcome(parse_env_file, raw)
    outcome(parse_instance_info, raw)


@fuzz(st.tuples(st.sampled_from(sorted(FUNCTIONS)), st.binary(max_size=200)).map(b"".join))
def test_calldata(raw: bytes) -> None:
    found = outcome(decode_call, raw)
    if found is not None:
        assert encode_call(found[0], *found[1]) == raw
