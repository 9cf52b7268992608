"""What Intel's documents about a simulated platform say, and the extension that names the platform.

TCB info and QE identity are those of spec attestation section 3.6, the extension's layout section 3.1.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

FMSPC: Final = bytes(6)
QE_MRSIGNER: Final = bytes([0x44]) * 32
QE_ISV_SVN: Final = 4
CPU_SVN: Final = bytes([2]) * 16
PCE_SVN: Final = 11
TCB_EVALUATION: Final = 17
LIFETIME: Final = timedelta(days=30)  # of collateral, as Intel's

_TCB_DATE = "2024-03-13T00:00:00Z"
_SGX_OID = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1


def tcb_info_document(now: int, fmspc: bytes = FMSPC) -> dict[str, object]:
    """Return Intel's TCB info for the simulated platform, up to date."""
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": utc_text(now),
        "nextUpdate": utc_text(now + int(LIFETIME.total_seconds())),
        "fmspc": fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": TCB_EVALUATION,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [level({"isvsvn": 4})]}],
        "tcbLevels": [level(platform_tcb())],
    }


def qe_identity_document(now: int) -> dict[str, object]:
    """Return Intel's identity of the simulated quoting enclave."""
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": utc_text(now),
        "nextUpdate": utc_text(now + int(LIFETIME.total_seconds())),
        "tcbEvaluationDataNumber": TCB_EVALUATION,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [level({"isvsvn": QE_ISV_SVN})],
    }


def level(
    tcb: Mapping[str, object],
    status: str = "UpToDate",
    date: str = _TCB_DATE,
    advisories: tuple[str, ...] = (),
) -> dict[str, object]:
    """Return one TCB level of a platform, a module or a quoting enclave."""
    found: dict[str, object] = {"tcb": tcb, "tcbDate": date, "tcbStatus": status}
    return found | ({"advisoryIDs": list(advisories)} if advisories else {})


def platform_tcb(cpu_svn: int = CPU_SVN[0], pce_svn: int = PCE_SVN) -> dict[str, object]:
    """Return the components of a platform's TCB level."""
    return {
        "sgxtcbcomponents": [{"svn": cpu_svn}] * 16,
        "pcesvn": pce_svn,
        "tdxtcbcomponents": [{"svn": svn} for svn in (0, 0, 2, *[0] * 13)],
    }


def utc_text(seconds: int) -> str:
    """Return unix seconds as Intel writes dates."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sgx_extension(fmspc: bytes, ppid: bytes) -> bytes:
    """Return the content of a PCK leaf's SGX extension (OID 1.2.840.113741.1.13.1)."""
    components = [_pair((2, index), _integer(svn)) for index, svn in enumerate(CPU_SVN, start=1)]
    tcb = [*components, _pair((2, 17), _integer(PCE_SVN)), _pair((2, 18), _der(0x04, CPU_SVN))]
    return _der(
        0x30,
        _pair((1,), _der(0x04, ppid)),
        _pair((2,), _der(0x30, *tcb)),
        _pair((3,), _der(0x04, bytes(2))),
        _pair((4,), _der(0x04, fmspc)),
        _pair((5,), _der(0x0A, b"\0")),
    )


def _pair(oid: tuple[int, ...], value: bytes) -> bytes:
    return _der(0x30, _der(0x06, _SGX_OID + bytes(oid)), value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(1, "big"))


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    width = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + length.to_bytes(width, "big") + content
