"""`gov status --safe-service`: what waits for a Safe's owners, as far as the chain bears it out."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import defunct_hash_message

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from cli.gov import status
from cli.gov.chain import Contracts, Owner
from cli.gov.proposals import read_safe
from cli.gov.safe_service import MAX_PAGES, PAGE, SafeService
from cli.gov.safe_tx import (
    MAX_INNER,
    MULTI_SEND,
    MULTI_SENDS,
    Inner,
    SafeTransaction,
    Signed,
    domain_separators,
    read_multi_send,
    signer_of,
)
from shared.chain import calldata
from shared.chain.abi_values import Value, encode_values
from shared.chain.calldata import Function, encode_call
from shared.chain.create2 import DEPLOYER
from shared.errors import ConfigError, ProtocolError
from shared.keccak import keccak256
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from tests.cli.gov.conftest import OTHER, Ran, Site
from tests.cli.gov.test_gov_hostile import AT, Liar
from tests.cli.gov.test_gov_safe import OWNERS, SafeSite
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import call
from tests.safe.real_safe import CALL, DELEGATE_CALL, Asked, RealSafe, need_safe
from tests.safe.transaction_service import TransactionService, told, transaction_service
from tests.shared.refusal import refuses

Fresh = Callable[[], str]


class Desk:
    """A Safe that owns the contracts, and a service that people hand proposals to."""

    def __init__(self, site: SafeSite, service: TransactionService) -> None:
        self.site = site
        self.safe = site.safe
        self.service = service
        self.kms = bytes.fromhex(site.kms[2:])
        service.transactions[self.safe.address] = []
        self.refresh()

    @property
    def nonce(self) -> int:
        return int(self.safe.contract.functions.nonce().call())

    @property
    def told(self) -> list[dict[str, Any]]:
        return self.service.transactions[self.safe.address]

    @property
    def asked(self) -> list[str]:
        """What the service was asked of this Safe."""
        return [target for target, _ in self.service.asked if self.safe.address in target]

    def refresh(self) -> None:
        """Have the service see the Safe as it is."""
        functions = self.safe.contract.functions
        self.service.infos[self.safe.address] = {
            "address": self.safe.address,
            "nonce": str(self.nonce),
            "threshold": functions.getThreshold().call(),
            "owners": functions.getOwners().call(),
            "masterCopy": "0x" + "11" * 20,
            "modules": [],
            "fallbackHandler": "0x" + "00" * 20,
            "guard": "0x" + "00" * 20,
            "moduleGuard": "0x" + "00" * 20,
            "version": "1.5.0",
        }

    def propose(
        self, asked: Asked, *, signers: int = 2, nonce: int | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Hand a transaction in, signed by some; returns what the service tells of it, and its hash."""
        at = self.nonce if nonce is None else nonce
        digest = self.safe.hash_of(asked, at)
        to, value, data, operation, _, _, gas_price, _, _ = asked
        fields = {
            "to": to,
            "value": value,
            "data": data,
            "operation": operation,
            "gasPrice": gas_price,
            "nonce": at,
        }
        found = told(self.safe.address, fields, digest, self.safe.signatures(digest, signers))
        self.told.append(found)
        return found, digest

    def call(self, function: Function, *arguments: Value, to: bytes | None = None) -> Asked:
        return self.safe.asked(f"0x{(to or self.kms).hex()}", encode_call(function, *arguments))

    def status(self, *words: str) -> Ran:
        return self.site.gov("status", "--safe-service", self.service.url, *words)

    def proposals(self) -> list[dict[str, Any]]:
        ran = self.status("--json")
        assert ran.code == 0, ran.output
        (found,) = ran.json["proposals"]
        assert found["safe"] == self.safe.address
        listed: list[dict[str, Any]] = found["proposals"]
        return listed

    def dangers(self, asked: Asked) -> list[str]:
        """Propose something, and return what is said to be dangerous of it."""
        self.propose(asked)
        (one,) = self.proposals()
        found: list[str] = one["dangers"]
        return found

    @property
    def contracts(self) -> Contracts:
        return Contracts(JsonRpc(self.site.chain.url, HttpClient(DirectDialer())), self.kms)


def calls_of(path: Path) -> list[tuple[str, bytes]]:
    """Return the calls of a file for Transaction Builder."""
    document = json.loads(path.read_text())
    return [(one["to"], bytes.fromhex(one["data"][2:])) for one in document["transactions"]]


@pytest.fixture(scope="module")
def _safe_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SafeSite]:
    need_safe()
    with start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS) as chain, pytest.MonkeyPatch.context() as patched:
        place = tmp_path_factory.mktemp("proposals")
        patched.setenv("XDG_STATE_HOME", str(place / "state"))
        site = Site.__new__(Site)
        site.chain, site.place = chain, place
        yield SafeSite(site)


@pytest.fixture
def desk(_safe_site: SafeSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Desk]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("DSTACK_CHAIN_ID", str(_safe_site.chain.chain_id))
    for name in ("DSTACK_SAFE_SERVICE", "DSTACK_SAFE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with transaction_service() as service:
        yield Desk(_safe_site, service)


@pytest.fixture
def image(desk: Desk, fresh: Fresh) -> Asked:
    """A harmless proposal."""
    return desk.call(calldata.ADD_OS_IMAGE_HASH, bytes.fromhex(fresh()[2:]))


# ---- hashes are the contract's ----


@pytest.mark.parametrize("seed", range(12))
def test_the_hash_is_the_contracts(desk: Desk, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - for test data

    def some(size: int) -> bytes:
        return chance.randbytes(size)

    numbers = [chance.choice([0, 1, chance.getrandbits(256)]) for _ in range(4)]
    transaction = SafeTransaction(
        call=Inner(
            some(20), numbers[0], some(chance.choice([0, 4, 36, 500])), chance.choice([CALL, DELEGATE_CALL])
        ),
        safe_tx_gas=numbers[1],
        base_gas=numbers[2],
        gas_price=numbers[3],
        gas_token=some(20),
        refund_receiver=some(20),
        nonce=chance.getrandbits(64),
    )
    call = transaction.call
    expected = desk.safe.contract.functions.getTransactionHash(
        *(desk.safe.contract.w3.to_checksum_address(call.to), call.value, call.data, call.operation),
        *(transaction.safe_tx_gas, transaction.base_gas, transaction.gas_price),
        *map(desk.safe.contract.w3.to_checksum_address, (transaction.gas_token, transaction.refund_receiver)),
        transaction.nonce,
    ).call()
    domain, _ = domain_separators(bytes.fromhex(desk.safe.address[2:]), desk.site.chain.chain_id)
    assert domain == desk.safe.contract.functions.domainSeparator().call()
    assert transaction.hash(domain) == expected


def test_a_safe_from_before_chain_ids_were_signed_is_known() -> None:
    # of Safe 1.1.1: keccak256(abi.encode(typehash, address))
    _, old = domain_separators(b"\x11" * 20, 1)
    typehash = keccak256(b"EIP712Domain(address verifyingContract)")
    assert old == keccak256(typehash, (b"\x11" * 20).rjust(32, b"\0"))


def test_a_contract_that_signs_other_hashes_is_told() -> None:
    word = "0x" + "00" * 31 + "01"
    owner = Owner(address=b"\x11" * 20, pending=bytes(20), has_code=True, threshold=1, signers=(b"\1" * 20,))
    with refuses("gov.safe_domain", ProtocolError):
        read_safe(Contracts(Liar(), bytes(20)), owner, AT)
    with refuses("gov.safe_domain", ProtocolError):
        read_safe(Contracts(Liar(affed0e0=word, f698da25=word), bytes(20)), owner, AT)


# ---- what waits ----


def test_shows_what_waits_and_who_signed(desk: Desk, image: Asked) -> None:
    _, digest = desk.propose(image, signers=1)
    (one,) = desk.proposals()
    assert one["safe_tx_hash"] == f"0x{digest.hex()}"
    assert (one["signed"], one["executable"]) == (list(desk.safe.signatures(digest, 1)), False)
    assert one["calls"] == [
        f"addOsImageHash(osImageHash=0x{image[2][4:].hex()}) of the kms contract {desk.site.kms}"
    ]
    assert (one["dangers"], one["rivals"]) == ([], 0)
    output = desk.status().output
    assert "1 of 2 signed, 1 more must sign" in output
    assert "\x1b" not in output


def test_what_enough_signed_is_executable_until_it_is_executed(desk: Desk, image: Asked) -> None:
    _, digest = desk.propose(image)
    (one,) = desk.proposals()
    assert (one["executable"], one["state"]) == (True, "executable now, by anyone")
    desk.site.owner.finalize(desk.safe.send(image, desk.safe.signatures(digest, 2)))
    desk.refresh()
    assert desk.proposals() == []


def test_a_batch_is_shown_call_by_call(desk: Desk, fresh: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    for words in (("image", "add", fresh()), ("kms", "add-mr", fresh())):
        assert desk.site.gov(*words, "--safe", str(path), "--append").code == 5
    desk.propose(desk.safe.batch(calls_of(path)))
    (one,) = desk.proposals()
    assert [text.partition("(")[0] for text in one["calls"]] == ["addOsImageHash", "addKmsAggregatedMr"]
    assert one["dangers"] == []


def test_a_deployment_by_the_safe_is_shown_as_one(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "deploy.json"
    words = ["--owner", desk.safe.address, "--safe", str(path), "--rpc", desk.site.chain.url]
    assert call(["gov", "deploy", *words])[1] == 5
    desk.propose(desk.safe.batch(calls_of(path)))
    (one,) = desk.proposals()
    app, kms, proxy = one["calls"]
    assert (app.partition(" at ")[0], kms.partition(" at ")[0]) == ("create DstackApp", "create DstackKms")
    assert f"initialize(initialOwner={desk.safe.address}, appImplementation={app[-42:]})" in proxy
    assert one["dangers"] == []


def test_a_contract_of_other_code_is_told_as_unknown(desk: Desk) -> None:
    desk.propose(desk.safe.asked(f"0x{DEPLOYER.hex()}", bytes(32) + b"\x60"))
    assert desk.proposals()[0]["calls"] == ["creates a contract of unknown code, 33 bytes"]


def test_proposals_of_one_nonce_are_rivals_and_later_ones_are_blocked(desk: Desk, image: Asked) -> None:
    cancel = desk.safe.asked(desk.safe.address, b"")
    desk.propose(image, signers=0)
    desk.propose(cancel, signers=2)
    desk.propose(image, nonce=desk.nonce + 1)
    first, second, later = desk.proposals()
    assert [one["rivals"] for one in (first, second, later)] == [1, 1, 0]
    assert (first["executable"], second["executable"], later["executable"]) == (True, False, False)
    assert first["calls"] == ["does nothing, and takes the place of what else has its nonce"]
    assert later["state"] == f"signed by enough, blocked until nonce {desk.nonce} is used"
    output = desk.status().output
    assert "1 more with this nonce" in output
    assert "no owner signed it" in output


def test_a_proposal_told_twice_is_one(desk: Desk, image: Asked) -> None:
    desk.propose(image, signers=1)
    desk.propose(image, signers=2)
    (one,) = desk.proposals()
    assert (len(one["signed"]), one["rivals"]) == (2, 0)


def test_an_app_of_a_safe_that_the_service_does_not_know_fails_nothing(
    desk: Desk, image: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.propose(image)
    payer = Governance(desk.site.chain.url, desk.site.chain.accounts[OTHER])
    other = RealSafe(payer, desk.site.chain.accounts[OWNERS], threshold=1)
    ran = desk.site.send("app", "deploy", "--owner", other.address, "--json", account=OTHER)
    assert ran.code == 0, ran.output
    ran = desk.status("--json")
    assert (ran.code, len(ran.json["proposals"])) == (0, 1)
    assert ran.json["proposals_untold"][0].endswith("[gov.safe_service.status]")
    monkeypatch.setattr(status, "MAX_SAFES", 1)
    assert desk.status("--json").json["proposals_untold"][0].endswith("1 others were asked about")


def test_says_that_nobody_was_asked(desk: Desk) -> None:
    ran = desk.site.gov("status", "--json")
    assert ran.code == 0
    assert f"{desk.safe.address}: --safe-service names who keeps them" in ran.json["proposals_untold"]


# ---- what the service makes up ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", "0x" + "77" * 20),
        ("value", "1"),
        ("data", "0x06a3ae96" + "77" * 32),
        ("operation", 1),
        ("safeTxGas", 1),
        ("baseGas", 1),
        ("gasPrice", "1"),
        ("gasToken", "0x" + "77" * 20),
        ("refundReceiver", "0x" + "77" * 20),
        ("safeTxHash", "0x" + "77" * 32),
    ],
)
def test_a_field_that_was_not_signed_is_found_out(
    desk: Desk, image: Asked, field: str, value: object
) -> None:
    desk.propose(image)[0][field] = value
    ran = desk.status("--json")
    (found,) = ran.json["proposals"]
    assert found["proposals"] == []
    assert found["dropped"][0].startswith("1 proposals whose hash is not that of their fields")
    assert any("told what cannot be" in one for one in ran.json["warnings"])


def test_what_is_shown_beside_the_signed_fields_is_ours(desk: Desk, image: Asked) -> None:
    one, _ = desk.propose(image, signers=0)
    one["confirmationsRequired"] = 0
    one["dataDecoded"] = {"method": "nothing", "parameters": []}
    (shown,) = desk.proposals()
    assert (shown["executable"], shown["calls"][0].partition("(")[0]) == (False, "addOsImageHash")


def test_a_signature_of_somebody_else_does_not_count(desk: Desk, image: Asked) -> None:
    one, digest = desk.propose(image, signers=1)
    stranger = desk.site.chain.accounts[OTHER]
    forged = Account.unsafe_sign_hash(digest, stranger.private_key).signature
    for signature in (bytes(forged), b"\1" * 65, b"\1" * 64, bytes(64) + b"\x1b"):
        one["confirmations"].append(
            {"owner": desk.safe.contract.functions.getOwners().call()[1], "signature": f"0x{signature.hex()}"}
        )
    (shown,) = desk.proposals()
    assert (len(shown["signed"]), shown["unproven_confirmations"], shown["executable"]) == (1, 4, False)
    assert "4 confirmations that no current owner's key made do not count" in desk.status().output


def test_a_signature_of_another_transaction_does_not_count(desk: Desk, image: Asked) -> None:
    one, _ = desk.propose(image, signers=0)
    other = desk.safe.signatures(keccak256(b"another"), 2)
    one["confirmations"] = [{"owner": owner, "signature": f"0x{raw.hex()}"} for owner, raw in other.items()]
    (shown,) = desk.proposals()
    assert (shown["signed"], shown["unproven_confirmations"]) == ([], 2)


def test_a_signature_given_twice_counts_once(desk: Desk, image: Asked) -> None:
    one, _ = desk.propose(image, signers=1)
    one["confirmations"] *= 2
    assert len(desk.proposals()[0]["signed"]) == 1


def test_signatures_over_the_personal_message_count_as_the_contract_counts_them(
    desk: Desk, image: Asked
) -> None:
    one, digest = desk.propose(image, signers=0)
    signatures = {}
    for owner in desk.safe.contract.functions.getOwners().call():
        account = next(known for known in desk.site.chain.accounts if known.address == owner)
        message = defunct_hash_message(digest)
        raw = bytearray(Account.unsafe_sign_hash(message, account.private_key).signature)
        raw[64] += 4
        signatures[owner] = bytes(raw)
    signatures = dict(sorted(signatures.items(), key=lambda pair: pair[0].lower())[:2])
    one["confirmations"] = [
        {"owner": owner, "signature": f"0x{raw.hex()}"} for owner, raw in signatures.items()
    ]
    (shown,) = desk.proposals()
    assert shown["executable"] is True
    desk.site.owner.finalize(desk.safe.send(image, signatures))


def test_an_approval_counts_where_the_contract_has_it(desk: Desk, image: Asked) -> None:
    one, digest = desk.propose(image, signers=0)
    owner = desk.safe.contract.functions.getOwners().call()[0]
    raw = bytes.fromhex(owner[2:]).rjust(32, b"\0") + bytes(32) + b"\1"
    one["confirmations"] = [{"owner": owner, "signature": f"0x{raw.hex()}"}]
    (shown,) = desk.proposals()
    assert (shown["signed"], shown["unproven_confirmations"]) == ([], 1)
    account = next(known for known in desk.site.chain.accounts if known.address == owner)
    acting = Governance(desk.site.chain.url, account)
    acting.finalize(acting.send(desk.safe.contract.functions.approveHash(digest)))
    (shown,) = desk.proposals()
    assert (shown["signed"], shown["unproven_confirmations"]) == ([owner], 0)


def test_what_is_used_up_is_not_shown_though_the_service_tells_it(desk: Desk, image: Asked) -> None:
    _, digest = desk.propose(image)
    desk.site.owner.finalize(desk.safe.send(image, desk.safe.signatures(digest, 2)))
    page = {"count": 1, "next": None, "previous": None, "results": desk.told}
    desk.service.answer = lambda target: (
        (200, json.dumps(page).encode(), {}) if "multisig" in target else None
    )
    (found,) = desk.status("--json").json["proposals"]
    assert found["proposals"] == []
    assert "1 proposals whose nonce is used" in found["dropped"]
    assert any("it lags, or lies" in one for one in found["dropped"])


def test_entries_that_are_no_proposals_are_counted(desk: Desk, image: Asked) -> None:
    one, _ = desk.propose(image)
    bad = [
        one | {"safeTxHash": "0x1"},
        one | {"to": None},
        one | {"value": "-1"},
        one | {"value": "1e3"},
        one | {"value": str(1 << 256)},
        one | {"value": "9" * 5000},
        one | {"operation": 256},
        one | {"data": "0xzz"},
        one | {"confirmations": [{"signature": "zz"}]},
        one | {"confirmations": [{"signature": "0x"}] * 201},
    ]
    page = {"count": 1, "next": None, "previous": None, "results": [*bad, 5, None, one]}
    desk.service.answer = lambda target: (
        (200, json.dumps(page).encode(), {}) if "multisig" in target else None
    )
    (found,) = desk.status("--json").json["proposals"]
    assert (len(found["proposals"]), found["dropped"]) == (1, ["12 entries that are no proposals"])


# ---- what is dangerous ----


@pytest.mark.parametrize(
    ("function", "arguments", "danger"),
    [
        (calldata.TRANSFER_OWNERSHIP, (b"\x77" * 20,), "offers the contract to 0x7777"),
        (calldata.UPGRADE_TO_AND_CALL, (b"\x77" * 20, b""), "no known build of DstackKms"),
        (calldata.UPGRADE_TO_AND_CALL, (b"\x77" * 20, b"\1"), "makes the new code call something at once"),
        (calldata.SET_APP_IMPLEMENTATION, (b"\x77" * 20,), "no known build of DstackApp"),
        (calldata.ADD_OS_IMAGE_HASH, (bytes(32),), "the all-zero hash"),
        (calldata.SET_KMS_INFO, ((b"\1", b"\2", b"", b""),), "replaces the root keys"),
        (
            calldata.DEPLOY_AND_REGISTER_APP,
            (b"\x77" * 20, True, False, True, bytes(32), bytes(32)),
            "lets the app run on any device",
        ),
        (calldata.ADD_COMPOSE_HASH, (b"\1" * 32,), "does not have"),
    ],
)
def test_warns_of_what_should_not_be_signed_lightly(
    desk: Desk, function: Function, arguments: tuple[Value, ...], danger: str
) -> None:
    found = desk.dangers(desk.call(function, *arguments))
    assert any(danger in one for one in found), found
    ran = desk.status()
    assert "    DANGER  " in ran.output
    assert "warning: dangerous proposals wait for signatures: 1" in ran.output


@pytest.mark.parametrize(
    ("function", "arguments", "danger"),
    [
        (calldata.DISABLE_UPGRADES, (), "disableUpgrades takes away for ever"),
        (calldata.SET_ALLOW_ANY_DEVICE, (True,), "lets the app run on any device"),
        (calldata.SET_REQUIRE_TCB_UP_TO_DATE, (False,), "known holes"),
        (calldata.SET_ALLOW_ANY_DEVICE, (False,), None),
        (calldata.SET_REQUIRE_TCB_UP_TO_DATE, (True,), None),
        (calldata.TRANSFER_OWNERSHIP, (bytes(20),), None),
    ],
)
def test_warns_of_what_weakens_an_app(
    desk: Desk, function: Function, arguments: tuple[Value, ...], danger: str | None
) -> None:
    app_id = bytes.fromhex(desk.site.app(OTHER)[2:])
    found = desk.dangers(desk.call(function, *arguments, to=app_id))
    assert found == [] if danger is None else danger in found[0]


@pytest.mark.parametrize(
    ("data", "danger"),
    [
        ("715018a6", "gives the contract up for ever"),
        ("715018a600", "cannot be read"),
        ("f2fde38b" + "00" * 12 + "77" * 20 + "00", "cannot be read"),
        ("18c1ecb2", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_warns_of_calls_that_nobody_should_sign(desk: Desk, data: str, danger: str) -> None:
    (found,) = desk.dangers(desk.safe.asked(desk.site.kms, bytes.fromhex(data)))
    assert danger in found


def test_warns_of_unknown_code_that_would_run_as_the_safe(desk: Desk) -> None:
    (found,) = desk.dangers(desk.safe.asked(desk.site.kms, b"\1\2\3\4", DELEGATE_CALL))
    assert "runs unknown code as the Safe itself" in found


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("addOwnerWithThreshold(address,uint256)", "addOwnerWithThreshold(0x7777"),
        ("changeThreshold(uint256)", "changeThreshold("),
        ("enableModule(address)", "enableModule("),
        ("approveEverything()", "a call of the Safe to itself"),
    ],
)
def test_warns_of_what_changes_the_safe(desk: Desk, selector: str, name: str) -> None:
    data = keccak256(selector.encode())[:4] + (b"\x77" * 20).rjust(32, b"\0") + (1).to_bytes(32, "big")
    desk.propose(desk.safe.asked(desk.safe.address, data))
    (one,) = desk.proposals()
    assert one["calls"][0].startswith(name)
    assert len(one["dangers"]) == 1


def test_the_zero_address_in_a_batch_is_the_safe(desk: Desk) -> None:
    data = keccak256(b"changeThreshold(uint256)")[:4] + (1).to_bytes(32, "big")
    found = desk.dangers(desk.safe.batch([("0x" + "00" * 20, data)]))
    assert found == ["changeThreshold changes who decides for the Safe"]


def test_warns_of_ether_and_refunds(desk: Desk) -> None:
    found = desk.dangers(desk.safe.asked("0x" + "77" * 20, b"\1", value=5, gas_price=7))
    assert [one.partition(" ")[0] for one in found] == ["sends", "pays"]


def test_warns_of_a_batch_that_cannot_be_read(desk: Desk) -> None:
    (to, value, data, *rest) = desk.safe.batch([(desk.site.kms, b"\1\2\3\4")])
    desk.propose((to, value, data + b"\0", *rest))  # type: ignore[arg-type]
    (one,) = desk.proposals()
    assert "cannot be read" in one["dangers"][0]


def test_looks_at_so_many_accounts_and_no_more(desk: Desk) -> None:
    upgrades = [
        (desk.site.kms, encode_call(calldata.UPGRADE_TO_AND_CALL, n.to_bytes(20, "big"), b""))
        for n in range(1, 60)
    ]
    desk.propose(desk.safe.batch(upgrades))
    (one,) = desk.proposals()
    assert (len(one["calls"]), len(one["dangers"])) == (59, 1)


# ---- the service itself ----


def test_asks_as_the_service_wants_to_be_asked(desk: Desk, image: Asked) -> None:
    desk.propose(image)
    desk.proposals()
    info, listed = desk.asked
    assert info == f"/api/v1/safes/{desk.safe.address}/"
    begin = f"/api/v2/safes/{desk.safe.address}/multisig-transactions/?executed=false&nonce__gte={desk.nonce}"
    assert listed.startswith(f"{begin}&ordering=nonce")


def test_a_service_of_v1_alone_is_asked_too(desk: Desk, image: Asked) -> None:
    desk.service.versions = {"v1"}
    desk.propose(image)
    assert len(desk.proposals()) == 1


def test_pages_are_ours_to_name_and_bounded(desk: Desk, image: Asked) -> None:
    one, _ = desk.propose(image)
    desk.told.extend([one] * (PAGE + 5))
    assert len(desk.proposals()) == 1
    assert [target.rpartition("=")[2] for target in desk.asked[1:]] == ["0", str(PAGE)]
    desk.told.extend([one] * (PAGE * MAX_PAGES))
    (found,) = desk.status("--json").json["proposals"]
    assert found["dropped"] == ["proposals behind those: there are more than are read"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, b"", {}), "gov.safe_service.status"),
        ((404, b"", {}), "gov.safe_service.status"),
        ((302, b"", {"Location": "http://203.0.113.1/"}), "gov.safe_service.status"),
        ((200, b"<html>", {}), "gov.safe_service.malformed"),
        ((200, b"[" * 100_000, {}), "gov.safe_service.malformed"),
        ((200, b"\xff", {}), "gov.safe_service.malformed"),
        (
            (200, b'{"address": "0x", "nonce": "0", "threshold": 1, "owners": []}', {}),
            "gov.safe_service.malformed",
        ),
        (
            (200, b'{"address": "0x' + b"77" * 20 + b'", "nonce": "0", "threshold": 1, "owners": []}', {}),
            "gov.safe_service.malformed",
        ),
        (
            (200, b'{"results": ' + json.dumps([1] * (PAGE + 1)).encode() + b"}", {}),
            "gov.safe_service.malformed",
        ),
        ((200, b" " * (5 * 1024 * 1024), {}), "net.response.oversize"),
    ],
)
def test_a_service_that_fails_hides_nothing_else(desk: Desk, answer: Any, code: str) -> None:
    is_list = b"results" in answer[1]
    desk.service.answer = lambda target: answer if ("multisig" in target) == is_list else None
    ran = desk.status()
    assert (ran.code, f"[{code}]" in ran.output) == (1, True), ran.output
    assert "a Safe, 2 of 3 must sign" in ran.output


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://example.com", ""),
        ("https://", ""),
        ("https://example.com/?a=b", ""),
        ("http://example.com", "key"),
        ("https://example.com", "a\nb"),
    ],
)
def test_takes_a_service_by_its_url(url: str, key: str) -> None:
    with refuses("gov.safe_service.url", ConfigError):
        SafeService(url, HttpClient(DirectDialer()), key)


def test_a_key_goes_along() -> None:
    seen: list[dict[str, str]] = []

    class Http:
        def request(
            self, _method: str, _url: str, _body: None, headers: dict[str, str], **_: object
        ) -> object:
            seen.append(headers)
            raise ProtocolError("net.response.malformed", "enough")

    with refuses("net.response.malformed", ProtocolError):
        SafeService("https://example.com", Http(), "key").pending(b"\1" * 20, 0)  # type: ignore[arg-type]
    assert seen[0]["Authorization"] == "Bearer key"


# ---- signatures and batches, without a chain ----


def test_an_approval_names_its_owner() -> None:
    assert signer_of(bytes(12) + b"\x11" * 20 + bytes(32) + b"\1", bytes(32)) == Signed(
        b"\x11" * 20, is_approval=True
    )


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(64),
        bytes(65),
        bytes(64) + b"\x1b",
        b"\xff" * 64 + b"\x1b",
        b"\1" * 64 + b"\x1d",
        b"\1" * 64 + b"\x22",
        b"\1" * 32 + bytes(32) + b"\1",
        b"\1" * 66,
    ],
)
def test_what_no_key_made_is_no_signature(signature: bytes) -> None:
    assert signer_of(signature, bytes(32)) is None


def batch(packed: bytes) -> bytes:
    return MULTI_SEND + encode_values(("bytes",), (packed,))


INNER = bytes([0]) + b"\x11" * 20 + bytes(32) + (4).to_bytes(32, "big") + b"\1\2\3\4"


def test_reads_a_batch() -> None:
    assert read_multi_send(batch(INNER * 2), b"\x22" * 20) == [Inner(b"\x11" * 20, 0, b"\1\2\3\4", 0)] * 2
    assert read_multi_send(batch(b""), b"") == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        MULTI_SEND,
        b"\0\0\0\0" + batch(INNER)[4:],
        batch(INNER + b"\0"),
        batch(INNER[:-1]),
        batch(INNER[:53] + b"\xff" * 32 + INNER[85:]),
        batch(INNER * (MAX_INNER + 1)),
        batch(INNER) + b"\0",
    ],
)
def test_reads_no_batch_that_is_written_otherwise(raw: bytes) -> None:
    with refuses("gov.safe_batch", ProtocolError):
        read_multi_send(raw, bytes(20))


def test_the_batch_contract_that_npm_brings_is_known(desk: Desk) -> None:
    code = desk.safe.contract.w3.eth.get_code(desk.safe.batch([])[0])  # type: ignore[arg-type]
    assert keccak256(bytes(code)) in MULTI_SENDS
