"""What is written onto a parent: read back by the programs that will read it."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from enclave.vsock.config import parse_config
from functions.clouds.nitro_parent import (
    ENCLAVE_UNIT,
    FORWARDER_UNIT,
    MAX_USER_DATA,
    Download,
    allocator_config,
    enclave_unit,
    forwarder_config,
    forwarder_unit,
    run_script,
    stop_script,
    user_data,
)
from functions.clouds.nitro_settings import NitroSettings, planned_settings
from shared.compose.project import NITRO_DEFAULTS
from shared.errors import ConfigError
from tests.shared.refusal import refuses

IMAGE = Download("bucket", "eif/uid/" + "ab" * 32 + ".eif", "ab" * 32)
FORWARDER = Download("bucket", "eif/uid/forwarder.tar.gz", "cd" * 32)
PCRS = {f"PCR{number}": f"{number:02x}" * 48 for number in range(3)}


def settings(**fields: object) -> NitroSettings:
    given = msgspec.to_builtins(NITRO_DEFAULTS) | {"bucket": "bucket", "iam_instance_profile": "p"} | fields
    return planned_settings(given, PCRS)


def script(**fields: object) -> str:
    return user_data(settings(**fields), IMAGE, FORWARDER, "python3.11")


def test_the_forwarder_takes_its_configuration() -> None:
    config = parse_config(
        forwarder_config(
            settings(
                ports=("443:8443", "8000"),
                egress=("kms.example.com:12001", "kms.example.com:443", "10.0.0.1:8545", "[2001:db8::1]:443"),
            )
        )
    )
    assert {(rule.listen, rule.target) for rule in config.inbound} == {
        ("0.0.0.0:8090", "vsock://16:8080"),
        ("0.0.0.0:443", "vsock://16:8443"),
        ("0.0.0.0:8000", "vsock://16:8000"),
    }
    (proxy,) = config.outbound
    assert (proxy.listen, proxy.peers) == (3128, (16,))
    assert proxy.allows("kms.example.com", 12001)
    assert proxy.allows("kms.example.com", 443)
    assert proxy.allows("10.0.0.1", 8545)
    assert proxy.allows("2001:db8::1", 443)
    assert not proxy.allows("kms.example.com", 80)
    assert not proxy.allows("169.254.169.254", 80)
    assert config.bridge == ()
    assert config.limits.idle_seconds == 300


def test_nothing_may_be_reached_that_nobody_named() -> None:
    (proxy,) = parse_config(forwarder_config(settings())).outbound
    assert proxy.allow == ()
    assert proxy.peers == (16,)


def test_the_allocator_gets_flat_keys_after_its_marker() -> None:
    text = allocator_config(settings(memory_mib=2048, cpu_count=4))
    assert text.splitlines() == ["---", "memory_mib: 2048", "cpu_count: 4"]


@pytest.mark.parametrize("text", [script(), run_script(settings(), IMAGE), stop_script()])
def test_bash_reads_the_scripts(text: str) -> None:
    ran = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine")
    allocator = "[Service]\nExecStart=/bin/true\n"
    # what a unit runs must exist to be verified, and what it runs is on the parent alone
    units = {
        FORWARDER_UNIT: forwarder_unit("python3.11").replace("/usr/bin/python3.11", "/bin/sh"),
        ENCLAVE_UNIT: enclave_unit().replace("/usr/local/lib/dstack/", "/bin/true "),
        "nitro-enclaves-allocator.service": allocator,
    }
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    for name in (FORWARDER_UNIT, ENCLAVE_UNIT):
        ran = subprocess.run(
            [analyze, "verify", "--man=no", "--recursive-errors=no", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert name not in ran.stderr


def test_the_forwarder_is_confined() -> None:
    lines = set(forwarder_unit("python3.11").splitlines())
    assert {
        "DynamicUser=yes",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "Restart=always",
        "LimitNOFILE=16384",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_VSOCK",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "IPAddressDeny=169.254.169.254/32 fd00:ec2::254/128",
    } <= lines


def test_no_debug_mode_and_no_console_is_ever_asked_for() -> None:
    assert "debug" not in script()
    assert "attach-console" not in script()


def test_user_data_fits_with_every_port_that_is_possible() -> None:
    ports = tuple(f"{10000 + number}:{20000 + number}" for number in range(60))
    assert len(script(ports=ports).encode()) <= MAX_USER_DATA


def test_user_data_that_ec2_would_refuse_is_refused_before() -> None:
    egress = tuple(f"a-long-name-of-a-host-{number:03}.example.com:443" for number in range(250))
    with refuses("nitro.user_data", ConfigError):
        script(egress=egress)


@pytest.mark.parametrize(
    "key",
    ["eif/$(touch pwned)/x", "eif/'; touch pwned; '/x", 'eif/"; touch pwned; "/x', "eif/`touch pwned`/x"],
)
def test_a_hostile_name_stays_a_name(tmp_path: Path, key: str) -> None:
    text = user_data(settings(), msgspec.structs.replace(IMAGE, key=key), FORWARDER, "python3.11")
    (line,) = [line for line in text.splitlines() if line.startswith("fetch") and "app.eif" in line]
    ran = subprocess.run(
        ["bash", "-c", f'fetch() {{ printf %s "$1"; }}\n{line}'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"s3://bucket/{key}"
    assert list(tmp_path.iterdir()) == []
