"""A seed that only the same machine in the same state gets back (spec deploy section 4, `tpm`)."""

from pathlib import Path

import pytest

from enclave.dstack_util.guest import BootingTee
from enclave.dstack_util.tpm_seed import SEED_INDEX, tpm_seed
from shared.errors import ConfigError, DstackError, ProtocolError, StorageError, UnavailableError
from tests.enclave.gcp import Machines
from tests.shared.refusal import refuses


@pytest.fixture
def tee(gcp: Machines) -> BootingTee:
    found = gcp.start().platform.tee
    assert isinstance(found, BootingTee)
    return found


def test_gives_the_same_seed_at_every_boot(tee: BootingTee) -> None:
    first = tpm_seed(tee)
    assert (len(first), tpm_seed(tee)) == (32, first)


def test_gives_nothing_once_something_else_is_recorded_and_keeps_the_seed(tee: BootingTee) -> None:
    tpm_seed(tee)
    kept = tee.nonvolatile().read(SEED_INDEX)
    tee.event_log().emit("other", b"")
    with refuses("tpm_device.sealed", UnavailableError):
        tpm_seed(tee)
    assert tee.nonvolatile().read(SEED_INDEX) == kept


def test_makes_a_seed_where_a_crash_left_an_empty_index(tee: BootingTee, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        storage = type(tee.nonvolatile())

        def crash(*_arguments: object, **_options: object) -> None:
            raise UnavailableError("test.crash", "crash")

        patched.setattr(storage, "write", crash)
        with pytest.raises(DstackError):
            tpm_seed(tee)
    assert tpm_seed(tee) == tpm_seed(tee)


def test_refuses_an_index_of_another_make(tee: BootingTee) -> None:
    storage = tee.nonvolatile()
    storage.define(SEED_INDEX, 8, 1 << 1 | 1 << 17)
    with refuses("setup.tpm_seed", StorageError):
        tpm_seed(tee)


def test_refuses_a_blob_that_was_put_in_its_place(tee: BootingTee) -> None:
    tpm_seed(tee)
    tee.nonvolatile().write(SEED_INDEX, b"\0\x08" + b"garbage!" + bytes(1014))
    with pytest.raises(ProtocolError):
        tpm_seed(tee)


def test_refuses_a_length_that_no_blob_has(tee: BootingTee) -> None:
    tpm_seed(tee)
    tee.nonvolatile().write(SEED_INDEX, b"\xff" * 1024)
    with refuses("setup.tpm_seed", StorageError):
        tpm_seed(tee)


def test_a_machine_without_a_tpm_has_no_seed(tee: BootingTee, monkeypatch, tmp_path: Path) -> None:
    del tmp_path
    monkeypatch.setattr(tee, "sealer", lambda: None)
    with refuses("setup.tpm", ConfigError):
        tpm_seed(tee)
