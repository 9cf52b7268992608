"""A certificate request in layout V1, which old clients send and ours do not, written field by field."""

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from shared.attestation import scale
from shared.ratls.certificates import spki_der
from shared.ratls.csr import CsrConfig


def old_csr(key: EllipticCurvePrivateKey, config: CsrConfig, quote: bytes, event_log: bytes) -> bytes:
    """Return the request for `key`; `event_log` is JSON."""
    return (
        scale.string("please sign cert:")
        + scale.bytes_(spki_der(key.public_key()))
        + (b"\0" if config.org_name is None else b"\1" + scale.string(config.org_name))
        + scale.string(config.subject)
        + scale.list_of(config.subject_alt_names, scale.string)
        + bytes([config.usage_server_auth, config.usage_client_auth, config.ext_quote])
        + scale.bytes_(quote)
        + scale.bytes_(event_log)
    )
