"""`gen-ca-cert`, `gen-ra-cert` and `gen-app-keys`: keys made here, with evidence of where."""

import argparse
import secrets
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from enclave.dstack_util.setup import APP_ROOT_NAME
from enclave.dstack_util.setup_config import load_trust
from enclave.dstack_util.tools import Tools
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import establish_trust
from shared.attestation.report_data import KMS_ROOT_CA
from shared.errors import ConfigError
from shared.keys.seed_keys import SEED_BYTES, derive_seed_keys
from shared.ratls.certificates import attested_ca, client_certificate

CA_NAME = "App Root CA"
MAX_PEM = 256 * 1024

_MAX_LEVEL = 255


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    ca = commands.add_parser("gen-ca-cert", help="a ca of this guest, with evidence")
    ca.add_argument("--cert", type=Path, required=True)
    ca.add_argument("--key", type=Path, required=True, help="written with mode 0600")
    ca.add_argument("--ca-level", type=int, default=1, help="how many cas may stand below it")
    ca.set_defaults(run=_gen_ca)

    leaf = commands.add_parser("gen-ra-cert", help="a certificate of this guest under a ca, with evidence")
    leaf.add_argument("--ca-cert", type=Path, required=True)
    leaf.add_argument("--ca-key", type=Path, required=True)
    leaf.add_argument("-c", "--cert", type=Path, required=True)
    leaf.add_argument("-k", "--key", type=Path, required=True, help="written with mode 0600")
    leaf.set_defaults(run=_gen_ra)

    keys = commands.add_parser("gen-app-keys", help="random app keys that nobody provides")
    keys.add_argument("--ca-level", type=int, default=1)
    keys.add_argument("-o", "--output", type=Path, required=True, help="written with mode 0600")
    keys.set_defaults(run=_gen_app_keys)


def _gen_ca(arguments: argparse.Namespace, tools: Tools) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _ca(tools, key, CA_NAME, arguments.ca_level, content_type=KMS_ROOT_CA)
    _write_pair(tools, arguments, key, certificate)


def _gen_ra(arguments: argparse.Namespace, tools: Tools) -> None:
    issuer = _read_issuer(tools, arguments.ca_cert, arguments.ca_key)
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = certificate_evidence(tools.platform.tee.attestor(None), key.public_key())
    certificate = client_certificate(key, attestation=evidence, issuer=issuer, now=_now(tools))
    _write_pair(tools, arguments, key, certificate)


def _gen_app_keys(arguments: argparse.Namespace, tools: Tools) -> None:
    keys = derive_seed_keys(secrets.token_bytes(SEED_BYTES))
    certificate = _ca(tools, keys.ca_key(), APP_ROOT_NAME, arguments.ca_level)
    file = keys.to_file("None", certificate.public_bytes(Encoding.PEM).decode())
    tools.write(file.to_json(), arguments.output, private=True)


def _ca(
    tools: Tools, key: ec.EllipticCurvePrivateKey, name: str, level: int, **content_type: str
) -> x509.Certificate:
    if not 0 <= level <= _MAX_LEVEL:
        raise ConfigError("gen_cert.level", f"--ca-level is {level}, expected 0 to {_MAX_LEVEL}")
    evidence = certificate_evidence(tools.platform.tee.attestor(None), key.public_key(), **content_type)
    return attested_ca(key, name, path_length=level, attestation=evidence, now=_now(tools))


def _now(tools: Tools) -> int:
    return establish_trust(tools.platform, load_trust(tools.platform).settings()).clock.now()


def _read_issuer(tools: Tools, cert: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(tools.read_file(cert, MAX_PEM))
        private = load_pem_private_key(tools.read_file(key, MAX_PEM), password=None)
    except (ValueError, TypeError, x509.InvalidVersion):
        # no cause: the sentence of a parser could quote a key
        raise ConfigError("gen_cert.ca", f"{cert} and {key} are no certificate and key in pem") from None
    if (
        not isinstance(private, ec.EllipticCurvePrivateKey)
        or private.public_key() != certificate.public_key()
    ):
        raise ConfigError("gen_cert.ca", f"{key} is not the p-256 key of {cert}")
    return certificate, private


def _write_pair(
    tools: Tools,
    arguments: argparse.Namespace,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    tools.write(pem, arguments.key, private=True)
    tools.write(certificate.public_bytes(Encoding.PEM), arguments.cert)
