"""`gov kms` and `gov set-gateway`: which key servers may hold the root keys, and which keys those are."""

from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec

from cli.gov.acting import carry_out
from cli.gov.change import Change
from cli.gov.listed import list_options, print_allowed
from cli.gov.options import Acting, Where, acting_options, address, contracts_of, hash32
from shared.chain import calldata, events, views
from shared.chain.calldata import Function
from shared.errors import ConfigError, PolicyDenied
from shared.hex import decode_hex_setting

_SPKI: Final = 91
_COMPRESSED: Final = 33
_PATH: Final = click.Path(path_type=Path)
_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class Bootstrapped(msgspec.Struct, frozen=True):
    """What a KMS answered when it made its root keys: both public keys, as hex."""

    ca_pubkey: str
    k256_pubkey: str

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """The CA's SPKI and the compressed k256 key. Raises `ConfigError("gov.kms.bootstrap_info")`."""
        code = "gov.kms.bootstrap_info"
        return (
            decode_hex_setting(self.ca_pubkey, what="ca_pubkey", length=_SPKI, code=code),
            decode_hex_setting(self.k256_pubkey, what="k256_pubkey", length=_COMPRESSED, code=code),
        )


class _Meta(msgspec.Struct, frozen=True):
    ca_cert: str
    k256_pubkey: str


@click.group()
def kms() -> None:
    """Allow key servers by measurement and machine, and publish the keys that they must have."""


def _hashes(name: str, function: Function, text: str) -> None:
    @kms.command(name, help=text)
    @click.argument("values", nargs=-1, required=True, metavar="HASHES...")
    @acting_options
    def command(values: tuple[str, ...], where: Where, acting: Acting) -> None:
        changes = [
            Change(to=where.kms, function=function, arguments=(hash32(one, "HASHES"),)) for one in values
        ]
        carry_out(where, acting, changes)


_hashes("add-mr", calldata.ADD_KMS_AGGREGATED_MR, "Allow key servers by mr_aggregated.")
_hashes("remove-mr", calldata.REMOVE_KMS_AGGREGATED_MR, "Revoke key servers by mr_aggregated.")
_hashes("add-device", calldata.ADD_KMS_DEVICE, "Let machines run a key server.")
_hashes("remove-device", calldata.REMOVE_KMS_DEVICE, "Let machines run a key server no more.")


@kms.command("set-info")
@click.argument("bootstrap_info", type=_PATH)
@acting_options
def set_info(bootstrap_info: Path, where: Where, acting: Acting) -> None:
    """Publish the public root keys in BOOTSTRAP_INFO, a KMS's answer to Bootstrap.

    Deployers encrypt to what they sign, and no other KMS takes other keys: sign it only after the evidence in
    that file was verified.
    """
    ca, k256 = _read(bootstrap_info, Bootstrapped).keys
    note = "verify the evidence first: dstack-cloud verify, with `gov kms report-data`"
    # evidence is too long to store, and proves nothing there that the file does not prove
    change = Change(
        to=where.kms, function=calldata.SET_KMS_INFO, arguments=((k256, ca, b"", b""),), notes=(note,)
    )
    carry_out(where, acting, [change])


@kms.command("list")
@list_options
def list_kms(where: Where, from_block: int | None, *, everything: bool) -> None:
    """List the measurements and machines that a key server may have.

    Exit codes: 0 listed, 1 an endpoint failed, 2 usage.
    """
    print_allowed(
        where,
        from_block,
        [
            ("measurements", events.KMS_MR_ADDED, views.KMS_ALLOWED_AGGREGATED_MRS),
            ("devices", events.KMS_DEVICE_ADDED, views.KMS_ALLOWED_DEVICE_IDS),
        ],
        everything=everything,
    )


@kms.command("report-data")
@click.argument("bootstrap_info", type=_PATH)
def report_data(bootstrap_info: Path) -> None:
    """Print the 64 bytes that evidence must carry to show where the root keys in BOOTSTRAP_INFO are."""
    from shared.attestation.report_data import bootstrap_report_data  # noqa: PLC0415 - for this alone

    click.echo(bootstrap_report_data(*_read(bootstrap_info, Bootstrapped).keys).hex())


@kms.command("root-ca")
@click.argument("bootstrap_info", type=_PATH)
@click.argument("meta", type=_PATH)
def root_ca(bootstrap_info: Path, meta: Path) -> None:
    """Print the root CA in META, a KMS's answer to GetMeta, if its keys are those of BOOTSTRAP_INFO.

    Exit codes: 0 it has, 2 a file is not what it should be, 3 it has others.
    """
    from cryptography import x509  # noqa: PLC0415 - for this alone
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    made, told = _read(bootstrap_info, Bootstrapped), _read(meta, _Meta)
    try:
        key = x509.load_pem_x509_certificate(told.ca_cert.encode()).public_key()
    except ValueError as error:
        raise ConfigError("gov.kms.meta", f"{meta} holds no certificate: {error}") from error
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ca, k256 = made.keys
    if (spki, told.k256_pubkey) != (ca, k256.hex()):
        raise PolicyDenied("gov.kms.other_keys", "GetMeta has other root keys than Bootstrap made")
    click.echo(told.ca_cert, nl=False)


@click.command("set-gateway")
@click.argument("app_id")
@acting_options
def set_gateway(app_id: str, where: Where, acting: Acting) -> None:
    """Name the gateway app that apps may trust: its address, or its app id in hex."""
    raw = address(app_id, "APP_ID")
    contracts = contracts_of(where)
    at = contracts.pin()
    contracts.require_kms(at)
    registered = contracts.flags(at, (where.kms, views.REGISTERED_APPS + raw.rjust(32, b"\0")))
    notes = () if registered == [True] else ("no app of that id is registered",)
    carry_out(
        where,
        acting,
        [Change(to=where.kms, function=calldata.SET_GATEWAY_APP_ID, arguments=(app_id,), notes=notes)],
    )


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    """Read one of a KMS's answers. Raises `ConfigError("gov.kms.file")`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError("gov.kms.file", f"{path} is no answer of a kms: {error}") from error
