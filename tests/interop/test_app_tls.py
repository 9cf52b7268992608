"""Two apps that talk attested TLS to each other, with certificates that a KMS process signed."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from enclave.agent.certificates import CertificateIssuer, new_tls_key, tls_key_pem
from enclave.agent.issuers import certificate_issuer
from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.serving.attested_tls import build_server
from enclave.simulator.gcp_guest import GuestFiles, running_guest
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.tee import Attestor
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError
from shared.keys.app_keys_file import AppKeysFile, KmsProvider
from shared.net.attested_peer import Expected, Peer, check_client
from shared.net.attested_session import attested_session, ssl_server_context
from shared.net.dialer import ConnectDialer
from shared.net.endorsement_source import production_source
from shared.net.peer_verifier import PeerVerifier
from shared.ratls.certificates import spki_der
from shared.ratls.csr import CsrConfig
from shared.ratls.tls import mutual_context
from shared.ratls.tls_identity import TlsIdentity
from tests.enclave.conftest import registers
from tests.enclave.gcp import app_compose
from tests.interop.conftest import APP_ID, GCP_APP_ID, Hardware, Site
from tests.shared.refusal import refuses

CONFIG = CsrConfig(
    subject="an app",
    subject_alt_names=("localhost",),
    usage_server_auth=True,
    usage_client_auth=True,
    ext_quote=True,
)
_TIMEOUT = 60.0


class To:
    """Dials one place whatever name is asked for."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        del host, port
        sock = self._dial()
        sock.settimeout(timeout)
        return sock


class App(NamedTuple):
    """One app's guest: who issues its certificates, and what its peers know of it."""

    app_id: bytes
    issuer: CertificateIssuer

    def identity(self, config: CsrConfig = CONFIG) -> TlsIdentity:
        """Do as GetTlsKey does, and read its answer as an app does."""
        key = new_tls_key()
        return TlsIdentity.from_pems(tls_key_pem(key), self.issuer.issue(key, config))


class World(NamedTuple):
    """The verifier that apps share here, the KMS's root, and the two apps."""

    verifier: PeerVerifier
    root_ca: bytes
    site: Site
    apps: dict[str, App]

    def expecting(self, app: App, **pins: Any) -> Expected:
        return Expected(root_ca=self.root_ca, app_id=app.app_id, **pins)


@pytest.fixture(scope="module")
def world(
    nitro: Site, hardware: Hardware, gcp_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    anchors = TrustAnchors.production().with_extra(hardware.nitro.root_pem, signer="nitro")
    anchors = anchors.with_extra(hardware.google.intel.root_pem, signer="tdx")
    anchors = anchors.with_extra(hardware.google.google.root_pem, signer="gcp_tpm")
    verifier = PeerVerifier(
        anchors=anchors,
        now=lambda: int(time.time()),
        endorsements=production_source(pccs_url=hardware.pccs, external=True),
    )
    temporary = nitro.kms.get_temp_ca()
    keys = AppKeysFile(
        disk_crypt_key=bytes(32),
        env_crypt_key=bytes(32),
        k256_key=bytes(31) + b"\1",
        k256_signature=bytes(65),
        gateway_app_id="",
        ca_cert=temporary.root_pem,
        key_provider=KmsProvider(
            url=f"https://{nitro.kms.anyone.host}:8000/prpc",
            pubkey=b"",
            tmp_ca_key=tls_key_pem(temporary.key),
            tmp_ca_cert=temporary.certificate.public_bytes(Encoding.PEM).decode(),
        ),
    )

    def app(app_id: bytes, attestor: Attestor) -> App:
        issuer = certificate_issuer(
            keys, app_id=app_id, attestor=attestor, verifier=verifier, dialer=To(nitro.kms.anyone.dial)
        )
        return App(app_id, issuer)

    directory = tmp_path_factory.mktemp("app")
    compose = directory / "app-compose.json"
    compose.write_bytes(app_compose(hardware.roots()))
    files = GuestFiles(gcp_image, compose, directory / "disk")
    enclave = NitroAttestor(Nsm(SimulatedNsm(registers(90), hardware.nitro)), APP_ID)
    with running_guest(files, hardware.google, GCP_APP_ID, tpm="software") as guest:
        apps = {"nitro": app(APP_ID, enclave), "gcp": app(GCP_APP_ID, guest.tee.attestor(None))}
        yield World(verifier, temporary.root_pem.encode(), nitro, apps)


@pytest.fixture(scope="module")
def identities(world: World) -> dict[str, TlsIdentity]:
    return {name: app.identity() for name, app in world.apps.items()}


@contextmanager
def serving(identity: TlsIdentity, judge: Callable[[list[bytes]], Peer]) -> Iterator[str]:
    """Serve an app that tells each caller who it is, and give its URL."""

    async def who(request: Request) -> JSONResponse:
        try:
            peer = await run_in_threadpool(judge, request.state.peer_chain)
        except DstackError as error:
            return JSONResponse({"code": error.code}, 403)
        return JSONResponse(peer.to_json())

    context = mutual_context(key=identity.key, chain=identity.chain)
    server: uvicorn.Server = build_server(
        Starlette(routes=[Route("/who", who)]), context_factory=lambda: context
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"https://localhost:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_TIMEOUT)


@pytest.mark.parametrize(("client", "server"), [("nitro", "gcp"), ("gcp", "nitro"), ("nitro", "nitro")])
def test_each_side_knows_the_other(
    world: World, identities: dict[str, TlsIdentity], client: str, server: str
) -> None:
    caller, callee = world.apps[client], world.apps[server]
    judge = partial(check_client, expected=world.expecting(caller), verifier=world.verifier)
    with (
        serving(identities[server], judge) as url,
        attested_session(
            url,
            expected=world.expecting(callee),
            verifier=world.verifier,
            identity=identities[client],
        ) as session,
    ):
        told = msgspec.json.decode(session.request("GET", "/who").body)
    peer = session.peer
    assert (peer.app_id, peer.vouched_by, peer.simulated) == (callee.app_id, "kms", True)
    assert peer.self_asserted == ()
    assert len(peer.compose_hash) == len(peer.os_image_hash) == 32
    assert bool(peer.instance_id) == (server == "gcp")
    assert (told["app_id"], told["vouched_by"]) == (caller.app_id.hex(), "kms")


def test_a_caller_without_a_certificate_is_told_so(world: World, identities: dict[str, TlsIdentity]) -> None:
    app = world.apps["nitro"]
    judge = partial(check_client, expected=world.expecting(app), verifier=world.verifier)
    with (
        serving(identities["nitro"], judge) as url,
        attested_session(url, expected=world.expecting(app), verifier=world.verifier) as session,
    ):
        answer = session.request("GET", "/who")
    assert (answer.status, msgspec.json.decode(answer.body)) == (403, {"code": "ratls.chain"})


def test_a_server_of_the_standard_library_is_known_through_a_proxy(
    world: World, identities: dict[str, TlsIdentity]
) -> None:
    app = world.apps["gcp"]
    with ExitStack() as stack:
        server = http.server.HTTPServer(("127.0.0.1", 0), Hello)
        stack.callback(server.server_close)
        server.socket = ssl_server_context(identities["gcp"]).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=partial(server.serve_forever, 0.02))
        thread.start()
        stack.callback(thread.join, _TIMEOUT)
        stack.callback(server.shutdown)
        proxy = stack.enter_context(closing(Proxy()))
        dialer = ConnectDialer(lambda timeout: socket.create_connection(("127.0.0.1", proxy.port), timeout))
        with attested_session(
            f"https://localhost:{server.server_port}",
            expected=world.expecting(app),
            verifier=world.verifier,
            dialer=dialer,
        ) as session:
            assert session.request("GET", "/").body == b"hello"
        assert session.peer.app_id == app.app_id
        assert proxy.asked == [f"localhost:{server.server_port}"]


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None: ...


class Proxy:
    """Answers one CONNECT, and carries bytes both ways."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(_TIMEOUT)

    def _serve(self) -> None:
        self._listener.settimeout(_TIMEOUT)
        client, _ = self._listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        target = head.split()[1].decode()
        self.asked.append(target)
        upstream = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), _TIMEOUT)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with client, upstream:
            back = threading.Thread(target=_pump, args=(upstream, client))
            back.start()
            _pump(client, upstream)
            back.join(_TIMEOUT)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_a_kms_is_known_by_its_root_and_evidence(world: World) -> None:
    host = world.site.kms.anyone.host
    with attested_session(
        f"https://{host}:8000",
        expected=Expected(usage="kms:rpc", root_ca=world.root_ca),
        verifier=world.verifier,
        dialer=To(world.site.kms.anyone.dial),
    ) as session:
        answer = session.request("POST", "/prpc/GetMeta?json", b"null")
    assert answer.status == 200
    assert (session.peer.usage, session.peer.vouched_by) == ("kms:rpc", "kms")


def test_n51_an_app_posing_as_a_kms_is_refused(world: World, identities: dict[str, TlsIdentity]) -> None:
    judge = partial(check_client, expected=world.expecting(world.apps["gcp"]), verifier=world.verifier)
    with serving(identities["gcp"], judge) as url, refuses("ratls.issuer"):
        attested_session(
            url, expected=Expected(usage="kms:rpc", root_ca=world.root_ca), verifier=world.verifier
        )


@pytest.mark.parametrize(
    ("pins", "code"),
    [
        ({"app_id": bytes([5]) * 20}, "peer.app_id"),
        ({"instance_id": bytes([5]) * 20}, "peer.instance_id"),
        ({"compose_hash": bytes(32)}, "peer.compose_hash"),
        ({"os_image_hash": bytes(32)}, "peer.os_image_hash"),
        ({"device_id": bytes(32)}, "peer.device_id"),
    ],
)
@pytest.mark.parametrize("server", ["nitro", "gcp"])
def test_another_machine_of_the_same_software_is_refused(
    world: World, identities: dict[str, TlsIdentity], server: str, pins: dict[str, bytes], code: str
) -> None:
    """Relay: whoever runs the same software elsewhere has evidence that is as good."""
    app = world.apps[server]
    judge = partial(check_client, expected=world.expecting(app), verifier=world.verifier)
    wanted = Expected(**{"root_ca": world.root_ca, "app_id": app.app_id, **pins})
    with serving(identities[server], judge) as url, refuses(code):
        attested_session(url, expected=wanted, verifier=world.verifier)


def test_every_pin_of_the_right_machine_holds(world: World, identities: dict[str, TlsIdentity]) -> None:
    app = world.apps["gcp"]
    judge = partial(check_client, expected=world.expecting(app), verifier=world.verifier)
    with serving(identities["gcp"], judge) as url:
        with attested_session(url, expected=world.expecting(app), verifier=world.verifier) as session:
            peer = session.peer
        pins = {
            name: getattr(peer, name)
            for name in ("instance_id", "compose_hash", "os_image_hash", "device_id")
        }
        attested_session(url, expected=world.expecting(app, **pins), verifier=world.verifier).close()


def test_a_guest_that_no_kms_vouches_for_is_known_by_its_image_alone(
    world: World, identities: dict[str, TlsIdentity]
) -> None:
    """A guest's events name its app: an image of anybody's own making records the same ones."""
    app = world.apps["gcp"]
    chain = [one.public_bytes(Encoding.DER) for one in identities["gcp"].chain]
    vouched = check_client(chain, expected=world.expecting(app), verifier=world.verifier)
    alone = partial(check_client, chain[:1], verifier=world.verifier)
    peer = alone(expected=Expected(app_id=app.app_id, os_image_hash=vouched.os_image_hash))
    assert (peer.app_id, peer.vouched_by) == (app.app_id, "evidence")
    for pins in ({"app_id": peer.app_id}, {"compose_hash": peer.compose_hash}):
        with refuses("peer.image"):
            alone(expected=Expected(**pins))


def test_the_requests_key_is_the_certificates(world: World) -> None:
    key = new_tls_key()
    chain = world.apps["nitro"].issuer.issue(key, CONFIG)
    assert spki_der(TlsIdentity.from_pems(tls_key_pem(key), chain).key.public_key()) == spki_der(
        key.public_key()
    )
