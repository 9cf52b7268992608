"""An OpenID Connect issuer on the loopback interface: TLS, discovery, keys that can rotate, and tokens."""

import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: PrivateKey, key_id: str, **changes: Any) -> dict[str, Any]:
    """Return the public half as an issuer lists it."""
    public = key.public_key()
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    listed: dict[str, Any] = json.loads(algorithm.to_jwk(public))
    listed.pop("key_ops", None)
    name = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    return listed | {"kid": key_id, "use": "sig", "alg": name} | changes


def sign(claims: dict[str, Any], key: PrivateKey, key_id: str, **headers: Any) -> str:
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    # the layer below `jwt.encode`, which would not sign all that an issuer might
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, {"kid": key_id, **headers})


class Issuer:
    """`documents` are by path, and can be changed; `asked` lists the paths that were asked for.

    With a `host`, it is that host's issuer, and serves whoever is sent to its `port` for it.
    """

    def __init__(self, directory: Path, host: str = "") -> None:
        self.certificate, self.chain = _certificate(directory, host or "localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        # the handshake is made in a connection's own thread
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_port
        self.url = f"https://{host}" if host else f"https://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.reset()

    def reset(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.documents: dict[str, Any] = {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"},
            "/keys": {"keys": []},
        }

    def publish(self, *keys: dict[str, Any]) -> None:
        self.documents["/keys"] = {"keys": list(keys)}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Pass over clients that do not like the certificate: their side of the test says so."""


def _handler(issuer: Issuer) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            document = issuer.documents.get(self.path)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(404 if document is None else issuer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _certificate(directory: Path, host: str) -> tuple[bytes, Path]:
    key = ec_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    chain = directory / "issuer.pem"
    chain.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return pem, chain
