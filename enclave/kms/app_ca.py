"""What SignCert signs once it is decided that the app may have it (spec kms section 4.2, 4.5)."""

from cryptography import x509

from enclave.kms.csr_names import check_names
from enclave.kms.key_store import KeyMaterial
from shared.attestation.envelope import encode_envelope
from shared.attestation.identity import AppInfo
from shared.attestation.stripped import strip
from shared.attestation.verify import VerifiedAttestation
from shared.keys.app_keys import app_ca_scalar
from shared.keys.kdf import p256_key
from shared.ratls.app_certificate import Stamps, app_certificate, validity
from shared.ratls.app_info import encode_app_info
from shared.ratls.certificates import app_ca_certificate
from shared.ratls.csr import Csr, request_key


def issue_chain(
    keys: KeyMaterial, csr: Csr, verified: VerifiedAttestation, info: AppInfo, *, now: int, lifetime: int
) -> tuple[x509.Certificate, x509.Certificate, x509.Certificate]:
    """Return the leaf that `csr` asks for, its app's CA, and the root.

    `verified` is the request's evidence, bound to its key, and `info` what was verified of it: nothing that
    the leaf says of the app comes from the request. Raises what `check_names`, `validity` and the derivation
    raise.
    """
    config = csr.config
    check_names(config, kms_domain=keys.domain, app_id=info.app_id, instance_id=info.instance_id)
    root = (keys.root_ca_cert, keys.root_ca_key)
    app_key = p256_key(app_ca_scalar(keys.root_keys(), info.app_id))
    app_ca = app_ca_certificate(app_key, app_id=info.app_id, issuer=root)
    leaf = app_certificate(
        request_key(csr),
        config,
        Stamps(
            app_id=info.app_id,
            app_info=encode_app_info(info) if config.ext_app_info else None,
            attestation=(
                encode_envelope(strip(verified.attestation, keep_boot=True)) if config.ext_quote else None
            ),
        ),
        issuer=(app_ca, app_key),
        times=validity(config, now=now, lifetime=lifetime, issuer=app_ca),
    )
    return leaf, app_ca, keys.root_ca_cert
