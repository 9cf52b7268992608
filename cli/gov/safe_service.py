"""Asks a Safe Transaction Service what waits for a Safe's owners. Not one word of it is believed.

Only the fields that a signature covers, and signatures, are taken from it, for `cli.gov.proposals` to check.
What it leaves out nobody can see here. Paths and fields: safe-global/safe-transaction-service on GitHub.
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from cli.gov.safe_tx import Inner, SafeTransaction
from shared.chain.abi import checksum_address
from shared.errors import ConfigError, ProtocolError, UnavailableError
from shared.hex import decode_hex
from shared.net.fetch import HttpClient
from shared.net.response import Response

# A page of full transactions with decoded data is below a few hundred KiB.
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
PAGE: Final = 50
# More than that waits for no Safe that people look after; what is beyond is said to be there.
MAX_PAGES: Final = 4
TIMEOUT: Final = 15.0
_MAX_CONFIRMATIONS: Final = 200
_UINT256: Final = 1 << 256
_ZERO: Final = "0x" + "00" * 20

_Number = int | str


class _Confirmation(msgspec.Struct):
    signature: str | None = None


class _Transaction(msgspec.Struct, rename="camel"):
    to: str
    value: _Number
    operation: int
    safe_tx_gas: _Number
    base_gas: _Number
    gas_price: _Number
    nonce: _Number
    safe_tx_hash: str
    data: str | None = None
    gas_token: str | None = None
    refund_receiver: str | None = None
    confirmations: list[_Confirmation] | None = None


class _Page(msgspec.Struct):
    results: list[msgspec.Raw]
    next: str | None = None


class _Info(msgspec.Struct):
    address: str
    nonce: _Number
    threshold: int
    owners: list[str]


class Told(msgspec.Struct, frozen=True):
    """One transaction as the service tells it: `claimed` is its hash of it, 32 bytes; signatures are raw."""

    transaction: SafeTransaction
    claimed: bytes
    signatures: tuple[bytes, ...]


class Info(msgspec.Struct, frozen=True):
    """What the service says that the Safe is like: the chain says it better, and the two are compared."""

    nonce: int
    threshold: int
    owners: frozenset[bytes]


class Pending(msgspec.Struct, frozen=True):
    """All that the service told; `unreadable` entries were none, and `is_cut` says that there is more."""

    info: Info
    told: tuple[Told, ...]
    unreadable: int
    is_cut: bool


class SafeService:
    """A service at `url`, to which `/api/...` is appended. `key` is sent along where it is not empty.

    Raises `ConfigError("gov.safe_service.url")`.
    """

    def __init__(self, url: str, http: HttpClient, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(
                "gov.safe_service.url", "--safe-service must be http:// or https://, a host and a path"
            )
        if key and (parts.scheme != "https" or not key.isascii() or not key.isprintable()):
            raise ConfigError("gov.safe_service.url", "a key is one line, and goes over https alone")
        self._url = url.rstrip("/")
        self._http = http
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.host = parts.hostname

    def pending(self, safe: bytes, nonce: int) -> Pending:
        """Return what waits for a Safe (20 bytes) at `nonce` and behind.

        Raises `UnavailableError("gov.safe_service.status")`, `ProtocolError("gov.safe_service.malformed")`,
        and what `HttpClient.request` raises.
        """
        name = checksum_address(safe)
        info = self._info(name, safe)
        base = f"/api/v2/safes/{name}/multisig-transactions/"
        first = self._get(base, self._query(nonce, 0))
        if first.status == 404:  # a service from before 2025
            base = base.replace("/v2/", "/v1/")
            first = self._get(base, self._query(nonce, 0))
        told: list[Told] = []
        unreadable = 0
        page = self._page(first)
        for number in range(1, MAX_PAGES + 1):
            for raw in page.results:
                try:
                    told.append(_told(raw))
                except (msgspec.DecodeError, ProtocolError, ValueError, RecursionError):
                    unreadable += 1
            if page.next is None or not page.results:
                return Pending(info, tuple(told), unreadable, is_cut=False)
            if number < MAX_PAGES:
                # the address of the next page is ours to make: theirs could be anywhere
                page = self._page(self._get(base, self._query(nonce, number * PAGE)))
        return Pending(info, tuple(told), unreadable, is_cut=True)

    def _info(self, name: str, safe: bytes) -> Info:
        response = self._get(f"/api/v1/safes/{name}/", "")
        try:
            info = msgspec.json.decode(self._body(response), type=_Info)
            found = Info(_number(info.nonce), info.threshold, frozenset(map(_address, info.owners)))
            address = _address(info.address)
        except (msgspec.DecodeError, ProtocolError, ValueError, RecursionError) as error:
            raise self._malformed(str(error)) from error
        if address != safe:
            raise self._malformed(f"told of {checksum_address(address)} instead of {name}")
        return found

    @staticmethod
    def _query(nonce: int, offset: int) -> str:
        asked: dict[str, object] = {"executed": "false", "nonce__gte": nonce, "ordering": "nonce"}
        return f"?{urlencode({**asked, 'limit': PAGE, 'offset': offset})}"

    def _get(self, path: str, query: str) -> Response:
        return self._http.request(
            "GET",
            f"{self._url}{path}{query}",
            None,
            self._headers,
            timeout=TIMEOUT,
            max_bytes=MAX_PAGE_BYTES,
        )

    def _page(self, response: Response) -> _Page:
        try:
            page = msgspec.json.decode(self._body(response), type=_Page)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise self._malformed(str(error)) from error
        if len(page.results) > PAGE:
            raise self._malformed(f"answered {len(page.results)} transactions, expected {PAGE} at most")
        return page

    def _body(self, response: Response) -> bytes:
        if response.status != 200:
            raise UnavailableError(
                "gov.safe_service.status", f"{self.host} answered http {response.status}, expected 200"
            )
        return response.body

    def _malformed(self, message: str) -> ProtocolError:
        return ProtocolError("gov.safe_service.malformed", f"{self.host} {ascii(message)[1:-1][:200]}")


def _told(raw: msgspec.Raw) -> Told:
    """Read one transaction. Raises `ProtocolError`, `ValueError` and what msgspec raises where it is none."""
    one = msgspec.json.decode(raw, type=_Transaction)
    confirmations: Sequence[_Confirmation] = one.confirmations or ()
    if len(confirmations) > _MAX_CONFIRMATIONS or not 0 <= one.operation < 256:
        raise ProtocolError("gov.safe_service.malformed", "a transaction cannot be")
    return Told(
        SafeTransaction(
            call=Inner(
                to=_address(one.to),
                value=_number(one.value),
                data=decode_hex(one.data or "0x", what="data"),
                operation=one.operation,
            ),
            safe_tx_gas=_number(one.safe_tx_gas),
            base_gas=_number(one.base_gas),
            gas_price=_number(one.gas_price),
            gas_token=_address(one.gas_token or _ZERO),
            refund_receiver=_address(one.refund_receiver or _ZERO),
            nonce=_number(one.nonce),
        ),
        decode_hex(one.safe_tx_hash, what="safeTxHash", length=32),
        tuple(decode_hex(one.signature, what="signature") for one in confirmations if one.signature),
    )


def _address(text: str) -> bytes:
    return decode_hex(text, what="an address", length=20)


def _number(value: _Number) -> int:
    """Read a number, which v1 of the API writes as JSON does and v2 as text."""
    is_digits = isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) <= 78)
    number = int(value) if is_digits else -1
    if not 0 <= number < _UINT256:
        raise ProtocolError("gov.safe_service.malformed", "a number is none of 32 bytes")
    return number
