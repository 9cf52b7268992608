"""Sample evidence of each platform, and all that a verifier needs to judge it without a network.

For people who try a verifier, for its documentation and for tests: the guest is made up, the bytes are as its
platform's, and nothing of it passes where its root is not configured as an extra anchor.
"""

import argparse
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from enclave.devices.attestor import NitroAttestor
from enclave.devices.gcp_ak import GcpVtpm
from enclave.devices.nsm import Nsm
from enclave.devices.tdx_attestor import collect_tdx
from enclave.devices.tpm import Tpm
from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_vtpm import provision_ak
from enclave.simulator.image import serialised
from enclave.simulator.lite_guest import LiteImage, boot_lite
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from enclave.simulator.nsm import SimulatedNsm
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from enclave.tee.boot_events import identity_events, provider_events
from shared.attestation.collateral import bundle_json
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    PcrValue,
    RuntimeEvent,
    TdxQuote,
    TpmQuote,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.event_log import RUNTIME_RTMR, event_digest
from shared.attestation.gcp import RUNTIME_PCR
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.stripped import strip
from shared.attestation.tcg_log import tpm_events
from shared.attestation.tpm_quote import BANK_NAME
from shared.errors import StorageError
from shared.hex import decode_hex
from shared.measurement.documents import (
    MeasurementDocument,
    aws_measurement_document,
)
from shared.measurement.eif_registers import extended
from shared.measurement.images import aws_boot_pcr_digest
from shared.measurement.vm_config import VmConfig, encode_vm_config, parse_vm_config
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import attestation_extension

Kind = Literal["nitro", "nitro-tpm", "tdx", "gcp"]

BACKDATE = 60
"""Seconds by which lists and collateral are older than the evidence: nothing is from a verifier's future."""

APP_COMPOSE = (
    b'{"manifest_version":2,"name":"sample","runner":"docker-compose","docker_compose_file":"services: {}"}'
)
_IMAGE = b"#!/bin/sh\necho a sample workload\n"
_CERTIFIED = "sample.example"
_LIFETIME = timedelta(days=1)
_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


class SampleGuest(msgspec.Struct, frozen=True, kw_only=True):
    """One guest: `attest` makes its evidence over 64 bytes. `root_pem` and `endorsements` verify it."""

    root_pem: bytes
    endorsements: Endorsements
    attest: Callable[[bytes], Attestation]


def sample_guest(kind: Kind, image: Path, *, now: int) -> SampleGuest:
    """Boot a guest of the image below `image` at `now` (unix seconds).

    Raises `ConfigError`: `simulator.image.missing`, `simulator.image.entry`.
    """
    digest = hashlib.sha256(APP_COMPOSE).digest()
    events = (
        *identity_events(app_id=digest[:20], compose_hash=digest, instance_id=digest[-20:]),
        *provider_events("none"),
    )
    make = {"nitro": _nitro, "nitro-tpm": _nitro_tpm, "tdx": _tdx, "gcp": _gcp}
    return make[kind](image, events, now)


def write_sample(directory: Path, kind: Kind, *, now: int, challenge: bytes) -> dict[str, str]:
    """Write sample evidence over `challenge` (64 bytes) into `directory`, and return what it should show.

    `evidence.bin` is the envelope and `request.json` a verifier's request with it, `document.cose` or
    `quote.bin` the hardware's part alone, `certificate.pem` an RA-TLS certificate, `root.pem` the trust
    anchors, `collateral.json` the endorsements, `app-compose.json` and `image/` what was measured.

    Raises `StorageError("simulator.evidence.write")`.
    """
    try:
        image = directory / "image"
        image.mkdir(parents=True, exist_ok=True)
        (image / "run.sh").write_bytes(_IMAGE)
        guest = sample_guest(kind, image, now=now)
        attestation = guest.attest(challenge)
        envelope = encode_envelope(attestation)
        files = {
            "root.pem": guest.root_pem,
            "collateral.json": bundle_json(guest.endorsements).encode(),
            "app-compose.json": APP_COMPOSE,
            "evidence.bin": envelope,
            "request.json": msgspec.json.encode({"attestation": envelope.hex()}),
            "certificate.pem": _certificate(guest, now),
        }
        match attestation.quote:
            case NitroEnclaveQuote(document):
                files["document.cose"] = document
            case TdxQuote(quote=quote):
                files["quote.bin"] = quote
            case _:
                pass
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise StorageError(
            "simulator.evidence.write", f"cannot write evidence to {directory}: {error.strerror}"
        ) from error
    return {
        "report_data": challenge.hex(),
        "os_image_hash": parse_vm_config(attestation.config).os_image_hash.hex(),
        "compose_hash": hashlib.sha256(APP_COMPOSE).hexdigest(),
    }


def main(arguments: argparse.Namespace) -> int:
    """Run the subcommand: write the files, print as JSON what a verifier should find."""
    text = arguments.report_data
    challenge = secrets.token_bytes(64) if text is None else decode_hex(text, what="--report-data", length=64)
    shown = write_sample(arguments.directory, arguments.platform, now=int(time.time()), challenge=challenge)
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 0


def _nitro(image: Path, events: tuple[RuntimeEvent, ...], now: int) -> SampleGuest:
    authority = SimulatedAuthority.create()
    boot, application = b"sample kernel, command line and bootstrap", _content(image)
    measured = (boot + application, boot, application)
    pcrs = {index: extended(hashlib.sha384(part).digest()) for index, part in enumerate(measured)}
    nsm = SimulatedNsm(pcrs, authority, lambda: now)
    app_id = next(event.payload for event in events if event.event == "app-id")
    attestor = NitroAttestor(Nsm(nsm), app_id)
    return SampleGuest(
        root_pem=authority.root_pem,
        endorsements=Endorsements(crls=authority.crls(now - BACKDATE)),
        attest=lambda challenge: decode_envelope(attestor.attest(challenge)),
    )


def _nitro_tpm(image: Path, events: tuple[RuntimeEvent, ...], now: int) -> SampleGuest:
    authority = SimulatedAuthority.create()
    booted = {4: extended(hashlib.sha384(_content(image)).digest())}
    tpm = SimulatedNitroTpm(authority, booted, lambda: now)
    for event in events:
        tpm.extend(RUNTIME_PCR, event_digest(event, "sha384"))
    checksum_file, measurement, image_hash = aws_measurement_document(aws_boot_pcr_digest(tpm.pcrs))
    config = VmConfig(
        os_image_hash=image_hash, aws_measurement=MeasurementDocument(checksum_file, measurement)
    )

    def attest(challenge: bytes) -> Attestation:
        document = tpm.attestation(user_data=challenge)
        return Attestation(NitroTpmQuote(document), events, challenge, encode_vm_config(config))

    return SampleGuest(
        root_pem=authority.root_pem,
        endorsements=Endorsements(crls=authority.crls(now - BACKDATE)),
        attest=attest,
    )


def _tdx(image: Path, events: tuple[RuntimeEvent, ...], now: int) -> SampleGuest:
    intel = SimulatedIntel.create()
    attest = boot_lite(
        LiteImage.of(_content(image)),
        intel,
        compose_hash=hashlib.sha256(APP_COMPOSE).digest(),
        events=events,
    )
    return SampleGuest(
        root_pem=intel.root_pem,
        endorsements=Endorsements(tdx=(intel.collateral(now - BACKDATE),)),
        attest=attest,
    )


def _gcp(image: Path, events: tuple[RuntimeEvent, ...], now: int) -> SampleGuest:
    intel, google = SimulatedIntel.create(), SimulatedAkAuthority.create()
    boot = GcpBoot.of(image)
    chip = Tpm(SoftwareTpm())
    for extension in boot.pcr_events:
        chip.pcr_extend(extension.register, {BANK_NAME: extension.digest})
    provision_ak(chip, google.issue_ak)
    domain = SimulatedTdx(intel, rtmrs=boot.rtmrs, event_log=boot.ccel())
    _record(domain, events)
    for event in events:
        chip.pcr_extend(RUNTIME_PCR, {BANK_NAME: event_digest(event, "sha256")})

    def attest(challenge: bytes) -> Attestation:
        tdx = collect_tdx(domain, challenge, events)
        tpm = GcpVtpm(chip).quote(hashlib.sha256(tdx.quote).digest())
        vtpm = TpmQuote(
            message=tpm.quoted.message,
            signature=tpm.quoted.signature,
            pcr_values=tuple(PcrValue(index, BANK_NAME, value) for index, value in tpm.values.items()),
            ak_cert=tpm.certificate,
            platform="gcp",
            event_log=tpm_events(boot.tpm_log()),
        )
        return Attestation(GcpTdxQuote(tdx, vtpm), events, challenge, boot.vm_config)

    collateral = (intel.collateral(now - BACKDATE),)
    return SampleGuest(
        root_pem=intel.root_pem + google.root_pem,
        endorsements=msgspec.structs.replace(google.endorsements(now - BACKDATE), tdx=collateral),
        attest=attest,
    )


def _record(domain: SimulatedTdx, events: tuple[RuntimeEvent, ...]) -> None:
    for event in events:
        domain.extend_rtmr(RUNTIME_RTMR, event_digest(event, "sha384"))


def _content(image: Path) -> bytes:
    return b"".join(serialised(image))


def _certificate(guest: SampleGuest, now: int) -> bytes:
    """Return a self-signed RA-TLS certificate (PEM) whose evidence is over its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CERTIFIED)])
    evidence = strip(guest.attest(report_data(RATLS_CERT, spki_der(key.public_key()))), keep_boot=True)
    begin = datetime.fromtimestamp(now - BACKDATE, UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_CERTIFIED)]), critical=False)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(attestation_extension(encode_envelope(evidence)), critical=False)
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)
