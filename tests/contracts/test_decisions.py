"""Both decisions on a real EVM: the exact reason strings, and which check comes first."""

from collections.abc import Callable

import pytest
from web3.exceptions import ContractLogicError

from cli.devchain.governance import Governance, boot_tuple
from shared.boot_info import BootInfo

Boot = Callable[..., BootInfo]
OS_IMAGE, COMPOSE, DEVICE, MR = b"o" * 32, b"c" * 32, b"d" * 32, b"m" * 32
# creation code of a contract that reverts whatever it is asked
REVERTS_ALWAYS = "0x625f5ffd5f526003601df3"


def app_with_everything_allowed(governance: Governance) -> bytes:
    app_id = governance.deploy_app(compose_hash=COMPOSE, device_id=DEVICE)
    governance.settle(governance.add_os_image(OS_IMAGE))
    return app_id


def test_app_is_allowed_when_image_compose_and_device_are(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    assert governance.is_app_allowed(boot(app_id=app_id)) == (True, "")


def test_app_must_be_registered(governance: Governance, boot: Boot) -> None:
    assert governance.is_app_allowed(boot(app_id=b"\x01" * 20)) == (False, "App not registered")


def test_app_needs_an_allowed_os_image(governance: Governance, boot: Boot) -> None:
    app_id = governance.deploy_app(compose_hash=COMPOSE, device_id=DEVICE)
    assert governance.is_app_allowed(boot(app_id=app_id)) == (False, "OS image is not allowed")


def test_registered_address_without_code_is_denied(governance: Governance, boot: Boot) -> None:
    nobody = b"\x0e" * 20
    governance.settle(
        governance.add_os_image(OS_IMAGE), governance.send(governance.kms.functions.registerApp(nobody))
    )
    denied = (False, "App not deployed or invalid address")
    assert governance.is_app_allowed(boot(app_id=nobody)) == denied


def test_app_needs_an_allowed_compose_hash(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    denied = (False, "Compose hash not allowed")
    assert governance.is_app_allowed(boot(app_id=app_id, compose_hash=b"x" * 32)) == denied


def test_app_needs_an_allowed_device(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    denied = (False, "Device not allowed")
    assert governance.is_app_allowed(boot(app_id=app_id, device_id=b"x" * 32)) == denied


def test_any_device_will_do_when_the_app_says_so(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    governance.settle(governance.send(governance.app(app_id).functions.setAllowAnyDevice(True)))
    assert governance.is_app_allowed(boot(app_id=app_id, device_id=b"x" * 32)) == (True, "")


@pytest.mark.parametrize("status", ["", "OutOfDate", "uptodate", "UpToDate "])
def test_app_that_requires_tcb_compares_the_status_byte_for_byte(
    governance: Governance, boot: Boot, status: str
) -> None:
    app_id = governance.deploy_app(compose_hash=COMPOSE, allow_any_device=True, require_tcb_up_to_date=True)
    governance.settle(governance.add_os_image(OS_IMAGE))
    denied = (False, "TCB status is not up to date")
    assert governance.is_app_allowed(boot(app_id=app_id, tcb_status=status)) == denied


def test_app_that_requires_tcb_is_allowed_when_up_to_date(governance: Governance, boot: Boot) -> None:
    app_id = governance.deploy_app(compose_hash=COMPOSE, allow_any_device=True, require_tcb_up_to_date=True)
    governance.settle(governance.add_os_image(OS_IMAGE))
    assert governance.is_app_allowed(boot(app_id=app_id)) == (True, "")


def test_app_checks_tcb_before_compose(governance: Governance, boot: Boot) -> None:
    app_id = governance.deploy_app(require_tcb_up_to_date=True)
    governance.settle(governance.add_os_image(OS_IMAGE))
    denied = (False, "TCB status is not up to date")
    assert governance.is_app_allowed(boot(app_id=app_id, tcb_status="")) == denied


def test_a_revoked_compose_hash_is_denied(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    governance.settle(governance.remove_compose_hash(app_id, COMPOSE))
    assert governance.is_app_allowed(boot(app_id=app_id)) == (False, "Compose hash not allowed")


def test_an_added_compose_hash_is_allowed(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    governance.settle(governance.add_compose_hash(app_id, b"n" * 32))
    assert governance.is_app_allowed(boot(app_id=app_id, compose_hash=b"n" * 32)) == (True, "")


def test_a_revoked_os_image_is_denied(governance: Governance, boot: Boot) -> None:
    app_id = app_with_everything_allowed(governance)
    governance.settle(governance.remove_os_image(OS_IMAGE))
    assert governance.is_app_allowed(boot(app_id=app_id)) == (False, "OS image is not allowed")


def test_app_contract_that_reverts_makes_the_kms_contract_revert(governance: Governance, boot: Boot) -> None:
    broken = governance.web3.eth.contract(abi=[], bytecode=REVERTS_ALWAYS).constructor()
    address = bytes.fromhex(governance.settle(governance.send(broken))[0]["contractAddress"][2:])
    governance.settle(
        governance.add_os_image(OS_IMAGE), governance.send(governance.kms.functions.registerApp(address))
    )
    call = governance.kms.functions.isAppAllowed(boot_tuple(boot(app_id=address)))
    with pytest.raises(ContractLogicError):
        call.call()


def test_kms_is_allowed_when_image_measurement_and_device_are(governance: Governance, boot: Boot) -> None:
    governance.settle(
        governance.add_os_image(OS_IMAGE), governance.add_kms_mr(MR), governance.add_kms_device(DEVICE)
    )
    assert governance.is_kms_allowed(boot()) == (True, "")


@pytest.mark.parametrize("status", ["", "OutOfDate", "UPTODATE"])
def test_kms_always_needs_an_up_to_date_tcb(governance: Governance, boot: Boot, status: str) -> None:
    assert governance.is_kms_allowed(boot(tcb_status=status)) == (False, "TCB status is not up to date")


def test_kms_needs_an_allowed_os_image(governance: Governance, boot: Boot) -> None:
    assert governance.is_kms_allowed(boot()) == (False, "OS image is not allowed")


def test_kms_needs_an_allowed_measurement(governance: Governance, boot: Boot) -> None:
    governance.settle(governance.add_os_image(OS_IMAGE))
    assert governance.is_kms_allowed(boot()) == (False, "Aggregated MR not allowed")


def test_kms_needs_an_allowed_device(governance: Governance, boot: Boot) -> None:
    governance.settle(governance.add_os_image(OS_IMAGE), governance.add_kms_mr(MR))
    assert governance.is_kms_allowed(boot()) == (False, "KMS is not allowed to boot on this device")


def test_a_revoked_kms_measurement_is_denied(governance: Governance, boot: Boot) -> None:
    governance.settle(
        governance.add_os_image(OS_IMAGE), governance.add_kms_mr(MR), governance.remove_kms_mr(MR)
    )
    assert governance.is_kms_allowed(boot()) == (False, "Aggregated MR not allowed")


def test_a_revoked_kms_device_is_denied(governance: Governance, boot: Boot) -> None:
    governance.settle(
        governance.add_os_image(OS_IMAGE),
        governance.add_kms_mr(MR),
        governance.add_kms_device(DEVICE),
        governance.remove_kms_device(DEVICE),
    )
    assert governance.is_kms_allowed(boot()) == (False, "KMS is not allowed to boot on this device")
