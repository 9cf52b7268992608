import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import ConfigError
from shared.measurement.mr_config import (
    MAX_DOCUMENT_BYTES,
    MAX_INIT_SCRIPTS,
    MAX_PROVIDER_BYTES,
    BootValues,
    KeyProvider,
    KeyProviderKind,
    MrConfigDocument,
    check_mr_config,
    encode_mr_config,
    mr_config_hash_v3,
    mr_config_id_v1,
    mr_config_id_v2,
    mr_config_id_v3,
    parse_key_provider,
    parse_mr_config,
)
from tests.shared.refusal import refuses

COMPOSE, APP, KEY = b"\x22" * 32, b"\x11" * 20, b"\x33" * 32
KMS = KeyProvider(KeyProviderKind.KMS, KEY)
BOOT = BootValues(
    compose_hash=COMPOSE,
    app_id=APP,
    key_provider=KMS,
    instance_id=b"\x44" * 20,
    gpu_policy_hash=b"\x55" * 32,
    init_script_hashes=(b"\x66" * 32,),
)
FULL = MrConfigDocument(
    compose_hash=COMPOSE,
    key_provider=KeyProviderKind.KMS,
    key_provider_id=KEY,
    app_id=APP,
    instance_id=b"\x44" * 20,
    gpu_policy_hash=b"\x55" * 32,
)
UPSTREAM_TEXT = (
    f'{{"app_id":"{"11" * 20}","compose_hash":"{"22" * 32}","gpu_policy_hash":"{"55" * 32}",'
    f'"instance_id":"{"44" * 20}","key_provider":"kms","key_provider_id":"{"33" * 32}","version":3}}'
).encode()
MINIMAL_TEXT = f'{{"compose_hash":"{"22" * 32}","key_provider":"none","version":3}}'.encode()


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(UPSTREAM_TEXT), **changes}).encode()


def test_v1_is_the_compose_hash() -> None:
    assert mr_config_id_v1(COMPOSE).hex() == "01" + "22" * 32 + "00" * 15


@pytest.mark.parametrize(
    ("provider", "digest"),
    [
        (KMS, "7f2ca741da9d356026ab20ca640abf06198829a128817b091bbc9aec1ed97b60"),
        (
            KeyProvider(KeyProviderKind.LOCAL, KEY),
            "57edb6ccd079b0a63e4c612e4ac84c0ad905a481f0c8619dccdc3de87882b5ca",
        ),
        (
            KeyProvider(KeyProviderKind.NONE),
            "2b90c730130d4ba9f7669253e5a0fb289b5688914f8e1f81efdf97e6d1142a81",
        ),
        (
            KeyProvider(KeyProviderKind.TPM),
            "d728d791f15fa14f415b0d71c524ec1b0816321ce9c5707e911d55f84eeb4d17",
        ),
    ],
)
def test_v2_is_the_specs_vector(provider: KeyProvider, digest: str) -> None:
    assert mr_config_id_v2(COMPOSE, APP, provider).hex() == "02" + digest + "00" * 15


def test_v3_is_the_specs_vector() -> None:
    digest = "90e5cffa571b22c2ca846872d6fb7b071aa1346f1a1f87f72869c47b39d94099"
    assert mr_config_hash_v3(UPSTREAM_TEXT).hex() == digest
    assert mr_config_id_v3(UPSTREAM_TEXT).hex() == "03" + digest + "00" * 15
    minimal = "03125d0e105e53a39d1d71fff182fc173612a5b9e42c18f78f1d2fd272d35ae649" + "00" * 15
    assert mr_config_id_v3(MINIMAL_TEXT).hex() == minimal


def test_reproduces_every_vector_of_the_data(shared_data: Callable[[str], Path]) -> None:
    for vector in json.loads(shared_data("measurement/vectors.json").read_text()):
        given = vector["input"]
        match vector["name"]:
            case "mr_config V1":
                made = mr_config_id_v1(bytes.fromhex(given["compose_hash"]))
            case "mr_config V2":
                provider = KeyProvider(
                    KeyProviderKind(given["key_provider"]), bytes.fromhex(given["key_provider_id"])
                )
                made = mr_config_id_v2(
                    bytes.fromhex(given["compose_hash"]), bytes.fromhex(given["app_id"]), provider
                )
            case "mr_config V3":
                made = mr_config_id_v3(given["document"].encode())
            case _:
                continue
        assert made.hex() == vector["output"]


def test_writes_the_canonical_document() -> None:
    assert encode_mr_config(FULL) == UPSTREAM_TEXT
    minimal = MrConfigDocument(compose_hash=COMPOSE, key_provider=KeyProviderKind.NONE, key_provider_id=b"")
    assert encode_mr_config(minimal) == MINIMAL_TEXT


@pytest.mark.parametrize("scripts", [None, (), (b"\x66" * 32, b"\x77" * 32)])
def test_reads_back_what_it_writes(scripts: tuple[bytes, ...] | None) -> None:
    document = msgspec.structs.replace(FULL, init_script_hashes=scripts)
    assert parse_mr_config(encode_mr_config(document)) == document


def test_a_document_without_a_version_is_version_3() -> None:
    text = json.dumps({"compose_hash": "22" * 32, "key_provider": "none"}).encode()
    assert parse_mr_config(text).compose_hash == COMPOSE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b" " * (MAX_DOCUMENT_BYTES + 1), "size"),
        (b"{", "syntax"),
        (b"\xff", "syntax"),
        (b'{"version":3,"version":3}', "duplicate_key"),
        (b"[[[]]]", "depth"),
        (b"[]", "type"),
        (changed(note=1), "unknown"),
        (changed(version=2), "version"),
        (changed(version=True), "version"),
        (changed(version="3"), "version"),
        (changed(key_provider="local-sgx"), "field"),
        (changed(key_provider=[]), "field"),
        (b'{"key_provider":"none"}', "field"),
        (changed(compose_hash="22" * 31), "field"),
        (changed(compose_hash="0x" + "22" * 31), "field"),
        (changed(app_id=None), "field"),
        (changed(app_id=""), "field"),
        (changed(app_id="zz" * 20), "field"),
        (changed(key_provider_id=7), "field"),
        (changed(init_script_hashes="66" * 32), "field"),
        (changed(init_script_hashes=["66"]), "field"),
        (changed(init_script_hashes=["66" * 32] * (MAX_INIT_SCRIPTS + 1)), "field"),
    ],
)
def test_n05_refuses_a_document_of_another_shape(text: bytes, code: str) -> None:
    with refuses(f"mr_config.document.{code}"):
        parse_mr_config(text)


@pytest.mark.parametrize(
    ("payload", "provider"),
    [
        (b"", None),
        (b'{"name":"none","id":""}', KeyProvider(KeyProviderKind.NONE)),
        (b'{"name":"tpm","id":""}', KeyProvider(KeyProviderKind.TPM)),
        (b'{"name":"local-sgx","id":"3333"}', KeyProvider(KeyProviderKind.LOCAL, b"33")),
        (b'{"id":"' + b"33" * 32 + b'","name":"kms"}', KMS),
    ],
)
def test_reads_the_key_provider_event(payload: bytes, provider: KeyProvider | None) -> None:
    assert parse_key_provider(payload) == provider


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b" " * (MAX_PROVIDER_BYTES + 1), "size"),
        (b"kms", "syntax"),
        (b'{"id":"","id":"","name":"kms"}', "duplicate_key"),
        (b"[[[]]]", "depth"),
        (b"[]", "type"),
        (b"{}", "field"),
        (b'{"name":"kms"}', "field"),
        (b'{"name":"kms","id":"","x":1}', "field"),
        (b'{"name":"local","id":""}', "field"),
        (b'{"name":[],"id":""}', "field"),
        (b'{"name":"kms","id":7}', "field"),
        (b'{"name":"kms","id":"0x33"}', "field"),
    ],
)
def test_refuses_a_key_provider_event_of_another_shape(payload: bytes, code: str) -> None:
    with refuses(f"mr_config.key_provider.{code}"):
        parse_key_provider(payload)


@pytest.mark.parametrize(
    ("mr_config_id", "document", "version"),
    [
        (mr_config_id_v1(COMPOSE), None, 1),
        (mr_config_id_v2(COMPOSE, APP, KMS), None, 2),
        (mr_config_id_v3(UPSTREAM_TEXT), UPSTREAM_TEXT, 3),
        (mr_config_id_v3(changed()), changed(), 3),
    ],
)
def test_says_which_version_holds(mr_config_id: bytes, document: bytes | None, version: int) -> None:
    check = check_mr_config(mr_config_id, BOOT, document=document, required=True)
    assert (check.version, check.checked) == (version, True)


def test_takes_a_document_and_a_list_of_scripts_at_their_limits() -> None:
    text = changed(init_script_hashes=["66" * 32] * MAX_INIT_SCRIPTS).ljust(MAX_DOCUMENT_BYTES)
    boot = msgspec.structs.replace(BOOT, init_script_hashes=(b"\x66" * 32,) * MAX_INIT_SCRIPTS)
    assert check_mr_config(mr_config_id_v3(text), boot, document=text).checked


@pytest.mark.parametrize("scripts", [["66" * 32], None])
def test_v3_checks_the_init_scripts_it_names(scripts: list[str] | None) -> None:
    text = UPSTREAM_TEXT if scripts is None else changed(init_script_hashes=scripts)
    assert check_mr_config(mr_config_id_v3(text), BOOT, document=text).checked


def test_v3_without_a_provider_id_takes_any() -> None:
    text = MINIMAL_TEXT.replace(b"none", b"kms")
    assert check_mr_config(mr_config_id_v3(text), BOOT, document=text).checked


def test_says_that_zero_binds_nothing() -> None:
    check = check_mr_config(bytes(48), BOOT)
    assert (check.version, check.checked) == (0, False)


def test_n19_refuses_zero_where_a_bound_config_is_required() -> None:
    with refuses("mr_config.zero"):
        check_mr_config(bytes(48), BOOT, required=True)


def test_says_that_v3_cannot_be_checked_without_its_document() -> None:
    check = check_mr_config(mr_config_id_v3(UPSTREAM_TEXT), BOOT, required=True)
    assert (check.version, check.checked) == (3, False)
    assert "document" in check.reason


@pytest.mark.parametrize(
    ("mr_config_id", "document", "version"),
    [(mr_config_id_v2(COMPOSE, APP, KMS), None, 2), (mr_config_id_v3(UPSTREAM_TEXT), UPSTREAM_TEXT, 3)],
)
def test_says_that_a_guest_without_a_key_provider_cannot_be_checked_in_full(
    mr_config_id: bytes, document: bytes | None, version: int
) -> None:
    boot = msgspec.structs.replace(BOOT, key_provider=None)
    check = check_mr_config(mr_config_id, boot, document=document)
    assert (check.version, check.checked) == (version, False)


def test_says_that_v2_cannot_be_checked_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    mr_config_id = mr_config_id_v2(COMPOSE, APP, KMS)
    monkeypatch.setitem(sys.modules, "shared.keccak", None)
    check = check_mr_config(mr_config_id, BOOT)
    assert (check.version, check.checked) == (2, False)
    assert "keccak" in check.reason


def test_making_a_v2_id_without_its_library_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.keccak", None)
    with refuses("mr_config.keccak", ConfigError):
        mr_config_id_v2(COMPOSE, APP, KMS)


@pytest.mark.parametrize(("compose_hash", "app_id"), [(COMPOSE[1:], APP), (COMPOSE, APP + b"\0")])
def test_refuses_to_make_an_id_of_values_that_could_run_together(compose_hash: bytes, app_id: bytes) -> None:
    with refuses("mr_config.length", ConfigError):
        mr_config_id_v2(compose_hash, app_id, KMS)


@pytest.mark.parametrize("length", [0, 32, 47, 49])
def test_refuses_an_id_of_another_length(length: int) -> None:
    with refuses("mr_config.length"):
        check_mr_config(bytes(length), BOOT)


@pytest.mark.parametrize("change", [{"compose_hash": COMPOSE[1:]}, {"app_id": b""}])
def test_refuses_boot_values_of_another_length(change: dict[str, bytes]) -> None:
    with refuses("mr_config.length"):
        check_mr_config(mr_config_id_v2(COMPOSE, APP, KMS), msgspec.structs.replace(BOOT, **change))


def test_refuses_an_oversize_document_before_hashing_it() -> None:
    with refuses("mr_config.document.size"):
        check_mr_config(mr_config_id_v3(b""), BOOT, document=bytes(MAX_DOCUMENT_BYTES + 1))


@pytest.mark.parametrize(
    "mr_config_id",
    [
        b"\x00" + COMPOSE + bytes(15),
        b"\x04" + COMPOSE + bytes(15),
        b"\xff" * 48,
        b"\x01" + COMPOSE + bytes(14) + b"\x01",
        b"\x03" + COMPOSE + b"\x01" + bytes(14),
    ],
)
def test_n19_refuses_an_unknown_version_or_padding(mr_config_id: bytes) -> None:
    with refuses("mr_config.version"):
        check_mr_config(mr_config_id, BOOT)


@pytest.mark.parametrize(
    ("mr_config_id", "document"),
    [
        (mr_config_id_v1(APP + bytes(12)), None),
        (mr_config_id_v2(COMPOSE, bytes(20), KMS), None),
        (mr_config_id_v2(COMPOSE, APP, KeyProvider(KeyProviderKind.TPM)), None),
        (mr_config_id_v3(UPSTREAM_TEXT), MINIMAL_TEXT),
        (mr_config_id_v3(UPSTREAM_TEXT), UPSTREAM_TEXT + b"\n"),
        (b"\x01" + mr_config_id_v2(COMPOSE, APP, KMS)[1:], None),
    ],
)
def test_n19_refuses_an_id_of_other_values(mr_config_id: bytes, document: bytes | None) -> None:
    with refuses("mr_config.mismatch"):
        check_mr_config(mr_config_id, BOOT, document=document)


@pytest.mark.parametrize(
    "change",
    [
        {"compose_hash": "00" * 32},
        {"app_id": "00" * 20},
        {"instance_id": "00" * 20},
        {"gpu_policy_hash": "00" * 32},
        {"init_script_hashes": []},
        {"init_script_hashes": ["66" * 32] * 2},
        {"key_provider": "tpm"},
        {"key_provider_id": "00"},
    ],
)
def test_n19_refuses_a_v3_document_that_the_boot_does_not_match(change: dict[str, Any]) -> None:
    text = changed(**change)
    with refuses("mr_config.mismatch"):
        check_mr_config(mr_config_id_v3(text), BOOT, document=text)


def test_the_lite_fixture_binds_its_compose_hash(shared_data: Callable[[str], Path]) -> None:
    body = json.loads(shared_data("measurement/tdx-lite-getquote.json").read_text())
    events = {
        event["event"]: bytes.fromhex(event["event_payload"]) for event in json.loads(body["event_log"])
    }
    boot = BootValues(
        compose_hash=events["compose-hash"],
        app_id=events["app-id"],
        key_provider=parse_key_provider(events["key-provider"]),
    )
    check = check_mr_config(bytes.fromhex(body["quote"])[232:280], boot, required=True)
    assert (check.version, check.checked) == (1, True)


def test_a_version_2_id_of_an_app_that_pins_no_provider_binds_the_kind() -> None:
    provider = KeyProvider("kms", b"\x33" * 32)
    boot = BootValues(compose_hash=b"\x22" * 32, app_id=b"\x11" * 20, key_provider=provider)
    check = check_mr_config(mr_config_id_v2(boot.compose_hash, boot.app_id, KeyProvider("kms")), boot)
    assert (check.version, check.checked) == (2, True)
    assert "kind" in check.reason
