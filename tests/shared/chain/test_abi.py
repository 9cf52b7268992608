"""Calldata equals the vectors byte for byte, and answers are read strictly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3

from shared.boot_info import BootInfo
from shared.chain import abi
from shared.errors import ProtocolError
from shared.keccak import keccak256

ABI_DATA = Path(__file__).resolve().parents[2] / "data" / "contracts" / "abi"
BOOT_INFO = "(address,bytes32,address,bytes32,bytes32,bytes32,bytes32,string,string[])"


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def boot_info_of(values: dict[str, Any]) -> BootInfo:
    return BootInfo(
        tee_variant="",
        mr_aggregated=unhex(values["mrAggregated"]),
        os_image_hash=unhex(values["osImageHash"]),
        mr_system=unhex(values["mrSystem"]),
        app_id=unhex(values["appId"]),
        compose_hash=unhex(values["composeHash"]),
        instance_id=unhex(values["instanceId"]),
        device_id=unhex(values["deviceId"]),
        key_provider_info=b"",
        tcb_status=values["tcbStatus"],
        advisory_ids=tuple(values["advisoryIds"]),
    )


@pytest.mark.parametrize(
    ("name", "selector"),
    [("isAppAllowed_calldata", abi.IS_APP_ALLOWED), ("isKmsAllowed_calldata", abi.IS_KMS_ALLOWED)],
)
def test_calldata_equals_the_vectors(vectors: dict[str, Any], name: str, selector: bytes) -> None:
    assert f"0x{abi.boot_info_call(selector, boot_info_of(vectors['bootInfo'])).hex()}" == vectors[name]


def test_results_equal_the_vectors(vectors: dict[str, Any]) -> None:
    assert abi.decode_decision(unhex(vectors['return_(true,"")'])) == (True, "")
    denied = unhex(vectors['return_(false,"App not registered")'])
    assert abi.decode_decision(denied) == (False, "App not registered")


@pytest.mark.parametrize(
    ("selector", "signature"),
    [
        (abi.IS_APP_ALLOWED, f"isAppAllowed({BOOT_INFO})"),
        (abi.IS_KMS_ALLOWED, f"isKmsAllowed({BOOT_INFO})"),
        (abi.GATEWAY_APP_ID, "gatewayAppId()"),
        (abi.APP_IMPLEMENTATION, "appImplementation()"),
    ],
)
def test_selectors_are_those_of_the_contracts_interface(selector: bytes, signature: str) -> None:
    interface = json.loads((ABI_DATA / "DstackKms.json").read_text())["selectors"]
    assert selector == keccak256(signature.encode())[:4]
    assert selector in {unhex(known) for known in interface.values()}


@given(tcb=st.text(max_size=70), advisories=st.lists(st.text(max_size=40), max_size=4))
def test_calldata_equals_that_of_web3(tcb: str, advisories: list[str]) -> None:
    boot_info = BootInfo(
        tee_variant="",
        mr_aggregated=b"\x05" * 32,
        os_image_hash=b"\x06",
        mr_system=b"",
        app_id=b"\x01" * 20,
        compose_hash=b"\x02" * 32,
        instance_id=b"",
        device_id=b"\x04" * 32,
        key_provider_info=b"",
        tcb_status=tcb,
        advisory_ids=tuple(advisories),
    )
    contract = Web3().eth.contract(abi=json.loads((ABI_DATA / "DstackKms.json").read_text())["abi"])
    values = (
        boot_info.app_id,
        boot_info.compose_hash,
        bytes(20),
        boot_info.device_id,
        boot_info.mr_aggregated,
        bytes(32),
        boot_info.os_image_hash.rjust(32, b"\0"),
        tcb,
        advisories,
    )
    assert f"0x{abi.boot_info_call(abi.IS_KMS_ALLOWED, boot_info).hex()}" == contract.encode_abi(
        "isKmsAllowed", [values]
    )


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        word(1),
        word(2) + word(64) + word(0),
        word(1) + word(32) + word(0),
        word(1) + word(64) + word(1),
        word(1) + word(64) + word(2**255),
        word(1) + word(64) + word(1) + b"a" + bytes(30),
        word(1) + word(64) + word(1) + b"a" + bytes(30) + b"b",
        word(1) + word(64) + word(1) + b"\xff" + bytes(31),
        word(1) + word(64) + word(0) + b"\0",
    ],
)
def test_refuses_malformed_decisions(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        abi.decode_decision(data)
    assert caught.value.code == "abi.malformed"


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (abi.decode_address, word(2**160)),
        (abi.decode_address, bytes(20)),
        (abi.decode_string, word(0)),
    ],
)
def test_refuses_malformed_values(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert caught.value.code == "abi.malformed"


@given(st.binary(max_size=200))
def test_garbage_raises_no_error_but_ours(data: bytes) -> None:
    for decode in (abi.decode_decision, abi.decode_string, abi.decode_address):
        try:
            decode(data)
        except ProtocolError:
            continue


def test_arguments_are_padded_to_words_on_the_left() -> None:
    assert abi.call(b"\xa6\xc4\xcc\xe9", b"\x11" * 20) == b"\xa6\xc4\xcc\xe9" + bytes(12) + b"\x11" * 20


def test_reads_an_address() -> None:
    assert abi.decode_address(word(0xABCD)) == bytes(18) + b"\xab\xcd"


@pytest.mark.parametrize(
    "address",
    [
        "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0",
        "0x75537828f2ce51be7289709686A69CbFDbB714F1",
        "0x5FbDB2315678afecb367f032d93F642f64180aa3",
    ],
)
def test_checksums_addresses(address: str) -> None:
    assert abi.checksum_address(unhex(address)) == address
