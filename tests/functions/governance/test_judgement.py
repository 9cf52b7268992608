"""What the contract is asked about a workload."""

from typing import Any

import msgspec

from functions.deploy.record import Deployment, Planned, Running, Step, workload
from functions.governance.judgement import ALLOWED, UNTOLD, Question, Views, question
from shared.chain.rules import APP_NOT_REGISTERED, DEVICE_NOT_ALLOWED
from tests.functions.deploy.memory_cloud import some_deployment

PLANNED = Planned(
    plan_id="1",
    app_id="22" * 20,
    compose_hash="33" * 32,
    os_image_hash="44" * 32,
    platform="gcp",
    plan="",
)


def asked(platform: str, *, tcb_status: str | None = None, **fields: Any) -> Question:
    planned = msgspec.structs.replace(PLANNED, platform=platform)
    verdict = {} if tcb_status is None else {"tcb_status": tcb_status}
    values: dict[str, Any] = {"launched": workload(planned), **fields}
    found: Deployment = some_deployment(
        step=Step.RUNNING, planned=planned, running=Running(verdict=verdict), **values
    )
    return question(found, workload(planned))


def test_every_enclave_has_the_one_device_id_of_enclaves() -> None:
    device = asked("nitro").boot_info().device_id
    assert device.hex() == "de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7"


def test_a_machine_whose_device_nobody_named_has_none() -> None:
    assert asked("gcp").device_id is None
    assert asked("gcp", settings={"device_id": "0x" + "55" * 32}).device_id == b"\x55" * 32


def test_the_contract_is_asked_with_the_tcb_status_that_evidence_proved() -> None:
    assert asked("gcp", tcb_status="OutOfDate").boot_info().tcb_status == "OutOfDate"


def test_a_tcb_status_that_no_evidence_gave_is_taken_as_up_to_date() -> None:
    assert asked("gcp").tcb_status == "UpToDate"
    other = msgspec.structs.replace(workload(PLANNED), compose_hash="77" * 32)
    assert asked("gcp", tcb_status="OutOfDate", launched=other).tcb_status == "UpToDate"


def test_an_enclave_has_no_tcb_status() -> None:
    assert asked("nitro").tcb_status == ""


def test_an_apps_contract_that_speaks_as_governance_does_refuses_all_the_same() -> None:
    for fields in ({}, {"settings": {"device_id": "0x" + "55" * 32}}):
        question = asked("gcp", **fields)
        assert Views(question.read(UNTOLD), ALLOWED).is_refused
        assert question.read(APP_NOT_REGISTERED) == APP_NOT_REGISTERED
    assert asked("gcp").read(DEVICE_NOT_ALLOWED) == UNTOLD
