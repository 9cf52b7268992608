"""What guests, other KMSs and operators do with a KMS (spec kms 2, 5.3, 8)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.interop.spec_client import certificates, evidence, keys, protobuf
from tests.interop.spec_client.evidence import Evidence
from tests.interop.spec_client.prpc import Channel, Dial, Identity

Attest = Callable[[bytes], Evidence]
"""The hardware: evidence over 64 bytes of report data."""

KEY_FIELDS = {2: "disk_crypt_key", 3: "env_crypt_key", 4: "k256_key", 5: "k256_signature"}
TEXT_FIELDS = {1: "ca_cert", 6: "tproxy_app_id", 7: "gateway_app_id"}


@dataclass(frozen=True)
class TempCa:
    """The answer of GetTempCaCert."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    root_pem: str


class Kms:
    """One KMS at an address. `host` is the name it must have."""

    def __init__(self, dial: Dial, host: str) -> None:
        self.anyone = Channel(dial, host)

    def get_temp_ca(self) -> TempCa:
        """Ask over unverified TLS, as the first step of every guest does (4.7, 8.1)."""
        answer = self.anyone.call("GetTempCaCert")
        key = load_pem_private_key(answer["temp_ca_key"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = x509.load_pem_x509_certificate(answer["temp_ca_cert"].encode())
        return TempCa(certificate, key, answer["ca_cert"])

    def trusted(self, identity: Identity | None, root_pem: str | None = None) -> Channel:
        """A channel that verifies the server under the root that GetTempCaCert gave, or a pinned one."""
        trust = self.get_temp_ca().root_pem if root_pem is None else root_pem
        return replace(self.anyone, trust=trust, identity=identity)

    def as_guest(self, attest: Attest) -> Channel:
        """The channel of a guest: a new key, evidence over it, a certificate under the temp CA."""
        temp_ca = self.get_temp_ca()
        return self.trusted(identity(attest, (temp_ca.certificate, temp_ca.key)), temp_ca.root_pem)


def identity(
    attest: Attest | None,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    attested: ec.EllipticCurvePrivateKey | None = None,
    form: "Form | None" = None,
) -> Identity:
    """A client's certificate.

    `attested` is the key that the evidence is over, if not the certificate's; `form` makes the extensions of
    the evidence, a stripped envelope of version 0 where it is not given.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = {}
    if attest is not None:
        shown = evidence.stripped(attest(evidence.binding(certificates.spki(attested or key))))
        extensions = (form or in_envelope)(shown)
    return Identity(certificates.client_certificate(key, extensions, issuer), key)


Form = Callable[[Evidence], dict[int, bytes]]


def in_envelope(shown: Evidence) -> dict[int, bytes]:
    return {certificates.ATTESTATION: evidence.encode(shown)}


def in_envelope_v1(shown: Evidence) -> dict[int, bytes]:
    return {certificates.ATTESTATION: evidence.encode_v1(shown)}


def in_legacy_pair(shown: Evidence) -> dict[int, bytes]:
    """Quote and event log in extensions of their own, of TDX guests before envelopes (4.1)."""
    log = evidence.event_log_json(shown.tdx_events)
    return {certificates.LEGACY_QUOTE: shown.quote, certificates.LEGACY_EVENT_LOG: log}


def app_key_request(vm_config: str = "", api_version: int = 1) -> dict[str, object]:
    return {"api_version": api_version, "vm_config": vm_config}


def app_keys_of_json(answer: dict[str, Any]) -> dict[str, bytes | str]:
    """AppKeyResponse of the JSON mapping, hex decoded; fields of later servers are ignored (1.3)."""
    binary = {*KEY_FIELDS.values(), "os_image_hash"}
    return {
        **{name: bytes.fromhex(answer[name]) for name in binary},
        **{name: answer[name] for name in TEXT_FIELDS.values()},
    }


def app_keys_of_protobuf(message: bytes) -> dict[str, bytes | str]:
    """AppKeyResponse of its protobuf form."""
    found = protobuf.fields(message)
    names = {**TEXT_FIELDS, **KEY_FIELDS, 8: "os_image_hash"}
    answer: dict[str, bytes | str] = {}
    for number, name in names.items():
        (value,) = found.get(number, [b""])
        assert isinstance(value, bytes)
        answer[name] = value.decode() if number in TEXT_FIELDS else value
    return answer


def expected_app_keys(root: bytes, root_k256: bytes, app_id: bytes, instance_id: bytes) -> dict[str, bytes]:
    """The secrets of an app by the formulas of 3.2, from the two root scalars."""
    app_k256 = keys.app_k256_key(root_k256, app_id)
    return {
        "disk_crypt_key": keys.disk_crypt_key(root, app_id, instance_id),
        "env_crypt_key": keys.env_crypt_key(root, app_id),
        "k256_key": app_k256,
        "k256_signature": keys.k256_sign(root_k256, keys.issued_message(app_id, app_k256)),
    }


def env_key_signers(app_id: bytes, answer: dict[str, Any]) -> tuple[bytes, bytes]:
    """Who signed an env encryption key: the legacy signature's key, and that of the one with a time."""
    public_key = bytes.fromhex(answer["public_key"])
    legacy = keys.env_message(app_id, public_key)
    timed = keys.env_message(app_id, public_key, answer["timestamp"])
    return (
        keys.k256_recover(legacy, bytes.fromhex(answer["signature"])),
        keys.k256_recover(timed, bytes.fromhex(answer["signature_v1"])),
    )


def sign_cert(
    channel: Channel,
    key: ec.EllipticCurvePrivateKey,
    csr: bytes,
    *,
    api_version: int = 2,
    vm_config: str = "",
    signature: bytes | None = None,
) -> list[x509.Certificate]:
    """Have a request signed; returns leaf, app CA and root CA."""
    answer = channel.call(
        "SignCert",
        {
            "api_version": api_version,
            "csr": csr.hex(),
            "signature": (signature or certificates.signed(key, csr)).hex(),
            "vm_config": vm_config,
        },
    )
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in answer["certificate_chain"]]


def check_server(certificate: x509.Certificate) -> Evidence:
    """The evidence of a KMS's own certificate: bound to its key, by the envelope and by the hardware."""
    envelope = certificates.extension(certificate, certificates.ATTESTATION)
    if envelope is None:
        raise ValueError("the server's certificate has no evidence")
    shown = evidence.decode(envelope)
    wanted = evidence.binding(certificates.spki(certificate))
    if not shown.report_data == evidence.attested_report_data(shown) == wanted:
        raise ValueError("the evidence is over another key")
    return shown


def generated_keys_report_data(root_spki: bytes, k256_public: bytes) -> bytes:
    """What the evidence of a bootstrap is over (5.2)."""
    text = f"dstack-kms-genereted-keys-v1:{root_spki.hex()};{k256_public.hex()};"
    return keys.keccak256(text.encode()) + bytes(32)
