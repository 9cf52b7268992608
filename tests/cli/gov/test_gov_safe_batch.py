"""The file for a Safe's Transaction Builder, and its checksum."""

import json

import pytest

from cli.gov.safe_batch import batch_text, checksum, read_batch
from shared.errors import ConfigError
from tests.shared.refusal import refuses

CALLS = [(b"\xab" * 20, bytes.fromhex("06a3ae96") + b"\1" * 32), (b"\x01" * 20, b"\x79\xba\x50\x97")]

# the head, the method and the checksum of a file that Transaction Builder 1.18.2 wrote
WRITTEN_BY_THE_BUILDER = {
    "version": "1.0",
    "chainId": "1",
    "createdAt": 1761326849944,
    "meta": {
        "name": "Transactions Batch",
        "description": "",
        "txBuilderVersion": "1.18.2",
        "createdFromSafeAddress": "0xA77DE01e157f9f57C7c4A326eeE9C4874D0598b6",
        "createdFromOwnerAddress": "",
        "checksum": "0x8b5032f716845c8b08bab3d63dbd9ba92e056f3557793cd041e59b84e16aa989",
    },
    "transactions": [
        {
            "to": "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48",
            "value": "0",
            "data": None,
            "contractMethod": {
                "inputs": [
                    {"internalType": "address", "name": "spender", "type": "address"},
                    {"internalType": "uint256", "name": "value", "type": "uint256"},
                ],
                "name": "approve",
                "payable": False,
            },
            "contractInputsValues": {
                "spender": "0x474e5Ded6b5D078163BFB8F6dBa355C3aA5478C8",
                "value": "100000000000",
            },
        }
    ],
}


def test_the_checksum_is_the_builders() -> None:
    meta = WRITTEN_BY_THE_BUILDER["meta"]
    assert isinstance(meta, dict)
    assert checksum(WRITTEN_BY_THE_BUILDER) == meta["checksum"]


def test_the_checksum_does_not_cover_the_name() -> None:
    document = json.loads(batch_text(1, CALLS))
    document["meta"]["name"] = "another"
    assert checksum(document) == document["meta"]["checksum"]
    document["transactions"][0]["to"] = document["transactions"][1]["to"]
    assert checksum(document) != document["meta"]["checksum"]


def test_the_same_calls_are_the_same_bytes() -> None:
    assert batch_text(1, CALLS) == batch_text(1, list(CALLS))


def test_reading_gives_back_the_calls() -> None:
    assert read_batch(batch_text(5, CALLS), 5) == CALLS


@pytest.mark.parametrize(
    "change",
    [
        {"chainId": "2"},
        {"transactions": [{"to": "0x00", "data": "0x", "value": "0"}]},
        {"transactions": [{"to": "0x" + "11" * 20, "data": "0x1", "value": "0"}]},
        {"transactions": [{"to": "0x" + "11" * 20, "data": "0x", "value": "1"}]},
        {"transactions": [{"to": "0x" + "11" * 20, "data": None, "value": "0"}]},
        {"transactions": [{"to": "0x" + "11" * 20, "data": "0x", "value": "0"}] * 501},
        {"transactions": 5},
    ],
)
def test_adds_to_no_file_that_is_something_else(change: dict[str, object]) -> None:
    document = json.loads(batch_text(1, CALLS)) | change
    document["meta"]["checksum"] = checksum(document)
    with refuses("gov.safe_file", ConfigError):
        read_batch(json.dumps(document), 1)


@pytest.mark.parametrize("change", [{"createdAt": 1}, {"meta": {}}, {"meta": {"checksum": "0x" + "00" * 32}}])
def test_adds_to_no_file_that_was_changed_by_hand(change: dict[str, object]) -> None:
    with refuses("gov.safe_file", ConfigError) as caught:
        read_batch(json.dumps(json.loads(batch_text(1, CALLS)) | change), 1)
    assert "its checksum is another" in caught.value.message


@pytest.mark.parametrize("text", ["[]", "{", "[" * 5000, '{"meta": ' * 5000])
def test_adds_to_no_file_that_is_no_document(text: str) -> None:
    with refuses("gov.safe_file", ConfigError):
        read_batch(text, 1)
