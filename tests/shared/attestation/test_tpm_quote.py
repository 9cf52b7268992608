"""TPM structures and registers, refused by code."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from shared.attestation.envelope import GcpTdxQuote, PcrValue, TpmEvent, decode_envelope
from shared.attestation.event_log import replay_digests
from shared.attestation.policy import GCE_FIRMWARE_V2_TDX
from shared.attestation.tpm_quote import (
    MAX_BANKS,
    MAX_LOG_EVENTS,
    MAX_MESSAGE,
    MAX_SIGNATURE,
    PcrSelection,
    TpmSignature,
    check_log,
    check_registers,
    parse_attest,
    parse_signature,
    verify_quote,
)
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.gcp_forgery import (
    LOG,
    PCRS,
    attest,
    ecdsa_signature,
    rsa_signature,
    selection,
    sign_attest,
)
from tests.shared.refusal import Unread

SAMPLES = Path(__file__).parents[2] / "data" / "attestation" / "synthetic"
EXTRA = bytes(range(32))
MESSAGE = attest(PCRS, EXTRA)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
VALUES = tuple(PcrValue(index, "sha256", value) for index, value in PCRS.items())


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=0x10001, key_size=2048)


# --- TPMS_ATTEST ---


def test_a_quote_is_read_field_by_field() -> None:
    read = parse_attest(MESSAGE)
    assert read.extra_data == EXTRA
    assert read.qualified_signer == b"\x00\x0b" + bytes(32)
    assert (read.clock, read.reset_count, read.restart_count, read.safe) == (123_456, 1, 0, True)
    assert read.firmware_version == 0x2016_0511_0016_2800
    assert read.selections == (PcrSelection(0x000B, (0, 2, 14)),)
    assert read.pcr_digest == hashlib.sha256(b"".join(PCRS.values())).digest()


def test_upstreams_sample_is_read(shared_data: Callable[[str], Path]) -> None:
    read = parse_attest(shared_data("attestation/upstream/tpm/tpm_quote_sample.bin").read_bytes())
    assert read.extra_data == bytes.fromhex("12345678")
    assert read.selections == (PcrSelection(0x000B, (0, 1, 2)),)


def test_a_quote_over_several_banks_is_read() -> None:
    banks = [selection((0,), 0x0004), selection((1, 23), 0x000B)]
    read = parse_attest(attest(PCRS, EXTRA, selections=banks))
    assert read.selections == (PcrSelection(0x0004, (0,)), PcrSelection(0x000B, (1, 23)))


def test_n25_refuses_another_magic() -> None:
    with refuses("tpm.attest.magic"):
        parse_attest(attest(PCRS, EXTRA, magic=0xFF544348))


@pytest.mark.parametrize("kind", [0x8017, 0x8019, 0x8014, 0])
def test_n25_refuses_another_type_than_a_quote(kind: int) -> None:
    with refuses("tpm.attest.type"):
        parse_attest(attest(PCRS, EXTRA, kind=kind))


def test_refuses_a_quote_that_ends_early() -> None:
    for length in range(len(MESSAGE)):
        with refuses("tpm.attest.truncated"):
            parse_attest(MESSAGE[:length])


def test_n01_refuses_bytes_after_the_quote() -> None:
    with refuses("tpm.attest.trailing"):
        parse_attest(attest(PCRS, EXTRA, tail=b"\0"))


def test_refuses_a_quote_that_is_too_long() -> None:
    with refuses("tpm.attest.size"):
        parse_attest(MESSAGE.ljust(MAX_MESSAGE + 1, b"\0"))


def test_refuses_a_field_beyond_its_own_limit() -> None:
    with refuses("tpm.attest.size"):
        parse_attest(attest(PCRS, bytes(65)))


def test_refuses_a_safe_flag_that_is_no_boolean() -> None:
    with refuses("tpm.attest.safe"):
        parse_attest(attest(PCRS, EXTRA, safe=2))


@pytest.mark.parametrize("size", [0, 2, 4])
def test_refuses_a_bitmap_of_another_length(size: int) -> None:
    with refuses("tpm.attest.selection"):
        parse_attest(attest(PCRS, EXTRA, selections=[selection((0,) if size else (), size=size)]))


def test_refuses_a_bank_that_comes_twice() -> None:
    with refuses("tpm.attest.selection"):
        parse_attest(attest(PCRS, EXTRA, selections=[selection((0,))] * 2))


def test_n10_refuses_more_banks_than_exist() -> None:
    banks = [selection((0,), algorithm) for algorithm in range(MAX_BANKS + 1)]
    with refuses("tpm.attest.selection"):
        parse_attest(attest(PCRS, EXTRA, selections=banks))


# --- TPMT_SIGNATURE ---


def test_an_ecdsa_quote_verifies(key: ec.EllipticCurvePrivateKey) -> None:
    verify_quote(MESSAGE, parse_signature(sign_attest(MESSAGE, key)), key.public_key())


def test_an_rsa_quote_verifies(rsa_key: rsa.RSAPrivateKey) -> None:
    verify_quote(MESSAGE, parse_signature(sign_attest(MESSAGE, rsa_key)), rsa_key.public_key())


def test_scalars_are_read_padded_and_in_their_shortest_form() -> None:
    padded = parse_signature(ecdsa_signature(b"\0" * 31 + b"\x07", b"\0" + b"\x80" * 31))
    shortest = parse_signature(ecdsa_signature(b"\x07", b"\x80" * 31))
    assert padded == shortest == TpmSignature(r=7, s=int.from_bytes(b"\x80" * 31, "big"))


@pytest.mark.parametrize("scalar", [b"", b"\0", b"\0\x07", b"\0" * 31])
def test_refuses_a_scalar_in_a_third_form(scalar: bytes) -> None:
    with refuses("tpm.signature.encoding"):
        parse_signature(ecdsa_signature(scalar, b"\x07"))


@pytest.mark.parametrize("value", [0, P256_ORDER, P256_ORDER + 1, (1 << 256) - 1])
def test_refuses_a_scalar_out_of_range(value: int) -> None:
    for scalars in ((value.to_bytes(32, "big"), b"\x07"), (b"\x07", value.to_bytes(32, "big"))):
        with refuses("tpm.signature.range"):
            parse_signature(ecdsa_signature(*scalars))


def test_refuses_a_scalar_of_more_than_32_bytes() -> None:
    with refuses("tpm.signature.size"):
        parse_signature(ecdsa_signature(b"\x07" * 33, b"\x07"))


@pytest.mark.parametrize("algorithm", [0x0000, 0x0010, 0x0016, 0x001A, 0x001B])
def test_refuses_another_signature_algorithm(algorithm: int) -> None:
    with refuses("tpm.signature.algorithm"):
        parse_signature(ecdsa_signature(b"\x07", b"\x07", algorithm=algorithm))


@pytest.mark.parametrize("hash_id", [0x0004, 0x000C, 0x000D])
def test_n25_refuses_a_signature_over_another_hash(hash_id: int) -> None:
    with refuses("tpm.signature.hash"):
        parse_signature(ecdsa_signature(b"\x07", b"\x07", hash_id=hash_id))


@pytest.mark.parametrize("signature", [ecdsa_signature(b"\x07", b"\x08"), rsa_signature(b"\x07" * 256)])
def test_n01_refuses_a_signature_cut_or_followed(signature: bytes) -> None:
    for length in range(len(signature)):
        with refuses("tpm.signature.truncated"):
            parse_signature(signature[:length])
    with refuses("tpm.signature.trailing"):
        parse_signature(signature + b"\0")


def test_refuses_a_signature_that_is_too_long() -> None:
    with refuses("tpm.signature.size"):
        parse_signature(rsa_signature(bytes(MAX_SIGNATURE)))


def test_refuses_another_message(key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey) -> None:
    for signer in (key, rsa_key):
        signature = parse_signature(sign_attest(MESSAGE, signer))
        with refuses("tpm.signature.invalid"):
            verify_quote(MESSAGE[:-1] + b"\0", signature, signer.public_key())


def test_refuses_a_key_of_another_kind(key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey) -> None:
    wide = ec.generate_private_key(ec.SECP384R1()).public_key()
    ecdsa, rsassa = (parse_signature(sign_attest(MESSAGE, signer)) for signer in (key, rsa_key))
    for signature, wrong in ((ecdsa, rsa_key.public_key()), (rsassa, key.public_key()), (ecdsa, wide)):
        with refuses("tpm.signature.key"):
            verify_quote(MESSAGE, signature, wrong)


def test_refuses_an_empty_rsa_signature(rsa_key: rsa.RSAPrivateKey) -> None:
    with refuses("tpm.signature.key"):
        verify_quote(MESSAGE, parse_signature(rsa_signature(b"")), rsa_key.public_key())


def test_refuses_an_rsa_signature_with_another_padding(rsa_key: rsa.RSAPrivateKey) -> None:
    raw = rsa_key.sign(MESSAGE, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
    with refuses("tpm.signature.invalid"):
        verify_quote(MESSAGE, parse_signature(rsa_signature(raw)), rsa_key.public_key())


# --- registers ---


def test_listed_registers_are_the_quoted_ones() -> None:
    assert check_registers(parse_attest(MESSAGE), VALUES) == PCRS


def test_n10_refuses_five_thousand_duplicate_registers_at_once() -> None:
    with refuses("tpm.pcr.count"):
        check_registers(parse_attest(MESSAGE), Unread(5000))


def test_n10_refuses_one_register_twice() -> None:
    with refuses("tpm.pcr.index"):
        check_registers(parse_attest(MESSAGE), (VALUES[0], *VALUES))


@pytest.mark.parametrize("values", [VALUES[:2], VALUES[::-1], (*VALUES, PcrValue(15, "sha256", bytes(32)))])
def test_n22_refuses_registers_that_were_not_quoted_so(values: tuple[PcrValue, ...]) -> None:
    with refuses("tpm.pcr.index"):
        check_registers(parse_attest(MESSAGE), values)


@pytest.mark.parametrize("name", ["sha1", "SHA256", "sha384", ""])
def test_n25_refuses_another_banks_name(name: str) -> None:
    with refuses("tpm.pcr.algorithm"):
        check_registers(parse_attest(MESSAGE), (PcrValue(0, name, PCRS[0]), *VALUES[1:]))


@pytest.mark.parametrize(
    "banks",
    [
        [],
        [selection((0, 2, 14), 0x0004)],
        [selection((0, 2, 14), 0x000C)],
        [selection((0, 2, 14)), selection((0,), 0x0004)],
    ],
)
def test_n25_refuses_a_quote_over_another_bank(banks: list[bytes]) -> None:
    with refuses("tpm.attest.bank"):
        check_registers(parse_attest(attest(PCRS, EXTRA, selections=banks)), VALUES)


def test_refuses_a_register_of_another_length() -> None:
    with refuses("tpm.pcr.length"):
        check_registers(parse_attest(MESSAGE), (PcrValue(0, "sha256", PCRS[0][:20]), *VALUES[1:]))


def test_n22_refuses_values_that_do_not_hash_to_the_quote() -> None:
    with refuses("tpm.pcr.digest"):
        check_registers(parse_attest(MESSAGE), (PcrValue(0, "sha256", bytes(32)), *VALUES[1:]))


# --- the boot log ---


def test_a_log_replays_and_gives_what_was_extended() -> None:
    digests = check_log(PCRS, LOG)
    assert sorted(digests) == [0, 2]
    assert digests[2] == tuple(event.digest for event in LOG if event.pcr_index == 2)


def test_a_real_boot_log_replays_to_the_firmware_that_we_know() -> None:
    quote = decode_envelope((SAMPLES / "envelopes" / "v0_gcp_tdx.bin").read_bytes()).quote
    assert isinstance(quote, GcpTdxQuote)
    registers = {value.index: value.value for value in quote.tpm.pcr_values}
    assert registers[0] == PCRS[0] == GCE_FIRMWARE_V2_TDX
    assert len(check_log(registers, quote.tpm.event_log)[2]) == 4


def test_a_quote_and_a_signature_of_other_code_are_read() -> None:
    message = (SAMPLES / "gcp" / "tpm_attest.bin").read_bytes()
    assert parse_attest(message).selections == (PcrSelection(0x000B, (0, 2, 14)),)
    assert parse_signature((SAMPLES / "gcp" / "tpm_signature.bin").read_bytes()).r


@pytest.mark.parametrize("change", ["drop", "swap", "alter", "add"])
def test_n22_refuses_a_log_that_does_not_replay(change: str) -> None:
    log = list(LOG)
    at = next(index for index, event in enumerate(log) if event.pcr_index == 2)
    if change == "drop":
        del log[at]
    elif change == "swap":
        log[at], log[at + 1] = log[at + 1], log[at]
    elif change == "alter":
        log[at] = TpmEvent(2, bytes(32))
    else:
        log.append(TpmEvent(14, bytes(32)))
    with refuses("tpm.log.mismatch"):
        check_log(PCRS, log)


def test_n10_refuses_a_hundred_thousand_events_at_once() -> None:
    with refuses("tpm.log.count"):
        check_log(PCRS, Unread(100_000))


def test_n10_the_longest_log_is_replayed() -> None:
    events = [TpmEvent(2, bytes(32))] * MAX_LOG_EVENTS
    assert len(check_log({2: replay_digests([bytes(32)] * MAX_LOG_EVENTS, "sha256")}, events)[2]) == len(
        events
    )


def test_refuses_an_event_of_no_register() -> None:
    with refuses("tpm.log.index"):
        check_log(PCRS, (TpmEvent(24, bytes(32)),))


def test_n25_refuses_an_event_with_a_digest_of_another_bank() -> None:
    with refuses("tpm.log.digest"):
        check_log(PCRS, (TpmEvent(4, bytes(20)),))
