"""The Nitro Security Module: CBOR requests over one ioctl (spec attestation sections 4.1 and 4.2).

`NsmDevice` moves bytes and has two backends, `DevNsm` here and the simulator's; `Nsm` gives them types.
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Mapping
from threading import Lock
from typing import NoReturn, Protocol, TypeVar

import cbor2
import msgspec

from shared.errors import ProtocolError, UnavailableError

MAX_REQUEST = 0x1000  # what the driver takes
MAX_RESPONSE = 0x3000  # what the driver returns at most

# _IOWR(0x0A, 0, 32): the argument is two iovecs, request and response.
NSM_IOCTL = 0xC0200A00
_IOVECS = struct.Struct("=QQQQ")

PCR_LENGTH = 48
# A module answers with up to 256 random bytes; a zero-length answer would be no entropy at all.
_MIN_RANDOM = 32

T = TypeVar("T")
Fields = Mapping[str, int | bytes | None]


class NsmDevice(Protocol):
    """One request in, one response out, both CBOR."""

    def transact(self, request: bytes) -> bytes:
        """Return the module's response. Raises `UnavailableError("nsm.*")` or `ProtocolError("nsm.*")`."""
        ...


class DevNsm:
    """The real device node. It is opened by the first request and stays open for the process's life."""

    def __init__(
        self, path: str = "/dev/nsm", *, ioctl: Callable[[int, int, bytearray, bool], int] = fcntl.ioctl
    ) -> None:
        self._path = path
        self._ioctl = ioctl
        self._descriptor: int | None = None
        self._lock = Lock()

    def transact(self, request: bytes) -> bytes:
        """Exchange one message with the driver.

        Raises `ProtocolError("nsm.request.size")`, `UnavailableError`: `nsm.device` when the node cannot be
        opened, `nsm.ioctl` when the driver fails; `ProtocolError("nsm.response.size")` for an impossible
        length.
        """
        if len(request) > MAX_REQUEST:
            raise ProtocolError(
                "nsm.request.size", f"nsm request has {len(request)} bytes, at most {MAX_REQUEST} are taken"
            )
        with self._lock:
            return self._exchange(self._open(), request)

    def _open(self) -> int:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise UnavailableError("nsm.device", f"cannot open {self._path}: {error.strerror}") from error
        return self._descriptor

    def _exchange(self, descriptor: int, request: bytes) -> bytes:
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(MAX_RESPONSE)
        argument = bytearray(
            _IOVECS.pack(ctypes.addressof(sent), len(request), ctypes.addressof(received), MAX_RESPONSE)
        )
        try:
            self._ioctl(descriptor, NSM_IOCTL, argument, True)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise ProtocolError(
                    "nsm.request.size", "nsm driver says that the request is too large"
                ) from error
            raise UnavailableError("nsm.ioctl", f"nsm driver failed: {error.strerror}") from error
        length = _IOVECS.unpack(argument)[3]
        if length > MAX_RESPONSE:
            raise ProtocolError(
                "nsm.response.size", f"nsm driver returned {length} bytes, at most {MAX_RESPONSE}"
            )
        return received.raw[:length]


class NsmDescription(msgspec.Struct, frozen=True):
    """What the module says about itself."""

    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


class Nsm:
    """The module with types.

    Every method raises what `NsmDevice.transact` does, `ProtocolError("nsm.response")` for an answer of
    another shape, and the module's own refusals as `nsm.<error in snake case>` (`nsm.read_only_index`): a
    `ProtocolError`, or an `UnavailableError` for `nsm.internal_error`.
    """

    def __init__(self, device: NsmDevice) -> None:
        self._device = device

    def attestation(
        self, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """Return a signed document (COSE_Sign1) over the given fields and the locked registers."""
        request = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        return _field(self._call("Attestation", request), "document", bytes)

    def describe_pcr(self, index: int) -> bytes:
        """Return a register's 48 bytes."""
        return _pcr(self._call("DescribePCR", {"index": index}))

    def pcr_locked(self, index: int) -> bool:
        """Tell whether a register can no longer change."""
        return _field(self._call("DescribePCR", {"index": index}), "lock", bool)

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend a register and return its new value: sha384(old || data); `data` is not hashed first."""
        return _pcr(self._call("ExtendPCR", {"index": index, "data": data}))

    def lock_pcr(self, index: int) -> None:
        """Lock one register until the enclave ends."""
        self._call("LockPCR", {"index": index})

    def lock_pcrs(self, count: int) -> None:
        """Lock the registers 0 to `count` - 1."""
        self._call("LockPCRs", {"range": count})

    def describe_nsm(self) -> NsmDescription:
        """Return the module's version, id and register counts."""
        fields = self._call("DescribeNSM")
        locked = _field(fields, "locked_pcrs", list)
        if not all(isinstance(index, int) for index in locked):
            raise ProtocolError("nsm.response", "nsm answered locked_pcrs that are not all integers")
        return NsmDescription(
            version=(
                _field(fields, "version_major", int),
                _field(fields, "version_minor", int),
                _field(fields, "version_patch", int),
            ),
            module_id=_field(fields, "module_id", str),
            max_pcrs=_field(fields, "max_pcrs", int),
            locked_pcrs=tuple(locked),
            digest=_field(fields, "digest", str),
        )

    def get_random(self) -> bytes:
        """Return random bytes from the module's own source, at least 32."""
        random = _field(self._call("GetRandom"), "random", bytes)
        if len(random) < _MIN_RANDOM:
            raise ProtocolError(
                "nsm.response", f"nsm answered {len(random)} random bytes, expected at least {_MIN_RANDOM}"
            )
        return random

    def _call(self, name: str, fields: Fields | None = None) -> Mapping[object, object]:
        """Send one request and return the fields of its response."""
        response = self._device.transact(cbor2.dumps(name if fields is None else {name: dict(fields)}))
        if len(response) > MAX_RESPONSE:
            raise ProtocolError(
                "nsm.response.size", f"nsm answered {len(response)} bytes, at most {MAX_RESPONSE}"
            )
        try:
            # The module is the hardware under us and may use any CBOR form: only evidence is read strictly.
            message = cbor2.loads(response)
        except (cbor2.CBORError, ValueError) as error:
            raise ProtocolError(
                "nsm.response", f"nsm answered {name} with bytes that are not cbor"
            ) from error
        if message == name:
            return {}
        if isinstance(message, Mapping) and len(message) == 1:
            if isinstance(body := message.get(name), Mapping):
                return body
            if isinstance(refusal := message.get("Error"), str):
                _refused(name, refusal)
        raise ProtocolError("nsm.response", f"nsm answered {name} with another kind of message")


def _refused(request: str, refusal: str) -> NoReturn:
    code = "nsm." + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", refusal).lower()[:40]
    kind = UnavailableError if refusal == "InternalError" else ProtocolError
    raise kind(code, f"nsm refused {request}: {refusal[:40]}")


def _pcr(fields: Mapping[object, object]) -> bytes:
    value = _field(fields, "data", bytes)
    if len(value) != PCR_LENGTH:
        raise ProtocolError(
            "nsm.response", f"nsm answered a register of {len(value)} bytes, expected {PCR_LENGTH}"
        )
    return value


def _field(fields: Mapping[object, object], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if not isinstance(value, kind):
        raise ProtocolError(
            "nsm.response", f"nsm answered {name} as {type(value).__name__}, expected {kind.__name__}"
        )
    return value
