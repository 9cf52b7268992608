"""Holds what a cloud says of a machine against what was ordered (N-80). Its evidence says more, and later."""

from typing import Final

from functions.deploy.cloud import Machine
from functions.plan.model import Plan
from shared.errors import CloudError, ExitCode

CONFIDENTIAL: Final = {"gcp": "TDX", "nitro": "NITRO_ENCLAVE"}
"""What a machine of each platform must say that it is."""

_TYPE_FIELD: Final = {"gcp": "machine_type", "nitro": "instance_type"}
_WANTED_TRAITS: Final[dict[str, dict[str, object]]] = {
    "gcp": {"vtpm": True},
    "nitro": {"debug": False},
}


class MachineRefusedError(CloudError):
    """A cloud gave another machine than was ordered."""

    exit_code = ExitCode.REFUSED


def check_machine(plan: Plan, machine: Machine) -> None:
    """Refuse a machine that is not the one ordered.

    Raises `MachineRefusedError`: `deploy.machine.confidential`, `deploy.machine.type`,
    `deploy.machine.<trait>`.
    """
    wanted = CONFIDENTIAL[plan.platform]
    if machine.confidential != wanted:
        raise MachineRefusedError(
            "deploy.machine.confidential",
            f"the machine is {machine.confidential or 'not confidential'}, ordered was {wanted}",
        )
    ordered = str(plan.machine.get(_TYPE_FIELD[plan.platform], ""))
    if machine.machine_type != ordered:
        raise MachineRefusedError(
            "deploy.machine.type",
            f"the machine is a {machine.machine_type or 'nameless type'}, ordered was {ordered}",
        )
    for trait, value in _WANTED_TRAITS[plan.platform].items():
        if machine.traits.get(trait) != value:
            raise MachineRefusedError(
                f"deploy.machine.{trait}",
                f"the machine has {trait} {machine.traits.get(trait)!r}, ordered was {value!r}",
            )
