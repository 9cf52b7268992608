"""`gov`'s commands that change something: what they show, simulate and send, on anvil and in process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.gov.acting import outbox_place
from shared.chain.calldata import decode_call
from tests.cli.gov.conftest import OTHER, OWNER, Ran, Site
from tests.docs.console_page import call

Fresh = Callable[[], str]
PAIRS = [
    (("image", "add"), ("image", "remove"), "allowedOsImages"),
    (("kms", "add-mr"), ("kms", "remove-mr"), "kmsAllowedAggregatedMrs"),
    (("kms", "add-device"), ("kms", "remove-device"), "kmsAllowedDeviceIds"),
]


def refused(ran: Ran, code: str, exit_code: int) -> None:
    assert f"[{code}]" in ran.output, ran.output
    assert ran.code == exit_code


@pytest.mark.parametrize(
    ("add", "remove", "view"), PAIRS, ids=lambda one: one if isinstance(one, str) else ""
)
def test_allows_and_revokes_hashes_of_the_kms_contract(
    site: Site, fresh: Fresh, add: tuple[str, str], remove: tuple[str, str], view: str
) -> None:
    value = fresh()
    is_allowed = site.owner.kms.functions[view](value).call
    assert site.send(*add, value).code == 0
    assert is_allowed()
    assert site.send(*remove, value).code == 0
    assert not is_allowed()


def test_allows_and_revokes_hashes_and_devices_of_an_app(site: Site, fresh: Fresh) -> None:
    app_id, value = site.app(), fresh()
    contract = site.owner.app(bytes.fromhex(app_id[2:]))
    for word, view in (("hash", "allowedComposeHashes"), ("device", "allowedDeviceIds")):
        assert site.send("app", f"add-{word}", app_id, value).code == 0
        assert contract.functions[view](value).call()
        assert site.send("app", f"remove-{word}", app_id, value).code == 0
        assert not contract.functions[view](value).call()


def test_sets_the_flags_of_an_app(site: Site) -> None:
    app_id = site.app()
    contract = site.owner.app(bytes.fromhex(app_id[2:]))
    for word, view in (("allow-any-device", "allowAnyDevice"), ("require-tcb", "requireTcbUpToDate")):
        assert site.send("app", word, app_id, "true").code == 0
        assert contract.functions[view]().call()
        assert "already" in site.gov("app", word, app_id, "true").output
        assert site.send("app", word, app_id, "false").code == 0
        assert not contract.functions[view]().call()


def test_disables_upgrades_of_an_app_for_good(site: Site) -> None:
    app_id = site.app()
    assert site.send("app", "disable-upgrades", app_id).code == 0
    ran = site.gov("app", "disable-upgrades", app_id)
    assert (ran.code, "already" in ran.output) == (0, True)
    refused(site.gov("upgrade", app_id, "--to", "0x" + "11" * 20), "gov.upgrade.disabled", 3)


def test_tells_the_id_of_the_app_that_the_factory_made(site: Site, fresh: Fresh) -> None:
    value = fresh()
    ran = site.send(
        *("app", "deploy", "--owner", site.address(OTHER), "--owner-is-key"),
        *("--compose-hash", value, "--device-id", value),
    )
    app_id = ran.output.partition("app id: ")[2].split()[0]
    assert f"the app id will be {app_id}," in ran.output
    contract = site.owner.app(bytes.fromhex(app_id[2:]))
    assert contract.functions.owner().call() == site.address(OTHER)
    assert contract.functions.allowedComposeHashes(value).call()
    assert site.owner.kms.functions.registeredApps(app_id).call()


def test_registers_a_contract_that_exists(site: Site) -> None:
    ran = site.send("app", "register", site.kms, account=OTHER)
    assert ran.code == 0, ran.output
    assert site.owner.kms.functions.registeredApps(site.kms).call()
    assert "of the app's code: DstackKms" in ran.output


def test_registers_no_address_without_code(site: Site) -> None:
    refused(site.gov("app", "register", site.address(OTHER)), "gov.contract", 2)


def test_publishes_the_root_keys_of_a_bootstrap_answer(site: Site) -> None:
    path = site.place / "bootstrap-info.json"
    path.write_text(json.dumps({"ca_pubkey": "03" * 91, "k256_pubkey": "02" * 33, "attestation": "x"}))
    assert site.send("kms", "set-info", str(path)).code == 0
    assert site.owner.kms.functions.kmsInfo().call()[:2] == [b"\2" * 33, b"\3" * 91]
    assert "already" in site.gov("kms", "set-info", str(path)).output


def test_names_the_gateway(site: Site) -> None:
    app_id = site.app()
    assert site.send("set-gateway", app_id).code == 0
    assert site.owner.kms.functions.gatewayAppId().call() == app_id
    refused(site.gov("set-gateway", "any"), "gov.option", 2)


def test_refuses_a_gateway_in_the_wrong_case(site: Site) -> None:
    app_id = site.app()
    wrong = next(
        app_id[:at] + app_id[at].swapcase() + app_id[at + 1 :]
        for at in range(41, 1, -1)
        if app_id[at].isalpha()
    )
    refused(site.gov("set-gateway", wrong), "gov.option", 2)
    assert site.gov("set-gateway", app_id[2:].lower()).code == 4


def test_hands_an_app_over_in_two_steps(site: Site) -> None:
    app_id = site.app()
    refused(site.gov("accept-ownership", "--app", app_id), "gov.no_transfer", 3)
    assert site.send("transfer-ownership", site.address(OTHER), "--app", app_id).code == 0
    assert "already" in site.gov("transfer-ownership", site.address(OTHER), "--app", app_id).output
    assert "the contract's pending owner" in site.gov("accept-ownership", "--app", app_id).output
    refused(site.send("accept-ownership", "--app", app_id), "gov.not_owner", 3)
    assert site.send("accept-ownership", "--app", app_id, account=OTHER).code == 0
    assert site.owner.app(bytes.fromhex(app_id[2:])).functions.owner().call() == site.address(OTHER)


NOBODYS = ["0x" + "00" * 19 + "01", "0x000000000000000000000000000000000000dEaD"]


@pytest.mark.parametrize(
    ("owner", "note"),
    [
        *((one, "has no code, and never sent a transaction: a single key will own") for one in NOBODYS),
        ("kms", "is the KMS contract, which calls nobody: it can never accept"),
        ("app", "is the contract itself, which calls nobody: it can never accept"),
        ("implementation", "is a contract, not a Safe"),
        ("key", "a single key will own the contract"),
    ],
)
def test_notes_who_is_no_owner_to_hand_a_contract_to(site: Site, owner: str, note: str) -> None:
    app_id = site.app()
    named = {
        "kms": site.kms,
        "app": app_id,
        "implementation": site.gov("status", "--json").json["kms"]["app_implementation"],
        "key": site.address(OWNER),
    }
    new_owner = named.get(owner, owner)
    ran = site.gov("transfer-ownership", new_owner, "--app", app_id)
    assert ran.code == (0 if owner == "key" else 4)
    notes = [line for line in ran.output.splitlines() if line.startswith("  note ")]
    assert len(notes) == 2
    assert note in notes[1]
    assert new_owner in notes[1]


def test_the_kms_contract_is_not_handed_to_itself_unnoted(site: Site) -> None:
    assert f"{site.kms} is the contract itself" in site.gov("transfer-ownership", site.kms).output


def test_nothing_is_noted_of_an_offer_that_is_taken_back(site: Site) -> None:
    ran = site.gov("transfer-ownership", "none", "--app", site.app())
    assert ran.output.count("  note ") == 1


def test_takes_an_offer_back(site: Site) -> None:
    app_id = site.app()
    site.send("transfer-ownership", site.address(OTHER), "--app", app_id)
    assert site.send("transfer-ownership", "none", "--app", app_id).code == 0
    refused(site.gov("accept-ownership", "--app", app_id), "gov.no_transfer", 3)


# ---- what is noted ----


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("allow-any-device", "true"), "lets the app run on any device"),
        (("disable-upgrades",), "takes away for ever that the app's code can be mended"),
        (("require-tcb", "false"), "lets the app run on platforms with known holes"),
    ],
)
def test_notes_what_a_call_weakens(site: Site, words: tuple[str, ...], note: str) -> None:
    app_id = site.app()
    if words[0] == "require-tcb":
        site.send("app", "require-tcb", app_id, "true")
    assert f"note    {note}" in site.gov("app", words[0], app_id, *words[1:]).output
    assert "note " not in site.gov("app", "allow-any-device", app_id, "false").output


def test_notes_what_a_new_app_is_without(site: Site) -> None:
    flags = ("--allow-any-device", "--disable-upgrades")
    ran = site.gov("app", "deploy", "--owner", site.address(OTHER), "--owner-is-key", *flags)
    for note in (
        "lets the app run on any device",
        "takes away for ever that the app's code can be mended",
        f"a single key will own the app: {site.address(OTHER)}",
    ):
        assert f"note    {note}" in ran.output


def test_a_single_key_owns_a_new_app_only_where_that_is_said(site: Site) -> None:
    refused(site.gov("app", "deploy", "--owner", site.address(OTHER)), "gov.deploy.owner", 2)
    other = site.deployed.kms_implementation.hex()
    refused(site.gov("app", "deploy", "--owner", other, "--owner-is-key"), "gov.deploy.owner", 2)
    assert site.gov("app", "deploy", "--owner", other).code == 4


def test_the_kms_contract_owns_no_app(site: Site) -> None:
    refused(site.gov("app", "deploy", "--owner", site.kms), "gov.app.deploy", 2)


def test_notes_that_published_keys_are_replaced(site: Site, tmp_path: Path) -> None:
    def info(first: str) -> str:
        path = tmp_path / f"{first}.json"
        path.write_text(json.dumps({"ca_pubkey": "03" * 91, "k256_pubkey": first * 33}))
        return str(path)

    assert site.send("kms", "set-info", info("04")).code == 0
    ran = site.gov("kms", "set-info", info("05"))
    assert f"replaces the published keys, k256 {'04' * 33}: deployers will encrypt to k256 " in ran.output
    assert f"k256 {'05' * 33}, and" in ran.output
    assert "replaces" not in site.gov("kms", "set-info", info("04")).output


# ---- what is shown ----


def test_shows_the_call_and_who_may_make_it_and_sends_nothing(site: Site, fresh: Fresh) -> None:
    value = fresh()
    ran = site.gov("image", "add", value)
    assert ran.code == 4
    assert f"addOsImageHash(osImageHash={value})" in ran.output
    assert f"{site.address(OWNER)}, the contract's owner: a single key" in ran.output
    assert not site.owner.kms.functions.allowedOsImages(value).call()


def test_the_json_holds_the_calldata_that_is_shown(site: Site, fresh: Fresh) -> None:
    value = fresh()
    ran = site.gov("image", "add", value, "--json")
    (one,) = ran.json["calls"]
    function, arguments = decode_call(bytes.fromhex(one["calldata"][2:]))
    assert (function.signature, f"0x{arguments[0].hex()}") == (one["function"], value)  # type: ignore[union-attr]
    assert (one["to"], one["sender"], ran.json["exit_code"]) == (site.kms, site.address(OWNER), 4)


def test_says_what_is_so_already(site: Site, fresh: Fresh) -> None:
    ran = site.gov("image", "remove", fresh())
    assert (ran.code, "NOTHING TO DO" in ran.output) == (0, True)


def test_a_dry_run_succeeds_as_the_owner(site: Site, fresh: Fresh) -> None:
    ran = site.gov("image", "add", fresh(), "--dry-run")
    assert (ran.code, "it succeeds" in ran.output) == (4, True)


def test_a_dry_run_names_the_contracts_own_reason(site: Site) -> None:
    implementation = "0x" + site.deployed.kms_implementation.hex()
    hashed = site.gov("upgrade", "--to", site.kms).output.partition("hash 0x")[2][:64]
    ran = site.gov("upgrade", "--to", site.kms, "--code-hash", hashed, "--dry-run")
    refused(ran, "gov.would_revert", 3)
    assert "reverts: " in ran.output
    assert implementation != site.kms


# ---- what is refused ----


@pytest.mark.parametrize("value", ["0x" + "00" * 32])
def test_refuses_to_allow_zeros(site: Site, value: str) -> None:
    refused(site.gov("image", "add", value), "gov.zero", 2)
    refused(site.gov("kms", "add-mr", value), "gov.zero", 2)


def test_lets_zeros_be_revoked(site: Site) -> None:
    assert site.gov("image", "remove", "0x" + "00" * 32).code == 0


@pytest.mark.parametrize("value", ["0x11", "11" * 33, "zz" * 32, ""])
def test_refuses_what_is_no_hash(site: Site, value: str) -> None:
    refused(site.gov("image", "add", value), "gov.option", 2)


def test_refuses_an_address_in_the_wrong_case(site: Site) -> None:
    wrong = (
        site.kms[:-1] + site.kms[-1].swapcase() if site.kms[-1].isalpha() else "0x" + site.kms[2:].swapcase()
    )
    refused(site.gov("transfer-ownership", wrong), "gov.option", 2)


def test_refuses_another_chain(site: Site, fresh: Fresh) -> None:
    refused(site.gov("image", "add", fresh(), "--chain-id", "1"), "gov.chain_id", 2)


@pytest.mark.parametrize("words", [("--safe", "-"), ("--send", "--key-file", "x.key")])
def test_nothing_is_signed_for_a_chain_that_only_the_endpoint_names(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.delenv("DSTACK_CHAIN_ID")
    refused(site.gov("image", "add", fresh(), *words), "gov.option", 2)
    output, code = call(["gov", "deploy", "--owner", site.kms, "--rpc", site.chain.url, *words])
    assert ("--chain-id is missing" in output, code) == (True, 2)
    assert site.gov("image", "add", fresh(), "--dry-run").code == 4


def test_refuses_a_contract_that_is_not_there(site: Site, fresh: Fresh) -> None:
    refused(site.gov("image", "add", fresh(), "--kms-contract", "0x" + "77" * 20), "gov.contract", 2)


@pytest.mark.parametrize(
    "options",
    [
        ("--safe", "x.json", "--dry-run"),
        ("--send",),
        ("--key-file", "x.key"),
        ("--append",),
        ("--safe", "-", "--append"),
    ],
)
def test_refuses_options_that_do_not_say_one_thing(
    site: Site, fresh: Fresh, options: tuple[str, ...]
) -> None:
    refused(site.gov("image", "add", fresh(), *options), "gov.mode", 2)


def test_sends_nothing_with_a_key_that_the_contract_does_not_take(site: Site, fresh: Fresh) -> None:
    value = fresh()
    refused(site.send("image", "add", value, account=OTHER), "gov.not_owner", 3)
    assert not site.owner.kms.functions.allowedOsImages(value).call()


def test_the_key_is_in_no_output(site: Site, fresh: Fresh, tmp_path: Path) -> None:
    key = site.chain.accounts[OWNER].private_key.hex()
    outputs = [
        site.send("image", "add", fresh()).output,
        site.send("image", "add", fresh(), "--json").output,
        site.send("image", "add", fresh(), account=OTHER).output,
    ]
    broken = tmp_path / "broken.key"
    broken.write_text(key + "00")
    broken.chmod(0o600)
    outputs.append(site.gov("image", "add", fresh(), "--send", "--key-file", str(broken)).output)
    kept = [path.read_text() for path in outbox_place().parent.rglob("*.json")]
    assert "gov.key_file.invalid" in outputs[-1]
    assert not [one for one in (*outputs, *kept) if key in one or key[:16] in one]


def test_nothing_stays_in_the_outbox_of_what_was_reported(site: Site, fresh: Fresh) -> None:
    value = fresh()
    for word in ("add", "remove", "add"):
        assert site.send("image", word, value).code == 0
    assert list(outbox_place().glob("*")) == []
    assert site.owner.kms.functions.allowedOsImages(value).call()
