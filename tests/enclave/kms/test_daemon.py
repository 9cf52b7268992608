"""The process, from its measured file to its listeners, and what it refuses to start with (N-56)."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import socket
from typing import Any

import msgspec
import pytest
import uvicorn

from enclave.kms import daemon
from enclave.kms.key_store import BOOTSTRAP_MARKERS, KeyStore
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.trust import TrustAnchors
from shared.errors import ExitCode
from shared.keys.k256 import public_key
from shared.net.attested_client import AttestedConnection
from shared.net.fetch import HttpClient
from shared.ratls.certificates import spki_der
from tests.enclave.conftest import StandInDialer, registers

TOKEN = {"authorization": "Bearer once"}
HASH = hashlib.sha256(b"once").hexdigest()
CONFIG = f"""
[core]
aws_nitro_enclave_key_release = true
[core.auth_api]
type = "dev"
[core.onboard]
token_hash = "{HASH}"
port = 8100
"""
ANCHORS = """
[core.attestation]
insecure_allow_external_trust_anchors = true
[core.attestation.root_ca]
aws_nitro_enclave = "/root.pem"
"""
ADMIN = f'[core.admin]\nenabled = true\nauth_token_hash = "{HASH}"\n'
REAL = f"""
rpc_roots = "/root.pem"
url = "https://authorize.example"
chain_id = 1
kms_contract = "0x{"11" * 20}"
rpc_urls = ["https://a.example", "https://b.example"]
"""

Action = Callable[["Machine"], None]


class Machine:
    """One simulated enclave with a KMS. Its network leads to another one's listener, or nowhere."""

    def __init__(self, directory: Path, authority: SimulatedAuthority, seed: int) -> None:
        self.directory = directory
        self.vsock = UnixStandIn(directory / "v", 16)
        self.peer: Machine | None = None
        self.peer_port = 8000
        (directory / "v").mkdir(parents=True)
        (directory / "etc/kms").mkdir(parents=True)
        (directory / "root.pem").write_bytes(authority.root_pem)
        self._nsm = SimulatedNsm(registers(seed), authority)

    def run(self, config: str) -> int:
        (self.directory / "etc/kms/kms.toml").write_text(config)
        tee = NitroTee(self._nsm, self.vsock)
        if self.peer is not None:
            dialer = StandInDialer(self.peer.vsock, 16, self.peer_port)
            tee.dialer = lambda: dialer  # type: ignore[method-assign, return-value]
        return daemon.main([], Platform(image=self.directory, writable=self.directory, tee=tee))

    def store(self) -> KeyStore:
        return KeyStore(self.directory / "etc/kms/certs")

    def call(self, port: int, method: str, body: object, headers: dict[str, str]) -> Any:
        http = HttpClient(StandInDialer(self.vsock, 16, port), timeout=20)
        try:
            url = f"http://kms.test/prpc/{method}?json"
            return http.request("POST", url, msgspec.json.encode(body), headers=headers)
        finally:
            http.close()


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Machine, Action]]]:
    """Return a list of what to do beside each listener that daemons open, in order, before it ends."""
    plan: list[tuple[Machine, Action]] = []
    run = daemon.run_server

    def run_beside(server: uvicorn.Server, sockets: list[socket]) -> None:
        machine, action = plan.pop(0)
        thread = threading.Thread(target=run, args=(server, sockets), daemon=True)
        thread.start()
        try:
            action(machine)
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()

    monkeypatch.setattr(daemon, "run_server", run_beside)
    yield plan
    assert plan == []


@pytest.fixture
def machine(tmp_path: Path, authority: SimulatedAuthority) -> Callable[[str, int], Machine]:
    return lambda name, seed: Machine(tmp_path / name, authority, seed)


def _bootstrap(machine: Machine) -> None:
    assert machine.call(8100, "Bootstrap", {"domain": "kms.test"}, {}).status == 401
    assert machine.call(8100, "GetAttestationInfo", None, {}).status == 200
    assert machine.call(8100, "Bootstrap", {"domain": "kms.test"}, TOKEN).status == 200
    assert machine.call(8100, "Finish", None, TOKEN).status == 200


def test_a_second_process_onboards_from_the_first_and_serves(stages, machine) -> None:
    first, second = machine("a", 1), machine("b", 2)
    second.peer = first

    def onboard(new: Machine) -> None:
        body = {"source_url": "https://kms.test:8000", "domain": "second.test"}
        answer = new.call(8100, "Onboard", body, TOKEN)
        assert (answer.status, answer.body) == (
            200,
            msgspec.json.encode({"k256_pubkey": public_key(first.store().load().k256).hex()}),
        )

    def served(new: Machine) -> None:
        dialer = StandInDialer(new.vsock, 16, 8000)
        with AttestedConnection.connect(
            dialer, "second.test", 8000, check_peer=lambda _leaf: None, timeout=20
        ) as connection:
            assert connection.request("GET", "/health").body == b"OK"

    def start_second(running: Machine) -> None:
        stages[:0] = [(second, onboard), (second, served)]
        assert second.run(CONFIG + _pins(running) + ANCHORS) == ExitCode.OK

    stages += [(first, _bootstrap), (first, start_second)]
    assert first.run(CONFIG + ANCHORS) == ExitCode.OK
    assert first.store().load().root_keys() == second.store().load().root_keys()


def test_the_admin_listener_runs_beside_the_main_one(stages, machine) -> None:
    kms = machine("a", 1)
    cached = kms.directory / "usr/share/dstack/images/images/ab"
    cached.mkdir(parents=True)

    def clear(running: Machine) -> None:
        assert running.call(8001, "ClearImageCache", {"image_hash": "ab"}, {}).status == 401
        assert cached.exists()
        assert running.call(8001, "ClearImageCache", {"image_hash": "ab"}, TOKEN).status == 200

    stages += [(kms, _bootstrap), (kms, clear)]
    assert kms.run(CONFIG + ANCHORS + ADMIN) == ExitCode.OK
    assert not cached.exists()


def test_a_second_process_onboards_from_the_admin_listener_with_its_token(stages, machine, capsys) -> None:
    first, second = machine("a", 1), machine("b", 2)
    second.peer, second.peer_port = first, 8001
    asked = {"source_url": "https://kms.test:8001", "domain": "second.test", "source_token": "once"}

    def onboard(new: Machine) -> None:
        assert new.call(8100, "Onboard", asked | {"source_token": ""}, TOKEN).status == 400
        assert new.call(8100, "Onboard", asked, TOKEN).status == 200
        assert new.call(8100, "Finish", None, TOKEN).status == 200

    def start_second(running: Machine) -> None:
        told = _tell(running, "GetMeta")
        assert told["policy"]["key_handover"] == "admin"
        stages[:0] = [(second, onboard), (second, lambda _new: None)]
        assert second.run(CONFIG + _pins(running) + ANCHORS) == ExitCode.OK

    stages += [(first, _bootstrap), (first, start_second)]
    handover = "public_key_handover = false\n"
    assert first.run(CONFIG + handover + ANCHORS + ADMIN + "tls = true\n") == ExitCode.OK
    assert first.store().load().root_keys() == second.store().load().root_keys()
    assert '"kms.admin.ready", "port": 8001, "tls": true' in capsys.readouterr().out


def _tell(machine: Machine, method: str) -> dict[str, Any]:
    with AttestedConnection.connect(
        StandInDialer(machine.vsock, 16, 8000), "kms.test", 8000, check_peer=lambda _leaf: None, timeout=20
    ) as connection:
        return msgspec.json.decode(connection.request("GET", f"/prpc/{method}").body, type=dict[str, Any])


def _pins(machine: Machine) -> str:
    keys = machine.store().load()
    return (
        f'source_ca_pubkey = "{spki_der(keys.root_ca_key.public_key()).hex()}"\n'
        f'source_k256_pubkey = "{public_key(keys.k256).hex()}"\n'
    )


def test_n56_finish_without_keys_starts_nothing(stages, machine, capsys) -> None:
    kms = machine("a", 1)
    stages += [(kms, lambda running: running.call(8100, "Finish", None, TOKEN))]
    assert kms.run(CONFIG + ANCHORS) == ExitCode.USAGE
    assert "kms.onboard.unfinished" in capsys.readouterr().out


def test_an_admin_listener_without_a_token_starts_nothing(stages, machine, capsys, monkeypatch) -> None:
    for name in ("DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    kms = machine("a", 1)
    assert kms.run(CONFIG + ANCHORS + "[core.admin]\nenabled = true\n") == ExitCode.USAGE
    assert "config.admin.token" in capsys.readouterr().out
    assert kms.store().load() is None
    assert stages == []


def test_n56_a_real_kms_is_not_made_by_whoever_comes_first(
    stages, machine, authority, capsys, monkeypatch
) -> None:
    extra = TrustAnchors((), (), ()).with_extra(authority.root_pem).nitro[0]
    genuine = msgspec.structs.replace(extra, production=True, name="aws")
    monkeypatch.setattr(
        TrustAnchors, "production", classmethod(lambda _cls: TrustAnchors((genuine,), (), ()))
    )
    kms = machine("a", 1)
    assert kms.run(f"[core.auth_api.proof]{REAL}") == ExitCode.USAGE
    assert "config.onboard.token" in capsys.readouterr().out
    assert stages == []


PEER = """
[core.custody]
type = "peer"
[core.custody.peer]
source_urls = ["https://kms.test:8000"]
domain = "peer.test"
patience = 0
"""


def _contents(machine: Machine) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in machine.directory.rglob("*") if path.is_file()}


def test_a_process_with_custody_peer_has_the_keys_at_every_start_and_writes_nothing(stages, machine) -> None:
    first, second = machine("a", 1), machine("b", 2)
    second.peer = first
    told: list[dict[str, Any]] = []

    def ask(machine: Machine) -> None:
        told.append(_tell(machine, "GetMeta") | _tell(machine, f"GetAppEnvEncryptPubKey?app_id={'07' * 20}"))

    def start_second_twice(running: Machine) -> None:
        ask(running)
        for _ in range(2):
            stages[:0] = [(second, ask)]
            assert second.run(CONFIG + _pins(running) + PEER + ANCHORS) == ExitCode.OK

    stages += [(first, _bootstrap), (first, start_second_twice)]
    assert first.run(CONFIG + ANCHORS) == ExitCode.OK
    assert [one["policy"]["custody"] for one in told] == ["file", "peer", "peer"]
    for name in ("k256_pubkey", "public_key"):
        assert len({one[name] for one in told}) == 1
    assert {Path(path).name for path in _contents(second)} == {"kms.toml", "root.pem"}
    keys = first.store().load()
    secrets = [keys.k256, keys.root_keys().ca_scalar, *keys.root_ca_pem().splitlines()[1:-1]]
    secrets += [secret.hex().encode() for secret in secrets[:2]]
    written = b"".join(_contents(second).values())
    assert not [secret for secret in secrets if secret in written]


def test_a_process_with_custody_peer_and_no_source_makes_no_keys(stages, machine, capsys) -> None:
    first, second = machine("a", 1), machine("b", 2)
    second.peer = first
    pins = f'source_ca_pubkey = "{"11" * 91}"\nsource_k256_pubkey = "{"11" * 33}"\n'
    assert second.run(CONFIG + pins + PEER + ANCHORS) == ExitCode.FAILED
    assert "kms.custody.no_source" in capsys.readouterr().out
    assert second.store().load() is None
    assert stages == []


def test_custody_tpm_is_refused_where_there_is_no_tpm(stages, machine, capsys) -> None:
    kms = machine("a", 1)
    assert kms.run(CONFIG + '[core.custody]\ntype = "tpm"\n' + ANCHORS) == ExitCode.USAGE
    assert "config.custody.tpm" in capsys.readouterr().out
    assert kms.store().load() is None
    assert stages == []


@pytest.mark.parametrize("name", BOOTSTRAP_MARKERS)
def test_n56_auto_bootstrap_makes_nothing_beside_any_key_file(stages, machine, capsys, name: str) -> None:
    kms = machine("a", 1)
    certs = kms.directory / "etc/kms/certs"
    certs.mkdir()
    (certs / name).write_bytes(b"kept")
    config = CONFIG.replace("[core.onboard]", '[core.onboard]\nauto_bootstrap_domain = "kms.test"')
    assert kms.run(config + ANCHORS) == ExitCode.FAILED
    logged = capsys.readouterr().out
    assert '"kms.keys.incomplete"' in logged or '"kms.custody.other"' in logged
    assert {path.name: path.read_bytes() for path in certs.iterdir()} == {name: b"kept"}
    assert stages == []
