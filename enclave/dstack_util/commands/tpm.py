"""`tpm-quote`, `tpm-verify`, `vtpm-attest`: the vTPM's half of a Google Cloud guest's evidence, alone."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from enclave.dstack_util.setup_config import load_trust
from enclave.dstack_util.tools import Tools
from enclave.tee.gcp import GcpTee
from enclave.tee.peers import establish_trust
from shared.attestation.ak_chain import verify_ak_chain
from shared.attestation.envelope import GcpTdxQuote, PcrValue, decode_envelope
from shared.attestation.gcp import precheck_gcp
from shared.attestation.image import claimed_config
from shared.attestation.tpm_quote import (
    BANK_NAME,
    check_registers,
    parse_attest,
    parse_signature,
    verify_quote,
)
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, InvalidEvidence
from shared.hex import decode_hex
from shared.measurement.images import check_gcp_image

MAX_FILE = 1024 * 1024

_QUALIFYING = 32
_IMAGE_PCR = 2


class _Pcr(msgspec.Struct, frozen=True):
    index: int
    algorithm: str
    value: str


class _QuoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """What `tpm-quote` writes: everything in hex."""

    message: str
    signature: str
    pcr_values: tuple[_Pcr, ...]
    ak_cert: str
    qualifying_data: str
    platform: str = "gcp"


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    quote = commands.add_parser("tpm-quote", help="quote pcr 0, 2 and 14 by google's attestation key")
    quote.add_argument("-d", "--data", required=True, metavar="HEX")
    quote.add_argument("-k", "--key", choices=("auto", "ecc", "rsa"), default="auto")
    quote.add_argument(
        "-H", "--hash", choices=("none", "sha256"), default="sha256", help="of the data, first"
    )
    quote.add_argument("-o", "--output", type=Path)
    quote.set_defaults(run=_quote)
    verify = commands.add_parser("tpm-verify", help="verify what tpm-quote wrote")
    verify.add_argument("--root-ca", type=Path, required=True, help="pem: the root, and the issuers below it")
    verify.add_argument("-q", "--quote", type=Path, required=True)
    verify.set_defaults(run=_verify)
    attest = commands.add_parser("vtpm-attest", help="quote over a nonce, and verify that at once")
    attest.add_argument("--root-ca", type=Path, required=True, help="pem: the root, and the issuers below it")
    attest.add_argument("--nonce", required=True, metavar="HEX")
    attest.add_argument("--expected-os-hash", metavar="HEX", help="the os image hash that must have booted")
    attest.add_argument("--key-algo", choices=("rsa", "ecc"))
    attest.add_argument("--format", choices=("text", "json"), default="text")
    attest.set_defaults(run=_attest)


def _quote(arguments: argparse.Namespace, tools: Tools) -> None:
    data = decode_hex(arguments.data, what="--data")
    if arguments.hash == "sha256":
        data = hashlib.sha256(data).digest()
    elif len(data) != _QUALIFYING:
        raise ConfigError(
            "tpm_quote.data", f"--data has {len(data)} bytes, expected {_QUALIFYING} where it is not hashed"
        )
    file = _quoted(_google(tools), arguments.key, data)
    tools.write(msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n", arguments.output)


def _google(tools: Tools) -> GcpTee:
    tee = tools.platform.tee
    if not isinstance(tee, GcpTee):
        raise ConfigError("tpm_quote.platform", "this guest has no vtpm with google's attestation key")
    return tee


def _quoted(tee: GcpTee, key: Literal["auto", "ecc", "rsa"], data: bytes) -> _QuoteFile:
    made = tee.vtpm(key).quote(data)
    return _QuoteFile(
        message=made.quoted.message.hex(),
        signature=made.quoted.signature.hex(),
        pcr_values=tuple(_Pcr(index, BANK_NAME, value.hex()) for index, value in made.values.items()),
        ak_cert=made.certificate.hex(),
        qualifying_data=data.hex(),
    )


def _attest(arguments: argparse.Namespace, tools: Tools) -> None:
    """Quote over the nonce's SHA-256 and verify it; with an expected hash, the image that booted too."""
    tee = _google(tools)
    nonce = decode_hex(arguments.nonce, what="--nonce")
    file = _quoted(tee, arguments.key_algo or "auto", hashlib.sha256(nonce).digest())
    registers = _verified(file, arguments.root_ca, tools)
    image = b""
    if arguments.expected_os_hash is not None:
        image = decode_hex(arguments.expected_os_hash, what="--expected-os-hash", length=32)
        _check_booted(tee, image, registers)
    shown = {f"PCR{index}": value.hex() for index, value in registers.items()}
    if image:
        shown["os_image_hash"] = image.hex()
    if arguments.format == "json":
        document = {"verified": True, "nonce": nonce.hex(), **shown}
        tools.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        return
    lines = ["verified", f"nonce: {nonce.hex()}", *(f"{name}: {value}" for name, value in shown.items())]
    tools.write("\n".join(lines).encode() + b"\n")


def _check_booted(tee: GcpTee, expected: bytes, registers: Mapping[int, bytes]) -> None:
    """Raise `InvalidEvidence` unless the image of this hash is what PCR2's log, replayed, says was booted."""
    attestation = decode_envelope(tee.attestor(None).attest(bytes(64)))
    if not isinstance(attestation.quote, GcpTdxQuote):  # pragma: no cover - what such a guest makes
        raise InvalidEvidence("vtpm_attest.image", "this guest's evidence has no vtpm in it")
    checked = precheck_gcp(attestation.quote, attestation.runtime_events)
    config = claimed_config(attestation)
    check_gcp_image(config, checked.pcr2_events)
    if config.os_image_hash != expected or checked.pcrs[_IMAGE_PCR] != registers[_IMAGE_PCR]:
        raise InvalidEvidence(
            "vtpm_attest.image", f"image {config.os_image_hash.hex()} was booted, expected {expected.hex()}"
        )


def _verify(arguments: argparse.Namespace, tools: Tools) -> None:
    """Verify chain, signature, qualifying data and registers; no issuer or revocation list is fetched."""
    try:
        file = msgspec.json.decode(tools.read_file(arguments.quote, MAX_FILE), type=_QuoteFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError("tpm_verify.file", f"{arguments.quote} is not what tpm-quote writes") from error
    registers = _verified(file, arguments.root_ca, tools)
    lines = [f"PCR{index}: {value.hex()}" for index, value in registers.items()]
    tools.write("\n".join(["verified", f"data: {file.qualifying_data}", *lines]).encode() + b"\n")


def _verified(file: _QuoteFile, root_ca: Path, tools: Tools) -> Mapping[int, bytes]:
    roots, issuers = _split(tools.read_file(root_ca, MAX_FILE))
    trust = establish_trust(tools.platform, load_trust(tools.platform).settings())
    nobody = TrustAnchors(nitro=(), tdx=(), gcp_tpm=())
    anchors = nobody.with_extra(roots, signer="gcp_tpm").gcp_tpm
    certificate = decode_hex(file.ak_cert, what="ak_cert")
    chain = verify_ak_chain(certificate, issuers, now=trust.clock.now(), anchors=anchors)
    message = decode_hex(file.message, what="message")
    verify_quote(message, parse_signature(decode_hex(file.signature, what="signature")), chain.key)
    attest = parse_attest(message)
    if attest.extra_data.hex() != file.qualifying_data.lower():
        raise InvalidEvidence("tpm_verify.data", "the quote is over other data than the file says")
    values = tuple(
        PcrValue(one.index, one.algorithm, decode_hex(one.value, what="pcr value")) for one in file.pcr_values
    )
    return check_registers(attest, values)


def _split(pem: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the self-issued certificates as PEM, and the others as DER."""
    from cryptography import x509  # noqa: PLC0415 - used here alone
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError("tpm_verify.root", "--root-ca holds no readable certificate") from error
    roots = b"".join(one.public_bytes(Encoding.PEM) for one in found if one.issuer == one.subject)
    issuers = tuple(one.public_bytes(Encoding.DER) for one in found if one.issuer != one.subject)
    if not roots:
        raise ConfigError("tpm_verify.root", "--root-ca holds no root certificate")
    return roots, issuers
