"""The layout of a quote and of the chain in it: every byte has one meaning, or the quote is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.simulator.intel_documents import sgx_extension
from enclave.simulator.tdx import Domain, SimulatedIntel, SimulatedTdx
from shared.attestation.envelope import TdxQuote, decode_envelope
from shared.attestation.pck import MAX_CERTIFICATE, join_pem, parse_pck_chain, split_pem
from shared.attestation.tdx_quote import (
    MAX_QUOTE,
    MIN_QUOTE,
    TD_10_LENGTH,
    parse_quote,
)
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.tdx_forgery import REPORT_DATA, certification_at, leaf, recertified

SharedData = Callable[[str], Path]
UPSTREAM = "attestation/upstream/"
AUTH_LENGTH_AT = 48 + TD_10_LENGTH  # of a v4 quote


@pytest.fixture(scope="module")
def intel() -> SimulatedIntel:
    return SimulatedIntel.create(fmspc=bytes.fromhex("b0c06f000000"))


@pytest.fixture(scope="module")
def quote(intel: SimulatedIntel) -> bytes:
    return SimulatedTdx(intel).quote(REPORT_DATA)


def changed(quote: bytes, at: int, content: bytes) -> bytes:
    return quote[:at] + content + quote[at + len(content) :]


@pytest.mark.parametrize(("version", "body"), [(4, 0), (5, 2), (5, 3)])
def test_the_fields_of_each_layout_are_found(intel: SimulatedIntel, version: int, body: int) -> None:
    domain = Domain(
        mrtd=b"a" * 48,
        mr_config_id=b"b" * 48,
        mr_owner=b"c" * 48,
        mr_owner_config=b"d" * 48,
        tee_tcb_svn2=b"e" * 16,
        mr_service_td=b"f" * 48,
    )
    rtmrs = (b"0" * 48, b"1" * 48, b"2" * 48, b"3" * 48)
    quote = SimulatedTdx(intel, domain, rtmrs=rtmrs, version=version, body_type=body).quote(REPORT_DATA)
    parsed = parse_quote(quote)
    report = parsed.report
    assert (parsed.version, parsed.fmspc, parsed.ca) == (version, bytes.fromhex("b0c06f000000"), "platform")
    assert (report.mrtd, report.rtmrs, report.report_data) == (domain.mrtd, rtmrs, REPORT_DATA)
    assert (report.mr_config_id, report.mr_owner) == (domain.mr_config_id, domain.mr_owner)
    assert report.mr_owner_config == domain.mr_owner_config
    assert (report.td_attributes, report.xfam) == (1 << 28, 0x602E7)
    assert report.mr_service_td == (domain.mr_service_td if body == 3 else None)
    assert report.tee_tcb_svn2 == (domain.tee_tcb_svn2 if body == 3 else None)
    assert parsed.signed == quote[: len(parsed.signed)]
    assert parsed.signed.endswith(parsed.body)
    assert parsed.header == quote[:48]
    assert parsed.qe_report.isv_svn == 4
    assert parsed.qe_report.mr_signer == bytes([0x44]) * 32
    assert parsed.raw == quote


def upstream_quotes(shared_data: SharedData) -> dict[str, bytes]:
    envelope = decode_envelope(shared_data(UPSTREAM + "tdx/v0_tdx_attestation.bin").read_bytes())
    assert isinstance(envelope.quote, TdxQuote)
    found = {
        "bare": shared_data(UPSTREAM + "tdx/tdx_quote.bin").read_bytes(),
        "envelope": envelope.quote.quote,
    }
    for name in ("quote-report", "tdx-lite-getquote"):
        request = json.loads(shared_data(f"{UPSTREAM}verifier/{name}.json").read_bytes())
        found[name] = bytes.fromhex(request["quote"])
    return found


def test_quotes_of_real_platforms_parse(shared_data: SharedData) -> None:
    found = {name: parse_quote(quote) for name, quote in upstream_quotes(shared_data).items()}
    assert {name: parsed.fmspc for name, parsed in found.items()} == {
        "bare": bytes.fromhex("b0c06f000000"),
        "envelope": bytes.fromhex("b0c06f000000"),
        "quote-report": bytes.fromhex("90c06f000000"),
        "tdx-lite-getquote": bytes.fromhex("90c06f000000"),
    }
    for parsed in found.values():
        assert parsed.version == 4
        assert parsed.ca == "platform"
        assert parsed.qe_report.isv_svn == 6
        assert parsed.report.td_attributes == 1 << 28
        assert parsed.certification_data.endswith(b"-----END CERTIFICATE-----\n\0")


def test_registers_of_real_quotes_are_as_expected(shared_data: SharedData) -> None:
    expected = json.loads(shared_data(UPSTREAM + "expected/tdx.json").read_bytes())
    quote = parse_quote(upstream_quotes(shared_data)["quote-report"])
    text = json.dumps(expected)
    for value in (quote.report.mrtd, *quote.report.rtmrs):
        assert value.hex() in text


# --- size and header ---


@pytest.mark.parametrize("size", [0, 1, MIN_QUOTE - 1, MAX_QUOTE + 1])
def test_n10_a_quote_of_another_size_is_refused_first(size: int) -> None:
    with refuses("tdx.quote.size"):
        parse_quote(bytes(size))


def test_the_largest_buffer_is_read(quote: bytes) -> None:
    assert parse_quote(quote + bytes(MAX_QUOTE - len(quote))).version == 4


@pytest.mark.parametrize(
    ("at", "content", "code"),
    [
        (0, b"\x03\x00", "version"),
        (0, b"\x06\x00", "version"),
        (2, b"\x03\x00", "key_type"),
        (4, b"\x00\x00\x00\x00", "tee_type"),
        (12, b"\x00", "vendor"),
    ],
)
def test_n13_a_header_of_another_kind_is_refused(quote: bytes, at: int, content: bytes, code: str) -> None:
    with refuses(f"tdx.quote.{code}"):
        parse_quote(changed(quote, at, content))


@pytest.mark.parametrize(("kind", "length"), [(1, 384), (2, 648), (3, 584), (4, 648), (0, 0)])
def test_another_body_of_version_5_is_refused(intel: SimulatedIntel, kind: int, length: int) -> None:
    quote = SimulatedTdx(intel, version=5).quote(REPORT_DATA)
    with refuses("tdx.quote.body"):
        parse_quote(changed(quote, 48, struct.pack("<HI", kind, length)))


# --- lengths ---


def test_n01_bytes_after_the_quote_are_refused_unless_zero(quote: bytes) -> None:
    assert parse_quote(quote + bytes(100)).version == 4
    with refuses("tdx.quote.trailing"):
        parse_quote(quote + b"\x01")
    with refuses("tdx.quote.trailing"):
        parse_quote(quote[:-1] + b"\x01")


def test_n03_a_length_beyond_the_quote_is_refused(quote: bytes) -> None:
    with refuses("tdx.quote.truncated"):
        parse_quote(changed(quote, AUTH_LENGTH_AT, b"\xff\xff\xff\xff"))


def test_a_quote_that_ends_early_is_refused(quote: bytes, intel: SimulatedIntel) -> None:
    with refuses("tdx.quote.truncated"):
        parse_quote(quote[:1100])
    with refuses("tdx.quote.truncated"):
        parse_quote(quote[:AUTH_LENGTH_AT] + struct.pack("<I", 500) + bytes(500))
    longest = SimulatedTdx(intel, version=5).quote(REPORT_DATA)
    for length in (MIN_QUOTE, 1200):
        with refuses("tdx.quote.truncated"):
            parse_quote(longest[:length])


def test_authentication_data_that_ends_before_its_certification_data_is_refused(quote: bytes) -> None:
    fixed = 64 + 64 + 6 + 384 + 64 + 2
    auth = bytearray(quote[AUTH_LENGTH_AT + 4 :][: fixed + 32 + 5])
    auth[130:134] = struct.pack("<I", len(auth) - 134)
    head = quote[:AUTH_LENGTH_AT] + struct.pack("<I", len(auth))
    with refuses("tdx.quote.truncated"):
        parse_quote(head + bytes(auth))


def test_outer_certification_data_has_one_type_and_one_length(quote: bytes) -> None:
    at = AUTH_LENGTH_AT + 4 + 128
    kind, length = struct.unpack_from("<HI", quote, at)
    for other in (struct.pack("<HI", 5, length), struct.pack("<HI", kind, length - 1)):
        with refuses("tdx.quote.auth"):
            parse_quote(changed(quote, at, other))


def test_qe_authentication_data_has_32_bytes(quote: bytes) -> None:
    at = AUTH_LENGTH_AT + 4 + 128 + 6 + 384 + 64
    with refuses("tdx.quote.auth"):
        parse_quote(changed(quote, at, b"\x1f\x00"))


def test_inner_certification_data_fills_what_is_left(quote: bytes) -> None:
    parsed = parse_quote(quote)
    at = certification_at(parsed)
    with refuses("tdx.quote.auth"):
        parse_quote(changed(quote, at + 2, struct.pack("<I", len(parsed.certification_data) - 1)))


@pytest.mark.parametrize("kind", [1, 4, 6, 7])
def test_certification_data_of_another_kind_is_refused(quote: bytes, kind: int) -> None:
    with refuses("tdx.quote.certification"):
        parse_quote(recertified(quote, kind, bytes(404)))


def test_an_encrypted_ppid_is_read_without_a_chain(quote: bytes) -> None:
    parsed = parse_quote(recertified(quote, 3, bytes(404)))
    assert (parsed.pck_chain, parsed.fmspc, parsed.ca) == (None, None, None)


# --- the chain ---


def test_n01_text_around_the_certificates_is_refused(intel: SimulatedIntel) -> None:
    pem = intel.pck_chain
    end = b"-----END CERTIFICATE-----\n"
    for text in (
        b"",
        b"\n" + pem,
        pem + b"\n",
        pem + b"\0",
        pem.replace(end, end + b"comment\n", 1),
        pem.replace(b"\n", b"\r\n"),
        pem[: -len(end)],
    ):
        with refuses("tdx.pck.pem"):
            parse_pck_chain(text)


def test_a_certificate_has_one_spelling_in_base64(intel: SimulatedIntel) -> None:
    first, *rest = join_pem((intel.pck.der,)).split(b"\n")
    body = b"".join(rest[:-2])
    end = rest[-2]
    for spelling in (
        b"\n".join([first, body, end, b""]),
        b"\n".join([first, *[body[at : at + 60] for at in range(0, len(body), 60)], end, b""]),
        b"\n".join([first, rest[0] + b"!", *rest[1:]]),
        b"\n".join([first, b"A", end, b""]),
    ):
        with refuses("tdx.pck.pem"):
            split_pem(spelling)
    assert split_pem(join_pem((b"\x01\x02",))) == (b"\x01\x02",)


def test_a_huge_certificate_is_refused() -> None:
    with refuses("tdx.pck.pem"):
        split_pem(join_pem((bytes(MAX_CERTIFICATE + 1),)))


def test_a_chain_has_three_certificates(intel: SimulatedIntel) -> None:
    for ders in ((intel.pck.der,), (intel.pck.der, intel.platform.der, intel.root.der, intel.root.der)):
        with refuses("tdx.pck.length"):
            parse_pck_chain(join_pem(ders))


def test_a_certificate_that_is_not_der_is_refused(intel: SimulatedIntel) -> None:
    for first in (b"\x30\x03\x02\x01\x01", intel.pck.der + b"\0"):
        with refuses("tdx.pck.certificate"):
            parse_pck_chain(join_pem((first, intel.platform.der, intel.root.der)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a003020102", "a003020101"),  # version
        ("02", "82"),  # a negative serial number
        ("300a06082a8648ce3d040302", "300a06082a8648ce3d040303"),  # sha-384
    ],
)
def test_a_certificate_of_another_kind_is_refused(intel: SimulatedIntel, old: str, new: str) -> None:
    der = intel.pck.der
    if old == "02":
        at = der.index(bytes.fromhex("a003020102")) + 7
        other = changed(der, at, bytes([der[at] | 0x80]))
        zero = changed(der, at, bytes(der[at - 1]))
        empty = leaf_with_empty_serial(der, at)
        variants = [other, zero, empty]
    else:
        first = der.replace(bytes.fromhex(old), bytes.fromhex(new), 1)
        last = der[::-1].replace(bytes.fromhex(old)[::-1], bytes.fromhex(new)[::-1], 1)[::-1]
        variants = [first, last]
    for variant in variants:
        with refuses("tdx.pck.certificate"):
            parse_pck_chain(join_pem((variant, intel.platform.der, intel.root.der)))


def leaf_with_empty_serial(der: bytes, at: int) -> bytes:
    """The certificate with a serial number of no bytes; `at` is where its content starts."""
    size = der[at - 1]
    shorter = bytearray(der[: at - 1] + b"\0" + der[at + size :])
    for length_at in (2, 6):  # of the certificate and of its signed part, both in two bytes
        length = int.from_bytes(shorter[length_at : length_at + 2], "big") - size
        shorter[length_at : length_at + 2] = length.to_bytes(2, "big")
    return bytes(shorter)


@pytest.mark.parametrize(
    "extension",
    [
        None,
        b"",
        b"\x30",
        b"\x04\x00",
        b"\x30\x05\x01",
        b"\x30\x81",
        sgx_extension(bytes(5), bytes(16)),
        sgx_extension(bytes(6), bytes(16))[:-1],
        b"\x30\x00",
    ],
)
def test_a_leaf_without_a_readable_fmspc_is_refused(intel: SimulatedIntel, extension: bytes | None) -> None:
    made = leaf(intel.platform, ec.generate_private_key(ec.SECP256R1()).public_key(), extension)
    der = made.public_bytes(Encoding.DER)
    with refuses("tdx.pck.fmspc"):
        parse_pck_chain(join_pem((der, intel.platform.der, intel.root.der)))


@pytest.mark.parametrize(
    ("issuer", "ca"),
    [
        ("Intel SGX PCK Platform CA", "platform"),
        ("Intel SGX PCK Processor CA", "processor"),
        ("x", "processor"),
    ],
)
def test_the_ca_is_told_by_the_issuer(intel: SimulatedIntel, issuer: str, ca: str) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    made = leaf(intel.platform, public, sgx_extension(bytes(6), bytes(16)), issuer_name=issuer)
    der = made.public_bytes(Encoding.DER)
    assert parse_pck_chain(join_pem((der, intel.platform.der, intel.root.der))).ca == ca


def test_extensions_that_decide_nothing_are_not_read(intel: SimulatedIntel) -> None:
    """Found by flipping: a negative serial number in another extension made the library warn."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    negative_serial = bytes.fromhex("3003820180")
    made = leaf(intel.platform, public, sgx_extension(bytes(6), bytes(16)), authority=negative_serial)
    der = made.public_bytes(Encoding.DER)
    assert parse_pck_chain(join_pem((der, intel.platform.der, intel.root.der))).fmspc == bytes(6)
