"""Certificate requests: upstream's bytes, both layouts, and every way in which one is refused."""

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from shared.attestation import scale
from shared.attestation.envelope import Attestation, TdxQuote, decode_envelope, encode_envelope
from shared.attestation.event_log_json import event_log_json
from shared.errors import InvalidEvidence, ProtocolError
from shared.ratls.certificates import spki_der
from shared.ratls.csr import (
    MAX_CSR,
    V1,
    V2,
    Csr,
    CsrConfig,
    check_signature,
    decode_csr,
    encode_csr,
    signed_csr,
)
from tests.shared.ratls.old_csr import old_csr
from tests.shared.refusal import refuses

DATA = Path(__file__).parents[2] / "data"
VECTORS = json.loads((DATA / "kms" / "vectors.json").read_text())
ENVELOPE = (DATA / "attestation/synthetic/envelopes/v0_tdx.bin").read_bytes()
KEY = derive_private_key(5, SECP256R1())
FULL = CsrConfig(
    org_name="Example",
    subject="app.example.com",
    subject_alt_names=("app.example.com", "10.0.0.1"),
    usage_server_auth=True,
    usage_client_auth=True,
    ext_quote=True,
    ext_app_info=True,
    not_before=1_800_000_000,
    not_after=(1 << 64) - 1,
)
FULL_BYTES, SIGNATURE = signed_csr(KEY, FULL, ENVELOPE)


def _tdx() -> tuple[Attestation, TdxQuote]:
    attestation = decode_envelope(ENVELOPE)
    assert isinstance(attestation.quote, TdxQuote)
    return attestation, attestation.quote


@pytest.mark.parametrize(("name", "quote"), [("no_quote", b""), ("quote_09", b"\x09")])
def test_reads_and_writes_upstreams_bytes(name: str, quote: bytes) -> None:
    data = bytes.fromhex(VECTORS["upstream_csr_v2_scale"][name])
    envelope = encode_envelope(Attestation(TdxQuote(quote, ()), (), bytes(64), ""))
    csr = Csr(
        pubkey=b"\1\2\3",
        config=CsrConfig(subject="test.example.com", usage_server_auth=True, ext_quote=bool(quote)),
        envelope=envelope,
    )
    assert decode_csr(data, V2) == csr
    assert encode_csr(csr) == data


def test_every_field_comes_back() -> None:
    csr = decode_csr(FULL_BYTES, V2)
    assert csr == Csr(pubkey=spki_der(KEY.public_key()), config=FULL, envelope=ENVELOPE)
    check_signature(csr, FULL_BYTES, SIGNATURE)


def test_the_old_layout_stands_for_an_envelope_without_a_config() -> None:
    attestation, quote = _tdx()
    config = msgspec.structs.replace(FULL, ext_app_info=False, not_before=None, not_after=None)
    data = old_csr(KEY, config, quote.quote, event_log_json(quote.event_log).encode())
    csr = decode_csr(data, V1)
    assert csr.config == config
    found = decode_envelope(csr.envelope)
    assert isinstance(found.quote, TdxQuote)
    assert found.quote.quote == quote.quote
    assert (found.config, found.runtime_events) == ("", attestation.runtime_events)
    check_signature(csr, data, KEY.sign(data, ECDSA(SHA256())))


def test_the_old_layout_has_nothing_after_its_log() -> None:
    _, quote = _tdx()
    data = old_csr(KEY, FULL, quote.quote, b"[]")
    with refuses("scale.trailing"):
        decode_csr(data + b"\0", V1)


def test_the_old_layout_refuses_a_quote_that_is_none() -> None:
    with refuses("tdx.quote.size"):
        decode_csr(old_csr(KEY, FULL, b"", b"[]"), V1)


@pytest.mark.parametrize("version", [0, 3])
def test_refuses_another_layout(version: int) -> None:
    with refuses("csr.version", ProtocolError) as caught:
        decode_csr(FULL_BYTES, version)
    assert caught.value.message == "Unsupported API version"


def test_refuses_a_cut_request_at_every_place() -> None:
    for length in range(len(FULL_BYTES) - len(ENVELOPE)):
        with pytest.raises(InvalidEvidence) as caught:
            decode_csr(FULL_BYTES[:length], V2)
        assert caught.value.code in {"scale.truncated", "scale.count"}


def test_refuses_more_than_evidence_needs() -> None:
    with refuses("csr.size"):
        decode_csr(FULL_BYTES + bytes(MAX_CSR), V2)


def test_refuses_another_spelling_of_a_flag() -> None:
    place = FULL_BYTES.index(b"\1\1\1\1\1")
    with refuses("csr.flag"):
        decode_csr(FULL_BYTES[:place] + b"\2" + FULL_BYTES[place + 1 :], V2)


def test_refuses_another_spelling_of_a_length() -> None:
    short = scale.string("please sign cert:")
    long = bytes([short[0] | 1, 0]) + short[1:]
    assert FULL_BYTES.startswith(short)
    with refuses("scale.compact.minimal"):
        decode_csr(long + FULL_BYTES[len(short) :], V2)


def test_n50_refuses_a_signature_of_another_key() -> None:
    other = generate_private_key(SECP256R1())
    with refuses("csr.signature"):
        check_signature(decode_csr(FULL_BYTES, V2), FULL_BYTES, other.sign(FULL_BYTES, ECDSA(SHA256())))


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), SIGNATURE + b"\0", SIGNATURE[:-1]],
    ids=["empty", "raw", "trailing", "cut"],
)
def test_refuses_what_is_no_signature(signature: bytes) -> None:
    with refuses("csr.signature"):
        check_signature(decode_csr(FULL_BYTES, V2), FULL_BYTES, signature)


def test_refuses_another_hash() -> None:
    with refuses("csr.signature"):
        check_signature(decode_csr(FULL_BYTES, V2), FULL_BYTES, KEY.sign(FULL_BYTES, ECDSA(SHA384())))


def test_a_signature_covers_every_byte() -> None:
    csr = decode_csr(FULL_BYTES, V2)
    for place in range(0, len(FULL_BYTES), 7):
        changed = bytearray(FULL_BYTES)
        changed[place] ^= 1
        with refuses("csr.signature"):
            check_signature(csr, bytes(changed), SIGNATURE)


def _signed(confirm: str) -> tuple[Csr, bytes, bytes]:
    csr = Csr(confirm=confirm, pubkey=spki_der(KEY.public_key()), config=FULL, envelope=ENVELOPE)
    data = encode_csr(csr)
    return decode_csr(data, V2), data, KEY.sign(data, ECDSA(SHA256()))


@pytest.mark.parametrize("confirm", ["", "please sign cert", "please sign cert: ", "x" * 2000])
def test_refuses_another_word_under_a_signature(confirm: str) -> None:
    with refuses("csr.confirm"):
        check_signature(*_signed(confirm))


def test_the_signature_is_checked_before_the_word() -> None:
    csr, data, _ = _signed("")
    with refuses("csr.signature"):
        check_signature(csr, data, SIGNATURE)


def _compressed() -> bytes:
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point


def _hybrid() -> bytes:
    spki = spki_der(KEY.public_key())
    hybrid = spki[:26] + bytes([6 + spki[-1] % 2]) + spki[27:]
    assert load_der_public_key(hybrid) == KEY.public_key()
    return hybrid


@pytest.mark.parametrize(
    "pubkey",
    [
        b"",
        bytes(91),
        _compressed(),
        _hybrid(),
        spki_der(KEY.public_key()) + b"\0",
        spki_der(generate_private_key(SECP384R1()).public_key()),
        spki_der(KEY.public_key())[:-1] + b"\0",
    ],
    ids=["empty", "zero", "compressed", "hybrid", "trailing", "p384", "off the curve"],
)
def test_refuses_a_key_in_another_form(pubkey: bytes) -> None:
    csr = msgspec.structs.replace(decode_csr(FULL_BYTES, V2), pubkey=pubkey)
    with refuses("csr.key"):
        check_signature(csr, FULL_BYTES, SIGNATURE)
