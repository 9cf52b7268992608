"""Every byte of a quote, and every 23rd of its collateral, is flipped: refused, or listed with a reason."""

import json

import msgspec
import pytest

from enclave.simulator.tdx import SimulatedTdx
from shared.attestation.collateral import collateral_json, parse_collateral
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.pck import join_pem, split_pem
from shared.errors import DstackError
from tests.shared.attestation.tdx_forgery import REPORT_DATA, TdxForge

# The sweep is cut into parts so that it runs on all workers.
PARTS = 4
STEP = 23

# Parts of collateral that decide nothing: a verifier brings its own root, takes a revocation list's issuer
# from the chain that it verified, and reads hex in either case.
UNAUTHENTICATED = {
    "pck_crl_issuer_chain": "the list's signature is checked under the pck chain's own ca",
    "tcb_info_issuer_chain": "its root, for which the verifier has its anchor",
    "qe_identity_issuer_chain": "its root, for which the verifier has its anchor",
}


@pytest.fixture(scope="module")
def forge() -> TdxForge:
    return TdxForge()


def accepts(forge: TdxForge, quote: bytes, collateral: TdxCollateral) -> bool:
    try:
        forge.verify(quote, collateral)
    except DstackError:
        return False
    return True


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("version", "body"), [(4, 0), (5, 3)])
def test_n12_every_flip_in_a_quote_is_refused(forge: TdxForge, version: int, body: int, part: int) -> None:
    quote = SimulatedTdx(forge.intel, version=version, body_type=body).quote(REPORT_DATA)
    assert accepts(forge, quote, forge.collateral)
    accepted = []
    for offset in range(part, len(quote), PARTS):
        altered = bytearray(quote)
        altered[offset] ^= 1 << offset // PARTS % 8
        if accepts(forge, bytes(altered), forge.collateral):
            accepted.append(offset)
    assert accepted == []


@pytest.mark.parametrize("part", range(PARTS))
def test_n14_every_flip_in_collateral_is_refused_or_listed(forge: TdxForge, part: int) -> None:
    text = collateral_json(forge.collateral).encode()
    assert accepts(forge, forge.quote, forge.collateral)
    surprises = []
    for offset in range(part * STEP, len(text), PARTS * STEP):
        altered = bytearray(text)
        altered[offset] ^= 1 << offset // (PARTS * STEP) % 8
        try:
            collateral = parse_collateral(bytes(altered))
        except DstackError:
            continue
        if accepts(forge, forge.quote, collateral) and authenticated(collateral) != authenticated(
            forge.collateral
        ):
            surprises.append(offset)
    assert surprises == []


def authenticated(collateral: TdxCollateral) -> TdxCollateral:
    """The collateral without the parts that are listed."""
    assert UNAUTHENTICATED
    fields = {}
    for name in ("tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        signer, *_ = split_pem(getattr(collateral, name).encode())
        fields[name] = join_pem((signer,)).decode()
    return msgspec.structs.replace(collateral, pck_crl_issuer_chain="", **fields)


def test_a_flip_is_seen_in_each_field_of_collateral(forge: TdxForge) -> None:
    """The sweep only samples; here each field is altered once where it is authenticated."""
    fields = json.loads(collateral_json(forge.collateral))
    for name in fields.keys() - UNAUTHENTICATED.keys():
        text = fields[name]
        middle = len(text) // 2
        other = "1" if text[middle] != "1" else "2"
        altered = parse_collateral(json.dumps(fields | {name: text[:middle] + other + text[middle + 1 :]}))
        assert not accepts(forge, forge.quote, altered), name
