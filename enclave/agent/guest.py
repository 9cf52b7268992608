"""What the agent knows of its guest and does with it: one state behind all of its services.

Who the guest is was read from evidence once, when the
agent started: it never changes after the boot, and a client of upstream's gives Info half a second.
"""

import os
import threading
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave.agent.certificates import CertificateIssuer
from enclave.agent.own_identity import OwnIdentity, tdx_half
from enclave.log import log_event
from enclave.tee.evidence import BoundedAttestor
from enclave.tee.tee import Attestor
from shared.attestation.envelope import REPORT_DATA_LENGTH, decode_envelope
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.event_log_json import event_log_json, getquote_log
from shared.boot_info import GCP_TDX, TDX
from shared.compose.model import AppCompose, read_app_compose
from shared.errors import DstackError, ProtocolError
from shared.keys.guest_keys import AppKey
from shared.keys.kdf import derive_p256_scalar, p256_key
from shared.ratls.csr import CsrConfig

DMI: Final = Path("/sys/class/dmi/id")
_MAX_DMI: Final = 4096

DEMO_CERTIFICATE: Final = CsrConfig(subject="demo-cert", usage_client_auth=True, ext_quote=True)
"""What Info shows as app_cert."""

RETRY_SECONDS: Final = 5.0
"""Between two requests for it that failed, however often Info is asked meanwhile."""

_SEED_BYTES: Final = 32


class GuestFiles(msgspec.Struct, frozen=True):
    """`app_compose` is the exact text that was measured, empty for a guest without one.

    `vm_config` is the host's text; an empty one stands for the one in the guest's evidence. `host_api_url` is
    where the host says that it listens, empty for nowhere, `kms_urls` where it says that KMSes do.
    """

    app_compose: bytes = b""
    vm_config: str = ""
    host_api_url: str = ""
    kms_urls: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True):
    """What DMI says of the machine: the host's word."""

    vendor: str = ""
    product: str = ""

    @classmethod
    def read(cls, directory: Path = DMI) -> "Machine":
        """Read it; a machine without DMI has no names."""
        return cls(_first_line(directory / "sys_vendor"), _first_line(directory / "product_name"))


class Quoted(msgspec.Struct, frozen=True):
    """An answer to GetQuote. `quote` and `event_log` are empty where there is no TDX quote."""

    quote: bytes
    event_log: str
    attestation: bytes


class TlsKey(msgspec.Struct, frozen=True):
    """A key (PEM, PKCS#8) with its certificates (PEM, leaf first)."""

    key: str
    chain: tuple[str, ...]

    def __repr__(self) -> str:
        return "TlsKey(<secret>)"


class EvidenceStyle(msgspec.Struct, frozen=True, kw_only=True):
    """How GetQuote answers. As it stands it is that of a guest; upstream's simulator has another.

    `without_tdx` says what a guest without TDX does, `whole_log` leaves the event log uncut, and
    `always_envelope` adds the envelope beside a TDX quote, in its newer form.
    """

    without_tdx: Literal["refuse", "attestation"] = "refuse"
    whole_log: bool = False
    always_envelope: bool = False


NO_MACHINE: Final = Machine()
GUEST_STYLE: Final = EvidenceStyle()


class Guest:
    """One guest, by what `read_identity` read from its evidence. `attestor` is safe to use from all threads.

    Methods that ask a device or a KMS block, and run in worker threads. Raises `ProtocolError("compose.*")`
    for an app-compose that is none.
    """

    def __init__(
        self,
        key: AppKey,
        identity: OwnIdentity,
        attestor: Attestor,
        issuer: CertificateIssuer,
        files: GuestFiles,
        *,
        machine: Machine = NO_MACHINE,
        style: EvidenceStyle = GUEST_STYLE,
    ) -> None:
        self.key = key
        self.identity = identity
        self.machine = machine
        self._style = style
        self._attestor = attestor
        self.outside: Attestor = BoundedAttestor(attestor)
        """Makes evidence for whoever asks from outside, who may ask as often as he likes."""
        self._issuer = issuer
        self._requesting = threading.Lock()
        self._request_after = 0.0
        self.compose: AppCompose | None = read_app_compose(files.app_compose) if files.app_compose else None
        self.app_compose = files.app_compose.decode()
        self.vm_config = files.vm_config or identity.config
        self.tcb_info = identity.tcb_info(self.app_compose)
        self.app_cert = ""

    @property
    def app_name(self) -> str:
        """The name in app-compose."""
        return self.compose.name if self.compose else ""

    @property
    def public_tcbinfo(self) -> bool:
        """Whether everybody may see what was measured."""
        return self.compose is None or self.compose.public_tcbinfo

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope over up to 64 bytes, filled with zeros. Raises `agent.report_data`."""
        return self._attestor.attest(padded(report_data))

    def quote(self, report_data: bytes, *, outside: bool = False) -> Quoted:
        """Return a TDX quote over up to 64 bytes.

        A guest without TDX gives its envelope instead, where the configuration says so, and to whoever asks
        from `outside`, where there is no Attest to call. Raises `ProtocolError`: `agent.report_data`,
        `agent.quote.platform`; `UnavailableError("attestor.busy")`, and what the devices raise.
        """
        refuses = self._style.without_tdx == "refuse" and not outside
        if refuses and self.identity.tee_variant not in (TDX, GCP_TDX):
            raise ProtocolError(
                "agent.quote.platform",
                f"GetQuote is for TDX, and this guest is of {self.identity.tee_variant}: call Attest",
            )
        raw = (self.outside if outside else self._attestor).attest(padded(report_data))
        evidence = decode_envelope(raw)
        half = tdx_half(evidence)
        if half is None:
            return Quoted(b"", "", raw)
        whole = self._style.whole_log
        log = half.event_log if whole else getquote_log(half.event_log, keep_digests=True)
        envelope = encode_v1(evidence) if self._style.always_envelope else b""
        return Quoted(half.quote, event_log_json(log), envelope)

    def tls_key(self, config: CsrConfig, *, path: str | None = None) -> TlsKey:
        """Return a key with certificates: that of `path`, or a fresh one. Raises what the issuer raises."""
        if path is None:
            scalar = derive_p256_scalar(os.urandom(_SEED_BYTES), ())
        else:
            scalar = self.key.derive_tls_scalar(path)
        return self._certified(scalar, config)

    def seeded_tls_key(self, config: CsrConfig, path: str) -> TlsKey:
        """Return a key that `path` names in a random seed of this one call, with certificates."""
        return self._certified(derive_p256_scalar(os.urandom(_SEED_BYTES), (path.encode(),)), config)

    def want_app_cert(self, now: float) -> None:
        """Have the certificate that Info shows requested in a thread, unless it is there or was just now.

        `now` is in monotonic seconds.
        """
        if self.app_cert or now < self._request_after or not self._requesting.acquire(blocking=False):
            return
        self._request_after = now + RETRY_SECONDS
        threading.Thread(target=self._request_app_cert, name="app-cert", daemon=True).start()

    def _request_app_cert(self) -> None:
        try:
            self.app_cert = "\n".join(self.tls_key(DEMO_CERTIFICATE).chain)
        except DstackError as error:
            log_event("agent.app_cert.failed", code=error.code, message=error.message)
        finally:
            self._requesting.release()

    def _certified(self, scalar: bytes, config: CsrConfig) -> TlsKey:
        key = p256_key(scalar)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return TlsKey(pem, tuple(self._issuer.issue(key, config)))


def padded(report_data: bytes) -> bytes:
    """Return the 64 bytes that report data of up to 64 stands for: zeros follow it.

    Raises `ProtocolError("agent.report_data")`.
    """
    if len(report_data) > REPORT_DATA_LENGTH:
        raise ProtocolError(
            "agent.report_data",
            f"Report data is too long: got {len(report_data)} bytes, expected at most {REPORT_DATA_LENGTH}",
        )
    return report_data.ljust(REPORT_DATA_LENGTH, b"\0")


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_DMI).decode("utf-8", "replace").strip()
    except OSError:
        return ""
