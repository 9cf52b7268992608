"""A real Safe takes what `gov --safe` writes: its owners sign the file, and the contracts change."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from cli.gov.safe_batch import batch_text, checksum
from shared.chain import calldata
from shared.chain.abi_values import Value
from shared.chain.calldata import Function, encode_call
from shared.chain.create2 import DEPLOYER
from shared.errors import PolicyDenied
from tests.cli.gov.conftest import OTHER, PAYER, Site
from tests.cli.gov.test_gov_changes import refused
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import call
from tests.safe.real_safe import RealSafe, need_safe
from tests.shared.refusal import refuses

Fresh = Callable[[], str]
OWNERS = slice(3, 6)


class SafeSite(Site):
    """A site whose KMS contract is a Safe's, of three people of whom two must sign."""

    def __init__(self, site: Site) -> None:
        self.chain, self.place = site.chain, site.place
        self.safe = RealSafe(
            Governance(self.chain.url, self.chain.accounts[PAYER]), self.chain.accounts[OWNERS], 2
        )
        key = str(self.key_file(OTHER))
        options = ["--owner", self.safe.address, "--send", "--key-file", key, "--json"]
        options += ["--chain-id", str(self.chain.chain_id)]
        output, code = call(["gov", "deploy", "--rpc", self.chain.url, *options])
        assert code == 0, output
        self.kms = json.loads(output)["proxy"]


@pytest.fixture(scope="module")
def _safe_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SafeSite]:
    need_safe()
    with start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS) as chain:  # whose blocks become final
        place = tmp_path_factory.mktemp("safe")
        patched = pytest.MonkeyPatch()
        patched.setenv("XDG_STATE_HOME", str(place / "state"))
        site = Site.__new__(Site)
        site.chain, site.place = chain, place
        yield SafeSite(site)
        patched.undo()


@pytest.fixture
def safe_site(_safe_site: SafeSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SafeSite:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("DSTACK_CHAIN_ID", str(_safe_site.chain.chain_id))
    return _safe_site


def test_two_owners_sign_what_the_file_says(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    image, measurement, device = fresh(), fresh(), fresh()
    path = tmp_path / "allow.json"
    for words in (("image", "add", image), ("kms", "add-mr", measurement), ("kms", "add-device", device)):
        ran = safe_site.gov(*words, "--safe", str(path), "--append")
        assert ran.code == 5, ran.output
    document = json.loads(path.read_text())
    assert len(document["transactions"]) == 3
    assert checksum(document) == document["meta"]["checksum"]
    with refuses("governance.transaction.reverted", PolicyDenied):
        safe_site.safe.execute(path, signers=1)
    safe_site.safe.execute(path, signers=2)
    functions = safe_site.owner.kms.functions
    assert functions.allowedOsImages(image).call()
    assert functions.kmsAllowedAggregatedMrs(measurement).call()
    assert functions.kmsAllowedDeviceIds(device).call()


def test_the_safe_makes_an_app_and_takes_over_a_contract(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path
) -> None:
    value = fresh()
    ran = safe_site.send(
        *("app", "deploy", "--owner", safe_site.address(OTHER), "--owner-is-key", "--compose-hash", value),
        "--json",
        account=OTHER,
    )
    app_id = ran.json["transactions"][0]["app_id"]
    ran = safe_site.send("transfer-ownership", safe_site.safe.address, "--app", app_id, account=OTHER)
    assert ran.output.count("  note ") == 1  # the Safe must accept: of a Safe there is no more to note
    path = tmp_path / "accept.json"
    assert safe_site.gov("accept-ownership", "--app", app_id, "--safe", str(path)).code == 5
    safe_site.safe.execute(path, signers=2)
    assert safe_site.gov("app", "list", app_id, "--json").json["owner"] == safe_site.safe.address


def test_status_tells_of_whom_the_safe_is(safe_site: SafeSite) -> None:
    told = safe_site.gov("status", "--json").json["kms"]
    assert told["safe"]["threshold"] == 2
    assert sorted(told["safe"]["owners"]) == sorted(one.address for one in safe_site.chain.accounts[OWNERS])
    assert "a Safe, 2 of 3 must sign" in safe_site.gov("status").output


def test_a_dry_run_is_made_as_the_safe(safe_site: SafeSite, fresh: Fresh) -> None:
    ran = safe_site.gov("image", "add", fresh(), "--dry-run")
    assert f"from {safe_site.safe.address}: it succeeds" in ran.output


def test_one_owners_key_changes_nothing(safe_site: SafeSite, fresh: Fresh) -> None:
    refused(safe_site.send("image", "add", fresh(), account=3), "gov.not_owner", 3)


def test_the_file_alone_is_on_standard_output(
    safe_site: SafeSite, fresh: Fresh, capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner  # noqa: PLC0415 - it tells the two outputs apart

    from cli.main import cli  # noqa: PLC0415 - as above

    value = fresh()
    words = ["gov", "image", "add", value, "--safe", "-", "--rpc", safe_site.chain.url]
    ran = CliRunner().invoke(cli, [*words, "--kms-contract", safe_site.kms])
    document = json.loads(ran.stdout)
    assert checksum(document) == document["meta"]["checksum"]
    assert "addOsImageHash" in ran.stderr
    assert capsys.readouterr().out == ""


def test_writes_over_no_file(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "there.json"
    path.write_text("mine")
    refused(safe_site.gov("image", "add", fresh(), "--safe", str(path)), "gov.safe_file", 2)
    refused(safe_site.gov("image", "add", fresh(), "--safe", str(path), "--append"), "gov.safe_file", 2)
    refused(
        safe_site.gov("image", "add", fresh(), "--safe", str(tmp_path / "no" / "x.json")),
        "gov.safe_file.io",
        1,
    )
    assert path.read_text() == "mine"


def test_a_crash_while_adding_loses_no_call(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "kept.json", tmp_path / "link.json"
    safe_site.gov("image", "add", fresh(), "--safe", str(path))
    path.chmod(0o640)
    link.symlink_to(path)
    before = path.read_bytes()
    words = ("image", "add", fresh(), "--safe", str(link), "--append")
    with monkeypatch.context() as patched:
        # the disk is full, or the machine stops, before the new calls are all on it
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        refused(safe_site.gov(*words), "gov.safe_file.io", 1)
    assert path.read_bytes() == before
    assert sorted(tmp_path.glob("*.json*")) == [path, link]
    assert safe_site.gov(*words).code == 5
    assert len(json.loads(path.read_text())["transactions"]) == 2
    assert (path.stat().st_mode & 0o777, link.is_symlink()) == (0o640, True)


def test_adding_the_same_call_again_adds_nothing(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    value, path = fresh(), tmp_path / "one.json"
    for _ in range(2):
        safe_site.gov("image", "add", value, value, "--safe", str(path), "--append")
    assert len(json.loads(path.read_text())["transactions"]) == 1


# ---- what the file has ----


def test_shows_what_is_in_the_file_to_which_it_adds(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path
) -> None:
    first, second, path = fresh(), fresh(), tmp_path / "shown.json"
    safe_site.gov("image", "add", first, "--safe", str(path))
    ran = safe_site.gov("kms", "add-mr", second, "--safe", str(path), "--append")
    assert f"in the file: addOsImageHash(osImageHash={first})" in ran.output
    ran = safe_site.gov("kms", "add-device", second, "--safe", str(path), "--append", "--json")
    assert [one["function"].partition("(")[0] for one in ran.json["in_the_file"]] == [
        "addOsImageHash",
        "addKmsAggregatedMr",
    ]
    assert len(json.loads(path.read_text())["transactions"]) == 3


@pytest.mark.parametrize(
    ("to", "data"),
    [
        ("kms", b"\x71\x50\x18\xa6"),
        ("kms", b""),
        ("kms", encode_call(calldata.ADD_COMPOSE_HASH, b"\1" * 32)),
        ("kms", encode_call(calldata.INITIALIZE_KMS, b"\1" * 20, b"\2" * 20)),
        ("other", encode_call(calldata.ADD_OS_IMAGE_HASH, b"\1" * 32)),
        ("deployer", bytes(32) + b"\x60"),
    ],
)
def test_adds_to_no_file_with_a_call_that_is_none_of_ours(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path, to: str, data: bytes
) -> None:
    path = tmp_path / "foreign.json"
    target = {"kms": bytes.fromhex(safe_site.kms[2:]), "deployer": DEPLOYER}.get(to, b"\x77" * 20)
    text = batch_text(safe_site.chain.chain_id, [(target, data)])
    path.write_text(text)
    ran = safe_site.gov("kms", "add-device", fresh(), "--safe", str(path), "--append")
    refused(ran, "gov.safe_file", 2)
    assert path.read_text() == text


def test_a_deployment_is_added_to_nothing_but_creations(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path
) -> None:
    path, deployed = tmp_path / "image.json", tmp_path / "deploy.json"
    safe_site.gov("image", "add", fresh(), "--safe", str(path))
    words = ["gov", "deploy", "--owner", safe_site.safe.address, "--rpc", safe_site.chain.url, "--append"]
    output, code = call([*words, "--salt", "51" * 32, "--safe", str(path)])
    assert ("[gov.safe_file]" in output, code) == (True, 2)
    for salt in ("51", "52", "52"):
        output, code = call([*words, "--salt", salt * 32, "--safe", str(deployed)])
        assert code == 5, output
    assert output.count("in the file: create ") == 6
    assert len(json.loads(deployed.read_text())["transactions"]) == 6


def test_one_file_is_for_one_safe(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    path, owner = tmp_path / "mixed.json", f"0x{DEPLOYER.hex()}"
    ran = safe_site.send("app", "deploy", "--owner", owner, "--json", account=OTHER)
    app_id = ran.json["transactions"][0]["app_id"]
    safe_site.gov("image", "add", fresh(), "--safe", str(path))
    before = path.read_text()
    ran = safe_site.gov("app", "add-hash", app_id, fresh(), "--safe", str(path), "--append")
    refused(ran, "gov.safe_file", 2)
    assert path.read_text() == before


def test_writes_no_file_for_what_a_key_alone_may_do(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path
) -> None:
    path, owner = tmp_path / "key.json", safe_site.address(OTHER)
    ran = safe_site.send("app", "deploy", "--owner", owner, "--owner-is-key", "--json", account=OTHER)
    app_id = ran.json["transactions"][0]["app_id"]
    refused(safe_site.gov("app", "add-hash", app_id, fresh(), "--safe", str(path)), "gov.not_owner", 3)
    assert not path.exists()


def test_apps_of_one_file_are_noted_with_the_ids_that_they_get(
    safe_site: SafeSite, fresh: Fresh, tmp_path: Path
) -> None:
    path, noted = tmp_path / "apps.json", []
    values = [fresh(), fresh()]
    for value in (*values, values[0]):
        words = ["app", "deploy", "--owner", safe_site.safe.address, "--compose-hash", value]
        ran = safe_site.gov(*words, "--safe", str(path), "--append")
        assert ran.code == 5, ran.output
        noted.append(ran.output.rpartition("the app id will be ")[2].partition(",")[0])
    assert "the file has it already" in ran.output
    assert noted[0] == noted[2]
    safe_site.safe.execute(path, signers=2)
    for app_id, value in zip(noted, values, strict=False):
        functions = safe_site.owner.app(bytes.fromhex(app_id[2:])).functions
        assert functions.allowedComposeHashes(value).call()


def test_what_waits_in_the_file_counts_as_made(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    value, path = fresh(), tmp_path / "undone.json"
    for word, count in (("add", 1), ("remove", 2), ("remove", 2), ("add", 3), ("remove", 4)):
        ran = safe_site.gov("image", word, value, "--safe", str(path), "--append")
        assert ran.code == 5, ran.output
        assert len(json.loads(path.read_text())["transactions"]) == count
    safe_site.safe.execute(path, signers=2)
    assert not safe_site.owner.kms.functions.allowedOsImages(value).call()


def test_writes_no_file_where_nothing_is_missing(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    assert safe_site.gov("image", "remove", fresh(), "--safe", str(path)).code == 0
    assert not path.exists()


# ---- the calls of a plan ----


def plan(place: Path, *calls: tuple[str | None, str]) -> str:
    path = place / "plan.json"
    path.write_text(
        json.dumps({"approval": {"calls": [{"to": to, "calldata": data, "why": ""} for to, data in calls]}})
    )
    return str(path)


def test_writes_the_calls_of_a_plan(safe_site: SafeSite, fresh: Fresh, tmp_path: Path) -> None:
    value, path = fresh(), tmp_path / "approve.json"
    asked = plan(tmp_path, (safe_site.kms, "0x06a3ae96" + value[2:]))
    assert safe_site.gov("approve", asked, "--safe", str(path)).code == 5
    safe_site.safe.execute(path, signers=2)
    assert safe_site.gov("approve", asked).code == 0


@pytest.mark.parametrize(
    ("to", "calldata"),
    [
        ("kms", "0x715018a6"),
        ("kms", "0x06a3ae96"),
        ("kms", "0xdfc77223" + "11" * 32),
        ("0x" + "77" * 20, "0x06a3ae96" + "11" * 32),
        (None, "0x06a3ae96" + "11" * 32),
        ("kms", "zz"),
    ],
)
def test_writes_no_call_of_a_plan_that_is_none_of_ours(
    safe_site: SafeSite, tmp_path: Path, to: str | None, calldata: str
) -> None:
    asked = plan(tmp_path, (safe_site.kms if to == "kms" else to, calldata))
    refused(safe_site.gov("approve", asked), "gov.plan", 2)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (calldata.UPGRADE_TO_AND_CALL, (b"\x66" * 20, b"")),
        (calldata.TRANSFER_OWNERSHIP, (b"\x66" * 20,)),
        (calldata.ACCEPT_OWNERSHIP, ()),
        (calldata.SET_ALLOW_ANY_DEVICE, (True,)),
        (calldata.DISABLE_UPGRADES, ()),
        (calldata.SET_REQUIRE_TCB_UP_TO_DATE, (True,)),
        (calldata.REMOVE_COMPOSE_HASH, (b"\x66" * 32,)),
        (calldata.SET_APP_IMPLEMENTATION, (b"\x66" * 20,)),
        (calldata.DEPLOY_AND_REGISTER_APP, (b"\x66" * 20, True, False, True, bytes(32), b"\1" * 32)),
    ],
    ids=lambda one: one.name if isinstance(one, Function) else "",
)
def test_a_plan_passes_by_no_check_of_the_command_for_a_call(
    safe_site: SafeSite, tmp_path: Path, function: Function, arguments: tuple[Value, ...]
) -> None:
    to = safe_site.kms if function.target == "kms" else safe_site.address(OTHER)
    asked = plan(tmp_path, (to, f"0x{encode_call(function, *arguments).hex()}"))
    ran = safe_site.gov("approve", asked)
    refused(ran, "gov.plan", 2)
    assert f"no plan of ours asks for {function.name}(" in ran.output
