"""Reasons of reverts, in words."""

import pytest

from cli.devchain.artifacts import artifact
from cli.gov.reverts import revert_reason
from shared.chain.abi_values import encode_values
from shared.keccak import keccak256


@pytest.mark.parametrize("contract", ["DstackKms", "DstackApp"])
def test_names_every_error_of_the_contracts(contract: str) -> None:
    values = {"address": b"\x11" * 20, "bytes32": b"\x11" * 32, "uint64": 1}
    for one in artifact(contract).abi:
        if one["type"] != "error":
            continue
        kinds = [item["type"] for item in one["inputs"]]
        selector = keccak256(f"{one['name']}({','.join(kinds)})".encode())[:4]
        raw = selector + encode_values(kinds, [values[kind] for kind in kinds])
        assert revert_reason(raw).startswith(f"{one['name']}("), one


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "no reason given"),
        ("08c379a0" + encode_values(["string"], ["Invalid app ID"]).hex(), "'Invalid app ID'"),
        ("08c379a0" + encode_values(["string"], ["a\x1b[31m\n"]).hex(), r"'a\x1b[31m\n'"),
        ("08c379a0" + "ff" * 64, "0x08c379a0" + "ff" * 64),
        ("4e487b71" + "00" * 31 + "11", "Panic(0x11)"),
        ("118cdaa7", "0x118cdaa7"),
        ("01020304", "0x01020304"),
    ],
)
def test_says_what_revert_data_means(raw: str, reason: str) -> None:
    assert revert_reason(bytes.fromhex(raw)) == reason
