"""Every call of the `dstack-sdk` that PyPI serves, against our agent over its real sockets."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256, sha512
from importlib.metadata import version as installed
from typing import TypeVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store
from dstack_sdk import AsyncDstackClient, DstackClient, TappdClient, get_compose_hash
from dstack_sdk.dstack_client import GetQuoteResponse
from dstack_sdk.ethereum import to_account, to_account_secure
from dstack_sdk.solana import to_keypair, to_keypair_secure
from eth_account.messages import encode_defunct

from cli.verify import judge
from shared.attestation.collateral import parse_bundle
from shared.attestation.envelope import decode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.tdx_quote import parse_quote
from shared.attestation.trust import TrustAnchors
from shared.keys.guest_keys import claim_v0, public_key_of, verify_key_chain
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import read_attestation
from shared.version import __version__
from tests.sdk.conftest import Agent

Client = TypeVar("Client", bound=DstackClient)

OLD = "ignore:.*deprecated.*:DeprecationWarning"


@contextmanager
def opened(client: Client) -> Iterator[Client]:
    """Close a client's connections at the end: what its own context manager gives is another client."""
    with client:
        yield client


@pytest.fixture
def client(made: Agent) -> Iterator[DstackClient]:
    with opened(DstackClient(made.dstack)) as client:
        yield client


@pytest.fixture
def tappd(made: Agent) -> Iterator[TappdClient]:
    with pytest.warns(DeprecationWarning, match="TappdClient"):
        client = TappdClient(made.tappd)
    with opened(client):
        yield client


@pytest.fixture
def expected(made: Agent) -> dict[str, str]:
    document: dict[str, str] = json.loads((made.directory / "expected.json").read_text())
    return document


def test_is_that_of_the_specification() -> None:
    assert installed("dstack-sdk") == "0.5.4"


def test_finds_the_agent_by_the_exported_variable(made: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", made.dstack)
    with opened(DstackClient()) as client:
        assert client.is_reachable()


# Keys


def test_get_key_is_stable_and_depends_on_the_path_alone(client: DstackClient) -> None:
    first = client.get_key("wallet", "ethereum")
    assert len(first.decode_key()) == 32
    assert client.get_key("wallet", "other").key == first.key
    assert client.get_key("wallet2", "ethereum").key != first.key
    assert client.get_key("wallet", "ethereum", "k256").key == first.key


def test_get_key_chains_to_the_root_of_the_simulated_kms(
    client: DstackClient, expected: dict[str, str]
) -> None:
    for algorithm in ("secp256k1", "ed25519"):
        key = client.get_key("wallet", "ethereum", algorithm)
        public = public_key_of(key.decode_key(), algorithm)
        verify_key_chain(
            claim_v0("ethereum", public),
            key.decode_signature_chain(),
            app_id=bytes.fromhex(expected["app_id"]),
            root_pubkey=bytes.fromhex(expected["kms_k256_root"]),
        )


def test_get_key_refuses_another_algorithm(client: DstackClient) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.get_key("wallet", "", "rsa")
    assert caught.value.response.status_code == 400
    assert "Unsupported algorithm" in caught.value.response.json()["error"]


def test_keys_make_ethereum_accounts(client: DstackClient) -> None:
    account = to_account_secure(client.get_key("wallet", "ethereum"))
    message = encode_defunct(text="hello")
    signed = account.sign_message(message)
    assert account.address == to_account(client.get_key("wallet", "ethereum")).address
    assert account.unsafe_sign_hash(sha256(b"x").digest()).signature
    assert signed.signature == account.sign_message(message).signature


def test_keys_make_solana_keypairs(client: DstackClient) -> None:
    key = client.get_key("wallet", "solana")
    assert bytes(to_keypair(key))[:32] == key.decode_key()
    assert to_keypair_secure(key) == to_keypair(key)


def test_upstreams_guest_has_the_accounts_of_the_specification(recorded: Agent) -> None:
    with opened(DstackClient(recorded.dstack)) as client:
        key = client.get_key("/", "test")
    assert to_account_secure(key).address == "0x6A2641982D1Ed53145b0Db42a4CFFcEFb4Cae5AF"
    assert str(to_keypair_secure(key).pubkey()) == "6SEyAXS2GUBpajopJL3M21K16j55aj8yxWXp3v5k4Hur"


# Certificates


def test_get_tls_key_chains_to_the_root_ca(client: DstackClient, expected: dict[str, str]) -> None:
    made = client.get_tls_key(subject="app", alt_names=["app.example"], usage_server_auth=True)
    leaf, app_ca, root = (x509.load_pem_x509_certificate(pem.encode()) for pem in made.certificate_chain)
    assert root.public_key() == load_public(expected["kms_ca_root"])
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName("app.example"))
    assert verifier.verify(leaf, [app_ca])[0] == leaf
    key = load_pem_private_key(made.key.encode(), password=None)
    assert leaf.public_key() == key.public_key()


def test_get_tls_key_is_fresh_each_time(client: DstackClient) -> None:
    assert client.get_tls_key().key != client.get_tls_key().key


def test_a_certificate_for_ra_tls_carries_evidence_over_its_own_key(client: DstackClient) -> None:
    made = client.get_tls_key(usage_ra_tls=True, alt_names=["localhost", "127.0.0.1"])
    leaf = x509.load_pem_x509_certificate(made.certificate_chain[0].encode())
    envelope = read_attestation(leaf.extensions)
    assert envelope is not None
    evidence = decode_envelope(envelope)
    assert evidence.report_data == report_data(RATLS_CERT, spki_der(leaf.public_key()))  # type: ignore[arg-type]


def test_newer_options_of_get_tls_key_work(client: DstackClient) -> None:
    now = int(time.time())
    made = client.get_tls_key(not_before=now - 60, not_after=now + 3600, with_app_info=True)
    leaf = x509.load_pem_x509_certificate(made.certificate_chain[0].encode())
    assert int(leaf.not_valid_after_utc.timestamp()) == now + 3600


def test_get_tls_key_explains_a_validity_that_is_none(client: DstackClient) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.get_tls_key(not_before=2000, not_after=1000)
    assert "not_before must be earlier" in caught.value.response.json()["error"]


# Evidence


def replays(quote: GetQuoteResponse) -> bool:
    registers = parse_quote(quote.decode_quote()).report.rtmrs
    return quote.replay_rtmrs() == {index: value.hex() for index, value in enumerate(registers)}


@pytest.mark.parametrize("guest", ["made", "recorded"])
def test_get_quote_is_over_the_report_data_and_replays(guest: str, request: pytest.FixtureRequest) -> None:
    agent: Agent = request.getfixturevalue(guest)
    with opened(DstackClient(agent.dstack)) as client:
        quote = client.get_quote("test")
    assert quote.decode_quote()[568:632] == b"test".ljust(64, b"\0")
    assert bytes.fromhex(quote.report_data) == b"test".ljust(64, b"\0")
    assert replays(quote)


def test_attest_passes_our_verifier_where_its_root_is_trusted(
    made: Agent, client: DstackClient, expected: dict[str, str]
) -> None:
    challenge = os.urandom(64)
    bundle = parse_bundle((made.directory / "collateral.json").read_bytes())
    report = judge(
        client.attest(challenge).decode_attestation(),
        now=int(time.time()),
        anchors=TrustAnchors.production().with_extra((made.directory / "root.pem").read_bytes()),
        gather=lambda _attestation, _now: bundle,
        report_data=challenge,
    )
    assert report.is_valid
    assert report.simulated
    assert report.app_info is not None
    assert {name: report.app_info[name] for name in ("app_id", "compose_hash", "os_image_hash")} == {
        name: expected[name] for name in ("app_id", "compose_hash", "os_image_hash")
    }


def test_attest_passes_no_verifier_that_trusts_vendors_alone(made: Agent, client: DstackClient) -> None:
    bundle = parse_bundle((made.directory / "collateral.json").read_bytes())
    report = judge(
        client.attest(bytes(64)).decode_attestation(),
        now=int(time.time()),
        anchors=TrustAnchors.production(),
        gather=lambda _attestation, _now: bundle,
    )
    assert report.code == "tdx.anchor"


def test_report_data_beyond_64_bytes_never_leaves_the_sdk(client: DstackClient) -> None:
    with pytest.raises(ValueError, match="less than 64"):
        client.get_quote(bytes(65))


# The guest


def test_info_agrees_with_itself(made: Agent, client: DstackClient, expected: dict[str, str]) -> None:
    info = client.info()
    text = info.tcb_info.app_compose
    assert info.app_id == expected["app_id"]
    assert info.instance_id == expected["instance_id"]
    assert info.compose_hash == sha256(text.encode()).hexdigest() == get_compose_hash(json.loads(text))
    assert text == (made.directory / "app-compose.json").read_text()
    assert info.tcb_info.os_image_hash == expected["os_image_hash"]
    assert json.loads(info.vm_config)["os_image_hash"] == expected["os_image_hash"]
    assert json.loads(info.key_provider_info) == {"name": "kms", "id": expected["kms_ca_root"]}


def test_info_of_upstreams_guest_parses(recorded: Agent) -> None:
    with opened(DstackClient(recorded.dstack)) as client:
        info = client.info()
    assert info.compose_hash.startswith("c143116f")
    assert len(info.tcb_info.event_log) == 33


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_sign_and_verify_agree(client: DstackClient, algorithm: str) -> None:
    data = sha256(b"something").digest()
    signed = client.sign(algorithm, data)
    arguments = (signed.decode_signature(), signed.decode_public_key())
    assert client.verify(algorithm, data, *arguments).valid
    assert not client.verify(algorithm, sha256(b"something else").digest(), *arguments).valid


def test_sign_refuses_another_algorithm(client: DstackClient) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.sign("rsa", b"data")
    assert caught.value.response.status_code == 400


def test_version_is_ours(client: DstackClient) -> None:
    assert client.version().version == __version__


def test_emit_event_is_refused_with_an_explanation(client: DstackClient) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.emit_event("mine", b"payload")
    assert caught.value.response.status_code == 400
    assert "EmitEvent was removed" in caught.value.response.json()["error"]


def test_the_asynchronous_client_gets_the_same(made: Agent, client: DstackClient) -> None:
    async def ask() -> str:
        async with AsyncDstackClient(made.dstack) as asynchronous:
            assert await asynchronous.is_reachable()
            return (await asynchronous.get_key("wallet")).key

    assert asyncio.run(ask()) == client.get_key("wallet").key


# Clients of before 0.5


@pytest.mark.filterwarnings(OLD)
def test_tappd_derives_one_tls_key_for_a_path(tappd: TappdClient) -> None:
    first, second = tappd.derive_key("/", "test"), tappd.derive_key("/", "test")
    assert first.key == second.key
    assert len(first.certificate_chain) == 3


@pytest.mark.filterwarnings(OLD)
def test_tappd_key_is_the_same_secret_as_get_key(tappd: TappdClient, client: DstackClient) -> None:
    key = load_pem_private_key(tappd.derive_key("/", "test").key.encode(), password=None)
    scalar = key.private_numbers().private_value  # type: ignore[union-attr]
    assert scalar.to_bytes(32, "big") == client.get_key("/").decode_key()


@pytest.mark.filterwarnings(OLD)
def test_tappd_quotes_a_hash_or_the_bytes(tappd: TappdClient) -> None:
    hashed = tappd.tdx_quote("test", "sha512")
    assert hashed.decode_quote()[568:632] == sha512(b"app-data:test").digest()
    raw = tappd.tdx_quote("test", "raw")
    assert raw.decode_quote()[568:632] == b"test".rjust(64, b"\0")
    assert replays(raw)


@pytest.mark.filterwarnings(OLD)
def test_tappd_is_reachable_and_tells_who_it_is(tappd: TappdClient, expected: dict[str, str]) -> None:
    assert tappd.is_reachable()
    assert tappd.info().app_id == expected["app_id"]


def load_public(spki: str) -> object:
    return load_der_public_key(bytes.fromhex(spki))
