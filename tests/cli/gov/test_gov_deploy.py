"""`gov deploy`: what it creates is shown, simulated, and made by a real Safe, at addresses known before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_utils import to_checksum_address

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from cli.gov import sending
from cli.gov.chain import Contracts
from cli.gov.creation import Creation, bytecode, created_text, creations
from cli.gov.simulation import simulate_creation
from shared.boot_info import TDX, BootInfo
from shared.chain.code import APP, KMS, PROXY
from shared.chain.create2 import DEPLOYER, create2_address, read_creation_call
from shared.errors import PolicyDenied, ProtocolError
from shared.keccak import keccak256
from tests.cli.gov.conftest import OTHER, PAYER, Ran, Site
from tests.cli.gov.relays import Relay, relays
from tests.cli.gov.test_gov_changes import refused
from tests.cli.gov.test_gov_hostile import AT, Liar
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import call
from tests.safe.real_safe import RealSafe, need_safe
from tests.shared.refusal import refuses

OWNERS = slice(3, 6)


def deploy(url: str, *words: str) -> Ran:
    return Ran(*call(["gov", "deploy", *words, "--rpc", url]))


def salt_of(claim: str) -> str:
    """Return a salt of a test's own: the chain is shared."""
    return f"0x{keccak256(claim.encode()).hex()}"


def boot(app_id: bytes = b"", compose_hash: bytes = b"\2" * 32) -> BootInfo:
    return BootInfo(
        tee_variant=TDX,
        mr_aggregated=b"\1" * 32,
        os_image_hash=b"\3" * 32,
        mr_system=b"\4" * 32,
        app_id=app_id,
        compose_hash=compose_hash,
        instance_id=b"\5" * 20,
        device_id=b"\6" * 32,
        key_provider_info=b"",
        tcb_status="UpToDate",
        advisory_ids=(),
    )


@pytest.fixture
def relay(site: Site) -> Iterator[Relay]:
    with relays(site.chain.url, 1) as (found,):
        yield found


# ---- a real Safe ----


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    need_safe()
    with start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS) as running:  # whose blocks become final
        yield running


@pytest.fixture(scope="module")
def safe(chain: Chain) -> RealSafe:
    return RealSafe(Governance(chain.url, chain.accounts[PAYER]), chain.accounts[OWNERS], threshold=2)


@pytest.fixture
def state(chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("DSTACK_CHAIN_ID", str(chain.chain_id))
    for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_safe_creates_its_own_contracts_where_it_was_told(
    chain: Chain, safe: RealSafe, state: Path
) -> None:
    path = state / "deploy.json"
    ran = deploy(chain.url, "--owner", safe.address, "--safe", str(path), "--json")
    assert ran.code == 5, ran.output
    app, kms, proxy = (one["address"] for one in ran.json["would_create"])
    assert [one["to"] for one in json.loads(path.read_text())["transactions"]] == [
        to_checksum_address(DEPLOYER)
    ] * 3
    safe.execute(path, signers=2)

    governance = Governance(chain.url, chain.accounts[PAYER], kms=bytes.fromhex(proxy[2:]))
    functions = governance.kms.functions
    assert functions.owner().call() == safe.address
    assert functions.appImplementation().call() == app
    told = Ran(*call(["gov", "status", "--kms-contract", proxy, "--rpc", chain.url, "--json"])).json["kms"]
    assert (told["owner"], told["code"]["known"], told["code"]["implementation"]) == (safe.address, True, kms)

    again = deploy(chain.url, "--owner", safe.address, "--safe", str(state / "again.json"))
    assert (again.code, again.output.count("already there")) == (0, 3)
    assert f"owner      {safe.address}, a Safe, 2 of 3 must sign" in again.output
    assert not (state / "again.json").exists()

    # and they decide: the Safe allows an image, anybody makes an app, and the app may have keys
    def gov(*words: str) -> Ran:
        return Ran(*call(["gov", *words, "--kms-contract", proxy, "--rpc", chain.url]))

    info = boot()
    allow = state / "allow.json"
    assert gov("image", "add", info.os_image_hash.hex(), "--safe", str(allow)).code == 5
    made = gov(
        *("app", "deploy", "--owner", safe.address, "--compose-hash", info.compose_hash.hex()),
        *("--device-id", info.device_id.hex(), "--safe", str(allow), "--append", "--json"),
    )
    assert made.code == 5, made.output
    safe.execute(allow, signers=2)
    (app_id,) = (one["app_id"] for one in json.loads(gov("app", "list", "--json").output)["apps"])
    asked = boot(bytes.fromhex(app_id[2:]))
    assert governance.is_app_allowed(asked) == (True, "")
    assert governance.is_app_allowed(boot(asked.app_id, b"\7" * 32)) == (False, "Compose hash not allowed")


def test_what_is_there_is_left_out_of_the_file(chain: Chain, safe: RealSafe, state: Path) -> None:
    path, salt = state / "deploy.json", salt_of("left out of the file")
    key = state / "payer.key"
    key.write_text(chain.accounts[OTHER].private_key.hex())
    key.chmod(0o600)
    sent = deploy(
        chain.url, "--only", "DstackApp", "--salt", salt, "--create2", "--send", "--key-file", str(key)
    )
    assert sent.code == 0, sent.output
    words = ["--owner", safe.address, "--salt", salt, "--safe", str(path)]
    first = deploy(chain.url, *words, "--json")
    assert [one["is_there"] for one in first.json["would_create"]] == [True, False, False]
    assert len(json.loads(path.read_text())["transactions"]) == 2
    safe.execute(path, signers=2)
    assert deploy(chain.url, *words, "--append").code == 0


# ---- shown and simulated ----


def test_shows_the_arguments_decoded(site: Site) -> None:
    ran = deploy(site.chain.url, "--owner", site.kms, "--create2")
    assert ran.code == 4
    assert f"initialize(initialOwner={site.kms}, appImplementation=0x" in ran.output
    assert ran.output.count("  address 0x") == 3
    plain = deploy(site.chain.url, "--owner", site.kms)
    assert "implementation=the DstackKms above" in plain.output
    assert "  address" not in plain.output


def test_a_dry_run_carries_out_what_the_endpoint_can(site: Site) -> None:
    for words in (["--create2"], []):
        ran = deploy(site.chain.url, "--owner", site.kms, "--dry-run", "--json", *words)
        assert ran.code == 4, ran.output
        app, kms, proxy = ran.json["simulated"]
        assert app["gas"] > 1_000_000
        assert kms["gas"] > 2_000_000
        if site.chain.engine == "anvil":
            assert (100_000 < proxy["gas"] < 1_000_000, proxy["why_not"]) == (True, "")
        else:
            assert proxy["gas"] is None
            assert "takes no state override" in proxy["why_not"]
    assert (
        "NOT simulated: ERC1967Proxy" in deploy(site.chain.url, "--owner", site.kms, "--dry-run").output
    ) == (site.chain.engine != "anvil")


def test_a_dry_run_wants_no_pretence_where_the_implementation_is(site: Site) -> None:
    salt = salt_of("no pretence")
    key = ["--send", "--key-file", str(site.key_file(OTHER))]
    for only in ("DstackApp", "DstackKms"):
        assert deploy(site.chain.url, "--only", only, "--create2", "--salt", salt, *key).code == 0
    ran = deploy(site.chain.url, "--owner", site.kms, "--dry-run", "--salt", salt, "--create2", "--json")
    assert [one["contract"] for one in ran.json["simulated"]] == [PROXY]
    assert ran.json["simulated"][0]["gas"] > 100_000


def test_a_key_creates_them_at_the_same_addresses_once(site: Site) -> None:
    salt = salt_of("the same addresses")
    words = ["--owner", site.kms, "--salt", salt, "--create2"]
    shown = [one["address"] for one in deploy(site.chain.url, *words, "--json").json["would_create"]]
    key = ["--send", "--key-file", str(site.key_file(OTHER))]
    made = deploy(site.chain.url, *words, *key, "--json").json
    assert [made["DstackApp"], made["DstackKms"], made["proxy"]] == shown
    nonce = site.owner.web3.eth.get_transaction_count(site.chain.accounts[OTHER].address)
    again = deploy(site.chain.url, *words, *key)
    assert ("NOTHING TO DO" in again.output, again.code) == (True, 0)
    assert site.owner.web3.eth.get_transaction_count(site.chain.accounts[OTHER].address) == nonce


def test_another_salt_is_another_contract(site: Site) -> None:
    found = {
        deploy(site.chain.url, "--owner", site.kms, "--create2", "--salt", salt, "--json").json[
            "would_create"
        ][2]["address"]
        for salt in ("11" * 32, "22" * 32)
    }
    assert len(found) == 2
    refused(deploy(site.chain.url, "--owner", site.kms, "--salt", "11" * 32), "gov.option", 2)


@pytest.mark.parametrize("code", ["0x", "0x60"])
def test_a_chain_without_the_deployment_proxy_is_told(site: Site, relay: Relay, code: str) -> None:
    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        is_asked = asked["method"] == "eth_getCode" and asked["params"][0] == f"0x{DEPLOYER.hex()}"
        return {"result": code} if is_asked else None

    relay.lie = lie
    refused(deploy(relay.url, "--owner", site.kms, "--safe", "-"), "gov.deploy.create2", 2)
    refused(deploy(relay.url, "--owner", site.kms, "--create2"), "gov.deploy.create2", 2)
    assert deploy(relay.url, "--owner", site.kms).code == 4


def test_other_code_at_the_address_is_told(site: Site, relay: Relay) -> None:
    words = ["--owner", site.kms, "--create2", "--json"]
    place = deploy(relay.url, *words).json["would_create"][0]["address"].lower()

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        is_asked = asked["method"] == "eth_getCode" and asked["params"][0] == place
        return {"result": "0x60"} if is_asked else None

    relay.lie = lie
    refused(deploy(relay.url, *words), "gov.deploy.code", 1)


# ---- sent, through endpoints that fail or lie, and over a chain that changes ----


def sent(site: Site, relay: Relay) -> Ran:
    return deploy(relay.url, "--owner", site.kms, "--send", "--key-file", str(site.key_file(OTHER)))


def told(ran: Ran) -> list[str]:
    """Return the lines that tell an address."""
    lines = ran.output.splitlines()
    return [line for line in lines if line.startswith(("DstackApp", "DstackKms", "proxy"))]


def nonce(site: Site) -> int:
    return int(site.owner.web3.eth.get_transaction_count(site.chain.accounts[OTHER].address))


def test_no_contract_takes_the_place_of_one_that_the_chain_dropped(site: Site, relay: Relay) -> None:
    if site.chain.engine != "anvil":
        pytest.skip("only anvil can be told to reorganise")
    mined: list[str] = []

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        if asked["method"] != "eth_getTransactionReceipt" or mined:
            return None
        found = site.owner.web3.provider.make_request(asked["method"], asked["params"])
        if found["result"] is None:
            return None
        mined.append(asked["params"][0])
        site.owner.web3.provider.make_request("anvil_reorg", [1, []])
        return {"result": found["result"]}

    before = nonce(site)
    relay.lie = lie
    refused(sent(site, relay), "gov.reorg", 1)
    assert nonce(site) == before
    again = sent(site, relay)
    assert again.code == 0, again.output
    assert nonce(site) == before + 3
    places = [line.split()[1] for line in told(again)]
    assert len(set(places)) == 3
    kms = site.gov("status", "--kms-contract", places[2], "--json").json["kms"]
    assert [kms["app_implementation"], kms["code"]["implementation"]] == places[:2]


def test_a_creation_that_was_taken_and_answered_with_an_error_is_not_made_again(
    site: Site, relay: Relay
) -> None:
    before = nonce(site)
    # each of the three is taken, and none is said to be
    relay.fails_late("request timed out", "eth_sendRawTransaction")
    for _ in range(3):
        refused(sent(site, relay), "gov.maybe_sent", 1)
    relay.honest()
    assert sent(site, relay).code == 0
    assert nonce(site) == before + 3


def test_an_address_that_an_endpoint_makes_up_is_refused(site: Site, relay: Relay) -> None:
    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        if asked["method"] != "eth_getTransactionReceipt":
            return None
        found = site.owner.web3.provider.make_request(asked["method"], asked["params"])["result"]
        return {"result": found and dict(found) | {"contractAddress": "0x" + "66" * 20}}

    relay.lie = lie
    refused(sent(site, relay), "rpc.malformed", 1)
    relay.honest()
    assert sent(site, relay).code == 0


def test_no_two_contracts_are_at_one_address(
    site: Site, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "create_address", lambda *_: b"\x66" * 20)

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        if asked["method"] != "eth_getTransactionReceipt":
            return None
        found = site.owner.web3.provider.make_request(asked["method"], asked["params"])["result"]
        return {"result": found and dict(found) | {"contractAddress": "0x" + "66" * 20}}

    relay.lie = lie
    ran = sent(site, relay)
    refused(ran, "gov.deploy.code", 1)
    assert "DstackKms would be where another contract is" in ran.output


def test_what_was_created_is_told_where_the_report_fails(site: Site, relay: Relay) -> None:
    before = nonce(site)
    relay.fails("rate limited", "eth_getStorageAt")
    ran = sent(site, relay)
    refused(ran, "rpc.error", 1)
    assert len(told(ran)) == 3
    relay.honest()
    again = sent(site, relay)
    assert (again.code, told(again)) == (0, told(ran))
    assert nonce(site) == before + 3


@pytest.mark.parametrize("selector", ["8da5cb5b", "25a992da", ""])
def test_a_proxy_is_held_to_what_was_sent(site: Site, relay: Relay, selector: str) -> None:
    other = "0x" + (site.deployed.kms_implementation if not selector else b"\x66" * 20).rjust(32, b"\0").hex()

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        if asked["method"] == "eth_call" and asked["params"][0]["data"] == f"0x{selector}":
            return {"result": other}
        # another one of a known build
        return {"result": other} if asked["method"] == "eth_getStorageAt" and not selector else None

    relay.lie = lie
    ran = sent(site, relay)
    refused(ran, "gov.deploy.code", 1)
    assert "the proxy has another " in ran.output


# ---- simulation, against endpoints that lie ----


SALT = bytes(32)


def proxy_creation() -> Creation:
    return creations((KMS, PROXY), b"\x0a" * 20, b"\x0b" * 20, SALT)[1]


@pytest.mark.parametrize("answer", ["0x60", "0x"])
def test_other_code_than_was_compiled_is_no_success(answer: str) -> None:
    with refuses("gov.deploy.code", ProtocolError):
        simulate_creation(
            Contracts(Everything(answer), bytes(20)), Creation(name=APP, salt=SALT), bytes(20), AT
        )


def test_a_creation_that_the_contract_refuses_is_told() -> None:
    with refuses("gov.would_revert", PolicyDenied):
        simulate_creation(Contracts(Liar(), bytes(20)), proxy_creation(), bytes(20), AT)


class Everything(Liar):
    """An endpoint that gives one answer to all calls."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self._answer = answer

    def _one(self, method: str, params: Any) -> object:
        return self._answer if method == "eth_call" else super()._one(method, params)


# ---- read back ----


def test_reads_what_a_call_to_the_deployment_proxy_creates() -> None:
    kms, proxy = creations((KMS, PROXY), b"\x0a" * 20, b"\x0b" * 20, SALT)
    at = to_checksum_address(create2_address(SALT, kms.code))
    assert created_text(kms.calldata) == f"create DstackKms at {at}"
    told = created_text(proxy.calldata)
    assert told is not None
    assert f"(implementation={at}, data=initialize(initialOwner=0x0B0b" in told


@pytest.mark.parametrize(
    "calldata",
    [
        b"",
        SALT,
        SALT + b"\x60",
        SALT + bytecode(KMS) + b"\0",
        SALT + bytecode(PROXY),
        SALT + bytecode(PROXY) + b"\xff" * 64,
        proxy_creation().calldata[:-1] + b"\1",
    ],
)
def test_reads_nothing_else_as_ours(calldata: bytes) -> None:
    assert created_text(calldata) is None


def test_calldata_to_the_deployment_proxy_has_a_salt() -> None:
    with refuses("calldata.length", ProtocolError):
        read_creation_call(SALT)
