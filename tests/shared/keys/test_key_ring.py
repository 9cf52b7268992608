"""A path is for one algorithm, unless the caller says otherwise."""

import pytest

from shared.errors import ConfigError
from shared.keys.guest_keys import AppKey
from shared.keys.key_ring import KeyRing
from tests.shared.refusal import refuses

APP = AppKey(bytes([9]) * 32, b"")


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing(APP.derive)


def test_gives_the_key_of_a_path(ring: KeyRing) -> None:
    assert ring.get_key("p", "x", "ed25519") == APP.derive("p", "x", "ed25519")


@pytest.mark.parametrize(
    ("first", "second"), [("ed25519", "secp256k1"), ("", "ed25519"), ("k256", "ed25519")]
)
def test_n61_refuses_one_path_for_two_algorithms(first: str, second: str, ring: KeyRing) -> None:
    ring.get_key("p", algorithm=first)
    with refuses("key_ring.shared_path", ConfigError):
        ring.get_key("p", algorithm=second)


def test_n61_a_caller_may_insist_on_one_secret_for_two_algorithms(ring: KeyRing) -> None:
    secret = ring.get_key("p", algorithm="ed25519").key
    assert ring.get_key("p", algorithm="secp256k1", allow_shared_path=True).key == secret


def test_n61_an_alias_is_the_same_algorithm(ring: KeyRing) -> None:
    assert ring.get_key("p", algorithm="k256") == ring.get_key("p", algorithm="secp256k1")
