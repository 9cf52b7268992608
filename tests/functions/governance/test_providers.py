"""Each provider's signature, and where in its body the logs are."""

import gzip
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from functions.governance.delivery import Delivery
from functions.governance.networks import UNKNOWN
from functions.governance.providers import MAX_BODY, PROVIDERS, plain_body, verify
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "data" / "contracts" / "webhook-signatures.json").read_text()
)["vectors"]
SIGNED_AT = 1767225600
SIGN_NO_TIME = {"alchemy", "moralis"}
HASH = "0x" + "ab" * 32
ADDRESS = "0x" + "22" * 20
TOPIC = "0x" + "cd" * 32


def named(vector: dict[str, Any]) -> str:
    return str(vector["provider"]).removesuffix("-monitor")


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_the_vector_of_each_provider_verifies(vector: dict[str, Any]) -> None:
    verify(
        PROVIDERS[named(vector)],
        [b"another", vector["secret"].encode()],
        lowered(vector["headers"]),
        vector["body"].encode(),
        SIGNED_AT,
    )


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_another_body_of_each_provider_is_refused(vector: dict[str, Any]) -> None:
    with refuses("governance.signature"):
        verify(
            PROVIDERS[named(vector)],
            [vector["secret"].encode()],
            lowered(vector["headers"]),
            vector["body"].encode() + b" ",
            SIGNED_AT,
        )


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_a_signed_time_that_is_old_is_refused(vector: dict[str, Any]) -> None:
    provider = PROVIDERS[named(vector)]
    given = [vector["secret"].encode()], lowered(vector["headers"]), vector["body"].encode()
    if named(vector) in SIGN_NO_TIME:
        verify(provider, *given, SIGNED_AT + 10_000)
        return
    for skew in (-301, 301):
        with refuses("governance.timestamp"):
            verify(provider, *given, SIGNED_AT + skew)


def test_a_date_that_tenderly_would_not_write_is_refused() -> None:
    headers = {"date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    headers["x-tenderly-signature"] = hmac.new(b"s", b"{}" + headers["date"].encode(), "sha256").hexdigest()
    with refuses("governance.timestamp"):
        verify(PROVIDERS["tenderly"], [b"s"], headers, b"{}", SIGNED_AT)


def test_a_signature_that_is_no_text_of_ours_is_refused() -> None:
    with refuses("governance.signature"):
        verify(PROVIDERS["alchemy"], [b"s"], {"x-alchemy-signature": "\udcff☃"}, b"{}", 0)


def read(provider: str, document: dict[str, Any]) -> Delivery:
    return PROVIDERS[provider].read(document)


def log(**fields: Any) -> dict[str, Any]:
    return {"address": ADDRESS, "topics": [TOPIC], "data": "0x"} | fields


def test_alchemy_has_its_logs_in_a_block() -> None:
    block = {
        "hash": HASH,
        "number": 7,
        "logs": [{"account": {"address": ADDRESS}, "topics": [TOPIC], "index": 3, "removed": True}],
    }
    delivery = read(
        "alchemy",
        {
            "id": "whevt_1",
            "event": {"network": "BASE_MAINNET", "data": {"block": block}, "sequenceNumber": "1"},
        },
    )
    [hint] = delivery.hints
    assert (delivery.id, hint.block_number, hint.log_index, hint.removed) == ("whevt_1", 7, 3, True)
    assert hint.chain_id == 8453


def chain_of(provider: str, network: object, **transaction: Any) -> int | None:
    """Return of which chain a delivery of one log says that it is."""
    place = {"blockHash": HASH, "blockNumber": "0x7"}
    block = {"hash": HASH, "number": 7, "logs": [log()]}
    documents = {
        "alchemy": {"id": "1", "event": {"network": network, "data": {"block": block}}},
        "quicknode": {
            "data": [log(**place, logIndex="0x0")],
            "metadata": {"network": network, "batch_start_range": 1},
        },
        "openzeppelin": {
            "EVM": {"network_slug": network, "transaction": place | transaction, "logs": [log()]}
        },
    }
    [hint] = read(provider, documents[provider]).hints
    return hint.chain_id


@pytest.mark.parametrize(
    ("provider", "network", "chain_id"),
    [
        ("alchemy", "ETH_MAINNET", 1),
        ("alchemy", "MATIC_MAINNET", 137),
        ("alchemy", "OPT_SEPOLIA", 11155420),
        ("quicknode", "ethereum-mainnet", 1),
        ("quicknode", "base-mainnet", 8453),
        ("quicknode", "arbitrum-sepolia", 421614),
        ("openzeppelin", "ethereum_sepolia", 11155111),
        ("openzeppelin", "arbitrum_one", 42161),
        ("openzeppelin", "base", 8453),
    ],
)
def test_a_chain_is_known_by_its_providers_name(provider: str, network: str, chain_id: int) -> None:
    assert chain_of(provider, network) == chain_id


@pytest.mark.parametrize("provider", ["alchemy", "quicknode"])
@pytest.mark.parametrize("network", ["ZKSYNC_MAINNET", "anything"])
def test_a_name_that_is_not_known_is_no_chain_of_ours(provider: str, network: str) -> None:
    assert chain_of(provider, network) == UNKNOWN


@pytest.mark.parametrize("provider", ["alchemy", "quicknode", "openzeppelin"])
def test_what_names_no_chain_says_none(provider: str) -> None:
    assert chain_of(provider, None) is None
    assert chain_of(provider, "") is None


@pytest.mark.parametrize("provider", ["alchemy", "quicknode", "openzeppelin"])
def test_a_network_that_is_no_text_is_refused(provider: str) -> None:
    with refuses("governance.body.shape", ProtocolError):
        chain_of(provider, {"name": "ETH_MAINNET"})


def test_openzeppelins_chain_id_counts_before_a_slug_that_the_operator_chose() -> None:
    assert chain_of("openzeppelin", "base_mainnet", chainId="0x1") == 1
    assert chain_of("openzeppelin", "base_mainnet", chainId="0x0") == 0
    assert chain_of("openzeppelin", "our_chain") is None


def test_openzeppelin_monitor_has_its_logs_in_a_match() -> None:
    match = {
        "transaction": {"chainId": "0x1", "blockHash": HASH, "blockNumber": "0x7"},
        "logs": [log(logIndex="0x2")],
        "network_slug": "ethereum_mainnet",
    }
    [hint] = read("openzeppelin", {"EVM": match}).hints
    assert (hint.chain_id, hint.block_number, hint.log_index) == (1, 7, 2)
    assert read("openzeppelin", {"title": "t", "body": "b"}).anywhere


def test_quicknode_has_its_logs_wherever_the_filter_put_them() -> None:
    found = log(blockHash=HASH, blockNumber="0x7", logIndex="0x1")
    [hint] = read("quicknode", {"data": [[{"receipts": [{"logs": [found]}]}]], "metadata": {}}).hints
    assert (hint.block_number, hint.log_index, hint.chain_id) == (7, 1, None)


def test_tenderly_has_its_logs_in_a_transaction_and_none_in_a_test() -> None:
    transaction = {"network": "1", "block_hash": HASH, "block_number": 7, "logs": [log()]}
    [hint] = read("tenderly", {"id": "1", "event_type": "ALERT", "transaction": transaction}).hints
    assert (hint.chain_id, hint.log_index) == (1, 0)
    assert read("tenderly", {"id": "1", "event_type": "TEST", "transaction": {}}).hints == ()


def test_moralis_has_its_logs_beside_a_block_and_none_in_a_test() -> None:
    found = {"address": ADDRESS, "topic0": TOPIC, "logIndex": "4"}
    block = {"hash": HASH, "number": "7", "timestamp": "1767225600"}
    [hint] = read("moralis", {"chainId": "0x1", "block": block, "logs": [found], "confirmed": False}).hints
    assert (hint.chain_id, hint.block_number, hint.log_index) == (1, 7, 4)
    assert read("moralis", {"chainId": "", "block": {}, "logs": []}).hints == ()


@pytest.mark.parametrize(
    "change",
    [
        {"address": "0x22"},
        {"topics": None},
        {"topics": ["0x00"]},
        {"blockHash": None},
        {"blockNumber": "x"},
        {"blockNumber": -1},
        {"logIndex": True},
    ],
    ids=str,
)
def test_a_log_that_says_not_where_it_is_is_refused(change: dict[str, Any]) -> None:
    document = {
        "id": "1",
        "chainId": 1,
        "logs": [log(blockHash=HASH, blockNumber=1, logIndex=0) | change],
    }
    with refuses("governance.body.shape", ProtocolError):
        read("plain", document)


@pytest.mark.parametrize("change", [{"topics": []}, {"topics": [None]}], ids=str)
def test_an_anonymous_log_has_no_topic(change: dict[str, Any]) -> None:
    logs = [log(blockHash=HASH, blockNumber=1, logIndex=0) | change]
    [hint] = read("plain", {"id": "1", "chainId": 1, "logs": logs}).hints
    assert hint.topic == b""


def test_an_anonymous_log_of_moralis_has_no_topic() -> None:
    block = {"hash": HASH, "number": "7"}
    found = {"address": ADDRESS, "topic0": None, "logIndex": "4"}
    [hint] = read("moralis", {"chainId": "0x1", "block": block, "logs": [found]}).hints
    assert hint.topic == b""


def test_a_log_without_any_field_for_topics_is_refused() -> None:
    found = {"address": ADDRESS, "blockHash": HASH, "blockNumber": 1, "logIndex": 0}
    with refuses("governance.body.shape", ProtocolError):
        read("plain", {"id": "1", "chainId": 1, "logs": [found]})


@pytest.mark.parametrize("value", [[], {}, [1], 1.5, True, "1_0", "-1", "0x-1", " 1"], ids=repr)
def test_a_chain_id_that_is_no_number_is_refused(value: object) -> None:
    with refuses("governance.body.shape", ProtocolError):
        read("plain", {"id": "1", "chainId": value, "logs": []})


def test_a_network_of_tenderly_that_is_no_number_is_refused() -> None:
    with refuses("governance.body.shape", ProtocolError):
        read("tenderly", {"id": "1", "transaction": {"network": {}, "logs": []}})


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
@pytest.mark.parametrize(
    "document", [{}, {"id": 1}, {"logs": 1}, {"EVM": 1}, {"event": []}, {"transaction": 1}]
)
def test_a_body_of_any_other_shape_is_refused_or_says_nothing(
    provider: str, document: dict[str, Any]
) -> None:
    try:
        delivery = read(provider, document)
    except ProtocolError as error:
        assert error.code == "governance.body.shape"  # noqa: PT017 - either is right
    else:
        assert delivery.hints == ()


class TestGzip:
    def test_quicknode_signs_what_the_gzip_holds(self) -> None:
        body = b'{"data":[],"metadata":{}}'
        assert plain_body({"content-encoding": "gzip"}, gzip.compress(body)) == body
        assert plain_body({}, body) == body

    def test_a_bomb_is_refused_before_it_unfolds(self) -> None:
        with refuses("governance.body.size", ProtocolError):
            plain_body({"content-encoding": "gzip"}, gzip.compress(bytes(64 * MAX_BODY)))

    @pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b"{}" * 100)[:-9]], ids=["none", "cut"])
    def test_what_is_no_gzip_is_refused(self, body: bytes) -> None:
        with refuses("governance.body.gzip", ProtocolError):
            plain_body({"content-encoding": "gzip"}, body)
