"""The agent of an app's guest: its keys, its sockets, and the answers to a deployer's challenges.

Where the measured image has an `/etc/dstack/enclave.toml`, the guest gets its keys itself, from a KMS that
the file names, and has them in memory alone. Elsewhere `dstack-util setup` did that at boot, and the keys
are in the guest's keys file.
"""

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from enclave.agent.config import AgentConfig
from enclave.agent.guest import EvidenceStyle, Guest, GuestFiles, Machine
from enclave.agent.host_methods import Shutdown, simulated_power_off, systemd_power_off
from enclave.agent.issuers import certificate_issuer
from enclave.agent.own_identity import read_identity
from enclave.agent.pages import Observed
from enclave.agent.serving import agent_parts, open_sockets, raise_open_files, serve
from enclave.agent.sockets import tcp_address
from enclave.agent.views import guest_views
from enclave.bounded_file import read_bounded
from enclave.devices.host_shared import MAX_SYS_CONFIG
from enclave.dstack_util.enclave_config import CONFIG_PATH, EnclaveConfig, load_enclave_config
from enclave.dstack_util.get_keys import KeyBundle, get_keys
from enclave.dstack_util.host_api import host_of
from enclave.dstack_util.setup_config import load_trust
from enclave.dstack_util.sys_config import parse_sys_config
from enclave.log import log_event, write_error
from enclave.platform import Platform
from enclave.tee.evidence import SerialAttestor
from enclave.tee.peers import establish_trust
from shared.attestation.envelope import REPORT_DATA_LENGTH, decode_envelope
from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.errors import ConfigError, DstackError, ExitCode
from shared.keys.app_keys_file import MAX_FILE, AppKeysFile, parse_app_keys
from shared.keys.guest_keys import AppKey

FINGERPRINT_DIGITS = 16


def fingerprint(secret: bytes) -> str:
    """Return the first 16 hex digits of SHA-256: enough to compare a key, nothing to use it."""
    return hashlib.sha256(secret).hexdigest()[:FINGERPRINT_DIGITS]


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run until stopped. In an enclave the arguments are the measured image's too.

    `platform` is a simulator's; None is the guest that this process runs in.
    """
    power_off = systemd_power_off if platform is None else simulated_power_off
    arguments = _parser().parse_args(argv or [])
    try:
        config = AgentConfig.load(arguments.config)
        raise_open_files()
        platform = platform or Platform.detect()
        image: EnclaveConfig | None = None
        if platform.has_measured(CONFIG_PATH):
            image = load_enclave_config(platform)
            image.app_id_bytes()
            bundle = get_keys(platform)
            platform.tee.record_keys(os_image_hash=bundle.os_image_hash, kms_root=bundle.root_spki())
            log_keys(bundle)
            keys = bundle.to_file()
        else:
            keys = read_keys(platform, config)
        stopped = run(platform, config, keys, image, watchdog=arguments.watchdog, power_off=power_off)
    except DstackError as error:
        log_event("agent.failed", code=error.code, message=error.message)
        write_error(f"agent: {error} [{error.code}]")
        return error.exit_code
    log_event("agent.stopped", signalled=stopped)
    return ExitCode.OK if stopped else ExitCode.FAILED


def run(
    platform: Platform,
    config: AgentConfig,
    keys: AppKeysFile,
    image: EnclaveConfig | None,
    *,
    watchdog: bool = False,
    power_off: Callable[[], None] = systemd_power_off,
    ready: Callable[[], None] = lambda: None,
) -> bool:
    """Serve a guest that has its keys; returns whether a signal ended it. `image` is its enclave.toml.

    1. Evidence tells who the guest is, once. 2. What signs its certificates follows from where its keys came
    from. 3. The sockets are bound. 4. All are answered, and `ready` is called. `power_off` is what the host's
    Shutdown does.

    Raises what the devices, the keys file, app-compose, the configuration and the sockets are refused with.
    """
    attestor = SerialAttestor(platform.tee.attestor(None if image is None else image.app_id_bytes()))
    identity = read_identity(decode_envelope(attestor.attest(bytes(REPORT_DATA_LENGTH))))
    files = read_files(platform, config, needed=image is None)
    trust = establish_trust(platform, load_trust(platform).settings())
    issuer = certificate_issuer(
        keys,
        app_id=identity.app_id,
        attestor=attestor,
        verifier=trust.verifier,
        dialer=platform.dialer(),
        more_urls=files.kms_urls if image is None else tuple(one.url for one in image.kms.endpoints()),
        vm_config=files.vm_config,
    )
    guest = Guest(
        AppKey(keys.k256_key, keys.k256_signature),
        identity,
        attestor,
        issuer,
        files,
        machine=Machine.read(),
        style=EvidenceStyle(without_tdx=config.core.quote_without_tdx),
    )
    evidence = None if image is None else (image.evidence.address, image.evidence.port)
    sockets = open_sockets(platform, config, os.environ, evidence=evidence)

    def tell() -> None:
        log_event(
            "agent.ready",
            external_port=config.external.port,
            evidence_port=config.external.port if evidence is None else evidence[1],
            guest_api=sockets.guest_api is not None,
        )
        ready()

    host = host_of(identity.tee_variant, files.host_api_url, platform.tee.vsock)
    observed = Observed.of_this_machine(config.core.data_disks)
    views = guest_views(guest, observed, Shutdown(host, power_off), config.default.limits)
    parts = agent_parts(guest, sockets, config, views=views)
    watched = tcp_address(sockets.external[0]) if watchdog else None
    return serve(parts, guest, os.environ, watched=watched, ready=tell)


def log_keys(bundle: KeyBundle) -> None:
    """Tell which keys came, and from whom, by what no one can use."""
    keys = bundle.keys
    log_event(
        "agent.keys",
        disk_crypt_key=fingerprint(keys.disk_crypt_key),
        env_crypt_key=fingerprint(keys.env_crypt_key),
        k256_key=fingerprint(keys.k256_key),
        k256_root=bundle.k256_root.hex(),
        gateway_app_id=bundle.gateway_app_id,
    )


def read_keys(platform: Platform, config: AgentConfig) -> AppKeysFile:
    """Read the keys file that the guest's boot wrote. Raises `ConfigError`: `agent.file`, `app_keys.*`."""
    path = platform.writable_path(config.core.keys_file)
    raw = read_bounded(path, MAX_FILE, code="agent.file")
    if raw is None:
        raise ConfigError(
            "agent.file",
            f"there are no keys: neither {CONFIG_PATH} in the image, nor {path}, which setup writes",
        )
    return parse_app_keys(raw)


def read_files(platform: Platform, config: AgentConfig, *, needed: bool) -> GuestFiles:
    """Read app-compose and the host's text about this guest, which an enclave may have neither of.

    Raises `ConfigError("agent.file")`, and `ProtocolError("sys_config.*")`.
    """
    compose, sys_config = config.core.compose_file, config.core.sys_config_file
    where = platform.image if platform.has_measured(compose) else platform.writable
    app_compose = read_bounded(where / compose.lstrip("/"), MAX_COMPOSE_BYTES, code="agent.file")
    host_text = read_bounded(platform.writable_path(sys_config), MAX_SYS_CONFIG, code="agent.file")
    if needed and (app_compose is None or host_text is None):
        missing = compose if app_compose is None else sys_config
        raise ConfigError("agent.file", f"there is no {missing}, which the guest's boot leaves")
    if not host_text:
        return GuestFiles(app_compose or b"")
    host = parse_sys_config(host_text)
    return GuestFiles(app_compose or b"", host.vm_config, host.host_api_url, host.kms_urls)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m enclave.agent", description="the agent of a guest")
    parser.add_argument("-c", "--config", type=Path, help="a TOML or JSON file over the built-in defaults")
    parser.add_argument("-w", "--watchdog", action="store_true", help="tell systemd's watchdog who answers")
    return parser
