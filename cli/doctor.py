"""`dstack-cloud doctor`: what would stop a deployment, and the command that mends it."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.compose import print_findings
from cli.deploy_options import Chosen, chain_options, take_chosen
from cli.places import cache_path, config_path, project_option
from functions.plan.project_files import read_config
from shared.compose.findings import Finding, Severity, error, note
from shared.compose.project import GlobalConfig
from shared.errors import DstackError, ExitCode

Check = Callable[[], Iterator[Finding]]


@click.command()
@project_option
@chain_options
@click.option("--local", is_flag=True, help="For a simulated machine on this computer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(directory: Path, *, local: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Look at everything that a deployment of this project needs, and change nothing.

    Project and image, the cloud's credential, quota and names, the key to encrypt .env with, and what the
    contracts lack. Each line that is an error ends in what to do.

    Exit codes: 0 nothing would stop it, 2 the settings cannot be read, 3 something would.
    """
    chosen = take_chosen(given)
    config = read_config(config_path(os.environ))
    found: list[Finding] = []
    checks: dict[str, Check] = {
        "project": partial(_project, directory, config, chosen),
        "cloud": partial(_cloud, directory, config, local=local),
        "environment": partial(_environment, directory, config, chosen),
    }
    for name, check in checks.items():
        try:
            found += check()
        except DstackError as problem:
            hint = getattr(problem, "hint", "")
            message = f"{problem.message}; to mend it: {hint}" if hint else problem.message
            found.append(error(problem.code, name, message))
    wrong = any(one.severity is Severity.ERROR for one in found)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "findings": msgspec.to_builtins(found)}, indent=2))
    else:
        print_findings(tuple(found))
        click.echo("something would stop this deployment" if wrong else "nothing would stop this deployment")
    sys.exit(ExitCode.REFUSED if wrong else ExitCode.OK)


def _project(directory: Path, config: GlobalConfig, chosen: Chosen) -> Iterator[Finding]:
    """Plan, with the chain where one is named."""
    from cli.runtime import chain_of  # noqa: PLC0415 - heavy
    from functions.plan.enclave_builder import CachedBuilder  # noqa: PLC0415 - heavy
    from functions.plan.service import PlanOptions, plan_deployment  # noqa: PLC0415 - heavy

    ask = chain_of(chosen.rpc_urls, chosen.contract, chosen.chain_id).ask
    plan = plan_deployment(
        directory,
        config,
        PlanOptions(kms_contract=chosen.contract),
        build_enclave=CachedBuilder(cache_path(os.environ)),
        ask_chain=None if ask is None else lambda boot_info: ask(boot_info, int(time.time())).head,
    )
    yield from plan.findings
    if plan.outcome == "refused":
        return
    yield note(
        "doctor.plan", plan.name, f"is planned as {plan.plan_id[:16]}, image {plan.image.os_image_hash}"
    )
    if not plan.approval.checked:
        yield note("doctor.chain", "--rpc", "is not given, so no contract was asked")
    for blocked in plan.approval.blocked:
        yield error("doctor.blocked", "contracts", blocked)
    for call in plan.approval.calls if plan.approval.checked else ():
        to = call.to or "the contract"
        yield error("doctor.approval", call.function, f"{call.why}: send {call.calldata} to {to}")


def _cloud(directory: Path, config: GlobalConfig, *, local: bool) -> Iterator[Finding]:
    """Ask the cloud, as the first step of a deployment does."""
    from cli.runtime import parts  # noqa: PLC0415 - heavy
    from cli.upload import project_upload  # noqa: PLC0415 - heavy

    service, _ = parts(config, os.environ)
    upload = project_upload(directory, config)
    upload = msgspec.structs.replace(upload, cloud="local" if local else None, env_names=())
    found = service.check(upload)
    yield from found
    if not any(one.severity is Severity.ERROR for one in found):
        yield note("doctor.cloud", upload.name, "can be launched, as far as the cloud says")


def _environment(directory: Path, config: GlobalConfig, chosen: Chosen) -> Iterator[Finding]:
    """Ask a KMS for the key that .env is encrypted with, and throw the ciphertext away."""
    from cli.upload import Sealing, project_upload, whitelist_path, with_env  # noqa: PLC0415 - heavy
    from functions.plan.project_files import read_project  # noqa: PLC0415 - heavy

    files = read_project(directory)
    if files.env is None or not files.env.names:
        return
    sealing = Sealing(
        signers=whitelist_path(config_path(os.environ)),
        rpc_urls=chosen.rpc_urls,
        chain_id=chosen.chain_id,
        kms_contract=chosen.contract,
    )
    sealed = with_env(project_upload(directory, config), directory, config, sealing)
    yield note("doctor.env", ".env", f"can be encrypted, variables: {len(sealed.env_names)}")
