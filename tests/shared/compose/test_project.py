"""app.json, the global config, and how the layers are merged."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from shared.compose.app_compose import canonical_bytes, compose_hash
from shared.compose.build import app_compose_document
from shared.compose.project import (
    AppProject,
    GlobalConfig,
    aws_settings,
    gcp_settings,
    nitro_settings,
    read_app_json,
    read_global_config,
    with_defaults,
    write_app_json,
)
from shared.errors import ConfigError
from tests.shared.refusal import refuses

DATA = Path(__file__).parents[2] / "data" / "deploy"
COMPOSE = (
    'services:\n  nginx:\n    image: nginx:alpine\n    ports:\n      - "80:80"\n    restart: unless-stopped\n'
)
PRELAUNCH = "#!/bin/sh\n# Prelaunch script - runs before starting containers\n"


def project(**fields: Any) -> AppProject:
    return read_app_json(json.dumps(fields).encode())


def config(**fields: Any) -> GlobalConfig:
    return read_global_config(json.dumps(fields).encode())


# ---- app.json ----


def test_what_nobody_wrote_is_unset() -> None:
    made = project(name="demo", no_instance_id=False)
    assert made.no_instance_id is False
    assert made.secure_time is UNSET
    assert with_defaults(made).secure_time is False


def test_unknown_keys_survive_a_save() -> None:
    document = {
        "name": "demo",
        "color": {"a": None},
        "gcp_config": {"zone": "z", "future": [1]},
        "nitro_config": {"x": 1},
    }
    assert json.loads(write_app_json(read_app_json(json.dumps(document).encode()))) == document


def test_a_save_writes_what_was_read() -> None:
    document = {"name": "demo", "platform": "nitro", "allowed_envs": ["A"], "nitro_config": {"cpu_count": 4}}
    raw = write_app_json(read_app_json(json.dumps(document).encode()))
    assert raw == json.dumps(document | {}, indent=2).encode() + b"\n" or json.loads(raw) == document
    assert read_app_json(raw) == read_app_json(json.dumps(document).encode())


@pytest.mark.parametrize("platform", ["gcp", "GCP", "aws", "nitro"])
def test_knows_three_platforms_in_any_case(platform: str) -> None:
    assert project(platform=platform).platform == platform.lower()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "project.app_json.syntax"),
        (b'{"a":1,"a":1}', "project.app_json.duplicate_key"),
        (b"[]", "project.app_json.type"),
        (b" " * 300_000, "project.app_json.size"),
        (b'{"name":1}', "project.app_json.field"),
        (b'{"gcp_config":[]}', "project.app_json.field"),
        (b'{"key_provider":"\\ud800"}', "project.app_json.text"),
        (b'{"platform":"azure"}', "project.app_json.platform"),
        (b'{"platform":""}', "project.app_json.platform"),
        (b'{"app_id":"abc"}', "project.app_json.hex"),
        (b'{"app_id":"0x' + b"a" * 40 + b'"}', "project.app_json.hex"),
        (b'{"instance_id_seed":"ab"}', "project.app_json.hex"),
    ],
)
def test_refuses_a_broken_app_json(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        read_app_json(raw)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_project_or_an_error_of_ours(raw: bytes) -> None:
    try:
        read_app_json(raw)
    except ConfigError as error:
        assert error.code.startswith("project.app_json.")  # noqa: PT017 - either outcome is fine


# ---- merging ----


def test_a_global_setting_counts_where_the_project_says_nothing() -> None:
    shared = config(gcp={"zone": "europe-west4-a", "machine_type": "c3-standard-8", "data_size": 50})
    made = gcp_settings(project(gcp_config={"machine_type": "c3-standard-22", "zone": ""}), shared)
    assert (made.zone, made.machine_type, made.data_size) == ("europe-west4-a", "c3-standard-22", 50)
    assert (made.network, made.provisioning_model) == ("default", "STANDARD")


def test_false_and_zero_say_something() -> None:
    shared = config(gcp={"no_public_ip": True, "data_size": 50}, aws={"metadata_hop_limit": 2})
    made = gcp_settings(project(gcp_config={"no_public_ip": False, "data_size": 0}), shared)
    assert (made.no_public_ip, made.data_size) == (False, 0)
    assert aws_settings(project(), shared).metadata_hop_limit == 2


def test_without_any_layer_the_defaults_count() -> None:
    empty = GlobalConfig()
    assert gcp_settings(project(), empty).zone == "us-central1-a"
    assert aws_settings(project(), empty).instance_type == "m6i.large"
    assert nitro_settings(project(), empty).arch == "x86_64"
    assert gcp_settings(project(gcp_config={"labels": {}}), empty).labels == {}


def test_the_global_config_ignores_comments() -> None:
    made = config(_comment_services="x", services={"kms_urls": ["https://kms"]})
    assert made.services.kms_urls == ("https://kms",)
    assert made.services.gateway_urls == GlobalConfig().services.gateway_urls
    with refuses("project.config.field", ConfigError):
        config(services=[])
    with refuses("project.config.syntax", ConfigError):
        read_global_config(b"[services]")


# ---- the app-compose of a project ----


def test_writes_the_fields_of_upstreams_command_line() -> None:
    document = app_compose_document(project(name="demo"), COMPOSE, PRELAUNCH)
    assert json.dumps(document, indent=2).encode() == (DATA / "app-compose.cli.json").read_bytes()
    assert canonical_bytes(document) == (DATA / "app-compose.canonical.json").read_bytes()


def test_our_own_fields_are_written_only_where_they_are_set() -> None:
    assert "env_signer" not in app_compose_document(project(), "", None)
    ours = project(env_signer="d7" * 32, env_min_version=0, key_epoch=3)
    document = app_compose_document(ours, "", None)
    assert (document["env_signer"], document["env_min_version"], document["key_epoch"]) == ("d7" * 32, 0, 3)


def test_allowed_envs_are_sorted_and_each_once() -> None:
    document = app_compose_document(project(allowed_envs=["B", "A"]), "", None, ["C", "A"])
    assert document["allowed_envs"] == ["A", "B", "C"]
    assert "pre_launch_script" not in document


@given(st.permutations(["D", "B", "A", "C"]))
def test_the_order_of_variables_does_not_change_the_hash(names: list[str]) -> None:
    made = canonical_bytes(app_compose_document(project(), "", None, names))
    assert compose_hash(made) == compose_hash(
        canonical_bytes(app_compose_document(project(), "", None, sorted(names)))
    )
