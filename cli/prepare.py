"""`dstack-cloud prepare`: write the files of the config disk into shared/, as upstream's command does."""

import json
import os
from pathlib import Path
from typing import Final

import click
import msgspec

from cli.places import config_path, project_option
from functions.plan.enclave_builder import CachedBuilder
from functions.plan.project_files import SHARED, ProjectFiles, read_config, read_project
from functions.plan.service import PlanOptions, gather_facts, make_app_compose
from shared.compose.findings import Finding, Severity
from shared.compose.project import GlobalConfig
from shared.compose.shared_files import (
    APP_COMPOSE,
    ENCRYPTED_ENV,
    INSTANCE_INFO,
    SYS_CONFIG,
    USER_CONFIG,
    InstanceInfo,
    encode_instance_info,
)
from shared.errors import ConfigError, ExitCode, StorageError

_OURS: Final = (APP_COMPOSE, SYS_CONFIG, INSTANCE_INFO, USER_CONFIG)


@click.command()
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prepare(directory: Path, *, as_json: bool) -> None:
    """Write what the config disk will hold into shared/, all but the encrypted environment.

    Without the OS image there is no .sys-config.json, and a warning.

    Exit codes: 0 written, 2 usage, 3 refused by the linter; the files are written then too.
    """
    files = read_project(directory)
    if files.project.platform == "nitro":
        raise ConfigError("prepare.nitro", "an enclave has no config disk: all that it runs is in its image")
    config = read_config(config_path(os.environ))
    contents, warning = disk_files(files, config)
    write_shared(directory, contents)
    findings = make_app_compose(files)[1]
    written = [str(directory / SHARED / name) for name in contents]
    if as_json:
        told = {"written": written, "warning": warning, "findings": msgspec.to_builtins(findings)}
        click.echo(json.dumps(told, indent=2))
    else:
        _print(written, warning, findings, has_env=files.env is not None and bool(files.env.names))
    if any(found.severity is Severity.ERROR for found in findings):
        raise SystemExit(ExitCode.REFUSED)


def _print(written: list[str], warning: str, findings: tuple[Finding, ...], *, has_env: bool) -> None:
    for path in written:
        click.echo(f"wrote {path}")
    if warning:
        click.echo(f"warning: {warning}", err=True)
    if has_env:
        click.echo(f"{ENCRYPTED_ENV} is made when it is deployed")
    for found in findings:
        click.echo(f"{found.severity.value:<8} {found.where}: {found.message} [{found.code}]", err=True)


def disk_files(files: ProjectFiles, config: GlobalConfig) -> tuple[dict[str, bytes], str]:
    """Return the files of the config disk that can be made now, and a warning where one is missing."""
    try:
        facts = gather_facts(files.directory, config, PlanOptions(), build_enclave=CachedBuilder(Path()))
    except ConfigError as error:
        if error.code != "plan.os_image.missing":
            raise
        seed = bytes.fromhex(files.project.instance_id_seed or "")
        app_id = bytes.fromhex(files.project.app_id or "")
        contents = {
            APP_COMPOSE: make_app_compose(files)[0].raw,
            INSTANCE_INFO: encode_instance_info(InstanceInfo(seed, app_id)),
        }
        if files.user_config is not None:
            contents[USER_CONFIG] = files.user_config
        return contents, f"{error.message}; {SYS_CONFIG} is not written"
    return dict(facts.config_files or {}), ""


def write_shared(directory: Path, contents: dict[str, bytes]) -> None:
    """Write files into shared/, each whole, and take away ours that are not among them.

    Raises `StorageError("prepare.write")`.
    """
    shared = directory / SHARED
    try:
        shared.mkdir(exist_ok=True)
        for name, content in contents.items():
            part = shared / f".{name.removeprefix('.')}.part"
            part.write_bytes(content)
            part.replace(shared / name)
        for name in set(_OURS) - contents.keys():
            (shared / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError("prepare.write", f"cannot write into {shared}: {error.strerror}") from error
