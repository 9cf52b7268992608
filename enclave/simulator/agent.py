"""`python -m enclave.simulator.agent`: the guest agent for an app's developer, without a guest.

It is the real agent, with all of its services on unix sockets in one directory, and evidence from a file
(spec guest-agent section 5.5). Without a directory of upstream's kind it makes one (`fixture_set`). Nothing
that it answers passes a verifier that was not told to trust its root.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from enclave.agent.certificates import CertificateIssuer
from enclave.agent.config import Listener
from enclave.agent.guest import EvidenceStyle, Guest, GuestFiles, Machine
from enclave.agent.host_methods import Shutdown
from enclave.agent.issuers import read_ca
from enclave.agent.local_issuer import LocalIssuer
from enclave.agent.own_identity import OwnIdentity, read_identity
from enclave.agent.pages import Observed
from enclave.agent.serving import Sockets, agent_parts, raise_open_files, serve
from enclave.agent.sockets import listen_unix
from enclave.agent.views import guest_views
from enclave.devices.host_shared import MAX_SYS_CONFIG
from enclave.dstack_util.host_notice import NoHost
from enclave.dstack_util.sys_config import parse_sys_config
from enclave.log import log_event, write_error
from enclave.process import forbid_dumps
from enclave.simulator.agent_config import SimulatorConfig
from enclave.simulator.fixture_set import APP_CA, lay_fixture, publish_trust, read_compose_file
from enclave.simulator.kms_issuer import SimulatedKmsIssuer
from enclave.simulator.recorded_attestor import RecordedAttestor
from enclave.simulator.tdx import SimulatedIntel
from enclave.tee.evidence import certificate_evidence
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import MAX_ENVELOPE
from shared.attestation.identity import AppInfo, app_info
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.errors import ConfigError, DstackError, ExitCode, UnavailableError
from shared.keys.app_keys_file import MAX_FILE, AppKeysFile, KmsProvider, parse_app_keys
from shared.keys.guest_keys import AppKey
from shared.ratls.certificates import BACKDATE
from shared.ratls.csr import CsrConfig

STYLE: Final = EvidenceStyle(without_tdx="attestation", whole_log=True, always_envelope=True)
"""As upstream's simulator answers GetQuote."""

MAX_UNIX_PATH: Final = 107
"""The kernel's. The daemon could listen beyond it, and no SDK connect."""

_BACKLOG: Final = 1024


def main(argv: list[str] | None = None) -> int:
    """Serve a directory until stopped; return the exit code."""
    arguments = _parser().parse_args(argv)
    directory: Path = arguments.dir
    try:
        raise_open_files()
        compose = None if arguments.app_compose is None else read_compose_file(arguments.app_compose)
        now = int(time.time())
        made = lay_fixture(directory, compose, now=now)
        config = SimulatorConfig.of_directory(directory)
        if arguments.config is not None:
            config = SimulatorConfig.load(arguments.config)
        signed = publish_trust(directory, config, now=now)
        stopped = run(directory, config, made=made, signed=signed)
    except DstackError as error:
        log_event("simulator.failed", code=error.code, message=error.message)
        write_error(f"simulator: {error} [{error.code}]")
        return error.exit_code
    return ExitCode.OK if stopped else ExitCode.FAILED


def run(
    directory: Path,
    config: SimulatorConfig,
    *,
    made: bool = False,
    signed: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> bool:
    """Answer until a signal ends it, and take the sockets away; returns whether it was one.

    Raises what the files are refused with, and `UnavailableError("agent.listen")`.
    """
    _, guest = open_guest(directory, config)
    observed = Observed.of_this_machine(config.core.data_disks)
    shutdown = Shutdown(NoHost(), stay_on)
    views = guest_views(guest, observed, shutdown, config.default.limits, simulated=True)

    def tell() -> None:
        log_event(
            "simulator.ready",
            dstack=str(directory / (config.internal.unix_path() or "")),
            tappd=str(directory / (config.internal_v0.unix_path() or "")),
            app_id=guest.identity.app_id.hex(),
            made=made,
            signed=signed,
        )
        ready()

    with _sockets(directory, config) as sockets:
        return serve(agent_parts(guest, sockets, config, views=views), guest, os.environ, ready=tell)


def open_guest(directory: Path, config: SimulatorConfig) -> tuple[RecordedAttestor, Guest]:
    """Read a directory's guest.

    Raises `ConfigError`: `simulator.file`, `simulator.seed`, `simulator.attestation`, `app_keys.*`;
    `InvalidEvidence`: `envelope.*`, `event_log.*`, `vm_config.*`; `ProtocolError`: `compose.*`,
    `sys_config.*`.
    """
    core = config.default.core
    simulator = core.simulator
    keys = parse_app_keys(_read(directory / core.keys_file, MAX_FILE))
    app_compose = _read(directory / core.compose_file, MAX_COMPOSE_BYTES)
    sys_config = parse_sys_config(_read(directory / core.sys_config_file, MAX_SYS_CONFIG))
    attestor = RecordedAttestor(
        _read(directory / simulator.attestation_file, MAX_ENVELOPE),
        patch=simulator.patch_report_data,
        intel=simulator.intel(),
    )
    identity = read_identity(attestor.evidence, whole_log=True)
    guest = Guest(
        AppKey(keys.k256_key, keys.k256_signature),
        identity,
        attestor,
        _issuer(directory, keys, identity, attestor, simulator.intel()),
        GuestFiles(app_compose, sys_config.vm_config),
        machine=Machine.read(),
        style=STYLE,
    )
    return attestor, guest


class _NoIssuer:
    """Stands for a KMS, which a simulator does not ask."""

    def issue(self, _key: EllipticCurvePrivateKey, _config: CsrConfig) -> tuple[str, ...]:
        """Raise `ConfigError("simulator.key_provider")`."""
        raise ConfigError(
            "simulator.key_provider",
            "the keys file names a kms, and the simulator asks none: it needs a ca of its own to sign with",
        )


def _issuer(
    directory: Path,
    keys: AppKeysFile,
    identity: OwnIdentity,
    attestor: RecordedAttestor,
    intel: SimulatedIntel | None,
) -> CertificateIssuer:
    provider = keys.key_provider
    if isinstance(provider, KmsProvider):
        return _NoIssuer()
    ca = read_ca(keys.ca_cert, provider.key, "app_keys.ca")
    evidence = partial(certificate_evidence, attestor)

    def describe(envelope: bytes, report_data: bytes) -> AppInfo:
        if intel is None:
            return unverified_app_info(identity)
        return verified_app_info(envelope, report_data, intel, int(time.time()))

    def now() -> int:
        return int(time.time())

    if not (directory / APP_CA).exists():
        return LocalIssuer(ca, evidence=evidence, describe=describe, now=now)
    pem = _read(directory / APP_CA, MAX_FILE).decode("ascii", "replace")
    app_ca = read_ca(pem, pem, "simulator.app_ca")
    return SimulatedKmsIssuer(
        app_ca, ca[0], app_id=identity.app_id, evidence=evidence, describe=describe, now=now
    )


def verified_app_info(envelope: bytes, report_data: bytes, intel: SimulatedIntel, now: int) -> AppInfo:
    """Return the app info that a KMS would put into a certificate, from evidence that verifies under `intel`.

    Raises `InvalidEvidence` for a record that does not.
    """
    verified = verify_attestation(
        envelope,
        now=now,
        anchors=TrustAnchors.production().with_extra(intel.root_pem, signer="tdx"),
        report_data=report_data,
        endorsements=Endorsements(tdx=(intel.collateral(now - BACKDATE),)),
    )
    return app_info(verified)


def unverified_app_info(identity: OwnIdentity) -> AppInfo:
    """Return the app info of certificates, from evidence that nobody verified: a record need not verify.

    mr_system, which only a verifier works out, is empty.
    """
    return AppInfo(
        app_id=identity.app_id,
        compose_hash=identity.compose_hash,
        instance_id=identity.instance_id,
        device_id=identity.device_id,
        mr_system=b"",
        mr_aggregated=identity.mr_aggregated,
        os_image_hash=identity.os_image_hash,
        key_provider_info=identity.key_provider_info.encode(),
        init_script_hashes=(),
    )


@contextmanager
def _sockets(directory: Path, config: SimulatorConfig) -> Iterator[Sockets]:
    """Bind what the configuration names, and remove the paths of what was bound."""
    paths: list[Path] = []
    opened: list[socket.socket] = []
    try:
        for listener in (config.internal, config.internal_v0, config.external, config.guest_api):
            name = listener.unix_path()
            if name is None:
                opened.append(_listen(listener))
            else:
                path = _reachable(directory / name)
                opened.append(listen_unix(path))
                paths.append(path)
        yield Sockets(opened[0], opened[1], (opened[2],), opened[3])
    finally:
        for one in opened:
            one.close()
        for path in paths:
            path.unlink(missing_ok=True)


def _reachable(path: Path) -> Path:
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise ConfigError(
            "simulator.directory.length",
            f"{path} is longer than a socket's {MAX_UNIX_PATH} bytes: name a directory nearer to /",
        )
    return path


def _listen(listener: Listener) -> socket.socket:
    try:
        return socket.create_server((listener.address, listener.port), backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            "agent.listen", f"cannot listen on {listener.address}:{listener.port}: {error.strerror}"
        ) from error


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError("simulator.file", f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ConfigError("simulator.file", f"{path} is larger than {limit} bytes")
    return content


def stay_on() -> None:
    """Refuse to power off the developer's machine: `ConfigError("simulator.shutdown")`."""
    raise ConfigError("simulator.shutdown", "a simulated guest powers no machine off: end it with Ctrl-C")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m enclave.simulator.agent", description="a guest agent without a guest"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path(), help="what is served; made where there is nothing"
    )
    parser.add_argument("-c", "--config", type=Path, help="a TOML or JSON file, in place of the directory's")
    parser.add_argument("--app-compose", type=Path, help="whose guest is made, where there is none")
    return parser


if __name__ == "__main__":
    forbid_dumps()
    sys.exit(main())
