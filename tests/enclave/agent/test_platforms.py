"""What an agent says where there is no plain TDX: a Nitro Enclave, and a guest of Google Cloud."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.agent.guest import EvidenceStyle
from enclave.agent.own_identity import NO_REGISTER, read_identity
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    SevSnpQuote,
    decode_envelope,
)
from shared.attestation.event_log import replay
from shared.attestation.nitro import parse_document
from shared.errors import ConfigError
from tests.enclave.agent.agents import RunningAgent, app_compose, running
from tests.enclave.gcp import GUEST_APP_ID
from tests.shared.refusal import refuses


@pytest.fixture
def gcp_agent(tmp_path: Path, gcp) -> Iterator[RunningAgent]:
    guest = gcp.start(key_provider="none")
    with running(tmp_path, guest.attestor, app_compose()) as agent:
        yield agent


def test_an_enclave_has_no_quote_and_names_what_to_call(enclave_agent: RunningAgent) -> None:
    status, code, text = enclave_agent.refused("a", "/GetQuote", {"report_data": "00"})
    assert (status, code) == (400, "agent.quote.platform")
    assert "Attest" in text


@pytest.mark.parametrize("method", ["TdxQuote", "RawQuote"])
def test_nor_for_old_clients(method: str, enclave_agent: RunningAgent) -> None:
    refusal = enclave_agent.refused("b", f"/prpc/Tappd.{method}", {"report_data": "00" * 64})
    assert refusal[:2] == (400, "agent.quote.platform")


def test_an_enclave_may_be_configured_to_answer_with_its_envelope(tmp_path, app_enclave) -> None:
    style = EvidenceStyle(without_tdx="attestation")
    with running(tmp_path, app_enclave.attestor, b"", style=style) as agent:
        answer = agent.call("a", "/GetQuote", {"report_data": "01"})
    assert (answer["quote"], answer["event_log"]) == ("", "")
    envelope = decode_envelope(bytes.fromhex(answer["attestation"]))
    assert envelope.report_data == b"\1".ljust(64, b"\0")


def test_an_enclave_attests(enclave_agent: RunningAgent) -> None:
    envelope = bytes.fromhex(enclave_agent.call("a", "/Attest", {"report_data": "01"})["attestation"])
    document = parse_document(decode_envelope(envelope).quote.nsm_quote)
    assert document.user_data == b"\1".ljust(64, b"\0")


def test_an_enclave_shows_evidence_of_its_signing_key(enclave_agent: RunningAgent) -> None:
    """The world has no Attest to call instead."""
    path = "/prpc/Worker.GetAttestationForAppKey"
    answer = enclave_agent.call("c", path, {"algorithm": "ed25519"})
    envelope = decode_envelope(bytes.fromhex(answer["attestation"]))
    assert envelope.report_data.hex() == answer["report_data"]


def test_an_enclaves_image_is_its_identity(enclave_agent: RunningAgent) -> None:
    info = enclave_agent.call("a", "/Info")
    evidence = enclave_agent.call("a", "/Attest")["attestation"]
    pcrs = parse_document(decode_envelope(bytes.fromhex(evidence)).quote.nsm_quote).pcrs
    image = hashlib.sha256(pcrs[0] + pcrs[1] + pcrs[2]).hexdigest()
    assert (info["compose_hash"], info["os_image_hash"], info["mr_aggregated"]) == (image, image, image)
    assert (info["tee_variant"], info["app_name"]) == ("dstack-nitro-enclave", "")


def test_an_enclaves_registers_are_zeros_that_released_sdks_read(enclave_agent: RunningAgent) -> None:
    document = json.loads(enclave_agent.call("a", "/Info")["tcb_info"])
    registers = {document[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
    assert registers == {NO_REGISTER}
    assert document["event_log"] == []


def test_a_guest_without_the_hosts_text_tells_that_of_its_evidence(enclave_agent: RunningAgent) -> None:
    info = enclave_agent.call("a", "/Info")
    assert json.loads(info["vm_config"]) == {"os_image_hash": info["os_image_hash"]}


def test_a_guest_of_google_cloud_quotes(gcp_agent: RunningAgent) -> None:
    answer = gcp_agent.call("a", "/GetQuote", {"report_data": "01"})
    assert answer["quote"]
    assert json.loads(answer["event_log"])
    assert "attestation" not in answer


def test_its_vtpm_is_in_the_envelope_alone(gcp_agent: RunningAgent) -> None:
    envelope = gcp_agent.call("a", "/Attest")["attestation"]
    assert isinstance(decode_envelope(bytes.fromhex(envelope)).quote, GcpTdxQuote)


def test_its_aggregate_is_of_the_vtpms_registers(gcp_agent: RunningAgent) -> None:
    info = gcp_agent.call("a", "/Info")
    evidence = decode_envelope(bytes.fromhex(gcp_agent.call("a", "/Attest")["attestation"]))
    assert isinstance(evidence.quote, GcpTdxQuote)
    pcrs = {one.index: one.value for one in evidence.quote.tpm.pcr_values}
    expected = hashlib.sha256(pcrs[0] + pcrs[2] + replay(evidence.runtime_events, "sha256"))
    assert info["mr_aggregated"] == expected.hexdigest()
    assert (info["app_id"], info["tee_variant"]) == (GUEST_APP_ID.hex(), "dstack-gcp-tdx")


def test_refuses_to_run_on_a_platform_without_a_collector() -> None:
    evidence = Attestation(SevSnpQuote(b"", (), ""), (), bytes(64), "")
    with refuses("agent.platform", ConfigError):
        read_identity(evidence)


def test_reads_upstreams_simulator(shared_data) -> None:
    evidence = decode_envelope(shared_data("guest-agent/attestation.bin").read_bytes())
    identity = read_identity(evidence, whole_log=True)
    found = (identity.compose_hash.hex()[:8], identity.os_image_hash.hex()[:8], identity.registers[4])
    rtmr3 = "f28a1490ee924e9396c2ccf2d93ad536b83cbe159a1d45024d1fd7acdcc102145efcfcd0cfa209416446c70226affadf"
    assert found == ("c143116f", "e61be43d", rtmr3)
    aggregated = "85334a62c97d0f8bf82d0245d31b539d17a2d7c258e2a13efc928aaea0e107cb"
    assert (identity.mr_aggregated.hex(), len(identity.event_log)) == (aggregated, 33)
