"""Arbitrary and damaged certificate requests: a value that means its bytes and no others, or a refusal."""

from pathlib import Path

import hypothesis.strategies as st
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from enclave.kms.csr_names import check_names
from shared.attestation import scale
from shared.attestation.envelope import TdxQuote, decode_envelope
from shared.attestation.event_log_json import event_log_json
from shared.ratls.certificates import spki_der
from shared.ratls.csr import (
    V1,
    V2,
    Csr,
    CsrConfig,
    check_signature,
    decode_csr,
    encode_csr,
    signed_csr,
)
from tests.fuzz.budget import fuzz, mutated, outcome

ENVELOPES = Path(__file__).parent.parent / "data" / "attestation" / "synthetic" / "envelopes"
ENVELOPE = (ENVELOPES / "v0_nitro.bin").read_bytes()
KEY = derive_private_key(5, SECP256R1())
OTHER = spki_der(derive_private_key(6, SECP256R1()).public_key())
VALID, SIGNATURE = signed_csr(
    KEY,
    CsrConfig(
        org_name="Example",
        subject="app.example.com",
        subject_alt_names=("app.example.com", "10.0.0.1", "::1"),
        ext_quote=True,
        not_before=1,
        not_after=2,
    ),
    ENVELOPE,
)
TDX = decode_envelope((ENVELOPES / "v0_tdx.bin").read_bytes()).quote
assert isinstance(TDX, TdxQuote)
TAIL = 1 + 9 + 9 + len(ENVELOPE)  # app info, two times and the envelope, which the old layout has not
OLD = VALID[:-TAIL] + scale.bytes_(TDX.quote) + scale.bytes_(event_log_json(TDX.event_log).encode())
assert decode_csr(OLD, V1).config.subject == "app.example.com"
NAMES = st.text(max_size=70) | st.sampled_from(
    ["*.a", "KMS.test.", "1.2.3.4", "::ffff:1.2.3.4", "a.b", "0x7f"]
)
U64 = st.none() | st.integers(0, (1 << 64) - 1)
CONFIGS = st.builds(
    CsrConfig,
    org_name=st.none() | NAMES,
    subject=NAMES,
    subject_alt_names=st.lists(NAMES, max_size=40).map(tuple),
    usage_server_auth=st.booleans(),
    usage_client_auth=st.booleans(),
    ext_quote=st.booleans(),
    ext_app_info=st.booleans(),
    not_before=U64,
    not_after=U64,
)


@fuzz(st.binary(max_size=2048) | mutated([VALID]))
def test_a_request(data: bytes) -> None:
    csr = outcome(decode_csr, data, V2)
    if csr is not None:
        assert encode_csr(csr) == data
        assert outcome(check_signature, csr, data, SIGNATURE) is None
        outcome(decode_envelope, csr.envelope)


@fuzz(st.binary(max_size=2048) | mutated([OLD]))
def test_an_old_request(data: bytes) -> None:
    csr = outcome(decode_csr, data, V1)
    if csr is not None:
        assert decode_envelope(csr.envelope).config == ""


@fuzz(CONFIGS)
def test_what_is_asked_for_comes_back(config: CsrConfig) -> None:
    csr = Csr(pubkey=OTHER, config=config, envelope=ENVELOPE)
    assert decode_csr(encode_csr(csr), V2) == csr


@fuzz(CONFIGS)
def test_names(config: CsrConfig) -> None:
    outcome(check_names, config, kms_domain="kms.test", app_id=bytes(20), instance_id=b"")
