"""The main process of a simulated app guest: evidence on request, and no keys.

It stands where upstream's guest agent and an app's enclave answer `POST /evidence`: a deployment of any app
can so be carried to its end. An image with `/etc/dstack/enclave.toml` says what it wants, and there the real
daemon runs (`enclave.agent`), which asks its KMS; an enclave whose file has a command is booted by
`enclave.init`, with a stand-in for its app. Of all other apps nothing runs but this: the services are
named on the console, and an app whose keys a KMS keeps has none, which it records by never saying that its
boot ended.
"""

import argparse
import signal
import sys
from types import FrameType

from enclave.agent.evidence import evidence_app
from enclave.devices.host_shared import HostShared
from enclave.dstack_util.enclave_config import CONFIG_PATH, load_enclave_config
from enclave.log import log_event
from enclave.platform import Platform
from enclave.serving.attested_tls import build_plain_server, run_server
from enclave.simulator.compose import GuestCompose, read_compose
from enclave.simulator.console import serial_console
from enclave.simulator.gcp_guest import SimulatedGcpTee
from enclave.tee.nitro import NitroTee
from shared.errors import ConfigError, DstackError, ExitCode
from shared.hex import decode_hex_setting

GUEST_PORT = 8090
"""The guest agent's external port on Google Cloud."""

ENCLAVE_PORT = 8080
"""The vsock port of an enclave's evidence; the parent's forwarder carries its own 8090 there."""

APP_ID_PATH = "/etc/dstack/app-id"
_SHARED = "dstack/.host-shared"


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run until stopped. `--app-id HEX` is for an enclave whose image names none.

    What follows `--` runs in the place of an app that init starts.
    """
    if platform is None:
        raise ConfigError("simulator.arguments", "the responder runs in simulated guests alone")
    argv, stand_in = _split(argv or [])
    if _is_booted_by_init(platform):
        from enclave.simulator.enclave_boot import main as boot  # noqa: PLC0415 - as below

        serial_console(f"{CONFIG_PATH} names a command: init boots the enclave")
        return boot(stand_in, platform)

    def power_off(number: int, frame: FrameType | None) -> None:
        del number, frame
        serial_console("powering off")
        sys.exit(ExitCode.OK)

    signal.signal(signal.SIGTERM, power_off)
    if platform.has_measured(CONFIG_PATH):
        # PLC0415: what asks a KMS is a third of this process's start, and few guests need it
        from enclave.agent.daemon import main as run_agent  # noqa: PLC0415

        serial_console(f"{CONFIG_PATH} names a kms: starting the app's agent")
        code = run_agent(None, platform)
        if code == ExitCode.OK:
            serial_console("powering off")
        return code
    try:
        _serve(platform, argv)
    except DstackError as error:
        serial_console(f"boot failed: {error} [{error.code}]")
        raise
    serial_console("powering off")
    return ExitCode.OK


def _serve(platform: Platform, argv: list[str] | None) -> None:
    tee = platform.tee
    if isinstance(tee, SimulatedGcpTee):
        app_id, port = tee.app_id, GUEST_PORT
        _tell_services(read_compose(HostShared(platform.writable / _SHARED).app_compose()))
    else:
        app_id, port = _enclave_app_id(platform, argv), ENCLAVE_PORT
        serial_console("simulated enclave: the image's command is not run")
    app = evidence_app(tee.attestor(app_id), app_id)
    listener = tee.listen("0.0.0.0", port)
    serial_console(f"evidence of app {app_id.hex()} is answered on port {port}")
    log_event("responder.ready", evidence_port=port, app_id=app_id.hex())
    run_server(build_plain_server(app), [listener])


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before `--` and behind it."""
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def _is_booted_by_init(platform: Platform) -> bool:
    if not isinstance(platform.tee, NitroTee) or not platform.has_measured(CONFIG_PATH):
        return False
    return bool(load_enclave_config(platform).boot.command)


def _tell_services(compose: GuestCompose) -> None:
    if compose.key_provider == "kms":
        serial_console("no kms was asked: a simulated guest without /etc/dstack/enclave.toml gets no keys")
    else:
        serial_console(f"keys: {compose.key_provider}")
    if compose.runner == "bash":
        serial_console("starting the bash script (simulated: it is not run)")
    for name, image in compose.services.items():
        serial_console(f"starting service {name} of {image or 'a build'} (simulated: no container runs)")


def _enclave_app_id(platform: Platform, argv: list[str] | None) -> bytes:
    """Return who the image says that it is, else who the command line says, else nobody: zero."""
    parser = argparse.ArgumentParser(prog="responder")
    parser.add_argument("--app-id", default="00" * 20)
    text = parser.parse_args(argv or []).app_id
    if platform.has_measured(APP_ID_PATH):
        text = platform.read_measured(APP_ID_PATH).decode("ascii", "replace").strip()
    return decode_hex_setting(text, what="the enclave's app id", length=20, code="image.app_id")
