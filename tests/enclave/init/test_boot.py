"""A whole boot, in a process of its own, with a KMS that releases keys and a parent that offers variables."""

import json
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util.enclave_config import EnclaveConfig
from enclave.init.boot import Machine, boot
from enclave.init.kernel import MOUNTS
from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.platform import Platform
from enclave.serving.attested_tls import build_server
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.enclave_boot import SimulatedKernel
from enclave.tee.nitro import PARENT_CID
from enclave.tee.peers import PeerVerifier
from enclave.vsock.transport import UnixStandIn
from shared.errors import ConfigError, ExitCode
from shared.keys.app_keys import derive_app_keys, env_public_key
from shared.keys.env_encryption import EnvAuthor, encrypt_env
from shared.keys.env_signer import EnvSigningKey
from shared.rpc import kms_pb2 as pb
from tests.docs.references import REPOSITORY
from tests.enclave.conftest import APP_ID, NOW
from tests.enclave.init.whole_enclave import ENCLAVE_CID
from tests.enclave.vsock.conftest import Server
from tests.shared.refusal import refuses

PATIENCE = 60
CORE = Core(aws_nitro_enclave_key_release=True, nitro_app_id_pcr=True)
SECRET = "hunter2 is the secret"
SIGNER = EnvSigningKey(bytes([7]) * 32)
SHOW = """
import json, os
wanted = ("TOKEN", "OTHER", "HTTPS_PROXY", "NO_PROXY")
shown = {name: os.environ[name] for name in wanted if name in os.environ}
print(json.dumps({"event": "app", **shown}), flush=True)
"""


class World:
    """A KMS, a parent, and the image of an enclave that tests can bend."""

    def __init__(self, directory: Path, keys: KeyMaterial, authority: SimulatedAuthority) -> None:
        self.directory = directory
        self.keys = keys
        self.app_keys = derive_app_keys(keys.root_keys(), APP_ID)
        self.more = ""
        self.boot: dict[str, Any] = {"command": ["/bin/app"], "key_attempts": 2}
        authority.save(directory / "authority")
        (directory / "root-ca.pem").write_bytes(keys.root_ca_cert.public_bytes(Encoding.PEM))
        (directory / "simulated.pem").write_bytes(authority.root_pem)

    def run(self, command: str = SHOW) -> tuple[int, list[dict[str, Any]], str]:
        """Boot; returns the exit code, the events and all that was printed."""
        done = self.start([sys.executable, "-I", "-c", command])
        out, err = done.communicate(timeout=PATIENCE)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        return done.returncode, [json.loads(line) for line in lines], out + err

    def start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a boot with `command` in the app's place."""
        # a json text or list is a toml one too
        settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in self.boot.items())
        config = f"""app_id = "0x{APP_ID.hex()}"
kms = {{ url = "https://kms.test:8000", root_ca = "/root-ca.pem" }}
trust = {{ nitro_roots = ["/simulated.pem"] }}
[boot]
{settings}{self.more}"""
        (self.directory / "etc/dstack").mkdir(parents=True, exist_ok=True)
        (self.directory / "etc/dstack/enclave.toml").write_text(config)
        arguments = [
            sys.executable,
            "-P",
            "-m",
            "tests.enclave.init.whole_enclave",
            str(self.directory),
            "--",
        ]
        return subprocess.Popen(
            [*arguments, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        )

    def failure(self) -> str:
        """Boot, which must fail, and return the code."""
        code, events, _ = self.run()
        assert code != ExitCode.OK
        assert not [event for event in events if event["event"] == "app"], "the app ran"
        (failed,) = (event["code"] for event in events if event["event"] == "init.failed")
        return str(failed)

    def sealed(self, *, author: EnvAuthor | None = None, **env: str) -> bytes:
        return encrypt_env(env, env_public_key(self.app_keys.env_crypt_key), author=author)


@pytest.fixture
def world(bootstrap, authority, vsock, tmp_path: Path) -> World:
    assert vsock
    return World(tmp_path, bootstrap(), authority)


@pytest.fixture
def kms(world: World, kms_enclave, policy, anchors, serve) -> Any:
    """A running KMS that wants PCR16; returns its policy."""
    service = KmsService(
        core=CORE,
        keys=world.keys,
        authorizer=policy,
        own=kms_enclave.evidence(anchors),
        policy=pb.KmsPolicy(auth_mode="proof"),
        now=lambda: NOW,
    )
    verifier = PeerVerifier(anchors=anchors, now=lambda: NOW)
    callers = CallerVerifier(temp_ca_der=world.keys.temp_ca_der(), verifier=verifier)
    identity = RpcIdentity(world.keys, kms_enclave.attestor, lambda: NOW)
    app = main_app(service, callers, version="1", metrics=False)
    serve(build_server(app, context_factory=identity.context))
    return policy


@pytest.fixture
def offer(world: World) -> Iterator[Callable[[bytes], None]]:
    servers: list[Server] = []

    def start(content: bytes) -> None:
        listener = UnixStandIn(world.directory / "v", PARENT_CID).listen(9100)
        servers.append(Server(listener, lambda sock: sock.sendall(content)))

    yield start
    for server in servers:
        server.close()


@pytest.mark.usefixtures("kms")
def test_boots_in_order_and_exits_with_the_apps_status(world: World) -> None:
    code, events, printed = world.run(SHOW + "raise SystemExit(5)")
    assert code == 5, printed
    steps = [event["step"] for event in events if event.get("status") == "done"]
    assert steps == ["kernel", "app_id", "network", "keys", "environment", "agent", "app"]
    (app,) = (event for event in events if event["event"] == "app")
    assert app["HTTPS_PROXY"].startswith("http://127.0.0.1:")
    assert app["NO_PROXY"] == "127.0.0.1,localhost"


@pytest.mark.usefixtures("kms")
def test_n36_a_kms_that_wants_the_register_releases_keys_to_this_boot(world: World) -> None:
    _, events, _ = world.run()
    assert CORE.nitro_app_id_pcr
    assert [event for event in events if event["event"] == "agent.keys"]


@pytest.mark.usefixtures("kms")
def test_the_app_gets_its_environment_and_what_it_did_not_ask_for_is_left_out(world: World, offer) -> None:
    world.boot["allowed_envs"] = ["TOKEN"]
    offer(world.sealed(TOKEN=SECRET, OTHER="x"))
    code, events, printed = world.run()
    assert code == ExitCode.OK, printed
    (app,) = (event for event in events if event["event"] == "app")
    assert (app["TOKEN"], "OTHER" in app) == (SECRET, False)


@pytest.mark.usefixtures("kms")
def test_n74_no_secret_is_printed_or_in_an_argument(world: World, offer) -> None:
    world.boot["allowed_envs"] = ["TOKEN"]
    offer(world.sealed(TOKEN=SECRET))
    look = """
import os
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        line = open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    if os.environ["TOKEN"] in line:
        print("found in an argument")
print("looked", len(os.environ["TOKEN"]), flush=True)
"""
    code, _, printed = world.run(look)
    assert code == ExitCode.OK
    assert f"looked {len(SECRET)}" in printed
    assert "found" not in printed
    keys = msgspec.structs.astuple(world.app_keys)
    for secret in (SECRET, *(value.hex() for value in keys if isinstance(value, bytes))):
        assert secret not in printed


@pytest.mark.usefixtures("kms")
def test_the_app_asks_the_agent_for_keys_of_its_own(world: World) -> None:
    ask = f"""
import json, os, socket
os.chdir({str(world.directory)!r})
agent = socket.socket(socket.AF_UNIX)
agent.connect("var/run/dstack/dstack.sock")
body = b'{{"path": "a", "purpose": "b"}}'
head = f"POST /GetKey HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\nContent-Length: {{len(body)}}\\r\\n"
agent.sendall(head.encode() + b"Content-Type: application/json\\r\\n\\r\\n" + body)
answer = b""
while chunk := agent.recv(65536):
    answer += chunk
head, _, body = answer.partition(b"\\r\\n\\r\\n")
print(json.dumps({{"event": "app", "status": head.split()[1].decode(), "names": sorted(json.loads(body))}}))
"""
    code, events, printed = world.run(ask)
    assert code == ExitCode.OK, printed
    (app,) = (event for event in events if event["event"] == "app")
    assert (app["status"], app["names"]) == ("200", ["key", "signature_chain"])


@pytest.mark.usefixtures("kms")
def test_the_example_greets_through_a_vsock_port_with_a_word_that_the_parent_cannot_read(
    world: World, offer
) -> None:
    example = REPOSITORY / "docs/examples/nitro-app"
    boot = msgspec.convert(tomllib.loads((example / "enclave.toml").read_text()), EnclaveConfig).boot
    held = socket.socket()  # bound and not listening: the app can bind it too, and nobody else gets it
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port = held.getsockname()[1]
    world.boot |= {"allowed_envs": list(boot.allowed_envs)}
    world.more = f'[[boot.ports]]\nlisten = {boot.ports[0].listen}\ntarget = "127.0.0.1:{port}"\n'
    offer(world.sealed(GREETING=SECRET))
    enclave = world.start([sys.executable, "-I", str(example / "hello.py"), str(port)])
    try:
        assert enclave.stdout is not None
        assert any(line == "listening\n" for line in enclave.stdout)
        with UnixStandIn(world.directory / "v", PARENT_CID).connect(ENCLAVE_CID, 8443, PATIENCE) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.endswith(f"{SECRET}, whoever you are\n".encode())
    finally:
        held.close()
        enclave.terminate()
        out, err = enclave.communicate(timeout=PATIENCE)
    assert enclave.returncode == 128 + 15, out + err


@pytest.mark.usefixtures("kms")
def test_the_guests_files_are_roots_alone(world: World, offer) -> None:
    world.boot["allowed_envs"] = ["TOKEN"]
    offer(world.sealed(TOKEN=SECRET))
    world.run()
    directory = world.directory / "dstack/.host-shared"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert found == dict.fromkeys((".appkeys.json", ".decrypted-env", ".decrypted-env.json"), 0o600)
    assert json.loads((directory / ".decrypted-env.json").read_text()) == {"TOKEN": SECRET}
    assert "/dstack" in {mount.target for mount in MOUNTS}


@pytest.mark.parametrize("offered", ["another key", "changed", "garbage", "short"])
@pytest.mark.usefixtures("kms")
def test_n71_an_environment_that_does_not_open_stops_the_boot(world: World, offer, offered: str) -> None:
    world.boot["allowed_envs"] = ["TOKEN"]
    sealed = world.sealed(TOKEN=SECRET)
    content = {
        "another key": encrypt_env({"TOKEN": SECRET}, env_public_key(bytes([1]) * 32)),
        "changed": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "garbage": bytes(range(100)),
        "short": b"x",
    }[offered]
    offer(content)
    expected = {"short": "env.ciphertext.length"}.get(offered, "env.ciphertext.tag")
    assert world.failure() == expected


@pytest.mark.parametrize(
    ("author", "code"),
    [
        (None, "env_signer.unsigned"),
        (EnvAuthor(EnvSigningKey(bytes([8]) * 32), APP_ID, 5), "env_signer.signature"),
        (EnvAuthor(SIGNER, bytes([9]) * 20, 5), "env_signer.signature"),
        (EnvAuthor(SIGNER, APP_ID, 4), "env_signer.rollback"),
    ],
    ids=["unsigned", "another signer", "another app", "an older version"],
)
@pytest.mark.usefixtures("kms")
def test_n71_an_environment_that_the_signer_did_not_write_stops_the_boot(
    world: World, offer, author: EnvAuthor | None, code: str
) -> None:
    world.boot |= {
        "allowed_envs": ["TOKEN"],
        "env_signer": SIGNER.public_key.hex(),
        "env_min_version": 5,
    }
    offer(world.sealed(author=author, TOKEN=SECRET))
    assert world.failure() == code


@pytest.mark.usefixtures("kms")
def test_n71_a_parent_that_takes_the_signed_environment_away_stops_the_boot(world: World, offer) -> None:
    world.boot |= {"allowed_envs": ["TOKEN"], "env_signer": SIGNER.public_key.hex()}
    offer(b"")
    assert world.failure() == "env_signer.absent"


@pytest.mark.usefixtures("kms")
def test_n71_a_parent_that_offers_no_environment_stops_the_boot(world: World) -> None:
    world.boot["allowed_envs"] = ["TOKEN"]
    assert world.failure() == "init.env.unavailable"


@pytest.mark.usefixtures("kms")
def test_a_signed_environment_boots(world: World, offer) -> None:
    world.boot |= {"allowed_envs": ["TOKEN"], "env_signer": SIGNER.public_key.hex()}
    offer(world.sealed(author=EnvAuthor(SIGNER, APP_ID, 5), TOKEN=SECRET))
    code, events, _ = world.run()
    assert code == ExitCode.OK
    assert [event["TOKEN"] for event in events if event["event"] == "app"] == [SECRET]


def test_a_kms_that_is_down_is_asked_again_and_then_the_boot_ends(world: World) -> None:
    world.boot["key_attempts"] = 3
    code, events, _ = world.run()
    assert code == ExitCode.FAILED
    assert [event["attempt"] for event in events if event["event"] == "init.retry"] == [1, 2, 3]
    assert [event["code"] for event in events if event["event"] == "init.failed"] == ["init.keys.unavailable"]


def test_a_refusal_is_not_asked_for_twice(world: World, kms) -> None:
    kms.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    code, events, _ = world.run()
    assert code == ExitCode.REFUSED
    assert not [event for event in events if event["event"] == "init.retry"]
    assert [event["code"] for event in events if event["event"] == "init.failed"] == ["kms.refused"]


def test_without_a_command_nothing_is_booted(world: World) -> None:
    world.boot = {}
    assert world.failure() == "init.config"


def test_boots_nothing_but_nitro_enclaves(tmp_path: Path) -> None:
    elsewhere = Platform(image=tmp_path, writable=tmp_path, tee=None)  # type: ignore[arg-type]
    with refuses("init.platform", ConfigError):
        boot(elsewhere, Machine(SimulatedKernel()))
