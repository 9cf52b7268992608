"""Calldata of governance calls, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3

from cli.devchain.artifacts import artifact
from shared.chain import calldata
from shared.chain.calldata import FUNCTIONS, Function, decode_call, encode_call, shown
from shared.errors import ProtocolError
from shared.keccak import keccak256
from tests.shared.refusal import refuses

VALUES: dict[str, st.SearchStrategy[object]] = {
    "address": st.binary(min_size=20, max_size=20),
    "bytes32": st.binary(min_size=32, max_size=32),
    "bool": st.booleans(),
    "string": st.text(),
    "bytes": st.binary(max_size=100),
    "(bytes,bytes,bytes,bytes)": st.tuples(*[st.binary(max_size=100)] * 4),
}
CONTRACTS = {"kms": ("DstackKms",), "app": ("DstackApp",), "both": ("DstackKms", "DstackApp")}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda one: one.name)
def test_selectors_are_the_hash_of_the_signature(function: Function) -> None:
    assert function.selector == keccak256(function.signature.encode())[:4]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda one: one.name)
def test_the_contracts_have_each_function(function: Function) -> None:
    types = [kind if kind[0] != "(" else "tuple" for kind in function.kinds]
    for contract in CONTRACTS[function.target]:
        assert types in [
            [one["type"] for one in item["inputs"]]
            for item in artifact(contract).abi
            if item.get("name") == function.name
        ]


@given(st.sampled_from(list(FUNCTIONS.values())), st.data())
def test_decoding_gives_back_what_was_encoded(function: Function, data: st.DataObject) -> None:
    arguments = tuple(data.draw(VALUES[kind]) for kind in function.kinds)
    assert decode_call(encode_call(function, *arguments)) == (function, arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (calldata.SET_KMS_INFO, ((b"\2" * 33, b"\3" * 91, b"", b"x"),)),
        (calldata.SET_GATEWAY_APP_ID, ("any \u00e9",)),
        (calldata.UPGRADE_TO_AND_CALL, (b"\1" * 20, b"\2" * 33)),
        (calldata.DEPLOY_AND_REGISTER_APP, (b"\1" * 20, True, False, True, b"\2" * 32, b"\3" * 32)),
        (calldata.ACCEPT_OWNERSHIP, ()),
    ],
    ids=lambda one: one.name if isinstance(one, Function) else "",
)
def test_writes_the_bytes_that_web3_writes(function: Function, arguments: tuple[object, ...]) -> None:
    contract = Web3().eth.contract(abi=artifact("DstackKms").abi)
    assert encode_call(function, *arguments).hex() == contract.encode_abi(function.signature, arguments)[2:]  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(), (b"x" * 31,), (True,), (b"x" * 32, b"x" * 32), (b"x" * 20,)])
def test_refuses_arguments_of_another_type(arguments: tuple[bytes, ...]) -> None:
    with refuses("calldata.argument", ProtocolError):
        encode_call(calldata.ADD_OS_IMAGE_HASH, *arguments)


def test_refuses_bytes_for_a_bool() -> None:
    with refuses("calldata.argument", ProtocolError):
        encode_call(calldata.SET_REQUIRE_TCB_UP_TO_DATE, b"\1")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "calldata.selector"),
        (b"\0\0\0\0", "calldata.selector"),
        (bytes.fromhex("06a3ae96"), "calldata.length"),
        (bytes.fromhex("06a3ae96") + bytes(33), "calldata.length"),
        (bytes.fromhex("17a1d80f") + b"\1" * 32, "calldata.word"),
        (bytes.fromhex("6e4c7422") + bytes(31) + b"\2", "calldata.word"),
        (bytes.fromhex("6e4c7422") + b"\1" + bytes(31), "calldata.word"),
        (bytes.fromhex("3971db27"), "calldata.length"),
        (bytes.fromhex("3971db27") + bytes(31) + b"\x20", "calldata.word"),
        (bytes.fromhex("3971db27") + bytes(64), "calldata.word"),
        (bytes.fromhex("3971db27") + bytes(31) + b"\x20" + bytes(64), "calldata.word"),
        (
            bytes.fromhex("3971db27") + bytes(31) + b"\x20" + bytes(31) + b"\1\xff" + bytes(31),
            "calldata.word",
        ),
    ],
)
def test_refuses_calldata_that_means_something_else(raw: bytes, code: str) -> None:
    with refuses(code, ProtocolError):
        decode_call(raw)


def test_shows_arguments_as_people_write_them() -> None:
    assert shown(True) == "true"
    assert shown(False) == "false"
    assert shown("a\n") == "'a\\n'"
    assert shown((b"\1", b"")) == "(0x01, 0x)"
    assert shown(b"\xab" * 32) == "0x" + "ab" * 32
    assert shown(bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")) == (
        "0x75537828f2ce51be7289709686A69CbFDbB714F1"
    )
