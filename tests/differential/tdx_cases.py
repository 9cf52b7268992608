"""Quotes and collateral that two verifiers are asked about: the samples, and what the simulator makes."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.simulator.intel_documents import level, platform_tcb, utc_text
from enclave.simulator.tdx import Domain, QuotingEnclave, SimulatedIntel, SimulatedTdx
from shared.attestation.collateral import collateral_json, parse_collateral
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.policy import TcbStatus

SAMPLES = Path(__file__).parents[1] / "data" / "attestation" / "synthetic" / "tdx"
NOW = 1_767_225_600
REPORT_DATA = bytes(range(64))
SEPT = 1 << 28
MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


class Case(msgspec.Struct, frozen=True):
    """One question: is this quote, with this collateral, believed at `NOW` under this root (DER)?"""

    name: str
    quote: bytes
    collateral: TdxCollateral
    root: bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "quote": self.quote.hex(),
            "collateral": json.loads(collateral_json(self.collateral)),
            "root": self.root.hex(),
            "now": NOW,
        }


def cases() -> list[Case]:
    """Return all of them."""
    return [*_samples(), *_domains(), *_collaterals(), *_flips()]


def _samples() -> Iterator[Case]:
    collateral = parse_collateral((SAMPLES / "collateral.json").read_bytes())
    root = x509.load_pem_x509_certificate((SAMPLES / "root-ca.pem").read_bytes()).public_bytes(Encoding.DER)
    for path in sorted(SAMPLES.glob("quote_*.bin")):
        yield Case(f"sample {path.stem}", path.read_bytes(), collateral, root)


def _domains() -> Iterator[Case]:
    intel = SimulatedIntel.create()
    collateral = intel.collateral(NOW)
    domains = {
        "as it should be": Domain(),
        "debug": Domain(td_attributes=SEPT | 1),
        "reserved attribute": Domain(td_attributes=SEPT | 1 << 29),
        "no sept_ve_disable": Domain(td_attributes=0),
        "pks": Domain(td_attributes=SEPT | 1 << 30),
        "perfmon": Domain(td_attributes=SEPT | 1 << 63),
        "other xfam": Domain(xfam=0x602E7 | 1 << 8),
        "seam signer": Domain(mr_signer_seam=b"\x01" * 48),
        "seam attributes": Domain(seam_attributes=b"\x01" + bytes(7)),
        "service domain": Domain(mr_service_td=b"\x01" * 48),
        "old module": Domain(tee_tcb_svn=bytes([3, 1, 2]) + bytes(13)),
        "unknown module": Domain(tee_tcb_svn=bytes([5, 2, 2]) + bytes(13)),
    }
    for name, domain in domains.items():
        for version, body in ((4, 0), (5, 2), (5, 3)):
            quote = SimulatedTdx(intel, domain, version=version, body_type=body).quote(REPORT_DATA)
            yield Case(f"domain: {name} (v{version}, {body})", quote, collateral, intel.root.der)
    enclaves = {
        "mrsigner": QuotingEnclave(mr_signer=bytes(32)),
        "isvprodid": QuotingEnclave(isv_prod_id=1),
        "miscselect": QuotingEnclave(misc_select=1),
        "attributes": QuotingEnclave(attributes=bytes(16)),
        "debug": QuotingEnclave(attributes=b"\x17" + bytes(15)),
        "old": QuotingEnclave(isv_svn=3),
        "new": QuotingEnclave(isv_svn=9),
    }
    for name, enclave in enclaves.items():
        quote = SimulatedTdx(intel, quoting_enclave=enclave).quote(REPORT_DATA)
        yield Case(f"quoting enclave: {name}", quote, collateral, intel.root.der)


def _collaterals() -> Iterator[Case]:
    intel, other = SimulatedIntel.create(), SimulatedIntel.create()
    quote = SimulatedTdx(intel).quote(REPORT_DATA)

    def tcb_info(**members: object) -> TdxCollateral:
        return intel.collateral(NOW, tcb_info=members)

    def qe_identity(**members: object) -> TdxCollateral:
        return intel.collateral(NOW, qe_identity=members)

    def module(**members: object) -> TdxCollateral:
        identity = {"id": "TDX_01", **MODULE, "tcbLevels": [level({"isvsvn": 4})], **members}
        return tcb_info(tdxModuleIdentities=[identity])

    good, foreign = intel.collateral(NOW), other.collateral(NOW)
    past, future = utc_text(NOW - 1), utc_text(NOW + 1)
    found = {
        f"platform {status.value}": tcb_info(
            tcbLevels=[level(platform_tcb(), status.value, advisories=("A",))]
        )
        for status in TcbStatus
        if not status.value.startswith("TDRelaunch")
    } | {
        "qe out of date": qe_identity(tcbLevels=[level({"isvsvn": 4}, "OutOfDate", advisories=("B",))]),
        "qe revoked": qe_identity(tcbLevels=[level({"isvsvn": 4}, "Revoked")]),
        "qe below": qe_identity(tcbLevels=[level({"isvsvn": 5})]),
        "qe id": qe_identity(id="QE"),
        "qe mrsigner": qe_identity(mrsigner="00" * 32),
        "qe identity overdue": qe_identity(nextUpdate=past),
        "qe identity of the future": qe_identity(issueDate=future),
        "module out of date": module(tcbLevels=[level({"isvsvn": 4}, "OutOfDate", advisories=("C",))]),
        "module below": module(tcbLevels=[level({"isvsvn": 6})]),
        "module unknown": module(id="TDX_03"),
        "module signer": module(mrsigner="11" * 48),
        "platform below cpusvn": tcb_info(tcbLevels=[level(platform_tcb(cpu_svn=3))]),
        "platform below pcesvn": tcb_info(tcbLevels=[level(platform_tcb(pce_svn=12))]),
        "second level": tcb_info(
            tcbLevels=[level(platform_tcb(cpu_svn=3)), level(platform_tcb(cpu_svn=1), "OutOfDate")]
        ),
        "levels out of order": tcb_info(
            tcbLevels=[level(platform_tcb(cpu_svn=1), "OutOfDate"), level(platform_tcb())]
        ),
        "tcb info overdue": tcb_info(nextUpdate=past),
        "tcb info of the future": tcb_info(issueDate=future),
        "tcb info of sgx": tcb_info(id="SGX"),
        "tcb info version 2": tcb_info(version=2),
        "other fmspc": tcb_info(fmspc="112233445566"),
        "pck revoked": intel.collateral(NOW, revoked=("pck",)),
        "ca revoked": intel.collateral(NOW, revoked=("platform",)),
        "signer revoked": intel.collateral(NOW, revoked=("tcb",)),
        "pck list overdue": intel.collateral(
            NOW, crl_issued=NOW - 86_400, crl_lifetime=timedelta(seconds=86_399)
        ),
    }
    for field in (
        "pck_crl",
        "root_ca_crl",
        "tcb_info_issuer_chain",
        "tcb_info_signature",
        "qe_identity_signature",
    ):
        found[f"foreign {field}"] = msgspec.structs.replace(good, **{field: getattr(foreign, field)})
    for name, collateral in found.items():
        yield Case(f"collateral: {name}", quote, collateral, intel.root.der)
    yield Case("another root", quote, good, other.root.der)


def _flips() -> Iterator[Case]:
    intel = SimulatedIntel.create()
    collateral, quote = intel.collateral(NOW), SimulatedTdx(intel).quote(REPORT_DATA)
    for offset in range(0, len(quote), 97):
        altered = bytearray(quote)
        altered[offset] ^= 1 << offset % 8
        yield Case(f"flip at {offset}", bytes(altered), collateral, intel.root.der)
    yield Case("trailing byte", quote + b"\x01", collateral, intel.root.der)
