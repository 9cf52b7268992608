"""GetKey of both versions, DeriveKey's scalar, and the chains: vectors of spec guest-agent 3.2 and 2.13."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, ProtocolError
from shared.keys.app_keys import RootKeys, derive_app_keys
from shared.keys.app_keys_file import parse_app_keys
from shared.keys.guest_keys import (
    AppKey,
    claim_v0,
    claim_v1,
    public_key_of,
    root_of_key_chain,
    verify_key_chain,
)
from shared.keys.k256 import public_key, recover_public_key
from shared.keys.kdf import p256_key
from shared.ratls.certificates import spki_der
from tests.shared.refusal import refuses

UPSTREAM_TEST_KEY = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")
APP_ID = bytes(range(20))
ROOT = RootKeys(ca_scalar=bytes([1]) * 32, k256=bytes([2]) * 32)
ROOT_PUBLIC = public_key(ROOT.k256)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture
def upstream() -> AppKey:
    return AppKey(UPSTREAM_TEST_KEY, b"")


@pytest.fixture
def simulator(shared_data: Callable[[str], Path]) -> AppKey:
    file = parse_app_keys(shared_data("guest-agent/appkeys.json").read_bytes())
    return AppKey(file.k256_key, file.k256_signature)


@pytest.fixture
def issued() -> AppKey:
    keys = derive_app_keys(ROOT, APP_ID)
    return AppKey(keys.k256_key, keys.k256_signature)


def test_the_signing_key_is_upstreams(upstream: AppKey) -> None:
    expected = "9db79b3fefe69f2a7b7efbc908c854bf845a629023361f2c9cb3db09fb99010f"
    assert upstream.derive("vms", "signing", "secp256k1").key.hex() == expected


def test_the_proof_of_a_key_is_upstreams(upstream: AppKey) -> None:
    link0 = (
        "c8a3dcf06c4e95bd78a5d7a1c8fcff171fc5848cfae804c6fc11bda4dc5d4062"
        "379995390843827444992c4c0e4bac70f0f878e01b9fc8b98cd7126fe5a3876b01"
    )
    assert upstream.derive("test", "signing", "secp256k1").signature_chain[0].hex() == link0


SIMULATOR_KEYS = [
    (
        ("", "", "secp256k1"),
        "aa221ae548b5a8f52fcb8687cfd873712f6a1232b2717e5ee3d58ab74f21905b",
        "027458ba47c31272b5076edebdc1ecdaedef806b10d76dd0a209cbd1fa14a3f9cf",
        (
            "64ce2f1b381d04f7404fda78bdc942c314d89b7069d97eea1897e51b249dd3b1"
            "700995cbf7efe7ff04195dd6e31f153b702eeeeaffc5941510739dc39b9bd9cf01"
        ),
    ),
    (
        ("/", "test", "secp256k1"),
        "f6c1ed94488394d78e0a4e5ab75d62e9f085d73b0b555d0614fb90ca13d9464d",
        "026b694842460eff475d4e4b36a908c4ca05db27fe54bd7fb5db31c367a52ef211",
        (
            "0b0fa470162c54f108850d143442c48d43f1cc42983b8e9c589679345b831d2b"
            "5bb5b97b21c2d2d036520209deae8b6111318c68eafc786190d6edc52e5cf0c201"
        ),
    ),
    (
        ("/", "test", "ed25519"),
        "f6c1ed94488394d78e0a4e5ab75d62e9f085d73b0b555d0614fb90ca13d9464d",
        "50c1bfb9452a56317338272a252bd7430b38843d10fa4d491351a434a13bdc21",
        (
            "7752352aa2ad8b337a3845661073fb42ef1b1d3313d8ce0b8976ccc21505e0c6"
            "2e79eb7aaf9b51768b0f9762e62098710ce4e8cabd450670b2fb0040e8551cb300"
        ),
    ),
    (
        ("my/key/path", "signing", "secp256k1"),
        "866d0884686e5afdbdaace8bd77c0b4f69a30dbe9506d69270a07bf247c8f4f0",
        "0327936f74b569370540b92cff37af615ecc339fd95504b35b782b850808b7de66",
        (
            "4e9bccd54a86c85b72d04453183a9aa8c989861142cc5caf2cdba12f99e834c8"
            "1c0117311cf290357f9db94b79faba8074e3fe8764e6576a5fb657a89060fe3301"
        ),
    ),
    (
        ("vms", "signing", "secp256k1"),
        "1091a4d6721f6a719ca57320e4975f7e237649131111ee1c5032f661dc1cfef2",
        "036105f01d1fd781568f7c208b087b1c4f522601410ed7e9c7870d573de7c46d54",
        (
            "51ec279eb0da3fb45335c2fd6badaf701905bf35f229912976c4ae3c9d649cf9"
            "7f964473f2dce7118743bad84a6df707d11c9b5f0b38379204e14fd2c7baddba01"
        ),
    ),
    (
        ("vms", "signing", "ed25519"),
        "1091a4d6721f6a719ca57320e4975f7e237649131111ee1c5032f661dc1cfef2",
        "698f56bd587d8ce3ca8db0e1c361ba9d190089f98dc4d9df800ff92ed073a65d",
        (
            "d61ff204728dae76ba4e29313003433d533d069f9c98ebb3382104145f1c664c"
            "59fac4326a86420ec3f450303d3a675d595f546448076a464343bcc25143c4a300"
        ),
    ),
]


@pytest.mark.parametrize(("arguments", "key", "public", "link0"), SIMULATOR_KEYS)
def test_keys_of_the_simulator(
    arguments: tuple[str, str, str], key: str, public: str, link0: str, simulator: AppKey
) -> None:
    derived = simulator.derive(*arguments)
    found = (derived.key.hex(), derived.public_key.hex(), derived.signature_chain[0].hex())
    assert found == (key, public, link0)


def test_the_tls_key_of_a_path(simulator: AppKey) -> None:
    scalar = simulator.derive_tls_scalar("/")
    x962 = spki_der(p256_key(scalar).public_key())[-64:]
    public = bytes([2 + x962[-1] % 2]) + x962[:32]
    assert (scalar.hex(), public.hex()) == (
        "f6c1ed94488394d78e0a4e5ab75d62e9f085d73b0b555d0614fb90ca13d9464d",
        "02f367a52fd0e8d5f8ded5ffd0057a00083780aae19b4afcd17b96b9337f69ed07",
    )


@pytest.mark.parametrize("length", [10, 2000])
def test_a_key_is_the_same_when_it_is_asked_for_again(length: int, upstream: AppKey) -> None:
    first = upstream.derive("p" * length, "x", "")
    assert upstream.derive("p" * length, "x", "") == first
    assert upstream.derive("p" * length, "y", "").signature_chain != first.signature_chain


@pytest.mark.parametrize("alias", ["", "k256"])
def test_aliases_of_secp256k1(alias: str, upstream: AppKey) -> None:
    assert upstream.derive("p", "x", alias) == upstream.derive("p", "x", "secp256k1")


@pytest.mark.parametrize(
    ("domain", "algorithm", "key"),
    [
        ("", "secp256k1", "59f60584ce6fd2a3a31997256db9d77322463fc8a6b1520110401bcb1ee92387"),
        ("", "ed25519", "b023493030669cf22e9cafa6a464d4cf3ae4edfe5474ec796710f21ea011946d"),
        (
            "storage-encryption",
            "secp256k1",
            "5510330f86902ddae38c6d89c93a8408019332c17a429e1abd01c4a28d1544a6",
        ),
        ("k\0:ey", "ed25519", "42da8bf0b479ed125c370e3b91f982735bf08ff592abbd586985affa43ee96a1"),
    ],
)
def test_keys_of_v1(domain: str, algorithm: str, key: str, upstream: AppKey) -> None:
    assert upstream.derive_v1(domain, algorithm).key.hex() == key


def test_the_proof_of_a_v1_key_is_upstreams(upstream: AppKey) -> None:
    link0 = (
        "5b6193729ce7976ec67863f21692d4b98c69832698aae8e001a7d33a6f818b6e"
        "46ca950725b6e90e8ca9bcf394abd03ce264bf9b7eec1e91693247f9dd53c26901"
    )
    assert upstream.derive_v1("storage-encryption", "secp256k1").signature_chain[0].hex() == link0


@pytest.mark.parametrize("algorithm", ["rsa", "secp256k1_prehashed", "SECP256K1", "p256"])
def test_refuses_an_algorithm_that_v0_has_not(algorithm: str, upstream: AppKey) -> None:
    with refuses("guest_keys.algorithm", ProtocolError):
        upstream.derive("p", "", algorithm)


@pytest.mark.parametrize("algorithm", ["", "k256", "secp256k1_prehashed", "rsa"])
def test_v1_has_neither_default_nor_alias(algorithm: str, upstream: AppKey) -> None:
    with refuses("guest_keys.algorithm", ProtocolError):
        upstream.derive_v1("d", algorithm)


def test_refuses_bytes_that_are_no_scalar() -> None:
    with refuses("guest_keys.scalar", ProtocolError):
        public_key_of(bytes(32), "secp256k1")


def test_refuses_an_app_key_that_is_no_scalar() -> None:
    with refuses("keys.k256.scalar", ConfigError):
        AppKey(bytes(32), b"")


def test_keys_that_no_kms_made_have_an_empty_second_link(upstream: AppKey) -> None:
    assert [len(link) for link in upstream.derive("p", "", "").signature_chain] == [65, 0]


def test_secrets_are_not_shown(upstream: AppKey) -> None:
    key = upstream.derive("p", "", "")
    shown = repr(key) + repr(upstream) + str(key.__rich_repr__())
    assert key.key.hex() not in shown
    assert UPSTREAM_TEST_KEY.hex() not in shown


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
def test_a_chain_leads_to_the_kms(algorithm: str, issued: AppKey) -> None:
    key = issued.derive("path", "purpose", algorithm)
    claim = claim_v0("purpose", key.public_key)
    signer = verify_key_chain(claim, key.signature_chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)
    assert signer == issued.public_key


def test_a_v1_chain_leads_to_the_kms(issued: AppKey) -> None:
    key = issued.derive_v1("domain", "ed25519")
    claim = claim_v1("ed25519", "domain", key.public_key)
    signer = verify_key_chain(claim, key.signature_chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)
    assert signer == issued.public_key


def test_a_chain_tells_its_root(issued: AppKey) -> None:
    key = issued.derive("path", "", "")
    claim = claim_v0("", key.public_key)
    assert root_of_key_chain(claim, key.signature_chain, app_id=APP_ID) == ROOT_PUBLIC


def test_refuses_the_chain_of_another_app(issued: AppKey) -> None:
    key = issued.derive("path", "", "")
    with refuses("keys.issued.signer"):
        verify_key_chain(
            claim_v0("", key.public_key), key.signature_chain, app_id=bytes(20), root_pubkey=ROOT_PUBLIC
        )


def test_refuses_the_chain_of_another_kms(issued: AppKey) -> None:
    key = issued.derive("path", "", "")
    other = public_key(bytes([3]) * 32)
    with refuses("keys.issued.signer"):
        verify_key_chain(claim_v0("", key.public_key), key.signature_chain, app_id=APP_ID, root_pubkey=other)


@pytest.mark.parametrize(("purpose", "path"), [("other", "path"), ("purpose", "elsewhere")])
def test_refuses_the_chain_of_another_claim(purpose: str, path: str, issued: AppKey) -> None:
    chain = issued.derive("path", "purpose", "").signature_chain
    claim = claim_v0(purpose, issued.derive(path, "purpose", "").public_key)
    with refuses("keys.issued.signer"):
        verify_key_chain(claim, chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC)


@pytest.mark.parametrize("keep", [0, 1])
def test_refuses_a_chain_without_the_kms(keep: int, issued: AppKey) -> None:
    key = issued.derive("path", "", "")
    with refuses("guest_keys.chain"):
        verify_key_chain(
            claim_v0("", key.public_key), key.signature_chain[:keep], app_id=APP_ID, root_pubkey=ROOT_PUBLIC
        )


def test_refuses_keys_that_no_kms_made(upstream: AppKey) -> None:
    key = upstream.derive("path", "", "")
    with refuses("guest_keys.chain"):
        verify_key_chain(
            claim_v0("", key.public_key), key.signature_chain, app_id=APP_ID, root_pubkey=ROOT_PUBLIC
        )


@pytest.mark.parametrize("length", [0, 19, 21, 32])
def test_n60_refuses_to_verify_a_key_for_an_app_id_of_another_length(length: int, issued: AppKey) -> None:
    key = issued.derive("path", "", "")
    with refuses("keys.app_id.length", ProtocolError):
        verify_key_chain(
            claim_v0("", key.public_key), key.signature_chain, app_id=bytes(length), root_pubkey=ROOT_PUBLIC
        )


@given(TEXT, TEXT, TEXT, TEXT)
def test_n60_no_two_v1_keys_make_one_claim(one: str, other: str, first: str, second: str) -> None:
    """The parts are framed: moving a byte from one to the next gives another text."""
    pairs = {(one, first), (other, second)}
    assert len({claim_v1(algorithm, domain, b"key") for algorithm, domain in pairs}) == len(pairs)


@given(TEXT, TEXT)
def test_n60_a_path_is_the_whole_context(one: str, other: str) -> None:
    """v0 concatenates nothing: two paths are two keys."""
    app = AppKey(UPSTREAM_TEST_KEY, b"")
    assert (app.derive(one, "", "").key == app.derive(other, "", "").key) == (one == other)


def test_n61_one_path_gives_every_algorithm_of_v0_the_same_secret(upstream: AppKey) -> None:
    """Upstream's bytes, kept: running apps encrypt by them."""
    secrets = {upstream.derive("p", "x", algorithm).key for algorithm in ("", "k256", "ed25519")}
    assert secrets == {upstream.derive_tls_scalar("p")}


def test_n61_v1_gives_each_algorithm_its_own_secret(upstream: AppKey) -> None:
    assert upstream.derive_v1("d", "secp256k1").key != upstream.derive_v1("d", "ed25519").key


def test_the_app_key_signs_the_claim(upstream: AppKey) -> None:
    key = upstream.derive("p", "x", "ed25519")
    signed_by = recover_public_key(claim_v0("x", key.public_key), key.signature_chain[0])
    assert signed_by == upstream.public_key
