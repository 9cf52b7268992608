"""TPM structures, revocation lists, attestation-key certificates and whole GCP evidence, from bad bytes."""

import hypothesis.strategies as st
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.attestation.ak_chain import ca_issuers_urls, crl_urls, is_issued_by, read_ak, verify_ak_chain
from shared.attestation.crl import RevocationList, issuer_of
from shared.attestation.envelope import GcpTdxQuote, PcrValue, TdxQuote, TpmEvent, TpmQuote
from shared.attestation.gcp import precheck_gcp, verify_gcp
from shared.attestation.issuer_key import load_key
from shared.attestation.nitro_tpm import verify_nitro_tpm
from shared.attestation.policy import Revocation
from shared.attestation.revocation import check_revocation
from shared.attestation.tpm_quote import parse_attest, parse_signature, verify_quote
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.attestation.forgery import NOW, Forge
from tests.shared.attestation.gcp_forgery import EVENTS, GcpForge
from tests.shared.attestation.test_crl import HTTP, certificate, der, listed, partition
from tests.shared.attestation.test_nitro_tpm import document

GCP, RSA, NITRO = GcpForge(), GcpForge(rsa_keys=True), Forge()
TPM, RSA_TPM = GCP.tpm(), RSA.tpm()
ENDORSEMENTS = GCP.endorsements
LISTS = [*ENDORSEMENTS.crls, listed(revoked=(1, 2, 3)), listed((partition(HTTP, users=True), True))]
CERTIFICATES = [
    TPM.ak_cert,
    RSA_TPM.ak_cert,
    GCP.google.intermediate.der,
    RSA.google.root.der,
    der(certificate(HTTP, issuers=(HTTP,))),
]
KEYS = [
    key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for key in (
        rsa.generate_private_key(public_exponent=0x10001, key_size=2048).public_key(),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ec.generate_private_key(ec.SECP384R1()).public_key(),
    )
]
CHAIN = verify_ak_chain(TPM.ak_cert, ENDORSEMENTS.certificates, now=NOW, anchors=GCP.anchors.gcp_tpm)
DOCUMENT = document(NITRO)


def _near(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    return mutated(valid) | st.binary(max_size=2048)


@fuzz(_near([TPM.message]))
def test_tpms_attest(data: bytes) -> None:
    """A quote's structure is read to its last byte or refused."""
    read = outcome(parse_attest, data)
    assert read is None or sum(len(bank.indexes) for bank in read.selections) <= 16 * 24


@fuzz(_near([TPM.signature, RSA_TPM.signature]))
def test_tpmt_signature(data: bytes) -> None:
    """A signature is read and judged, whatever its bytes."""
    read = outcome(parse_signature, data)
    if read is not None:
        for forge, message in ((GCP, TPM.message), (RSA, RSA_TPM.message)):
            outcome(verify_quote, message, read, forge.key.public_key())


@fuzz(_near(LISTS))
def test_revocation_list(data: bytes) -> None:
    """A list is read, and a chain judged by it, or refused."""
    read = outcome(RevocationList.parse, data)
    issuer = outcome(issuer_of, data)
    assert read is None or read.issuer == issuer
    if read is not None:
        read.is_signed_by(CHAIN.links[0].issuer_key)
        read.holds(7)
    outcome(check_revocation, CHAIN.links, (data,), now=NOW, mode=Revocation.IF_AVAILABLE)


@fuzz(_near(CERTIFICATES))
def test_attestation_key_certificate(data: bytes) -> None:
    """A certificate is read, searched for addresses and chained, or refused."""
    read = outcome(read_ak, data)
    if read is not None:
        assert read[0].name
    outcome(crl_urls, data)
    outcome(ca_issuers_urls, data)
    outcome(is_issued_by, TPM.ak_cert, data)
    outcome(verify_ak_chain, data, ENDORSEMENTS.certificates, now=NOW, anchors=GCP.anchors.gcp_tpm)
    outcome(verify_ak_chain, TPM.ak_cert, (data,), now=NOW, anchors=GCP.anchors.gcp_tpm)


@fuzz(_near(KEYS))
def test_subject_public_key_info(data: bytes) -> None:
    """A key is loaded, or refused with the one error that its callers expect."""
    try:
        key = load_key(data)
    except ValueError:
        return
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == data


@st.composite
def _tpm_quotes(draw: st.DrawFn) -> TpmQuote:
    """A quote with up to every part replaced by something close to it, or by anything."""
    valid = draw(st.sampled_from([TPM, RSA_TPM]))

    def part(data: bytes) -> bytes:
        return draw(st.just(data) | _near([data]))

    values = [
        PcrValue(draw(st.just(v.index) | st.integers(0, 2**32 - 1)), v.algorithm, part(v.value))
        for v in valid.pcr_values
    ]
    log = [
        TpmEvent(draw(st.just(e.pcr_index) | st.integers(0, 2**32 - 1)), part(e.digest))
        for e in valid.event_log
    ]
    return TpmQuote(
        message=part(valid.message),
        signature=part(valid.signature),
        pcr_values=tuple(values * draw(st.sampled_from([1, 1, 1, 0, 2000]))),
        ak_cert=part(valid.ak_cert),
        platform=draw(st.sampled_from(["gcp", "gcp", "dstack"])),
        event_log=tuple(log * draw(st.sampled_from([1, 1, 1, 0, 500, 2000]))),
    )


@fuzz(_tpm_quotes())
def test_tpm_quote(tpm: TpmQuote) -> None:
    """Whole GCP evidence is judged before anything is asked of anybody."""
    evidence = GcpTdxQuote(TdxQuote(GCP.quote, ()), tpm)
    checked = outcome(precheck_gcp, evidence, EVENTS)
    verified = outcome(verify_gcp, evidence, EVENTS, now=NOW, anchors=GCP.anchors, endorsements=ENDORSEMENTS)
    assert verified is None or checked is not None
    if tpm.message != TPM.message:
        assert verified is None


@fuzz(_near([DOCUMENT]))
def test_nitro_tpm_document(data: bytes) -> None:
    """A NitroTPM document is judged, whatever its bytes."""
    verified = outcome(verify_nitro_tpm, data, EVENTS, now=NOW, anchors=NITRO.anchors)
    assert verified is None or data.removeprefix(b"\xd2") == DOCUMENT
