"""Collateral services that behave, and that misbehave, for the tests of what fetches from them."""

import datetime as dt
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from enclave.simulator.pccs import Answer, CollateralServer, Provider
from shared.attestation.endorsements import TdxCollateral
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

FMSPC = bytes.fromhex("00a06d080000")
NOW = 1_767_225_600
DAY = 86_400
KEY = ec.generate_private_key(ec.SECP256R1())


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def certificate_of(key: Key = KEY, name: str = "Intel SGX PCK Platform CA") -> str:
    """Return a certificate of `key`, as PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc(NOW - 365 * DAY))
        .not_valid_after(utc(NOW + 365 * DAY))
        .sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def utc(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def revocation_list(issued: int, name: str, days: int = 30) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateRevocationListBuilder().issuer_name(subject)
    builder = builder.last_update(utc(issued)).next_update(utc(issued + days * DAY))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def signed(text: str) -> bytes:
    r, s = decode_dss_signature(KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


PEM = certificate_of()
CHAIN_HEADER = quote(PEM)


def collateral(
    fmspc: bytes = FMSPC,
    *,
    issued: int = NOW - DAY,
    days: int = 30,
    ca: str = "Platform",
    evaluation: int = 1,
) -> TdxCollateral:
    """Return collateral that is consistent and current, but not Intel's."""
    first, last = (f"{utc(at):%Y-%m-%dT%H:%M:%SZ}" for at in (issued, issued + days * DAY))
    dates = f'"issueDate":"{first}","nextUpdate":"{last}"'
    # an odd spelling that no encoder would give back
    tcb_info = (
        f'{{"version" : 3,\n "id":"TDX","fmspc":"{fmspc.hex().upper()}", "x":"\\u00e9/\\/", '
        f'"tcbEvaluationDataNumber":{evaluation},"tdxModuleIdentities":[],"tcbLevels":[],{dates}}}'
    )
    qe_identity = f'{{"id":"TD_QE",  "version":2,{dates}}}'
    return TdxCollateral(
        pck_crl_issuer_chain=PEM + PEM,
        root_ca_crl=revocation_list(issued, "Root", days),
        pck_crl=revocation_list(issued, f"Intel SGX PCK {ca} CA", days),
        tcb_info_issuer_chain=PEM,
        tcb_info=tcb_info,
        tcb_info_signature=signed(tcb_info),
        qe_identity_issuer_chain=PEM,
        qe_identity=qe_identity,
        qe_identity_signature=signed(qe_identity),
    )


COLLATERAL = collateral()


class Misbehaving(CollateralServer):
    """Answers whose path `spoil` names are changed on their way out."""

    def __init__(self, provider: Provider, spoil: dict[str, Callable[[Answer], Answer]]) -> None:
        super().__init__(provider)
        self._spoil = spoil

    def answer(self, target: str) -> Answer:
        answer = super().answer(target)
        for part, change in self._spoil.items():
            if part in target:
                answer = change(answer)
        return answer


def changed(**fields: object) -> Callable[[Answer], Answer]:
    return lambda answer: msgspec.structs.replace(answer, **fields)


class RoutedDialer:
    """Every host is one loopback port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.dialed: list[tuple[str, int]] = []

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        self.dialed.append((host, port))
        return DirectDialer().dial("127.0.0.1", self._port, timeout)


@contextmanager
def plain_client() -> Iterator[HttpClient]:
    http = HttpClient(DirectDialer(), timeout=30)
    try:
        yield http
    finally:
        http.close()
