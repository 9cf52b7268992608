"""What a file for a Safe has already: each call is read back, as nobody shall sign what was not shown."""

from pathlib import Path

import msgspec

from cli.gov.change import Change
from cli.gov.creation import created_text
from cli.gov.options import Acting
from cli.gov.safe_batch import Sent, read_batch
from shared.chain.abi import checksum_address
from shared.chain.calldata import INITIALIZE_KMS, decode_call
from shared.chain.create2 import DEPLOYER
from shared.errors import ConfigError, ProtocolError, StorageError


class Kept(msgspec.Struct, frozen=True):
    """A call in the file: a `change` of a contract, or what `creates` one; the other is None or empty."""

    sent: Sent
    change: Change | None
    creates: str


def read_kept(acting: Acting, kms: bytes, chain_id: int) -> list[Kept]:
    """Return the calls that a file has to which others are added; none where it is a new one.

    `kms` is the KMS contract, zero where there is none yet: then a file may only create contracts. Raises
    `ConfigError("gov.safe_file")` for a file that is of another chain, was changed by hand, or has a call
    that no command of ours writes; `StorageError("gov.safe_file.io")`.
    """
    path = Path(acting.safe)
    try:
        if not acting.append or acting.safe in {"", "-"} or not path.exists():
            return []
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError("gov.safe_file.io", f"{path} cannot be read: {error}") from error
    return [_kept(sent, kms) for sent in read_batch(text, chain_id)]


def _kept(sent: Sent, kms: bytes) -> Kept:
    to, data = sent
    if to == DEPLOYER:
        creates = created_text(data)
        if creates is None:
            raise _foreign(sent, "it creates what is none of our contracts")
        return Kept(sent, None, creates)
    try:
        function, arguments = decode_call(data)
    except ProtocolError as error:
        raise _foreign(sent, error.message) from error
    is_kms = to == kms and any(kms)
    if function == INITIALIZE_KMS or not (
        any(kms) and function.target in {"both", "kms" if is_kms else "app"}
    ):
        raise _foreign(sent, f"{function.name} is for another contract")
    return Kept(sent, Change(to=to, function=function, arguments=arguments), "")


def _foreign(sent: Sent, why: str) -> ConfigError:
    to, data = sent
    return ConfigError(
        "gov.safe_file",
        f"the file has a call that no command of ours writes, of {checksum_address(to)} with "
        f"0x{data[:4].hex()}: {why}",
    )
