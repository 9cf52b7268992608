"""docs/guest-agent.md has every series of `/metrics`, every parameter of a log, and a log's bounds."""

import re

import pytest

from enclave.agent.log_query import DEFAULT_TAIL, LogRequest
from enclave.agent.pages import IDLE_SECONDS, MAX_LOGS
from enclave.agent.prometheus import metrics_text
from shared.rpc import guest_api_pb2 as pb
from tests.docs.references import REPOSITORY

PAGE = (REPOSITORY / "docs" / "guest-agent.md").read_text()
SERIES = re.findall(r"^# TYPE (\S+) gauge$", metrics_text(pb.SystemInfo(), ()), re.MULTILINE)
FIRST_CELLS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
NAMES = {name for cell in FIRST_CELLS for name in re.findall(r"`([a-z0-9_]+)", cell)}


@pytest.mark.parametrize("name", SERIES)
def test_has_every_series(name: str) -> None:
    assert name in NAMES


def test_has_no_series_that_is_not_there() -> None:
    assert {name for name in NAMES if name.startswith(("system_", "disk_", "dstack_guest_"))} == set(SERIES)


@pytest.mark.parametrize("name", LogRequest.__struct_fields__)
def test_has_every_parameter_of_a_log(name: str) -> None:
    assert name in NAMES


def test_has_the_bounds_of_a_log() -> None:
    assert f"{IDLE_SECONDS:g} seconds" in PAGE
    assert f"{MAX_LOGS} logs" in PAGE
    assert DEFAULT_TAIL in PAGE
