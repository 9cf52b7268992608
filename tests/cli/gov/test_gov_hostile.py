"""Endpoints that answer what cannot be: `gov` refuses it by name, and prints none of it raw."""

from collections.abc import Sequence
from typing import Any

import pytest

from cli.gov import deploy
from cli.gov.chain import VIEW_GAS, Block, Contracts
from cli.gov.change import Change, look
from cli.gov.code import Code
from shared.chain import calldata
from shared.chain.abi import checksum_address
from shared.chain.abi_values import decode_values, encode_values
from shared.chain.create2 import DEPLOYER
from shared.errors import DstackError, ProtocolError
from shared.net.json_rpc import Call, RevertedError
from tests.cli.gov.conftest import OTHER, OWNER, Site
from tests.cli.gov.relays import relays
from tests.cli.gov.test_gov_changes import refused
from tests.docs.console_page import call
from tests.shared.refusal import refuses

KMS = b"\xaa" * 20
AT = Block(chain_id=1, number=5, hash=b"\1" * 32, time=0)
WORD = "0x" + "00" * 31 + "01"


class Liar:
    """An endpoint whose answers are given by method, and for views by selector."""

    host, secure = "node.example", True

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "eth_chainId": "0x1",
            "eth_getBlockByNumber": {"number": "0x5", "hash": "0x" + "01" * 32, "timestamp": "0x1"},
            "eth_getCode": "0x60",
            "eth_getStorageAt": "0x" + "00" * 32,
        } | answers

    def batch(self, calls: Sequence[Call]) -> list[object]:
        return [self._one(method, params) for method, params in calls]

    def _one(self, method: str, params: Sequence[Any]) -> object:
        if method != "eth_call":
            return self.answers[method]
        found = self.answers.get(params[0]["data"][2:10])
        if found is None:
            raise RevertedError("reverted", b"")
        return found


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("eth_chainId", None),
        ("eth_chainId", "0x" + "1" * 70),
        ("eth_getBlockByNumber", None),
        ("eth_getBlockByNumber", {}),
        ("eth_getBlockByNumber", {"number": "5", "hash": WORD, "timestamp": "0x1"}),
        ("eth_getBlockByNumber", {"number": "0x5", "hash": "0x01", "timestamp": "0x1"}),
    ],
)
def test_a_block_that_is_none_is_refused(method: str, answer: object) -> None:
    with refuses("rpc.malformed", ProtocolError):
        Contracts(Liar(**{method: answer}), KMS).pin()


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"eth_getCode": None}, "rpc.malformed"),
        ({}, "gov.contract"),
        ({"8da5cb5b": WORD, "e30c3978": "0x"}, "gov.contract"),
        ({"8da5cb5b": "0x" + "ff" * 32, "e30c3978": WORD}, "gov.contract"),
        ({"8da5cb5b": WORD, "e30c3978": WORD, "9a4e1d18": "0x" + "00" * 31 + "02"}, "gov.contract"),
    ],
)
def test_a_contract_that_answers_something_else_is_refused(answers: dict[str, object], code: str) -> None:
    change = Change(to=KMS, function=calldata.ADD_OS_IMAGE_HASH, arguments=(b"\1" * 32,))
    with pytest.raises(DstackError) as caught:
        look(Contracts(Liar(**answers), KMS), change, AT)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "owners",
    [
        "0x",
        WORD,
        "0x" + (32).to_bytes(32, "big").hex() + "ff" * 32,
        "0x" + (32).to_bytes(32, "big").hex() + (1).to_bytes(32, "big").hex() + "ff" * 32,
        "0x" + (32).to_bytes(32, "big").hex() + (0).to_bytes(32, "big").hex(),
    ],
)
def test_an_owner_that_only_looks_like_a_safe_is_none(owners: str) -> None:
    liar = Liar(**{"8da5cb5b": WORD, "e30c3978": WORD, "e75235b8": WORD, "a0e67e2b": owners})
    owner = Contracts(liar, KMS).owner(KMS, AT)
    assert (owner.threshold, owner.signers, owner.has_code) == (0, (), True)


def test_a_safe_that_needs_more_signers_than_it_has_is_none() -> None:
    owners = "0x" + (32).to_bytes(32, "big").hex() + (0).to_bytes(32, "big").hex()
    liar = Liar(**{"8da5cb5b": WORD, "e30c3978": WORD, "e75235b8": "0x" + "ff" * 32, "a0e67e2b": owners})
    assert Contracts(liar, KMS).owner(KMS, AT).threshold == 0


def test_a_gateway_that_writes_on_the_terminal_is_shown_as_text(site: Site) -> None:
    site.owner.settle(site.owner.set_gateway_app_id("\x1b[2Jgateway"))
    output = site.gov("status").output
    assert "\x1b" not in output
    assert r"'\x1b[2Jgateway'" in output
    since = site.gov("image", "list", "--json").json["block"]["number"]
    assert "\x1b" not in site.gov("watch", "--from-block", str(since), "--no-follow").output
    site.owner.settle(site.owner.set_gateway_app_id(""))


def test_an_app_that_burns_all_gas_hides_nothing(site: Site) -> None:
    app_id = checksum_address(DEPLOYER)  # it makes of any call a contract of endless size
    assert site.send("app", "register", app_id).code == 0
    ran = site.gov("status")
    assert (ran.code, app_id in ran.output) == (0, True)
    assert app_id in site.gov("app", "list").output


# what answers each call: an endless loop, two MiB, and the address of an endless loop as of who owns it
LOOP = "5b5f56"
BIG = "62200000" + "5f" + "f3"


@pytest.mark.parametrize("kind", ["loop", "big", "owner"])
def test_no_app_that_anybody_registers_blinds_the_operator(site: Site, kind: str) -> None:
    beside = site.app()
    app_id = site.contract(BIG if kind == "big" else LOOP)
    if kind == "owner":
        app_id = site.contract("73" + app_id[2:] + "5f5260205ff3")
    assert site.send("app", "register", app_id, account=OTHER).code == 0
    ran = site.gov("status", "--json")
    assert ran.code == 0, ran.output
    found = {one["app_id"]: one for one in ran.json["apps"]}
    assert found[beside]["owner"] == site.address(OWNER)
    assert found[app_id]["code"]["known"] is False
    ran = site.gov("app", "list")
    assert (ran.code, beside in ran.output, app_id in ran.output) == (0, True, True)


def test_an_app_whose_views_cannot_be_read_is_told(site: Site) -> None:
    app_id, beside = site.app(), site.app()
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: (
            {"error": {"code": -32000, "message": "gas required exceeds allowance"}}
            if asked["method"] == "eth_call" and asked["params"][0]["to"] == app_id.lower()
            else None
        )
        ran = site.gov("status", "--json", rpc=relay.url)
        found = {one["app_id"]: one for one in ran.json["apps"]}
        assert (ran.code, found[beside]["unread"]) == (0, "")
        assert "gas required exceeds allowance [rpc.error]" in found[app_id]["unread"]
        assert f"app {app_id} could not be read" in site.gov("status", rpc=relay.url).output
        assert "could not be read" in site.gov("app", "list", rpc=relay.url).output


def test_views_of_apps_alone_have_a_bound_of_gas() -> None:
    asked: list[dict[str, Any]] = []

    class Recorder(Liar):
        def batch(self, calls: Sequence[Call]) -> list[object]:
            asked.extend(params[0] for _, params in calls)  # type: ignore[misc]
            return [WORD for _ in calls]

    contracts = Contracts(Recorder(), KMS)
    contracts.views(AT, (KMS, b"\1\2\3\4"), (b"\xbb" * 20, b"\1\2\3\4"))
    assert [one.get("gas") for one in asked] == [None, hex(VIEW_GAS)]


@pytest.mark.parametrize("contract", ["", "DstackKms"])
def test_code_that_is_another_than_was_deployed_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, contract: str
) -> None:
    found = Code(address=bytes(20), code_hash=bytes(32), contract=contract)
    monkeypatch.setattr(deploy, "implementation_code", lambda *_: found)
    options = ["--rpc", site.chain.url, "--send", "--key-file", str(site.key_file(OWNER))]
    output, code = call(["gov", "deploy", "--only", "DstackApp", *options])
    assert ("[gov.deploy.code]" in output, code) == (True, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("kms", "list"),
        ("image", "list"),
        ("app", "list"),
        ("status",),
        ("watch", "--no-follow"),
        ("kms", "add-mr", "11" * 32),
        ("transfer-ownership", "none"),
        ("set-gateway", "11" * 20),
        ("app", "deploy", "--owner", "0x" + "11" * 20),
        ("app", "register", DEPLOYER.hex()),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["another", "app", "silent"])
def test_another_contract_than_the_kms_contract_is_told(
    site: Site, words: tuple[str, ...], kind: str
) -> None:
    wrong = {"another": checksum_address(DEPLOYER), "app": "", "silent": ""}[kind]
    if kind == "app":
        wrong = site.app()
    elif kind == "silent":
        wrong = site.contract("00")  # STOP, as the fallback of a Safe
    if kind == "app" and words[0] == "transfer-ownership":
        words = ("kms", "remove-mr", "11" * 32)  # apps have that function
    refused(site.gov(*words, "--kms-contract", wrong), "gov.contract", 2)


def test_an_app_needs_an_owner(site: Site) -> None:
    refused(site.gov("app", "deploy", "--owner", "0x" + "00" * 20), "gov.app.deploy", 2)
    both = ["--owner", site.address(OWNER), "--owner-is-key", "--device-id", "11" * 32, "--allow-any-device"]
    refused(site.gov("app", "deploy", *both), "gov.option", 2)


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        (("bool",), (1,)),
        (("address",), (b"\1" * 21,)),
        (("bytes32",), ("1",)),
        (("uint64",), (True,)),
        (("uint64",), (1 << 64,)),
        (("string",), (b"",)),
        (("bytes",), ("",)),
        (("(bytes,bytes,bytes,bytes)",), ((b"",),)),
        ((), (b"",)),
    ],
)
def test_no_value_is_written_as_another_type(kinds: Any, values: Any) -> None:
    with refuses("abi.argument", ProtocolError):
        encode_values(kinds, values)


@pytest.mark.parametrize("raw", ["", "00" * 31, "ff" * 32, "00" * 31 + "20" + "ff" * 32, "00" * 64])
def test_no_bytes_are_read_as_a_string_that_they_are_not(raw: str) -> None:
    with refuses("abi.malformed", ProtocolError):
        decode_values(("string",), bytes.fromhex(raw))
