"""`remove-orphans`: containers of a compose project whose service the compose file no longer has."""

import argparse
from pathlib import Path
from typing import Any

from enclave.compose.orphans import DOCKER_ROOT, read_project, remove_orphans_offline, remove_orphans_online
from enclave.compose.programs import plain_environment
from enclave.dstack_util.tools import Tools
from shared.compose.yaml_document import MAX_YAML_BYTES
from shared.errors import ConfigError


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the subcommand."""
    one = commands.add_parser("remove-orphans", help="remove containers whose service is gone")
    one.add_argument("-f", "--file", type=Path, required=True, metavar="COMPOSE")
    one.add_argument("-n", "--dry-run", action="store_true", help="only name them")
    one.add_argument("--no-dockerd", action="store_true", help="docker does not run: work on its files")
    one.add_argument("-d", "--docker-root", type=Path, default=DOCKER_ROOT)
    one.set_defaults(run=_remove_orphans)


def _remove_orphans(arguments: argparse.Namespace, tools: Tools) -> None:
    try:
        text = tools.read_file(arguments.file, MAX_YAML_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigError("compose.project", f"{arguments.file} is not utf-8") from error
    project = read_project(text, arguments.file.absolute().parent)
    if arguments.no_dockerd:
        remove_orphans_offline(project, arguments.docker_root, dry_run=arguments.dry_run)
    else:
        remove_orphans_online(
            project, tools.programs, environment=plain_environment(), dry_run=arguments.dry_run
        )
