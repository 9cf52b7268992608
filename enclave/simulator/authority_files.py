"""The directory of a simulated authority: certificates and keys, written once and never replaced."""

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import StorageError


def write_authority(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write new files (0600) by their names into `directory`, which is made when absent.

    Raises `StorageError`: `simulator.authority.exists` rather than replace an authority that guests use,
    `simulator.authority.write`.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except FileExistsError as error:
        raise StorageError(
            "simulator.authority.exists", f"{directory} already holds an authority, expected none"
        ) from error
    except OSError as error:
        raise StorageError(
            "simulator.authority.write", f"cannot write an authority to {directory}: {error.strerror}"
        ) from error


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a private key as PEM, PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)
