from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import hypothesis.strategies as st
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given

from shared.attestation.certificate import MAX_CERTIFICATE, Certificate, p384_key
from shared.attestation.chain import MAX_INTERMEDIATES, ChainCache, VerifiedLeaf, verify_leaf
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import NOW, Forge, Link, refuses


def verify(
    forge: Forge,
    now: int,
    cache: ChainCache | None = None,
    intermediates: Sequence[bytes] | None = None,
    leaf: bytes | None = None,
    anchors: TrustAnchors | None = None,
) -> VerifiedLeaf:
    return verify_leaf(
        forge.made["leaf"].der if leaf is None else leaf,
        tuple(forge.bundle[1:]) if intermediates is None else tuple(intermediates),
        now=now,
        anchors=(anchors or forge.anchors).nitro,
        cache=cache,
    )


def test_returns_the_leafs_key_the_anchor_and_the_earliest_end() -> None:
    forge = Forge(zone={"not_after": NOW + 100})
    leaf = verify(forge, NOW)
    expected = forge.made["leaf"].key.public_key()
    assert leaf.key == expected
    assert leaf.anchor == forge.anchors.nitro[-1]
    assert leaf.not_after == NOW + 100


def test_a_chain_without_intermediates_still_needs_a_leaf(forge: Forge) -> None:
    with refuses("nitro.chain.leaf_is_ca"):
        verify(forge, NOW, intermediates=(), leaf=forge.made["region"].der)


def test_n31_refuses_a_chain_under_no_anchor(forge: Forge) -> None:
    with refuses("nitro.chain.anchor"):
        verify(forge, NOW, anchors=TrustAnchors.production())


def test_n31_refuses_an_attackers_root_with_the_anchors_name(forge: Forge) -> None:
    attacker = Forge()
    with refuses("nitro.chain.signature"):
        verify(attacker, NOW, anchors=forge.anchors)


def test_finds_the_right_one_of_two_anchors_with_one_name(forge: Forge) -> None:
    other = Forge()
    for first, second in ((forge, other), (other, forge)):
        anchors = TrustAnchors.production().with_extra(first.made["root"].pem + second.made["root"].pem)
        assert verify(forge, NOW, anchors=anchors).anchor == forge.anchors.nitro[-1]


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_n31_refuses_a_chain_in_the_wrong_order(order: tuple[int, ...], forge: Forge) -> None:
    cas = forge.bundle[1:]
    code = "nitro.chain.anchor" if order[0] else "nitro.chain.name"
    with refuses(code):
        verify(forge, NOW, intermediates=[cas[index] for index in order])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_n31_refuses_an_extra_certificate(at: int, forge: Forge) -> None:
    cas = forge.bundle[1:]
    with refuses("nitro.chain.name"):
        verify(forge, NOW, intermediates=[*cas[:at], cas[at - 1], *cas[at:]])


@pytest.mark.parametrize("at", [0, 1, 2])
def test_n31_refuses_a_missing_certificate(at: int, forge: Forge) -> None:
    cas = forge.bundle[1:]
    with refuses("nitro.chain.anchor" if at == 0 else "nitro.chain.name"):
        verify(forge, NOW, intermediates=cas[:at] + cas[at + 1 :])


def test_n31_refuses_a_root_sent_as_an_intermediate(forge: Forge) -> None:
    """A self-issued root is by name the anchor's child, so it is walked, and spends no one's trust."""
    result = verify(forge, NOW, intermediates=forge.bundle)
    assert result.anchor == forge.anchors.nitro[-1]
    with refuses("nitro.chain.name"):
        verify(forge, NOW, intermediates=[*forge.bundle[1:], forge.bundle[0]])


def test_n31_refuses_more_intermediates_than_are_read(forge: Forge) -> None:
    with refuses("nitro.chain.length"):
        verify(forge, NOW, intermediates=[forge.bundle[1]] * (MAX_INTERMEDIATES + 1))


def test_n31_refuses_a_leaf_with_the_ca_bit() -> None:
    forge = Forge(leaf={"ca": True, "usage": ("digital_signature", "key_cert_sign")})
    with refuses("nitro.chain.leaf_is_ca"):
        verify(forge, NOW)


@pytest.mark.parametrize("level", ["region", "zone", "instance"])
def test_n31_refuses_an_intermediate_without_the_ca_bit(level: str) -> None:
    for fault in ({"ca": False}, {"basic": False}):
        with refuses("nitro.chain.not_ca"):
            verify(Forge(**{level: fault}), NOW)


@pytest.mark.parametrize(("level", "limit"), [("region", 1), ("region", 0), ("zone", 0)])
def test_n31_refuses_a_chain_beyond_a_path_length(level: str, limit: int) -> None:
    with refuses("nitro.chain.path_length"):
        verify(Forge(**{level: {"path_length": limit}}), NOW)


def test_a_path_length_further_up_is_not_widened_below() -> None:
    forge = Forge(region={"path_length": 1}, zone={"path_length": 5}, instance={"path_length": 5})
    with refuses("nitro.chain.path_length"):
        verify(forge, NOW)


def test_intermediates_without_path_lengths_verify() -> None:
    forge = Forge(**{level: {"path_length": None} for level in ("region", "zone", "instance")})
    assert verify(forge, NOW).key


@pytest.mark.parametrize("level", ["region", "zone", "instance"])
@pytest.mark.parametrize("usage", [None, ("digital_signature", "crl_sign")])
def test_refuses_an_intermediate_that_may_not_sign_certificates(
    level: str, usage: tuple[str, ...] | None
) -> None:
    with refuses("nitro.chain.key_usage"):
        verify(Forge(**{level: {"usage": usage}}), NOW)


@pytest.mark.parametrize("usage", [None, ("content_commitment",), ("key_cert_sign",)])
def test_refuses_a_leaf_that_may_not_make_signatures(usage: tuple[str, ...] | None) -> None:
    with refuses("nitro.chain.key_usage"):
        verify(Forge(leaf={"usage": usage}), NOW)


@pytest.mark.parametrize("level", ["instance", "leaf"])
def test_refuses_an_extended_key_usage_without_client_authentication(level: str) -> None:
    with refuses("nitro.chain.eku"):
        verify(Forge(**{level: {"eku": ExtendedKeyUsageOID.SERVER_AUTH}}), NOW)
    assert verify(Forge(**{level: {"eku": ExtendedKeyUsageOID.CLIENT_AUTH}}), NOW).key


@pytest.mark.parametrize("level", ["region", "leaf"])
def test_refuses_an_unknown_critical_extension(level: str) -> None:
    with refuses("nitro.chain.critical"):
        verify(Forge(**{level: {"critical": True}}), NOW)


@pytest.mark.parametrize("level", ["region", "zone", "instance", "leaf"])
def test_n31_refuses_a_certificate_that_expired_before_now(level: str) -> None:
    forge = Forge(**{level: {"not_after": NOW - 1}})
    with refuses("nitro.chain.expired"):
        verify(forge, NOW)
    assert verify(forge, NOW - 1).key


@pytest.mark.parametrize("level", ["region", "zone", "instance", "leaf"])
def test_n31_refuses_a_certificate_that_is_not_yet_valid(level: str) -> None:
    with refuses("nitro.chain.not_yet_valid"):
        verify(Forge(**{level: {"not_before": NOW + 1}}), NOW)


def test_n31_refuses_an_expired_anchor() -> None:
    with refuses("nitro.chain.expired"):
        verify(Forge(root={"not_after": NOW - 1}), NOW)


@pytest.mark.parametrize("level", ["region", "zone", "instance", "leaf"])
def test_refuses_a_certificate_signed_by_another_key(level: str) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    with refuses("nitro.chain.signature"):
        verify(Forge(**{level: {"signer": stranger}}), NOW)


@pytest.mark.parametrize("level", ["region", "leaf"])
def test_refuses_a_key_of_another_curve(level: str) -> None:
    with refuses("nitro.chain.key"):
        verify(Forge(**{level: {"curve": ec.SECP256R1()}}), NOW)


@pytest.mark.parametrize("level", ["region", "leaf"])
def test_refuses_a_signature_over_another_hash(level: str) -> None:
    with refuses("nitro.chain.algorithm"):
        verify(Forge(**{level: {"hash": SHA256()}}), NOW)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_n01_refuses_bytes_after_an_intermediate(level: str, forge: Forge) -> None:
    bundle = forge.bundle
    bundle[level] += b"\x00"
    with refuses("nitro.chain.malformed"):
        verify(forge, NOW, intermediates=bundle[1:])


def test_n01_refuses_bytes_after_the_leaf(forge: Forge) -> None:
    with refuses("nitro.chain.malformed"):
        verify(forge, NOW, leaf=forge.made["leaf"].der + b"\x00")


# --- cache ---


def test_a_cached_path_gives_the_same_answer(forge: Forge) -> None:
    cache = ChainCache()
    cold, warm = (verify(forge, NOW, cache) for _ in range(2))
    assert (cold.anchor, cold.not_after) == (warm.anchor, warm.not_after)
    assert (len(cache.paths), len(cache.leaves)) == (3, 1)  # region; and zone; and instance


def test_a_cached_path_is_not_used_outside_its_validity() -> None:
    forge = Forge(zone={"not_after": NOW + 10})
    cache = ChainCache()
    verify(forge, NOW, cache)
    with refuses("nitro.chain.expired"):
        verify(forge, NOW + 11, cache)
    with refuses("nitro.chain.not_yet_valid"):
        verify(forge, NOW - 3601, cache)


def test_a_cached_leaf_is_not_used_outside_its_own_validity(forge: Forge) -> None:
    cache = ChainCache()
    end = verify(forge, NOW, cache).not_after
    shorter = Forge(leaf={"not_after": NOW + 10})
    verify(shorter, NOW, cache)
    assert verify(forge, end, cache).key
    with refuses("nitro.chain.expired"):
        verify(shorter, NOW + 11, cache)


def test_a_cached_chain_is_not_an_intermediate_path(forge: Forge) -> None:
    """The same certificates once as a chain with its leaf, once as intermediates, are two things."""
    cache = ChainCache()
    verify(forge, NOW, cache)
    beyond = [*forge.bundle[1:], forge.made["leaf"].der]
    with refuses("nitro.chain.not_ca"):
        verify(forge, NOW, cache, intermediates=beyond)


def test_a_cached_path_is_not_used_for_other_anchors(forge: Forge) -> None:
    cache = ChainCache()
    verify(forge, NOW, cache)
    with refuses("nitro.chain.anchor"):
        verify(forge, NOW, cache, anchors=TrustAnchors.production())


def test_a_leaf_is_verified_although_its_path_is_cached(forge: Forge) -> None:
    cache = ChainCache()
    verify(forge, NOW, cache)
    with refuses("nitro.chain.signature"):
        verify(forge, NOW, cache, leaf=Forge().made["leaf"].der)


def another_instance(forge: Forge) -> tuple[bytes, bytes]:
    """Return the certificates of an instance in the same zone, and of what signs on it."""
    instance = forge.issued("zone", name="other.forged", path_length=0)
    issuer = instance.certificate.subject, instance.key
    return instance.der, Link(name="leaf.forged", ca=False, usage=("digital_signature",)).make(issuer).der


def test_the_upper_part_of_a_cached_path_serves_other_instances(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ChainCache()
    verify(forge, NOW, cache)
    instance, leaf = another_instance(forge)
    anchors = forge.anchors
    read: list[bytes] = []
    parse = Certificate.parse

    def noted(der: bytes) -> Certificate:
        read.append(der)
        return parse(der)

    monkeypatch.setattr(Certificate, "parse", noted)
    intermediates = [*forge.bundle[1:3], instance]
    assert verify(forge, NOW, cache, intermediates=intermediates, leaf=leaf, anchors=anchors).key
    assert read == [leaf, instance]


def test_below_the_upper_part_of_a_cached_path_everything_is_verified(forge: Forge) -> None:
    cache = ChainCache()
    verify(forge, NOW, cache)
    with refuses("nitro.chain.signature"):
        verify(forge, NOW, cache, intermediates=[*forge.bundle[1:3], Forge().bundle[3]])


def test_the_upper_part_of_a_cached_path_is_not_used_outside_its_validity() -> None:
    forge = Forge(zone={"not_after": NOW + 10})
    cache = ChainCache()
    verify(forge, NOW, cache)
    with refuses("nitro.chain.expired"):
        instance, leaf = another_instance(forge)
        verify(forge, NOW + 11, cache, intermediates=[*forge.bundle[1:3], instance], leaf=leaf)


def test_the_upper_part_of_a_cached_path_keeps_its_path_length() -> None:
    forge = Forge(zone={"path_length": 0})
    cache = ChainCache()
    leaf = forge.issued("zone", name="leaf.forged", ca=False, usage=("digital_signature",)).der
    assert verify(forge, NOW, cache, intermediates=forge.bundle[1:3], leaf=leaf).key
    with refuses("nitro.chain.path_length"):
        verify(forge, NOW, cache)


def test_an_altered_intermediate_misses_the_cache(forge: Forge) -> None:
    cache = ChainCache()
    verify(forge, NOW, cache)
    altered = bytearray(forge.bundle[2])
    altered[-1] ^= 1
    with refuses("nitro.chain.signature"):
        verify(forge, NOW, cache, intermediates=[forge.bundle[1], bytes(altered), forge.bundle[3]])


def test_a_refused_path_is_not_cached() -> None:
    cache = ChainCache()
    with refuses("nitro.chain.not_ca"):
        verify(Forge(zone={"ca": False}), NOW, cache)
    assert (len(cache.paths), len(cache.leaves)) == (0, 0)


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = ChainCache(size=2)
    first, second, third = (Forge() for _ in range(3))
    for forge in (first, second, first, third):
        verify(forge, NOW, cache)
    held = [
        cache.leaves.find((f.anchors.nitro, (*f.bundle[1:], f.made["leaf"].der)), NOW) is not None
        for f in (first, second, third)
    ]
    assert held == [True, False, True]


# --- one certificate ---


@given(st.data())
def test_a_damaged_certificate_raises_nothing_but_our_error(forge: Forge, data: st.DataObject) -> None:
    der = bytearray(data.draw(st.sampled_from([forge.made["leaf"].der, forge.made["zone"].der])))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        certificate = Certificate.parse(bytes(der))
        certificate.constraints()
        certificate.key()
    except InvalidEvidence:
        return
    assert certificate.der == der
    assert certificate.name


@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    for der in (data, b"\x30" + bytes([len(data) % 128]) + data):
        with pytest.raises(InvalidEvidence):
            Certificate.parse(der)


@pytest.mark.parametrize(
    ("alter", "code"),
    [
        (lambda d: d + bytes(MAX_CERTIFICATE), "nitro.chain.malformed"),
        (lambda _: b"", "nitro.chain.malformed"),
        (lambda d: d[:-1], "nitro.chain.malformed"),
        (lambda d: d[:200], "nitro.chain.malformed"),
        (lambda d: d[:1] + b"\x83\x00" + d[2:], "nitro.chain.malformed"),
        (lambda d: d[:1] + b"\x80" + d[2:], "nitro.chain.malformed"),
        (lambda _: b"\x30\x81\x10" + bytes(16), "nitro.chain.malformed"),
        (lambda _: b"\x30\x82\x00\x90" + bytes(0x90), "nitro.chain.malformed"),
        (lambda _: b"\x30\x82\x01", "nitro.chain.malformed"),
        (
            lambda d: d.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101")),
            "nitro.chain.malformed",
        ),
    ],
)
def test_refuses_malformed_der(alter: Callable[[bytes], bytes], code: str, forge: Forge) -> None:
    with refuses(code):
        Certificate.parse(alter(forge.made["leaf"].der))


def test_refuses_a_signature_that_does_not_fill_its_bytes(forge: Forge) -> None:
    certificate = forge.made["leaf"]
    signature = certificate.certificate.signature
    der = certificate.der.replace(b"\x00" + signature, b"\x01" + signature)
    assert der != certificate.der
    with refuses("nitro.chain.malformed"):
        Certificate.parse(der)


def test_refuses_extensions_that_occur_twice(forge: Forge) -> None:
    key_usage, basic_constraints = bytes.fromhex("0603551d0f"), bytes.fromhex("0603551d13")
    certificate = Certificate.parse(forge.made["zone"].der.replace(key_usage, basic_constraints))
    with refuses("nitro.chain.malformed"):
        certificate.constraints()


def test_an_unreadable_name_does_not_hide_the_refusal(forge: Forge) -> None:
    name = b"zone.forged"
    certificate = Certificate.parse(forge.made["zone"].der.replace(name, b"\xff" * len(name)))
    assert certificate.name == "unreadable name"
    with refuses("nitro.chain.expired"):
        certificate.check_validity(certificate.not_after + 1)


def test_refuses_a_serial_number_that_is_not_positive(forge: Forge) -> None:
    der = forge.made["leaf"].der
    at = der.index(bytes.fromhex("a003020102")) + 5
    length = der[at + 1]
    for serial in (b"\xff" + der[at + 3 : at + 2 + length], bytes(length)):
        with refuses("nitro.chain.malformed"):
            Certificate.parse(der[: at + 2] + serial + der[at + 2 + length :])


def test_refuses_a_point_that_is_not_on_the_curve(forge: Forge) -> None:
    spki = Certificate.parse(forge.made["leaf"].der).spki
    with refuses("nitro.chain.key"):
        p384_key(spki[:-1] + bytes([spki[-1] ^ 1]))


def test_names_a_certificate_without_a_common_name() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "nobody")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
        .sign(key, SHA384())
    )
    assert Certificate.parse(certificate.public_bytes(Encoding.DER)).name == "O=nobody"
