"""Commands as the specification spells them, and responses of a TPM that misbehaves."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.devices import tpm_wire as wire
from enclave.devices.gcp_ak import GcpVtpm
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import MAX_COMMAND, MAX_RESPONSE
from enclave.devices.tpm_nv import NvStorage
from enclave.devices.tpm_seal import SealedBlob, unseal
from enclave.devices.tpm_wire import Auth, Reader, TpmRefused, decode_response, encode_command
from shared.errors import DstackError, ProtocolError, UnavailableError

NO_SESSION = bytes.fromhex("8001 0000000c 00000000 0000")


def answer(body: bytes = b"", *, tag: int = wire.TAG_NO_SESSIONS, rc: int = 0) -> bytes:
    return wire.u16(tag) + wire.u32(10 + len(body)) + wire.u32(rc) + body


def refused(data: bytes, *, auths: int = 0, with_handle: bool = False) -> DstackError:
    with pytest.raises(DstackError) as caught:
        decode_response(data, "Quote", auths=auths, with_handle=with_handle)
    return caught.value


class Scripted:
    """A TPM of fixed answers."""

    def __init__(self, *responses: bytes) -> None:
        self.responses = list(responses)
        self.commands: list[bytes] = []

    def transact(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self.responses.pop(0)


def test_spells_a_command_without_a_session() -> None:
    command = encode_command(wire.CC_GET_RANDOM, parameters=wire.u16(32))
    assert command.hex() == "8001" + "0000000c" + "0000017b" + "0020"


def test_spells_the_null_password_area() -> None:
    """As the specification lists it: u32 9, u32 0x40000009, u16 0, u8 0, u16 0."""
    command = encode_command(wire.CC_PCR_EXTEND, handles=[14], auths=[Auth()])
    assert command.hex() == "8002" + "0000001b" + "00000182" + "0000000e" + "00000009" + "400000090000000000"


def test_refuses_a_command_that_no_tpm_takes() -> None:
    with pytest.raises(ProtocolError) as caught:
        encode_command(wire.CC_NV_WRITE, parameters=bytes(MAX_COMMAND))
    assert caught.value.code == "tpm_device.command.size"


def test_selects_registers_lowest_bit_first() -> None:
    assert wire.selection("sha256", [0, 2, 14]).hex() == "00000001" + "000b" + "03" + "054000"


def test_a_selection_comes_back() -> None:
    reader = Reader(wire.selection("sha384", [3, 23]), "selection")
    assert wire.read_selection(reader) == (wire.ALG_SHA384, (3, 23))


def test_refuses_a_selection_of_two_banks() -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.read_selection(Reader(wire.u32(2), "selection"))
    assert caught.value.code == "tpm_device.response.layout"


def test_splits_handle_and_parameters() -> None:
    response = decode_response(answer(wire.u32(7) + b"rest"), "x", auths=0, with_handle=True)
    assert (response.handle, response.parameters.rest()) == (7, b"rest")


def test_splits_parameters_from_authorisations() -> None:
    body = wire.u32(7) + wire.u32(4) + b"rest" + bytes.fromhex("0000 01 0000")
    response = decode_response(answer(body, tag=wire.TAG_SESSIONS), "x", auths=1, with_handle=True)
    assert (response.handle, response.parameters.rest()) == (7, b"rest")


def test_a_refusal_keeps_the_tpms_code() -> None:
    caught = refused(answer(rc=0x18B), auths=1)
    assert isinstance(caught, TpmRefused)
    assert (caught.code, caught.rc) == ("tpm_device.refused", 0x18B)
    assert str(caught) == "tpm refused Quote with code 0x18b"


def test_a_busy_tpm_is_unavailable() -> None:
    caught = refused(answer(rc=0x922))
    assert (caught.code, type(caught)) == ("tpm_device.busy", UnavailableError)


@pytest.mark.parametrize("data", [b"", bytes(9), NO_SESSION + b"x", NO_SESSION[:-1], bytes(MAX_RESPONSE + 1)])
def test_refuses_a_size_that_is_not_the_answers(data: bytes) -> None:
    assert refused(data).code == "tpm_device.response.size"


def test_refuses_another_tag() -> None:
    assert refused(answer(), auths=1).code == "tpm_device.response.tag"


@pytest.mark.parametrize(
    "body", [b"", wire.u32(5) + b"rest", wire.u32(4) + b"rest", wire.u32(4) + b"rest" + bytes(6)]
)
def test_refuses_parameters_of_another_length(body: bytes) -> None:
    caught = refused(answer(body, tag=wire.TAG_SESSIONS), auths=1)
    assert caught.code == "tpm_device.response.layout"


@given(st.binary(max_size=64), st.integers(0, 2), st.booleans())
def test_arbitrary_bytes_end_in_a_response_or_an_error(data: bytes, auths: int, with_handle: bool) -> None:  # noqa: FBT001
    for candidate in (data, answer(data), answer(data, tag=wire.TAG_SESSIONS)):
        with suppress(ProtocolError, UnavailableError):
            decode_response(candidate, "x", auths=auths, with_handle=with_handle)


def test_a_password_shows_in_no_representation() -> None:
    auth = Auth(password=b"open sesame")
    assert "sesame" not in f"{auth!r} {auth}"
    assert b"open sesame" in auth.encode()


@pytest.mark.parametrize("piece", [b"", bytes(17)])
def test_refuses_random_bytes_of_another_length(piece: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Tpm(Scripted(answer(wire.sized(piece)))).get_random(16)
    assert caught.value.code == "tpm_device.response.layout"


@pytest.mark.parametrize("count", [0, 1025])
def test_refuses_an_amount_of_randomness_without_asking(count: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        Tpm(Scripted()).get_random(count)
    assert caught.value.code == "tpm_device.random.size"


def registers(bank: str, indices: list[int], *values: bytes) -> bytes:
    body = wire.u32(1) + wire.selection(bank, indices) + wire.u32(len(values))
    return answer(body + b"".join(map(wire.sized, values)))


@pytest.mark.parametrize(
    "response",
    [
        registers("sha384", [0], bytes(48)),
        registers("sha256", [1], bytes(32)),
        registers("sha256", [0, 1], bytes(32), bytes(32)),
        registers("sha256", [0]),
        registers("sha256", [0], bytes(48)),
    ],
)
def test_refuses_other_registers_than_those_asked_for(response: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Tpm(Scripted(response)).pcr_read("sha256", [0])
    assert caught.value.code == "tpm_device.response.layout"


def test_reports_a_register_that_the_bank_does_not_have() -> None:
    with pytest.raises(ProtocolError) as caught:
        Tpm(Scripted(answer(wire.u32(1) + wire.u32(0) + wire.u32(0)))).pcr_read("sha256", [0])
    assert caught.value.code == "tpm_device.pcr"


def test_refuses_a_signature_of_an_unknown_kind() -> None:
    parameters = wire.sized(b"message") + bytes.fromhex("001a 000b 0000")
    body = wire.u32(len(parameters)) + parameters + bytes(5)
    with pytest.raises(ProtocolError) as caught:
        Tpm(Scripted(answer(body, tag=wire.TAG_SESSIONS))).quote(1, b"", "sha256", [0])
    assert caught.value.code == "tpm_device.response.layout"


CREATED = (wire.sized(b"public") + wire.sized(b"") + wire.sized(b"")) + (
    bytes(6) + wire.sized(b"") + wire.sized(b"name")
)
PRIMARY = answer(wire.u32(0x80000000) + wire.u32(len(CREATED)) + CREATED + bytes(5), tag=wire.TAG_SESSIONS)


def test_flushes_a_key_when_its_use_fails() -> None:
    device = Scripted(PRIMARY, answer(rc=0x922))
    with pytest.raises(KeyError), Tpm(device).primary(wire.RH_OWNER, b"template"):
        raise KeyError
    assert device.commands[-1] == encode_command(wire.CC_FLUSH_CONTEXT, parameters=wire.u32(0x80000000))


def test_flushes_a_key_whose_public_area_is_unreadable() -> None:
    body = wire.u32(0x80000000) + wire.u32(0) + bytes(5)
    device = Scripted(answer(body, tag=wire.TAG_SESSIONS), answer())
    with pytest.raises(ProtocolError) as caught, Tpm(device).primary(wire.RH_OWNER, b"template"):
        pass
    assert caught.value.code == "tpm_device.response.layout"
    assert len(device.commands) == 2


def test_reports_a_key_that_cannot_be_flushed() -> None:
    with (
        pytest.raises(TpmRefused) as caught,
        Tpm(Scripted(PRIMARY, answer(rc=0x1C4))).primary(wire.RH_OWNER, b"template"),
    ):
        pass
    assert caught.value.rc == 0x1C4


class Arbitrary:
    """A TPM that answers anything, framed well enough to be read."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies

    def transact(self, command: bytes) -> bytes:
        body = self.bodies.pop(0) if self.bodies else b""
        if command[:2] == wire.u16(wire.TAG_SESSIONS):
            handle = bytes(4) if command[6:10] == wire.u32(wire.CC_CREATE_PRIMARY) else b""
            body = handle + wire.u32(len(body)) + body + bytes(5)
        return command[:2] + wire.u32(10 + len(body)) + bytes(4) + body


@pytest.mark.parametrize(
    "call",
    [
        lambda tpm: tpm.get_random(8),
        lambda tpm: tpm.pcr_read("sha256", [0, 2, 14]),
        lambda tpm: tpm.pcr_extend(14, {"sha256": bytes(32)}),
        lambda tpm: tpm.quote(0x80000000, b"", "sha256", [0]),
        lambda tpm: tpm.primary(wire.RH_OWNER, b"template").__enter__(),
        lambda tpm: NvStorage(tpm).read(0x01C10002),
        lambda tpm: GcpVtpm(tpm).quote(bytes(32)),
        lambda tpm: unseal(tpm, SealedBlob("sha256", (14,), b"", b"", b"", b"").encode()),
    ],
)
@given(bodies=st.lists(st.binary(max_size=80), max_size=4))
def test_a_tpm_that_answers_anything_ends_in_a_value_or_an_error(call, bodies: list[bytes]) -> None:
    with suppress(DstackError):
        call(Tpm(Arbitrary(bodies)))
