"""NV indexes of both TPMs, and of one that lies."""

import hashlib

import pytest

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_nv import (
    ATTR_AUTH_READ,
    ATTR_AUTH_WRITE,
    ATTR_NO_DA,
    ATTR_OWNER_READ,
    ATTR_OWNER_WRITE,
    ATTR_WRITTEN,
    NvStorage,
)
from enclave.devices.tpm_wire import Auth, TpmRefused
from shared.errors import DstackError, ProtocolError, UnavailableError

INDEX = 0x01C10002
BOTH = ATTR_OWNER_WRITE | ATTR_OWNER_READ | ATTR_AUTH_READ | ATTR_NO_DA
CONTENT = bytes(range(250)) * 6


@pytest.fixture
def storage(tpm: Tpm) -> NvStorage:
    """Each TPM's indexes in turn."""
    return NvStorage(tpm)


def test_reads_what_was_written_in_several_chunks(storage: NvStorage) -> None:
    storage.define(INDEX, len(CONTENT), BOTH)
    storage.write(INDEX, CONTENT)
    assert storage.read(INDEX) == CONTENT


def test_describes_an_index(storage: NvStorage) -> None:
    storage.define(INDEX, 100, BOTH)
    found = storage.find(INDEX)
    assert found is not None
    assert (found.index, found.size, found.attributes) == (INDEX, 100, BOTH)
    area = wire.u32(INDEX) + b"\x00\x0b" + wire.u32(BOTH) + b"\0\0" + wire.u16(100)
    assert found.name == b"\x00\x0b" + hashlib.sha256(area).digest()
    storage.write(INDEX, bytes(100))
    written = storage.find(INDEX)
    assert written is not None
    assert written.attributes == BOTH | ATTR_WRITTEN


def test_reads_as_the_index_where_the_owner_may_not(storage: NvStorage) -> None:
    storage.define(INDEX, 10, ATTR_OWNER_WRITE | ATTR_AUTH_READ | ATTR_NO_DA)
    storage.write(INDEX, b"0123456789")
    assert storage.read(INDEX) == b"0123456789"


def test_an_indexs_password_opens_it(storage: NvStorage) -> None:
    storage.define(INDEX, 3, ATTR_AUTH_WRITE | ATTR_AUTH_READ | ATTR_NO_DA, auth=b"sesame")
    storage.write(INDEX, b"abc", auth=Auth(password=b"sesame"))
    assert storage.read(INDEX, auth=Auth(password=b"sesame")) == b"abc"
    with pytest.raises(TpmRefused) as caught:
        storage.read(INDEX)
    assert caught.value.rc == 0x9A2
    assert "sesame" not in str(caught.value)


def test_finds_nothing_where_nothing_is_defined(storage: NvStorage) -> None:
    assert storage.find(INDEX) is None
    with pytest.raises(UnavailableError) as caught:
        storage.read(INDEX)
    assert caught.value.code == "tpm_device.nv.absent"


def test_an_index_can_be_removed(storage: NvStorage) -> None:
    storage.define(INDEX, 10, BOTH)
    storage.undefine(INDEX)
    assert storage.find(INDEX) is None


def raw(code: int, handles: list[int], parameters: bytes, auth: Auth | None = None):
    def call(storage: NvStorage) -> None:
        storage._tpm.run("x", code, handles=handles, auths=[auth or Auth()], parameters=parameters)

    return call


def area(attributes: int = BOTH, index: int = INDEX + 1, size: int = 10) -> bytes:
    content = wire.u32(index) + b"\x00\x0b" + wire.u32(attributes) + b"\0\0" + wire.u16(size)
    return wire.sized(b"") + wire.sized(content)


@pytest.mark.parametrize(
    ("call", "rc"),
    [
        (lambda storage: storage.define(INDEX, 10, BOTH), 0x14C),
        (lambda storage: storage.define(INDEX + 1, 10, ATTR_OWNER_WRITE), 0x2C2),
        (lambda storage: storage.define(INDEX + 1, 10, ATTR_OWNER_READ), 0x2C2),
        (lambda storage: storage.define(INDEX + 1, 10, BOTH | ATTR_WRITTEN), 0x2C2),
        (lambda storage: storage.define(INDEX + 1, 2049, BOTH), 0x2D5),
        (lambda storage: storage.define(INDEX + 1, 10, BOTH, name_algorithm=0x99), 0x2C3),
        (lambda storage: storage.define(INDEX + 1, 10, BOTH, auth=bytes([1]) * 33), 0x1D5),
        (lambda storage: storage.undefine(INDEX + 1), 0x28B),
        (lambda storage: storage.write(INDEX + 1, b"x"), 0x28B),
        (lambda storage: storage.write(INDEX, bytes(11)), 0x146),
        (lambda storage: storage.write(INDEX, bytes(10), auth=Auth()), 0x12F),
        (lambda storage: storage.read(INDEX), 0x14A),
        (raw(wire.CC_NV_WRITE, [wire.RH_OWNER, INDEX], wire.sized(bytes(1025)) + bytes(2)), 0x1D5),
        (raw(wire.CC_NV_DEFINE_SPACE, [wire.RH_ENDORSEMENT], area()), 0x184),
        (raw(wire.CC_NV_DEFINE_SPACE, [wire.RH_OWNER], area(), Auth(password=b"no")), 0x9A2),
        (raw(wire.CC_NV_DEFINE_SPACE, [wire.RH_OWNER], area(index=0x02000000)), 0x2C4),
        (raw(wire.CC_NV_DEFINE_SPACE, [wire.RH_OWNER], area() + b"x"), 0x095),
    ],
)
def test_both_refuse_a_mistake_with_the_same_code(storage: NvStorage, call, rc: int) -> None:
    storage.define(INDEX, 10, BOTH)
    with pytest.raises(TpmRefused) as caught:
        call(storage)
    assert hex(caught.value.rc) == hex(rc)


@pytest.mark.parametrize(("size", "offset", "rc"), [(1025, 0, 0x1C4), (10, 1, 0x146), (11, 0, 0x146)])
def test_both_refuse_to_read_beyond_an_index(storage: NvStorage, size: int, offset: int, rc: int) -> None:
    storage.define(INDEX, 10, BOTH)
    storage.write(INDEX, bytes(10))
    with pytest.raises(TpmRefused) as caught:
        raw(wire.CC_NV_READ, [wire.RH_OWNER, INDEX], wire.u16(size) + wire.u16(offset))(storage)
    assert hex(caught.value.rc) == hex(rc)


class Lying:
    """A TPM of fixed answers."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = list(bodies)

    def transact(self, command: bytes) -> bytes:
        tag, body = command[:2], self.bodies.pop(0)
        if tag == b"\x80\x02":
            body = wire.u32(len(body)) + body + bytes(5)
        return tag + wire.u32(10 + len(body)) + bytes(4) + body


def described(index: int, size: int) -> bytes:
    public = wire.u32(index) + b"\x00\x0b" + bytes(4) + b"\0\0" + wire.u16(size)
    return wire.sized(public) + wire.sized(b"name")


def lied(*bodies: bytes) -> DstackError:
    with pytest.raises(DstackError) as caught:
        NvStorage(Tpm(Lying(*bodies))).read(INDEX)
    return caught.value


def test_refuses_the_description_of_another_index() -> None:
    caught = lied(described(INDEX + 1, 4))
    assert (caught.code, type(caught)) == ("tpm_device.response.layout", ProtocolError)


@pytest.mark.parametrize("chunk", [b"abc", b"abcde"])
def test_refuses_a_chunk_of_another_length(chunk: bytes) -> None:
    assert lied(described(INDEX, 4), wire.sized(chunk)).code == "tpm_device.response.layout"


def test_does_not_take_every_refusal_for_an_absent_index() -> None:
    class Refusing:
        def transact(self, _command: bytes) -> bytes:
            return bytes.fromhex("8001 0000000a 0000018f")

    with pytest.raises(TpmRefused) as caught:
        NvStorage(Tpm(Refusing())).find(INDEX)
    assert caught.value.rc == 0x18F
