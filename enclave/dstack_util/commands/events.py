"""`eventlog`, `extend`, `show` and `replay-imr`: what this guest has measured of itself."""

import argparse
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from enclave.dstack_util.guest import booting_tee
from enclave.dstack_util.setup_config import load_trust
from enclave.dstack_util.tools import REPORT_DATA, Tools
from enclave.tee.peers import establish_trust
from shared.attestation.envelope import GcpTdxQuote, TdxEvent, TdxQuote, decode_envelope
from shared.attestation.event_log_json import event_log_json
from shared.attestation.identity import app_info
from shared.errors import ConfigError
from shared.hex import decode_hex

_REGISTERS = 4


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    commands.add_parser("eventlog", help="print the tdx event log as json").set_defaults(run=_eventlog)
    extend = commands.add_parser("extend", help="record an event and extend the runtime register by it")
    extend.add_argument("-e", "--event", required=True, metavar="NAME")
    extend.add_argument("-p", "--payload", required=True, metavar="HEX")
    extend.set_defaults(run=_extend)
    commands.add_parser("show", help="print this guest's app info as json").set_defaults(run=_show)
    commands.add_parser("replay-imr", help="replay the event log's registers").set_defaults(run=_replay)


def _eventlog(arguments: argparse.Namespace, tools: Tools) -> None:
    del arguments
    tools.write(event_log_json(_events(tools)).encode() + b"\n")


def _extend(arguments: argparse.Namespace, tools: Tools) -> None:
    payload = decode_hex(arguments.payload, what="--payload")
    booting_tee(tools.platform).event_log().emit(arguments.event, payload)


def _show(arguments: argparse.Namespace, tools: Tools) -> None:
    """Verify this guest's own evidence as everybody else would, and print what that tells."""
    del arguments
    trust = establish_trust(tools.platform, load_trust(tools.platform).settings())
    data = bytes(REPORT_DATA)
    verified = trust.verifier.verify(tools.platform.tee.attestor(None).attest(data), data)
    text = msgspec.json.format(msgspec.json.encode(app_info(verified).to_json()), indent=2)
    tools.write(text + b"\n")


def _replay(arguments: argparse.Namespace, tools: Tools) -> None:
    del arguments
    events = _events(tools)
    lines = (f"IMR{index}: {_replayed(events, index).hex()}\n" for index in range(_REGISTERS))
    tools.write("".join(lines).encode())


def _replayed(events: Sequence[TdxEvent], index: int) -> bytes:
    value = bytes(48)
    for event in events:
        if event.imr == index:
            value = hashlib.sha384(value + event.digest).digest()
    return value


def _events(tools: Tools) -> Sequence[TdxEvent]:
    attestation = decode_envelope(tools.platform.tee.attestor(None).attest(bytes(REPORT_DATA)))
    match attestation.quote:
        case TdxQuote(event_log=events) | GcpTdxQuote(tdx=TdxQuote(event_log=events)):
            return events
        case _:
            raise ConfigError(
                "eventlog.platform", f"a guest of {attestation.tee_variant} has no tdx event log"
            )
