"""TDX quotes, their chains and collateral: any bytes end in a value or one of our errors, in bounded time."""

import json
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st

from shared.attestation.collateral import (
    bundle_json,
    collateral_json,
    describe,
    parse_bundle,
    parse_collateral,
)
from shared.attestation.endorsements import Endorsements, TdxCollateral
from shared.attestation.pck import parse_pck_chain, split_pem
from shared.attestation.policy import TdxPolicy
from shared.attestation.tdx import CollateralCache, verify_tdx
from shared.attestation.tdx_quote import MAX_QUOTE, parse_quote
from shared.attestation.trust import TrustAnchors
from shared.errors import ProtocolError
from tests.fuzz.budget import fuzz, mutated, outcome

SAMPLES = Path(__file__).parents[1] / "data" / "attestation" / "synthetic" / "tdx"
NOW = 1_767_225_600
QUOTES = [
    (SAMPLES / f"{name}.bin").read_bytes()
    for name in ("quote_v4", "quote_v5_td10", "quote_v5_td15", "quote_v4_outofdate")
]
COLLATERAL = parse_collateral((SAMPLES / "collateral.json").read_bytes())
FIELDS: dict[str, str] = json.loads(collateral_json(COLLATERAL))
ANCHORS = TrustAnchors.production().with_extra((SAMPLES / "root-ca.pem").read_bytes()).tdx
POLICY = TdxPolicy(max_collateral_age=7 * 365 * 86_400)
# The chain of the samples, without the quote around it.
CHAIN = parse_quote(QUOTES[0]).certification_data
CACHE = CollateralCache()


def verify(quote: bytes, collateral: TdxCollateral, cache: CollateralCache | None = None) -> None:
    outcome(
        verify_tdx,
        quote,
        now=NOW,
        anchors=ANCHORS,
        policy=POLICY,
        endorsements=Endorsements(tdx=(collateral,)),
        cache=cache,
    )


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """A quote whose lengths are right around an arbitrary or mutated chain, so that the chain is reached."""
    data = draw(mutated([CHAIN]) | st.binary(max_size=2000))
    quote = parse_quote(QUOTES[0])
    inner = quote.qe_report_raw + quote.qe_report_signature + b"\x20\x00" + quote.qe_auth_data
    inner += struct.pack("<HI", draw(st.sampled_from([5, 5, 2, 3])), len(data)) + data
    auth = quote.signature + quote.attestation_key + struct.pack("<HI", 6, len(inner)) + inner
    return quote.signed + struct.pack("<I", len(auth)) + auth


@st.composite
def collateral(draw: st.DrawFn) -> TdxCollateral | None:
    """Collateral with one or two mutated fields that still have their form."""
    fields: dict[str, Any] = dict(FIELDS)
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=2)):
        raw = FIELDS[name].encode()
        binary = name.endswith(("crl", "signature"))
        changed = draw(mutated([bytes.fromhex(FIELDS[name]) if binary else raw]))
        fields[name] = changed.hex() if binary else changed.decode("ascii", "replace")
    try:
        return parse_collateral(json.dumps(fields))
    except ProtocolError:
        return None


@fuzz(st.binary(max_size=MAX_QUOTE + 1) | mutated(QUOTES) | framed())
def test_parse_quote(data: bytes) -> None:
    outcome(parse_quote, data)


@fuzz(st.binary(max_size=3000) | mutated([CHAIN]))
def test_parse_pck_chain(data: bytes) -> None:
    outcome(parse_pck_chain, data)
    outcome(split_pem, data)


@fuzz(mutated(QUOTES) | framed())
def test_verify_a_quote(data: bytes) -> None:
    verify(data, COLLATERAL, CACHE)


@fuzz(collateral())
def test_verify_with_collateral(changed: TdxCollateral | None) -> None:
    if changed is not None:
        outcome(describe, changed)
        verify(QUOTES[0], changed)


@fuzz(st.binary(max_size=4096) | mutated([collateral_json(COLLATERAL).encode()]))
def test_parse_collateral(data: bytes) -> None:
    found = outcome(parse_collateral, data)
    if found is not None:
        assert parse_collateral(collateral_json(found)) == found


@fuzz(
    st.binary(max_size=4096)
    | mutated([bundle_json(Endorsements((COLLATERAL,), (b"\x30\x00",), (b"\x30\x00",))).encode()])
)
def test_parse_bundle(data: bytes) -> None:
    found = outcome(parse_bundle, data)
    if found is not None:
        assert parse_bundle(bundle_json(found).encode()) == found
