"""What the contracts take back, on a real chain: the function asks them, and the record follows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from functions.deploy.record import Planned, Proven, Running, Step, workload
from functions.governance.assembly import service_from_env
from functions.stores.sqlite import SqliteStore
from tests.functions.deploy.memory_cloud import some_deployment
from tests.functions.governance.site import COMPOSE, DEVICE, IMAGE, Site, open_site

MR, KMS_COMPOSE, KMS_DEVICE = b"\xa1" * 32, b"\xc1" * 32, b"\xd1" * 32


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Chain, Governance]]:
    with open_site() as found:
        yield found


@pytest.fixture
def site(chain: tuple[Chain, Governance]) -> Site:
    _, owner = chain
    owner.settle(owner.add_kms_mr(MR), owner.add_kms_device(KMS_DEVICE))
    return Site(*chain)


class Function:
    """The function, over a store with a key server and an app that evidence was taken of."""

    def __init__(self, site: Site, directory: Path) -> None:
        self._site = site
        self._store = SqliteStore(directory / "deployments.sqlite")
        self._run("kms", KMS_COMPOSE[:20], KMS_COMPOSE, MR, KMS_DEVICE)
        self._run("web", site.app_id, COMPOSE, b"\xa2" * 32, DEVICE)
        environment = site.environment | {
            "DSTACK_STORE": f"sqlite:{directory / 'deployments.sqlite'}",
            "DSTACK_QUEUE": "poll",
            "DSTACK_GOVERNANCE_STATE": f"sqlite:{directory / 'governance.sqlite'}",
            "DSTACK_GOVERNANCE_QUEUE": "here",
            "DSTACK_WEBHOOK_SECRETS": "plain=env:X",
        }
        self._service = service_from_env(environment, lambda _: None)

    def _run(self, name: str, app_id: bytes, compose: bytes, mr: bytes, device: bytes) -> None:
        planned = Planned(
            plan_id="1",
            app_id=app_id.hex(),
            compose_hash=compose.hex(),
            os_image_hash=IMAGE.hex(),
            platform="gcp",
            plan="",
        )
        proven = Proven(mr_aggregated=mr.hex(), device_id=device.hex(), tcb_status="UpToDate")
        self._store.create(
            some_deployment(
                name,
                step=Step.RUNNING,
                planned=planned,
                running=Running(plan_id="1", proven=proven),
                launched=workload(planned),
            )
        )

    def held(self) -> dict[str, str]:
        """Look, and return what is quarantined, and why."""
        self._service.act("look:all:0")
        found = {name: self._store.get(name).quarantine for name in ("kms", "web")}
        return {name: held.reason for name, held in found.items() if held is not None}


def calls(site: Site, name: str) -> tuple[Any, Any]:
    """Return the call that takes something back, and the one that gives it again."""
    app, kms = site.owner.app(site.app_id).functions, site.owner.kms.functions
    takes, gives = {
        "measurement": (kms.removeKmsAggregatedMr(MR), kms.addKmsAggregatedMr(MR)),
        "kms device": (kms.removeKmsDevice(KMS_DEVICE), kms.addKmsDevice(KMS_DEVICE)),
        "device": (app.removeDevice(DEVICE), app.addDevice(DEVICE)),
    }[name]
    return takes, gives


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("measurement", {"kms": "Aggregated MR not allowed"}),
        ("kms device", {"kms": "KMS is not allowed to boot on this device"}),
        ("device", {"web": "Device not allowed"}),
    ],
)
def test_what_is_taken_back_stops_and_what_is_given_again_goes_on(
    site: Site, tmp_path: Path, name: str, held: dict[str, str]
) -> None:
    site.settle()
    function = Function(site, tmp_path)
    assert function.held() == {}
    takes, gives = calls(site, name)
    site.owner.settle(site.owner.send(takes))
    assert function.held() == held
    site.settle()
    site.owner.settle(site.owner.send(gives))
    assert function.held() == held
    site.settle()
    assert function.held() == {}


def test_a_device_that_no_wildcard_covers_any_more_stops(site: Site, tmp_path: Path) -> None:
    app = site.owner.app(site.app_id).functions
    site.owner.settle(site.owner.send(app.setAllowAnyDevice(True)), site.owner.send(app.removeDevice(DEVICE)))
    site.settle()
    function = Function(site, tmp_path)
    assert function.held() == {}
    site.owner.settle(site.owner.send(app.setAllowAnyDevice(False)))
    assert function.held() == {"web": "Device not allowed"}
