"""An enclave's environment is held against what its measured image takes, before anything is launched."""

from pathlib import Path
from typing import Any

import pytest

from functions.plan.enclave_env import enclave_env_findings
from functions.plan.project_files import read_project
from shared.compose.enclave_toml import read_enclave_toml
from shared.errors import ConfigError
from tests.functions.plan.projects import APP_ID, write_project
from tests.shared.refusal import refuses

SIGNER = "ab" * 32
IMAGE = f"""
app_id = "0x{APP_ID}"
key_epoch = 2
[kms]
url = "https://kms.example.com"
[boot]
command = ["/bin/app"]
allowed_envs = ["TOKEN", "OTHER"]
env_signer = "{SIGNER}"
"""


def codes(place: Path, text: str | None, env: str = "TOKEN=x\n", **fields: Any) -> list[str]:
    project = write_project(place / "demo", platform="nitro", os_image=..., **fields)
    (project / ".env").write_text(env)
    return [one.code for one in enclave_env_findings(read_project(project), text, bytes.fromhex(APP_ID))]


def test_variables_that_the_image_takes_are_fine(tmp_path: Path) -> None:
    assert codes(tmp_path, IMAGE) == []
    assert codes(tmp_path, IMAGE, env_signer=SIGNER.upper(), key_epoch=2) == []


@pytest.mark.parametrize(
    "text", [None, "", IMAGE.replace('command = ["/bin/app"]', ""), IMAGE.replace('["TOKEN", "OTHER"]', "[]")]
)
def test_an_image_that_takes_no_variables_gets_none(tmp_path: Path, text: str | None) -> None:
    assert codes(tmp_path, text) == ["lint.nitro.env"]
    assert codes(tmp_path, text, env="") == []


def test_a_variable_that_the_image_does_not_name_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path, IMAGE, env="TOKEN=x\nMORE=y\n") == ["lint.env.undeclared"]


def test_an_image_that_asks_at_another_port_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path, IMAGE.replace("env_signer", "env_port = 9200\nenv_signer")) == [
        "lint.nitro.env_port"
    ]


def test_who_may_choose_the_variables_is_said(tmp_path: Path) -> None:
    anybody = IMAGE.replace(f'env_signer = "{SIGNER}"', "")
    assert codes(tmp_path, anybody) == ["lint.env_signer.absent"]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (IMAGE, {"key_epoch": 1}),
        (IMAGE, {"env_signer": "cd" * 32}),
        (IMAGE.replace("app_id = ", 'app_id = "0x' + "99" * 20 + '"\nx = '), {}),
    ],
    ids=["epoch", "signer", "app"],
)
def test_n71_what_would_be_sealed_for_another_image_is_refused(
    tmp_path: Path, text: str, fields: dict[str, Any]
) -> None:
    assert codes(tmp_path, text, **fields) == ["lint.nitro.enclave_toml"]


@pytest.mark.parametrize("text", ["[", "key_epoch = -1", 'boot = "x"', "key_epoch = 4294967296"])
def test_a_file_that_no_enclave_boots_with_is_refused(tmp_path: Path, text: str) -> None:
    with refuses("plan.enclave_toml", ConfigError):
        read_enclave_toml(text)
    assert codes(tmp_path, text) == ["plan.enclave_toml"]
