"""One boot from the host's files to a mounted disk, against a whole KMS (spec deploy section 6.3)."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from socket import create_server
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.devices.clock import SystemClock
from enclave.dstack_util.guest import booting_tee
from enclave.dstack_util.machine import Completed
from enclave.kms.authorization import Decision
from enclave.platform import Platform
from enclave.tee.nitro import NitroTee
from shared.attestation.tdx_quote import parse_quote
from shared.compose.app_compose import compose_hash
from shared.errors import (
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    StorageError,
    UnavailableError,
)
from shared.keys.app_keys import derive_app_keys, env_public_key
from shared.keys.app_keys_file import SeedProvider, parse_app_keys
from shared.keys.env_encryption import encrypt_env
from shared.ratls.certificates import spki_der
from tests.enclave.dstack_util.gcp_world import BootingGuest, ServedKms, served_kms, start
from tests.enclave.dstack_util.machine import luks_document, luks_header
from tests.enclave.gcp import GUEST_APP_ID, NOW, Machines
from tests.shared.refusal import refuses

TOKEN = "unit-test-launch-token-0000000001"
TOKEN_HASH = "28faa1319055d733ad9651f5ab7689c15b04609846bcd27b3c5bc8df6246f5a3"
IDENTITY = ["system-preparing", "app-id", "compose-hash", "gpu-policy-hash", "instance-id", "boot-mr-done"]
ORIGIN = ["os-image-hash", "key-provider", "storage-fs", "system-ready"]


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


@pytest.fixture
def kms(gcp: Machines, policy, tmp_path: Path) -> Iterator[ServedKms]:
    with served_kms(gcp, policy, tmp_path) as served:
        yield served


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "data-disk"


def _env_key(kms: ServedKms) -> bytes:
    return env_public_key(derive_app_keys(kms.keys.root_keys(), GUEST_APP_ID).env_crypt_key)


def _silent_url() -> str:
    with create_server(("localhost", 0)) as server:
        return f"https://localhost:{server.getsockname()[1]}"


def test_n62_records_each_event_once_in_order_as_the_kms_judged_them(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    events = dict(guest.events())
    assert [name for name, _ in guest.events()] == [*IDENTITY, *ORIGIN]
    kind, judged = kms.policy.asked[-1]
    assert (kind, judged.app_id, judged.instance_id) == ("app", events["app-id"], events["instance-id"])
    assert judged.compose_hash == events["compose-hash"]
    assert judged.os_image_hash == events["os-image-hash"]
    assert (
        events["key-provider"]
        == json.dumps({"name": "kms", "id": kms.root_spki.hex()}, separators=(",", ":")).encode()
    )


def test_keeps_the_keys_that_the_roots_derive_for_itself_alone(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    path = guest.work / ".host-shared/.appkeys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    expected = derive_app_keys(kms.keys.root_keys(), GUEST_APP_ID, dict(guest.events())["instance-id"])
    assert parse_app_keys(path.read_bytes()).disk_crypt_key == expected.disk_crypt_key


def test_app_compose_chooses_the_epoch_of_its_keys(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, key_epoch=3)
    guest.setup()
    instance_id = dict(guest.events())["instance-id"]
    expected = derive_app_keys(kms.keys.root_keys(), GUEST_APP_ID, instance_id, epoch=3)
    assert parse_app_keys(guest.file(".appkeys.json")).disk_crypt_key == expected.disk_crypt_key


def test_works_in_upstreams_order(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, swap_size="8K")
    guest.setup()
    assert [word for word in guest.machine.words() if word != "sync"] == [
        "mount -o",
        f"umount {guest.places.share}",
        "chronyc waitsync",
        "cryptsetup luksFormat",
        "cryptsetup luksOpen",
        "mkfs.ext4 -F",
        "mount -t",
        f"swapoff {guest.places.mount_point}/swapfile",
        "rm -f",
        "fallocate -l",
        "chmod 600",
        f"mkswap {guest.places.mount_point}/swapfile",
        f"swapon {guest.places.mount_point}/swapfile",
    ]
    assert (guest.work / "app-compose.json").read_bytes() == (guest.share / "app-compose.json").read_bytes()
    assert (guest.work / "user_config").is_symlink()
    agent = json.loads((guest.work / "agent.json").read_text())
    assert agent == {"default": {"core": {"data_disks": ["/", str(guest.places.mount_point)]}}}
    assert [told for event, told in guest.host.told if event == "boot.progress"] == [
        "requesting app keys",
        "mounting data disk",
        "data disk ready",
    ]


def test_n74_no_secret_is_in_a_commands_words_or_in_what_is_printed(
    gcp: Machines, kms: ServedKms, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    keys = parse_app_keys(guest.file(".appkeys.json"))
    passphrase = keys.disk_crypt_key.hex()
    printed = capsys.readouterr()
    spoken = " ".join(" ".join(argv) for argv in guest.machine.argv) + printed.out + printed.err
    for secret in (keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key):
        assert secret.hex() not in spoken
    assert passphrase.encode() in guest.machine.inputs


def test_a_second_start_of_the_same_boot_changes_nothing(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    recorded, made = guest.events(), guest.machine.words().count("mkfs.ext4 -F")
    guest.setup()
    assert guest.events() == recorded
    assert guest.machine.words().count("mkfs.ext4 -F") == made == 1


@pytest.mark.parametrize("provider", ["kms", "tpm", "none"])
def test_a_failure_at_any_operation_leaves_a_boot_that_can_be_repeated(
    gcp: Machines, policy, tmp_path: Path, provider: str
) -> None:
    with served_kms(gcp, policy, tmp_path) as kms:
        chosen: dict[str, Any] = {"kms": kms} if provider == "kms" else {"key_provider": provider}
        whole = start(gcp, tmp_path / "whole", swap_size=8192, **chosen)
        whole.setup()
        expected = [name for name, _ in whole.events()]
        guest = start(gcp, tmp_path / "disk", swap_size=8192, **chosen)
        for number in range(1, whole.machine.operations + 1):
            guest.machine.operations, guest.machine.failing = 0, number
            _fail_or_finish(guest)
        guest.machine.failing = 0
        guest.setup()
    assert [name for name, _ in guest.events()] == expected
    assert guest.machine.is_mounted(guest.places.mount_point)


def _fail_or_finish(guest: BootingGuest) -> None:
    try:
        guest.setup()
    except DstackError as error:
        assert error.code == "test.failure"  # noqa: PT017 - a later operation may not come any more


@pytest.mark.parametrize("number", range(1, 24))
def test_a_crash_at_any_operation_leaves_a_disk_for_the_next_boot(
    gcp: Machines, tmp_path: Path, number: int
) -> None:
    """The next boot of a machine with a TPM has the same keys; what was not finished is made anew."""
    disk = tmp_path / "disk"
    guest = start(gcp, disk, key_provider="tpm", swap_size=8192)
    guest.machine.failing = number
    _fail_or_finish(guest)
    guest.machine.failing = 0
    guest.machine.reboot()
    guest.setup()
    assert guest.machine.is_mounted(guest.places.mount_point)


def test_the_disk_of_the_last_boot_is_opened_and_not_made_again(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    guest.machine.reboot()
    guest.machine.argv.clear()
    guest.setup()
    mapping = guest.machine.root / "dev/mapper/dstack_data_disk"
    assert guest.machine.words()[3:7] == [
        "cryptsetup luksOpen",
        "e2fsck -f",
        "mount -t",
        f"resize2fs {mapping}",
    ]


def test_refuses_a_disk_of_another_key(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    first = start(gcp, disk, kms=kms, key_epoch=1)
    first.setup()
    second = start(gcp, disk, kms=kms, key_epoch=2)
    with refuses("setup.disk.key", StorageError):
        second.setup()


def test_refuses_a_header_of_the_hosts_own(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    document = luks_document()
    document["segments"]["0"]["encryption"] = "cipher_null-ecb"
    with disk.open("r+b") as file:
        file.write(luks_header(document))
    with refuses("luks.metadata"):
        guest.setup()
    assert "cryptsetup luksOpen" not in guest.machine.words()


def test_n62_the_next_kms_gives_the_keys_and_nothing_was_recorded_twice(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms, kms_urls=(_silent_url(), kms.url))
    guest.setup()
    assert [name for name, _ in guest.events()] == [*IDENTITY, *ORIGIN]
    assert guest.clock.slept == []


def test_a_kms_that_is_down_is_asked_again_until_the_time_is_up(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms, kms_urls=(_silent_url(),))
    with refuses("net.unreachable", UnavailableError):
        guest.setup()
    assert guest.clock.slept[:6] == [1, 2, 4, 8, 16, 30]
    assert 250 < guest.clock.seconds <= 300
    assert guest.host.told[-1][0] == "boot.error"
    assert "net.unreachable" in guest.host.told[-1][1]


def test_guests_that_lost_a_kms_together_come_back_at_other_times(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms, kms_urls=(_silent_url(),))
    guest.clock.chance = 0.0
    with refuses("net.unreachable", UnavailableError):
        guest.setup()
    assert guest.clock.slept[:6] == [0.5, 1, 2, 4, 8, 15]


def test_a_kms_that_comes_up_meanwhile_gives_the_keys(
    gcp: Machines, kms: ServedKms, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = start(gcp, disk, kms=kms)
    dialer, asked = guest.platform.tee.dialer(), []

    class Late:
        def dial(self, host: str, port: int, timeout: float) -> Any:
            asked.append(host)
            if len(guest.clock.slept) < 3:
                raise UnavailableError("net.unreachable", "down")
            return dialer.dial(host, port, timeout)

    monkeypatch.setattr(guest.platform.tee, "dialer", Late)
    guest.setup()
    assert guest.clock.slept == [1, 2, 4]


def test_a_kms_that_refuses_is_not_asked_again(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    kms.policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    guest = start(gcp, disk, kms=kms)
    with refuses("kms.refused", PolicyDenied):
        guest.setup()
    assert guest.clock.slept == []
    assert [name for name, _ in guest.events()] == IDENTITY


def test_refuses_a_kms_under_another_root(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    other = spki_der(ec.generate_private_key(ec.SECP256R1()).public_key())
    guest = start(gcp, disk, kms=kms, key_provider_id=other.hex())
    with refuses("ratls.signature"):
        guest.setup()


def test_refuses_a_pin_that_is_no_key(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, key_provider_id="00")
    with refuses("ratls.root.key", ConfigError):
        guest.setup()


def test_refuses_an_app_that_pins_no_kms(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms_urls=(kms.url,))
    with refuses("setup.root_pin", ConfigError):
        guest.setup()


def test_refuses_to_guess_a_kms(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, kms_urls=())
    with refuses("setup.kms_urls", ConfigError):
        guest.setup()


def test_a_local_provider_is_refused_in_words(gcp: Machines, disk: Path) -> None:
    guest = start(gcp, disk, key_provider="none")
    compose = json.loads((guest.share / "app-compose.json").read_text())
    (guest.share / "app-compose.json").write_text(json.dumps({**compose, "key_provider": "local"}))
    with refuses("setup.key_provider", ConfigError):
        guest.setup()


@pytest.mark.parametrize(("provider", "kind"), [("tpm", "Tpm"), ("none", "None")])
def test_a_guest_without_a_kms_has_a_ca_of_its_own(
    gcp: Machines, disk: Path, provider: str, kind: str
) -> None:
    guest = start(gcp, disk, key_provider=provider)
    guest.setup()
    keys = parse_app_keys(guest.file(".appkeys.json"))
    assert isinstance(keys.key_provider, SeedProvider)
    assert (keys.key_provider.kind, keys.env_crypt_key, keys.gateway_app_id) == (kind, b"", "")
    assert [name for name, _ in guest.events()] == [*IDENTITY, *ORIGIN[1:]]


@pytest.mark.parametrize("provider", ["tpm", "none"])
def test_keys_that_another_boot_left_behind_are_not_taken(
    gcp: Machines, disk: Path, tmp_path: Path, provider: str
) -> None:
    """The work directory is in memory; one that is not would carry keys from boot to boot."""
    first, second = start(gcp, disk, key_provider=provider), start(gcp, tmp_path / "b", key_provider=provider)
    first.setup()
    (second.work / ".host-shared").mkdir(parents=True)
    (second.work / ".host-shared/.appkeys.json").write_bytes(first.file(".appkeys.json"))
    second.setup()
    assert second.file(".appkeys.json") != first.file(".appkeys.json")


def test_keys_of_another_provider_end_the_boot(gcp: Machines, disk: Path) -> None:
    guest = start(gcp, disk, key_provider="tpm")
    guest.setup()
    path = guest.work / ".host-shared/.appkeys.json"
    path.write_bytes(path.read_bytes().replace(b'"Tpm"', b'"None"'))
    with refuses("setup.events.diverged", StorageError):
        guest.setup()


def test_the_environment_is_decrypted_for_the_app(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, allowed_envs=["A", "B"])
    sealed = encrypt_env({"A": "1\n2", "B": 'x" C="y', "EVIL": "1"}, _env_key(kms))
    (guest.share / ".encrypted-env").write_bytes(sealed)
    guest.setup()
    assert guest.file(".decrypted-env") == b'A="1\\n2"\nB="x\\" C=\\"y"\n'
    assert json.loads(guest.file(".decrypted-env.json")) == {"A": "1\n2", "B": 'x" C="y'}
    assert stat.S_IMODE((guest.work / ".host-shared/.decrypted-env").stat().st_mode) == 0o600


def test_both_environment_files_are_there_without_variables(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    assert (guest.file(".decrypted-env"), guest.file(".decrypted-env.json")) == (b"", b"{}")


def test_n71_an_environment_that_does_not_open_stops_the_boot(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms, allowed_envs=["A"])
    sealed = bytearray(encrypt_env({"A": "1"}, _env_key(kms)))
    sealed[-1] ^= 1
    (guest.share / ".encrypted-env").write_bytes(sealed)
    with refuses("env.ciphertext.tag"):
        guest.setup()
    assert not (guest.work / ".host-shared/.decrypted-env").exists()


def test_n71_an_environment_that_nobody_can_open_stops_the_boot(gcp: Machines, disk: Path) -> None:
    guest = start(gcp, disk, key_provider="none", allowed_envs=["A"])
    (guest.share / ".encrypted-env").write_bytes(bytes(64))
    with refuses("setup.env.key", ConfigError):
        guest.setup()


@pytest.mark.parametrize(
    "user_config",
    [
        None,
        b"{}",
        b"no json",
        json.dumps({"dstack": {"launch_token": "short"}}).encode(),
        json.dumps({"dstack": {"launch_token": "x" * 40}}).encode(),
    ],
)
def test_n72_refuses_without_the_launch_token_and_records_nothing(
    gcp: Machines, kms: ServedKms, disk: Path, user_config: bytes | None
) -> None:
    required = {"manifest_version": "3", "requirements": {"launch_token_hash": TOKEN_HASH}}
    guest = start(gcp, disk, kms=kms, **required)
    if user_config is not None:
        (guest.share / ".user-config").write_bytes(user_config)
    with refuses("setup.launch_token", PolicyDenied):
        guest.setup()
    assert guest.events() == []


def test_n72_starts_with_the_launch_token(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    required = {"manifest_version": "3", "requirements": {"launch_token_hash": TOKEN_HASH}}
    guest = start(gcp, disk, kms=kms, **required)
    (guest.share / ".user-config").write_text(json.dumps({"dstack": {"launch_token": TOKEN}}))
    guest.setup()
    assert guest.events()[-1][0] == "system-ready"


@pytest.mark.parametrize(
    ("requirements", "code"),
    [
        ({"platforms": []}, "setup.platform"),
        ({"platforms": ["dstack-tdx"]}, "setup.platform"),
        ({"os_version": ">=0.7"}, "setup.os_version"),
        ({"tdx_measure_acpi_tables": True}, "setup.acpi_tables"),
    ],
)
def test_refuses_an_app_whose_requirements_are_not_met(
    gcp: Machines, kms: ServedKms, disk: Path, requirements: dict[str, Any], code: str
) -> None:
    guest = start(gcp, disk, kms=kms, manifest_version="3", requirements=requirements)
    with refuses(code, PolicyDenied):
        guest.setup()


def test_meets_requirements(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    required = {"platforms": ["dstack-gcp-tdx"], "os_version": ">=0.6.0, <0.7"}
    guest = start(gcp, disk, kms=kms, manifest_version="3", requirements=required, event_log_version=2)
    guest.setup()
    assert {event.version for event in guest.platform.tee.event_log().read()} == {2}  # type: ignore[attr-defined]


def test_nerdctl_needs_the_third_manifest(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, runner="nerdctl-compose")
    with refuses("setup.runner", ConfigError):
        guest.setup()


def test_refuses_a_machine_with_a_gpu(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    (guest.machine.root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    with refuses("setup.gpu", ConfigError):
        guest.setup()


def test_a_clock_that_is_not_set_stops_the_boot(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.machine.answers["chronyc",] = Completed(1, stderr=b"No reachable sources.")
    with refuses("setup.command", StorageError):
        guest.setup()


def test_secure_time_may_be_left_out(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, secure_time=False)
    guest.setup()
    assert "chronyc waitsync" not in guest.machine.words()


def test_a_boot_with_other_files_diverges_from_what_is_recorded(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    guest.setup()
    compose = (guest.share / "app-compose.json").read_bytes()
    (guest.share / "app-compose.json").write_bytes(compose + b"\n")
    with refuses("setup.events.diverged", StorageError):
        guest.setup()


def test_the_app_id_is_the_compose_hashs_where_the_host_names_none(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    guest = start(gcp, disk, kms=kms)
    (guest.share / ".instance_info").unlink()
    guest.setup()
    events = dict(guest.events())
    assert events["app-id"] == compose_hash(guest.file("app-compose.json"))[:20]


def test_refuses_a_zero_app_id(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    (guest.share / ".instance_info").write_text(json.dumps({"app_id": "00" * 20}))
    with refuses("setup.app_id", ConfigError):
        guest.setup()


def test_the_hosts_seed_names_the_instance_unless_keys_last_one_boot(
    gcp: Machines, kms: ServedKms, disk: Path
) -> None:
    seed = "33" * 20
    guest = start(gcp, disk, kms=kms)
    (guest.share / ".instance_info").write_text(
        json.dumps({"instance_id_seed": seed, "app_id": GUEST_APP_ID.hex()})
    )
    guest.setup()
    told = json.loads(next(payload for event, payload in guest.host.told if event == "instance.info"))
    assert told["instance_id_seed"] == seed
    assert told["instance_id"] == dict(guest.events())["instance-id"].hex()


def test_an_app_without_instance_ids_records_none(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, no_instance_id=True)
    guest.setup()
    assert dict(guest.events())["instance-id"] == b""


def test_the_hosts_mirror_joins_dockers_settings(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, sys_config={"docker_registry": "https://mirror.example"})
    settings = guest.machine.root / "etc/docker/daemon.json"
    settings.parent.mkdir()
    settings.write_text('{"log-driver":"journald"}')
    guest.setup()
    assert json.loads(settings.read_text()) == {
        "log-driver": "journald",
        "registry-mirrors": ["https://mirror.example"],
    }


def test_refuses_dockers_settings_that_are_no_object(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms, sys_config={"docker_registry": "https://mirror.example"})
    settings = guest.machine.root / "etc/docker/daemon.json"
    settings.parent.mkdir()
    settings.write_text("[]")
    with refuses("setup.docker", ConfigError):
        guest.setup()


def test_a_system_file_that_cannot_be_read_is_said(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    (guest.machine.root / "proc/cmdline").unlink()
    (guest.machine.root / "proc/cmdline").mkdir()
    with refuses("setup.unreadable", StorageError):
        guest.setup()


@pytest.mark.parametrize(
    ("bound", "code"), [(b"\1" + bytes(47), "mr_config.mismatch"), (b"\3" + bytes(47), "setup.mr_config")]
)
def test_refuses_a_config_that_the_host_bound_and_that_is_not_this_boots(
    gcp: Machines, kms: ServedKms, disk: Path, monkeypatch: pytest.MonkeyPatch, bound: bytes, code: str
) -> None:
    def bending(quote: bytes) -> Any:
        parsed = parse_quote(quote)
        report = msgspec.structs.replace(parsed.report, mr_config_id=bound)
        return msgspec.structs.replace(parsed, report=report)

    guest = start(gcp, disk, kms=kms)
    monkeypatch.setattr("enclave.dstack_util.setup.parse_quote", bending)
    with refuses(code):
        guest.setup()
    assert [name for name, _ in guest.events()] == IDENTITY
    assert not (guest.work / ".host-shared/.appkeys.json").exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"kms_urls": ["https://a b"]}, "sys_config.url"),
        ({"kms_urls": ["https://a"] * 17}, "sys_config.url"),
        ({"kms_urls": 3}, "sys_config.field"),
        ({"docker_registry": "file:///etc"}, "sys_config.url"),
    ],
)
def test_refuses_a_sys_config_that_is_none(
    gcp: Machines, kms: ServedKms, disk: Path, fields: dict[str, Any], code: str
) -> None:
    guest = start(gcp, disk, kms=kms, sys_config=fields)
    with refuses(code, ProtocolError):
        guest.setup()


def test_an_enclave_is_not_booted_by_setup(tmp_path: Path) -> None:
    platform = Platform(tmp_path, tmp_path, NitroTee(None, None))  # type: ignore[arg-type]
    with refuses("setup.unsupported", ConfigError):
        booting_tee(platform)


def test_refuses_another_k256_root_than_the_image_pins(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    path = guest.platform.image / "etc/dstack/setup.toml"
    path.write_text(f'[kms]\nk256_pubkey = "0x{"02" * 33}"\n' + path.read_text())
    with refuses("get_keys.signature", InvalidEvidence):
        guest.setup()


def test_refuses_a_setup_file_with_an_unknown_setting(gcp: Machines, kms: ServedKms, disk: Path) -> None:
    guest = start(gcp, disk, kms=kms)
    (guest.platform.image / "etc/dstack/setup.toml").write_text("nothing = 1\n")
    with refuses("image.config", ConfigError):
        guest.setup()
