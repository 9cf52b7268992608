"""The decisions of DstackKms and DstackApp, in Python, on facts that were proven (contracts section 1.7).

First failure wins, in the contracts' order and with their exact strings; the empty string means allowed.
Property tests hold these functions equal to the deployed Solidity.
"""

from typing import TYPE_CHECKING

import msgspec

from shared.boot_info import NITRO_ENCLAVE, BootInfo

if TYPE_CHECKING:  # who needs the reasons alone proves nothing
    from shared.chain.facts import AppFacts, ViewFacts

ALLOWED = ""
APP_NOT_REGISTERED = "App not registered"
OS_IMAGE_NOT_ALLOWED = "OS image is not allowed"
APP_NOT_DEPLOYED = "App not deployed or invalid address"
TCB_NOT_UP_TO_DATE = "TCB status is not up to date"
COMPOSE_HASH_NOT_ALLOWED = "Compose hash not allowed"
DEVICE_NOT_ALLOWED = "Device not allowed"
AGGREGATED_MR_NOT_ALLOWED = "Aggregated MR not allowed"
KMS_DEVICE_NOT_ALLOWED = "KMS is not allowed to boot on this device"

UP_TO_DATE = "UpToDate"

# The wildcard gateway app id: it turns off the guest's check of its gateway, so it is for development alone.
ANY_GATEWAY = "any"


def treat_nitro_as_up_to_date(boot_info: BootInfo) -> BootInfo:
    """Return boot info that `isKmsAllowed` can accept: Nitro evidence has no TCB status, so it is filled in.

    Only for the question whether a KMS may serve, and only where the operator asked for it
    (`core.treat_nitro_as_up_to_date`). A status that is there stays.
    """
    if boot_info.tee_variant == NITRO_ENCLAVE and not boot_info.tcb_status:
        return msgspec.structs.replace(boot_info, tcb_status=UP_TO_DATE)
    return boot_info


def kms_half_of_app(view: "ViewFacts") -> str:
    """`DstackKms.isAppAllowed` up to the call of the app's own contract, which `app_half` continues."""
    if not view.app_registered:
        return APP_NOT_REGISTERED
    if not view.os_image_allowed:
        return OS_IMAGE_NOT_ALLOWED
    if view.app is None:
        return APP_NOT_DEPLOYED
    return ALLOWED


def app_half(app: "AppFacts", tcb_status: str) -> str:
    """`DstackApp.isAppAllowed`."""
    if app.require_tcb_up_to_date and tcb_status != UP_TO_DATE:
        return TCB_NOT_UP_TO_DATE
    if not app.compose_hash_allowed:
        return COMPOSE_HASH_NOT_ALLOWED
    if not app.allow_any_device and not app.device_allowed:
        return DEVICE_NOT_ALLOWED
    return ALLOWED


def kms(view: "ViewFacts", tcb_status: str) -> str:
    """`DstackKms.isKmsAllowed`."""
    if tcb_status != UP_TO_DATE:
        return TCB_NOT_UP_TO_DATE
    if not view.os_image_allowed:
        return OS_IMAGE_NOT_ALLOWED
    if not view.aggregated_mr_allowed:
        return AGGREGATED_MR_NOT_ALLOWED
    if not view.kms_device_allowed:
        return KMS_DEVICE_NOT_ALLOWED
    return ALLOWED
