"""The app's environment, decrypted for whoever starts it (spec deploy section 6.3 step 13)."""

from pathlib import Path

from enclave.dstack_util.machine import PRIVATE, Machine
from enclave.log import log_event
from shared.compose.env_escape import decrypted_env, decrypted_env_json
from shared.compose.model import AppCompose
from shared.compose.shared_files import ENCRYPTED_ENV
from shared.errors import ConfigError
from shared.keys.env_encryption import DecryptedEnv, decrypt_env, env_policy

DECRYPTED_ENV = ".decrypted-env"
DECRYPTED_ENV_JSON = ".decrypted-env.json"


def open_environment(
    compose: AppCompose, ciphertext: bytes | None, *, private: bytes, app_id: bytes
) -> DecryptedEnv:
    """Return the variables that the app asked for; anything else stops the boot (SECURITY N-71).

    Raises what `decrypt_env` raises, and `ConfigError("setup.env.key")` for a file that nobody can open:
    `private` is empty without a KMS.
    """
    if ciphertext and not private:
        raise ConfigError(
            "setup.env.key", f"there is an {ENCRYPTED_ENV}, and keys that come from no kms do not open one"
        )
    opened = decrypt_env(ciphertext or None, private, policy=env_policy(compose), app_id=app_id)
    if opened.skipped:
        log_event("setup.env_skipped", count=len(opened.skipped))
    return opened


def write_environment(machine: Machine, directory: Path, opened: DecryptedEnv) -> None:
    """Write both files, also where there are no variables. Raises `StorageError("setup.write")`."""
    machine.write(directory / DECRYPTED_ENV, decrypted_env(opened.values), PRIVATE)
    machine.write(directory / DECRYPTED_ENV_JSON, decrypted_env_json(opened.values), PRIVATE)
