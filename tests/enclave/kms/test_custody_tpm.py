"""Root keys sealed under a TPM: what opens them, and what the operator is told where nothing does."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.devices.tpm_seal import TpmSealer, seal
from enclave.kms.custody_tpm import SealedKeys
from enclave.kms.key_store import SECRET_FILES, KeyMaterial, KeyStore
from enclave.simulator.sealing_tpm import SealingTpm
from enclave.simulator.swtpm import Swtpm, swtpm_installed
from shared.errors import ProtocolError, StorageError, UnavailableError
from tests.shared.refusal import refuses

PCRS = (0, 2, 14)


def boot(device: TpmDevice) -> Tpm:
    """Measure one image and one app."""
    tpm = Tpm(device)
    for register in PCRS:
        tpm.pcr_extend(register, {"sha256": bytes([register]) * 32})
    return tpm


@pytest.fixture(params=["software", "swtpm"])
def tpm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tpm]:
    """Each TPM that seals, in turn, after a boot."""
    if request.param == "software":
        yield boot(SealingTpm())
        return
    if not swtpm_installed():
        pytest.skip("swtpm is not installed: install the package swtpm")
    with Swtpm(tmp_path / "swtpm") as device:
        yield boot(device)


def sealed_store(directory: Path, tpm: Tpm, pcrs: tuple[int, ...] = PCRS) -> KeyStore:
    return KeyStore(directory, SealedKeys(TpmSealer(tpm), "sha256", pcrs))


@pytest.fixture
def certs(tmp_path: Path, tpm: Tpm, keys: KeyMaterial) -> Path:
    """The directory of a KMS that was bootstrapped in this state."""
    directory = tmp_path / "sealed"
    sealed_store(directory, tpm).create(keys)
    return directory


def test_gives_back_what_it_sealed(certs: Path, tpm: Tpm, keys: KeyMaterial) -> None:
    loaded = sealed_store(certs, tpm).load()
    assert loaded.root_keys() == keys.root_keys()
    assert loaded.temp_ca_pem() == keys.temp_ca_pem()
    assert (loaded.domain, loaded.bootstrap_info) == (keys.domain, keys.bootstrap_info)


def test_no_secret_is_on_the_disk(certs: Path, keys: KeyMaterial) -> None:
    names = {path.name for path in certs.iterdir()}
    assert "root-keys.sealed" in names
    assert not names & set(SECRET_FILES)
    scalars = [
        key.private_numbers().private_value.to_bytes(32, "big")
        for key in (keys.root_ca_key, keys.temp_ca_key)
    ]
    written = b"".join(path.read_bytes() for path in certs.iterdir())
    assert not [
        secret for secret in (*scalars, keys.k256) if secret in written or secret.hex().encode() in written
    ]
    assert b"PRIVATE" not in written


@pytest.mark.parametrize("register", PCRS)
def test_n56_stays_closed_to_another_image_or_app(certs: Path, tpm: Tpm, register: int) -> None:
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    tpm.pcr_extend(register, {"sha256": bytes(32)})
    store = sealed_store(certs, tpm)
    with refuses("kms.custody.sealed", StorageError) as refusal:
        store.load()
    assert "onboard it from a running KMS" in refusal.value.message
    assert store.bootstrapped()
    assert {path.name: path.read_bytes() for path in certs.iterdir()} == before


def test_n56_stays_closed_on_another_machine(certs: Path) -> None:
    with refuses("kms.custody.foreign", StorageError) as refusal:
        sealed_store(certs, boot(SealingTpm())).load()
    assert "onboard it from a running KMS" in refusal.value.message


def test_n56_stays_closed_on_another_real_tpm(tmp_path: Path, keys: KeyMaterial) -> None:
    if not swtpm_installed():
        pytest.skip("swtpm is not installed: install the package swtpm")
    with Swtpm(tmp_path / "one") as one, Swtpm(tmp_path / "two") as two:
        sealed_store(tmp_path / "sealed", boot(one)).create(keys)
        with refuses("kms.custody.foreign", StorageError):
            sealed_store(tmp_path / "sealed", boot(two)).load()


def test_opens_after_a_reboot_into_the_same_state(tmp_path: Path, keys: KeyMaterial) -> None:
    if not swtpm_installed():
        pytest.skip("swtpm is not installed: install the package swtpm")
    with Swtpm(tmp_path / "kept") as device:
        sealed_store(tmp_path / "sealed", boot(device)).create(keys)
    with Swtpm(tmp_path / "kept") as device:
        with refuses("kms.custody.sealed", StorageError):
            sealed_store(tmp_path / "sealed", Tpm(device)).load()
        assert sealed_store(tmp_path / "sealed", boot(device)).load().root_keys() == keys.root_keys()


def test_n56_keys_that_another_image_left_there_are_not_used(
    certs: Path, tpm: Tpm, keys: KeyMaterial
) -> None:
    """Another image on this machine knows our registers' values, and can seal keys of its own to them."""

    class Foreseeing(Tpm):
        def pcr_read(self, algorithm: str, indices: Sequence[int]) -> dict[int, bytes]:
            read = super().pcr_read(algorithm, indices)
            return read | {14: hashlib.sha256(read[14] + bytes(32)).digest()}

    directory = certs.parent / "planted"
    sealer = TpmSealer(tpm)
    planted = seal(Foreseeing(tpm._device), bytes(96), "sha256", PCRS)
    tpm.pcr_extend(14, {"sha256": bytes(32)})
    sealed_store(directory, tpm).create(keys)
    (directory / "root-keys.sealed").write_bytes(planted)
    with refuses("tpm_device.blob.creation", ProtocolError):
        sealer.unseal(planted, "sha256", PCRS)
    with refuses("kms.keys.unreadable", StorageError):
        sealed_store(directory, tpm).load()


def test_n56_a_blob_of_other_registers_is_not_used(certs: Path, tpm: Tpm) -> None:
    (certs / "root-keys.sealed").write_bytes(seal(tpm, bytes(96), "sha256", [2]))
    with refuses("kms.keys.unreadable", StorageError):
        sealed_store(certs, tpm).load()


@pytest.mark.parametrize("blob", [b"", b"DSB2", bytes(2000)])
def test_refuses_a_file_that_is_no_blob(certs: Path, tpm: Tpm, blob: bytes) -> None:
    (certs / "root-keys.sealed").write_bytes(blob)
    with refuses("kms.keys.unreadable", StorageError):
        sealed_store(certs, tpm).load()


def test_refuses_a_sealed_secret_of_another_length(certs: Path, tpm: Tpm) -> None:
    (certs / "root-keys.sealed").write_bytes(seal(tpm, bytes(95), "sha256", PCRS))
    with refuses("kms.keys.unreadable", StorageError):
        sealed_store(certs, tpm).load()


class Scripted:
    """A sealer of fixed answers."""

    def __init__(self, answer: bytes | UnavailableError) -> None:
        self._answer = answer

    def seal(self, secret: bytes, bank: str, registers: Sequence[int]) -> bytes:
        del secret, bank, registers
        return b"blob"

    def unseal(self, blob: bytes, bank: str, registers: Sequence[int]) -> bytes:
        del blob, bank, registers
        if isinstance(self._answer, UnavailableError):
            raise self._answer
        return self._answer


def test_a_tpm_that_is_busy_is_no_reason_to_give_up_the_keys(certs: Path) -> None:
    busy = UnavailableError("tpm_device.busy", "tpm did not run Load: busy, retry (0x922)")
    with refuses("tpm_device.busy", UnavailableError):
        KeyStore(certs, SealedKeys(Scripted(busy), "sha256", PCRS)).load()


def test_n56_keys_that_would_not_come_back_are_not_kept(tmp_path: Path, keys: KeyMaterial) -> None:
    store = KeyStore(tmp_path / "lost", SealedKeys(Scripted(bytes(96)), "sha256", PCRS))
    with refuses("kms.custody.seal", StorageError):
        store.create(keys)
    assert not store.bootstrapped()
