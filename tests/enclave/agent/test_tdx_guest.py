"""The agent as a process of a simulated TDX guest, and what its host asks of it."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from enclave.agent.host_methods import simulated_power_off
from shared.attestation.envelope import TdxQuote, decode_envelope
from shared.attestation.tdx_quote import parse_quote
from shared.errors import ConfigError, ExitCode
from shared.keys.guest_keys import AppKey
from tests.enclave.agent.whole_agent import APP_ID, K256_KEY, WholeAgent, keys_file, whole_agent
from tests.enclave.event_log import PATIENCE
from tests.enclave.tdx import GUEST_CID
from tests.shared.refusal import refuses

HOST_PORT = 8000


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def agent(tmp_path: Path, sockets: Path) -> Iterator[WholeAgent]:
    platform = ("--platform", "tdx", "--vsock", str(sockets), "--cid", str(GUEST_CID))
    with whole_agent(tmp_path, keys=keys_file(), platform=platform) as started:
        started.wait_for("agent.ready")
        yield started


def _host_asks(sockets: Path, method: str) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(sockets / f"{GUEST_CID}_{HOST_PORT}.sock"))
    with httpx.Client(transport=transport, base_url="http://guest", timeout=PATIENCE) as client:
        return client.post(f"/api/{method}", json={})


def test_it_serves_its_keys_and_ends_when_told_to(agent: WholeAgent) -> None:
    expected = AppKey(K256_KEY, b"").derive("p", "", "").key.hex()
    assert agent.call("/GetKey", {"path": "p"})["key"] == expected
    assert agent.stop() == ExitCode.OK


def test_its_quote_is_a_tdx_quote_over_what_was_asked(agent: WholeAgent) -> None:
    answer = agent.call("/GetQuote", {"report_data": "01"})
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    assert report.report_data == b"\1".ljust(64, b"\0")
    assert "attestation" not in answer


def test_its_envelope_is_of_a_plain_tdx_guest(agent: WholeAgent) -> None:
    envelope = bytes.fromhex(agent.call("/Attest")["attestation"])
    assert isinstance(decode_envelope(envelope).quote, TdxQuote)


def test_it_says_who_it_is(agent: WholeAgent) -> None:
    info = agent.call("/Info")
    log = json.loads(info["tcb_info"])["event_log"]
    assert (info["app_id"], info["tee_variant"]) == (APP_ID.hex(), "dstack-tdx")
    assert log[-1]["event"] == "system-ready"


def test_its_host_asks_by_vsock(agent: WholeAgent, sockets: Path) -> None:
    assert agent.events[-1]["guest_api"] is True
    assert _host_asks(sockets, "Info").json()["app_id"] == APP_ID.hex()


def test_a_simulated_guest_leaves_the_machine_on(agent: WholeAgent, sockets: Path) -> None:
    assert _host_asks(sockets, "Shutdown").status_code == 200
    assert agent.wait_for("agent.shutdown.failed")["code"] == "agent.simulated"


def test_refuses_to_power_off_for_a_simulated_guest() -> None:
    with refuses("agent.simulated", ConfigError):
        simulated_power_off()
