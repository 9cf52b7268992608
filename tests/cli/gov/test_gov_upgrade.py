"""`gov deploy`, `gov upgrade`: the code that contracts run, known or named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.devchain.artifacts import artifact_path
from cli.devchain.governance import Governance
from cli.gov.code import Code, Variable, code_text, layout, layout_problems
from shared.keccak import keccak256
from tests.cli.gov.conftest import OTHER, OWNER, PAYER, Creation, Site
from tests.cli.gov.test_gov_changes import refused
from tests.docs.console_page import call

Fresh = Callable[[], str]


def deploy(site: Site, *words: str, key: int = OTHER) -> dict[str, Any]:
    options = ["--rpc", site.chain.url, "--send", "--key-file", str(site.key_file(key)), "--json"]
    output, code = call(["gov", "deploy", *words, *options])
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


def test_deploys_contracts_that_the_payer_does_not_own(site: Site) -> None:
    made = deploy(site, "--owner", site.kms)  # a contract, as a Safe is
    assert made["owner"] == site.kms
    told = site.gov("status", "--kms-contract", made["proxy"], "--json").json
    assert told["kms"]["code"]["known"] is True
    assert told["kms"]["app_implementation"] == made["DstackApp"]


def test_deploys_for_a_single_key_only_where_that_is_said(site: Site) -> None:
    options = ["--rpc", site.chain.url, "--owner", site.address(OWNER)]
    output, code = call(["gov", "deploy", *options])
    assert ("[gov.deploy.owner]" in output, code) == (True, 2)
    assert deploy(site, "--owner", site.address(OWNER), "--owner-is-key")["owner"] == site.address(OWNER)
    output, code = call(["gov", "deploy", "--rpc", site.chain.url, "--owner", site.kms, "--owner-is-key"])
    assert ("[gov.deploy.owner]" in output, code) == (True, 2)


def test_shows_what_it_would_create_and_sends_nothing(site: Site) -> None:
    output, code = call(["gov", "deploy", "--rpc", site.chain.url, "--owner", site.kms])
    assert (code, output.count("create ")) == (4, 3)


def test_uses_an_app_implementation_that_is_there(site: Site) -> None:
    there = deploy(site, "--only", "DstackApp")["DstackApp"]
    made = deploy(site, "--owner", site.kms, "--app-implementation", there)
    assert "DstackApp" not in made
    options = ["--rpc", site.chain.url, "--owner", site.kms, "--app-implementation", site.kms]
    output, code = call(["gov", "deploy", *options])
    assert ("[gov.deploy.app]" in output, code) == (True, 2)


def test_a_deployment_that_was_interrupted_goes_on(site: Site) -> None:
    if site.chain.engine != "anvil":
        pytest.skip("only anvil can be told to mine nothing")
    payer = site.chain.accounts[OTHER].address
    node = site.owner.web3.provider
    before = site.owner.web3.eth.get_transaction_count(payer)
    options = ["--rpc", site.chain.url, "--send", "--key-file", str(site.key_file(OTHER)), "--timeout", "1"]
    words = ["gov", "deploy", "--owner", site.kms, *options, "--json"]
    node.make_request("evm_setAutomine", [False])
    try:
        ends = []
        for _ in range(4):
            output, code = call(words)
            ends.append(code)
            node.make_request("evm_mine", [])
    finally:
        node.make_request("evm_setAutomine", [True])
    assert ends == [6, 6, 6, 0]
    assert site.owner.web3.eth.get_transaction_count(payer) == before + 3
    assert json.loads(output)["owner"] == site.kms


def test_upgrades_to_a_known_build(site: Site) -> None:
    new = deploy(site, "--only", "DstackKms")["DstackKms"]
    ran = site.send("upgrade", "--to", new)
    assert ran.code == 0, ran.output
    assert "the new code is DstackKms of dstack-cloud, cancun" in ran.output
    assert site.gov("status", "--json").json["kms"]["code"]["implementation"] == new
    assert "already" in site.gov("upgrade", "--to", new).output


def test_upgrades_an_app_to_a_known_build(site: Site) -> None:
    app_id = site.app()
    new = deploy(site, "--only", "DstackApp")["DstackApp"]
    assert site.send("upgrade", app_id, "--to", new).code == 0
    refused(site.gov("upgrade", "--to", new), "gov.upgrade.kind", 3)
    refused(site.gov("upgrade", app_id, "--to", "0x" + "77" * 20), "gov.contract", 2)


def test_the_kms_contract_that_is_named_is_no_app(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps({"ca_pubkey": "03" * 91, "k256_pubkey": "02" * 33}))
    site.send("kms", "set-info", str(path))  # in the slot that tells of an app whether upgrades are disabled
    new = deploy(site, "--only", "DstackKms")["DstackKms"]
    ran = site.gov("upgrade", site.kms, "--to", new)
    assert (ran.code, "the new code is DstackKms" in ran.output) == (4, True)


def test_sets_the_factorys_implementation(site: Site) -> None:
    new = deploy(site, "--only", "DstackApp")["DstackApp"]
    assert site.send("set-app-implementation", new).code == 0
    assert site.owner.kms.functions.appImplementation().call() == new
    kms = deploy(site, "--only", "DstackKms")["DstackKms"]
    refused(site.gov("set-app-implementation", kms), "gov.upgrade.kind", 3)


def test_refuses_unknown_code_unless_its_hash_is_named(site: Site) -> None:
    ran = site.gov("upgrade", "--to", site.kms)  # a proxy, so no build of DstackKms
    refused(ran, "gov.upgrade.unknown_code", 3)
    hashed = ran.output.partition("has hash ")[2][:66]
    ran = site.gov("upgrade", "--to", site.kms, "--code-hash", hashed)
    assert (ran.code, "its storage was not compared" in ran.output) == (4, True)
    refused(site.gov("upgrade", "--to", site.kms, "--code-hash", "11" * 32), "gov.upgrade.code_hash", 3)


def foreign(site: Site, place: Path, change: Callable[[list[dict[str, Any]]], None]) -> tuple[str, Path]:
    """Put code on the chain that nobody knows, and return its address and what describes it."""
    described = json.loads(artifact_path("DstackKms").read_text())
    runtime = bytearray.fromhex(described["deployedBytecode"][2:])
    runtime[-1] ^= 1  # of the metadata
    offsets = described["immutableOffsets"]
    # what a constructor does: the code copied, with its own address at the immutables
    creation = bytearray()
    length = len(runtime).to_bytes(2, "big")
    stores = b"".join(b"\x30\x61" + offset.to_bytes(2, "big") + b"\x52" for offset in offsets)
    size = 3 + 3 + 2 + 1 + len(stores) + 3 + 2 + 1
    creation += b"\x61" + length + b"\x61" + size.to_bytes(2, "big") + b"\x60\x00\x39" + stores
    creation += b"\x61" + length + b"\x60\x00\xf3"
    creation += runtime
    described["deployedBytecode"] = f"0x{runtime.hex()}"
    change(described["storageLayout"])
    path = place / "foreign.json"
    path.write_text(json.dumps(described))
    payer = Governance(site.chain.url, site.chain.accounts[PAYER])
    (made,) = payer.settle(payer.send(Creation(bytes(creation)), gas=4_000_000))
    return str(made["contractAddress"]), path


def test_takes_unknown_code_whose_storage_continues_the_present_ones(site: Site, tmp_path: Path) -> None:
    def add(variables: list[dict[str, Any]]) -> None:
        variables[-1] |= {"slot": 11, "bytes": 1568}
        variables.append({"label": "new", "slot": 10, "offset": 0, "bytes": 32, "type": "t_bytes32"})

    address, path = foreign(site, tmp_path, add)
    refused(site.gov("upgrade", "--to", address), "gov.upgrade.unknown_code", 3)
    ran = site.gov("upgrade", "--to", address, "--artifact", str(path), "--dry-run")
    assert (ran.code, "a KMS must pin it" in ran.output) == (4, True), ran.output


def test_refuses_unknown_code_that_would_misread_the_storage(site: Site, tmp_path: Path) -> None:
    def swap(variables: list[dict[str, Any]]) -> None:
        variables[2]["slot"], variables[3]["slot"] = variables[3]["slot"], variables[2]["slot"]

    address, path = foreign(site, tmp_path, swap)
    refused(site.gov("upgrade", "--to", address, "--artifact", str(path)), "gov.upgrade.layout", 3)


def test_refuses_an_artifact_of_other_code(site: Site, tmp_path: Path) -> None:
    address, _ = foreign(site, tmp_path, lambda _: None)
    ran = site.gov("upgrade", "--to", address, "--artifact", str(artifact_path("DstackKms")))
    refused(ran, "gov.upgrade.artifact", 3)
    broken = tmp_path / "broken.json"
    whole = json.loads(artifact_path("DstackKms").read_text())
    for text in ("{}", json.dumps(whole | {"deployedBytecode": "0xzz"})):
        broken.write_text(text)
        refused(site.gov("upgrade", "--to", address, "--artifact", str(broken)), "gov.artifact", 2)


def test_a_contract_that_is_no_proxy_is_said_to_be_none(site: Site) -> None:
    code = Code(address=bytes(20), code_hash=keccak256(b""))
    assert code_text(code).startswith("no proxy")
    assert code_text(msgspec.structs.replace(code, address=b"\1" * 20)).startswith("no code at all at 0x01")
    ran = site.gov("app", "register", site.deployed.kms_implementation.hex())
    assert "the app runs no proxy" not in ran.output
    assert "no proxy" in ran.output


def changed(contract: str, index: int, **values: Any) -> list[Variable]:
    found = list(layout(contract))
    found[index] = Variable(
        **{name: values.get(name, getattr(found[index], name)) for name in Variable.__struct_fields__}
    )
    return found


@pytest.mark.parametrize("contract", ["DstackKms", "DstackApp"])
def test_a_layout_continues_itself(contract: str) -> None:
    assert layout_problems(layout(contract), layout(contract)) == []


@pytest.mark.parametrize(
    "new",
    [
        changed("DstackKms", 2, slot=50),
        changed("DstackKms", 2, label="other"),
        changed("DstackKms", 2, type="t_bool"),
        changed("DstackKms", 2, offset=1),
        list(layout("DstackKms"))[1:],
        [*layout("DstackKms"), Variable("new", 9, 20, 1, "t_bool")],
    ],
)
def test_a_layout_that_moves_anything_is_none(new: list[Variable]) -> None:
    assert layout_problems(layout("DstackKms"), new)


def test_a_layout_may_take_from_the_gap() -> None:
    assert not layout_problems(
        layout("DstackKms"), [*layout("DstackKms"), Variable("new", 10, 0, 32, "t_bytes32")]
    )
