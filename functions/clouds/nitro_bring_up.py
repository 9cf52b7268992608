"""From an instance that was started to an enclave that runs, one look at a time."""

from typing import Final

from functions.clouds import ec2_instances, nitro_commands, ssm_commands
from functions.clouds.ec2_instances import Instance
from functions.clouds.nitro_commands import ParentStatus
from functions.clouds.nitro_parent import STATE
from functions.clouds.nitro_settings import NitroSettings
from functions.clouds.nitro_site import Site, recorded_instance
from functions.deploy.cloud import EVIDENCE_PORT, DeniedError, Machine, Wait, Work

CONFIDENTIAL: Final = "NITRO_ENCLAVE"

AGENT_SECONDS: Final = 600
"""How long an instance may take from its start until its agent answers; it is about one minute."""

ENCLAVE_SECONDS: Final = 1500
"""How long until its enclave runs: packages are installed and gigabytes fetched in this time."""


def bring_up(work: Work, site: Site, found: Instance) -> Wait | Machine:
    """Carry an instance on until its enclave runs. One that is not what was ordered is returned at once."""
    match found.state:
        case "stopped":
            ec2_instances.start_instance(site.ec2, found.instance_id)
            # what was asked before the stop would be answered by a machine that is no more
            asked = dict.fromkeys(("status_command", "run_command", "terminate_command", "ran"), "")
            work.present(recorded_instance(work), since=str(site.clock()), **asked)
            return Wait(10, "the instance to start")
        case "pending" | "running" if not is_ordered(site.settings, found):
            return claimed_machine(found)
        case "running":
            return _ask_enclave(work, site, found)
        case _:
            return Wait(5, f"the instance, which is {found.state}")


def is_ordered(settings: NitroSettings, found: Instance) -> bool:
    """Tell whether EC2 says that the instance is what was asked for."""
    return found.enclave and found.instance_type == settings.instance_type


def claimed_machine(
    found: Instance, status: ParentStatus | None = None, pcrs: dict[str, str] | None = None
) -> Machine:
    """Return what is claimed: `NITRO_ENCLAVE` only of the planned image, running, and not to be debugged.

    `ENCLAVE_DOWN` is an instance that runs while its enclave does not.
    """
    enclave = status.running if status else None
    is_debug = enclave is not None and enclave.flags != "NONE"
    claim = ""
    if found.enclave and enclave is not None:
        claim = "an enclave in debug mode" if is_debug else "an enclave of another image"
        if not is_debug and enclave.has(pcrs or {}):
            claim = CONFIDENTIAL
    is_down = status is not None and enclave is None
    address = found.public_ip or found.private_ip
    return Machine(
        status="ENCLAVE_DOWN" if is_down else found.state.upper(),
        machine_type=found.instance_type,
        confidential=claim,
        external_ip=found.public_ip,
        internal_ip=found.private_ip,
        evidence_url=f"http://{address}:{EVIDENCE_PORT}/evidence" if address else "",
        traits={
            "debug": is_debug,
            "enclave_options": found.enclave,
            "forwarder": "unknown" if status is None else status.forwarder[:20],
        },
    )


def _ask_enclave(work: Work, site: Site, found: Instance) -> Wait | Machine:
    if not ssm_commands.is_online(site.ssm, found.instance_id):
        return _wait_for_agent(work, site, found)
    done = site.ask(work, found, "status_command", nitro_commands.status_command())
    if done is None:
        return Wait(3, "the instance to say how far it is")
    status = site.status(done)
    if status.running is None:
        return _not_yet(work, site, found, status)
    if (enclave := work.deployment.resource("enclave")) is not None:
        work.present(enclave, enclave_id=status.running.enclave_id[:100], instance_id=found.instance_id)
    return claimed_machine(found, status, site.settings.pcrs)


def _wait_for_agent(work: Work, site: Site, found: Instance) -> Wait:
    waited = site.waited(recorded_instance(work))
    if waited <= AGENT_SECONDS:
        return Wait(10, "the instance's agent to answer")
    raise DeniedError(
        "nitro.ssm.offline",
        f"systems manager does not reach {found.instance_id} after {waited} s",
        f"give {site.settings.iam_instance_profile} the policy AmazonSSMManagedInstanceCore, and the "
        "subnet a way to the ssm, ssmmessages and ec2messages endpoints",
    )


def _not_yet(work: Work, site: Site, found: Instance, status: ParentStatus) -> Wait:
    exit_code = int(status.enclave_exit) if status.enclave_exit.isdecimal() else None
    if exit_code and status.bringup != "pending":
        raise nitro_commands.enclave_failure(exit_code, status.error_text, site.settings.memory_mib)
    if status.bringup == "failed":
        raise _bringup_failure(status, site.settings)
    waited = site.waited(recorded_instance(work))
    if waited > ENCLAVE_SECONDS:
        raise DeniedError(
            "nitro.parent.slow",
            f"no enclave runs {waited} s after the instance started: {status.error_text}",
            f"read {STATE}/bringup.log on it: `aws ssm start-session --target {found.instance_id}`",
        )
    if status.bringup == "pending" or exit_code is None or status.enclaves:
        return Wait(10, "the instance to start the enclave")
    return _start_again(work, site, found)


def _start_again(work: Work, site: Site, found: Instance) -> Wait:
    """Start an enclave that was started and is not there: it ended, or this boot has not come to it yet."""
    if recorded_instance(work).facts.get("ran"):
        raise DeniedError(
            "nitro.enclave.ended",
            "the enclave was started twice and ended: its main process does not stay",
            "run the image outside of an enclave first, and see that its command does not return",
        )
    if site.ask(work, found, "run_command", nitro_commands.run_command()) is not None:
        work.say("the enclave had ended and was started again")
        work.present(recorded_instance(work), ran="yes")
    return Wait(5, "the enclave to start again")


def _bringup_failure(status: ParentStatus, settings: NitroSettings) -> DeniedError:
    fetching = (
        f"allow {settings.iam_instance_profile} s3:GetObject on arn:aws:s3:::{settings.bucket}/eif/*, and "
        "the subnet a way to S3"
    )
    hints = {
        "packages": "give the subnet a way to the package repositories (NAT, or an S3 gateway endpoint), or "
        "set nitro_config.ami_id to an image with aws-nitro-enclaves-cli",
        "allocator": f"the instance cannot set {settings.memory_mib} MiB and {settings.cpu_count} cpus "
        "aside: lower nitro_config.memory_mib or cpu_count, or take a larger instance_type",
        "forwarder": fetching,
        "image": fetching,
        "env": fetching,
        "files": "",
        "enclave": "",
    }
    step = status.step if status.step in hints else "begin"
    return DeniedError(
        f"nitro.parent.{step}",
        f"the instance's set-up failed at {step}: {status.error_text}",
        hints.get(step) or f"look at {STATE}/bringup.log on the instance, then deploy again",
    )
