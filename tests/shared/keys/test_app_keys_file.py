"""`.appkeys.json`: upstream's shapes, and nothing of a secret in what is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.keys.app_keys_file import AppKeysFile, KmsProvider, SeedProvider, parse_app_keys
from tests.shared.refusal import refuses

KEY = bytes(range(32))
KMS = KmsProvider(url="https://kms:8000/prpc", pubkey=b"\x30\x59", tmp_ca_key="K", tmp_ca_cert="C")
FILE = AppKeysFile(
    disk_crypt_key=KEY,
    env_crypt_key=KEY,
    k256_key=KEY,
    k256_signature=bytes(65),
    gateway_app_id="any",
    ca_cert="PEM",
    key_provider=KMS,
)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(FILE.to_json()) | changes).encode()


@pytest.mark.parametrize(
    "provider",
    [
        KMS,
        SeedProvider(kind="None", key="PEM"),
        SeedProvider(kind="Local", key="PEM", id=b"\x01"),
        SeedProvider(kind="Tpm", key="PEM", id=b"\x02"),
    ],
)
def test_what_was_written_is_read(provider: KmsProvider | SeedProvider) -> None:
    file = AppKeysFile(
        **{name: getattr(FILE, name) for name in FILE.__struct_fields__} | {"key_provider": provider}
    )
    assert parse_app_keys(file.to_json()) == file


def test_names_the_provider_as_upstream_does() -> None:
    document = json.loads(FILE.to_json())
    assert document["key_provider"] == {
        "Kms": {"url": KMS.url, "pubkey": "3059", "tmp_ca_key": "K", "tmp_ca_cert": "C"}
    }
    assert document["disk_crypt_key"] == KEY.hex()


def test_a_guest_without_a_kms_has_no_env_key_and_no_signature() -> None:
    file = parse_app_keys(changed(env_crypt_key="", k256_signature="", key_provider={"None": {"key": "PEM"}}))
    assert (file.env_crypt_key, file.k256_signature) == (b"", b"")


def test_reads_the_simulators_file_of_upstream(shared_data: Callable[[str], Path]) -> None:
    file = parse_app_keys(shared_data("guest-agent/appkeys.json").read_bytes())
    assert isinstance(file.key_provider, SeedProvider)
    assert (file.key_provider.kind, len(file.k256_key), len(file.k256_signature)) == ("None", 32, 65)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "app_keys.syntax"),
        (b"x" * (64 * 1024 + 1), "app_keys.size"),
        (b"{}", "app_keys.field"),
        (changed(k256_key="ab"), "app_keys.field"),
        (changed(k256_key=7), "app_keys.field"),
        (changed(disk_crypt_key=""), "app_keys.field"),
        (changed(key_provider={"Other": {"key": "PEM"}}), "app_keys.provider"),
        (changed(key_provider={"Kms": {"url": "x"}}), "app_keys.provider"),
        (changed(key_provider={}), "app_keys.provider"),
        (changed(key_provider={"None": {"key": "a"}, "Tpm": {"key": "b"}}), "app_keys.provider"),
    ],
)
def test_refuses_what_is_no_keys_file(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        parse_app_keys(raw)


def test_n74_neither_a_repr_nor_an_error_shows_a_key() -> None:
    assert KEY.hex() not in repr(FILE)
    with refuses("app_keys.field", ConfigError) as caught:
        parse_app_keys(changed(k256_key=KEY.hex() + "zz"))
    assert KEY.hex() not in f"{caught.value!r}{caught.value.__cause__!r}"
    assert caught.value.__cause__ is None
