"""Root keys are written once, whole, owner-readable, and survive a crash at any write (N-56)."""

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.tpm import Tpm
from enclave.devices.tpm_seal import TpmSealer
from enclave.kms.custody_tpm import SealedKeys
from enclave.kms.key_store import (
    BOOTSTRAP_MARKERS,
    PUBLIC_FILES,
    REQUIRED_FILES,
    SECRET_FILES,
    KeyMaterial,
    KeyStore,
    PlainKeys,
    RootSecrets,
    SecretForm,
    scalar,
)
from enclave.simulator.sealing_tpm import SealingTpm
from shared.errors import StorageError
from tests.enclave.faulty_disk import Crash, FaultyDisk, Moment
from tests.shared.refusal import refuses

MAX_STEPS = 200
"""No store makes as many calls."""


def _secrets(keys: KeyMaterial) -> tuple[bytes, bytes]:
    return keys.root_keys().ca_scalar, keys.k256


def test_an_empty_directory_has_no_keys(store: KeyStore) -> None:
    assert store.load() is None
    assert not store.bootstrapped()


def test_keys_survive_a_restart(store: KeyStore, bootstrap: Callable[[], KeyMaterial]) -> None:
    assert _secrets(bootstrap()) == _secrets(store.load())


def test_secret_files_are_owner_readable_only(bootstrap: Callable[[], KeyMaterial], tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        bootstrap()
    finally:
        os.umask(old)
    for name in SECRET_FILES:
        assert stat.S_IMODE((tmp_path / "certs" / name).stat().st_mode) == 0o600


def test_n56_refuses_key_files_that_others_can_read(
    store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    bootstrap()
    (tmp_path / "certs" / "root-k256.key").chmod(0o644)
    with pytest.raises(StorageError) as refusal:
        store.load()
    assert refusal.value.code == "kms.keys.permissions"


def test_n56_a_second_bootstrap_changes_no_key(
    store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    first = bootstrap()
    before = {path.name: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    with pytest.raises(StorageError) as refusal:
        bootstrap()
    assert refusal.value.code == "kms.bootstrapped"
    assert refusal.value.message == "KMS has already been bootstrapped"
    with pytest.raises(StorageError) as refusal:
        store.create(first)
    assert refusal.value.code == "kms.bootstrapped"
    assert {path.name: path.read_bytes() for path in (tmp_path / "certs").iterdir()} == before


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_n56_a_missing_file_beside_keys_is_reported_and_never_replaced(
    name: str, store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    bootstrap()
    (tmp_path / "certs" / name).unlink()
    with pytest.raises(StorageError) as refusal:
        store.load()
    assert refusal.value.code == "kms.keys.incomplete"
    assert name in refusal.value.message
    with pytest.raises(StorageError) as refusal:
        bootstrap()
    assert refusal.value.code == "kms.bootstrapped"


def test_refuses_a_file_that_is_no_key(
    store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    bootstrap()
    (tmp_path / "certs" / "root-ca.key").write_bytes(b"not a key")
    with pytest.raises(StorageError) as refusal:
        store.load()
    assert refusal.value.code == "kms.keys.unreadable"


def test_refuses_a_certificate_of_a_version_that_there_is_not(
    store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    der = bootstrap().temp_ca_cert.public_bytes(Encoding.DER)
    older = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
    (tmp_path / "certs" / "tmp-ca.crt").write_text(DER_cert_to_PEM_cert(older))
    with refuses("kms.keys.unreadable", StorageError):
        store.load()


def test_a_committed_set_is_not_placed_over_another_key(
    store: KeyStore, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    bootstrap()
    certs = tmp_path / "certs"
    (certs / ".staged").mkdir()
    (certs / ".staged" / "root-k256.key").write_bytes(bytes(32))
    kept = (certs / "root-k256.key").read_bytes()
    with pytest.raises(StorageError) as refusal:
        store.load()
    assert refusal.value.code == "kms.keys.conflict"
    assert (certs / "root-k256.key").read_bytes() == kept


def test_n56_two_stores_on_one_directory_make_one_set_of_keys(
    bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    """As two processes would: each has a store of its own, and nothing but the directory in common."""
    first = bootstrap()
    other = msgspec.structs.replace(first, k256=bytes(31) + b"\1")
    shared = tmp_path / "shared"
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def create(keys: KeyMaterial) -> None:
        start.wait()
        try:
            KeyStore(shared).create(keys)
            outcomes.append("created")
        except StorageError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=create, args=(keys,)) for keys in [first, other] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["kms.bootstrapped"] * 7
    assert KeyStore(shared).load() is not None


MOMENTS: list[tuple[Moment, int]] = [
    ("before", 0),
    ("after", 0),
    ("lost", 0),
    *(("error", number) for number in (errno.ENOSPC, errno.EIO, errno.EINTR)),
    ("late error", errno.EIO),
]
EVERYWHERE = [
    pytest.param(*moment, id=f"{moment[0]} {errno.errorcode.get(moment[1], '')}") for moment in MOMENTS
]


class Stores:
    """Stores of one form on directories that a test names."""

    def __init__(self, form: SecretForm) -> None:
        self.form = form
        self.files = {*form.names, *PUBLIC_FILES, "bootstrap-info.json"}

    def at(self, directory: Path) -> KeyStore:
        """Return a store of its own, as a new process has it."""
        return KeyStore(directory, self.form)


@pytest.fixture(params=["file", "tpm"])
def stores(request: pytest.FixtureRequest) -> Stores:
    """Each form of the secrets in turn, here with the TPM in process."""
    if request.param == "file":
        return Stores(PlainKeys())
    tpm = Tpm(SealingTpm())
    for register in (0, 2, 14):
        tpm.pcr_extend(register, {"sha256": bytes([register]) * 32})
    return Stores(SealedKeys(TpmSealer(tpm), "sha256", (0, 2, 14)))


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the machine thousands of real syncs: what they are for is simulated."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def first(bootstrap: Callable[[], KeyMaterial]) -> KeyMaterial:
    """The keys that a bootstrap makes."""
    return bootstrap()


@pytest.fixture
def other(first: KeyMaterial) -> KeyMaterial:
    """The keys that a second bootstrap would make."""
    return msgspec.structs.replace(first, k256=bytes(31) + b"\1", bootstrap_info=b"another record")


def _told(keys: KeyMaterial) -> tuple[object, ...]:
    """Return the secrets with the record that was handed out for them."""
    return (*_secrets(keys), scalar(keys.temp_ca_key), keys.bootstrap_info)


def _check_no_secret_is_readable(directory: Path, keys: KeyMaterial) -> None:
    """Check all files below a directory, also those that a crash left: secrets are the owner's alone."""
    parts = [keys.k256, scalar(keys.root_ca_key), scalar(keys.temp_ca_key)]
    parts += [part for pem in (keys.root_ca_pem(), keys.temp_ca_pem()) for part in pem.splitlines()[1:-1]]
    for path in directory.rglob("*"):
        if path.is_file() and any(part in path.read_bytes() for part in parts):
            assert path.name in SECRET_FILES
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(("moment", "number"), EVERYWHERE)
def test_n56_restart_converges_from_a_crash_at_every_write(
    moment: Moment,
    number: int,
    stores: Stores,
    first: KeyMaterial,
    other: KeyMaterial,
    tmp_path: Path,
) -> None:
    """Fail at the n-th call for every n: afterwards there are no keys at all, or those that were told."""
    outcomes = {"none": 0, "kept": 0}
    for step in range(MAX_STEPS):
        directory = tmp_path / f"{step}" / "var" / "certs"
        disk = FaultyDisk(step, moment, number)
        told = False
        with disk.working(), suppress(Crash):
            told = _succeeds(partial(stores.at(directory).create, first))
        _check_no_secret_is_readable(tmp_path / f"{step}", first)
        survivor = stores.at(directory).load()
        outcomes["none" if survivor is None else "kept"] += 1
        if survivor is None:
            assert not told
            stores.at(directory).create(other)
        else:
            with refuses("kms.bootstrapped", StorageError):
                stores.at(directory).create(other)
        again = stores.at(directory).load()
        assert again is not None
        assert _told(again) == _told(other if survivor is None else first)
        assert {path.name for path in directory.iterdir()} == stores.files
        if not disk.failed:
            break
    assert told
    assert min(outcomes.values()) > 5


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(("moment", "number"), EVERYWHERE)
def test_n56_a_crash_while_a_committed_set_is_put_in_place_loses_nothing(
    moment: Moment, number: int, stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    """As above, with the failure in the recovery from the first one."""
    whole = tmp_path / "whole"
    stores.at(whole).create(first)
    for step in range(MAX_STEPS):
        directory = tmp_path / f"{step}"
        shutil.copytree(whole, directory / ".staged")
        disk = FaultyDisk(step, moment, number)
        with disk.working(), suppress(Crash):
            _succeeds(stores.at(directory).load)
        survivor = stores.at(directory).load()
        assert survivor is not None
        assert _told(survivor) == _told(first)
        assert {path.name for path in directory.iterdir()} == stores.files
        if not disk.failed:
            break
    assert step > 10


def _succeeds(action: Callable[[], object]) -> bool:
    """Do it, or fail with the one code that a bad disk has."""
    try:
        action()
    except StorageError as error:
        if error.code != "kms.keys.write":
            raise
        return False
    return True


def test_n56_the_public_record_appears_after_the_keys_are_on_the_disk(
    stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    directory = tmp_path / "traced"
    disk = FaultyDisk(MAX_STEPS, "before")
    with disk.working():
        stores.at(directory).create(first)
    written = [("fsync", f"{directory}/.staging/{name}") for name in stores.form.names]
    linked = [("link", f"{directory}/{name}") for name in stores.form.names]
    record = disk.calls.index(("link", f"{directory}/bootstrap-info.json"))
    before = disk.calls[:record]
    assert {*written, *linked, ("fsync", f"{directory}/.staging")} <= set(before)
    assert before[-1] == ("fsync", str(directory))
    committed = before.index(("rename", f"{directory}/.staged"))
    placed = next(index for index, (name, _) in enumerate(before) if name == "link")
    assert ("fsync", str(directory)) in before[committed:placed]
    staged = disk.calls.index(("open", f"{directory}/.staging/bootstrap-info.json"))
    assert set(written) <= set(disk.calls[:staged])


def test_n56_a_write_that_takes_a_part_is_continued(
    stores: Stores, first: KeyMaterial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    stores.at(tmp_path / "short").create(first)
    assert _told(stores.at(tmp_path / "short").load()) == _told(first)


def test_an_error_before_the_commit_leaves_no_secret_behind(
    stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    directory = tmp_path / "full"
    disk = FaultyDisk(12, "error", errno.ENOSPC)
    with disk.working(), refuses("kms.keys.write", StorageError):
        stores.at(directory).create(first)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["root-ca.crt", "tmp-ca.crt"])
def test_refuses_a_certificate_of_another_key(
    name: str, stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    directory = tmp_path / "mixed"
    stores.at(directory).create(first)
    foreign = {"root-ca.crt": "tmp-ca.crt", "tmp-ca.crt": "root-ca.crt"}[name]
    (directory / name).write_bytes((directory / foreign).read_bytes())
    with refuses("kms.keys.mismatch", StorageError):
        stores.at(directory).load()


@pytest.mark.parametrize("name", BOOTSTRAP_MARKERS)
def test_n56_nothing_is_made_beside_any_file_of_any_custody(
    name: str, stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    directory = tmp_path / "rest"
    directory.mkdir()
    (directory / name).write_bytes(b"")
    assert stores.at(directory).bootstrapped()
    with refuses("kms.bootstrapped", StorageError):
        stores.at(directory).create(first)
    with pytest.raises(StorageError) as refusal:
        stores.at(directory).load()
    assert refusal.value.code in {"kms.keys.incomplete", "kms.custody.other"}
    assert [path.name for path in directory.iterdir()] == [name]


class Unopened(PlainKeys):
    """Another form, which must not get to see anything."""

    names = ("root-keys.sealed",)

    def encode(self, secrets: RootSecrets) -> dict[str, bytes]:
        del secrets
        return {"root-keys.sealed": b"blob"}


def test_n56_keys_of_another_custody_are_neither_used_nor_replaced(
    stores: Stores, first: KeyMaterial, tmp_path: Path
) -> None:
    directory = tmp_path / "other"
    stores.at(directory).create(first)
    wrong = KeyStore(directory, Unopened() if isinstance(stores.form, PlainKeys) else None)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with refuses("kms.custody.other", StorageError):
        wrong.load()
    with refuses("kms.bootstrapped", StorageError):
        wrong.create(first)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
