"""`quote`, `quote-report`, `attest` and the commands that look at what it wrote."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from enclave.devices.host_shared import DEFAULT_DIRECTORY
from enclave.dstack_util.sys_config import parse_sys_config
from enclave.dstack_util.tools import REPORT_DATA, Tools, report_data_of
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    SevSnpQuote,
    TdxQuote,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.stripped import strip
from shared.compose.shared_files import SYS_CONFIG
from shared.errors import ConfigError
from shared.hex import decode_hex
from shared.measurement.config_disk import MAX_BYTES

ATTESTATION = Path("attestation.bin")
STRIPPED = Path("attestation.strip.bin")
MAX_ATTESTATION = 16 * 1024 * 1024

_APP_ID = 20


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    quote = commands.add_parser("quote", help="64 bytes in, the platform's quote over them out")
    quote.set_defaults(run=_quote)

    report = commands.add_parser("quote-report", help='print {"attestation": hex} over report data')
    report.add_argument("--report-data", default="", metavar="HEX", help="64 bytes at most, zeros follow")
    report.add_argument("--sys-config", type=Path, help=f"default {DEFAULT_DIRECTORY / SYS_CONFIG}")
    report.add_argument("-o", "--output", type=Path)
    report.add_argument("--debug", action="store_true", help="print the sizes to standard error too")
    report.set_defaults(run=_quote_report)

    attest = commands.add_parser("attest", help="write evidence over report data")
    attest.add_argument("--report-data", default="", metavar="HEX", help="64 bytes at most, zeros follow")
    attest.add_argument("--app-id", default="", metavar="HEX", help="nitro: the app that the evidence claims")
    attest.add_argument("-o", "--output", type=Path, help=f"default {ATTESTATION}")
    attest.add_argument("--hex", action="store_true", help="hex, to standard output without --output")
    attest.set_defaults(run=_attest)

    for name, run, text in (
        ("attest-info", _info, "print what evidence consists of"),
        ("attest-json", _json, "print evidence as json"),
        ("attest-strip", _strip, "write the short form, as certificates carry it"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("-i", "--input", type=Path, default=ATTESTATION)
        one.add_argument("-o", "--output", type=Path)
        one.set_defaults(run=run)


def _quote(arguments: argparse.Namespace, tools: Tools) -> None:
    del arguments
    given = tools.read_input(REPORT_DATA)
    if len(given) != REPORT_DATA:
        raise ConfigError(
            "dstack_util.report_data",
            f"standard input has {'more' if len(given) > REPORT_DATA else len(given)} bytes, expected "
            f"{REPORT_DATA}",
        )
    tools.write(_raw_quote(decode_envelope(tools.platform.tee.attestor(None).attest(given))))


def _raw_quote(attestation: Attestation) -> bytes:
    match attestation.quote:
        case TdxQuote(quote=raw) | GcpTdxQuote(tdx=TdxQuote(quote=raw)):
            return raw
        case SevSnpQuote(report=raw) | NitroTpmQuote(raw):
            return raw
        case _:
            raise ConfigError(
                "quote.platform", f"a guest of {attestation.tee_variant} has no bare quote: use attest"
            )


def _quote_report(arguments: argparse.Namespace, tools: Tools) -> None:
    data = report_data_of(arguments.report_data)
    envelope = tools.platform.tee.attestor(None).attest(data)
    if arguments.sys_config is not None:
        raw = tools.read_file(arguments.sys_config, MAX_BYTES[SYS_CONFIG])
        config = parse_sys_config(raw).vm_config
        envelope = encode_envelope(msgspec.structs.replace(decode_envelope(envelope), config=config))
    if arguments.debug:
        tools.complain(_sizes(envelope))
    text = msgspec.json.format(msgspec.json.encode({"attestation": envelope.hex()}), indent=2)
    tools.write(text + b"\n", arguments.output)


def _attest(arguments: argparse.Namespace, tools: Tools) -> None:
    data = report_data_of(arguments.report_data)
    app_id = None
    if arguments.app_id:
        app_id = decode_hex(arguments.app_id, what="--app-id", length=_APP_ID)
    envelope = tools.platform.tee.attestor(app_id).attest(data)
    if arguments.hex:
        tools.write(envelope.hex().encode(), arguments.output)
    else:
        tools.write(envelope, arguments.output or ATTESTATION)


def _info(arguments: argparse.Namespace, tools: Tools) -> None:
    envelope = tools.read_file(arguments.input, MAX_ATTESTATION)
    tools.write(_sizes(envelope).encode(), arguments.output)


def _sizes(envelope: bytes) -> str:
    attestation = decode_envelope(envelope)
    lines = {
        "attestation": f"{len(envelope)} bytes",
        "tee_variant": attestation.tee_variant,
        "report_data": attestation.report_data.hex(),
        "runtime_events": str(len(attestation.runtime_events)),
        "config": f"{len(attestation.config)} characters",
    }
    match attestation.quote:
        case TdxQuote(raw, log) | GcpTdxQuote(TdxQuote(raw, log)):
            lines["quote"] = f"{len(raw)} bytes"
            lines["event_log"] = f"{len(log)} events"
        case NitroEnclaveQuote(nsm_quote=raw) | NitroTpmQuote(raw):
            lines["document"] = f"{len(raw)} bytes"
    if isinstance(attestation.quote, GcpTdxQuote):
        lines["tpm_message"] = f"{len(attestation.quote.tpm.message)} bytes"
        lines["tpm_event_log"] = f"{len(attestation.quote.tpm.event_log)} events"
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


def _json(arguments: argparse.Namespace, tools: Tools) -> None:
    attestation = decode_envelope(tools.read_file(arguments.input, MAX_ATTESTATION))
    shown = {"tee_variant": attestation.tee_variant, **_plain(attestation)}
    text = msgspec.json.format(msgspec.json.encode(shown), indent=2)
    tools.write(text + b"\n", arguments.output)


def _plain(value: Any) -> Any:  # noqa: ANN401 - a tree of whatever evidence holds
    """Return a value as JSON has it: bytes as hex."""
    match value:
        case bytes():
            return value.hex()
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case _:
            return value


def _strip(arguments: argparse.Namespace, tools: Tools) -> None:
    attestation = decode_envelope(tools.read_file(arguments.input, MAX_ATTESTATION))
    tools.write(encode_envelope(strip(attestation)), arguments.output or STRIPPED)
