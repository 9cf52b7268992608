"""Sealing, against swtpm: what a blob needs to open, and what it never shows."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_seal import (
    MAX_BLOB,
    MAX_SECRET,
    STORAGE_TEMPLATE,
    SealedBlob,
    decode_blob,
    seal,
    unseal,
)
from enclave.devices.tpm_wire import TpmRefused
from enclave.simulator.swtpm import Swtpm
from shared.errors import ProtocolError, UnavailableError

SECRET = b"a secret of some length"


@pytest.fixture
def real(swtpm: Swtpm) -> Tpm:
    """The one TPM here that can seal."""
    return Tpm(swtpm)


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_opens_in_the_same_state(real: Tpm, bank: str) -> None:
    real.pcr_extend(14, {"sha256": b"\x01" * 32, "sha384": b"\x01" * 48})
    blob = seal(real, SECRET, bank, [14, 7])
    assert unseal(real, blob) == SECRET
    assert SECRET not in blob


@pytest.mark.parametrize("length", [1, MAX_SECRET])
def test_seals_secrets_of_every_length(real: Tpm, length: int) -> None:
    assert unseal(real, seal(real, bytes(length), "sha256", [0])) == bytes(length)


def test_stays_closed_when_a_register_has_changed(real: Tpm) -> None:
    blob = seal(real, SECRET, "sha256", [14])
    real.pcr_extend(14, {"sha256": bytes(32)})
    with pytest.raises(UnavailableError) as caught:
        unseal(real, blob)
    assert caught.value.code == "tpm_device.sealed"


def test_stays_closed_for_a_blob_that_names_other_registers(real: Tpm) -> None:
    sealed = decode_blob(seal(real, SECRET, "sha256", [14]))
    other = SealedBlob("sha256", (13,), sealed.private, sealed.public)
    with pytest.raises(UnavailableError) as caught:
        unseal(real, other.encode())
    assert caught.value.code == "tpm_device.sealed"


def test_stays_closed_on_another_machine(real: Tpm, tmp_path) -> None:
    blob = seal(real, SECRET, "sha256", [14])
    with Swtpm(tmp_path / "other") as other, pytest.raises(TpmRefused):
        unseal(Tpm(other), blob)


def test_opens_after_a_reboot(tmp_path, swtpm: Swtpm) -> None:
    swtpm.close()
    with Swtpm(tmp_path / "kept") as before:
        blob = seal(Tpm(before), SECRET, "sha256", [14])
    with Swtpm(tmp_path / "kept") as after:
        assert unseal(Tpm(after), blob) == SECRET


def test_has_no_password_to_open_it_by(real: Tpm) -> None:
    """Without a policy session the object answers nobody."""
    sealed = decode_blob(seal(real, SECRET, "sha256", [14]))
    with real.primary(wire.RH_OWNER, STORAGE_TEMPLATE) as storage:
        loaded = real.run(
            "Load",
            wire.CC_LOAD,
            handles=[storage.handle],
            auths=[wire.Auth()],
            parameters=wire.sized(sealed.private) + wire.sized(sealed.public),
            with_handle=True,
        )
        with real.flushed(loaded.handle) as handle, pytest.raises(TpmRefused) as caught:
            real.run("Unseal", wire.CC_UNSEAL, handles=[handle], auths=[wire.Auth()])
    assert caught.value.rc == 0x12F  # TPM_RC_AUTH_UNAVAILABLE


def test_reports_another_refusal_as_it_is(swtpm: Swtpm) -> None:
    class Refusing:
        def transact(self, command: bytes) -> bytes:
            response = swtpm.transact(command)
            return bytes.fromhex("8001 0000000a 00000101") if command[6:10] == b"\0\0\x01\x5e" else response

    with pytest.raises(TpmRefused) as caught:
        unseal(Tpm(Refusing()), seal(Tpm(swtpm), SECRET, "sha256", [14]))
    assert caught.value.rc == 0x101


def test_leaves_nothing_loaded(real: Tpm) -> None:
    """A TPM has room for three objects and as many sessions."""
    blob = seal(real, SECRET, "sha256", [14])
    for _ in range(3):
        assert unseal(real, blob) == SECRET
    real.pcr_extend(14, {"sha256": bytes(32)})
    for _ in range(5):
        with pytest.raises(UnavailableError):
            unseal(real, blob)
    assert len(seal(real, SECRET, "sha256", [14])) == len(blob)


class Forbidden:
    """A TPM that must not be asked."""

    def transact(self, _command: bytes) -> bytes:
        raise AssertionError


@pytest.mark.parametrize(
    ("secret", "bank", "indices", "code"),
    [
        (b"", "sha256", [14], "tpm_device.secret.size"),
        (bytes(MAX_SECRET + 1), "sha256", [14], "tpm_device.secret.size"),
        (SECRET, "sha1", [14], "tpm_device.pcr"),
        (SECRET, "sha256", [], "tpm_device.pcr"),
        (SECRET, "sha256", [24], "tpm_device.pcr"),
    ],
)
def test_refuses_to_seal(secret: bytes, bank: str, indices: list[int], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        seal(Tpm(Forbidden()), secret, bank, indices)
    assert caught.value.code == code


def test_a_blob_has_the_documented_format() -> None:
    blob = SealedBlob("sha384", (7, 14), b"private", b"public")
    assert blob.encode() == b"DSB1" + b"\x01\x02\x07\x0e" + b"\x00\x07private" + b"\x00\x06public"
    assert decode_blob(blob.encode()) == blob


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(MAX_BLOB + 1), "tpm_device.blob.size"),
        (b"", "tpm_device.response.layout"),
        (b"DSB2\x00\x01\x0e\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x02\x01\x0e\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x00\x00\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x00\x01\x18\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x00\x02\x0e\x07\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x00\x02\x07\x07\x00\x00\x00\x00", "tpm_device.blob.format"),
        (b"DSB1\x00\x01\x0e\x00\x00\x00\x00x", "tpm_device.response.layout"),
    ],
)
def test_refuses_a_blob(data: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        unseal(Tpm(Forbidden()), data)
    assert caught.value.code == code


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_blob_or_an_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert decode_blob(b"DSB1" + data).encode() == b"DSB1" + data
