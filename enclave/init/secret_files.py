"""The guest's files with secrets, where agents and tools look for them (spec guest-agent section 6.2).

They are below `/dstack`, which `kernel.prepare` has seen to be memory. Root alone reads them: the app gets
its variables in its environment, and its keys from the agent.
"""

import os
from pathlib import Path
from typing import Final

from enclave.dstack_util.get_keys import KeyBundle
from enclave.platform import Platform
from shared.compose.env_escape import decrypted_env, decrypted_env_json
from shared.errors import StorageError
from shared.keys.env_encryption import DecryptedEnv

DIRECTORY: Final = "/dstack/.host-shared"


def write_secret_files(platform: Platform, bundle: KeyBundle, env: DecryptedEnv) -> None:
    """Write `.appkeys.json`, `.decrypted-env` and `.decrypted-env.json`, 0600 in a directory of 0700.

    Raises `StorageError("init.secrets")`.
    """
    directory = platform.writable_path(DIRECTORY)
    files = {
        ".appkeys.json": bundle.to_file().to_json(),
        ".decrypted-env": decrypted_env(env.values),
        ".decrypted-env.json": decrypted_env_json(env.values),
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for name, content in files.items():
            _write(directory / name, content)
    except OSError as error:
        raise StorageError(
            "init.secrets", f"cannot write the guest's files in {directory}: {error.strerror}"
        ) from None


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
