"""N-74: root keys, app keys and tokens are in no repr, traceback, log line or error of a KMS."""

import base64
import traceback
from collections.abc import Callable, Iterator

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave.kms.audit import AuditLog
from enclave.kms.authorization import Decision
from enclave.kms.config import Core, parse_config
from enclave.kms.key_store import KeyMaterial
from enclave.kms.service import KmsService
from enclave.kms.token_auth import TokenAuth
from shared.errors import ConfigError, PolicyDenied
from shared.keys.app_keys import derive_app_keys
from shared.rpc import kms_pb2 as pb
from tests.enclave.conftest import APP_ID, NOW
from tests.shared.refusal import refuses

CORE = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
TOKEN = "correct-horse-battery-staple"
REQUEST = pb.GetAppKeyRequest(api_version=1)


class _Brim:
    """Where a line of the audit log does not fit any more."""

    def __call__(self, line: str) -> None:
        del line
        raise BrokenPipeError


@pytest.fixture
def keys(bootstrap: Callable[[], KeyMaterial]) -> KeyMaterial:
    return bootstrap()


@pytest.fixture
def service(keys, policy, kms_enclave, anchors) -> Callable[..., KmsService]:
    def make(core: Core = CORE, **changes: object) -> KmsService:
        parts = {
            "core": core,
            "keys": keys,
            "authorizer": policy,
            "own": kms_enclave.evidence(anchors),
            "policy": pb.KmsPolicy(auth_mode="proof"),
            "now": lambda: NOW,
        }
        return KmsService(**parts | changes)

    return make


@pytest.fixture
def secrets(keys) -> tuple[str, ...]:
    """Return every secret of this KMS and of one app, each as it could be printed."""
    released = derive_app_keys(keys.root_keys(), APP_ID)
    scalars = [
        key.private_numbers().private_value.to_bytes(32, "big")
        for key in (keys.root_ca_key, keys.temp_ca_key)
    ]
    raw = [*scalars, keys.k256, released.disk_crypt_key, released.env_crypt_key, released.k256_key]
    return tuple(text for secret in raw for text in _spellings(secret)) + tuple(_bodies(keys.root_ca_key))


def _spellings(secret: bytes) -> Iterator[str]:
    yield secret.hex()
    yield repr(secret)[2:-1]
    yield repr(list(secret))[1:-1]
    yield str(int.from_bytes(secret, "big"))
    yield base64.b64encode(secret).decode()


def _bodies(key: ec.EllipticCurvePrivateKey) -> list[str]:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem.splitlines()[1:-1]


def _shown(secrets: tuple[str, ...], text: str) -> list[str]:
    return [secret for secret in secrets if secret in text]


def _with_locals(error: BaseException) -> str:
    """Return an error, its causes, and the locals of every frame of ours that it passed."""
    shown: list[str] = []
    current: BaseException | None = error
    while current is not None:
        told = traceback.TracebackException.from_exception(current, capture_locals=True)
        shown += [repr(frame.locals) for frame in told.stack if frame.filename != __file__]
        shown += [repr(current), str(current)]
        current = current.__cause__
    return " ".join(shown)


def test_the_check_sees_a_secret(secrets, keys) -> None:
    assert _shown(secrets, repr({"k256": keys.k256}))
    assert _shown(secrets, keys.root_ca_pem().decode())


def test_n74_a_service_and_all_that_it_holds_show_no_key(secrets, service) -> None:
    running = service()
    assert not _shown(secrets, repr(running) + repr(vars(running)))


def test_n74_keys_at_rest_show_no_key(secrets, keys) -> None:
    assert not _shown(
        secrets, f"{keys!r} {keys} {keys.root_keys()!r} {derive_app_keys(keys.root_keys(), APP_ID)!r}"
    )


def test_n74_a_refusal_with_its_locals_shows_no_key(secrets, service, policy, app_enclave, anchors) -> None:
    policy.app = policy.kms = Decision(is_allowed=False, reason="no", gateway_app_id="")
    caller = app_enclave.evidence(anchors)
    calls: list[Callable[[], object]] = [
        lambda: service().get_app_key(REQUEST, caller),
        lambda: service().get_kms_key(pb.GetKmsKeyRequest(), caller),
        lambda: service(msgspec.structs.replace(CORE, enforce_self_authorization=False)).get_app_key(
            REQUEST, caller
        ),
    ]
    for call in calls:
        with pytest.raises(PolicyDenied) as refusal:
            call()
        assert not _shown(secrets, _with_locals(refusal.value))


def test_n74_a_release_that_fails_with_its_keys_derived_shows_none(
    secrets, service, app_enclave, anchors
) -> None:
    """The line of the audit log is written when the keys are there and before they are released."""
    caller = app_enclave.evidence(anchors)
    running = service(audit=AuditLog(_Brim()))
    with pytest.raises(BrokenPipeError) as app:
        running.get_app_key(REQUEST, caller)
    with pytest.raises(BrokenPipeError) as kms:
        running.get_kms_key(pb.GetKmsKeyRequest(), caller)
    shown = _with_locals(app.value) + _with_locals(kms.value)
    assert "'keys': 'AppKeys" in shown  # they were there
    assert not _shown(secrets, shown)


def test_n74_nothing_that_is_released_is_logged(secrets, service, app_enclave, anchors, capsys) -> None:
    caller = app_enclave.evidence(anchors)
    running = service()
    running.get_app_key(REQUEST, caller)
    running.get_kms_key(pb.GetKmsKeyRequest(), caller)
    running.get_temp_ca_cert()
    captured = capsys.readouterr()
    assert captured.out.count("released") == 2
    assert not _shown(secrets, captured.out + captured.err)


def test_n74_a_configuration_shows_no_token() -> None:
    config = parse_config(
        f'[core.admin]\nenabled = true\nauth_token = "{TOKEN}"\n[core.auth_api]\ntype = "dev"'.encode()
    )
    digest = config.core.admin.token_digest({})
    assert TOKEN not in f"{config!r} {config.core!r} {config.core.admin!r}"
    assert TOKEN not in repr(vars(TokenAuth(digest)))


@pytest.mark.parametrize("key", ["core.admin.auth_token_hash", "core.onboard.token_hash"])
def test_n74_a_token_in_the_place_of_its_hash_is_refused_without_being_shown(key: str) -> None:
    table, _, name = key.rpartition(".")

    def load() -> None:
        config = parse_config(
            f'[{table}]\nenabled = true\n{name} = "{TOKEN}"\n[core.auth_api]\ntype = "dev"'.encode()
        )
        config.core.admin.token_digest({})

    with refuses("config.invalid", ConfigError) as refusal:
        load()
    told = [repr(error) for error in (refusal.value, refusal.value.__cause__)]
    assert TOKEN not in repr(told)
