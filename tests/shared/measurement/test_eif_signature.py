import binascii
import hashlib
import io
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import ConfigError
from shared.measurement.eif import measure_eif, read_eif
from shared.measurement.eif_signature import (
    MAX_SIGNATURE,
    EifSignature,
    KeySigner,
    parse_signature,
    sign_image,
    signed_payload,
    verify_signature,
)
from tests.shared.measurement.made_eif import (
    NOT_AFTER,
    NOT_BEFORE,
    SIGNATURE_TYPE,
    TINY,
    TINY_SECTIONS,
    image,
    raw_image,
    signing_certificate,
)
from tests.shared.refusal import refuses

NOW = NOT_BEFORE + 1000
PCR0 = bytes(range(48))
CURVES: dict[int, tuple[ec.EllipticCurve, HashAlgorithm, int]] = {
    -7: (ec.SECP256R1(), SHA256(), 32),
    -35: (ec.SECP384R1(), SHA384(), 48),
    -36: (ec.SECP521R1(), SHA512(), 66),
}
KEYS = {algorithm: ec.generate_private_key(curve) for algorithm, (curve, _, _) in CURVES.items()}
PEMS = {algorithm: signing_certificate(key) for algorithm, key in KEYS.items()}
RSA_PEM = signing_certificate(rsa.generate_private_key(65537, 2048))


def section(algorithm: int = -35, **changes: Any) -> bytes:
    """A signature section made with an independent encoder; `changes` override its parts."""
    _, digest, size = CURVES[algorithm]
    protected = changes.get("protected", cbor2.dumps({1: algorithm}))
    payload = changes.get(
        "payload", cbor2.dumps({"register_index": 0, "register_value": list(changes.get("pcr0", PCR0))})
    )
    text = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(KEYS[algorithm].sign(text, ec.ECDSA(digest)))
    signature = changes.get("signature", r.to_bytes(size, "big") + s.to_bytes(size, "big"))
    sign1 = changes.get("sign1", [protected, changes.get("unprotected", {}), payload, signature])
    entry = {
        "signing_certificate": changes.get("certificate", list(PEMS[algorithm])),
        "signature": changes.get("sign1_raw", list(cbor2.dumps(sign1))),
    }
    return cbor2.dumps(changes.get("entries", [entry]))


def parse(**changes: Any) -> EifSignature:
    return parse_signature(section(**changes))


@pytest.mark.parametrize("algorithm", CURVES)
def test_verifies_a_signature_of_an_independent_encoder(algorithm: int) -> None:
    signature = parse_signature(section(algorithm))
    verify_signature(signature, PCR0, at=NOW)
    assert signature.algorithm.cose == algorithm
    assert (signature.not_before, signature.not_after, signature.subject) == (
        NOT_BEFORE,
        NOT_AFTER,
        "CN=signer",
    )


@pytest.mark.parametrize("algorithm", CURVES)
def test_an_independent_decoder_reads_what_is_signed(algorithm: int) -> None:
    raw, signature = sign_image(KeySigner(KEYS[algorithm], PEMS[algorithm]), PCR0)
    [entry] = cbor2.loads(raw)
    assert bytes(entry["signing_certificate"]) == PEMS[algorithm]
    protected, unprotected, payload, _ = cbor2.loads(bytes(entry["signature"]))
    assert (cbor2.loads(protected), unprotected) == ({1: algorithm}, {})
    assert cbor2.loads(payload) == {"register_index": 0, "register_value": list(PCR0)}
    assert cbor2.dumps(cbor2.loads(raw)) == raw
    verify_signature(signature, PCR0, at=NOW)


def test_signing_twice_gives_the_same_bytes() -> None:
    signer = KeySigner(KEYS[-35], PEMS[-35])
    assert sign_image(signer, PCR0)[0] == sign_image(signer, PCR0)[0]


def test_signing_an_image_changes_no_register_but_pcr8() -> None:
    raw, measured = image(signer=KeySigner(KEYS[-35], PEMS[-35]))
    unsigned = measure_eif(io.BytesIO(TINY))
    assert measured == measure_eif(io.BytesIO(raw))
    assert (measured.pcr0, measured.os_image_hash) == (unsigned.pcr0, unsigned.os_image_hash)
    signature = read_eif(io.BytesIO(raw)).signature
    assert signature is not None
    verify_signature(signature, measured.pcr0, at=NOW)
    inner = hashlib.sha384(signature.certificate_der).digest()
    assert measured.pcr8 == hashlib.sha384(bytes(48) + inner).digest()


def test_the_dates_bounds_are_valid() -> None:
    verify_signature(parse(), PCR0, at=NOT_BEFORE)
    verify_signature(parse(), PCR0, at=NOT_AFTER)


def test_a_certificate_before_its_time_is_refused() -> None:
    with refuses("eif.signature.not_yet_valid"):
        verify_signature(parse(), PCR0, at=NOT_BEFORE - 1)


def test_an_expired_certificate_is_refused() -> None:
    with refuses("eif.signature.expired"):
        verify_signature(parse(), PCR0, at=NOT_AFTER + 1)


@pytest.mark.parametrize(
    "payload",
    [
        signed_payload(bytes(48)),
        signed_payload(PCR0)[:-1],
        cbor2.dumps({"register_index": 1, "register_value": list(PCR0)}),
        cbor2.dumps({"register_index": 0, "register_value": PCR0}),
        cbor2.dumps({"register_value": list(PCR0), "register_index": 0}),
    ],
)
def test_a_signature_over_another_payload_is_refused(payload: bytes) -> None:
    with refuses("eif.signature.payload"):
        verify_signature(parse(payload=payload), PCR0, at=NOW)


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, b"\0" * 95 + b"\1"])
def test_a_wrong_signature_is_refused(signature: bytes) -> None:
    with refuses("eif.signature.invalid"):
        verify_signature(parse(signature=signature), PCR0, at=NOW)


def test_another_certificate_is_refused() -> None:
    other = signing_certificate(ec.generate_private_key(ec.SECP384R1()))
    with refuses("eif.signature.invalid"):
        verify_signature(parse(certificate=list(other)), PCR0, at=NOW)


@pytest.mark.parametrize("pem", [PEMS[-7], RSA_PEM])
def test_a_certificate_of_another_kind_of_key_is_refused(pem: bytes) -> None:
    with refuses("eif.signature.key"):
        verify_signature(parse(certificate=list(pem)), PCR0, at=NOW)


def damaged(pem: bytes, old: bytes, new: bytes) -> list[int]:
    """The certificate with some bytes of its DER changed, its signature left as it is."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert old in der
    certificate = der.replace(old, new)
    body = binascii.b2a_base64(certificate)
    return list(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n")


def test_a_certificate_whose_key_is_no_point_is_refused() -> None:
    point = KEYS[-35].public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    with refuses("eif.signature.key"):
        verify_signature(parse(certificate=damaged(PEMS[-35], point[1:], b"\xff" * 96)), PCR0, at=NOW)


def test_a_certificate_with_unreadable_dates_is_refused() -> None:
    with refuses("eif.signature.certificate"):
        parse(certificate=damaged(PEMS[-35], b"231114221320Z", b"239914221320Z"))


def test_a_certificate_of_a_version_that_does_not_exist_is_refused() -> None:
    with refuses("eif.signature.certificate"):
        parse(certificate=damaged(PEMS[-35], b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))


def test_a_name_that_cannot_be_read_is_said_to_be() -> None:
    changed = parse(certificate=damaged(PEMS[-35], b"\x0c\x06signer", b"\x0c\x06\xff\xff\xff\xff\xff\xff"))
    assert changed.subject == "unreadable name"


@pytest.mark.parametrize(
    "certificate",
    [
        b"",
        b"no pem",
        PEMS[-35][:200],
        PEMS[-35] + PEMS[-7],
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_not_one_certificate_is_refused(certificate: bytes) -> None:
    with refuses("eif.signature.certificate"):
        parse(certificate=list(certificate))


@pytest.mark.parametrize(
    "protected",
    [
        b"",
        b"\xa0",
        cbor2.dumps({1: -8}),
        cbor2.dumps({1: -35, 4: b"kid"}),
        b"\xa1\x01\x39\x00\x22",
        b"x" * 5000,
    ],
)
def test_another_protected_header_is_refused(protected: bytes) -> None:
    with refuses("eif.signature.algorithm"):
        parse(protected=protected)


@pytest.mark.parametrize("size", [0, 64, 95, 97, 132])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    with refuses("eif.signature.length"):
        parse(signature=bytes(size))


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": {}},
        {"entries": []},
        {"entries": [1]},
        {"entries": [{"signature": [1]}]},
        {"entries": [{}, {}]},
        {"certificate": PEMS[-35]},
        {"certificate": PEMS[-35].decode()},
        {"certificate": [256]},
        {"certificate": [-1]},
        {"certificate": [True]},
        {"certificate": ["a"]},
        {"sign1_raw": b"bytes"},
        {"sign1": []},
        {"sign1": {}},
        {"sign1": [b"", {}, b""]},
        {"sign1": ["", {}, b"", b""]},
        {"sign1": [b"", {}, None, b""]},
        {"sign1": [b"", {}, b"", []]},
        {"unprotected": {4: b"kid"}},
        {"unprotected": []},
    ],
)
def test_another_shape_is_refused(changes: dict[str, Any]) -> None:
    with refuses("eif.signature.shape"):
        parse(**changes)


def test_a_tagged_sign1_is_refused() -> None:
    with refuses("cbor.type"):
        parse(sign1_raw=list(b"\xd2\x84\x40\xa0\x40\x40"))


def test_n03_a_large_section_is_refused_unread() -> None:
    with refuses("eif.signature.size"):
        parse_signature(bytes(MAX_SIGNATURE + 1))
    with refuses("eif.signature.size"):
        read_eif(io.BytesIO(raw_image([*TINY_SECTIONS, (SIGNATURE_TYPE, bytes(MAX_SIGNATURE + 1))])))


def test_n03_an_array_longer_than_the_section_is_refused() -> None:
    with refuses("cbor.length"):
        parse_signature(b"\x81\xa2\x73signing_certificate\x9b\xff\xff\xff\xff\xff\xff\xff\xff")


def test_a_key_on_another_curve_signs_nothing() -> None:
    with refuses("eif.signer.curve", ConfigError):
        KeySigner(ec.generate_private_key(ec.SECP256K1()), PEMS[-7])


@pytest.mark.parametrize("pem", [b"", PEMS[-7], RSA_PEM, PEMS[-35] + PEMS[-35]])
def test_a_certificate_that_is_not_the_keys_signs_nothing(pem: bytes) -> None:
    with refuses("eif.signer.certificate", ConfigError):
        KeySigner(KEYS[-35], pem)


class Signer:
    """A key service that can misbehave."""

    certificate_pem = PEMS[-35]

    def __init__(self, algorithm: int, signature: bytes) -> None:
        self.algorithm = algorithm
        self.signature = signature

    def sign(self, text: bytes) -> bytes:
        assert text
        return self.signature


def test_a_signer_of_an_unknown_algorithm_is_refused() -> None:
    with refuses("eif.signer.algorithm", ConfigError):
        sign_image(Signer(-8, bytes(64)), PCR0)


def test_a_signer_that_signs_something_else_is_refused() -> None:
    with refuses("eif.signature.invalid"):
        sign_image(Signer(-35, bytes(96)), PCR0)
    with refuses("eif.signature.length"):
        sign_image(Signer(-35, bytes(64)), PCR0)
