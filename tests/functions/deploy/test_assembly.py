"""What an environment runs on, and what is said of one that is not set as it should be."""

from pathlib import Path

import pytest

from functions.clouds.local import LocalCloud
from functions.deploy.assembly import Runtime
from functions.queues.in_process import InProcessSchedule
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.errors import ConfigError
from tests.shared.refusal import refuses


def here(place: Path, **changes: str) -> Runtime:
    environment = {
        "DSTACK_STORE": f"sqlite:{place / 'store.sqlite'}",
        "DSTACK_BLOBS": f"dir:{place / 'blobs'}",
        "DSTACK_QUEUE": "here",
        "DSTACK_CLOUDS": "local",
        "DSTACK_LOCAL_DIR": str(place / "machines"),
        "DSTACK_CACHE_DIR": str(place / "cache"),
    }
    return Runtime(environment | changes)


def test_everything_may_be_on_one_machine(tmp_path: Path) -> None:
    runtime = here(tmp_path)
    assert isinstance(runtime.store, SqliteStore)
    assert isinstance(runtime.blobs, FileBlobs)
    assert isinstance(runtime.schedule, InProcessSchedule)
    assert isinstance(runtime.clouds["local"], LocalCloud)
    assert runtime.service.list().deployments == ()
    assert runtime.tools is runtime.tools


def test_no_caller_may_choose_a_simulated_machine_in_place_of_a_real_one(tmp_path: Path) -> None:
    with refuses("deploy.settings", ConfigError):
        _ = here(tmp_path, DSTACK_CLOUDS="gcp-tdx,local").clouds


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("DSTACK_STORE", "", "store"),
        ("DSTACK_STORE", "mysql:x", "store"),
        ("DSTACK_STORE", "sqlite:", "store"),
        ("DSTACK_BLOBS", "ftp:x", "blobs"),
        ("DSTACK_QUEUE", "rabbit:x", "schedule"),
        ("DSTACK_QUEUE", "tasks:only-a-queue", "schedule"),
        ("DSTACK_CLOUDS", "", "clouds"),
        ("DSTACK_CLOUDS", "azure", "clouds"),
        ("DSTACK_PROGRESS_URL", "http://api.example.com", "engine"),
        ("DSTACK_PROGRESS_URL", "https://", "engine"),
        ("DSTACK_PROGRESS_URL", "api.example.com", "engine"),
        ("DSTACK_PROGRESS_URL", "https://api.example.com/?a=b", "engine"),
    ],
)
def test_a_setting_that_is_none_is_named(tmp_path: Path, variable: str, value: str, part: str) -> None:
    with refuses("deploy.settings", ConfigError) as caught:
        getattr(here(tmp_path, **{variable: value}), part)
    assert variable in caught.value.message


def test_simulated_machines_need_a_directory(tmp_path: Path) -> None:
    with refuses("deploy.settings", ConfigError):
        _ = here(tmp_path, DSTACK_LOCAL_DIR="").clouds["local"]


def test_a_chain_needs_its_number(tmp_path: Path) -> None:
    settings = {"DSTACK_RPC_URL": "https://rpc.example", "DSTACK_KMS_CONTRACT": "0x" + "11" * 20}
    with refuses("deploy.settings", ConfigError):
        _ = here(tmp_path, **settings).tools


CHAIN = {"DSTACK_KMS_CONTRACT": "0x" + "11" * 20, "DSTACK_CHAIN_ID": "1"}
TWO = "https://rpc.example.com https://rpc.example.net"


@pytest.mark.parametrize("urls", ["https://rpc.example.com", TWO, f"{TWO} https://rpc.example.org"])
def test_a_chain_may_have_several_endpoints(tmp_path: Path, urls: str) -> None:
    assert here(tmp_path, DSTACK_RPC_URL=urls, **CHAIN).tools is not None


@pytest.mark.parametrize(
    ("urls", "quorum", "code"),
    [
        (TWO, "1", "quorum.config.size"),
        (TWO, "3", "deploy.settings"),
        (TWO, "0", "deploy.settings"),
        (TWO, "two", "deploy.settings"),
        ("https://rpc.example.com https://rpc.example.com/key", "", "quorum.config.hosts"),
        ("https://rpc.example.com http://rpc.example.net", "", "quorum.config.plain_http"),
        ("ftp://rpc.example.com", "", "rpc.url.invalid"),
    ],
)
def test_endpoints_that_are_no_quorum_are_refused(tmp_path: Path, urls: str, quorum: str, code: str) -> None:
    with refuses(code, ConfigError):
        _ = here(tmp_path, DSTACK_RPC_URL=urls, DSTACK_RPC_QUORUM=quorum, **CHAIN).tools


def test_an_age_that_is_no_number_is_named(tmp_path: Path) -> None:
    with refuses("deploy.settings", ConfigError) as caught:
        _ = here(tmp_path, DSTACK_RPC_URL=TWO, DSTACK_RPC_MAX_HEAD_AGE="old", **CHAIN).tools
    assert "DSTACK_RPC_MAX_HEAD_AGE" in caught.value.message


def test_a_stand_in_that_is_no_command_line_is_named(tmp_path: Path) -> None:
    with refuses("deploy.settings", ConfigError):
        _ = here(tmp_path, DSTACK_LOCAL_APP="an 'open quote").clouds["local"]
