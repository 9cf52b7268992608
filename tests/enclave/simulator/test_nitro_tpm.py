import hashlib

import pytest

from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from shared.attestation.nitro_tpm import parse_tpm_document

NOW = 1_767_225_600


@pytest.fixture(scope="module")
def authority() -> SimulatedAuthority:
    return SimulatedAuthority.create()


def test_registers_are_those_given_and_extended(authority: SimulatedAuthority) -> None:
    tpm = SimulatedNitroTpm(authority, {7: b"\7" * 48}, clock=lambda: NOW, instance_id="i-1")
    extended = hashlib.sha384(bytes(48) + b"\1" * 48).digest()
    assert tpm.extend(14, b"\1" * 48) == extended
    document = parse_tpm_document(tpm.attestation(b"user data", b"nonce", b"key"))
    assert (document.pcrs[7], document.pcrs[14]) == (b"\7" * 48, extended)
    assert any(document.pcrs[4])
    assert document.module_id == "i-1"
    assert document.timestamp == NOW
    assert (document.user_data, document.nonce, document.public_key) == (b"user data", b"nonce", b"key")


@pytest.mark.parametrize(("index", "digest"), [(14, bytes(32)), (24, bytes(48)), (-1, bytes(48))])
def test_refuses_an_extension_that_no_tpm_makes(
    authority: SimulatedAuthority, index: int, digest: bytes
) -> None:
    with pytest.raises(ValueError, match="extended by 48 bytes"):
        SimulatedNitroTpm(authority).extend(index, digest)


@pytest.mark.parametrize("fields", [(bytes(513),), (None, bytes(513)), (None, None, bytes(1025))])
def test_refuses_fields_that_are_too_long(authority: SimulatedAuthority, fields: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="too long"):
        SimulatedNitroTpm(authority).attestation(*fields)
