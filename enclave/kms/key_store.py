"""The KMS's root keys on disk: written once, atomically, owner-readable, never overwritten.

File names and contents are upstream's (spec kms section 5.1). A new set is written below `.staging`, synced,
and committed by one rename to `.staged`; each file is then hard-linked to its final name, which fails where a
file already exists, so no key can be replaced. A crash before the rename leaves nothing; a crash after it is
rolled forward by the next `load`.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shared.errors import StorageError
from shared.keys.app_keys import RootKeys

ROOT_CA_KEY = "root-ca.key"
ROOT_K256_KEY = "root-k256.key"
TEMP_CA_KEY = "tmp-ca.key"
ROOT_CA_CERT = "root-ca.crt"
TEMP_CA_CERT = "tmp-ca.crt"
RPC_DOMAIN = "rpc-domain"
BOOTSTRAP_INFO = "bootstrap-info.json"

SECRET_FILES = (ROOT_CA_KEY, ROOT_K256_KEY, TEMP_CA_KEY)
REQUIRED_FILES = (*SECRET_FILES, ROOT_CA_CERT, TEMP_CA_CERT, RPC_DOMAIN)
BOOTSTRAP_MARKERS = (BOOTSTRAP_INFO, ROOT_CA_KEY, ROOT_K256_KEY)
"""Any of these means that this directory was bootstrapped, so bootstrapping again could destroy keys."""

STAGING, STAGED = ".staging", ".staged"


class KeyMaterial(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must survive a restart. The RPC key is made anew at every start and is not here."""

    root_ca_key: ec.EllipticCurvePrivateKey
    temp_ca_key: ec.EllipticCurvePrivateKey
    k256: bytes
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
        return RootKeys(
            ca_scalar=self.root_ca_key.private_numbers().private_value.to_bytes(32, "big"), k256=self.k256
        )


class KeyStore:
    """The files below `cert_dir`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def bootstrapped(self) -> bool:
        """Tell whether any file exists that a bootstrap would have to replace."""
        return (
            any((self._directory / name).exists() for name in BOOTSTRAP_MARKERS)
            or (self._directory / STAGED).exists()
        )

    def load(self) -> KeyMaterial | None:
        """Return the stored keys, or None where nothing was ever stored.

        Raises `StorageError`: `kms.keys.incomplete` (some root files are missing: restore them, they are not
        made again), `kms.keys.permissions`, `kms.keys.unreadable`, `kms.keys.conflict`.
        """
        self._recover()
        present = [name for name in REQUIRED_FILES if (self._directory / name).exists()]
        if not present and not self.bootstrapped():
            return None
        missing = sorted(set(REQUIRED_FILES) - set(present))
        if missing:
            raise StorageError(
                "kms.keys.incomplete",
                f"{', '.join(missing)} missing beside existing keys: restore them, none are made anew",
            )
        for name in SECRET_FILES:
            mode = stat.S_IMODE((self._directory / name).stat().st_mode)
            if mode & 0o077:
                raise StorageError("kms.keys.permissions", f"{name} has mode {mode:04o}, expected 0600")
        try:
            info = self._directory / BOOTSTRAP_INFO
            return KeyMaterial(
                root_ca_key=_p256_key(self._read(ROOT_CA_KEY)),
                temp_ca_key=_p256_key(self._read(TEMP_CA_KEY)),
                k256=self._read(ROOT_K256_KEY),
                root_ca_cert=x509.load_pem_x509_certificate(self._read(ROOT_CA_CERT)),
                temp_ca_cert=x509.load_pem_x509_certificate(self._read(TEMP_CA_CERT)),
                domain=self._read(RPC_DOMAIN).decode(),
                bootstrap_info=info.read_bytes() if info.exists() else None,
            )
        except (OSError, ValueError, TypeError) as error:
            raise StorageError("kms.keys.unreadable", "a key or certificate file cannot be parsed") from error

    def create(self, material: KeyMaterial) -> None:
        """Store a first set of keys. Refuses, writing nothing, where one exists.

        Raises `StorageError`: `kms.bootstrapped`, `kms.keys.write`.
        """
        contents = {
            ROOT_K256_KEY: material.k256,
            ROOT_CA_KEY: _pem(material.root_ca_key),
            TEMP_CA_KEY: _pem(material.temp_ca_key),
            ROOT_CA_CERT: material.root_ca_cert.public_bytes(Encoding.PEM),
            TEMP_CA_CERT: material.temp_ca_cert.public_bytes(Encoding.PEM),
            RPC_DOMAIN: material.domain.encode(),
        }
        if material.bootstrap_info is not None:
            contents[BOOTSTRAP_INFO] = material.bootstrap_info
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._directory):  # against another process on the same directory
                if self.bootstrapped():
                    raise StorageError("kms.bootstrapped", "KMS has already been bootstrapped")
                self._stage(contents)
        except OSError as error:
            raise StorageError("kms.keys.write", f"cannot write key files: {error.strerror}") from error
        self._recover()

    def _stage(self, contents: dict[str, bytes]) -> None:
        staging = self._directory / STAGING
        if staging.exists():  # a crash before its commit: nobody has seen these keys
            shutil.rmtree(staging)
        staging.mkdir(mode=0o700)
        for name, content in contents.items():
            _write_synced(staging / name, content, 0o600 if name in SECRET_FILES else 0o644)
        _sync_directory(staging)
        staging.rename(self._directory / STAGED)
        _sync_directory(self._directory)

    def _recover(self) -> None:
        """Finish a committed set whose files were not all put in place. Safe to run any number of times."""
        staged = self._directory / STAGED
        if not staged.exists():
            return
        try:
            # The public record comes last: whoever reads it may rely on the keys being there.
            for source in sorted(staged.iterdir(), key=lambda path: (path.name == BOOTSTRAP_INFO, path.name)):
                target = self._directory / source.name
                try:
                    os.link(source, target)
                except FileExistsError:
                    if target.read_bytes() != source.read_bytes():
                        raise StorageError(
                            "kms.keys.conflict",
                            f"{source.name} exists with other content and was not replaced",
                        ) from None
            _sync_directory(self._directory)
            shutil.rmtree(staged)
        except OSError as error:
            raise StorageError(
                "kms.keys.write", f"key files could not be put in place: {error.strerror}"
            ) from error

    def _read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _p256_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("not a P-256 key")
    return key


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # the umask may have taken bits, but must not add any
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
