"""Nitro documents, refused by code. The documents are made here, in the byte format of a real module."""

from collections.abc import Callable
from functools import partial
from typing import Any

import cbor2
import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from hypothesis import given

from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm, sign_document
from shared.attestation.cbor import decode_strict
from shared.attestation.chain import ChainCache
from shared.attestation.cose import P384_ORDER, parse_sign1
from shared.attestation.endorsements import Endorsements
from shared.attestation.nitro import VerifiedNitroDocument, parse_document, verify_document
from shared.attestation.policy import NitroPolicy, Revocation
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import DROP, NOW, PCRS, REPORT_DATA, Forge, refuses

Verify = Callable[..., VerifiedNitroDocument]


@pytest.fixture
def verify(forge: Forge) -> Verify:
    """`verify_document` at the time and under the anchor of the forged evidence."""
    return partial(verify_document, now=NOW, anchors=forge.anchors)


def test_a_document_verifies_and_names_its_simulated_anchor(forge: Forge, verify: Verify) -> None:
    verified = verify(forge.document(), report_data=REPORT_DATA)
    assert verified.document.pcrs == PCRS
    assert verified.document.user_data == REPORT_DATA
    assert verified.anchor.startswith("external-")
    assert verified.simulated


def test_a_document_verifies_under_tag_18(forge: Forge, verify: Verify) -> None:
    assert verify(b"\xd2" + forge.document()).simulated


def test_a_definite_payload_map_verifies_too(forge: Forge, verify: Verify) -> None:
    assert parse_sign1(forge.document()).payload[:1] == b"\xbf"
    assert verify(forge.resigned(cbor2.dumps(forge.payload()))).simulated


def test_absent_optional_fields_are_none(forge: Forge, verify: Verify) -> None:
    document = verify(forge.document(user_data=DROP, nonce=DROP, public_key=DROP)).document
    assert (document.user_data, document.nonce, document.public_key) == (None, None, None)


# --- N-01, N-02, N-03: encoding ---


def test_n01_refuses_bytes_after_the_document(forge: Forge, verify: Verify) -> None:
    with refuses("cbor.trailing"):
        verify(forge.document() + b"\x00")


def test_n01_refuses_bytes_after_the_payload(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document()).payload
    with refuses("cbor.trailing"):
        verify(forge.resigned(payload + b"\x00"))


def test_n01_refuses_bytes_after_a_certificate(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.chain.malformed"):
        verify(forge.document(certificate=forge.made["leaf"].der + b"\x00"))


def test_n02_refuses_duplicate_fields(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document()).payload
    twice = payload[:-1] + cbor2.dumps("digest") + cbor2.dumps("SHA384") + b"\xff"
    with refuses("cbor.duplicate"):
        verify(forge.resigned(twice))


def test_n02_refuses_duplicate_pcr_indexes(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document()).payload
    one = cbor2.dumps(0) + cbor2.dumps(b"\xa0" * 48)
    assert one in payload
    twice = payload.replace(b"\xb0" + one, b"\xb1" + one + one)
    with refuses("cbor.duplicate"):
        verify(forge.resigned(twice))


def test_n02_refuses_an_indefinite_map_inside(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document()).payload
    pcrs = cbor2.dumps(forge.payload()["pcrs"])
    with refuses("cbor.indefinite"):
        verify(forge.resigned(payload.replace(pcrs, b"\xbf" + pcrs[1:] + b"\xff")))


def test_n02_refuses_a_timestamp_in_a_longer_form(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document(timestamp=1)).payload
    with refuses("cbor.minimal"):
        verify(forge.resigned(payload.replace(b"timestamp\x01", b"timestamp\x18\x01")))


def test_n03_refuses_a_pcr_longer_than_the_document(forge: Forge, verify: Verify) -> None:
    payload = parse_sign1(forge.document()).payload
    huge = payload.replace(b"\x58\x30" + b"\xa0" * 48, b"\x5a\xff\xff\xff\xff" + b"\xa0" * 48)
    with refuses("cbor.length"):
        verify(forge.resigned(huge))


# --- fields ---


REQUIRED = {
    "module_id": str,
    "digest": str,
    "timestamp": int,
    "pcrs": dict,
    "certificate": bytes,
    "cabundle": list,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, kind in REQUIRED.items()
        for value in (None, True, b"", 7, "text", [], {})
        if type(value) is not kind
    ],
)
def test_refuses_a_required_field_of_another_type(name: str, value: object, forge: Forge) -> None:
    with refuses("nitro.field"):
        parse_document(forge.document(**{name: value}))


@pytest.mark.parametrize("name", REQUIRED)
def test_refuses_a_missing_field(name: str, forge: Forge) -> None:
    with refuses("nitro.field"):
        parse_document(forge.document(**{name: DROP}))


def test_refuses_a_field_that_it_does_not_know(forge: Forge) -> None:
    with refuses("nitro.field"):
        parse_document(forge.document(nitrotpm_pcrs={}))


def test_refuses_a_payload_that_is_no_map(forge: Forge) -> None:
    with refuses("nitro.payload"):
        parse_document(forge.resigned(b"\x80"))


def test_refuses_a_negative_timestamp(forge: Forge) -> None:
    for timestamp in (-1, 1 << 63):
        with refuses("nitro.field"):
            parse_document(forge.document(timestamp=timestamp))


@pytest.mark.parametrize("digest", ["SHA256", "sha384", ""])
def test_n33_refuses_another_digest(digest: str, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.digest"):
        verify(forge.document(digest=digest))


@pytest.mark.parametrize("length", [0, 32, 47, 49, 64])
def test_n33_refuses_a_pcr_of_another_length(length: int, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.pcr.length"):
        verify(forge.document(pcrs={**PCRS, 7: bytes(length)}))


def test_n33_refuses_a_pcr_that_is_no_bytes(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.pcr.length"):
        verify(forge.document(pcrs={**PCRS, 7: "a" * 48}))


@pytest.mark.parametrize("index", [32, 255, -1, "0"])
def test_refuses_a_pcr_index_that_no_module_has(index: int, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.pcr.index"):
        verify(forge.document(pcrs={**PCRS, index: bytes(48)}))


@pytest.mark.parametrize(("name", "limit"), [("user_data", 512), ("nonce", 512), ("public_key", 1024)])
def test_n33_refuses_oversize_fields(name: str, limit: int, forge: Forge, verify: Verify) -> None:
    assert verify(forge.document(**{name: bytes(limit)})).simulated
    with refuses(f"nitro.{name}.size"):
        verify(forge.document(**{name: bytes(limit + 1)}))


@pytest.mark.parametrize("name", ["user_data", "nonce", "public_key"])
def test_refuses_optional_fields_of_another_type(name: str, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.field"):
        verify(forge.document(**{name: "text"}))


@pytest.mark.parametrize("size", [0, 1025])
def test_refuses_certificates_of_an_impossible_size(size: int, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.certificate.size"):
        verify(forge.document(certificate=bytes(size)))
    with refuses("nitro.certificate.size"):
        verify(forge.document(cabundle=[*forge.bundle, bytes(size)]))


def test_refuses_a_certificate_that_is_no_bytes(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.field"):
        verify(forge.document(cabundle=[*forge.bundle, "text"]))


@pytest.mark.parametrize("count", [0, 10])
def test_refuses_an_empty_or_endless_cabundle(count: int, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.chain.length"):
        verify(forge.document(cabundle=forge.bundle[:1] * count))


# --- freshness ---


def test_n33_refuses_a_document_older_than_an_hour(forge: Forge, verify: Verify) -> None:
    assert verify(forge.document(timestamp=(NOW - 3600) * 1000)).valid_until == NOW + 1
    with refuses("nitro.stale"):
        verify(forge.document(timestamp=(NOW - 3600) * 1000 - 1))


def test_n33_refuses_a_document_from_the_future(forge: Forge, verify: Verify) -> None:
    assert verify(forge.document(timestamp=(NOW + 300) * 1000)).simulated
    with refuses("nitro.future"):
        verify(forge.document(timestamp=(NOW + 300) * 1000 + 1))


def test_a_policy_may_be_stricter(forge: Forge, verify: Verify) -> None:
    policy = NitroPolicy(max_age=60, max_future=0)
    with refuses("nitro.stale"):
        verify(forge.document(timestamp=(NOW - 61) * 1000), policy=policy)
    with refuses("nitro.future"):
        verify(forge.document(timestamp=NOW * 1000 + 1), policy=policy)


def test_valid_until_ends_with_the_chain() -> None:
    forge = Forge(leaf={"not_after": NOW + 5})
    verified = verify_document(forge.document(), now=NOW, anchors=forge.anchors)
    assert verified.valid_until == NOW + 6


# --- N-30: debug ---


@pytest.mark.parametrize("zero", [(0, 1, 2), (0,), (1,), (2,)])
def test_n30_refuses_zero_pcrs(zero: tuple[int, ...], forge: Forge, verify: Verify) -> None:
    with refuses("nitro.debug"):
        verify(forge.document(pcrs={**PCRS, **dict.fromkeys(zero, bytes(48))}))


def test_n30_refuses_zero_pcrs_although_everything_else_is_expected(forge: Forge, verify: Verify) -> None:
    document = forge.document(pcrs={**PCRS, **dict.fromkeys((0, 1, 2), bytes(48))})
    with refuses("nitro.debug"):
        verify(document, report_data=REPORT_DATA, policy=NitroPolicy(max_age=1 << 40, max_future=1 << 40))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_n30_refuses_a_missing_image_register(index: int, forge: Forge, verify: Verify) -> None:
    with refuses("nitro.pcr.missing"):
        verify(forge.document(pcrs={i: value for i, value in PCRS.items() if i != index}))
    with refuses("nitro.pcr.missing"):
        verify(forge.document(pcrs={}))


def test_n30_the_policy_has_no_switch_for_debug() -> None:
    assert set(NitroPolicy.__struct_fields__) == {"max_age", "max_future", "revocation"}


# --- N-31: chain, inside a document ---


def test_n31_ignores_an_attackers_root_in_the_first_place(forge: Forge, verify: Verify) -> None:
    attacker = Forge().made["root"].der
    assert verify(forge.document(cabundle=[attacker, *forge.bundle[1:]])).anchor.startswith("external-")


def test_n31_ignores_garbage_in_the_first_place(forge: Forge, verify: Verify) -> None:
    assert verify(forge.document(cabundle=[b"not a certificate", *forge.bundle[1:]])).simulated


def test_n31_refuses_an_attackers_whole_chain(verify: Verify) -> None:
    with refuses("nitro.chain.signature"):
        verify(Forge().document())


def test_n31_refuses_a_chain_in_the_wrong_order(forge: Forge, verify: Verify) -> None:
    root, region, zone, instance = forge.bundle
    with refuses("nitro.chain.name"):
        verify(forge.document(cabundle=[root, region, instance, zone]))
    with refuses("nitro.chain.anchor"):
        verify(forge.document(cabundle=[instance, zone, region, root]))


def test_n31_refuses_an_extra_certificate(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.chain.name"):
        verify(forge.document(cabundle=[*forge.bundle, forge.bundle[-1]]))


def test_n31_refuses_a_leaf_with_the_ca_bit() -> None:
    forge = Forge(leaf={"ca": True, "usage": ("digital_signature",)})
    with refuses("nitro.chain.leaf_is_ca"):
        verify_document(forge.document(), now=NOW, anchors=forge.anchors)


def test_n31_refuses_a_chain_that_was_valid_only_at_the_documents_time() -> None:
    """The chain is judged at verification time, although the document itself is fresh enough."""
    forge = Forge(leaf={"not_after": NOW - 10})
    document = forge.document(timestamp=(NOW - 20) * 1000)
    assert verify_document(document, now=NOW - 20, anchors=forge.anchors).simulated
    with refuses("nitro.chain.expired"):
        verify_document(document, now=NOW, anchors=forge.anchors)


# --- N-32: signature ---


def test_n32_refuses_another_algorithm(forge: Forge, verify: Verify) -> None:
    message = parse_sign1(forge.document())
    other = cbor2.dumps([cbor2.dumps({1: -7}), {}, message.payload, message.signature])
    with refuses("cose.algorithm"):
        verify(other)


def test_n32_refuses_an_altered_protected_header(forge: Forge, verify: Verify) -> None:
    message = parse_sign1(forge.document())
    other = cbor2.dumps([cbor2.dumps({1: -35, 2: [1]}), {}, message.payload, message.signature])
    with refuses("cose.signature.invalid"):
        verify(other)


def test_n32_refuses_a_der_signature(forge: Forge, verify: Verify) -> None:
    message = parse_sign1(forge.document())

    der = forge.made["leaf"].key.sign(message.signed_text, ec.ECDSA(SHA384()))
    with refuses("cose.signature.length"):
        verify(cbor2.dumps([message.protected, {}, message.payload, der]))


@pytest.mark.parametrize("half", [0, 48])
@pytest.mark.parametrize("value", ["zero", "order"])
def test_n32_refuses_r_or_s_outside_the_group(half: int, value: object, forge: Forge, verify: Verify) -> None:

    message = parse_sign1(forge.document())
    number = bytes(48) if value == "zero" else P384_ORDER.to_bytes(48, "big")
    signature = message.signature[:half] + number + message.signature[half + 48 :]
    with refuses("cose.signature.range"):
        verify(cbor2.dumps([message.protected, {}, message.payload, signature]))


def test_n32_refuses_a_reencoded_payload(forge: Forge, verify: Verify) -> None:
    message = parse_sign1(forge.document())
    fields = decode_strict(message.payload, indefinite_top_map=True)
    with refuses("cose.signature.invalid"):
        verify(cbor2.dumps([message.protected, {}, cbor2.dumps(fields), message.signature]))


def test_n32_refuses_a_document_signed_by_the_instance_instead_of_the_leaf(
    forge: Forge, verify: Verify
) -> None:
    with refuses("cose.signature.invalid"):
        verify(sign_document(forge.payload(), forge.made["instance"].key))


# --- N-34: expectations ---


@pytest.mark.parametrize("name", ["report_data", "nonce", "public_key"])
def test_n34_accepts_the_expected_value(name: str, forge: Forge, verify: Verify) -> None:
    field = "user_data" if name == "report_data" else name
    assert verify(forge.document(**{field: b"expected"}), **{name: b"expected"}).simulated


@pytest.mark.parametrize("name", ["report_data", "nonce", "public_key"])
@pytest.mark.parametrize("value", [None, b"", b"other", b"expected0"])
def test_n34_refuses_an_absent_or_different_value(
    name: str, value: object, forge: Forge, verify: Verify
) -> None:
    field = "user_data" if name == "report_data" else name
    with refuses(f"nitro.{field}"):
        verify(forge.document(**{field: value}), **{name: b"expected"})


# --- the cache changes no answer ---


def test_a_warm_cache_refuses_what_a_cold_one_refuses(forge: Forge, verify: Verify) -> None:
    cache = ChainCache()
    assert verify(forge.document(), chain_cache=cache).simulated
    assert verify(forge.document(), chain_cache=cache).simulated
    with refuses("nitro.debug"):
        verify(forge.document(pcrs=dict.fromkeys(PCRS, bytes(48))), chain_cache=cache)
    with refuses("nitro.stale"):
        verify(forge.document(), chain_cache=cache, now=NOW + 3601)
    with refuses("cose.signature.invalid"):
        verify(sign_document(forge.payload(), forge.made["instance"].key), chain_cache=cache)


@given(st.data())
def test_a_damaged_document_raises_nothing_but_our_error(forge: Forge, data: st.DataObject) -> None:
    document = forge.document()
    raw = bytearray(document)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if raw == document:
        return
    try:
        parse_document(bytes(raw))
    except InvalidEvidence:
        return
    with pytest.raises(InvalidEvidence):
        verify_document(bytes(raw), now=NOW, anchors=forge.anchors)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    for cose in (data, b"\x84" + data):
        with pytest.raises(InvalidEvidence):
            parse_document(cose)


# --- N-35: revocation ---


class Listed:
    """An enclave's document under an authority with lists."""

    def __init__(self) -> None:
        self.authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(self.authority.root_pem)
        pcrs = {index: PCRS[index] for index in (0, 1, 2)}
        self.cose = Nsm(SimulatedNsm(pcrs, self.authority, clock=lambda: NOW)).attestation()

    def verify(
        self, crls: tuple[bytes, ...], mode: Revocation = Revocation.IF_AVAILABLE, **changes: Any
    ) -> VerifiedNitroDocument:
        arguments = {"now": NOW, "anchors": self.anchors, **changes}
        policy = NitroPolicy(revocation=mode)
        return verify_document(self.cose, policy=policy, endorsements=Endorsements(crls=crls), **arguments)


@pytest.fixture(scope="module")
def listed() -> Listed:
    return Listed()


def test_n35_a_document_without_lists_says_so(listed: Listed) -> None:
    lane = listed.verify(()).revocation.lane
    assert (lane.status, lane.reason) == (Status.SKIPPED, "no revocation list was given")
    with refuses("crl.missing"):
        listed.verify((), Revocation.REQUIRED)


def test_n35_current_lists_are_looked_at_and_bound_the_verdict(listed: Listed) -> None:
    verified = listed.verify(listed.authority.crls(NOW - 7 * 86_400 + 60), Revocation.REQUIRED)
    assert verified.revocation.lane.status is Status.VERIFIED
    assert verified.valid_until == NOW + 60 + 1
    assert listed.verify(listed.authority.crls(NOW)).valid_until == NOW + 3600 + 1


@pytest.mark.parametrize("level", [1, 2], ids=["region", "zone"])
def test_n35_refuses_a_revoked_authority(listed: Listed, level: int) -> None:
    serial = listed.authority.chain[level].serial_number
    for mode in (Revocation.IF_AVAILABLE, Revocation.REQUIRED):
        with refuses("crl.revoked"):
            listed.verify(listed.authority.crls(NOW, (serial,)), mode)
    turned_off = listed.verify(listed.authority.crls(NOW, (serial,)), Revocation.OFF)
    assert turned_off.revocation.lane.reason == "turned off by the policy"


def test_n35_refuses_lists_that_are_over_where_they_are_required(listed: Listed) -> None:
    old = listed.authority.crls(NOW - 8 * 86_400)
    with refuses("crl.expired"):
        listed.verify(old, Revocation.REQUIRED)
    assert "its list ended" in listed.verify(old).revocation.lane.reason


def test_n35_lists_of_another_authority_do_not_count(listed: Listed) -> None:
    with refuses("crl.signature"):
        listed.verify(SimulatedAuthority.create().crls(NOW), Revocation.REQUIRED)


def test_a_remembered_chain_is_checked_against_new_lists(listed: Listed) -> None:
    cache = ChainCache()
    serial = listed.authority.chain[2].serial_number
    for _ in range(2):
        verified = listed.verify(listed.authority.crls(NOW), chain_cache=cache)
        assert verified.revocation.lane.status is Status.VERIFIED
    assert len(cache.revocation.links) == 1
    with refuses("crl.revoked"):
        listed.verify(listed.authority.crls(NOW, (serial,)), chain_cache=cache)
