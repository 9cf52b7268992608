"""docs/examples/kms-setup/kms_setup.py: what it refuses to write or to deploy, and what a Safe refuses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from shared.errors import PolicyDenied
from shared.ratls.certificates import ROOT_CA_NAME, self_signed_ca, spki_der
from tests.docs.references import REPOSITORY
from tests.safe.real_safe import RealSafe, need_safe
from tests.shared.refusal import refuses

SCRIPT = REPOSITORY / "docs/examples/kms-setup/kms_setup.py"
HASH = "11" * 32


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with start_chain("auto") as started:
        yield started


@pytest.fixture(scope="module")
def owner(chain: Chain) -> Governance:
    """An account that owns a KMS contract, and nothing of the Safe's."""
    governance = Governance(chain.url, chain.accounts[0])
    governance.deploy()
    return governance


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def _batch(chain: Chain, owner: Governance, *calls: str) -> "subprocess.CompletedProcess[str]":
    return _run("batch", "--rpc", chain.url, "--kms", owner.kms.address, *calls)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (f"addOsImageHash 0x{HASH[2:]}", "expected 32 bytes as hex"),
        (f"addOsImageHash 0x{HASH}11", "expected 32 bytes as hex"),
        ("addOsImageHash", "takes 1 arguments, got 0"),
        ("deployAndRegisterApp 1 2 3 4 5", "is 2 functions of the contract"),
        ("addEverything 1", "is 0 functions of the contract"),
        (f"registerApp 0x{HASH}", "expected 20 bytes as hex"),
    ],
)
def test_writes_no_call_that_is_not_one_of_the_contract(
    chain: Chain, owner: Governance, call: str, reason: str
) -> None:
    done = _batch(chain, owner, call)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr


def test_writes_no_empty_batch(chain: Chain, owner: Governance) -> None:
    assert _batch(chain, owner).returncode == 2


def test_writes_the_calldata_that_web3_writes(chain: Chain, owner: Governance) -> None:
    done = _batch(chain, owner, f"removeOsImageHash 0x{HASH}", "setGatewayAppId gateway")
    written = [one["data"] for one in json.loads(done.stdout)["transactions"]]
    expected = [
        owner.kms.encode_abi("removeOsImageHash", [bytes.fromhex(HASH)]),
        owner.kms.encode_abi("setGatewayAppId", ["gateway"]),
    ]
    assert written == expected


def test_deploys_for_no_owner_that_is_not_a_contract(chain: Chain, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(chain.accounts[6].private_key.hex())
    done = _run("deploy", "--rpc", chain.url, "--owner", chain.accounts[1].address, "--key-file", str(key))
    assert done.returncode == 2
    assert "is no contract on this chain, expected a Safe" in done.stderr


@pytest.mark.parametrize("wrong", ["ca_pubkey", "k256_pubkey"])
def test_prints_no_root_ca_of_other_root_keys(tmp_path: Path, wrong: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    root = self_signed_ca(key, ROOT_CA_NAME, 1, 1_900_000_000, 1_900_086_400)
    made = {"ca_pubkey": spki_der(key.public_key()).hex(), "k256_pubkey": "02" * 33}
    meta = {"ca_cert": root.public_bytes(Encoding.PEM).decode(), "k256_pubkey": "02" * 33}
    for name, document in (("made.json", made), ("meta.json", meta), ("other.json", made | {wrong: "03"})):
        (tmp_path / name).write_text(json.dumps(document))
    same = _run("root-ca", str(tmp_path / "made.json"), str(tmp_path / "meta.json"))
    assert same.stdout == meta["ca_cert"]
    other = _run("root-ca", str(tmp_path / "other.json"), str(tmp_path / "meta.json"))
    assert (other.returncode, other.stdout) == (2, "")


def test_one_owner_of_three_changes_nothing(chain: Chain, tmp_path: Path) -> None:
    need_safe()
    payer = Governance(chain.url, chain.accounts[5])
    safe = RealSafe(payer, chain.accounts[1:4], threshold=2)
    deployed = Governance(chain.url, chain.accounts[6])
    deployed.deploy(safe.address)
    batch = tmp_path / "batch.json"
    batch.write_text(_batch(chain, deployed, f"addOsImageHash 0x{HASH}").stdout)
    with refuses("governance.transaction.reverted", PolicyDenied):
        safe.execute(batch, signers=1)
    assert not deployed.kms.functions.allowedOsImages(bytes.fromhex(HASH)).call()
    with refuses("governance.transaction.reverted", PolicyDenied):
        payer.settle(deployed.send(deployed.kms.functions.addOsImageHash(bytes.fromhex(HASH))))
    safe.execute(batch, signers=2)
    assert deployed.kms.functions.allowedOsImages(bytes.fromhex(HASH)).call()
