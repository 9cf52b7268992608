"""Which issuer a guest has, by the keys file that it booted with (spec guest-agent section 3.1)."""

from collections.abc import Sequence
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enclave.agent.certificates import CertificateIssuer
from enclave.agent.kms_issuer import KmsIssuer
from enclave.agent.local_issuer import LocalIssuer
from enclave.dstack_util.enclave_config import kms_endpoint
from enclave.dstack_util.kms_client import KmsClient
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier
from enclave.tee.tee import Attestor
from shared.attestation.identity import AppInfo, app_info
from shared.errors import ConfigError
from shared.keys.app_keys_file import AppKeysFile, KmsProvider
from shared.net.dialer import Dialer
from shared.ratls.certificates import Issuer


def certificate_issuer(
    keys: AppKeysFile,
    *,
    app_id: bytes,
    attestor: Attestor,
    verifier: PeerVerifier,
    dialer: Dialer,
    more_urls: Sequence[str] = (),
    vm_config: str = "",
) -> CertificateIssuer:
    """Return the issuer that `keys` name: their KMS, or the CA in the file.

    `app_id` (20 bytes) is whose certificates a KMS must return. `verifier` judges a KMS, and for app info in
    a certificate of the guest's own CA this guest. `more_urls` are further KMSes with the same roots,
    `vm_config` what they are told instead of what the evidence says. Raises `ConfigError`: `app_keys.ca`,
    `app_keys.tmp_ca`, `image.kms_url`.
    """
    evidence = partial(certificate_evidence, attestor)
    provider = keys.key_provider
    if not isinstance(provider, KmsProvider):
        ca = read_ca(keys.ca_cert, provider.key, "app_keys.ca")
        return LocalIssuer(ca, evidence=evidence, describe=partial(_describe, verifier), now=verifier.now)
    root_pem = keys.ca_cert.encode()
    endpoints = dict.fromkeys(kms_endpoint(url) for url in (provider.url, *more_urls))
    clients = [
        KmsClient(endpoint, root_pem=root_pem, dialer=dialer, verifier=verifier) for endpoint in endpoints
    ]
    temporary = None
    if provider.tmp_ca_key:
        temporary = read_ca(provider.tmp_ca_cert, provider.tmp_ca_key, "app_keys.tmp_ca")
    return KmsIssuer(
        clients,
        app_id=app_id,
        evidence=evidence,
        now=verifier.now,
        temporary=temporary,
        vm_config=vm_config,
    )


def _describe(verifier: PeerVerifier, envelope: bytes, report_data: bytes) -> AppInfo:
    return app_info(verifier.verify(envelope, report_data))


def read_ca(certificate: str, key: str, code: str) -> Issuer:
    """Read a CA of the keys file, PEMs both. Raises `ConfigError` with `code`."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
        private = load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError, x509.InvalidVersion):
        # no cause: the sentence of a parser could quote a key
        raise ConfigError(code, "a ca of the keys file is no pem certificate with its key") from None
    if not isinstance(private, EllipticCurvePrivateKey):
        raise ConfigError(code, "the key of a ca of the keys file is not on a curve")
    return parsed, private
