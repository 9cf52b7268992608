"""Root keys are written once, whole, owner-readable, and survive a crash at any write (N-56)."""

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from enclave.kms import key_store
from enclave.kms.key_store import REQUIRED_FILES, SECRET_FILES, KeyMaterial, KeyStore
from shared.errors import StorageError


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


class Crash(BaseException):
    """The power fails: nothing in the program handles this."""


class PowerSupply:
    """Lets `left` disk-changing calls through, then fails at the next, before or after it took effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int, *, after: bool) -> None:
        self.left = left
        self.after = after
        self.failed = False
        for owner, name in (
            (key_store.os, "open"),
            (key_store.os, "fsync"),
            (key_store.os, "link"),
            (key_store.shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self._guarded(getattr(owner, name)))
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", self._guarded(rename))

    def _guarded(self, call: Callable[..., object]) -> Callable[..., object]:
        def guarded(*arguments: object, **options: object) -> object:
            if self.failed:
                raise Crash
            if self.left == 0 and not self.after:
                self.failed = True
                raise Crash
            result = call(*arguments, **options)
            if self.left == 0:
                self.failed = True
                if isinstance(result, int):
                    os.close(result)
                raise Crash
            self.left -= 1
            return result

        return guarded


@pytest.mark.parametrize("moment", ["before", "after"])
def test_n56_restart_converges_from_a_crash_at_every_write(
    moment: str, bootstrap: Callable[[], KeyMaterial], tmp_path: Path
) -> None:
    """Crash at the n-th call for every n: afterwards there are no keys at all, or one complete set."""
    keys = bootstrap()
    committed = 0
    step = 0
    while True:
        directory = tmp_path / f"crash-{step}"
        with pytest.MonkeyPatch.context() as patch:
            power = PowerSupply(patch, step, after=moment == "after")
            with contextlib.suppress(Crash):
                KeyStore(directory).create(keys)
        survivor = KeyStore(directory).load()
        if survivor is not None:
            committed += 1
            assert _secrets(survivor) == _secrets(keys)
        else:
            KeyStore(directory).create(keys)
        again = KeyStore(directory).load()
        assert again is not None
        assert _secrets(again) == _secrets(keys)
        assert sorted(path.name for path in directory.iterdir()) == sorted(
            [*REQUIRED_FILES, "bootstrap-info.json"]
        )
        if not power.failed:
            break
        step += 1
    assert step > 20
    assert 0 < committed < step
