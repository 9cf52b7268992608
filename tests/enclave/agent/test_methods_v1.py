"""The methods of v1, and of the host's mount."""

import pytest

from shared.attestation.envelope import decode_envelope
from shared.keys.guest_keys import AppKey, claim_v1, verify_key_chain
from shared.ratls.csr import CsrConfig
from tests.enclave.agent.agents import (
    APP_ID,
    KEYS,
    ROOT_PUBLIC,
    VM_CONFIG,
    RunningAgent,
    StubIssuer,
    app_compose,
    running,
    tdx_attestor,
)

APP_KEY = AppKey(KEYS.k256_key, KEYS.k256_signature)


def test_get_key_gives_a_key_of_a_domain(agent: RunningAgent) -> None:
    answer = agent.call("a", "/v1/GetKey", {"domain": "d", "algorithm": "ed25519"})
    key = APP_KEY.derive_v1("d", "ed25519")
    assert (answer["key"], answer["public_key"]) == (key.key.hex(), key.public_key.hex())
    chain = [bytes.fromhex(link) for link in answer["signature_chain"]]
    claim = claim_v1("ed25519", "d", key.public_key)
    verify_key_chain(claim, chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)


@pytest.mark.parametrize("algorithm", ["", "k256"])
def test_get_key_has_neither_default_nor_alias(algorithm: str, agent: RunningAgent) -> None:
    refusal = agent.refused("a", "/v1/GetKey", {"domain": "d", "algorithm": algorithm})
    assert refusal[:2] == (400, "guest_keys.algorithm")


def test_a_certificate_is_issued(agent: RunningAgent) -> None:
    answer = agent.call("a", "/v1/IssueCert", {"subject": "s", "not_before": 1, "not_after": 2})
    assert answer["certificate_chain"] == list(StubIssuer.chain)
    assert agent.issuer.asked[-1][1] == CsrConfig(subject="s", not_before=1, not_after=2)


@pytest.mark.parametrize("version", [1, 2])
def test_attest_always_gives_the_newer_envelope(version: int, tmp_path) -> None:
    compose = app_compose()
    with running(tmp_path, tdx_attestor(tmp_path, compose, version=version), compose) as agent:
        asked = {"report_data": "01", "include_boottime_gpu_evidence": True}
        answer = agent.call("a", "/v1/Attest", asked)
    envelope = bytes.fromhex(answer["attestation"])
    assert 0x80 <= envelope[0] <= 0x8F
    assert decode_envelope(envelope).report_data == b"\1".ljust(64, b"\0")
    assert answer["boottime_gpu_evidence"] == []


def test_refuses_evidence_of_a_gpu_that_is_not_there(agent: RunningAgent) -> None:
    assert agent.refused("a", "/v1/AttestGpu", {"nonce": "00" * 32})[:2] == (400, "agent.gpu.missing")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_refuses_a_nonce_of_another_length(length: int, agent: RunningAgent) -> None:
    assert agent.refused("a", "/v1/AttestGpu", {"nonce": "00" * length})[:2] == (400, "agent.nonce")


def test_info_tells_who_the_guest_is(agent: RunningAgent) -> None:
    info = agent.call("a", "/v1/Info")
    assert (info["app_id"], info["app_name"], info["vm_config"]) == (APP_ID.hex(), "wörld", VM_CONFIG)
    assert info["app_compose"].encode() == app_compose()
    assert info == agent.call("c", "/prpc/v1/Info")


def test_private_measurements_are_for_the_app_alone(tmp_path) -> None:
    compose = app_compose(public_tcbinfo=False)
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose) as agent:
        inside, outside = agent.call("a", "/v1/Info"), agent.call("c", "/prpc/v1/Worker.Info")
    blanked = dict.fromkeys(("app_compose", "vm_config", "key_provider_info"), "")
    assert {**inside, **blanked} == outside
    assert inside["key_provider_info"]


@pytest.mark.parametrize(("mount", "path"), [("a", "/v1/Version"), ("c", "/prpc/v1/Version")])
def test_the_version_is_told(mount: str, path: str, agent: RunningAgent) -> None:
    assert agent.call(mount, path)["version"]


def test_a_guest_whose_containers_nobody_watches_is_not_called_healthy(agent: RunningAgent) -> None:
    health = agent.call("c", "/prpc/v1/Health")
    assert (health["healthy"], health["unhealthy"]) == (False, [])
    assert health["error"]


def test_the_host_sees_what_everybody_sees(agent: RunningAgent) -> None:
    public = agent.call("c", "/prpc/Worker.Info")
    told = agent.call("d", "/api/Info")
    assert told == {name: public[name] for name in told if name != "version"} | {"version": told["version"]}
