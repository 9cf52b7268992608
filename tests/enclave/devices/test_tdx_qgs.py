"""The host's quote service, played by the other end of a socket pair."""

import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.devices.tdx_qgs import MAX_MESSAGE, QgsQuotes, decode_response, encode_request, qgs_port
from shared.errors import DstackError, ProtocolError, UnavailableError

REPORT_DATA = bytes(range(64))
REPORT = bytes([7]) * 1024
QUOTE = bytes([9]) * 1020


def response(
    *,
    quote: bytes = QUOTE,
    selected: bytes = b"",
    kind: int = 1,
    error: int = 0,
    major: int = 1,
    more: int = 0,
) -> bytes:
    size = 24 + len(selected) + len(quote)
    header = struct.pack("<HHIII", major, 0, kind, size + more, error)
    return header + struct.pack("<II", len(selected), len(quote)) + selected + quote


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


class Service:
    """Answers one connection with fixed bytes, after it has read the whole request."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: tuple[int, int] | None = None
        self.request = b""

    def connect(self, cid: int, port: int, timeout: float) -> socket.socket:
        self.asked = cid, port
        theirs, ours = socket.socketpair()
        ours.settimeout(timeout)
        self.thread = threading.Thread(target=self._serve, args=(theirs,))
        self.thread.start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while len(self.request) < 4 + 24 + 1024:
                self.request += connection.recv(4096)
            connection.sendall(self.answer)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tdx-attest.conf"
    path.write_text("# the host\n# port = 1\n  port = 4050  # qgs\n")
    return path


def ask(service: Service, config: Path) -> bytes:
    try:
        return QgsQuotes(lambda _data: REPORT, service.connect, config=config).quote(REPORT_DATA)
    finally:
        service.thread.join(10)


def test_asks_the_host_as_documented(config: Path) -> None:
    service = Service(framed(response()))
    assert ask(service, config) == QUOTE
    assert service.asked == (2, 4050)
    assert (
        service.request[:28].hex()
        == (
            "00000418"  # the frame's length, big endian
            "0100" + "0000" + "00000000" + "18040000" + "00000000"  # header, little endian
            "00040000" + "00000000"  # report size, no ids
        )
    )
    assert service.request[28:] == REPORT


def test_skips_the_id_that_was_selected() -> None:
    assert decode_response(response(selected=b"0123456789")) == QUOTE


@pytest.mark.parametrize("length", [0, 3])
def test_reports_a_service_that_hangs_up(config: Path, length: int) -> None:
    with pytest.raises(UnavailableError) as caught:
        ask(Service(framed(response())[:length]), config)
    assert caught.value.code == "tdx_device.qgs.io"


def test_reports_a_service_that_breaks_the_connection(config: Path) -> None:
    service = Service(b"")

    def connect(*_: object) -> socket.socket:
        ours = socket.socket()
        ours.close()
        return ours

    with pytest.raises(UnavailableError) as caught:
        QgsQuotes(lambda _data: REPORT, connect, config=config).quote(REPORT_DATA)
    assert caught.value.code == "tdx_device.qgs.io"
    assert service.asked is None


def test_refuses_an_oversize_answer_before_reading_it(config: Path) -> None:
    with pytest.raises(ProtocolError) as caught:
        ask(Service(struct.pack(">I", MAX_MESSAGE + 1)), config)
    assert caught.value.code == "tdx_device.qgs.malformed"


def test_keeps_the_services_error() -> None:
    with pytest.raises(UnavailableError) as caught:
        decode_response(response(error=0x12001))
    assert caught.value.code == "tdx_device.qgs.refused"
    assert "0x12001" in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        response()[:23],
        response(kind=0),
        response(major=2),
        response(more=1),
        response(quote=QUOTE[1:]),
        response()[:16] + struct.pack("<II", 1, 1020) + QUOTE,
        response()[:16] + struct.pack("<II", 0, 1021) + QUOTE,
    ],
)
def test_refuses_another_layout(message: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_response(message)
    assert caught.value.code == "tdx_device.qgs.malformed"


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(DstackError) as caught:
        decode_response(message)
    assert caught.value.code.startswith("tdx_device.qgs.")


def test_a_request_has_its_size_in_it() -> None:
    assert struct.unpack_from("<I", encode_request(REPORT), 4 + 8) == (len(encode_request(REPORT)) - 4,)


def test_reports_a_machine_without_a_configured_service(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        qgs_port(tmp_path / "absent")
    assert caught.value.code == "tdx_device.qgs.absent"


@pytest.mark.parametrize("text", ["", "port = \n", "#port = 4050\n", "portal = 3\n", "port = 0x12\n"])
def test_a_configuration_without_a_port_configures_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tdx-attest.conf"
    path.write_text(text)
    with pytest.raises(UnavailableError) as caught:
        qgs_port(path)
    assert caught.value.code == "tdx_device.qgs.absent"
