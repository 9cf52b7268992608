"""`dstack-cloud deploy`: from a project to attested and running."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cli.deploy_options import Chosen, api_options, chain_options, deployments_of, take_chosen
from cli.deploy_output import Progress, call_lines, lines, missing_calls, outcome
from cli.deployments import Deployments, View
from cli.new import adopt_compose_file
from cli.places import config_path, project_option
from cli.prepare import write_shared
from cli.remote import ApiError
from cli.state_file import record_deployment
from cli.upload import Sealing, project_upload, whitelist_path, with_env
from functions.deploy.record import Step
from functions.deploy.request import Options, Upload, check_upload
from functions.deploy.runner import WaitOver
from functions.deploy.store import NotFoundError
from functions.plan.project_files import APP_JSON, read_config
from shared.compose.project import GlobalConfig
from shared.errors import ExitCode

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@project_option
@api_options
@chain_options
@click.option("-d", "--delete", "replace", is_flag=True, help="Deploy over what runs under this name.")
@click.option("--local", is_flag=True, help="Deploy to a simulated machine on this computer.")
@click.option(
    "--platform",
    type=click.Choice(["gcp", "nitro"]),
    default="gcp",
    show_default=True,
    help="Of the project that is made where there is a compose file and no app.json yet.",
)
@click.option(
    "--wait-approval/--no-wait-approval",
    default=False,
    help="Wait for governance; without it, print the calls that are missing and end with exit code 5.",
)
@click.option("--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="Wait no longer than this.")
@click.option("--app-id", metavar="HEX", default="", help="Deploy under this app id, not app.json's.")
@click.option("--app-owner", metavar="ADDR", default="", help="Who shall own an app contract to be made.")
@click.option("--device-id", metavar="HEX", default="", help="The device that the app contract must allow.")
@click.option(
    "--allow-drop", "may_drop", multiple=True, metavar="FIELD", help="Let this field of the app-compose go."
)
@click.option("--env-key", type=_FILE, help="Ed25519 key (PEM) that signs .env, where app-compose names one.")
@click.option("--env-version", type=click.IntRange(min=0), help="Version of the signed .env; else the time.")
@click.option("--kms-roots", type=_FILE, help="TLS roots (PEM) of the KMS that .env is encrypted for.")
@click.option("--allow-legacy-signature", is_flag=True, help="Take a KMS key that is signed without a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no progress.")
def deploy(directory: Path, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Deploy the project: plan it, launch its machine, and prove by evidence that it runs what was planned.

    Everything is written down before it is made: run this again to go on with a deployment that was
    interrupted; `remove` leaves nothing. A directory with a compose file alone becomes a project first, as
    `new` would make it.

    Exit codes: 0 running and attested, 1 failed, 2 usage, 3 refused, 5 needs approval on chain, 6 timed out.
    """
    chosen = take_chosen(given)
    config = read_config(config_path(os.environ))
    deployments = deployments_of(chosen, config)
    if adopted := adopt_compose_file(directory, given["platform"]):
        click.echo(f"made {directory / APP_JSON} for {adopted}: keep it, it names this app", err=True)
    upload = _upload(directory, config, given)
    if not _is_under_way(deployments, upload):
        sealed = with_env(upload, directory, config, _sealing(chosen, given))
        if chosen.api:
            sealed = msgspec.structs.replace(sealed, directory="")
        deployments.deploy(sealed, secrets.token_hex(16))
        _leave_shared(directory, config, sealed)
    progress = Progress(quiet=as_json)
    stop_at = frozenset() if given["wait_approval"] else frozenset({Step.AWAIT_APPROVAL})
    try:
        found = deployments.follow(upload.name, progress, timeout=given["timeout"], stop_at=stop_at)
    except WaitOver:
        found, code = deployments.get(upload.name), ExitCode.TIMED_OUT
    else:
        code = outcome(found, Step.RUNNING)
    record_deployment(directory, found)
    if as_json:
        calls = missing_calls(found, progress) if code is ExitCode.NEEDS_APPROVAL else []
        click.echo(json.dumps({**found, "calls": calls, "exit_code": int(code)}, indent=2))
    else:
        _print(found, progress, code)
    sys.exit(code)


def _upload(directory: Path, config: GlobalConfig, given: dict[str, Any]) -> Upload:
    options = Options(
        app_id=given["app_id"],
        app_owner=given["app_owner"],
        device_id=given["device_id"],
        may_drop=given["may_drop"],
    )
    upload = project_upload(directory, config, options)
    return msgspec.structs.replace(
        upload,
        cloud="local" if given["local"] else None,
        replace=given["replace"],
    )


def _is_under_way(deployments: Deployments, upload: Upload) -> bool:
    """Tell whether the same files are being deployed already: then that is gone on with."""
    from hashlib import sha256  # noqa: PLC0415 - only here

    names, upload = upload.env_names, msgspec.structs.replace(upload, env_names=())
    try:
        found = deployments.get(upload.name)
    except NotFoundError:
        return False
    except ApiError as error:
        if error.code == "deploy.unknown":
            return False
        raise
    others = found["cloud"] != check_upload(upload) or found["env_names"] != sorted(set(names))
    if found["settled"] or others:
        return False
    files = {name: sha256(content).hexdigest() for name, content in upload.files.items()}
    if found["files"] != files or found["goal"] != "running":
        return False
    if found["encrypted_env"]:
        # nobody can tell from its ciphertext whether .env is what it was
        click.echo(
            "going on with what was asked for before, and with .env as it was then: `stop`, then deploy"
            " with --delete, for another one",
            err=True,
        )
    return True


def _sealing(chosen: Chosen, given: dict[str, Any]) -> Sealing:
    return Sealing(
        signers=whitelist_path(config_path(os.environ)),
        rpc_urls=chosen.rpc_urls,
        chain_id=chosen.chain_id,
        kms_contract=chosen.contract,
        env_key_file=given["env_key"],
        env_version=given["env_version"],
        allow_legacy=given["allow_legacy_signature"],
        ca_roots=given["kms_roots"],
    )


def _leave_shared(directory: Path, config: GlobalConfig, upload: Upload) -> None:
    """Leave the config disk's files in shared/, as upstream does: the next `plan` compares with them."""
    from cli.prepare import disk_files  # noqa: PLC0415 - enclaves have none
    from functions.plan.project_files import read_project  # noqa: PLC0415 - as above
    from shared.compose.shared_files import ENCRYPTED_ENV  # noqa: PLC0415 - as above

    files = read_project(directory)
    if files.project.platform == "nitro":
        return
    contents, _ = disk_files(files, config)
    if upload.encrypted_env:
        contents[ENCRYPTED_ENV] = upload.encrypted_env
    write_shared(directory, contents)


def _print(found: View, progress: Progress, code: ExitCode) -> None:
    for line in lines(found):
        click.echo(line)
    if code is ExitCode.NEEDS_APPROVAL:
        calls = missing_calls(found, progress)
        for line in call_lines(calls):
            click.echo(line)
        first = "have the contracts' owners make these calls, then run this again"
        click.echo(f"NEEDS APPROVAL  {first if calls else 'run this again, or with --wait-approval'}")
    if code is ExitCode.TIMED_OUT:
        click.echo("TIMED OUT  nothing is lost: run this again to go on")
