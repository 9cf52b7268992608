"""The `dstack-util` command."""

import argparse
import os
import sys
from pathlib import Path

from enclave.dstack_util.get_keys import get_keys
from enclave.platform import Platform
from shared.errors import DstackError, ExitCode, StorageError


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run a subcommand and return its exit code. `platform` is the simulator's; None is a real enclave."""
    parser = argparse.ArgumentParser(prog="dstack-util", description="tools of a dstack guest")
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser(
        "get-keys", help="attest to the KMS named by the measured image and print this app's keys"
    )
    keys.add_argument("-o", "--output", type=Path, help="write here, mode 0600, instead of standard output")
    arguments = parser.parse_args(argv)
    try:
        bundle = get_keys(platform or Platform.detect())
        if arguments.output is None:
            sys.stdout.buffer.write(bundle.to_file().to_json() + b"\n")
        else:
            _write_private(arguments.output, bundle.to_file().to_json())
    except DstackError as error:
        sys.stderr.write(f"dstack-util: {error} [{error.code}]\n")
        return error.exit_code
    return ExitCode.OK


def _write_private(path: Path, content: bytes) -> None:
    """Write next to `path` and rename, so that a reader sees all of it or nothing."""
    staged = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError("get_keys.write", f"{path} cannot be written: {error.strerror}") from error
