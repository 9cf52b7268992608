import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError
from shared.keys import app_keys, k256
from shared.keys.kdf import P256_ORDER, derive_dh_secret

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
INPUTS = VECTORS["inputs"]
ROOT = app_keys.RootKeys(
    bytes.fromhex(INPUTS["root_ca_p256_scalar"]), bytes.fromhex(INPUTS["root_k256_scalar"])
)
ROOT_PUBLIC = bytes.fromhex(INPUTS["root_k256_pubkey_compressed"])
APP_ID = bytes.fromhex(INPUTS["app_id"])
INSTANCE_ID = bytes.fromhex(INPUTS["instance_id"])
TIMESTAMP = INPUTS["timestamp"]
ENV_PUBLIC = bytes.fromhex(VECTORS["env"]["x25519_public_key"])
ENV_V1 = bytes.fromhex(VECTORS["env"]["signature_v1"])
ENV_LEGACY = bytes.fromhex(VECTORS["env"]["signature"])


def test_reproduces_the_disk_key_of_an_instance() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID)
    assert keys.disk_crypt_key.hex() == VECTORS["disk"]["disk_crypt_key"]


def test_reproduces_the_disk_key_without_an_instance() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID)
    assert keys.disk_crypt_key.hex() == VECTORS["disk"]["disk_crypt_key_empty_instance_id"]


def test_reproduces_the_env_key_unclamped() -> None:
    assert app_keys.derive_app_keys(ROOT, APP_ID).env_crypt_key.hex() == VECTORS["env"]["env_crypt_key"]


def test_reproduces_the_env_public_key() -> None:
    assert app_keys.env_public_key(app_keys.env_crypt_key(ROOT, APP_ID)) == ENV_PUBLIC


def test_reproduces_the_app_k256_key_and_its_signature() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID)
    assert keys.k256_key.hex() == VECTORS["k256"]["app_k256_key"]
    assert keys.k256_signature.hex() == VECTORS["k256"]["k256_signature"]
    assert k256.public_key(keys.k256_key).hex() == VECTORS["k256"]["app_k256_pubkey_compressed"]


def test_epoch_0_is_upstreams_and_every_other_has_keys_of_its_own() -> None:
    epochs = [app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID, epoch=epoch) for epoch in (0, 1, 2)]
    assert epochs[0] == app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID)
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
        assert len({getattr(keys, name) for keys in epochs}) == len(epochs)
    app_keys.verify_issued_key(
        APP_ID, k256.public_key(epochs[2].k256_key), epochs[2].k256_signature, ROOT_PUBLIC
    )


def test_the_key_of_an_epoch_is_derived_as_documented() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID, epoch=7)
    context = (APP_ID, INSTANCE_ID, b"app-disk-crypt-key", b":epoch:", b"\0\0\0\x07")
    assert keys.disk_crypt_key == derive_dh_secret(ROOT.ca_scalar, context)


@pytest.mark.parametrize("epoch", [-1, 1 << 32])
def test_refuses_an_epoch_that_is_no_number_of_32_bits(epoch: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        app_keys.derive_app_keys(ROOT, APP_ID, epoch=epoch)
    assert caught.value.code == "keys.epoch"


def test_n38_the_env_key_of_one_epoch_is_none_of_another() -> None:
    public = app_keys.env_public_key(app_keys.env_crypt_key(ROOT, APP_ID, epoch=2))
    legacy, v1 = app_keys.sign_env_public_key(ROOT.signing_key, APP_ID, public, TIMESTAMP, epoch=2)
    assert legacy == b""

    def verify(timestamp: int | None, epoch: int) -> bytes:
        return app_keys.verify_env_public_key(
            APP_ID, public, v1, timestamp=timestamp, now=TIMESTAMP, trusted=[ROOT_PUBLIC], epoch=epoch
        )

    assert verify(TIMESTAMP, 2) == ROOT_PUBLIC
    for timestamp, epoch, code in (
        (TIMESTAMP, 1, "keys.env.signer"),
        (TIMESTAMP, 0, "keys.env.signer"),
        (None, 2, "keys.env.epoch"),
    ):
        with pytest.raises(InvalidEvidence) as caught:
            verify(timestamp, epoch)
        assert caught.value.code == code


def test_reproduces_the_app_ca_scalar() -> None:
    assert app_keys.app_ca_scalar(ROOT, APP_ID).hex() == VECTORS["app_ca"]["derived_p256_scalar"]


def test_reproduces_both_env_signatures() -> None:
    legacy, v1 = app_keys.sign_env_public_key(ROOT.signing_key, APP_ID, ENV_PUBLIC, TIMESTAMP)
    assert (legacy, v1) == (ENV_LEGACY, ENV_V1)


def test_reproduces_the_env_signatures_of_another_key() -> None:
    vector = json.loads((Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text())
    vector = vector["env_pubkey_signature"]["computed"]
    legacy, v1 = app_keys.sign_env_public_key(
        k256.SigningKey(bytes.fromhex(vector["signing_key"])),
        bytes.fromhex(vector["app_id"]),
        bytes.fromhex(vector["public_key"]),
        vector["timestamp"],
    )
    assert (legacy.hex(), v1.hex()) == (vector["signature_legacy"], vector["signature_v1"])


def test_verifies_the_key_that_upstream_issued() -> None:
    vector = VECTORS["upstream_k256_chain"]
    app_keys.verify_issued_key(
        *(bytes.fromhex(vector[name]) for name in ("app_id", "app_pubkey", "signature", "root_pubkey"))
    )


def test_names_the_root_that_issued_upstreams_key() -> None:
    vector = VECTORS["upstream_k256_chain"]
    issued = (bytes.fromhex(vector[name]) for name in ("app_id", "app_pubkey", "signature"))
    assert app_keys.issuer_of_key(*issued).hex() == vector["root_pubkey"]


def test_another_apps_id_names_another_issuer() -> None:
    """Recovery finds some key for any message: whoever asks must compare it with one that it trusts."""
    vector = VECTORS["upstream_k256_chain"]
    issued = (bytes.fromhex(vector[name]) for name in ("app_pubkey", "signature"))
    assert app_keys.issuer_of_key(APP_ID, *issued).hex() != vector["root_pubkey"]


@pytest.mark.parametrize(
    ("app_id", "app_pubkey", "signature", "kind", "code"),
    [
        (19, 33, 65, ProtocolError, "keys.app_id.length"),
        (20, 32, 65, ProtocolError, "keys.issued.length"),
        (20, 33, 64, InvalidEvidence, "keys.signature.length"),
        (20, 33, 65, InvalidEvidence, "keys.signature.invalid"),
    ],
)
def test_names_no_issuer_for_what_is_not_issued(
    app_id: int, app_pubkey: int, signature: int, kind: type[DstackError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        app_keys.issuer_of_key(bytes(app_id), bytes(app_pubkey), bytes(signature))
    assert caught.value.code == code


def test_verifies_the_simulator_keys_of_upstream(shared_data: Callable[[str], Path]) -> None:
    keys = json.loads(shared_data("kms/simulator-appkeys.json").read_text())
    vector = VECTORS["upstream_k256_chain"]
    app_keys.verify_issued_key(
        bytes.fromhex(vector["app_id"]),
        k256.public_key(bytes.fromhex(keys["k256_key"])),
        bytes.fromhex(keys["k256_signature"]),
        bytes.fromhex(vector["root_pubkey"]),
    )


def test_verifies_the_legacy_env_signature_of_upstream() -> None:
    vector = VECTORS["upstream_env_pubkey_signature"]
    signer = bytes.fromhex(vector["signer_compressed"])
    found = app_keys.verify_env_public_key(
        bytes.fromhex(vector["app_id"]),
        bytes.fromhex(vector["public_key"]),
        bytes.fromhex(vector["signature"]),
        timestamp=None,
        now=TIMESTAMP,
        trusted=[signer],
    )
    assert found == signer


def test_refuses_a_key_issued_by_another_root() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID)
    with pytest.raises(InvalidEvidence) as caught:
        app_keys.verify_issued_key(
            APP_ID, k256.public_key(keys.k256_key), keys.k256_signature, k256.public_key(keys.k256_key)
        )
    assert caught.value.code == "keys.issued.signer"


def test_refuses_a_key_issued_for_another_app() -> None:
    keys = app_keys.derive_app_keys(ROOT, APP_ID)
    with pytest.raises(InvalidEvidence) as caught:
        app_keys.verify_issued_key(
            bytes(20), k256.public_key(keys.k256_key), keys.k256_signature, ROOT_PUBLIC
        )
    assert caught.value.code == "keys.issued.signer"


def test_refuses_an_issued_key_of_another_length() -> None:
    with pytest.raises(ProtocolError) as caught:
        app_keys.verify_issued_key(APP_ID, bytes(65), bytes(65), ROOT_PUBLIC)
    assert caught.value.code == "keys.issued.length"


@pytest.mark.parametrize("age", [-60, 0, 300])
def test_takes_env_signatures_within_the_age(age: int) -> None:
    assert _verify_env(now=TIMESTAMP + age) == ROOT_PUBLIC


@pytest.mark.parametrize("age", [-61, 301])
def test_refuses_stale_and_early_env_signatures(age: int) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        _verify_env(now=TIMESTAMP + age)
    assert caught.value.code == "keys.env.stale"


def test_refuses_an_env_signature_moved_to_another_time() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        _verify_env(timestamp=TIMESTAMP + 1)
    assert caught.value.code == "keys.env.signer"


def test_refuses_a_legacy_signature_in_place_of_v1() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        _verify_env(signature=ENV_LEGACY)
    assert caught.value.code == "keys.env.signer"


def test_refuses_every_env_signer_when_none_is_trusted() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        _verify_env(trusted=())
    assert caught.value.code == "keys.env.signer"


@pytest.mark.parametrize("length", [0, 19, 21, 40])
def test_n60_refuses_app_ids_of_another_length(length: int) -> None:
    for use in (app_keys.derive_app_keys, app_keys.app_ca_scalar, app_keys.env_crypt_key):
        with pytest.raises(ProtocolError) as caught:
            use(ROOT, bytes(length))
        assert caught.value.code == "keys.app_id.length"


@pytest.mark.parametrize("length", [1, 19, 21])
def test_n60_refuses_instance_ids_of_another_length(length: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        app_keys.derive_app_keys(ROOT, APP_ID, bytes(length))
    assert caught.value.code == "keys.instance_id.length"


def test_refuses_env_public_keys_of_another_length() -> None:
    with pytest.raises(ProtocolError) as caught:
        app_keys.sign_env_public_key(ROOT.signing_key, APP_ID, bytes(31), TIMESTAMP)
    assert caught.value.code == "keys.env.length"


def test_refuses_env_private_keys_of_another_length() -> None:
    with pytest.raises(ConfigError) as caught:
        app_keys.env_public_key(bytes(31))
    assert caught.value.code == "keys.env.length"


@pytest.mark.parametrize("timestamp", [-1, 1 << 64])
def test_refuses_timestamps_beyond_64_bits(timestamp: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        app_keys.sign_env_public_key(ROOT.signing_key, APP_ID, ENV_PUBLIC, timestamp)
    assert caught.value.code == "keys.env.timestamp"


@pytest.mark.parametrize("bad", [bytes(32), P256_ORDER.to_bytes(32), b"\1" * 31])
def test_refuses_a_root_ca_key_that_is_no_scalar(bad: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        app_keys.RootKeys(bad, ROOT.k256)
    assert caught.value.code == "keys.root.p256"


@pytest.mark.parametrize("bad", [bytes(32), k256.ORDER.to_bytes(32), b"\1" * 33])
def test_refuses_a_root_k256_key_that_is_no_scalar(bad: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        app_keys.RootKeys(ROOT.ca_scalar, bad)
    assert caught.value.code == "keys.root.k256"


@pytest.mark.parametrize("show", [repr, str, "{}".format, pretty_repr])
def test_n74_key_structs_show_no_secret(show: Callable[[object], str]) -> None:
    for keys in (ROOT, app_keys.derive_app_keys(ROOT, APP_ID)):
        text = show(keys)
        for name in keys.__struct_fields__:
            secret: bytes = getattr(keys, name)
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def _verify_env(
    *,
    now: int = TIMESTAMP,
    timestamp: int = TIMESTAMP,
    signature: bytes = ENV_V1,
    trusted: tuple[bytes, ...] = (ROOT_PUBLIC,),
) -> bytes:
    return app_keys.verify_env_public_key(
        APP_ID, ENV_PUBLIC, signature, timestamp=timestamp, now=now, trusted=trusted
    )
