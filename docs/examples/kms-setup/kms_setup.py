"""What docs/kms-setup.md needs beside `dstack-cloud`: contracts, batches for a Safe, the KMS's first answers.

Run it with the extra `demo` installed. It holds no policy: what it writes, owners read before they sign.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from web3 import Web3
from web3.contract import Contract

from cli.devchain.accounts import DevAccount
from cli.devchain.artifacts import artifact
from cli.devchain.governance import Governance
from shared.attestation.report_data import bootstrap_report_data

_LENGTHS = {"address": 20, "bytes32": 32}
_WORDS = {"true": True, "false": False}


def main() -> int:
    """Carry out one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    deploy = commands.add_parser("deploy", help="deploy the contracts, the proxy owned by OWNER")
    deploy.add_argument("--rpc", required=True, metavar="URL")
    deploy.add_argument("--owner", required=True, metavar="ADDR", help="the Safe")
    deploy.add_argument("--key-file", required=True, type=Path, help="hex of the paying account's key")
    deploy.set_defaults(run=deploy_contracts)

    batch = commands.add_parser("batch", help="write calls as a file for Safe's Transaction Builder")
    batch.add_argument("--rpc", required=True, metavar="URL", help="names the chain")
    batch.add_argument("--kms", required=True, metavar="ADDR", help="the DstackKms proxy")
    batch.add_argument("--plan", type=Path, help="add the calls of `dstack-cloud plan --json`")
    batch.add_argument("calls", nargs="*", metavar="'FUNCTION ARGUMENT ...'")
    batch.set_defaults(run=print_batch)

    report_data = commands.add_parser("report-data", help="print what the evidence of Bootstrap must carry")
    report_data.add_argument("bootstrap_info", type=Path)
    report_data.set_defaults(run=print_report_data)

    root_ca = commands.add_parser("root-ca", help="hold GetMeta to Bootstrap's answer, and print its root CA")
    root_ca.add_argument("bootstrap_info", type=Path)
    root_ca.add_argument("meta", type=Path)
    root_ca.set_defaults(run=print_root_ca)

    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except ValueError as error:
        sys.stderr.write(f"kms_setup: {error}\n")
        return 2
    return 0


def deploy_contracts(arguments: argparse.Namespace) -> None:
    """Deploy both implementations and the proxy; the paying account never owns anything."""
    if not Web3.is_checksum_address(arguments.owner):
        raise ValueError(f"{arguments.owner} is no address in the case of EIP-55")
    payer = Account.from_key(arguments.key_file.read_text().strip())
    governance = Governance(arguments.rpc, DevAccount(str(payer.address), bytes(payer.key)))
    if not governance.web3.eth.get_code(arguments.owner):
        raise ValueError(f"{arguments.owner} is no contract on this chain, expected a Safe")
    deployed = governance.deploy(arguments.owner)
    print(f"DstackApp  {Web3.to_checksum_address(deployed.app_implementation)}")
    print(f"DstackKms  {Web3.to_checksum_address(deployed.kms_implementation)}")
    print(f"proxy      {governance.kms.address}")
    print(f"owner      {governance.kms.functions.owner().call()}")


def print_batch(arguments: argparse.Namespace) -> None:
    """Print a file that Transaction Builder imports: the same bytes for all, so that owners can compare."""
    kms = Web3().eth.contract(address=Web3.to_checksum_address(arguments.kms), abi=artifact("DstackKms").abi)
    calls = [(kms.address, _encoded(kms, call.split())) for call in arguments.calls]
    if arguments.plan is not None:
        planned = json.loads(arguments.plan.read_text())["approval"]["calls"]
        calls += [(Web3.to_checksum_address(one["to"]), one["calldata"]) for one in planned]
    if not calls:
        raise ValueError("there is no call to write")
    chain_id = Web3(Web3.HTTPProvider(arguments.rpc)).eth.chain_id
    document = {
        "version": "1.0",
        "chainId": str(chain_id),
        "createdAt": 0,
        "meta": {"name": "dstack KMS"},
        "transactions": [{"to": to, "value": "0", "data": data} for to, data in calls],
    }
    print(json.dumps(document, indent=1))


def print_report_data(arguments: argparse.Namespace) -> None:
    """Print the 64 bytes that tie evidence to the root keys of Bootstrap's answer."""
    answer = json.loads(arguments.bootstrap_info.read_text())
    expected = bootstrap_report_data(_hex(answer["ca_pubkey"], 91), _hex(answer["k256_pubkey"], 33))
    print(expected.hex())


def print_root_ca(arguments: argparse.Namespace) -> None:
    """Print the root CA's certificate if GetMeta has the root keys that Bootstrap made."""
    made = json.loads(arguments.bootstrap_info.read_text())
    meta = json.loads(arguments.meta.read_text())
    key = x509.load_pem_x509_certificate(meta["ca_cert"].encode()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()
    if (spki, meta["k256_pubkey"]) != (made["ca_pubkey"], made["k256_pubkey"]):
        raise ValueError("GetMeta has other root keys than Bootstrap made")
    print(meta["ca_cert"], end="")


def _encoded(kms: Contract, words: list[str]) -> str:
    """Return the calldata of `FUNCTION ARGUMENT ...`; a function may be written with its types."""
    name, *given = words
    named = [
        one
        for one in artifact("DstackKms").abi
        if one["type"] == "function" and name in {one["name"], _signature(one)}
    ]
    if len(named) != 1:
        raise ValueError(f"{name} is {len(named)} functions of the contract, write one with its types")
    inputs = named[0]["inputs"]
    if len(given) != len(inputs):
        raise ValueError(f"{name} takes {len(inputs)} arguments, got {len(given)}")
    values = [_value(one["type"], text) for one, text in zip(inputs, given, strict=True)]
    return str(kms.encode_abi(_signature(named[0]), values))


def _signature(function: dict[str, Any]) -> str:
    kinds = (
        f"({','.join(part['type'] for part in one['components'])})" if one["type"] == "tuple" else one["type"]
        for one in function["inputs"]
    )
    return f"{function['name']}({','.join(kinds)})"


def _value(kind: str, text: str) -> Any:  # noqa: ANN401 - what web3 takes for the type
    """Return an argument; for a KmsInfo it names Bootstrap's answer, whose evidence is too long to store."""
    if kind == "tuple":
        answer = json.loads(Path(text).read_text())
        return (_hex(answer["k256_pubkey"], 33), _hex(answer["ca_pubkey"], 91), b"", b"")
    if kind == "bool":
        if text not in _WORDS:
            raise ValueError(f"got {text}, expected true or false")
        return _WORDS[text]
    if kind in _LENGTHS:
        value = _hex(text.removeprefix("0x"), _LENGTHS[kind])
        return Web3.to_checksum_address(value) if kind == "address" else value
    return text


def _hex(text: str, length: int) -> bytes:
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * length}}}", text) is None:
        raise ValueError(f"got {text[:80]!r}, expected {length} bytes as hex")
    return bytes.fromhex(text)


if __name__ == "__main__":
    sys.exit(main())
