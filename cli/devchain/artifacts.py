"""The compiled contracts, as contracts/build.mjs wrote them."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import StorageError

# Beside the room `cli` in a checkout and in an installed wheel alike.
_DIRECTORY = Path(__file__).resolve().parents[2] / "contracts" / "artifacts"


class Artifact(msgspec.Struct, frozen=True, rename="camel"):
    """One compiled contract; `bytecode` creates it, both codes are 0x hex."""

    contract_name: str
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytecode: str
    immutable_offsets: tuple[int, ...]
    masked_keccak256: str
    evm_version: str


@cache
def artifact(name: str) -> Artifact:
    """Read `DstackKms`, `DstackApp` or `ERC1967Proxy`; raises `StorageError("contracts.artifact")`."""
    path = artifact_path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Artifact)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError("contracts.artifact", f"no readable artefact of {name}: {error}") from error


def artifact_path(name: str) -> Path:
    """Return the file of a compiled contract."""
    return _DIRECTORY / f"{name}.json"
