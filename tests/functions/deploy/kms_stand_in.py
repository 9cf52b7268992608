"""A loopback server that answers GetAppEnvEncryptPubKey with the keys and signatures that a KMS derives."""

import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from shared.keys import app_keys, k256


class KmsStandIn:
    """One KMS with root keys of its own. `timestamp` is what it signs; `requests` holds paths and bodies."""

    def __init__(self, seed: int, timestamp: int) -> None:
        self.root = app_keys.RootKeys(bytes([seed]) * 32, bytes([seed + 1]) * 32)
        self.timestamp = timestamp
        self.requests: list[tuple[str, bytes]] = []
        self.answers: list[tuple[int, bytes]] = []
        """What to answer in place of the truth, one by one."""

        self.without_v1 = False
        self.url = ""
        self.authority = b""

    @property
    def signer(self) -> bytes:
        return k256.public_key(self.root.k256)

    def private_key(self, app_id: bytes, epoch: int = 0) -> bytes:
        """Return what the guest of an app gets, and nobody else."""
        return app_keys.env_crypt_key(self.root, app_id, epoch=epoch)

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.requests.append((path, body))
        if self.answers:
            return self.answers.pop(0)
        question = json.loads(body)
        app_id, epoch = bytes.fromhex(question["app_id"]), question.get("key_epoch", 0)
        public = app_keys.env_public_key(self.private_key(app_id, epoch))
        legacy, v1 = app_keys.sign_env_public_key(
            self.root.signing_key, app_id, public, self.timestamp, epoch=epoch
        )
        found: dict[str, Any] = {"public_key": public.hex(), "signature": legacy.hex()}
        if not self.without_v1:
            found |= {"timestamp": self.timestamp, "signature_v1": v1.hex()}
        return 200, json.dumps(found).encode()


@contextmanager
def serving(kms: KmsStandIn, directory: Path | None = None) -> Iterator[KmsStandIn]:
    """Serve on a free port: over TLS with an authority of the KMS's own where there is a directory for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, content = kms.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # so that closing waits for the threads, and each ends with its one answer

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up in the handshake is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        scheme = "http"
        if directory is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            kms.authority, chain = _own_authority()
            (directory / "chain.pem").write_bytes(chain)
            context.load_cert_chain(directory / "chain.pem")
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        kms.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield kms
        finally:
            server.shutdown()
            thread.join()


def _own_authority() -> tuple[bytes, bytes]:
    """Return a root certificate, and key and certificate of 127.0.0.1 below it, as PEM."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Dstack Root CA")])
    now = dt.datetime.now(dt.UTC)

    def certificate(name: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(root_key, hashes.SHA256())

    root = certificate(root_name, root_key.public_key(), ca=True)
    leaf = certificate(x509.Name([]), key.public_key(), ca=False)
    raw_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return root.public_bytes(Encoding.PEM), raw_key + leaf.public_bytes(Encoding.PEM)
