import cbor2
import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from hypothesis import given

from shared.attestation.cose import MAX_COSE, P384_ORDER, CoseSign1, parse_sign1, verify_es384
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import refuses

KEY = ec.generate_private_key(ec.SECP384R1())
PROTECTED = bytes.fromhex("a1013822")


def signed(payload: bytes = b"payload", protected: bytes = PROTECTED) -> CoseSign1:
    text = CoseSign1(protected, payload, b"").signed_text
    r, s = decode_dss_signature(KEY.sign(text, ec.ECDSA(SHA384())))
    return CoseSign1(protected, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big"))


def encoded(message: CoseSign1, unprotected: dict[int, object] | None = None) -> bytes:
    return cbor2.dumps([message.protected, unprotected or {}, message.payload, message.signature])


def with_signature(message: CoseSign1, r: int, s: int) -> CoseSign1:
    return CoseSign1(message.protected, message.payload, r.to_bytes(48, "big") + s.to_bytes(48, "big"))


@given(st.binary(max_size=70_000 // 256) | st.integers(0, 6000).map(bytes))
def test_signed_text_is_the_sig_structure_of_an_independent_encoder(payload: bytes) -> None:
    message = CoseSign1(PROTECTED, payload, b"")
    assert message.signed_text == cbor2.dumps(["Signature1", PROTECTED, b"", payload])


def test_verifies_untagged_and_tagged() -> None:
    message = signed()
    assert parse_sign1(encoded(message)) == parse_sign1(b"\xd2" + encoded(message)) == message
    verify_es384(message, KEY.public_key())


def test_n01_refuses_trailing_bytes() -> None:
    with refuses("cbor.trailing"):
        parse_sign1(encoded(signed()) + b"\x00")


def test_n01_refuses_a_fifth_item() -> None:
    message = signed()
    with refuses("cose.shape"):
        parse_sign1(cbor2.dumps([message.protected, {}, message.payload, message.signature, b""]))


def test_refuses_another_tag_and_a_second_one() -> None:
    for prefix in (b"\xd1", b"\xd2\xd2", b"\xd8\x12"):
        with refuses("cbor.type"):
            parse_sign1(prefix + encoded(signed()))


@pytest.mark.parametrize("at", [0, 2, 3])
def test_refuses_items_that_are_not_byte_strings(at: int) -> None:
    message = signed()
    items = [message.protected, {}, message.payload, message.signature]
    items[at] = None
    with refuses("cose.shape"):
        parse_sign1(cbor2.dumps(items))


def test_refuses_something_that_is_no_array() -> None:
    with refuses("cose.shape"):
        parse_sign1(b"\xa0")


def test_n03_refuses_an_oversize_document() -> None:
    with refuses("cose.size"):
        parse_sign1(bytes(MAX_COSE + 1))


@pytest.mark.parametrize("unprotected", [{4: b"kid"}, {1: -35}])
def test_refuses_an_unprotected_header(unprotected: dict[int, object]) -> None:
    with refuses("cose.unprotected"):
        parse_sign1(encoded(signed(), unprotected))


def test_refuses_an_unprotected_header_that_is_no_map() -> None:
    message = signed()
    with refuses("cose.unprotected"):
        parse_sign1(cbor2.dumps([message.protected, [], message.payload, message.signature]))


@pytest.mark.parametrize("algorithm", [-7, -36, 35, -37, "ES384", None])
def test_n32_refuses_another_algorithm(algorithm: object) -> None:
    with refuses("cose.algorithm"):
        parse_sign1(encoded(signed(protected=cbor2.dumps({1: algorithm}))))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"", "cbor.truncated"),
        (cbor2.dumps([1, -35]), "cose.header"),
        (cbor2.dumps({}), "cose.algorithm"),
        (cbor2.dumps({1: -35, 4: b"kid"}), "cose.header"),
        (cbor2.dumps({1: -35}) + b"\x00", "cbor.trailing"),
        (bytes.fromhex("a2013822013822"), "cbor.duplicate"),
    ],
)
def test_refuses_another_protected_header(header: bytes, code: str) -> None:
    with refuses(code):
        parse_sign1(encoded(signed(protected=header)))


@pytest.mark.parametrize("critical", [[1], ["alg"], [1, "alg"]])
def test_allows_crit_that_lists_the_algorithm(critical: object) -> None:
    message = signed(protected=cbor2.dumps({1: -35, 2: critical}))
    verify_es384(parse_sign1(encoded(message)), KEY.public_key())


@pytest.mark.parametrize("critical", [[], [4], [1, 4], ["x"], [True], 1, "alg", [[1]]])
def test_refuses_crit_that_lists_anything_else(critical: object) -> None:
    with refuses("cose.crit"):
        parse_sign1(encoded(signed(protected=cbor2.dumps({1: -35, 2: critical}))))


def test_n32_refuses_a_der_signature() -> None:
    der = KEY.sign(signed().signed_text, ec.ECDSA(SHA384()))
    with refuses("cose.signature.length"):
        parse_sign1(encoded(CoseSign1(PROTECTED, b"payload", der)))


@pytest.mark.parametrize("bad", [0, P384_ORDER, P384_ORDER + 1, (1 << 384) - 1])
@pytest.mark.parametrize("which", ["r", "s"])
def test_n32_refuses_r_or_s_outside_the_group(bad: int, which: str) -> None:
    r, s = (bad, 1) if which == "r" else (1, bad)
    with refuses("cose.signature.range"):
        verify_es384(with_signature(signed(), r, s), KEY.public_key())


def test_n32_refuses_an_altered_protected_header() -> None:
    message = signed()
    altered = CoseSign1(cbor2.dumps({1: -35, 2: [1]}), message.payload, message.signature)
    with refuses("cose.signature.invalid"):
        verify_es384(altered, KEY.public_key())


def test_n32_refuses_a_reencoded_payload() -> None:
    message = signed(payload=bytes.fromhex("bf616101ff"))
    altered = CoseSign1(message.protected, bytes.fromhex("a1616101"), message.signature)
    with refuses("cose.signature.invalid"):
        verify_es384(altered, KEY.public_key())


def test_refuses_another_key() -> None:
    with refuses("cose.signature.invalid"):
        verify_es384(signed(), ec.generate_private_key(ec.SECP384R1()).public_key())


@given(st.data())
def test_raises_nothing_but_our_error(data: st.DataObject) -> None:
    raw = bytearray(encoded(signed()))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidEvidence):
        verify_es384(parse_sign1(bytes(raw)), KEY.public_key())
