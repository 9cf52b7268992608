"""The NSM client and its ioctl backend, against a driver and a module that misbehave on demand."""

import ctypes
import errno
import struct
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest

from enclave.devices.nsm import MAX_REQUEST, MAX_RESPONSE, NSM_IOCTL, DevNsm, Nsm
from shared.errors import DstackError, ProtocolError, UnavailableError

PCR = bytes(range(48))

# The exact requests of the specification's table.
REQUESTS: list[tuple[str, Callable[[Nsm], object], object]] = [
    (
        "a16b4465736372696265504352a165696e64657803",
        lambda nsm: nsm.describe_pcr(3),
        {"DescribePCR": {"lock": True, "data": PCR}},
    ),
    (
        "a169457874656e64504352a265696e64657810646461746142aabb",
        lambda nsm: nsm.extend_pcr(16, b"\xaa\xbb"),
        {"ExtendPCR": {"data": PCR}},
    ),
    ("a1674c6f636b504352a165696e64657810", lambda nsm: nsm.lock_pcr(16), "LockPCR"),
    ("a1684c6f636b50435273a16572616e676510", lambda nsm: nsm.lock_pcrs(16), "LockPCRs"),
    (
        "a16b4174746573746174696f6ea369757365725f64617461420102656e6f6e6365f66a7075626c69635f6b6579f6",
        lambda nsm: nsm.attestation(user_data=b"\x01\x02"),
        {"Attestation": {"document": b"document"}},
    ),
    ("6947657452616e646f6d", lambda nsm: nsm.get_random(), {"GetRandom": {"random": bytes(256)}}),
]
DESCRIPTION = {
    "version_major": 1,
    "version_minor": 2,
    "version_patch": 3,
    "module_id": "i-0-enc0",
    "max_pcrs": 32,
    "locked_pcrs": [0, 1],
    "digest": "SHA384",
}


class Scripted:
    """A module that answers with fixed bytes and remembers what it was asked."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.requests: list[bytes] = []

    def transact(self, request: bytes) -> bytes:
        self.requests.append(request)
        return self.response


def refused(response: bytes, call: Callable[[Nsm], object]) -> DstackError:
    with pytest.raises(DstackError) as caught:
        call(Nsm(Scripted(response)))
    return caught.value


@pytest.mark.parametrize(("request_hex", "call", "answer"), REQUESTS)
def test_sends_the_documented_bytes(request_hex: str, call: Callable[[Nsm], object], answer: object) -> None:
    device = Scripted(cbor2.dumps(answer))
    call(Nsm(device))
    assert [request.hex() for request in device.requests] == [request_hex]


def test_describes_the_module() -> None:
    device = Scripted(cbor2.dumps({"DescribeNSM": DESCRIPTION}))
    description = Nsm(device).describe_nsm()
    assert device.requests == [bytes.fromhex("6b44657363726962654e534d")]
    assert description.version == (1, 2, 3)
    assert description.module_id == "i-0-enc0"
    assert description.locked_pcrs == (0, 1)


def test_reads_registers_and_locks() -> None:
    nsm = Nsm(Scripted(cbor2.dumps({"DescribePCR": {"lock": True, "data": PCR}})))
    assert nsm.describe_pcr(0) == PCR
    assert nsm.pcr_locked(0)


def test_accepts_a_module_that_uses_indefinite_lengths() -> None:
    assert Nsm(Scripted(b"\xbf\x6bAttestation\xbf\x68document\x41x\xff\xff")).attestation() == b"x"


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        ("ReadOnlyIndex", "nsm.read_only_index", ProtocolError),
        ("InvalidArgument", "nsm.invalid_argument", ProtocolError),
        ("InputTooLarge", "nsm.input_too_large", ProtocolError),
        ("InternalError", "nsm.internal_error", UnavailableError),
    ],
)
def test_a_modules_refusal_keeps_its_name(error: str, code: str, kind: type[DstackError]) -> None:
    caught = refused(cbor2.dumps({"Error": error}), lambda nsm: nsm.extend_pcr(0, b"x"))
    assert (caught.code, type(caught)) == (code, kind)


@pytest.mark.parametrize(
    "answer",
    [
        "LockPCR",
        {},
        {"Attestation": {}},
        {"Attestation": b"document"},
        {"Attestation": {"document": "text"}},
        {"DescribePCR": {"document": b""}},
        {"Attestation": {"document": b""}, "More": {}},
        {"Error": 7},
        7,
        [],
    ],
)
def test_refuses_an_answer_of_another_shape(answer: object) -> None:
    caught = refused(cbor2.dumps(answer), lambda nsm: nsm.attestation())
    assert (caught.code, type(caught)) == ("nsm.response", ProtocolError)


@pytest.mark.parametrize(
    "response", [b"", b"\xff", b"\xa1", b"\xa1\x61", b"\x9b" + b"\xff" * 8, b"\xc1\x61a"]
)
def test_refuses_bytes_that_are_not_cbor(response: bytes) -> None:
    assert refused(response, lambda nsm: nsm.get_random()).code == "nsm.response"


def test_refuses_a_register_of_another_length() -> None:
    answer = cbor2.dumps({"DescribePCR": {"lock": True, "data": bytes(32)}})
    assert refused(answer, lambda nsm: nsm.describe_pcr(0)).code == "nsm.response"


def test_refuses_too_little_entropy() -> None:
    answer = cbor2.dumps({"GetRandom": {"random": bytes(31)}})
    assert refused(answer, lambda nsm: nsm.get_random()).code == "nsm.response"


def test_refuses_locked_registers_that_are_no_numbers() -> None:
    answer = cbor2.dumps({"DescribeNSM": {**DESCRIPTION, "locked_pcrs": ["0"]}})
    assert refused(answer, lambda nsm: nsm.describe_nsm()).code == "nsm.response"


def test_refuses_an_oversize_answer() -> None:
    caught = refused(bytes(MAX_RESPONSE + 1), lambda nsm: nsm.get_random())
    assert caught.code == "nsm.response.size"


# --- the ioctl ---


class Driver:
    """The kernel's side of the ioctl: follows the two iovecs that it is given."""

    def __init__(self, response: bytes = b"", *, length: int | None = None, error: int = 0) -> None:
        self.response = response
        self.length = len(response) if length is None else length
        self.error = error
        self.calls: list[tuple[int, bytes, int]] = []

    def __call__(self, descriptor: int, request: int, argument: bytearray, mutate: bool) -> int:  # noqa: FBT001
        assert mutate
        assert descriptor >= 0
        in_at, in_length, out_at, out_length = struct.unpack("=QQQQ", argument)
        self.calls.append((request, ctypes.string_at(in_at, in_length), out_length))
        if self.error:
            raise OSError(self.error, "driver")
        ctypes.memmove(out_at, self.response, len(self.response))
        argument[:] = struct.pack("=QQQQ", in_at, in_length, out_at, self.length)
        return 0


@pytest.fixture
def node(tmp_path: Path) -> str:
    """A file in the place of the device node."""
    path = tmp_path / "nsm"
    path.touch()
    return str(path)


def test_passes_request_and_response_through_the_ioctl(node: str) -> None:
    driver = Driver(b"response")
    device = DevNsm(node, ioctl=driver)
    assert device.transact(b"request") == b"response"
    assert device.transact(b"") == b"response"
    assert driver.calls == [(NSM_IOCTL, b"request", 0x3000), (0xC0200A00, b"", 0x3000)]


def test_a_typed_call_works_through_the_ioctl(node: str) -> None:
    driver = Driver(cbor2.dumps({"Attestation": {"document": b"doc"}}))
    assert Nsm(DevNsm(node, ioctl=driver)).attestation(user_data=bytes(64)) == b"doc"


def transact_refused(device: DevNsm, request: bytes = b"x") -> DstackError:
    with pytest.raises(DstackError) as caught:
        device.transact(request)
    return caught.value


def test_refuses_an_oversize_request_before_the_driver(node: str) -> None:
    driver = Driver()
    caught = transact_refused(DevNsm(node, ioctl=driver), bytes(MAX_REQUEST + 1))
    assert caught.code == "nsm.request.size"
    assert driver.calls == []


def test_refuses_what_the_driver_calls_too_large(node: str) -> None:
    caught = transact_refused(DevNsm(node, ioctl=Driver(error=errno.EMSGSIZE)))
    assert (caught.code, type(caught)) == ("nsm.request.size", ProtocolError)


def test_reports_a_failing_driver(node: str) -> None:
    caught = transact_refused(DevNsm(node, ioctl=Driver(error=errno.EIO)))
    assert (caught.code, type(caught)) == ("nsm.ioctl", UnavailableError)


def test_refuses_an_impossible_response_length(node: str) -> None:
    caught = transact_refused(DevNsm(node, ioctl=Driver(b"x", length=MAX_RESPONSE + 1)))
    assert caught.code == "nsm.response.size"


def test_reports_a_machine_without_the_device(tmp_path: Path) -> None:
    caught = transact_refused(DevNsm(str(tmp_path / "absent")))
    assert (caught.code, type(caught)) == ("nsm.device", UnavailableError)
