"""What the simulated NitroTPM refuses, so that the collector's session is worth something."""

from collections.abc import Iterator

import pytest

from enclave.devices import tpm_wire as wire
from enclave.devices.nitro_tpm import BUFFER_SIZE, CC_NSM_REQUEST, EK_TEMPLATE
from enclave.devices.tpm import Primary, Tpm
from enclave.devices.tpm_nv import ATTR_AUTH_READ, ATTR_AUTH_WRITE, NvStorage
from enclave.devices.tpm_session import salted_session
from enclave.devices.tpm_wire import Auth, TpmRefused
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.gcp_vtpm import ECC_TEMPLATE
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from enclave.simulator.software_nitro_tpm import SoftwareNitroTpm

INDEX = 0x01800000
PASSWORD = b"password"
AUTHORITY = SimulatedAuthority.create()


@pytest.fixture
def tpm() -> Tpm:
    return Tpm(SoftwareNitroTpm(SimulatedNitroTpm(AUTHORITY, clock=lambda: 1_900_000_000)))


@pytest.fixture
def endorsement(tpm: Tpm) -> Iterator[Primary]:
    with tpm.primary(wire.RH_ENDORSEMENT, EK_TEMPLATE) as key:
        yield key


@pytest.fixture
def name(tpm: Tpm) -> bytes:
    NvStorage(tpm).define(
        INDEX,
        BUFFER_SIZE,
        ATTR_AUTH_READ | ATTR_AUTH_WRITE,
        auth=PASSWORD,
        name_algorithm=wire.ALG_SHA512,
    )
    public = NvStorage(tpm).find(INDEX)
    assert public is not None
    return public.name


def test_begins_with_the_instances_registers(tpm: Tpm) -> None:
    assert any(tpm.pcr_read("sha384", [4])[4])


@pytest.mark.parametrize(("password", "names"), [(b"wrong", 2), (PASSWORD, 1)])
def test_refuses_another_hmac(
    tpm: Tpm, endorsement: Primary, name: bytes, password: bytes, names: int
) -> None:
    with salted_session(tpm, endorsement) as session:
        auth = session.authorise(CC_NSM_REQUEST, [name] * names, b"", password)
        with pytest.raises(TpmRefused) as caught:
            tpm.run_vendor("NSM request", CC_NSM_REQUEST, handles=[INDEX, INDEX], auths=[auth])
    assert caught.value.rc == 0x98E


@pytest.mark.parametrize("handles", [[INDEX + 1, INDEX + 1], [wire.RH_OWNER, INDEX]])
def test_refuses_other_handles(tpm: Tpm, name: bytes, handles: list[int]) -> None:
    assert name
    with pytest.raises(TpmRefused) as caught:
        tpm.run_vendor("NSM request", CC_NSM_REQUEST, handles=handles, auths=[Auth()])
    assert caught.value.rc == 0x18B


def test_refuses_a_password_in_place_of_a_session(tpm: Tpm, name: bytes) -> None:
    assert name
    with pytest.raises(TpmRefused) as caught:
        tpm.run_vendor("NSM request", CC_NSM_REQUEST, handles=[INDEX, INDEX], auths=[Auth(password=PASSWORD)])
    assert caught.value.rc == 0x184


def start(tpm: Tpm, key: int, *, bound: int = wire.RH_NULL, salt: bytes = bytes(256), kind: int = 0) -> int:
    parameters = wire.sized(bytes(64)) + wire.sized(salt) + bytes([kind])
    parameters += wire.u16(wire.ALG_NULL) + wire.u16(wire.ALG_SHA512)
    with pytest.raises(TpmRefused) as caught:
        tpm.run(
            "StartAuthSession",
            wire.CC_START_AUTH_SESSION,
            handles=[key, bound],
            parameters=parameters,
            with_handle=True,
        )
    return caught.value.rc


def test_starts_no_session_without_its_key(tpm: Tpm, endorsement: Primary) -> None:
    assert start(tpm, wire.RH_NULL) == 0x184
    assert start(tpm, endorsement.handle, bound=INDEX) == 0x184
    with tpm.primary(wire.RH_ENDORSEMENT, ECC_TEMPLATE) as signing:
        assert start(tpm, signing.handle) == 0x184


def test_starts_no_session_with_a_foreign_salt(tpm: Tpm, endorsement: Primary) -> None:
    assert start(tpm, endorsement.handle) == 0x2C4


def test_starts_no_session_of_another_kind(
    tpm: Tpm, endorsement: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave.devices.tpm_session._HMAC_SESSION", 1)
    with pytest.raises(TpmRefused) as caught, salted_session(tpm, endorsement):
        pass
    assert caught.value.rc == 0x2C4


def test_flushes_only_what_is_loaded(tpm: Tpm) -> None:
    with pytest.raises(TpmRefused) as caught:
        tpm.flush(0x02000000)
    assert caught.value.rc == 0x1C4
