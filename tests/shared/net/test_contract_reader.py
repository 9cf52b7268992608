"""What a plan asks the contracts, on a development chain and against endpoints that misbehave."""

from collections.abc import Callable, Sequence

import msgspec
import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from shared.boot_info import NITRO_ENCLAVE, BootInfo
from shared.chain.approval import create_address
from shared.errors import ConfigError, ProtocolError, UnavailableError
from shared.net.contract_reader import ContractReader
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc
from tests.shared.refusal import refuses

COMPOSE, IMAGE, DEVICE = b"c" * 32, b"i" * 32, b"d" * 32
BOOT = BootInfo(
    tee_variant=NITRO_ENCLAVE,
    mr_aggregated=IMAGE,
    os_image_hash=IMAGE,
    mr_system=IMAGE,
    app_id=b"",
    compose_hash=COMPOSE,
    instance_id=b"",
    device_id=DEVICE,
    key_provider_info=b"",
    tcb_status="",
    advisory_ids=(),
)


class Site:
    """Contracts of our own on the session's chain."""

    def __init__(self, chain: Chain) -> None:
        self.governance = Governance(chain.url, chain.accounts[7])
        self.kms = self.governance.deploy().kms
        self.endpoint = JsonRpc(chain.url, HttpClient(DirectDialer()))
        self.reader = ContractReader(self.endpoint, self.kms)
        self.owner = bytes.fromhex(self.governance.address[2:])


@pytest.fixture(scope="module")
def site(chain: Chain) -> Site:
    return Site(chain)


def boot(app_id: bytes) -> BootInfo:
    return msgspec.structs.replace(BOOT, app_id=app_id)


def test_reads_a_contract_that_knows_nothing(site: Site) -> None:
    state = site.reader.read(BOOT)
    assert (state.chain_id, state.kms_owner) == (31337, site.owner)
    assert not state.app_has_code
    assert (state.app, state.decision) == (None, None)
    assert len(state.block_hash) == 32


def test_tells_the_address_of_the_next_app(site: Site) -> None:
    expected = create_address(site.kms, site.reader.read(BOOT).kms_nonce)
    assert site.governance.deploy_app() == expected


def test_reads_what_an_app_allows(site: Site) -> None:
    app_id = site.governance.deploy_app(compose_hash=COMPOSE, device_id=DEVICE)
    site.governance.settle(site.governance.add_os_image(IMAGE))
    state = site.reader.read(boot(app_id))
    assert state.app is not None
    assert (state.os_image_allowed, state.app_registered, state.decision) == (True, True, "")
    assert (state.app.compose_hash_allowed, state.app.device_allowed) == (True, True)
    assert (state.app.allow_any_device, state.app.require_tcb_up_to_date) == (False, False)
    assert state.app.owner == site.owner
    other = site.reader.read(msgspec.structs.replace(boot(app_id), compose_hash=b"x" * 32))
    assert other.decision == "Compose hash not allowed"


def test_a_contract_of_another_kind_has_no_settings(site: Site) -> None:
    state = site.reader.read(boot(site.kms))
    assert state.app_has_code
    assert state.app is None


def test_an_address_without_code_is_the_callers_mistake(site: Site) -> None:
    with refuses("plan.kms_contract", ConfigError):
        ContractReader(site.endpoint, b"\x09" * 20).read(BOOT)


def test_another_contract_in_place_of_the_kms_is_an_error(site: Site) -> None:
    app_id = site.governance.deploy_app()
    with refuses("rpc.reverted", UnavailableError):
        ContractReader(site.endpoint, app_id).read(BOOT)


class Scripted:
    """An endpoint that passes on until a view is called, and then does what the test says."""

    host, secure = "scripted", True

    def __init__(self, site: Site, at: int, act: Callable[[], list[object]]) -> None:
        self._site = site
        self._left = at
        self._act = act

    def batch(self, calls: Sequence[Call]) -> list[object]:
        self._left -= 1
        return self._act() if self._left == 0 else self._site.endpoint.batch(calls)


def _gone() -> list[object]:
    raise UnavailableError("net.timeout", "gone")


def _reverted() -> list[object]:
    raise UnavailableError("rpc.reverted", "execution reverted")


def _limited() -> list[object]:
    raise UnavailableError("rpc.error", "header not found, or too many requests")


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_an_endpoint_that_goes_away_fails_the_plan(site: Site, at: int) -> None:
    app_id = site.governance.deploy_app(allow_any_device=True)
    with refuses("net.timeout", UnavailableError):
        ContractReader(Scripted(site, at, _gone), site.kms).read(boot(app_id))


@pytest.mark.parametrize("at", [4, 5])
def test_an_endpoint_that_fails_half_way_makes_no_contract_of_another_kind(site: Site, at: int) -> None:
    app_id = site.governance.deploy_app(allow_any_device=True)
    with refuses("rpc.error", UnavailableError):
        ContractReader(Scripted(site, at, _limited), site.kms).read(boot(app_id))


def test_another_chain_is_refused(site: Site) -> None:
    with refuses("plan.chain_id", ConfigError):
        ContractReader(site.endpoint, site.kms, chain_id=1).read(BOOT)
    assert ContractReader(site.endpoint, site.kms, chain_id=31337).read(BOOT).block_time > 0


def test_every_read_is_of_one_block(site: Site) -> None:
    asked: list[Call] = []

    class Recording(Scripted):
        def batch(self, calls: Sequence[Call]) -> list[object]:
            asked.extend(calls)
            return super().batch(calls)

    app_id = site.governance.deploy_app(allow_any_device=True)
    state = ContractReader(Recording(site, 0, _gone), site.kms).read(boot(app_id))
    at = {"blockHash": f"0x{state.block_hash.hex()}"}
    assert [method for method, params in asked if at not in params] == ["eth_chainId", "eth_getBlockByNumber"]


def test_a_decision_that_reverts_is_no_decision(site: Site) -> None:
    app_id = site.governance.deploy_app(allow_any_device=True)
    assert ContractReader(Scripted(site, 5, _reverted), site.kms).read(boot(app_id)).decision is None


def test_views_of_another_shape_are_another_contract(site: Site) -> None:
    app_id = site.governance.deploy_app(allow_any_device=True)
    state = ContractReader(Scripted(site, 4, lambda: ["0x"] * 5), site.kms).read(boot(app_id))
    assert state.app is None


def test_a_decision_of_another_shape_allows_nothing(site: Site) -> None:
    app_id = site.governance.deploy_app(allow_any_device=True)
    with refuses("abi.malformed", ProtocolError):
        ContractReader(Scripted(site, 5, lambda: ["0x01"]), site.kms).read(boot(app_id))
