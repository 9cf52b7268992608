"""What verification needs besides the evidence: vendors' statements (endorsements, in RFC 9334's words).

Nothing here is trusted for where it came from: each piece is signed, and checked against a trust anchor when
it is used. Fetching is `shared.net`'s work; verification only takes what it is given.
"""

import msgspec


class TdxCollateral(msgspec.Struct, frozen=True, kw_only=True):
    """Intel's statements about one platform model (spec attestation section 3.6, upstream's ten fields).

    `tcb_info` and `qe_identity` are the exact JSON texts that Intel signed, signatures r || s (64 bytes),
    chains PEM with the signer first, CRLs DER. `pck_certificate_chain` is only for quotes that carry none.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    pck_certificate_chain: str | None = None


class Endorsements(msgspec.Struct, frozen=True):
    """All that was fetched or loaded from a bundle, for one or many pieces of evidence.

    `certificates` are issuers that a chain may be built with, `crls` revocation lists, both DER in any order.
    """

    tdx: tuple[TdxCollateral, ...] = ()
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()


NO_ENDORSEMENTS = Endorsements()
