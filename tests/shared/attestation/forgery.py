"""Evidence made on the spot: a chain with any fault, and documents in the byte format of a real module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from enclave.simulator.nsm import sign_document, sign_payload
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, RuntimeEvent, encode_v0
from shared.attestation.identity import os_image_hash_of
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError, InvalidEvidence

NOW = 1_767_225_600
LEVELS = ("root", "region", "zone", "instance", "leaf")
PCRS = {index: bytes([0xA0 + index]) * 48 if index < 3 else bytes(48) for index in range(16)}
REPORT_DATA = bytes(range(64))
APP_ID = bytes(range(20))
DROP = object()

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass
class Link:
    """One certificate to be made; the defaults are a real module's shape."""

    name: str
    ca: bool = True
    path_length: int | None = None
    usage: tuple[str, ...] | None = ("key_cert_sign",)
    basic: bool = True
    eku: x509.ObjectIdentifier | None = None
    critical: bool = False
    not_before: int = NOW - 3600
    not_after: int = NOW + 3 * 3600
    curve: ec.EllipticCurve | None = None
    hash: HashAlgorithm | None = None
    signer: ec.EllipticCurvePrivateKey | None = None

    def make(self, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> "Made":
        key = ec.generate_private_key(self.curve or ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        issuer_name, issuer_key = issuer or (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(self.not_before, UTC))
            .not_valid_after(datetime.fromtimestamp(self.not_after, UTC))
        )
        if self.basic:
            builder = builder.add_extension(
                x509.BasicConstraints(self.ca, self.path_length if self.ca else None), critical=True
            )
        if self.usage is not None:
            bits = {name: name in self.usage for name in USAGES}
            builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
        if self.eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([self.eku]), critical=False)
        if self.critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return Made(builder.sign(self.signer or issuer_key, self.hash or SHA384()), key)


@dataclass
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


class Forge:
    """A whole chain, root to leaf. `faults` changes single levels: `Forge(zone={"ca": False})`."""

    def __init__(self, **faults: Mapping[str, object]) -> None:
        shapes: dict[str, dict[str, Any]] = {
            "root": {},
            "region": {"path_length": 2},
            "zone": {"path_length": 1},
            "instance": {"path_length": 0},
            "leaf": {"ca": False, "usage": ("digital_signature",)},
        }
        self.made: dict[str, Made] = {}
        issuer = None
        for level in LEVELS:
            shape = {"name": f"{level}.forged", **shapes[level], **faults.get(level, {})}
            made = self.made[level] = Link(**shape).make(issuer)
            issuer = made.certificate.subject, made.key

    def issued(self, under: str, **shape: Any) -> Made:
        """Return one more certificate under a level of this chain."""
        issuer = self.made[under]
        return Link(**shape).make((issuer.certificate.subject, issuer.key))

    @property
    def anchors(self) -> TrustAnchors:
        return TrustAnchors.production().with_extra(self.made["root"].pem)

    @property
    def bundle(self) -> list[bytes]:
        return [self.made[level].der for level in LEVELS[:-1]]

    def payload(self, **changes: object) -> dict[str, object]:
        payload: dict[str, object] = {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": NOW * 1000,
            "pcrs": PCRS,
            "certificate": self.made["leaf"].der,
            "cabundle": self.bundle,
            "public_key": None,
            "user_data": REPORT_DATA,
            "nonce": None,
            **changes,
        }
        return {name: value for name, value in payload.items() if value is not DROP}

    def document(self, **changes: object) -> bytes:
        return sign_document(self.payload(**changes), self.made["leaf"].key)

    def resigned(self, payload: bytes) -> bytes:
        """Return a document whose signed payload is exactly these bytes."""
        return sign_payload(payload, self.made["leaf"].key)

    def envelope(
        self,
        events: tuple[RuntimeEvent, ...] = (RuntimeEvent("app-id", APP_ID),),
        config: str | None = None,
        report_data: bytes = REPORT_DATA,
        **changes: object,
    ) -> bytes:
        image = os_image_hash_of(changes.get("pcrs", PCRS)).hex()
        text = f'{{"os_image_hash":"{image}"}}' if config is None else config
        return encode_v0(Attestation(NitroEnclaveQuote(self.document(**changes)), events, report_data, text))


@contextmanager
def refuses(code: str, kind: type[DstackError] = InvalidEvidence) -> Iterator[None]:
    """Expect a refusal with exactly this code, and a message that is a sentence without a full stop."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code
    assert caught.value.message
    assert not caught.value.message.endswith(".")
