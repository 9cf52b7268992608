"""A bootstrap or an onboarding whose machine died can be done again, and ends with one set of keys (N-56)."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.onboarding import Onboarder
from enclave.kms.source_kms import SourceKms
from enclave.tee.peers import PeerVerifier
from shared.errors import StorageError
from shared.keys.k256 import public_key
from shared.ratls.certificates import spki_der
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json
from tests.enclave.conftest import NOW, Enclave, StandInDialer
from tests.enclave.faulty_disk import Crash, FaultyDisk, Moment
from tests.enclave.kms.conftest import URL
from tests.shared.refusal import refuses

MAX_STEPS = 200


class OnFaultyDisk(KeyStore):
    """A store whose writes fail, and nothing else in this process does."""

    def __init__(self, directory: Path, disk: FaultyDisk) -> None:
        super().__init__(directory)
        self._disk = disk

    def create(self, material: KeyMaterial) -> None:
        with self._disk.working():
            super().create(material)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the machine real syncs: what they are for is simulated."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def _publics(keys: KeyMaterial) -> tuple[bytes, bytes]:
    return spki_der(keys.root_ca_key.public_key()), public_key(keys.k256)


@pytest.mark.parametrize("moment", ["before", "after", "lost"])
def test_n56_a_crashed_bootstrap_can_be_done_again(
    moment: Moment, kms_enclave: Enclave, tmp_path: Path
) -> None:
    def bootstrap(store: KeyStore) -> pb.BootstrapResponse:
        maker = Bootstrapper(
            store=store, random=kms_enclave.nsm.get_random, attestor=kms_enclave.attestor, now=lambda: NOW
        )
        return maker.bootstrap("kms.test", check_self=lambda: None, attest=True)

    for step in range(MAX_STEPS):
        directory = tmp_path / f"{step}"
        disk = FaultyDisk(step, moment)
        record = None
        with suppress(Crash):
            record = bootstrap(OnFaultyDisk(directory, disk))
        restarted = KeyStore(directory)
        if restarted.load() is None:
            assert record is None
            record = bootstrap(restarted)
        with refuses("kms.bootstrapped", StorageError):
            bootstrap(restarted)
        keys = KeyStore(directory).load()
        public = from_json(pb.BootstrapResponse, keys.bootstrap_info)
        assert (public.ca_pubkey, public.k256_pubkey) == _publics(keys)
        assert record is None or record == public
        if not disk.failed:
            break
    assert step > 20


class Repeating:
    """A source that is asked once, and gives the same answer from then on."""

    def __init__(self, source: SourceKms) -> None:
        self._source = source
        self._answer: Any = None

    def root_keys(self, *asked: Any) -> Any:
        if self._answer is None:
            self._answer = self._source.root_keys(*asked)
        return self._answer


def test_n56_a_crashed_onboarding_can_be_done_again(
    onboarder: Callable[..., Onboarder],
    running: StandInDialer,
    verifier: PeerVerifier,
    new_enclave: Enclave,
    keys: KeyMaterial,
    tmp_path: Path,
) -> None:
    source = Repeating(SourceKms(dialer=running, verifier=verifier, attestor=new_enclave.attestor))

    def onboard(store: KeyStore) -> None:
        onboarder(running, store=store, source=source).onboard(URL, "second.kms.test")

    for step in range(MAX_STEPS):
        directory = tmp_path / f"{step}"
        disk = FaultyDisk(step, "lost")
        with suppress(Crash):
            onboard(OnFaultyDisk(directory, disk))
        restarted = KeyStore(directory)
        if restarted.load() is None:
            onboard(restarted)
        with refuses("kms.onboarded", StorageError):
            onboard(restarted)
        assert _publics(KeyStore(directory).load()) == _publics(keys)
        if not disk.failed:
            break
    assert step > 20
