"""GCP evidence made on the spot, with any single fault: a vTPM quote and the TDX quote that it names."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import GcpTdxQuote, PcrValue, RuntimeEvent, TdxQuote, TpmEvent, TpmQuote
from shared.attestation.event_log import event_digest, replay, replay_digests
from shared.attestation.trust import TrustAnchors
from tests.shared.attestation.forgery import NOW, REPORT_DATA

EVENTS = (
    RuntimeEvent("system-preparing", b""),
    RuntimeEvent("app-id", bytes(range(20))),
    RuntimeEvent("compose-hash", bytes(range(32))),
    RuntimeEvent("instance-id", bytes(range(20, 40))),
    RuntimeEvent("boot-mr-done", b""),
    RuntimeEvent("system-ready", b""),
)
# The firmware's own three events, as spec attestation section 5.3 spells them.
FIRMWARE = tuple(
    hashlib.sha256(data).digest()
    for data in (
        "GCE Virtual Firmware v2\0".encode("utf-16-le"),
        b"GCE NonHostInfo\0" + b"\3" + bytes(15),
        bytes(4),
    )
)
IMAGE = tuple(hashlib.sha256(name).digest() for name in (b"separator", b"gpt", b"uki", b"kernel"))
LOG = (
    *(TpmEvent(0, digest) for digest in FIRMWARE),
    TpmEvent(4, hashlib.sha256(b"not quoted").digest()),
    *(TpmEvent(2, digest) for digest in IMAGE),
)
PCRS = {
    0: replay_digests(FIRMWARE, "sha256"),
    2: replay_digests(IMAGE, "sha256"),
    14: replay(EVENTS, "sha256"),
}
RTMR2 = hashlib.sha384(b"rtmr2").digest()

AkKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def selection(indexes: Sequence[int], algorithm: int = 0x000B, size: int = 3) -> bytes:
    bitmap = sum(1 << index for index in set(indexes))
    return algorithm.to_bytes(2, "big") + bytes([size]) + bitmap.to_bytes(size, "little")


def attest(
    pcrs: dict[int, bytes],
    extra: bytes,
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    signer: bytes = b"\x00\x0b" + bytes(32),
    safe: int = 1,
    selections: Sequence[bytes] | None = None,
    digest: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """Return a TPMS_ATTEST over these registers."""
    banks = [selection(list(pcrs))] if selections is None else selections
    hashed = hashlib.sha256(b"".join(pcrs.values())).digest() if digest is None else digest
    return (
        magic.to_bytes(4, "big")
        + kind.to_bytes(2, "big")
        + sized(signer)
        + sized(extra)
        + (123_456).to_bytes(8, "big")
        + (1).to_bytes(4, "big")
        + (0).to_bytes(4, "big")
        + bytes([safe])
        + (0x2016_0511_0016_2800).to_bytes(8, "big")
        + len(banks).to_bytes(4, "big")
        + b"".join(banks)
        + sized(hashed)
        + tail
    )


def ecdsa_signature(r: bytes, s: bytes, algorithm: int = 0x0018, hash_id: int = 0x000B) -> bytes:
    return algorithm.to_bytes(2, "big") + hash_id.to_bytes(2, "big") + sized(r) + sized(s)


def rsa_signature(raw: bytes) -> bytes:
    return bytes.fromhex("0014000b") + sized(raw)


def sign_attest(message: bytes, key: AkKey) -> bytes:
    """Return the TPMT_SIGNATURE that a TPM makes with this key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return rsa_signature(key.sign(message, padding.PKCS1v15(), SHA256()))
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    return ecdsa_signature(r.to_bytes(32, "big"), s.to_bytes(32, "big"))


class GcpForge:
    """One guest: a domain under a simulated Intel, a vTPM key under a simulated Google."""

    def __init__(self, *, rsa_keys: bool = False) -> None:
        self.google = SimulatedAkAuthority.create(rsa_keys=rsa_keys)
        self.intel = SimulatedIntel.create()
        self.key: AkKey = (
            rsa.generate_private_key(public_exponent=0x10001, key_size=2048)
            if rsa_keys
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.ak_cert = self.google.issue_ak(self.key.public_key())
        self.quote = self.tdx_quote()

    def tdx_quote(
        self, events: Sequence[RuntimeEvent] = EVENTS, report_data: bytes = REPORT_DATA, rtmr2: bytes = RTMR2
    ) -> bytes:
        domain = SimulatedTdx(self.intel, rtmrs=(bytes(48), bytes(48), rtmr2, bytes(48)))
        for event in events:
            domain.extend_rtmr(3, event_digest(event, "sha384"))
        return domain.quote(report_data)

    @property
    def anchors(self) -> TrustAnchors:
        anchors = TrustAnchors.production().with_extra(self.google.root_pem, signer="gcp_tpm")
        return anchors.with_extra(self.intel.root_pem, signer="tdx")

    @property
    def endorsements(self) -> Endorsements:
        return msgspec.structs.replace(
            self.google.endorsements(NOW - 60), tdx=(self.intel.collateral(NOW - 60),)
        )

    def tpm(
        self,
        *,
        quote: bytes | None = None,
        pcrs: dict[int, bytes] = PCRS,
        log: Sequence[TpmEvent] = LOG,
        message: bytes | None = None,
        signature: bytes | None = None,
        values: Sequence[PcrValue] | None = None,
        key: AkKey | None = None,
        ak_cert: bytes | None = None,
        platform: str = "gcp",
        **attested: Any,
    ) -> TpmQuote:
        """Return a vTPM quote that names `quote`; the other arguments replace single parts of it."""
        extra = attested.pop("extra", hashlib.sha256(self.quote if quote is None else quote).digest())
        text = attest(pcrs, extra, **attested) if message is None else message
        return TpmQuote(
            message=text,
            signature=sign_attest(text, key or self.key) if signature is None else signature,
            pcr_values=tuple(PcrValue(index, "sha256", value) for index, value in pcrs.items())
            if values is None
            else tuple(values),
            ak_cert=self.ak_cert if ak_cert is None else ak_cert,
            platform=platform,
            event_log=tuple(log),
        )

    def evidence(self, *, quote: bytes | None = None, **changes: Any) -> GcpTdxQuote:
        tdx = self.quote if quote is None else quote
        return GcpTdxQuote(TdxQuote(tdx, ()), self.tpm(quote=tdx, **changes))
