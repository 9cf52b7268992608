"""Sealing, against swtpm and the TPM in process: what a blob needs to open, and what it never shows."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.devices.tpm_seal import (
    MAX_BLOB,
    MAX_SECRET,
    STORAGE_TEMPLATE,
    SealedBlob,
    TpmSealer,
    decode_blob,
    seal,
    unseal,
)
from enclave.devices.tpm_wire import TpmRefused
from enclave.simulator.sealing_tpm import SealingTpm
from enclave.simulator.swtpm import Swtpm
from shared.errors import ConfigError, ProtocolError, UnavailableError
from tests.shared.refusal import refuses

SECRET = b"a secret of some length"


@pytest.fixture(params=["software", "swtpm"])
def device(request: pytest.FixtureRequest) -> TpmDevice:
    """Each TPM that can seal, in turn."""
    if request.param == "software":
        return SealingTpm()
    found: TpmDevice = request.getfixturevalue("swtpm")
    return found


@pytest.fixture
def real(device: TpmDevice) -> Tpm:
    return Tpm(device)


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
    other = msgspec.structs.replace(sealed, indices=(13,))
    with pytest.raises(UnavailableError) as caught:
        unseal(real, other.encode())
    assert caught.value.code == "tpm_device.sealed"


def test_stays_closed_on_another_machine(real: Tpm, swtpm: Swtpm, tmp_path) -> None:
    blob = seal(real, SECRET, "sha256", [14])
    swtpm.close()
    with Swtpm(tmp_path / "other") as other, pytest.raises(TpmRefused):
        unseal(Tpm(other), blob)


def test_stays_closed_on_another_tpm_in_process() -> None:
    blob = seal(Tpm(SealingTpm()), SECRET, "sha256", [14])
    with pytest.raises(TpmRefused):
        unseal(Tpm(SealingTpm()), blob)


def test_a_seed_is_a_tpm_after_a_reboot() -> None:
    seed = bytes(range(32))
    assert unseal(Tpm(SealingTpm(seed)), seal(Tpm(SealingTpm(seed)), SECRET, "sha256", [14])) == SECRET


class Promising(Tpm):
    """Seals to values that the registers do not hold yet, as another image could on the same machine."""

    def __init__(self, device: TpmDevice, values: dict[int, bytes]) -> None:
        super().__init__(device)
        self._values = values

    def pcr_read(self, algorithm: str, indices: Sequence[int]) -> dict[int, bytes]:
        del algorithm
        return {index: self._values[index] for index in indices}


@pytest.fixture
def planted(real: Tpm, device: TpmDevice) -> bytes:
    """Return a blob that was made for the registers' values before they held them."""
    future = hashlib.sha256(bytes(32) + b"\x01" * 32).digest()
    blob = seal(Promising(device, {14: future}), b"somebody else's secret", "sha256", [14])
    real.pcr_extend(14, {"sha256": b"\x01" * 32})
    assert real.pcr_read("sha256", [14]) == {14: future}
    return blob


def test_refuses_a_blob_that_was_made_in_another_state(real: Tpm, planted: bytes) -> None:
    with refuses("tpm_device.blob.creation", ProtocolError):
        unseal(real, planted)


def test_refuses_a_blob_that_only_says_that_it_was_made_in_this_state(real: Tpm, planted: bytes) -> None:
    mine = decode_blob(seal(real, SECRET, "sha256", [14]))
    forged = msgspec.structs.replace(decode_blob(planted), creation=mine.creation)
    for blob in (forged, msgspec.structs.replace(forged, ticket=mine.ticket)):
        with pytest.raises(TpmRefused) as caught:
            unseal(real, blob.encode())
        assert caught.value.rc == 0x4E0  # TPM_RC_TICKET of the fourth parameter


def test_a_sealer_opens_what_it_sealed(real: Tpm) -> None:
    real.pcr_extend(14, {"sha256": b"\x01" * 32})
    sealer = TpmSealer(real)
    assert sealer.unseal(sealer.seal(SECRET, "sha256", [14]), "sha256", [14]) == SECRET


def test_a_sealer_seals_to_no_empty_register(tpm: Tpm) -> None:
    """Google Cloud's runtime events are in one bank alone."""
    tpm.pcr_extend(14, {"sha256": b"\x01" * 32})
    with refuses("tpm_device.pcr.unused", ConfigError):
        TpmSealer(tpm).seal(SECRET, "sha384", [14])


def test_a_sealer_opens_no_blob_of_other_registers(real: Tpm) -> None:
    with refuses("tpm_device.blob.registers", ProtocolError):
        TpmSealer(real).unseal(seal(real, SECRET, "sha256", [14]), "sha256", [2, 14])


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


def test_reports_another_refusal_as_it_is(device: TpmDevice) -> None:
    class Refusing:
        def transact(self, command: bytes) -> bytes:
            response = device.transact(command)
            return bytes.fromhex("8001 0000000a 00000101") if command[6:10] == b"\0\0\x01\x5e" else response

    with pytest.raises(TpmRefused) as caught:
        unseal(Tpm(Refusing()), seal(Tpm(device), SECRET, "sha256", [14]))
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
    blob = SealedBlob("sha384", (7, 14), b"private", b"public", b"creation", b"ticket")
    areas = b"\x00\x07private" + b"\x00\x06public" + b"\x00\x08creation" + b"\x00\x06ticket"
    assert blob.encode() == b"DSB2" + b"\x01\x02\x07\x0e" + areas
    assert decode_blob(blob.encode()) == blob


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(MAX_BLOB + 1), "tpm_device.blob.size"),
        (b"", "tpm_device.response.layout"),
        (b"DSB#\x00\x01\x0e" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x02\x01\x0e" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x00\x00" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x00\x01\x18" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x00\x02\x0e\x07" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x00\x02\x07\x07" + bytes(8), "tpm_device.blob.format"),
        (b"DSB2\x00\x01\x0e" + bytes(8) + b"x", "tpm_device.response.layout"),
    ],
)
def test_refuses_a_blob(data: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        unseal(Tpm(Forbidden()), data)
    assert caught.value.code == code


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_blob_or_an_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert decode_blob(b"DSB2" + data).encode() == b"DSB2" + data
