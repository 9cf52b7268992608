"""Which code is known: our artefacts, upstream's builds by their facts, and operator pins."""

from typing import Any

import pytest

from cli.devchain.artifacts import artifact
from shared.chain.code import MAX_KNOWN, code_list
from shared.chain.known_builds import KNOWN_BUILDS
from shared.errors import ConfigError
from shared.keccak import keccak256

ADDRESS = b"\xab" * 20
PIN: dict[str, Any] = {
    "contract": "DstackApp",
    "build": "pinned",
    "evm": "cancun",
    "length": 100,
    "immutable_offsets": [10],
    "masked_keccak256": "0x" + keccak256(bytes(100)).hex(),
}


def deployed(name: str, address: bytes) -> bytes:
    built = artifact(name)
    code = bytearray(bytes.fromhex(built.deployed_bytecode[2:]))
    for offset in built.immutable_offsets:
        code[offset : offset + 32] = address.rjust(32, b"\0")
    return bytes(code)


@pytest.mark.parametrize("name", ["DstackKms", "DstackApp"])
def test_knows_our_own_artefacts(name: str) -> None:
    assert code_list().is_implementation(name, deployed(name, ADDRESS), ADDRESS)


@pytest.mark.parametrize("name", ["DstackKms", "DstackApp"])
def test_refuses_our_own_code_with_zeroed_immutables(name: str) -> None:
    assert not code_list().is_implementation(name, deployed(name, bytes(20)), ADDRESS)


def test_knows_our_own_proxy() -> None:
    assert code_list().is_proxy(keccak256(deployed("ERC1967Proxy", ADDRESS)))


def test_upstreams_builds_equal_the_recorded_hashes(vectors: dict[str, Any]) -> None:
    recorded = {
        (contract, evm, facts["bytes"], facts["keccak256"])
        for contract, entry in vectors["runtimeCode"].items()
        for evm, facts in entry["evm"].items()
    }
    listed = {
        (build.contract, build.evm, build.length, build.masked_keccak256)
        for build in KNOWN_BUILDS
        if build.build == "upstream"
    }
    assert listed == recorded


def test_an_implementation_is_no_proxy() -> None:
    hashes = [
        bytes.fromhex(one.masked_keccak256[2:]) for one in KNOWN_BUILDS if one.contract != "ERC1967Proxy"
    ]
    assert not any(code_list().is_proxy(one) for one in hashes)


def test_operator_pins_are_added() -> None:
    code = bytearray(100)
    code[10:42] = ADDRESS.rjust(32, b"\0")
    assert not code_list().is_implementation("DstackApp", bytes(code), ADDRESS)
    assert code_list([PIN]).is_implementation("DstackApp", bytes(code), ADDRESS)


@pytest.mark.parametrize(
    "change",
    [
        {"contract": "Other"},
        {"length": 0},
        {"length": 24_577},
        {"length": "100"},
        {"immutable_offsets": []},
        {"immutable_offsets": [69]},
        {"immutable_offsets": [-1]},
        {"contract": "ERC1967Proxy"},
        {"unknown": 1},
    ],
)
def test_refuses_pins_that_describe_no_build(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        code_list([{**PIN, **change}])
    assert caught.value.code == "chain.implementations.invalid"


@pytest.mark.parametrize("digest", ["", "0x00", "0x" + "zz" * 32])
def test_refuses_pins_with_a_malformed_hash(digest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        code_list([{**PIN, "masked_keccak256": digest}])
    assert caught.value.code == "chain.implementations.invalid"


def test_code_of_unknown_length_is_unknown() -> None:
    assert not code_list([PIN]).is_implementation("DstackApp", bytes(99), ADDRESS)


def test_what_is_known_of_one_contract_is_not_said_of_another() -> None:
    codes = code_list()
    kms, app = (deployed(name, ADDRESS) for name in ("DstackKms", "DstackApp"))
    for _ in range(2):
        assert codes.is_deployed("DstackKms", kms, keccak256(kms), ADDRESS)
        assert not codes.is_deployed("DstackKms", app, keccak256(app), ADDRESS)
        assert not codes.is_deployed("DstackApp", kms, keccak256(kms), ADDRESS)
        assert not codes.is_deployed("DstackKms", kms, keccak256(kms), b"\xcd" * 20)


def test_forgets_what_is_known_before_it_grows_without_bound() -> None:
    codes = code_list()
    for index in range(3 * MAX_KNOWN):
        assert not codes.is_deployed("DstackApp", b"", index.to_bytes(32), ADDRESS)
    assert len(codes._known) <= MAX_KNOWN
