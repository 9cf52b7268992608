"""A TDX guest on a machine of one's own boots by itself, and its host is told how it does."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave.devices.clock import SystemClock
from enclave.devices.detect import TeePlatform
from enclave.dstack_util.main import run
from enclave.dstack_util.setup import setup
from enclave.dstack_util.tools import Tools
from shared.attestation.event_log_json import event_log_json
from shared.attestation.tdx_quote import parse_quote
from shared.boot_info import TDX
from shared.errors import ConfigError, PolicyDenied
from shared.keys.app_keys import derive_app_keys
from shared.keys.app_keys_file import parse_app_keys
from tests.enclave.dstack_util.gcp_world import BootingGuest, ServedKms, served_kms, start, trust_toml
from tests.enclave.gcp import GUEST_APP_ID, NOW, Guest, Machines
from tests.enclave.hosts import URL, Host
from tests.enclave.tdx import TdxMachine
from tests.shared.refusal import refuses

PROGRESS = ["requesting app keys", "mounting data disk", "data disk ready"]


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


@pytest.fixture
def kms(gcp: Machines, policy, tmp_path: Path) -> Iterator[ServedKms]:
    with served_kms(gcp, policy, tmp_path) as served:
        yield served


@pytest.fixture
def host(tdx: TdxMachine) -> Iterator[Host]:
    running = Host(tdx.host.listen(10000))
    running.answers(b"")
    yield running
    running.close()


def _guest(tdx: TdxMachine, gcp: Machines, tmp_path: Path, *, url: str = URL, **compose: Any) -> BootingGuest:
    sys_config = {"host_api_url": url, "kms_urls": compose.pop("kms_urls", ())}
    document = {"key_provider": "none", "storage_fs": "ext4", **compose}
    setup_file = {"/etc/dstack/setup.toml": trust_toml(gcp)}
    return BootingGuest(
        tdx.start(setup_file, sys_config=sys_config, boots_itself=True, **document), tmp_path / "data-disk"
    )


def _boot(guest: BootingGuest) -> None:
    setup(guest.platform, guest.machine, guest.places, waiting=guest.clock.waiting())


class Session:
    """Runs commands in a guest, and keeps what the last one printed."""

    def __init__(self, guest: Guest | None) -> None:
        self._platform = None if guest is None else guest.platform
        self.out = b""

    def __call__(self, *argv: str, stdin: bytes = b"") -> int:
        stdout = io.BytesIO()
        code = run(list(argv), Tools(self._platform, stdin=io.BytesIO(stdin), stdout=stdout))
        self.out = stdout.getvalue()
        return code


def test_a_kms_gives_it_the_keys_of_its_app(
    tdx: TdxMachine, gcp: Machines, kms: ServedKms, tmp_path: Path
) -> None:
    pinned = {"key_provider": "kms", "key_provider_id": kms.root_spki.hex(), "kms_urls": (kms.url,)}
    guest = _guest(tdx, gcp, tmp_path, url="", **pinned)
    _boot(guest)
    events = dict(guest.events())
    expected = derive_app_keys(kms.keys.root_keys(), GUEST_APP_ID, events["instance-id"])
    assert parse_app_keys(guest.file(".appkeys.json")).disk_crypt_key == expected.disk_crypt_key
    kind, judged = kms.policy.asked[-1]
    assert (kind, judged.tee_variant, judged.compose_hash) == ("app", TDX, events["compose-hash"])


def test_its_instance_follows_from_the_seed_and_no_chip(
    tdx: TdxMachine, gcp: Machines, host: Host, tmp_path: Path
) -> None:
    guest = _guest(tdx, gcp, tmp_path)
    _boot(guest)
    told = json.loads(dict(host.told())["instance.info"])
    expected = hashlib.sha256(bytes.fromhex(told["instance_id_seed"]) + GUEST_APP_ID).digest()[:20]
    assert dict(guest.events())["instance-id"] == expected


def test_refuses_keys_of_a_tpm_that_it_has_not(tdx: TdxMachine, gcp: Machines, tmp_path: Path) -> None:
    guest = _guest(tdx, gcp, tmp_path, url="", key_provider="tpm")
    with refuses("setup.tpm", ConfigError):
        _boot(guest)


def test_the_host_is_told_how_a_boot_goes(tdx: TdxMachine, gcp: Machines, host: Host, tmp_path: Path) -> None:
    _boot(_guest(tdx, gcp, tmp_path))
    assert [text for event, text in host.told() if event == "boot.progress"] == PROGRESS


def test_the_host_is_told_why_a_boot_ended(
    tdx: TdxMachine, gcp: Machines, host: Host, tmp_path: Path
) -> None:
    guest = _guest(
        tdx, gcp, tmp_path, manifest_version="3", requirements={"platforms": ["dstack-nitro-enclave"]}
    )
    with refuses("setup.platform", PolicyDenied):
        _boot(guest)
    event, text = host.told()[-1]
    assert (event, text.rpartition("[")[2]) == ("boot.error", "setup.platform]")


def test_a_boot_does_not_depend_on_who_watches_it(tdx: TdxMachine, gcp: Machines, tmp_path: Path) -> None:
    guest = _guest(tdx, gcp, tmp_path)  # nobody listens
    _boot(guest)
    assert guest.events()[-1] == ("system-ready", b"")


def test_refuses_a_host_that_is_no_address(tdx: TdxMachine, gcp: Machines, tmp_path: Path) -> None:
    with refuses("host_api.url", ConfigError):
        _boot(_guest(tdx, gcp, tmp_path, url="ftp://host"))


def test_a_cloud_is_told_nothing_of_a_boot(gcp: Machines, host: Host, tmp_path: Path) -> None:
    guest = start(gcp, tmp_path / "disk", sys_config={"host_api_url": URL}, key_provider="none")
    _boot(guest)
    assert guest.events()[-1] == ("system-ready", b"")
    assert host.told() == []


def test_a_command_tells_the_host_that_the_files_name(tdx: TdxMachine, host: Host) -> None:
    session = Session(tdx.start(sys_config={"host_api_url": URL}))
    assert session("notify-host", "-e", "boot.progress", "-d", "setting up docker") == 0
    assert host.told() == [("boot.progress", "setting up docker")]


def test_the_directory_of_the_machine_below_says_nothing(
    tdx: TdxMachine, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    session = Session(tdx.start(sys_config={"host_api_url": URL}))
    assert session("notify-host", "-e", "boot.progress", "-d", "done") == 0
    assert host.told() == [("boot.progress", "done")]


def test_a_real_guest_looks_where_its_boot_left_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".sys-config.json").write_text('{"vm_config": "", "host_api_url": "ftp://host"}')
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    monkeypatch.setattr("enclave.dstack_util.tools.detect_platform", lambda: TeePlatform.TDX)
    with refuses("host_api.url", ConfigError):
        Tools(None).host_api("")


def test_or_the_one_that_it_is_given(tdx: TdxMachine, host: Host) -> None:
    assert Session(tdx.start())("notify-host", "-u", URL, "-e", "boot.error", "-d", "no disk") == 0
    assert host.told() == [("boot.error", "no disk")]


def test_a_guest_whose_files_name_no_host_tells_nobody(tdx: TdxMachine, host: Host) -> None:
    assert Session(tdx.start())("notify-host", "-e", "boot.progress", "-d", "done") == 0
    assert host.told() == []


def test_a_command_whose_host_is_not_there_has_failed(tdx: TdxMachine, capsys) -> None:
    assert Session(tdx.start())("notify-host", "-u", URL, "-e", "boot.progress", "-d", "done") == 1
    assert "[vsock.connect.refused]" in capsys.readouterr().err


@pytest.mark.parametrize("cloud", [TeePlatform.GCP_TDX, TeePlatform.NITRO_ENCLAVE, TeePlatform.NITRO_TPM])
def test_a_command_tells_no_cloud(cloud: TeePlatform, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave.dstack_util.tools.detect_platform", lambda: cloud)
    assert Session(None)("notify-host", "-u", URL, "-e", "boot.progress", "-d", "done") == 0
    assert host.told() == []


def test_the_commands_of_evidence_are_those_of_any_tdx_guest(tdx: TdxMachine) -> None:
    guest = tdx.start(key_provider="none")
    session = Session(guest)
    assert session("quote", stdin=bytes([3]) * 64) == 0
    assert parse_quote(session.out).report.report_data == bytes([3]) * 64
    assert session("extend", "-e", "name", "-p", "ab") == 0
    assert session("eventlog") == 0
    assert session.out.decode().rstrip() == event_log_json(guest.evidence().quote.event_log)  # type: ignore[union-attr]
    assert session("replay-imr") == 0
    rtmr3 = parse_quote(guest.evidence().quote.quote).report.rtmrs[3]  # type: ignore[union-attr]
    assert session.out.decode().splitlines()[3] == f"IMR3: {rtmr3.hex()}"


def test_it_shows_who_it_is_once_it_believes_its_own_evidence(tdx: TdxMachine, gcp: Machines) -> None:
    session = Session(tdx.start({"/etc/dstack/setup.toml": trust_toml(gcp)}, key_provider="none"))
    assert session("show") == 0
    assert json.loads(session.out)["app_id"] == GUEST_APP_ID.hex()


def test_it_has_no_tpm_to_quote(tdx: TdxMachine, capsys) -> None:
    assert Session(tdx.start())("tpm-quote", "-d", "ab") == 1
    assert "[tpm_quote.platform]" in capsys.readouterr().err
