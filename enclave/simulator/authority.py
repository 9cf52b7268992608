"""A throw-away attestation authority: root, region and zone, as AWS arranges them, made on the spot.

Nothing is secret about its purpose: a verifier believes it only where its root is configured as an extra
anchor, and then reports `simulated`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from enclave.simulator.authority_files import certificate_pem, key_pem, write_authority
from enclave.simulator.revocation_lists import sign_list
from shared.errors import StorageError

_CHAIN = "chain.pem"
_ROOT = "root.pem"
_KEYS = ("root.key", "region.key", "zone.key")
_ISSUED = datetime(2019, 10, 28, tzinfo=UTC)
_EXPIRES = datetime(2049, 10, 28, tzinfo=UTC)
_DOMAIN = "simulated.nitro-enclaves"
# Nothing answers here: lists are handed over.
_LISTS = "http://nitro-lists.invalid"


class Issuer(msgspec.Struct, frozen=True):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self,
        common_name: str,
        *,
        not_before: datetime,
        not_after: datetime,
        path_length: int | None,
        list_url: str | None = None,
    ) -> "Issuer":
        """Issue a CA with that path length, or a leaf when it is None.

        `list_url` is where the certificate says that this issuer's revocation list is.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        builder = _builder(common_name, self.certificate.subject, key, not_before, not_after)
        if list_url is not None:
            name = x509.UniformResourceIdentifier(list_url)
            point = x509.DistributionPoint([name], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
            .add_extension(_usage(ca=path_length is not None), critical=path_length is not None)
            .sign(self.key, SHA384())
        )
        return Issuer(certificate, key)


class SimulatedAuthority(msgspec.Struct, frozen=True):
    """What simulated enclaves share: root, region and zone. As with AWS, root and region have lists."""

    root: Issuer
    region: Issuer
    zone: Issuer

    @classmethod
    def create(cls) -> Self:
        """Make a new authority."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _DOMAIN)])
        certificate = (
            _builder(_DOMAIN, name, key, _ISSUED, _EXPIRES)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, SHA384())
        )
        root = Issuer(certificate, key)
        domain = f"us-east-1.{_DOMAIN}"
        region = root.issue(
            domain, not_before=_ISSUED, not_after=_EXPIRES, path_length=2, list_url=f"{_LISTS}/root.crl"
        )
        zone = region.issue(
            f"zonal.{domain}",
            not_before=_ISSUED,
            not_after=_EXPIRES,
            path_length=1,
            list_url=f"{_LISTS}/region.crl",
        )
        return cls(root, region, zone)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates of root, region and zone."""
        return (self.root.certificate, self.region.certificate, self.zone.certificate)

    @property
    def root_pem(self) -> bytes:
        """The root certificate, to be configured as an extra trust anchor."""
        return self.root.certificate.public_bytes(Encoding.PEM)

    def crls(self, now: int, revoked: Iterable[int] = ()) -> tuple[bytes, bytes]:
        """Return the lists (DER) of root and region, fresh at `now` (unix seconds).

        `revoked` are serial numbers; both lists name them.
        """
        revoked = tuple(revoked)
        first, second = (
            sign_list(issuer.certificate.subject, issuer.key, now=now, revoked=revoked)
            for issuer in (self.root, self.region)
        )
        return first, second

    def save(self, directory: Path) -> None:
        """Write root.pem, chain.pem and the three keys into `directory`; see `write_authority`."""
        issuers = (self.root, self.region, self.zone)
        keys = {name: key_pem(issuer.key) for name, issuer in zip(_KEYS, issuers, strict=True)}
        chain = b"".join(map(certificate_pem, self.chain))
        write_authority(directory, {**keys, _CHAIN: chain, _ROOT: self.root_pem})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises `StorageError("simulator.authority.read")`."""
        try:
            chain = tuple(x509.load_pem_x509_certificates((directory / _CHAIN).read_bytes()))
            keys = [load_pem_private_key((directory / name).read_bytes(), password=None) for name in _KEYS]
        except (OSError, ValueError) as error:
            raise StorageError(
                "simulator.authority.read", f"{directory} holds no readable simulated authority"
            ) from error
        issuers = [
            Issuer(certificate, key)
            for certificate, key in zip(chain, keys, strict=False)
            if isinstance(key, ec.EllipticCurvePrivateKey)
        ]
        if not len(issuers) == len(chain) == len(_KEYS):
            raise StorageError("simulator.authority.read", f"{directory} holds another kind of authority")
        return cls(*issuers)

    def issue_instance(self, instance_id: str, now: datetime) -> Issuer:
        """Issue an instance's CA, valid for a day as the real ones are."""
        return self.zone.issue(
            f"{instance_id}.us-east-1.{_DOMAIN}",
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(hours=24),
            path_length=0,
        )


def _builder(
    common_name: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


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
