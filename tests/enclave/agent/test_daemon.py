"""The agent as a process: from a keys file to its sockets, and its end."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from enclave.agent.config import AgentConfig
from enclave.agent.daemon import main, read_files, read_keys, run
from enclave.platform import Platform
from shared.errors import ConfigError, ExitCode
from shared.keys.app_keys_file import parse_app_keys
from shared.keys.guest_keys import AppKey
from tests.enclave.agent.whole_agent import APP_ID, K256_KEY, WholeAgent, keys_file, whole_agent
from tests.enclave.event_log import PATIENCE
from tests.shared.refusal import refuses


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[WholeAgent]:
    with whole_agent(tmp_path, keys=keys_file()) as started:
        started.wait_for("agent.ready")
        yield started


@pytest.fixture
def platform(gcp) -> Platform:
    found: Platform = gcp.start(key_provider="none").platform
    return found


def test_a_guest_whose_boot_left_keys_serves_them(agent: WholeAgent) -> None:
    expected = AppKey(K256_KEY, b"").derive("p", "", "").key.hex()
    assert agent.call("/GetKey", {"path": "p"})["key"] == expected


def test_its_certificates_are_its_own_cas(agent: WholeAgent) -> None:
    chain = agent.call("/GetTlsKey", {"subject": "s"})["certificate_chain"]
    leaf, ca = (x509.load_pem_x509_certificate(pem.encode()) for pem in chain)
    leaf.verify_directly_issued_by(ca)


def test_it_answers_on_the_external_port_and_not_to_its_host(agent: WholeAgent) -> None:
    url = f"http://127.0.0.1:{agent.ports[8090]}/prpc/Worker.Info"
    assert httpx.post(url, json={}, timeout=PATIENCE).json()["app_id"] == APP_ID.hex()
    assert agent.events[-1]["guest_api"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_when_it_is_told_to(number: int, agent: WholeAgent) -> None:
    assert agent.stop(number) == ExitCode.OK


def test_what_is_being_answered_at_the_end_is_answered(agent: WholeAgent) -> None:
    body = json.dumps({"path": "p"}).encode()
    with agent.connect() as sock:
        sock.sendall(b"POST /GetKey?json HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body))
        sock.sendall(body[:1])
        agent.call("/Version")  # the one before has arrived too
        agent.process.send_signal(signal.SIGTERM)
        agent.wait_for("agent.draining")
        sock.sendall(body[1:])
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert agent.process.wait(PATIENCE) == ExitCode.OK


def test_a_guest_without_keys_does_not_start(tmp_path: Path) -> None:
    with whole_agent(tmp_path) as agent:
        failed = agent.wait_for("agent.failed")
        assert (failed["code"], agent.process.wait(PATIENCE)) == ("agent.file", ExitCode.USAGE)


def test_refuses_a_guest_without_keys(platform: Platform) -> None:
    with refuses("agent.file", ConfigError):
        read_keys(platform, AgentConfig())


def test_refuses_a_guest_whose_boot_left_no_compose(platform: Platform) -> None:
    (platform.writable / "dstack/.host-shared/app-compose.json").unlink()
    with refuses("agent.file", ConfigError):
        read_files(platform, AgentConfig(), needed=True)


def test_an_enclave_needs_neither_compose_nor_the_hosts_text(platform: Platform) -> None:
    for name in ("app-compose.json", ".sys-config.json"):
        (platform.writable / "dstack/.host-shared" / name).unlink()
    files = read_files(platform, AgentConfig(), needed=False)
    assert (files.app_compose, files.vm_config) == (b"", "")


def test_the_host_names_further_kmses(platform: Platform) -> None:
    sys_config = platform.writable / "dstack/.host-shared/.sys-config.json"
    sys_config.write_text('{"vm_config": "{}", "kms_urls": ["https://a.example", "https://b.example"]}')
    files = read_files(platform, AgentConfig(), needed=True)
    assert files.kms_urls == ("https://a.example", "https://b.example")


def test_a_guest_believes_whom_its_images_setup_names(platform: Platform) -> None:
    """A wrong file shows that it is read: no trust of the agent's own stands beside that of the boot."""
    (platform.image / "etc/dstack").mkdir(parents=True, exist_ok=True)
    (platform.image / "etc/dstack/setup.toml").write_text("[trusted]\n")
    with refuses("image.config", ConfigError):
        run(platform, AgentConfig(), parse_app_keys(keys_file()), None)


def test_refuses_a_file_without_a_bound(platform: Platform) -> None:
    (platform.writable / "dstack/.host-shared/.sys-config.json").write_bytes(b" " * (1 << 20))
    with refuses("agent.file", ConfigError):
        read_files(platform, AgentConfig(), needed=True)


def test_a_config_that_is_not_there_is_an_exit_code(platform: Platform, tmp_path: Path) -> None:
    assert main(["-c", str(tmp_path / "nothing")], platform) == ExitCode.USAGE
