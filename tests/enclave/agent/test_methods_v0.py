"""Every method of v0, over the sockets that apps and the world reach."""

import hashlib
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from enclave.agent.guest import EvidenceStyle
from enclave.agent.methods_v0 import gpu_evidence
from shared.attestation.envelope import decode_envelope
from shared.attestation.event_log import replay_digests
from shared.attestation.tdx_quote import parse_quote
from shared.errors import ConfigError, UnavailableError
from shared.keys.guest_keys import AppKey, claim_v0, verify_key_chain
from shared.ratls.csr import CsrConfig
from tests.enclave.agent.agents import (
    APP_ID,
    INSTANCE_ID,
    KEYS,
    ROOT_PUBLIC,
    VM_CONFIG,
    RunningAgent,
    StubIssuer,
    app_compose,
    running,
    tdx_attestor,
)
from tests.shared.refusal import refuses

APP_KEY = AppKey(KEYS.k256_key, KEYS.k256_signature)


def test_get_key_gives_a_proven_key(agent: RunningAgent) -> None:
    answer = agent.call("a", "/GetKey", {"path": "p", "purpose": "x", "algorithm": "ed25519"})
    key = APP_KEY.derive("p", "x", "ed25519")
    assert answer == {"key": key.key.hex(), "signature_chain": [one.hex() for one in key.signature_chain]}


def test_get_key_leads_to_the_kms(agent: RunningAgent) -> None:
    answer = agent.call("a", "/GetKey", {"path": "p", "purpose": "x"})
    public = APP_KEY.derive("p", "x", "").public_key
    chain = [bytes.fromhex(link) for link in answer["signature_chain"]]
    verify_key_chain(claim_v0("x", public), chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)


def test_get_key_refuses_another_algorithm(agent: RunningAgent) -> None:
    refusal = agent.refused("a", "/GetKey", {"algorithm": "rsa"})
    assert refusal == (400, "guest_keys.algorithm", "Unsupported algorithm")


def test_derive_k256_key_is_get_key(agent: RunningAgent) -> None:
    asked = {"path": "p", "purpose": "x"}
    answer = agent.call("a", "/GetKey", asked)
    assert agent.call("b", "/prpc/Tappd.DeriveK256Key", asked) == {
        "k256_key": answer["key"],
        "k256_signature_chain": answer["signature_chain"],
    }


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "k256", "secp256k1_prehashed"])
def test_what_is_signed_verifies(algorithm: str, agent: RunningAgent) -> None:
    data = bytes(32).hex()
    signed = agent.call("a", "/Sign", {"algorithm": algorithm, "data": data})
    asked = {"algorithm": algorithm, "data": data, **signed}
    assert agent.call("a", "/Verify", asked) == {"valid": True}
    assert agent.call("a", "/Verify", {**asked, "data": "ff" * 32}) == {"valid": False}


def test_a_signature_comes_with_its_chain(agent: RunningAgent) -> None:
    signed = agent.call("a", "/Sign", {"algorithm": "secp256k1", "data": "00"})
    assert signed["signature_chain"][0] == signed["signature"]
    assert [len(link) // 2 for link in signed["signature_chain"]] == [64, 65, 65]
    chain = [bytes.fromhex(link) for link in signed["signature_chain"][1:]]
    claim = claim_v0("signing", bytes.fromhex(signed["public_key"]))
    verify_key_chain(claim, chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)


@pytest.mark.parametrize("method", ["Sign", "Verify"])
def test_signing_has_no_default_algorithm(method: str, agent: RunningAgent) -> None:
    assert agent.refused("a", f"/{method}", {"data": "00"})[:2] == (400, "guest_keys.algorithm")


def test_verify_refuses_a_malformed_key(agent: RunningAgent) -> None:
    asked = {"algorithm": "ed25519", "data": "00", "signature": "00" * 64, "public_key": "00"}
    assert agent.refused("a", "/Verify", asked)[:2] == (400, "guest_keys.public_key")


def test_a_quote_is_over_padded_report_data(agent: RunningAgent) -> None:
    answer = agent.call("a", "/GetQuote", {"report_data": b"test".hex()})
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    assert report.report_data == b"test".ljust(64, b"\0")
    assert answer["report_data"] == report.report_data.hex()
    assert answer["vm_config"] == VM_CONFIG


def test_a_tdx_quote_comes_without_an_envelope(agent: RunningAgent) -> None:
    """Upstream leaves the field out, where others are empty."""
    assert "attestation" not in agent.call("a", "/GetQuote", {"report_data": ""})


@pytest.mark.parametrize("version", [1, 2])
def test_released_sdks_replay_the_event_log(version: int, tmp_path) -> None:
    """They hash the digests that the log carries, and recompute none."""
    compose = app_compose()
    with running(tmp_path, tdx_attestor(tmp_path, compose, version=version), compose) as agent:
        answer = agent.call("a", "/GetQuote", {"report_data": ""})
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    log = json.loads(answer["event_log"])
    for register, expected in enumerate(report.rtmrs):
        digests = [bytes.fromhex(event["digest"]) for event in log if event["imr"] == register]
        assert replay_digests(digests, "sha384") == expected


def test_the_event_log_has_no_payloads_of_the_firmware(agent: RunningAgent) -> None:
    log = json.loads(agent.call("a", "/GetQuote", {"report_data": ""})["event_log"])
    firmware = [event for event in log if event["imr"] < 3]
    assert firmware
    assert not any(event["event_payload"] for event in firmware)


def test_a_whole_log_keeps_them(tmp_path) -> None:
    compose = app_compose()
    style = EvidenceStyle(whole_log=True, always_envelope=True)
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose, style=style) as agent:
        answer = agent.call("a", "/GetQuote", {"report_data": ""})
    assert any(e["imr"] < 3 and e["event_payload"] for e in json.loads(answer["event_log"]))
    assert decode_envelope(bytes.fromhex(answer["attestation"])).quote.quote.hex() == answer["quote"]


@pytest.mark.parametrize(("mount", "path"), [("a", "/GetQuote"), ("a", "/Attest"), ("a", "/v1/Attest")])
def test_refuses_report_data_of_more_than_64_bytes(mount: str, path: str, agent: RunningAgent) -> None:
    status, code, text = agent.refused(mount, path, {"report_data": "00" * 65})
    assert (status, code) == (400, "agent.report_data")
    assert text.startswith("Report data is too long")


@pytest.mark.parametrize(("version", "first"), [(1, 0x00), (2, 0x83)])
def test_attest_gives_the_envelope_that_carries_all(version: int, first: int, tmp_path) -> None:
    compose = app_compose()
    with running(tmp_path, tdx_attestor(tmp_path, compose, version=version), compose) as agent:
        envelope = bytes.fromhex(agent.call("a", "/Attest", {"report_data": "01"})["attestation"])
    assert envelope[0] == first
    assert decode_envelope(envelope).report_data == b"\1".ljust(64, b"\0")


def test_info_tells_who_the_guest_is(agent: RunningAgent) -> None:
    compose = app_compose()
    info = agent.call("a", "/Info")
    told = {name: info[name] for name in ("app_id", "instance_id", "compose_hash", "os_image_hash")}
    assert told == {
        "app_id": APP_ID.hex(),
        "instance_id": INSTANCE_ID.hex(),
        "compose_hash": hashlib.sha256(compose).hexdigest(),
        "os_image_hash": "ab" * 32,
    }
    assert (info["app_name"], info["vm_config"], info["tee_variant"]) == ("wörld", VM_CONFIG, "dstack-tdx")
    assert (info["cloud_vendor"], info["cloud_product"]) == ("Acme", "Box 1")
    assert info["key_provider_info"] == '{"name":"kms","id":"30"}'
    assert info["device_id"] == hashlib.sha256(b"").hexdigest()


def test_tcb_info_is_pretty_text_with_sorted_keys(agent: RunningAgent) -> None:
    text = agent.call("a", "/Info")["tcb_info"]
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    assert set(document) == {
        *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_aggregated", "os_image_hash", "compose_hash"),
        *("device_id", "event_log", "app_compose"),
    }


def test_tcb_info_has_the_exact_app_compose(agent: RunningAgent) -> None:
    document = json.loads(agent.call("a", "/Info")["tcb_info"])
    assert document["app_compose"].encode() == app_compose()


def test_tcb_info_has_the_registers_of_the_quote(agent: RunningAgent) -> None:
    document = json.loads(agent.call("a", "/Info")["tcb_info"])
    report = parse_quote(bytes.fromhex(agent.call("a", "/GetQuote")["quote"])).report
    assert [document[f"rtmr{i}"] for i in range(4)] == [value.hex() for value in report.rtmrs]
    measured = report.mrtd + b"".join(report.rtmrs)
    tail = report.mr_config_id + report.mr_owner + report.mr_owner_config
    expected = hashlib.sha256(measured + (tail if any(tail) else b"")).hexdigest()
    assert document["mr_aggregated"] == expected


def test_info_asks_no_device(agent: RunningAgent) -> None:
    before = agent.attestor.count
    for _ in range(10):
        agent.call("a", "/Info")
    assert agent.attestor.count == before


@pytest.mark.parametrize("mount", [("a", "/Info"), ("b", "/prpc/Tappd.Info"), ("c", "/prpc/Worker.Info")])
def test_info_is_everywhere_the_same_where_all_is_public(mount: tuple[str, str], agent: RunningAgent) -> None:
    assert agent.call(*mount) == agent.call("a", "/v0/Info")


def test_private_measurements_are_for_the_app_alone(tmp_path) -> None:
    compose = app_compose(public_tcbinfo=False)
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose) as agent:
        inside, old = agent.call("a", "/Info"), agent.call("b", "/prpc/Tappd.Info")
        outside = agent.call("c", "/prpc/Worker.Info")
        host = agent.call("d", "/api/Info")
    assert inside == old
    assert {**inside, "tcb_info": "", "vm_config": ""} == outside
    assert host["tcb_info"] == ""


def test_info_shows_a_certificate_once_there_is_one(agent: RunningAgent) -> None:
    key, config = agent.issuer.asked[0]
    assert isinstance(key, EllipticCurvePrivateKey)
    assert config == CsrConfig(subject="demo-cert", usage_client_auth=True, ext_quote=True)
    wanted = "\n".join(StubIssuer.chain)
    assert any(agent.call("a", "/Info")["app_cert"] == wanted for _ in range(1000))


def test_info_answers_while_the_certificate_is_on_its_way(tmp_path) -> None:
    compose, issuer = app_compose(), StubIssuer()
    issuer.gate.clear()
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose, issuer=issuer) as agent:
        assert agent.call("a", "/Info")["app_cert"] == ""
        issuer.gate.set()


def test_a_certificate_that_was_refused_is_asked_for_again(own_agent: RunningAgent) -> None:
    guest, issuer = own_agent.guest, own_agent.issuer
    issuer.answered.acquire(timeout=30)
    guest.app_cert = ""
    issuer.error = UnavailableError("test.kms", "no")
    for at in (1e9, 2e9):
        guest.want_app_cert(at)
        assert issuer.answered.acquire(timeout=30)
        assert guest._requesting.acquire(timeout=30)
        guest._requesting.release()
    guest.want_app_cert(2e9 + 1)
    assert len(issuer.asked) == 3


def test_a_tls_key_is_fresh_and_certified(agent: RunningAgent) -> None:
    asked = {
        "subject": "app",
        "alt_names": ["localhost", "127.0.0.1"],
        "usage_ra_tls": True,
        "usage_server_auth": True,
        "not_after": 1_900_000_000,
        "with_app_info": True,
    }
    first, second = (agent.call("a", "/GetTlsKey", asked) for _ in range(2))
    assert first["certificate_chain"] == list(StubIssuer.chain)
    assert first["key"] != second["key"]
    assert agent.issuer.asked[-1][1] == CsrConfig(
        subject="app",
        subject_alt_names=("localhost", "127.0.0.1"),
        usage_server_auth=True,
        ext_quote=True,
        ext_app_info=True,
        not_after=1_900_000_000,
    )


def test_a_tls_key_carries_its_public_key(agent: RunningAgent) -> None:
    pem = agent.call("a", "/GetTlsKey")["key"]
    assert pem.startswith("-----BEGIN PRIVATE KEY-----\n")
    der = msgspec.json.decode(f'"{"".join(pem.splitlines()[1:-1])}"', type=bytes)
    assert len(der) == 138


def test_the_certified_key_is_the_one_that_is_given(agent: RunningAgent) -> None:
    pem = agent.call("a", "/GetTlsKey")["key"]
    given = load_pem_private_key(pem.encode(), None)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    asked_for = agent.issuer.asked[-1][0]
    assert given.public_key().public_bytes(*form) == asked_for.public_key().public_bytes(*form)


def test_a_refusal_of_the_signer_reaches_the_app(own_agent: RunningAgent) -> None:
    own_agent.issuer.error = UnavailableError("test.kms", "the kms sleeps")
    assert own_agent.refused("a", "/GetTlsKey") == (400, "test.kms", "the kms sleeps")


def test_a_derived_key_stays_the_same(agent: RunningAgent) -> None:
    answers = [agent.call("b", "/prpc/Tappd.DeriveKey", {"path": "/", "subject": "s"}) for _ in range(2)]
    assert answers[0] == answers[1]
    key = load_pem_private_key(answers[0]["key"].encode(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    expected = agent.call("a", "/GetKey", {"path": "/"})["key"]
    assert f"{key.private_numbers().private_value:064x}" == expected


def test_a_key_of_a_random_seed_does_not(agent: RunningAgent) -> None:
    asked = {"path": "/", "random_seed": True}
    keys = {agent.call("b", "/prpc/Tappd.DeriveKey", asked)["key"] for _ in range(2)}
    assert len(keys) == 2


def test_a_derived_keys_certificate_has_no_app_info(agent: RunningAgent) -> None:
    agent.call("b", "/prpc/DeriveKey", {"path": "p", "subject": "s", "usage_client_auth": True})
    assert agent.issuer.asked[-1][1] == CsrConfig(subject="s", usage_client_auth=True)


@pytest.mark.parametrize(
    ("asked", "expected", "named"),
    [
        (
            {},
            (
                "1864e059be7e1ec12d9fe9da903d3711e0d72edab19f044cc9d6ac90c32b996b"
                "545a9979309bd19c36b803941e8e3485115e9b794001f2b9f367f6e03c52e532"
            ),
            ("sha512", "app-data"),
        ),
        (
            {"hash_algorithm": "sha256"},
            "a5d2ef1e94583bef4a02b29278af41b662d239beb36937a993108841b6b3c1fc" + "00" * 32,
            ("sha256", "app-data"),
        ),
        (
            {"hash_algorithm": "keccak256"},
            "b877945563d5025eec520b6bb150efcf4c368c491ff1947529be3125d4e5ecb6" + "00" * 32,
            ("keccak256", "app-data"),
        ),
        (
            {"hash_algorithm": "sha3-256"},
            "893acdd0162e33594df56553bea2079b99d7d562284f9eb7fd9458e2add81fe8" + "00" * 32,
            ("sha3-256", "app-data"),
        ),
        (
            {"prefix": "custom-domain"},
            (
                "ad4a4f0b37dc25e329d9692422b0d798eba8a4cf5e08a553b9c4ac3c40b24990"
                "3f93e2dda86cd2bea4dc533ac8a689135feeba17a40ad66a1cc4011f1464785f"
            ),
            ("sha512", "custom-domain"),
        ),
    ],
)
def test_a_tdx_quote_is_over_a_tagged_hash(
    asked: dict[str, str], expected: str, named: tuple[str, str], agent: RunningAgent
) -> None:
    answer = agent.call("b", "/prpc/Tappd.TdxQuote", {"report_data": b"test".hex(), **asked})
    report = parse_quote(bytes.fromhex(answer["quote"])).report
    assert report.report_data.hex() == expected
    assert (answer["hash_algorithm"], answer["prefix"]) == named
    assert json.loads(answer["event_log"])


def test_a_raw_quote_is_over_64_bytes_as_they_are(agent: RunningAgent) -> None:
    data = bytes(range(64))
    answer = agent.call("b", "/prpc/RawQuote", {"report_data": data.hex()})
    assert parse_quote(bytes.fromhex(answer["quote"])).report.report_data == data
    assert (answer["hash_algorithm"], answer["prefix"]) == ("raw", "")


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        ({"hash_algorithm": "md5"}, "report_data.algorithm", "invalid hash algorithm"),
        ({"hash_algorithm": "raw"}, "report_data.length", "invalid content length"),
    ],
)
def test_refuses_what_no_quote_can_be_over(
    asked: dict[str, str], code: str, text: str, agent: RunningAgent
) -> None:
    refusal = agent.refused("b", "/prpc/Tappd.TdxQuote", {"report_data": "00", **asked})
    assert refusal[:2] == (400, code)
    assert refusal[2].startswith(text)


@pytest.mark.parametrize(
    ("algorithm", "tag"),
    [
        ("ed25519", b"dip1::ed25519-pk:"),
        ("secp256k1", b"dip1::secp256k1c-pk:"),
        ("secp256k1_prehashed", b"dip1::secp256k1c-pk:"),
    ],
)
def test_everybody_may_see_evidence_of_the_signing_key(
    algorithm: str, tag: bytes, agent: RunningAgent
) -> None:
    answer = agent.call("c", "/prpc/Worker.GetAttestationForAppKey", {"algorithm": algorithm})
    assert parse_quote(bytes.fromhex(answer["quote"])).report.report_data.startswith(tag)


def test_the_report_data_of_the_signing_key_is_upstreams(tmp_path) -> None:
    compose = app_compose()
    secret = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose, key=AppKey(secret, b"")) as agent:
        told = [
            bytes.fromhex(
                agent.call("c", "/prpc/GetAttestationForAppKey", {"algorithm": name})["report_data"]
            )
            for name in ("ed25519", "secp256k1")
        ]
    assert told == [
        b"dip1::ed25519-pk:5Pbre1Amf1hrp2V2bbfKlIfxpQb2pJAmrgmhxgVoG9s\0\0\0\0",
        b"dip1::secp256k1c-pk:A6t_JdVkVdMAocH3f1f20WGT6JzdntxcXimUtEax8zc9",
    ]


def test_evidence_of_the_signing_key_has_no_default_algorithm(agent: RunningAgent) -> None:
    refusal = agent.refused("c", "/prpc/Worker.GetAttestationForAppKey")
    assert refusal == (400, "guest_keys.algorithm", "Unsupported algorithm")


def test_emitting_an_event_is_refused_with_the_reason(agent: RunningAgent) -> None:
    status, code, text = agent.refused("a", "/EmitEvent", {"event": "e", "payload": "00"})
    assert (status, code) == (400, "agent.emit_event")
    assert text == (
        "EmitEvent was removed in dstack 0.6.0; "
        "runtime RTMR3 events are system-owned and cannot be extended by apps"
    )


@pytest.mark.parametrize(
    ("mount", "path"), [("a", "/Version"), ("b", "/prpc/Version"), ("c", "/prpc/Version")]
)
def test_the_version_is_told_on_every_mount(mount: str, path: str, agent: RunningAgent) -> None:
    assert set(agent.call(mount, path)) == {"version", "rev"}


def test_gpu_evidence_is_given_as_it_is(tmp_path) -> None:
    (tmp_path / "attestation.out").write_bytes(b"gpu \xff\n")
    assert gpu_evidence(tmp_path / "attestation.out") == "gpu \ufffd\n"


def test_refuses_gpu_evidence_without_a_bound(tmp_path) -> None:
    (tmp_path / "attestation.out").write_bytes(bytes((1 << 20) + 1))
    with refuses("agent.gpu.size", ConfigError):
        gpu_evidence(tmp_path / "attestation.out")


def test_refuses_gpu_evidence_that_cannot_be_read(tmp_path) -> None:
    with refuses("agent.gpu.unreadable", ConfigError):
        gpu_evidence(tmp_path)


def test_a_guest_without_a_gpu_has_no_evidence_of_one(agent: RunningAgent) -> None:
    assert agent.call("a", "/GpuInfo") == {"attestation": ""}
