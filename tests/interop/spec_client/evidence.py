"""Envelopes around what hardware says: version 0, as guests of today send it (spec attestation 1.3, 1.7)."""

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import pairwise

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from tests.interop.spec_client import messagepack, scale

TDX, GCP_TDX, NITRO = 0, 1, 2

RUNTIME_EVENT = 0x08000001
RUNTIME_RTMR = 3
ACPI_EVENT, ACPI_PAYLOAD = 10, b"ACPI DATA"


@dataclass(frozen=True)
class TdxEvent:
    imr: int
    event_type: int
    digest: bytes
    event: str
    payload: bytes


@dataclass(frozen=True)
class TpmQuote:
    message: bytes
    signature: bytes
    pcrs: tuple[tuple[int, str, bytes], ...]
    ak_cert: bytes
    platform: int
    events: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence. `quote` is the hardware's own: a TDX quote, or an NSM document."""

    variant: int
    quote: bytes
    report_data: bytes
    runtime_events: tuple[tuple[str, bytes], ...] = ()
    config: str = ""
    tdx_events: tuple[TdxEvent, ...] = ()
    tpm: TpmQuote | None = None


def binding(spki: bytes) -> bytes:
    """Report data for a TLS key (spec kms 4.3)."""
    return hashlib.sha512(b"ratls-cert:" + spki).digest()


def nitro(document: bytes, report_data: bytes, app_id: bytes | None) -> Evidence:
    """What get-keys makes of an NSM document (spec kms 8.2, step 3)."""
    pcrs = nsm_payload(document)["pcrs"]
    images = [pcrs[index] for index in range(3)]
    image_hash = hashlib.sha256(b"".join(images)).digest() if any(map(any, images)) else bytes(32)
    return Evidence(
        NITRO,
        document,
        report_data,
        () if app_id is None else (("app-id", app_id),),
        json.dumps({"os_image_hash": image_hash.hex()}, separators=(",", ":")),
    )


def nsm_payload(document: bytes) -> dict[str, object]:
    """The signed map of an untagged COSE_Sign1 document."""
    _protected, _unprotected, payload, _signature = cbor2.loads(document)
    return cbor2.loads(payload)


def stripped(evidence: Evidence) -> Evidence:
    """What goes into a certificate (spec kms 4.4)."""
    kept = []
    for event in evidence.tdx_events:
        if event.imr == RUNTIME_RTMR and event.event_type == RUNTIME_EVENT:
            kept.append(replace(event, digest=b""))
        elif event.imr == RUNTIME_RTMR:
            kept.append(replace(event, payload=b""))
        elif evidence.variant == TDX and (event.event_type, event.payload) == (ACPI_EVENT, ACPI_PAYLOAD):
            kept.append(event)
    return replace(evidence, tdx_events=tuple(kept))


def attested_report_data(evidence: Evidence) -> bytes:
    """The report data inside what the hardware signed (spec attestation 2.2)."""
    if evidence.variant == NITRO:
        return bytes(nsm_payload(evidence.quote)["user_data"])  # type: ignore[arg-type]
    version = int.from_bytes(evidence.quote[:2], "little")
    body = {4: 48, 5: 54}[version]
    return evidence.quote[body + 520 : body + 584]


def encode(evidence: Evidence) -> bytes:
    out = bytes([0, evidence.variant]) + scale.data(evidence.quote)
    if evidence.variant in {TDX, GCP_TDX}:
        out += scale.listed(map(_tdx_event, evidence.tdx_events))
    if evidence.tpm is not None:
        out += _tpm_quote(evidence.tpm)
    out += scale.listed(scale.text(name) + scale.data(payload) for name, payload in evidence.runtime_events)
    return out + evidence.report_data + scale.text(evidence.config)


def encode_v1(evidence: Evidence) -> bytes:
    """An enclave's envelope as guests of tomorrow send it: MessagePack (attestation 1.4; drift #1207)."""
    if evidence.variant != NITRO:
        raise ValueError("an enclave's alone")
    events = [{"event": name, "payload": payload} for name, payload in evidence.runtime_events]
    stack = {
        "report_data": tuple(evidence.report_data),
        "runtime_events": events,
        "config": evidence.config,
    }
    return messagepack.pack(
        {
            "version": 1,
            "platform": {"kind": "nitro-enclave", "data": {"nsm_quote": tuple(evidence.quote)}},
            "stack": {"kind": "dstack", "data": stack},
        }
    )


def check_nsm_document(document: bytes, root: x509.Certificate) -> None:
    """Check signature and chain of a document under the root that a client was given (attestation 4.4)."""
    protected, _, payload, signature = cbor2.loads(document)
    if cbor2.loads(protected) != {1: -35} or len(signature) != 96:
        raise ValueError("not signed with es384")
    fields = cbor2.loads(payload)
    leaf, *issuers = map(x509.load_der_x509_certificate, (fields["certificate"], *fields["cabundle"][:0:-1]))
    for certificate, issuer in pairwise((leaf, *issuers, root)):
        certificate.verify_directly_issued_by(issuer)
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("not a key for es384")
    r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))


def decode(envelope: bytes) -> Evidence:
    reader = scale.Reader(envelope)
    version, variant = reader.take(2)
    if version != 0 or variant not in {TDX, GCP_TDX, NITRO}:
        raise ValueError(f"an envelope of version {version} and variant {variant}")
    quote = reader.data()
    events = () if variant == NITRO else reader.listed(lambda: _read_tdx_event(reader))
    tpm = _read_tpm_quote(reader) if variant == GCP_TDX else None
    runtime = reader.listed(lambda: (reader.text(), reader.data()))
    report_data = reader.take(64)
    config = reader.text()
    reader.end()
    return Evidence(variant, quote, report_data, runtime, config, events, tpm)


def event_log_json(events: tuple[TdxEvent, ...]) -> bytes:
    """The JSON form of a TDX event log (spec attestation 3.3)."""
    return json.dumps(
        [
            {
                "imr": event.imr,
                "event_type": event.event_type,
                "digest": event.digest.hex(),
                "event": event.event,
                "event_payload": event.payload.hex(),
            }
            for event in events
        ]
    ).encode()


def _tdx_event(event: TdxEvent) -> bytes:
    return (
        scale.u32(event.imr)
        + scale.u32(event.event_type)
        + scale.data(event.digest)
        + scale.text(event.event)
        + scale.data(event.payload)
    )


def _read_tdx_event(reader: scale.Reader) -> TdxEvent:
    return TdxEvent(reader.u32(), reader.u32(), reader.data(), reader.text(), reader.data())


def _tpm_quote(tpm: TpmQuote) -> bytes:
    return (
        scale.data(tpm.message)
        + scale.data(tpm.signature)
        + scale.listed(scale.u32(i) + scale.text(name) + scale.data(value) for i, name, value in tpm.pcrs)
        + scale.data(tpm.ak_cert)
        + bytes([tpm.platform])
        + scale.listed(scale.u32(index) + scale.data(digest) for index, digest in tpm.events)
    )


def _read_tpm_quote(reader: scale.Reader) -> TpmQuote:
    return TpmQuote(
        reader.data(),
        reader.data(),
        reader.listed(lambda: (reader.u32(), reader.text(), reader.data())),
        reader.data(),
        reader.take(1)[0],
        reader.listed(lambda: (reader.u32(), reader.data())),
    )
