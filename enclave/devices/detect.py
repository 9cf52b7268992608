"""Which platform this guest runs on (spec attestation section 5.6)."""

from enum import StrEnum
from pathlib import Path

from enclave.devices.tdx import tdx_present
from enclave.devices.tpm_device import DEVICE_PATHS
from shared.errors import UnavailableError

# DMI strings are a few words; the kernel prints one line.
_MAX_DMI = 4096


class TeePlatform(StrEnum):
    """The platforms whose evidence we collect, by upstream's `tee_variant`."""

    TDX = "dstack-tdx"
    GCP_TDX = "dstack-gcp-tdx"
    NITRO_ENCLAVE = "dstack-nitro-enclave"
    NITRO_TPM = "dstack-aws-nitro-tpm"


def detect_platform(root: Path = Path("/")) -> TeePlatform:
    """Tell the platform from device nodes and DMI strings below `root`.

    A name in DMI is only a hint: the host writes it. A platform counts when its device is there too, and
    evidence from that device is what a verifier believes.

    Raises `UnavailableError("platform.device")` when the platform's device is missing, naming both.
    """
    if (root / "dev/nsm").exists():
        return TeePlatform.NITRO_ENCLAVE
    match _dmi(root, "product_name"):
        case "Nitro Enclave":
            raise _missing("a Nitro Enclave", "/dev/nsm")
        case "Google Compute Engine":
            _require(tdx_present(root), "a Google Compute Engine guest", "tdx")
            _require(_has_tpm(root), "a Google Compute Engine guest", "a tpm")
            return TeePlatform.GCP_TDX
        case "dstack" | "qemu":
            pass
        case _ if _dmi(root, "sys_vendor") == "Amazon EC2":
            _require(_has_tpm(root), "an Amazon EC2 guest", "a tpm")
            return TeePlatform.NITRO_TPM
    _require(tdx_present(root), "a dstack guest", "tdx")
    return TeePlatform.TDX


def _dmi(root: Path, name: str) -> str:
    try:
        with (root / "sys/class/dmi/id" / name).open("rb") as file:
            return file.read(_MAX_DMI).decode("utf-8", "replace").strip()
    except OSError:  # a machine without DMI is one without the name
        return ""


def _has_tpm(root: Path) -> bool:
    return any((root / path.lstrip("/")).exists() for path in DEVICE_PATHS)


def _require(present: bool, platform: str, device: str) -> None:  # noqa: FBT001 - reads as its condition
    if not present:
        raise _missing(platform, device)


def _missing(platform: str, device: str) -> UnavailableError:
    return UnavailableError("platform.device", f"this machine looks like {platform}, and has no {device}")
