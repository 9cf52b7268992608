"""The KMS's root keys on disk: written once, atomically, owner-readable, never overwritten.

Names and contents of the files are upstream's (spec kms section 5.1), except where the secrets have another
form: sealed ones are one file in the place of three. How a set of files is committed is `custody_files`.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from enclave.kms.custody_files import SECRET_MODE, Content, FileSet
from shared.errors import StorageError
from shared.keys.app_keys import RootKeys

ROOT_CA_KEY = "root-ca.key"
ROOT_K256_KEY = "root-k256.key"
TEMP_CA_KEY = "tmp-ca.key"
SEALED_KEYS = "root-keys.sealed"
ROOT_CA_CERT = "root-ca.crt"
TEMP_CA_CERT = "tmp-ca.crt"
RPC_DOMAIN = "rpc-domain"
BOOTSTRAP_INFO = "bootstrap-info.json"

SECRET_FILES = (ROOT_CA_KEY, ROOT_K256_KEY, TEMP_CA_KEY)
PUBLIC_FILES = (ROOT_CA_CERT, TEMP_CA_CERT, RPC_DOMAIN)
REQUIRED_FILES = (*SECRET_FILES, *PUBLIC_FILES)
BOOTSTRAP_MARKERS = (*SECRET_FILES, SEALED_KEYS, *PUBLIC_FILES, BOOTSTRAP_INFO)
"""Any of these, of whatever form, means that this directory was bootstrapped: again could destroy keys."""


class RootSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody else may have of a KMS's keys, and the temporary CA's key."""

    root_ca_key: ec.EllipticCurvePrivateKey
    temp_ca_key: ec.EllipticCurvePrivateKey
    k256: bytes

    def __repr__(self) -> str:
        """Hide the keys."""
        return "RootSecrets()"


class KeyMaterial(RootSecrets, frozen=True, kw_only=True):
    """Everything that must survive a restart. The RPC key is made anew at every start and is not here."""

    root_ca_cert: x509.Certificate
    temp_ca_cert: x509.Certificate
    domain: str
    bootstrap_info: bytes | None = None

    def __repr__(self) -> str:
        """Hide the keys."""
        return f"KeyMaterial(domain={self.domain!r})"

    def root_ca_pem(self) -> bytes:
        """Return the root CA's private key, for another KMS alone."""
        return _pem(self.root_ca_key)

    def temp_ca_pem(self) -> bytes:
        """Return the temporary CA's private key, which is public by design (spec kms trap 14)."""
        return _pem(self.temp_ca_key)

    def temp_ca_der(self) -> bytes:
        """Return the temporary CA's certificate."""
        return self.temp_ca_cert.public_bytes(Encoding.DER)

    def root_keys(self) -> RootKeys:
        """Return what derivations start from."""
        return RootKeys(ca_scalar=scalar(self.root_ca_key), k256=self.k256)


class SecretForm(Protocol):
    """How the secrets are in files, and the names of these."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files, some of `BOOTSTRAP_MARKERS`, which have mode 0600."""
        ...

    def encode(self, secrets: RootSecrets) -> dict[str, bytes]:
        """Return the content of each file."""
        ...

    def decode(self, contents: Mapping[str, bytes]) -> RootSecrets:
        """Return the secrets. Raises `ValueError` or `TypeError` for contents that are none."""
        ...


class PlainKeys:
    """Upstream's form: the disk is what keeps the secrets."""

    names = SECRET_FILES

    def encode(self, secrets: RootSecrets) -> dict[str, bytes]:
        """See `SecretForm.encode`."""
        return {
            ROOT_K256_KEY: secrets.k256,
            ROOT_CA_KEY: _pem(secrets.root_ca_key),
            TEMP_CA_KEY: _pem(secrets.temp_ca_key),
        }

    def decode(self, contents: Mapping[str, bytes]) -> RootSecrets:
        """See `SecretForm.decode`."""
        return RootSecrets(
            root_ca_key=_p256_key(contents[ROOT_CA_KEY]),
            temp_ca_key=_p256_key(contents[TEMP_CA_KEY]),
            k256=contents[ROOT_K256_KEY],
        )


class KeyStore:
    """The files below `cert_dir`, with the secrets in one form."""

    def __init__(self, directory: Path, form: SecretForm | None = None) -> None:
        self._form = form or PlainKeys()
        self._files = FileSet(directory, BOOTSTRAP_INFO)
        self._directory = directory

    def bootstrapped(self) -> bool:
        """Tell whether any file exists that a bootstrap would have to replace."""
        return self._files.committed() or any(map(self._has, BOOTSTRAP_MARKERS))

    def load(self) -> KeyMaterial | None:
        """Return the stored keys, or None where nothing was ever stored.

        Raises `StorageError`: `kms.keys.incomplete` (some root files are missing: restore them, they are not
        made again), `kms.custody.other` (the secrets are there in another form), `kms.keys.permissions`,
        `kms.keys.unreadable`, `kms.keys.mismatch`, `kms.keys.conflict`; and what the form raises.
        """
        self._files.recover()
        if not self.bootstrapped():
            return None
        self._check_complete()
        try:
            info = self._directory / BOOTSTRAP_INFO
            secrets = self._form.decode({name: self._read(name) for name in self._form.names})
            material = KeyMaterial(
                **msgspec.structs.asdict(secrets),
                root_ca_cert=x509.load_pem_x509_certificate(self._read(ROOT_CA_CERT)),
                temp_ca_cert=x509.load_pem_x509_certificate(self._read(TEMP_CA_CERT)),
                domain=self._read(RPC_DOMAIN).decode(),
                bootstrap_info=info.read_bytes() if info.exists() else None,
            )
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise StorageError("kms.keys.unreadable", "a key or certificate file cannot be parsed") from error
        _check_certificate(ROOT_CA_CERT, material.root_ca_cert, material.root_ca_key)
        _check_certificate(TEMP_CA_CERT, material.temp_ca_cert, material.temp_ca_key)
        return material

    def create(self, material: KeyMaterial) -> None:
        """Store a first set of keys. Refuses, writing nothing, where one exists.

        Raises `StorageError`: `kms.bootstrapped`, `kms.keys.write`; and what the form raises.
        """
        contents = {name: Content(data, SECRET_MODE) for name, data in self._form.encode(material).items()}
        contents[ROOT_CA_CERT] = Content(material.root_ca_cert.public_bytes(Encoding.PEM))
        contents[TEMP_CA_CERT] = Content(material.temp_ca_cert.public_bytes(Encoding.PEM))
        contents[RPC_DOMAIN] = Content(material.domain.encode())
        if material.bootstrap_info is not None:
            contents[BOOTSTRAP_INFO] = Content(material.bootstrap_info)
        self._files.create(contents, self._refuse_another)

    def _refuse_another(self) -> None:
        if self.bootstrapped():
            raise StorageError("kms.bootstrapped", "KMS has already been bootstrapped")

    def _check_complete(self) -> None:
        own = self._form.names
        if others := [name for name in (*SECRET_FILES, SEALED_KEYS) if name not in own and self._has(name)]:
            raise StorageError(
                "kms.custody.other",
                f"{', '.join(others)} is of another core.custody.type: go back to it, or onboard into an "
                "empty cert_dir",
            )
        if missing := sorted(name for name in (*own, *PUBLIC_FILES) if not self._has(name)):
            raise StorageError(
                "kms.keys.incomplete",
                f"{', '.join(missing)} missing beside existing keys: restore them, none are made anew",
            )
        for name in own:
            mode = stat.S_IMODE((self._directory / name).stat().st_mode)
            if mode & 0o077:
                raise StorageError("kms.keys.permissions", f"{name} has mode {mode:04o}, expected 0600")

    def _has(self, name: str) -> bool:
        return (self._directory / name).exists()

    def _read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()


def scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a P-256 key's private number, 32 bytes."""
    return key.private_numbers().private_value.to_bytes(32, "big")


def _check_certificate(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    try:
        certificate.verify_directly_issued_by(certificate)
        own = certificate.public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        own = False
    if not own:
        raise StorageError("kms.keys.mismatch", f"{name} is not the certificate of the key beside it")


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _p256_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("not a P-256 key")
    return key
