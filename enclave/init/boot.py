"""The boot of an app's enclave, step by step: what is missing or wrong ends it with a code.

A Nitro Enclave does not run upstream's boot of a confidential VM (spec guest-agent section 6.1): this is its
own. Whoever reads evidence of the enclave knows by PCR0 to PCR2 that this code ran, and with which
`/etc/dstack/enclave.toml`.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple, TypeVar

from enclave.agent.daemon import log_keys
from enclave.dstack_util.enclave_config import EnclaveConfig, load_enclave_config
from enclave.dstack_util.get_keys import KeyBundle, get_keys
from enclave.init.account import Account, find_account
from enclave.init.environment import fetch_encrypted_env
from enclave.init.kernel import Kernel, LinuxKernel, prepare
from enclave.init.progress import Progress, http_sender
from enclave.init.secret_files import write_secret_files
from enclave.init.services import forwarder_config, run_agent, run_forwarder
from enclave.init.supervisor import Supervisor
from enclave.log import log_event, write_error
from enclave.platform import Platform
from enclave.tee.nitro import NitroTee
from shared.errors import ConfigError, DstackError, UnavailableError
from shared.keys.env_encryption import DecryptedEnv, decrypt_env

FIRST_DELAY: Final = 1.0
LAST_DELAY: Final = 30.0
"""Seconds between two attempts; each delay is twice the one before."""

NO_PROXY: Final = "127.0.0.1,localhost"

T = TypeVar("T")


class Machine(NamedTuple):
    """What differs between an enclave and a simulated one.

    `stand_in` is an argv that runs in place of the image's app, as whoever started the simulator: nothing
    of a simulated image is started.
    """

    kernel: Kernel
    stand_in: tuple[str, ...] = ()
    sleep: Callable[[float], None] = time.sleep


def main(
    argv: list[str] | None = None, platform: Platform | None = None, machine: Machine | None = None
) -> int:
    """Boot, run the app, and return its exit code. Takes no arguments: the measured image says all."""
    del argv
    try:
        machine = machine or Machine(LinuxKernel())
        return boot(platform or Platform.detect(), machine)
    except DstackError as error:
        log_event("init.failed", code=error.code, message=error.message)
        write_error(f"init: {error} [{error.code}]")
        return error.exit_code


def boot(platform: Platform, machine: Machine) -> int:
    """Boot and run the app; returns its exit code.

    1. Read the measured configuration. 2. Mounts, loopback, and the kernel's entropy from the module.
    3. Bind the app id in PCR16: nothing else of the image has run by then. 4. The ways in and out. 5. Keys
    from a KMS that is attested under the pinned root. 6. The environment, opened with them. 7. The guest's
    files, in memory. 8. The agent. 9. The app, with its environment, as its user.

    Raises `ConfigError`: `init.platform`, `init.config`, `init.user`, `init.mount.kind`, `init.app.start`;
    `UnavailableError`: `init.mount`, `init.loopback`, `init.entropy`, `init.service.start`,
    `init.service.ended`, `init.keys.unavailable`, `init.env.unavailable`; `StorageError("init.secrets")`;
    and what the module, the KMS and the environment are refused with.
    """
    tee = platform.tee
    if not isinstance(tee, NitroTee):
        raise ConfigError("init.platform", "enclave.init boots nitro enclaves, and this guest is none")
    config = load_enclave_config(platform)
    config.boot.check()
    app_id = config.app_id_bytes()
    account = find_account(platform, config.boot.user)
    progress = Progress(http_sender(platform, config), app_id=app_id)
    with progress.step("kernel"):
        prepare(machine.kernel, tee.random)
    with progress.step("app_id"):
        tee.bind_app_id(app_id)
    with Supervisor() as supervisor:
        with progress.step("network"):
            proxy = _start_forwarder(supervisor, tee, config, machine)
        with progress.step("keys"):
            bundle = _fetch_keys(platform, config, machine)
        with progress.step("environment"):
            env = _open_environment(tee, config, bundle, machine)
        with progress.step("agent"):
            write_secret_files(platform, bundle, env)
            supervisor.start_service("agent", partial(run_agent, platform, config, bundle))
        with progress.step("app"):
            supervisor.start_app(
                machine.stand_in or config.boot.command,
                environment=_app_environment(os.environ, proxy, account, env.values),
                account=None if machine.stand_in else account,
                directory="/" if machine.stand_in else config.boot.directory,
            )
        return supervisor.wait()


def _start_forwarder(supervisor: Supervisor, tee: NitroTee, config: EnclaveConfig, machine: Machine) -> str:
    rules = forwarder_config(config.boot, any_proxy_port=bool(machine.stand_in))
    if rules is None:
        return ""
    return supervisor.start_service("forwarder", partial(run_forwarder, tee, rules))


def _fetch_keys(platform: Platform, config: EnclaveConfig, machine: Machine) -> KeyBundle:
    bundle = _retry(
        lambda: get_keys(platform),
        attempts=config.boot.key_attempts,
        sleep=machine.sleep,
        code="init.keys.unavailable",
        what="no KMS gave keys",
    )
    log_keys(bundle)
    return bundle


def _open_environment(
    tee: NitroTee, config: EnclaveConfig, bundle: KeyBundle, machine: Machine
) -> DecryptedEnv:
    """Return the app's variables: none where it wants none, and else what the parent offers, or no boot."""
    policy = config.boot.env_policy()
    if not policy.allowed:
        return DecryptedEnv(values={})
    ciphertext = _retry(
        lambda: fetch_encrypted_env(tee, config.boot.env_port),
        attempts=config.boot.key_attempts,
        sleep=machine.sleep,
        code="init.env.unavailable",
        what="the parent offers no environment",
    )
    env = decrypt_env(ciphertext, bundle.keys.env_crypt_key, policy=policy, app_id=config.app_id_bytes())
    log_event("init.environment", names=", ".join(env.values), skipped=len(env.skipped))
    return env


def _retry(
    call: Callable[[], T], *, attempts: int, sleep: Callable[[float], None], code: str, what: str
) -> T:
    """Call again while the other side is not there; a refusal stands at once."""
    delay = FIRST_DELAY
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except UnavailableError as error:
            log_event("init.retry", attempt=attempt, code=error.code)
            if attempt == attempts:
                raise UnavailableError(
                    code, f"{what} in {attempts} attempts: {error.message} [{error.code}]"
                ) from error
        sleep(delay)
        delay = min(2 * delay, LAST_DELAY)
    raise AssertionError("unreachable")


def _app_environment(
    measured: Mapping[str, str], proxy: str, account: Account | None, values: Mapping[str, str]
) -> dict[str, str]:
    """Return the app's environment: the image's own, the way out, and its secrets, which nobody else gets."""
    found = dict(measured)
    if proxy:
        found |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), f"http://{proxy}")
        found["NO_PROXY"] = NO_PROXY
    if account is not None and account.home:
        found["HOME"] = account.home
    return found | dict(values)
