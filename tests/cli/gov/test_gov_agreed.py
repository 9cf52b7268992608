"""Several endpoints: what decides something is what enough of them say, and one alone is said to be one."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.gov.agreed import AgreedEndpoint
from cli.gov.chain import Contracts
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, RevertedError
from tests.cli.gov.conftest import OWNER, Ran, Site
from tests.cli.gov.relays import Relay, relays
from tests.cli.gov.test_gov_changes import refused
from tests.docs.console_page import call
from tests.shared.refusal import refuses

Fresh = Callable[[], str]


@pytest.fixture
def three(site: Site) -> Iterator[list[Relay]]:
    with relays(site.chain.url, 3) as found:
        yield found


def gov(site: Site, endpoints: Sequence[Relay], *words: str) -> Ran:
    options = [part for one in endpoints for part in ("--rpc-url", one.url)]
    return Ran(*call(["gov", *words, *options, "--kms-contract", site.kms]))


def send(site: Site, endpoints: Sequence[Relay], *words: str) -> Ran:
    return gov(site, endpoints, *words, "--send", "--key-file", str(site.key_file()))


def test_one_endpoint_is_said_to_be_one(site: Site) -> None:
    assert "by the word of one endpoint" in site.gov("status").output
    assert site.gov("status", "--json").json["endpoints"] == {"asked": 1, "agreeing": 1}
    assert "by the word of one endpoint" in site.gov("image", "list").output


def test_several_that_agree_are_said_to(site: Site, three: list[Relay]) -> None:
    assert "as 2 of 3 endpoints say" in gov(site, three, "status").output
    told = gov(site, three, "status", "--json", "--rpc-quorum", "3").json
    assert told["endpoints"] == {"asked": 3, "agreeing": 3}


def test_endpoints_are_read_from_the_environment(
    site: Site, three: list[Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTACK_RPC_URL", " ".join(one.url for one in three))
    output, code = call(["gov", "image", "list", "--kms-contract", site.kms])
    assert ("as 2 of 3 endpoints say" in output, code) == (True, 0)


def test_endpoints_are_read_from_the_config(site: Site, three: list[Relay], tmp_path: Path) -> None:
    chain = {"rpc_urls": [one.url for one in three], "rpc_quorum": 3}
    (tmp_path / "config.json").write_text(json.dumps({"chain": chain}))
    words = ["gov", "image", "list", "--kms-contract", site.kms]
    assert "as 3 of 3 endpoints say" in call(words)[0]
    assert "as 2 of 2 endpoints say" in call([*words, "--rpc", three[0].url, "--rpc", three[1].url])[0]
    (tmp_path / "config.json").write_text(json.dumps({"chain": chain | {"rpc_quorum": -1}}))
    output, code = call(words)
    assert ("[gov.rpc]" in output, code) == (True, 2)


def test_several_tell_the_id_that_an_app_will_have(site: Site, three: list[Relay]) -> None:
    words = ("app", "deploy", "--owner", site.address(OWNER), "--owner-is-key")
    told, alone = gov(site, three, *words), site.gov(*words)
    assert told.output.splitlines()[1:] == alone.output.splitlines()[1:]
    assert (told.code, "the app id will be 0x" in told.output) == (4, True)


def test_one_that_lies_is_outvoted(site: Site, three: list[Relay], fresh: Fresh) -> None:
    value = fresh()
    three[0].lies("eth_call", "0x" + "00" * 31 + "01")  # as if everything were allowed
    told = gov(site, three, "image", "add", value, "--json")
    assert (told.code, told.json["calls"][0]["is_made"]) == (4, False)
    assert told.json["calls"][0]["sender"] == site.gov("status", "--json").json["kms"]["owner"]


@pytest.mark.parametrize(
    ("method", "lie"),
    [
        ("eth_call", "0x" + "00" * 31 + "01"),
        ("eth_getCode", "0x60"),
        ("eth_getStorageAt", "0x" + "11" * 32),
        ("eth_getLogs", []),
        ("eth_chainId", "0x1"),
    ],
)
def test_two_that_differ_decide_nothing(site: Site, three: list[Relay], method: str, lie: object) -> None:
    three[1].lies(method, lie)
    site.app()
    refused(gov(site, three[:2], "status", "--from-block", "0"), "quorum.disagreement", 1)


def test_a_block_that_only_one_names_is_not_asked_about(site: Site, three: list[Relay]) -> None:
    head = site.owner.web3.eth.block_number
    forged = {"number": hex(head + 5), "hash": "0x" + "ab" * 32, "timestamp": "0x1", "baseFeePerGas": "0x1"}
    three[2].lies("eth_getBlockByNumber", forged)
    told = gov(site, three, "image", "list", "--json")
    assert (told.code, told.json["block"]["number"]) == (0, head)


def test_all_must_answer_where_all_must_agree(site: Site, three: list[Relay]) -> None:
    three[2].fails("no")
    assert gov(site, three, "image", "list").code == 0
    refused(gov(site, three, "image", "list", "--rpc-quorum", "3"), "rpc.error", 1)


@pytest.mark.parametrize("words", [["--rpc-quorum", "4"], ["--rpc-quorum", "0"]])
def test_a_quorum_is_one_that_can_be(site: Site, three: list[Relay], words: list[str]) -> None:
    ran = gov(site, three, "image", "list", *words)
    assert ran.code == 2


def test_two_urls_of_one_host_are_one_voice(site: Site) -> None:
    words = ["gov", "image", "list", "--kms-contract", site.kms]
    output, code = call([*words, "--rpc", site.chain.url, "--rpc", f"{site.chain.url}/other"])
    assert ("[gov.rpc]" in output, code) == (True, 2)


# ---- sending ----


def test_a_transaction_goes_to_the_first_that_takes_it(site: Site, three: list[Relay], fresh: Fresh) -> None:
    value = fresh()
    three[0].fails("not today", "eth_sendRawTransaction")
    ran = send(site, three, "image", "add", value)
    assert ran.code == 0, ran.output
    sent = ["eth_sendRawTransaction" in one.methods for one in three]
    assert sent == [True, True, False]
    assert site.owner.kms.functions.allowedOsImages(value).call()


def test_sends_several_calls_and_waits_for_what_enough_have_seen(
    site: Site, three: list[Relay], fresh: Fresh
) -> None:
    three[2].lies("eth_getTransactionReceipt", None)
    ran = send(site, three, "image", "add", fresh(), fresh(), "--json")
    assert (ran.code, len(ran.json["transactions"])) == (0, 2)


def test_a_receipt_that_only_one_shows_is_waited_for(site: Site, three: list[Relay], fresh: Fresh) -> None:
    for one in three[1:]:
        one.lies("eth_getTransactionReceipt", None)
    value = fresh()
    refused(send(site, three, "image", "add", value, "--timeout", "1"), "gov.not_mined", 6)
    for one in three:
        one.honest()
    assert send(site, three, "image", "add", value).code == 0


@pytest.mark.parametrize("count", [1, 2])
def test_an_app_is_made_once_where_endpoints_fail_after_they_took_it(
    site: Site, three: list[Relay], count: int
) -> None:
    asked = three[:count]
    words = ("app", "deploy", "--owner", site.address(OWNER), "--owner-is-key")
    before = len(site.gov("app", "list", "--json").json["apps"])
    for one in asked:
        one.fails_late("request timed out", "eth_sendRawTransaction")
    refused(send(site, asked, *words), "gov.maybe_sent", 1)
    for one in asked:
        one.honest()
    ran = send(site, asked, *words, "--json")
    assert ran.code == 0, ran.output
    assert ran.json["transactions"][0]["app_id"]
    assert len(site.gov("app", "list", "--json").json["apps"]) == before + 1
    assert not any("eth_sendRawTransaction" in one.methods for one in asked)


def test_one_endpoint_sets_neither_nonce_nor_gas_nor_fee(
    site: Site, three: list[Relay], fresh: Fresh
) -> None:
    lies = {"eth_estimateGas": hex(1 << 24), "eth_maxPriorityFeePerGas": hex(1 << 50)}

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        is_mined = asked["method"] == "eth_getTransactionCount" and asked["params"][1] != "pending"
        result = "0x0" if is_mined else lies.get(asked["method"])
        return None if result is None else {"result": result}

    three[0].lie = lie
    ran = send(site, three, "image", "add", fresh())
    assert ran.code == 0, ran.output


# ---- the rules, without a network ----


class Node:
    """An endpoint that answers by method, or fails."""

    secure = True

    def __init__(self, host: str, answers: "dict[str, Any] | DstackError") -> None:
        self.host = host
        self.answers = answers

    def batch(self, calls: Sequence[Call]) -> list[object]:
        if isinstance(self.answers, DstackError):
            raise self.answers
        return [self.answers[method] for method, _ in calls]


def ask(method: str, *answers: Any, quorum: int = 2, params: Sequence[object] = ()) -> object:
    nodes = [
        Node(f"node{number}.example", one if isinstance(one, DstackError) else {method: one})
        for number, one in enumerate(answers)
    ]
    return AgreedEndpoint(nodes, quorum).batch([(method, params)])[0]


REVERT = RevertedError("reverted", b"\1")
DOWN = UnavailableError("net.timeout", "no answer")


def test_the_answer_has_only_what_was_voted_on() -> None:
    one = {"number": "0xA", "hash": "0xAB", "timestamp": "0x1", "extraData": "0x11"}
    other = {"number": "0xa", "hash": "0xab", "timestamp": "0x1", "extraData": "0x22"}
    assert ask("eth_getBlockByNumber", one, other, params=["0xa", False]) == {
        "number": "0xa",
        "hash": "0xab",
        "timestamp": "0x1",
    }


def test_nodes_that_write_logs_differently_agree() -> None:
    log = {"address": "0xAA", "topics": ["0xBB"], "data": "0x", "removed": False, "blockTimestamp": "0x1"}
    bare = {"address": "0xaa", "topics": ["0xbb"], "data": "0x"}
    assert ask("eth_getLogs", [log], [bare]) == [bare]
    receipt = {"status": "0x1", "logs": [log], "contractAddress": None, "type": "0x2"}
    assert ask("eth_getTransactionReceipt", receipt, {"status": "0x1", "logs": [bare]}) == {
        "status": "0x1",
        "logs": [bare],
    }


def test_a_revert_is_an_answer() -> None:
    with refuses("rpc.reverted", RevertedError):
        ask("eth_call", REVERT, REVERT, "0x")
    assert ask("eth_call", "0x", REVERT, "0x") == "0x"
    with refuses("quorum.disagreement", UnavailableError):
        ask("eth_call", "0x", REVERT)


def test_no_answer_is_no_vote() -> None:
    assert ask("eth_call", "0x", DOWN, "0x") == "0x"
    with refuses("net.timeout", UnavailableError):
        ask("eth_call", "0x", DOWN, DOWN)


def test_half_of_the_answers_is_no_majority() -> None:
    with refuses("quorum.disagreement", UnavailableError):
        ask("eth_call", "0x", "0x", "0x01", "0x01")


def test_of_what_nodes_reckon_the_middle_counts_and_of_what_waits_the_most() -> None:
    assert ask("eth_estimateGas", "0x5", "0xffffff", "0x6") == "0x6"
    assert ask("eth_maxPriorityFeePerGas", "0x5", "0xffffff", "0x6") == "0x6"
    assert ask("eth_getTransactionCount", "0x5", "0x7", "0x5", params=["0x", "pending"]) == "0x7"


def test_a_block_that_is_named_by_its_hash_is_asked_about_as_it_is() -> None:
    at = {"blockHash": "0x" + "ab" * 32}
    assert ask("eth_getTransactionCount", "0x5", "0x5", params=["0x", at]) == "0x5"


@pytest.mark.parametrize("told", [("0x5", "0xffffff"), ("0xffffff", "0x4", "0x5", "0x6")])
def test_no_endpoint_alone_raises_the_tip_or_lowers_the_gas(told: tuple[str, ...]) -> None:
    assert ask("eth_maxPriorityFeePerGas", *told) == "0x5"
    lowered = [one.replace("0xffffff", "0x1") for one in told]
    assert ask("eth_estimateGas", *lowered) == "0x5"


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        (("rpc.error", "rpc.error"), "rpc.error"),
        (("rpc.error", "net.timeout"), "net.timeout"),
        (("net.timeout", "rpc.error"), "net.timeout"),
    ],
)
def test_of_failures_to_send_the_one_that_leaves_most_open_is_told(
    failures: tuple[str, ...], code: str
) -> None:
    with refuses(code, UnavailableError):
        ask("eth_sendRawTransaction", *(UnavailableError(one, "insufficient funds") for one in failures))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("nonce too low", "already known"), "already known"),
        (("request timed out", "already known"), "already known"),
        (("insufficient funds", "request timed out"), "request timed out"),
        (("insufficient funds", "nonce too low"), "nonce too low"),
    ],
)
def test_of_errors_the_one_that_says_most_of_a_transaction_on_its_way_is_told(
    said: tuple[str, ...], told: str
) -> None:
    with refuses("rpc.error", UnavailableError) as caught:
        ask("eth_sendRawTransaction", *(UnavailableError("rpc.error", one) for one in said))
    assert caught.value.message == told


def test_a_number_that_is_none_is_refused() -> None:
    with refuses("rpc.malformed", ProtocolError):
        ask("eth_estimateGas", "5", "6")


@pytest.mark.parametrize(("hosts", "quorum"), [(["a", "a"], 1), (["a"], 2), (["a"], 0), ([], 1)])
def test_takes_distinct_hosts_and_a_quorum_of_them(hosts: list[str], quorum: int) -> None:
    with refuses("gov.rpc", ConfigError):
        AgreedEndpoint([Node(host, {}) for host in hosts], quorum)


def test_says_who_was_asked() -> None:
    endpoint = AgreedEndpoint([Node("a", {}), Node("b", {})], 2)
    assert (endpoint.host, endpoint.secure, endpoint.size) == ("a, b", True, 2)
    assert Contracts(endpoint, bytes(20)).kms == bytes(20)
