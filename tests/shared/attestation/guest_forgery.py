"""Whole envelopes of TDX, GCP and EC2 guests, with any single fault, under throw-away vendors.

What an image measures is computed by hand (`tests.shared.measurement.made`), not by the code under test.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import cbor2
import msgspec

from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from enclave.simulator.tdx import Domain, SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroTpmQuote,
    RuntimeEvent,
    TdxEvent,
    TdxQuote,
    TpmEvent,
)
from shared.attestation.event_log import RUNTIME_EVENT_TYPE, event_digest, event_preimage, replay_digests
from shared.attestation.policy import DEFAULT_POLICY, GcpPolicy, Policy, TdxPolicy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.measurement.mr_config import mr_config_id_v1
from shared.measurement.tdx_registers import LiteRegisters
from tests.shared.attestation.forgery import NOW, REPORT_DATA
from tests.shared.attestation.gcp_forgery import FIRMWARE, GcpForge
from tests.shared.measurement.made import (
    HOB_2_GIB,
    RTMR0_LOG,
    RTMR0_TAIL,
    RTMR1_LOG,
    acpi_events,
    document,
    fold,
    h48,
    lite_quoted,
    lite_text,
    sha384,
)

APP_ID, COMPOSE, INSTANCE = b"\x11" * 20, b"\x22" * 32, b"\x33" * 20
SCRIPT = b"\x55" * 32
PROVIDER = b'{"name":"none","id":""}'

BOOT_EVENTS = (
    RuntimeEvent("system-preparing", b""),
    RuntimeEvent("app-id", APP_ID),
    RuntimeEvent("compose-hash", COMPOSE),
    RuntimeEvent("init-script-hash", SCRIPT),
    RuntimeEvent("instance-id", INSTANCE),
    RuntimeEvent("boot-mr-done", b""),
)
READY = RuntimeEvent("system-ready", b"")
EVENTS = (
    *BOOT_EVENTS,
    RuntimeEvent("key-provider", PROVIDER),
    RuntimeEvent("storage-fs", b"zfs"),
    READY,
    RuntimeEvent("started", b"by the app"),
)

LITE = lite_text()
IMAGE_HASH = bytes.fromhex(json.loads(LITE)["os_image_hash"])
LEGACY = json.dumps({"os_image_hash": "ab" * 32, "memory_size": 2 << 30})
UNVERIFIED = Policy(tdx=TdxPolicy(allow_unverified_image=True))

Log = Sequence[TdxEvent]


def boot_log() -> list[TdxEvent]:
    """The complete log of RTMR0 to RTMR2 of a lite guest, its ACPI events among them."""
    rtmr0 = [_plain(0, digest) for digest in (sha384(HOB_2_GIB), *map(bytes.fromhex, RTMR0_LOG))]
    rtmr0 += [*acpi_events(), *(_plain(0, bytes.fromhex(digest)) for digest in RTMR0_TAIL)]
    rtmr1 = [_plain(1, digest) for digest in (h48("kernel"), *map(bytes.fromhex, RTMR1_LOG))]
    return [*rtmr0, *rtmr1, _plain(2, h48("cmdline")), _plain(2, h48("initrd"))]


def runtime_log(events: Sequence[RuntimeEvent]) -> list[TdxEvent]:
    """The RTMR3 part of a log, as a guest collects it."""
    return [
        TdxEvent(
            3,
            RUNTIME_EVENT_TYPE,
            event_digest(event, "sha384"),
            event.event,
            event.payload,
            event.version,
            event_preimage(event) if event.version == 2 else None,
        )
        for event in events
    ]


def _plain(imr: int, digest: bytes) -> TdxEvent:
    return TdxEvent(imr, 0x80000001, digest, "", b"firmware")


class TdxGuest:
    """A domain of a lite image under one simulated Intel."""

    def __init__(self) -> None:
        self.intel = SimulatedIntel.create()
        self.anchors = TrustAnchors.production().with_extra(self.intel.root_pem)
        self.endorsements = Endorsements(tdx=(self.intel.collateral(NOW - 60),))

    def attestation(
        self,
        *,
        events: Sequence[RuntimeEvent] = EVENTS,
        told: Sequence[RuntimeEvent] | None = None,
        log: Log | None = None,
        config: str = LITE,
        registers: LiteRegisters | None = None,
        report_data: bytes = REPORT_DATA,
        quoted: bytes | None = None,
        **domain: Any,
    ) -> Attestation:
        """`events` are measured and `told` is written down, as `quoted` is signed and `report_data` told."""
        boot = lite_quoted() if registers is None else registers
        td = SimulatedTdx(
            self.intel,
            Domain(mrtd=boot.mrtd, **domain),
            rtmrs=(boot.rtmr0, boot.rtmr1, boot.rtmr2, bytes(48)),
        )
        for event in events:
            td.extend_rtmr(3, event_digest(event, "sha384"))
        told = events if told is None else told
        full = [*boot_log(), *runtime_log(told)] if log is None else log
        quote = TdxQuote(td.quote(report_data if quoted is None else quoted), tuple(full))
        return Attestation(quote, tuple(told), report_data, config)

    def verify(
        self,
        attestation: Attestation | None = None,
        *,
        policy: Policy = DEFAULT_POLICY,
        now: int = NOW,
        report_data: bytes | None = None,
        endorsements: Endorsements | None = None,
        anchors: TrustAnchors | None = None,
    ) -> VerifiedAttestation:
        return verify_attestation(
            self.attestation() if attestation is None else attestation,
            now=now,
            anchors=self.anchors if anchors is None else anchors,
            policy=policy,
            endorsements=self.endorsements if endorsements is None else endorsements,
            report_data=report_data,
        )

    def checked(self, policy: Policy = DEFAULT_POLICY, **changes: Any) -> VerifiedAttestation:
        return self.verify(self.attestation(**changes), policy=policy)


SEPARATOR = hashlib.sha256(bytes(4)).digest()
PARTITION_TABLE = b"EFI PART" + bytes(84)
TABLE = hashlib.sha256(PARTITION_TABLE).digest()
UKI, KERNEL = (hashlib.sha256(name).digest() for name in (b"uki", b"kernel"))
PCR2 = (SEPARATOR, TABLE, UKI, KERNEL)
# What a real log has of the table is in the domain's log, on RTMR1.
TABLE_EVENT = TdxEvent(1, 0x80000006, sha384(PARTITION_TABLE), "", PARTITION_TABLE)


def gcp_text(uki: bytes = UKI, **fields: Any) -> str:
    carried, image = document("gcp", cbor2.dumps({"version": 1, "uki_auth": uki}))
    return json.dumps({"os_image_hash": image.hex(), "gcp_measurement": carried, **fields})


GCP_IMAGE = bytes.fromhex(json.loads(gcp_text())["os_image_hash"])


class GcpGuest:
    """A GCP guest under one simulated Intel and one simulated Google."""

    def __init__(self) -> None:
        self.forge = GcpForge()
        self.anchors = self.forge.anchors
        self.endorsements = self.forge.endorsements

    def attestation(
        self,
        *,
        events: Sequence[RuntimeEvent] = EVENTS,
        config: str | None = None,
        pcr2: Sequence[bytes] = PCR2,
        firmware: Sequence[bytes] = FIRMWARE,
        log: Log = (TABLE_EVENT,),
        rtmrs: tuple[bytes, bytes, bytes] = (bytes(48), fold(TABLE_EVENT.digest), h48("rtmr2")),
        report_data: bytes = REPORT_DATA,
        quoted: bytes | None = None,
        quote: bytes | None = None,
        **domain: Any,
    ) -> Attestation:
        td = SimulatedTdx(self.forge.intel, Domain(**domain), rtmrs=(*rtmrs, bytes(48)))
        for event in events:
            td.extend_rtmr(3, event_digest(event, "sha384"))
        made = td.quote(report_data if quoted is None else quoted)
        pcrs = {
            0: replay_digests(firmware, "sha256"),
            2: replay_digests(pcr2, "sha256"),
            14: replay_digests((event_digest(event, "sha256") for event in events), "sha256"),
        }
        tpm_log = (*(TpmEvent(0, d) for d in firmware), *(TpmEvent(2, d) for d in pcr2))
        tpm = self.forge.tpm(quote=made, pcrs=pcrs, log=tpm_log)
        full = (*log, *runtime_log(events))
        return Attestation(
            GcpTdxQuote(TdxQuote(made if quote is None else quote, full), tpm),
            tuple(events),
            report_data,
            gcp_text() if config is None else config,
        )

    def verify(
        self,
        attestation: Attestation | None = None,
        *,
        policy: Policy = DEFAULT_POLICY,
        report_data: bytes | None = None,
        endorsements: Endorsements | None = None,
    ) -> VerifiedAttestation:
        return verify_attestation(
            self.attestation() if attestation is None else attestation,
            now=NOW,
            anchors=self.anchors,
            policy=policy,
            endorsements=self.endorsements if endorsements is None else endorsements,
            report_data=report_data,
        )

    def checked(self, policy: Policy = DEFAULT_POLICY, **changes: Any) -> VerifiedAttestation:
        return self.verify(self.attestation(**changes), policy=policy)


def gcp_policy(**fields: Any) -> Policy:
    return Policy(gcp=GcpPolicy(**fields))


def aws_text(pcrs: dict[int, bytes], **fields: Any) -> str:
    digest = hashlib.sha256(b"".join(pcrs[index] for index in (4, 7, 12))).digest()
    carried, image = document("aws", cbor2.dumps({"boot_pcr_digest": digest}))
    return json.dumps({"os_image_hash": image.hex(), "aws_measurement": carried, **fields})


class TpmGuest:
    """An EC2 instance with a NitroTPM under one simulated AWS."""

    def __init__(self) -> None:
        self.authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(self.authority.root_pem)

    def attestation(
        self,
        *,
        events: Sequence[RuntimeEvent] = EVENTS,
        told: Sequence[RuntimeEvent] | None = None,
        config: str | None = None,
        report_data: bytes = REPORT_DATA,
        quoted: bytes | None = None,
        pcrs: dict[int, bytes] | None = None,
    ) -> Attestation:
        tpm = SimulatedNitroTpm(self.authority, pcrs, lambda: NOW, instance_id="i-0123456789abcdef0")
        for event in events:
            tpm.extend(14, event_digest(event, "sha384"))
        text = aws_text(tpm.pcrs) if config is None else config
        made = tpm.attestation(user_data=report_data if quoted is None else quoted)
        return Attestation(NitroTpmQuote(made), tuple(events if told is None else told), report_data, text)

    def verify(
        self,
        attestation: Attestation | None = None,
        *,
        policy: Policy = DEFAULT_POLICY,
        now: int = NOW,
        report_data: bytes | None = None,
        endorsements: Endorsements = NO_ENDORSEMENTS,
    ) -> VerifiedAttestation:
        return verify_attestation(
            self.attestation() if attestation is None else attestation,
            now=now,
            anchors=self.anchors,
            policy=policy,
            endorsements=endorsements,
            report_data=report_data,
        )

    def checked(self, **changes: Any) -> VerifiedAttestation:
        return self.verify(self.attestation(**changes))


MR_CONFIG_V1 = mr_config_id_v1(COMPOSE)


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def without(attestation: Attestation, **changes: Any) -> Attestation:
    """The envelope with parts replaced after everything was signed."""
    return msgspec.structs.replace(attestation, **changes)
