"""A throw-away Google: root, intermediate and attestation-key certificates of vTPMs, and their lists.

Issuers and addresses stand in the certificates as in Google's; the addresses lead wherever `base_url` says. A
verifier believes it only where its root is configured as an extra anchor, and then reports `simulated`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
)
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from enclave.simulator.authority_files import certificate_pem, key_pem, write_authority
from enclave.simulator.revocation_lists import PrivateKey, sign_list
from shared.attestation.endorsements import Endorsements
from shared.attestation.tpm_certificate import EK_USAGE
from shared.errors import StorageError

# Nothing answers here: tests that fetch say where.
DEFAULT_URL = "http://ak-authority.invalid"

INTERMEDIATE_PATH = "/tpm/aia/intermediate.der"
ROOT_PATH = "/tpm/aia/root.der"
INTERMEDIATE_LIST_PATH = "/tpm/crl/intermediate.crl"
ROOT_LIST_PATH = "/tpm/crl/root.crl"

_ISSUED = datetime(2020, 1, 1, tzinfo=UTC)
_EXPIRES = datetime(2100, 1, 1, tzinfo=UTC)
_ROOT, _INTERMEDIATE, _URL = "root", "intermediate", "url"


class Authority(msgspec.Struct, frozen=True):
    """A certificate of an authority, and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        """The certificate as DER."""
        return self.certificate.public_bytes(Encoding.DER)

    def list_at(self, now: int, revoked: Iterable[int] = ()) -> bytes:
        """Return this authority's revocation list (DER), fresh at `now` (unix seconds)."""
        return sign_list(self.certificate.subject, self.key, now=now, revoked=revoked)


class SimulatedAkAuthority(msgspec.Struct, frozen=True):
    """What simulated GCP guests share."""

    root: Authority
    intermediate: Authority
    base_url: str

    @classmethod
    def create(cls, base_url: str = DEFAULT_URL, *, rsa_keys: bool = False) -> Self:
        """Make a new authority: P-256, or RSA like Google's with `rsa_keys` (2048 bits, for speed)."""
        root_key, key = _new_key(rsa_keys=rsa_keys), _new_key(rsa_keys=rsa_keys)
        root_name = _name("Simulated EK/AK CA Root")
        root = _authority(_builder(root_name, root_name, root_key.public_key()), root_key)
        builder = _builder(_name("Simulated EK/AK CA Intermediate"), root_name, key.public_key())
        builder = _addressed(builder, base_url + ROOT_PATH, base_url + ROOT_LIST_PATH)
        return cls(Authority(root, root_key), Authority(_authority(builder, root_key), key), base_url)

    @property
    def root_pem(self) -> bytes:
        """The root certificate, to be configured as an extra trust anchor."""
        return self.root.certificate.public_bytes(Encoding.PEM)

    def issue_ak(
        self,
        public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        *,
        name: str = "Simulated GCE AK",
        not_before: datetime = _ISSUED,
        not_after: datetime = _EXPIRES,
    ) -> bytes:
        """Return the certificate (DER) of an attestation key, with addresses of its issuer and its list.

        Google's name no list, and only their issuer can be revoked; these do, so that both cases are used.
        """
        builder = _builder(
            _name(name), self.intermediate.certificate.subject, public_key, not_before, not_after
        )
        builder = _addressed(
            builder, self.base_url + INTERMEDIATE_PATH, self.base_url + INTERMEDIATE_LIST_PATH
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        return builder.sign(self.intermediate.key, SHA256()).public_bytes(Encoding.DER)

    def endorsements(self, now: int, revoked: Iterable[int] = ()) -> Endorsements:
        """Return what verifying needs, fresh at `now`: the intermediate and both lists.

        `revoked` are serial numbers; both lists name them.
        """
        revoked = tuple(revoked)
        lists = (self.root.list_at(now, revoked), self.intermediate.list_at(now, revoked))
        return Endorsements(certificates=(self.intermediate.der,), crls=lists)

    def resources(self, now: int, revoked: Iterable[int] = ()) -> dict[str, bytes]:
        """Return what a server of `base_url` has to answer, by path."""
        revoked = tuple(revoked)
        return {
            ROOT_PATH: self.root.der,
            INTERMEDIATE_PATH: self.intermediate.der,
            ROOT_LIST_PATH: self.root.list_at(now, revoked),
            INTERMEDIATE_LIST_PATH: self.intermediate.list_at(now, revoked),
        }

    def save(self, directory: Path) -> None:
        """Write root and intermediate, certificates and keys, into `directory`; see `write_authority`."""
        files = {_URL: self.base_url.encode()}
        for name, authority in ((_ROOT, self.root), (_INTERMEDIATE, self.intermediate)):
            files[f"{name}.pem"] = certificate_pem(authority.certificate)
            files[f"{name}.key"] = key_pem(authority.key)
        write_authority(directory, files)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises `StorageError("simulator.authority.read")`."""
        try:
            root, intermediate = (_read(directory, name) for name in (_ROOT, _INTERMEDIATE))
            return cls(root, intermediate, (directory / _URL).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(
                "simulator.authority.read", f"{directory} holds no readable simulated authority of vtpms"
            ) from error


def _read(directory: Path, name: str) -> Authority:
    certificate = x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
    key = load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError("another kind of key")
    return Authority(certificate, key)


def _new_key(*, rsa_keys: bool) -> PrivateKey:
    if rsa_keys:
        return rsa.generate_private_key(public_exponent=0x10001, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    not_before: datetime = _ISSUED,
    not_after: datetime = _EXPIRES,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _authority(builder: x509.CertificateBuilder, signer: PrivateKey) -> x509.Certificate:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([EK_USAGE]), critical=False)
    return builder.sign(signer, SHA256())


def _addressed(builder: x509.CertificateBuilder, issuer_url: str, list_url: str) -> x509.CertificateBuilder:
    issuer = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(issuer_url)
    )
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(list_url)], None, None, None)
    builder = builder.add_extension(x509.AuthorityInformationAccess([issuer]), critical=False)
    return builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
