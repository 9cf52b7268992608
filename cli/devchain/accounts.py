"""The ten accounts that every development chain funds, from the mnemonic that everybody knows."""

from functools import cache

import msgspec

MNEMONIC = "test test test test test test test test test test test junk"
COUNT = 10
BALANCE = 10_000 * 10**18
CHAIN_ID = 31337


class DevAccount(msgspec.Struct, frozen=True):
    """One funded account: `address` in checksum form, `private_key` 32 bytes. Never use it elsewhere."""

    address: str
    private_key: bytes

    @property
    def address_bytes(self) -> bytes:
        """The 20 bytes of the address."""
        return bytes.fromhex(self.address[2:])

    def __repr__(self) -> str:
        """Leave the key out: even a public one teaches readers to expect keys in logs."""
        return f"DevAccount({self.address})"


@cache
def development_accounts() -> tuple[DevAccount, ...]:
    """Return the ten accounts, in the order that anvil prints them."""
    from eth_account import Account  # noqa: PLC0415 - half a second, for those who need keys alone

    Account.enable_unaudited_hdwallet_features()
    derived = (
        Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}") for index in range(COUNT)
    )
    return tuple(DevAccount(str(one.address), bytes(one.key)) for one in derived)
