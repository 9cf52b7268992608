"""The keys of a guest without a KMS are upstream's (spec guest-agent section 3.2)."""

import pytest

from shared.errors import ConfigError
from shared.keys.app_keys_file import SeedProvider, parse_app_keys
from shared.keys.seed_keys import derive_seed_keys
from tests.shared.refusal import refuses


def test_derives_the_specifications_vector() -> None:
    keys = derive_seed_keys(bytes(range(32)))
    assert keys.ca_scalar.hex() == "0a6ae75425993b828ace490021809dcda469d5b531b018a27fdd28cd6d81115e"
    assert keys.disk_crypt_key.hex() == "16271dff935a2b916181f4c8a0a6666de98224ba51437c329171a11dd481a09a"
    assert keys.k256_key.hex() == "091c9c36eb873f1aacde93e91631256e1610ce9940166b45f437d635d76ba95e"


@pytest.mark.parametrize("kind", ["None", "Tpm", "Local"])
def test_its_file_can_be_read_again(kind: str) -> None:
    file = parse_app_keys(derive_seed_keys(bytes(range(32))).to_file(kind, "pem").to_json())
    assert isinstance(file.key_provider, SeedProvider)
    assert (file.key_provider.kind, file.env_crypt_key, file.k256_signature) == (kind, b"", b"")


def test_no_repr_shows_a_key() -> None:
    keys = derive_seed_keys(bytes(range(32)))
    assert keys.k256_key.hex() not in repr(keys)
    assert str(keys.k256_key) not in repr(keys)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_refuses_a_seed_of_another_length(length: int) -> None:
    with refuses("keys.seed.length", ConfigError):
        derive_seed_keys(bytes(length))
