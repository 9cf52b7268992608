"""A throw-away Intel and trust domains under it: PCK chain, collateral and quotes, made on the spot.

The bytes follow spec attestation sections 3.1 and 3.6, the values section 8. Nothing is secret about its
purpose: a verifier believes it only where its root is configured as an extra anchor, and then reports
`simulated`.
"""

import hashlib
import json
import os
import struct
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from enclave.simulator.authority_files import certificate_pem, key_pem, write_authority
from enclave.simulator.intel_documents import (
    FMSPC,
    LIFETIME,
    QE_ISV_SVN,
    QE_MRSIGNER,
    qe_identity_document,
    sgx_extension,
    tcb_info_document,
)
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.pck import join_pem, parse_pck_chain
from shared.attestation.tdx_quote import (
    BODY_TD_15,
    ECDSA_P256,
    INTEL_QE_VENDOR,
    PCK_CHAIN,
    QE_REPORT_CERTIFICATION,
    TEE_TDX,
)
from shared.errors import ProtocolError, StorageError
from shared.keys.kdf import hkdf_sha256, p256_key

MRTD: Final = bytes([0x11]) * 48
TD_ATTRIBUTES: Final = 1 << 28  # SEPT_VE_DISABLE
XFAM: Final = 0x602E7  # of the real quotes
TEE_TCB_SVN: Final = bytes([5, 1, 2]) + bytes(13)  # module of SVN 5 in version 1, SEAM loader 2
# The trailing zeros that real quotes arrive with.
PADDING: Final = 70

_ROLES = ("root", "platform", "pck", "tcb")
_NAMES = {
    "root": "Simulated SGX Root CA",
    "platform": "Simulated SGX PCK Platform CA",
    "pck": "Simulated SGX PCK Certificate",
    "tcb": "Simulated SGX TCB Signing",
}
_ISSUED = datetime(2020, 1, 1, tzinfo=UTC)
_EXPIRES = datetime(2049, 12, 31, tzinfo=UTC)
_CRL_NUMBER = 1
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_GUEST_RTMRS = (2, 3)  # the registers that a guest's kernel may extend


class Identity(msgspec.Struct, frozen=True):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    def sign(self, data: bytes) -> bytes:
        """Return r || s over the SHA-256 of `data`."""
        return sign_raw(self.key, data)


class SimulatedIntel(msgspec.Struct, frozen=True):
    """One platform's PCK chain, and the signer of its collateral."""

    root: Identity
    platform: Identity
    pck: Identity
    tcb: Identity

    @classmethod
    def create(cls, *, fmspc: bytes = FMSPC, ppid: bytes | None = None, sgx: bytes | None = None) -> Self:
        """Make a new root and all below it; `sgx` replaces the PCK leaf's SGX extension."""
        root = _issue("root", None)
        platform = _issue("platform", root)
        extension = sgx if sgx is not None else sgx_extension(fmspc, ppid or os.urandom(16))
        return cls(root, platform, _issue("pck", platform, extension), _issue("tcb", root))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Make the root and all below it that 32 bytes stand for: the same certificates every time."""
        root = _issue("root", None, seed=seed)
        platform = _issue("platform", root, seed=seed)
        extension = sgx_extension(FMSPC, hkdf_sha256(seed, (b"simulated ppid",), 16))
        pck = _issue("pck", platform, extension, seed=seed)
        return cls(root, platform, pck, _issue("tcb", root, seed=seed))

    @property
    def root_pem(self) -> bytes:
        """The root certificate, to be configured as an extra trust anchor."""
        return self.root.certificate.public_bytes(Encoding.PEM)

    @property
    def fmspc(self) -> bytes:
        """The platform model that the PCK leaf names, 6 bytes."""
        return parse_pck_chain(self.pck_chain).fmspc

    @property
    def pck_chain(self) -> bytes:
        """The PEM chain that quotes carry."""
        return join_pem((self.pck.der, self.platform.der, self.root.der))

    def collateral(
        self,
        now: int,
        *,
        tcb_info: Mapping[str, object] = {},
        qe_identity: Mapping[str, object] = {},
        revoked: Collection[str] = (),
        crl_issued: int | None = None,
        crl_lifetime: timedelta = LIFETIME,
    ) -> TdxCollateral:
        """Return collateral issued at `now` (unix seconds).

        The mappings replace members of the two documents; `revoked` names roles whose certificates are on
        the lists.
        """
        tcb_text = json.dumps({**tcb_info_document(now, self.fmspc), **tcb_info}, separators=(",", ":"))
        qe_text = json.dumps({**qe_identity_document(now), **qe_identity}, separators=(",", ":"))
        signer = join_pem((self.tcb.der, self.root.der)).decode()
        issued = datetime.fromtimestamp(now if crl_issued is None else crl_issued, UTC)
        return TdxCollateral(
            pck_crl_issuer_chain=join_pem((self.platform.der, self.root.der)).decode(),
            root_ca_crl=_crl(self.root, _ISSUED, _EXPIRES, self._certificates(revoked, {"platform", "tcb"})),
            pck_crl=_crl(self.platform, issued, issued + crl_lifetime, self._certificates(revoked, {"pck"})),
            tcb_info_issuer_chain=signer,
            tcb_info=tcb_text,
            tcb_info_signature=self.tcb.sign(tcb_text.encode()),
            qe_identity_issuer_chain=signer,
            qe_identity=qe_text,
            qe_identity_signature=self.tcb.sign(qe_text.encode()),
        )

    def _certificates(self, revoked: Collection[str], below: Collection[str]) -> list[x509.Certificate]:
        return [getattr(self, role).certificate for role in sorted(set(revoked) & set(below))]

    def save(self, directory: Path) -> None:
        """Write a certificate and a key per role into `directory`; see `write_authority`."""
        identities: dict[str, Identity] = {role: getattr(self, role) for role in _ROLES}
        keys = {f"{role}.key": key_pem(identity.key) for role, identity in identities.items()}
        chain = {f"{role}.pem": certificate_pem(one.certificate) for role, one in identities.items()}
        write_authority(directory, {**keys, **chain})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises `StorageError("simulator.authority.read")`."""
        try:
            return cls(*(_read_identity(directory, role) for role in _ROLES))
        except (OSError, ValueError) as error:
            raise StorageError(
                "simulator.authority.read", f"{directory} holds no readable simulated authority"
            ) from error


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed when a domain is started: the TD report but for RTMRs and report data."""

    mrtd: bytes = MRTD
    td_attributes: int = TD_ATTRIBUTES
    xfam: int = XFAM
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    tee_tcb_svn: bytes = TEE_TCB_SVN
    mr_signer_seam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)
    # of a TD 1.5 report alone
    tee_tcb_svn2: bytes = TEE_TCB_SVN
    mr_service_td: bytes = bytes(48)


class QuotingEnclave(msgspec.Struct, frozen=True, kw_only=True):
    """What SGX reports of the quoting enclave."""

    mr_signer: bytes = QE_MRSIGNER
    isv_prod_id: int = 2
    isv_svn: int = QE_ISV_SVN
    misc_select: int = 0
    attributes: bytes = bytes.fromhex("1500000000000000e700000000000000")

    def report(self, report_data: bytes) -> bytes:
        """Return the SGX report, 384 bytes."""
        return struct.pack(
            "<16sI28s16s32s32s32s96sHH60s64s",
            bytes(16),
            self.misc_select,
            b"",
            self.attributes,
            bytes([0x33]) * 32,
            b"",
            self.mr_signer,
            b"",
            self.isv_prod_id,
            self.isv_svn,
            b"",
            report_data,
        )


_DOMAIN = Domain()
_QUOTING_ENCLAVE = QuotingEnclave()


class SimulatedTdx:
    """One trust domain: registers that can be extended, and quotes over them.

    `rtmrs` are RTMR0 to RTMR3 as booting left them, 48 bytes each, and `event_log` what `event_log()`
    returns: the CCEL table of whatever booted. `version` and `body_type` choose the quote's layout. Methods
    are those of `enclave.devices.tdx.TdxDevice`.
    """

    def __init__(
        self,
        intel: SimulatedIntel,
        domain: Domain = _DOMAIN,
        *,
        rtmrs: tuple[bytes, bytes, bytes, bytes] = (bytes(48),) * 4,
        event_log: bytes = b"",
        version: int = 4,
        body_type: int = BODY_TD_15,
        quoting_enclave: QuotingEnclave = _QUOTING_ENCLAVE,
    ) -> None:
        self._intel = intel
        self._domain = domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._rtmrs = list(rtmrs)
        self._event_log = event_log
        self._version, self._body_type = version, body_type
        self._quoting_enclave = quoting_enclave

    @property
    def rtmrs(self) -> tuple[bytes, ...]:
        """The registers as they are now."""
        return tuple(self._rtmrs)

    def extend_rtmr(self, index: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a 48-byte digest; the firmware's registers are not a guest's.

        Raises `ProtocolError`: `tdx_device.rtmr.index`, `tdx_device.digest.length`.
        """
        if index not in _GUEST_RTMRS:
            raise ProtocolError("tdx_device.rtmr.index", f"register is rtmr{index}, expected rtmr2 or rtmr3")
        if len(digest) != 48:
            raise ProtocolError("tdx_device.digest.length", f"digest has {len(digest)} bytes, expected 48")
        self._rtmrs[index] = hashlib.sha384(self._rtmrs[index] + digest).digest()

    def event_log(self) -> bytes:
        """Return the boot's event log (the CCEL table's data)."""
        return self._event_log

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote over 64 bytes, padded as the kernel's.

        Raises `ProtocolError("tdx_device.report_data.length")`.
        """
        if len(report_data) != 64:
            raise ProtocolError(
                "tdx_device.report_data.length", f"report data has {len(report_data)} bytes, expected 64"
            )
        domain = self._domain
        body = (
            domain.tee_tcb_svn
            + bytes(48)
            + domain.mr_signer_seam
            + domain.seam_attributes
            + struct.pack("<QQ", domain.td_attributes, domain.xfam)
            + b"".join((domain.mrtd, domain.mr_config_id, domain.mr_owner, domain.mr_owner_config))
            + b"".join(self._rtmrs)
            + report_data
        )
        header = struct.pack(
            "<HHIHH16s20s", self._version, ECDSA_P256, TEE_TDX, 0, 0, INTEL_QE_VENDOR, bytes(20)
        )
        if self._version == 5:
            if self._body_type == BODY_TD_15:
                body += domain.tee_tcb_svn2 + domain.mr_service_td
            header += struct.pack("<HI", self._body_type, len(body))
        return self.sealed(header + body) + bytes(PADDING)

    def sealed(self, signed: bytes) -> bytes:
        """Return the quote whose header and body are exactly these bytes."""
        auth = sign_raw(self._key, signed) + self._public + self._certification()
        return signed + struct.pack("<I", len(auth)) + auth

    @property
    def _public(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]

    def _certification(self) -> bytes:
        qe_auth = bytes(range(32))
        report = self._quoting_enclave.report(hashlib.sha256(self._public + qe_auth).digest())
        chain = self._intel.pck_chain + b"\0"
        data = (
            report
            + self._intel.pck.sign(report)
            + struct.pack("<H", len(qe_auth))
            + qe_auth
            + struct.pack("<HI", PCK_CHAIN, len(chain))
            + chain
        )
        return struct.pack("<HI", QE_REPORT_CERTIFICATION, len(data)) + data


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return r || s (64 bytes) of ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _read_identity(directory: Path, role: str) -> Identity:
    certificate = x509.load_pem_x509_certificate((directory / f"{role}.pem").read_bytes())
    key = load_pem_private_key((directory / f"{role}.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"key of {role} is not its certificate's")
    return Identity(certificate, key)


def _issue(
    role: str, issuer: Identity | None, sgx: bytes | None = None, *, seed: bytes | None = None
) -> Identity:
    if seed is None:
        key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    else:
        key = p256_key(hkdf_sha256(seed, (b"simulated intel ", role.encode())))
        serial = int.from_bytes(hkdf_sha256(seed, (b"simulated serial ", role.encode()), 16)) | 1
    name = _name(role)
    ca = role in {"root", "platform"}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_ISSUED)
        .not_valid_after(_EXPIRES)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(ca=ca), critical=True)
        .add_extension(
            x509.BasicConstraints(ca, {"root": 1, "platform": 0}.get(role)),
            critical=True,
        )
    )
    if issuer is not None:
        public = issuer.key.public_key()
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
        )
    if sgx is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(_SGX_EXTENSION, sgx), critical=False)
    signer = key if issuer is None else issuer.key
    return Identity(builder.sign(signer, SHA256(), ecdsa_deterministic=seed is not None), key)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, _NAMES[role]),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated"),
        ]
    )


def _crl(issuer: Identity, issued: datetime, due: datetime, revoked: list[x509.Certificate]) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(due)
        .add_extension(x509.CRLNumber(_CRL_NUMBER), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(issued)
            .build()
        )
    return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)
