"""The compiled contracts have upstream's face, and what is checked in is what the sources compile to."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from web3 import Web3

from cli.devchain.artifacts import artifact
from shared.chain.known_builds import KNOWN_BUILDS
from shared.keccak import keccak256

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
NAMES = ["DstackKms", "DstackApp", "ERC1967Proxy"]
Reference = Callable[[str], dict[str, Any]]


def types_of(inputs: list[dict[str, Any]]) -> str:
    """Write ABI inputs as a canonical type list."""
    return ",".join(
        f"({types_of(one['components'])}){one['type'].removeprefix('tuple')}"
        if one["type"].startswith("tuple")
        else one["type"]
        for one in inputs
    )


def entries(name: str, kind: str) -> dict[str, dict[str, Any]]:
    return {f"{e['name']}({types_of(e['inputs'])})": e for e in artifact(name).abi if e["type"] == kind}


def canonical(abi: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(entry, sort_keys=True) for entry in abi}


def storage(name: str) -> list[dict[str, Any]]:
    document = json.loads((CONTRACTS / "artifacts" / f"{name}.json").read_text())
    return list(document["storageLayout"])


@pytest.mark.parametrize("name", NAMES)
def test_abi_equals_upstreams_in_every_name_and_type(name: str, reference: Reference) -> None:
    assert canonical(artifact(name).abi) == canonical(reference(name)["abi"])


@pytest.mark.parametrize("interface", ["IAppAuth", "IAppAuthBasicManagement"])
def test_app_has_the_whole_interface(interface: str, reference: Reference) -> None:
    assert canonical(reference(interface)["abi"]) <= canonical(artifact("DstackApp").abi)


@pytest.mark.parametrize("name", NAMES)
def test_selectors_equal_upstreams(name: str, reference: Reference) -> None:
    ours = {
        signature: "0x" + keccak256(signature.encode())[:4].hex() for signature in entries(name, "function")
    }
    assert ours == reference(name)["selectors"]


@pytest.mark.parametrize("name", NAMES)
def test_errors_equal_upstreams(name: str, reference: Reference) -> None:
    ours = {signature: "0x" + keccak256(signature.encode())[:4].hex() for signature in entries(name, "error")}
    assert ours == reference(name)["errors"]


@pytest.mark.parametrize("name", NAMES)
def test_event_topics_and_indexed_arguments_equal_upstreams(name: str, reference: Reference) -> None:
    ours = {
        signature: {
            "topic0": "0x" + keccak256(signature.encode()).hex(),
            "indexed": [one["name"] for one in event["inputs"] if one["indexed"]],
            "data": [one["name"] for one in event["inputs"] if not one["indexed"]],
        }
        for signature, event in entries(name, "event").items()
    }
    assert ours == reference(name)["events"]


@pytest.mark.parametrize("name", NAMES)
def test_storage_layout_equals_upstreams(name: str, reference: Reference) -> None:
    ours = [{key: cell[key] for key in ("slot", "offset", "label", "type")} for cell in storage(name)]
    assert ours == reference(name)["storageLayout"]


@pytest.mark.parametrize(("name", "words"), [("DstackKms", 50), ("DstackApp", 49)])
def test_storage_gap_keeps_its_size(name: str, words: int) -> None:
    gap = storage(name)[-1]
    assert (gap["label"], gap["bytes"]) == ("__gap", 32 * words)


def test_the_renamed_slot_keeps_its_annotation_for_the_upgrade_checker() -> None:
    assert "/// @custom:oz-renamed-from tproxyAppId\n    string public gatewayAppId;" in (
        CONTRACTS / "DstackKms.sol"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_table_row_of_our_build_equals_the_artefact(name: str) -> None:
    ours = next(one for one in KNOWN_BUILDS if (one.contract, one.build) == (name, "dstack-cloud"))
    built = artifact(name)
    code = bytearray.fromhex(built.deployed_bytecode[2:])
    for offset in built.immutable_offsets:
        code[offset : offset + 32] = bytes(32)
    assert ours.masked_keccak256 == built.masked_keccak256 == "0x" + keccak256(bytes(code)).hex()
    assert (ours.evm, ours.length, ours.immutable_offsets) == (
        built.evm_version,
        len(code),
        built.immutable_offsets,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("evm", ["paris", "shanghai", "cancun"])
def test_table_row_of_upstreams_build_equals_the_vectors(name: str, evm: str, reference: Reference) -> None:
    row = next(one for one in KNOWN_BUILDS if (one.contract, one.build, one.evm) == (name, "upstream", evm))
    known = reference("vectors")["runtimeCode"][name]["evm"][evm]
    assert (row.length, row.masked_keccak256) == (known["bytes"], known["keccak256"])


def test_calldata_equals_the_vectors(reference: Reference) -> None:
    vectors = reference("vectors")
    kms = Web3().eth.contract(abi=artifact("DstackKms").abi)
    app = Web3().eth.contract(abi=artifact("DstackApp").abi)
    boot = vectors["bootInfo"]
    ones, twos = "0x" + "11" * 20, "0x" + "22" * 32
    flags = {"with_tcb": [False, True, True], "without": [False, True]}
    six = "initialize(address,bool,bool,bool,bytes32,bytes32)"
    five = "initialize(address,bool,bool,bytes32,bytes32)"
    assert {
        "isAppAllowed_calldata": kms.encode_abi("isAppAllowed", [boot]),
        "isKmsAllowed_calldata": kms.encode_abi("isKmsAllowed", [boot]),
        "kms_initialize_calldata(owner=0x1111..,impl=0x2222..)": kms.encode_abi(
            "initialize", [ones, "0x" + "22" * 20]
        ),
        "app_initialize6_calldata(owner=0x11..,false,true,true,0,0x22..)": app.encode_abi(
            six, [ones, *flags["with_tcb"], bytes(32), twos]
        ),
        "app_initialize5_calldata(owner=0x11..,false,true,0,0x22..)": app.encode_abi(
            five, [ones, *flags["without"], bytes(32), twos]
        ),
    }.items() <= vectors.items()


def test_lock_file_names_no_registry() -> None:
    lock = (CONTRACTS / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert "registry" not in lock


def test_sources_compile_to_what_is_checked_in() -> None:
    node = shutil.which("node")
    if node is None or not (CONTRACTS / "node_modules" / "solc").is_dir():
        pytest.skip("no node with solc on this machine: install node and npm, then run make setup")
    done = subprocess.run(
        [node, "build.mjs", "--check"], cwd=CONTRACTS, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_drift_is_named(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (CONTRACTS / "node_modules" / "solc").is_dir():
        pytest.skip("no node with solc on this machine: install node and npm, then run make setup")
    copy = tmp_path / "contracts"
    shutil.copytree(CONTRACTS, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(CONTRACTS / "node_modules")
    table = tmp_path / "shared" / "chain" / "known_builds.py"
    table.parent.mkdir(parents=True)
    shutil.copy(CONTRACTS.parent / "shared" / "chain" / "known_builds.py", table)
    source = copy / "DstackApp.sol"
    source.write_text(source.read_text().replace("return 2;", "return 3;"))
    done = subprocess.run(
        [node, "build.mjs", "--check"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    named = {Path(line.split(" is not ")[0]).name for line in done.stderr.splitlines()}
    assert named == {"DstackApp.json", "known_builds.py"}
