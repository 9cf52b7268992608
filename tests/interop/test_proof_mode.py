"""The same client before a KMS that believes nobody: a development chain decides, and is proven (`proof`)."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from cli.demo.functions import start_authorize
from cli.demo.processes import ProcessGroup
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.gcp_commands import measure
from enclave.simulator.gcp_guest import running_guest
from tests.enclave.gcp import app_compose
from tests.interop.conftest import Hardware, Site, StartGcp, bootstrapped
from tests.interop.guests import gcp_guest
from tests.interop.spec_client.kms import (
    KEY_FIELDS,
    Attest,
    app_key_request,
    app_keys_of_json,
    env_key_signers,
    expected_app_keys,
)
from tests.interop.spec_client.prpc import Refused

HOST = "proof.test"


class Governed(NamedTuple):
    """A KMS that its contract allows, an app's guest, and the app."""

    site: Site
    governance: Governance
    attest: Attest
    app_id: bytes

    @property
    def events(self) -> dict[str, bytes]:
        return dict(self.attest(bytes(64)).runtime_events)


@pytest.fixture(scope="module")
def governed(
    chain: Chain, hardware: Hardware, processes: ProcessGroup, start_gcp: StartGcp, gcp_image
) -> Iterator[Governed]:
    governance = Governance(chain.url, chain.accounts[0])
    contract = governance.deploy().kms
    address = f"0x{contract.hex()}"
    url = start_authorize(processes, rpc_url=chain.url, kms_contract=address, chain_id=chain.chain_id)
    site = start_gcp(HOST, _policy(chain, url, address), contract)
    measured = measure(gcp_image, hardware.directory / f"{HOST}.json", contract)
    app_id = governance.deploy_app(device_id=hardware.google.device_id, require_tcb_up_to_date=True)
    governance.finalize(
        governance.add_os_image(bytes.fromhex(measured["os_image_hash"])),
        governance.add_kms_mr(bytes.fromhex(measured["mr_aggregated"])),
        governance.add_kms_device(hardware.google.device_id),
    )
    compose = hardware.directory / "governed.json"
    compose.write_bytes(app_compose(hardware.roots(), name="governed"))
    files = GuestFiles(gcp_image, compose, hardware.directory / "governed")
    with running_guest(files, hardware.google, app_id, tpm="software") as platform:
        yield Governed(bootstrapped(site, HOST), governance, gcp_guest(platform), app_id)


def _policy(chain: Chain, url: str, contract: str) -> str:
    return f"""type = "proof"
[core.auth_api.proof]
url = "{url}"
chain_id = {chain.chain_id}
kms_contract = "{contract}"
rpc_urls = ["{chain.url}"]
quorum = 1
"""


def test_an_app_gets_its_keys_when_its_contract_allows_what_it_runs(governed: Governed) -> None:
    site = governed.site
    guest = site.kms.as_guest(governed.attest)
    request = app_key_request(governed.attest(bytes(64)).config)
    with pytest.raises(Refused) as refused:
        guest.call("GetAppKey", request)
    assert refused.value.text == "App not allowed: Boot denied: Compose hash not allowed"
    governance = governed.governance
    governance.finalize(governance.add_compose_hash(governed.app_id, governed.events["compose-hash"]))
    answer = app_keys_of_json(guest.call("GetAppKey", request))
    root = site.root_keys()
    expected = expected_app_keys(root.root_ca, root.k256, governed.app_id, governed.events["instance-id"])
    assert {name: answer[name] for name in KEY_FIELDS.values()} == expected


def test_an_env_key_is_signed_by_the_contracts_kms(governed: Governed) -> None:
    app_id = governed.app_id
    answer = governed.site.kms.anyone.call("GetAppEnvEncryptPubKey", {"app_id": app_id.hex()})
    root = bytes.fromhex(governed.site.bootstrap["k256_pubkey"])
    assert env_key_signers(app_id, answer) == (root, root)


def test_meta_names_the_contract(governed: Governed, chain: Chain) -> None:
    meta = governed.site.kms.anyone.call("GetMeta")
    assert (meta["is_dev"], meta["chain_id"]) == (False, chain.chain_id)
    assert meta["kms_contract_address"].lower() == governed.governance.kms.address.lower()
