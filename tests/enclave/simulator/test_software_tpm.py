"""What the TPM in this process refuses; that it answers like a real one is tested with the devices."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_wire import Auth, TpmRefused
from enclave.simulator.gcp_vtpm import ECC_TEMPLATE, RSA_TEMPLATE
from enclave.simulator.software_tpm import SoftwareTpm
from shared.errors import UnavailableError


def rc_of(response: bytes) -> int:
    assert response[:6] == bytes.fromhex("8001 0000000a")
    return int.from_bytes(response[6:], "big")


@pytest.mark.parametrize(
    ("command", "rc"),
    [
        ("8003 0000000c 0000017b 0020", 0x01E),
        ("8001 0000000d 0000017b 0020", 0x142),
        ("8001 0000000a 0000015e", 0x143),
        ("8001 0000000a 00000176", 0x143),
        ("8001 0000000a 0000017b", 0x1D5),
        ("8001 0000000d 0000017b 0020 00", 0x095),
        ("8002 00000017 00000182 0000000e 00000006 4000000900", 0x1D5),
        ("8002 0000001b 00000182 0000000e 00000009 02000000 0000 00 0000", 0x984),
        ("", 0x1D5),
    ],
)
def test_refuses_a_malformed_command(command: str, rc: int) -> None:
    assert hex(rc_of(SoftwareTpm().transact(bytes.fromhex(command)))) == hex(rc)


@pytest.mark.parametrize(
    ("template", "rc"),
    [
        (ECC_TEMPLATE[:2] + b"\x00\x0c" + ECC_TEMPLATE[4:], 0x2C3),
        (ECC_TEMPLATE[:4] + b"\x00\x03\x04\x72" + ECC_TEMPLATE[8:], 0x2C2),
        (ECC_TEMPLATE[:10] + b"\x00\x06" + ECC_TEMPLATE[12:], 0x2D6),
        (ECC_TEMPLATE[:16] + b"\x00\x04" + ECC_TEMPLATE[18:], 0x2D2),
        (RSA_TEMPLATE[:16] + b"\x10\x00" + RSA_TEMPLATE[18:], 0x2D2),
        (RSA_TEMPLATE + b"\0", 0x2D5),
    ],
)
def test_makes_no_key_but_restricted_signing_keys(template: bytes, rc: int) -> None:
    with pytest.raises(TpmRefused) as caught, Tpm(SoftwareTpm()).primary(wire.RH_OWNER, template):
        pass
    assert hex(caught.value.rc) == hex(rc)


def test_a_scheme_other_than_the_keys_own_is_refused() -> None:
    tpm = Tpm(SoftwareTpm())
    parameters = wire.sized(b"") + wire.u16(wire.ALG_ECDSA) + wire.selection("sha256", [0])
    with tpm.primary(wire.RH_OWNER, ECC_TEMPLATE) as key, pytest.raises(TpmRefused) as caught:
        tpm.run("Quote", wire.CC_QUOTE, handles=[key.handle], auths=[Auth()], parameters=parameters)
    assert caught.value.rc == 0x2D2


def test_a_quote_over_no_known_bank_is_refused() -> None:
    tpm = Tpm(SoftwareTpm())
    parameters = wire.sized(b"") + wire.u16(wire.ALG_NULL) + wire.u32(0)
    with tpm.primary(wire.RH_OWNER, ECC_TEMPLATE) as key, pytest.raises(TpmRefused) as caught:
        tpm.run("Quote", wire.CC_QUOTE, handles=[key.handle], auths=[Auth()], parameters=parameters)
    assert caught.value.rc == 0x3C3


def test_has_room_for_three_keys() -> None:
    tpm = Tpm(SoftwareTpm())
    with ExitStack() as loaded:
        for _ in range(3):
            loaded.enter_context(tpm.primary(wire.RH_OWNER, ECC_TEMPLATE))
        with pytest.raises(UnavailableError) as caught:
            loaded.enter_context(tpm.primary(wire.RH_OWNER, ECC_TEMPLATE))
    assert caught.value.code == "tpm_device.busy"


def test_a_bank_that_it_does_not_have_reads_empty() -> None:
    response = SoftwareTpm().transact(bytes.fromhex("8001 00000014 0000017e 00000001 000d 03 010000"))
    assert response[10:] == bytes(12)


def test_two_instances_have_different_keys() -> None:
    publics = []
    for tpm in (Tpm(SoftwareTpm()), Tpm(SoftwareTpm())):
        with tpm.primary(wire.RH_ENDORSEMENT, ECC_TEMPLATE) as key:
            publics.append(key.public)
    assert publics[0] != publics[1]


@given(
    st.sampled_from([0x122, 0x12A, 0x131, 0x137, 0x14E, 0x158, 0x165, 0x169, 0x17B, 0x17E, 0x182]),
    st.booleans(),
    st.binary(max_size=60),
)
def test_arbitrary_commands_are_answered(code: int, sessions: bool, rest: bytes) -> None:  # noqa: FBT001
    tag = wire.TAG_SESSIONS if sessions else wire.TAG_NO_SESSIONS
    response = SoftwareTpm().transact(wire.u16(tag) + wire.u32(10 + len(rest)) + wire.u32(code) + rest)
    assert int.from_bytes(response[2:6], "big") == len(response) >= 10
