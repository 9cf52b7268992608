"""Certificate extensions of the enterprise arc 1.3.6.1.4.1.62397.1 (spec kms section 4.1).

Their content is wrapped twice: the extension's own OCTET STRING holds one more DER OCTET STRING. A reader
requires that an extension occurs once, that the inner string is DER, and that nothing follows it.
"""

from typing import Final

from cryptography import x509
from cryptography.hazmat.asn1 import decode_der, encode_der

from shared.errors import InvalidEvidence

_ARC: Final = "1.3.6.1.4.1.62397.1."
TDX_QUOTE: Final = x509.ObjectIdentifier(_ARC + "1")  # legacy, read and never written
EVENT_LOG: Final = x509.ObjectIdentifier(_ARC + "2")  # legacy, goes with the quote
APP_ID: Final = x509.ObjectIdentifier(_ARC + "3")
USAGE: Final = x509.ObjectIdentifier(_ARC + "4")
ATTESTATION: Final = x509.ObjectIdentifier(_ARC + "8")
APP_INFO: Final = x509.ObjectIdentifier(_ARC + "9")

USAGE_KMS_RPC: Final = "kms:rpc"
USAGE_APP_CA: Final = "app:ca"
USAGE_APP: Final = "app:custom"


def read_extensions(certificate: x509.Certificate) -> x509.Extensions:
    """Return the parsed extensions.

    Raises `InvalidEvidence`: `ratls.extension.duplicate` when one occurs twice, `ratls.extension.malformed`
    when a standard one does not parse.
    """
    try:
        return certificate.extensions
    except x509.DuplicateExtension as error:
        raise InvalidEvidence(
            "ratls.extension.duplicate", f"certificate extension {error.oid.dotted_string} occurs twice"
        ) from error
    except (ValueError, TypeError, x509.UnsupportedGeneralNameType) as error:
        raise InvalidEvidence(
            "ratls.extension.malformed", "a certificate extension does not parse as its type"
        ) from error


def read_extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    """Return the unwrapped content of one extension of the arc, or None when it is absent.

    Raises `InvalidEvidence`: as `read_extensions`, and `ratls.extension.encoding` when the value is not
    exactly one DER OCTET STRING.
    """
    return unwrap(read_extensions(certificate), oid)


def unwrap(extensions: x509.Extensions, oid: x509.ObjectIdentifier) -> bytes | None:
    """As `read_extension`, on extensions that were read already."""
    for extension in extensions:
        if extension.oid == oid:
            break
    else:
        return None
    value = extension.value
    if not isinstance(value, x509.UnrecognizedExtension):
        raise TypeError(f"extension {oid.dotted_string} is not of the dstack arc")
    try:
        return decode_der(bytes, value.value)
    except ValueError as error:
        raise InvalidEvidence(
            "ratls.extension.encoding",
            f"certificate extension {oid.dotted_string} is not exactly one der octet string",
        ) from error


def read_attestation(extensions: x509.Extensions) -> bytes | None:
    """Return the attestation envelope's bytes, or None when the certificate carries no evidence.

    The legacy pair of TDX quote and event log (plain or compressed) is read where there is no envelope, and
    comes back as the envelope that it stands for: report_data of the quote, runtime events of the log, an
    empty config. Raises `InvalidEvidence`: `ratls.extension.encoding`, `ratls.extension.legacy` for half a
    pair, and for what the pair holds `event_log.*` and `tdx.quote.*`.
    """
    envelope = unwrap(extensions, ATTESTATION)
    return _read_legacy(extensions) if envelope is None else envelope


def _read_legacy(extensions: x509.Extensions) -> bytes | None:
    quote, event_log = unwrap(extensions, TDX_QUOTE), unwrap(extensions, EVENT_LOG)
    if quote is None and event_log is None:
        return None
    if quote is None or event_log is None:
        present, absent = ("event log", "quote") if quote is None else ("quote", "event log")
        raise InvalidEvidence(
            "ratls.extension.legacy", f"certificate carries a legacy tdx {present} without its {absent}"
        )
    # only very old certificates need these
    from shared.attestation.envelope import encode_envelope  # noqa: PLC0415 - as above
    from shared.attestation.event_log_json import expand_event_log  # noqa: PLC0415 - as above
    from shared.attestation.legacy_request import attestation_of_quote  # noqa: PLC0415 - as above

    return encode_envelope(attestation_of_quote(quote, expand_event_log(event_log), ""))


def read_usage(extensions: x509.Extensions) -> str | None:
    """Return the special usage (`kms:rpc`, ...), or None when there is none.

    Raises `InvalidEvidence("ratls.extension.encoding")` when it is not UTF-8.
    """
    content = unwrap(extensions, USAGE)
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvidence("ratls.extension.encoding", "certificate special usage is not utf-8") from error


def attestation_extension(envelope: bytes) -> x509.UnrecognizedExtension:
    """Return the extension that carries an attestation envelope."""
    return _wrap(ATTESTATION, envelope)


def usage_extension(usage: str) -> x509.UnrecognizedExtension:
    """Return the extension that carries a special usage."""
    return _wrap(USAGE, usage.encode())


def app_id_extension(app_id: bytes) -> x509.UnrecognizedExtension:
    """Return the extension that names an app, 20 raw bytes."""
    return _wrap(APP_ID, app_id)


def app_info_extension(encoded: bytes) -> x509.UnrecognizedExtension:
    """Return the extension that carries an encoded app info (`shared.ratls.app_info`)."""
    return _wrap(APP_INFO, encoded)


def _wrap(oid: x509.ObjectIdentifier, content: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, encode_der(content))
