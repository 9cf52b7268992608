"""Our verdicts on TDX quotes, next to those of an independent implementation (`npm ci` in this directory)."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.endorsements import Endorsements
from shared.attestation.policy import TcbStatus, TdxPolicy
from shared.attestation.tdx import verify_tdx
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError
from tests.differential.tdx_cases import NOW, Case, cases

HERE = Path(__file__).parent
PACKAGE = HERE / "node_modules" / "@phala" / "dcap-qvl"

# Nothing of ours that the other has no notion of: any status, any age.
POLICY = TdxPolicy(accept=tuple(TcbStatus), max_collateral_age=100 * 365 * 86_400)

_MODULE = "the other does not look at the tdx module"

# Where we refuse and the other accepts: how a case's name starts, our codes, why.
STRICTER = (
    ("domain: pks", "tdx.attributes.policy", "ours is a choice of policy"),
    ("domain: perfmon", "tdx.attributes.policy", "ours is a choice of policy"),
    ("domain: other xfam", "tdx.xfam", "the other does not look at xfam"),
    ("domain: seam signer", "tdx.mr_signer_seam", _MODULE),
    ("domain: seam attributes", "tdx.seam_attributes", _MODULE),
    ("domain: old module", "tdx.dcap.module", _MODULE),
    ("domain: unknown module", "tdx.dcap.module", _MODULE),
    ("collateral: module", "tdx.dcap.module", _MODULE),
    ("collateral: pck list overdue", "tdx.collateral.expired", "the other reads lists, and not their dates"),
    ("collateral: foreign pck_crl", "tdx.dcap.chain", "the other does not check who signed a list"),
    ("collateral: foreign root_ca_crl", "tdx.dcap.refused", "the other does not check who signed a list"),
    ("flip at", "tdx.pck.pem", "the other does not read the root in the quote, nor pem strictly"),
    ("flip at", "tdx.pck.certificate", "the other does not read the root in the quote"),
    ("flip at", "tdx.anchor", "the other does not read the root in the quote"),
    ("flip at", "tdx.quote.trailing", "the other ignores what follows a quote"),
    ("trailing byte", "tdx.quote.trailing", "the other ignores what follows a quote"),
)

# Where both accept and the platform's state is another: why.
OTHER_STATE = {
    "collateral: module out of date": _MODULE,
    "collateral: levels out of order": "the other takes the first level that fits, intel sorts them",
    "sample quote_v4_outofdate": "the other counts the module's svn among the platform's, by an older rule",
}


@pytest.fixture(scope="module")
def questions() -> list[Case]:
    return cases()


@pytest.fixture(scope="module")
def theirs(questions: list[Case]) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    if not PACKAGE.exists():
        pytest.skip("@phala/dcap-qvl is not installed: run npm ci in tests/differential")
    asked = json.dumps([case.to_json() for case in questions])
    done = subprocess.run(
        [node, HERE / "verdicts.mjs"], input=asked, capture_output=True, text=True, check=True, timeout=300
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ours(case: Case) -> dict[str, Any]:
    pem = x509.load_der_x509_certificate(case.root).public_bytes(Encoding.PEM)
    try:
        verified = verify_tdx(
            case.quote,
            now=NOW,
            anchors=TrustAnchors.production().with_extra(pem).tdx,
            policy=POLICY,
            endorsements=Endorsements(tdx=(case.collateral,)),
        )
    except DstackError as error:
        return {"error": error.code}
    return {"status": verified.status.value, "advisory_ids": list(verified.advisory_ids)}


def excused(case: Case, mine: dict[str, Any], other: dict[str, Any]) -> bool:
    if "error" in other:
        return False
    if "error" not in mine:
        return case.name in OTHER_STATE
    return any(case.name.startswith(start) and mine["error"] == code for start, code, _ in STRICTER)


def test_both_say_the_same_of_every_quote(questions: list[Case], theirs: dict[str, Any]) -> None:
    differences = {}
    for case in questions:
        mine, other = ours(case), theirs[case.name]
        same = mine == other or ("error" in mine and "error" in other)
        if not same and not excused(case, mine, other):
            differences[case.name] = (mine, other)
    assert differences == {}


def test_differences_that_are_over_are_not_listed(questions: list[Case], theirs: dict[str, Any]) -> None:
    """A newer version of the other may have caught up; flips vary from run to run."""
    for start, code, reason in STRICTER:
        matching = [case for case in questions if case.name.startswith(start)]
        found = any(ours(case) == {"error": code} and "error" not in theirs[case.name] for case in matching)
        assert found or start == "flip at", reason
    for case in questions:
        if case.name in OTHER_STATE:
            assert ours(case) != theirs[case.name]


def test_what_should_be_accepted_is(questions: list[Case]) -> None:
    """Two verifiers that refuse everything agree, too."""
    accepted = {case.name for case in questions if "error" not in ours(case)}
    assert len(accepted) >= 15
    assert {
        "sample quote_v4",
        "domain: as it should be (v5, 3)",
        "collateral: platform OutOfDate",
    } <= accepted
