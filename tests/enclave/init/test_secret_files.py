"""The files that a booted enclave's app finds: kept for root, or not at all."""

from pathlib import Path

import pytest

from enclave.dstack_util.get_keys import KeyBundle
from enclave.init.secret_files import DIRECTORY, write_secret_files
from enclave.platform import Platform
from shared.errors import StorageError
from shared.keys.app_keys import AppKeys
from shared.keys.app_keys_file import AppKeysFile, SeedProvider
from shared.keys.env_encryption import DecryptedEnv
from tests.shared.refusal import refuses

SECRET = bytes(range(32))
KEYS = AppKeys(disk_crypt_key=SECRET, env_crypt_key=SECRET, k256_key=SECRET, k256_signature=bytes(65))
BUNDLE = KeyBundle(
    keys=KEYS,
    os_image_hash=bytes(32),
    k256_root=b"\x02" * 33,
    ca_cert="",
    gateway_app_id="",
    kms_url="https://kms.test/prpc",
    temp_ca_key="",
    temp_ca_cert="",
)


def test_n74_files_that_cannot_be_written_stop_the_boot_and_show_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppKeysFile(
        disk_crypt_key=SECRET,
        env_crypt_key=SECRET,
        k256_key=SECRET,
        k256_signature=bytes(65),
        gateway_app_id="",
        ca_cert="",
        key_provider=SeedProvider(kind="None", key=""),
    )
    monkeypatch.setattr(KeyBundle, "to_file", lambda _self: file)
    platform = Platform(image=tmp_path, writable=tmp_path, tee=None)  # type: ignore[arg-type]  # asks no guest
    directory = platform.writable_path(DIRECTORY)
    directory.parent.mkdir(parents=True)
    directory.write_text("in the way")
    with refuses("init.secrets", StorageError) as caught:
        write_secret_files(platform, BUNDLE, DecryptedEnv(values={"TOKEN": SECRET.hex()}))
    assert SECRET.hex() not in f"{caught.value!r}{caught.value.__cause__!r}"
