"""Salted sessions, judged by swtpm: it runs a command only when the HMAC is right."""

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from enclave.devices import tpm_wire as wire
from enclave.devices.nitro_tpm import EK_TEMPLATE
from enclave.devices.tpm import Primary, Tpm
from enclave.devices.tpm_nv import ATTR_AUTH_READ, ATTR_AUTH_WRITE, NvStorage
from enclave.devices.tpm_session import SaltedSession, salted_session, session_key
from enclave.devices.tpm_wire import Auth, TpmRefused
from enclave.simulator.gcp_vtpm import RSA_TEMPLATE
from enclave.simulator.swtpm import Swtpm
from shared.errors import ProtocolError

INDEX = 0x01800001
PASSWORD = bytes(range(1, 65))
PARAMETERS = wire.u16(3) + wire.u16(0)


def read(tpm: Tpm, *, password: bytes = PASSWORD, parameters: bytes = PARAMETERS) -> bytes:
    """Read three bytes by a session; `parameters` are those that the HMAC is over."""
    public = NvStorage(tpm).find(INDEX)
    assert public is not None
    with tpm.primary(wire.RH_ENDORSEMENT, EK_TEMPLATE) as key, salted_session(tpm, key) as session:
        auth = session.authorise(wire.CC_NV_READ, [public.name] * 2, parameters, password)
        answer = tpm.run(
            "NV_Read", wire.CC_NV_READ, handles=[INDEX, INDEX], auths=[auth], parameters=PARAMETERS
        )
        return answer.parameters.sized()


@pytest.fixture
def real(swtpm: Swtpm) -> Tpm:
    """A TPM with an index that a password opens."""
    tpm = Tpm(swtpm)
    storage = NvStorage(tpm)
    attributes = ATTR_AUTH_READ | ATTR_AUTH_WRITE
    storage.define(INDEX, 3, attributes, auth=PASSWORD, name_algorithm=wire.ALG_SHA512)
    storage.write(INDEX, b"abc", auth=Auth(password=PASSWORD))
    return tpm


def test_a_real_tpm_accepts_the_hmac(real: Tpm) -> None:
    for _ in range(5):  # and nothing is left behind: a TPM has room for three sessions
        assert read(real) == b"abc"


@pytest.mark.parametrize("change", [{"password": PASSWORD[:-1] + b"\x00"}, {"parameters": b"\0\0\0\0"}])
def test_a_real_tpm_refuses_another_hmac(real: Tpm, change: dict[str, bytes]) -> None:
    with pytest.raises(TpmRefused) as caught:
        read(real, **change)
    assert caught.value.rc == 0x98E  # TPM_RC_AUTH_FAIL


def test_the_password_does_not_travel() -> None:
    sent: list[bytes] = []

    class Recording:
        def transact(self, command: bytes) -> bytes:
            sent.append(command)
            return bytes.fromhex("8001 0000000a 00000101")

    with pytest.raises(TpmRefused):
        read_once(Tpm(Recording()))
    assert PASSWORD not in b"".join(sent)


def read_once(tpm: Tpm) -> None:
    auth = SaltedSession(0x02000000, bytes(64), bytes(64)).authorise(
        wire.CC_NV_READ, [b"name"] * 2, PARAMETERS, PASSWORD
    )
    assert "password" not in repr(auth)
    tpm.run("NV_Read", wire.CC_NV_READ, handles=[INDEX, INDEX], auths=[auth], parameters=PARAMETERS)


def test_derives_keys_as_nist_does() -> None:
    salt, nonce_tpm, nonce_caller = b"s" * 32, b"t" * 64, b"c" * 64
    expected = KBKDFHMAC(
        algorithm=SHA512(),
        mode=Mode.CounterMode,
        length=64,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=b"ATH",
        context=nonce_tpm + nonce_caller,
        fixed=None,
    ).derive(salt)
    assert session_key(salt, nonce_tpm, nonce_caller) == expected


class Forbidden:
    """A TPM that must not be asked."""

    def transact(self, _command: bytes) -> bytes:
        raise AssertionError


@pytest.mark.parametrize(
    ("public", "code"),
    [
        (RSA_TEMPLATE, "tpm_device.key"),
        (b"\x00\x23" + EK_TEMPLATE[2:], "tpm_device.key"),
        (EK_TEMPLATE[:2] + b"\x00\x0c" + EK_TEMPLATE[4:], "tpm_device.key"),
        (EK_TEMPLATE[:48] + b"\x00\x14" + EK_TEMPLATE[50:], "tpm_device.key"),
        (EK_TEMPLATE, "tpm_device.key"),  # a modulus of zero
        (EK_TEMPLATE + b"x", "tpm_device.response.layout"),
        (b"", "tpm_device.response.layout"),
    ],
)
def test_refuses_to_salt_by_another_kind_of_key(public: bytes, code: str) -> None:
    with (
        pytest.raises(ProtocolError) as caught,
        salted_session(Tpm(Forbidden()), Primary(0x80000000, public, b"")),
    ):
        pass
    assert caught.value.code == code
