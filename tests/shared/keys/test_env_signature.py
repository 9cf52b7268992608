"""Whose word counts about an app's env key: pinned signers, a fresh v1 signature, nothing on first use."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, DstackError, InvalidEvidence, PolicyDenied, ProtocolError
from shared.keys import app_keys, k256
from shared.keys.env_signature import (
    EnvKeyAnswer,
    TrustedSigners,
    VerifiedEnvKey,
    parse_env_key,
    parse_trusted_signers,
    verify_env_key,
)
from tests.shared.refusal import refuses

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text())
SIGNATURES = VECTORS["env_pubkey_signature"]
ROOT, OTHER_ROOT = b"\x11" * 32, b"\x12" * 32
SIGNER, OTHER = k256.public_key(ROOT), k256.public_key(OTHER_ROOT)
APP = b"\x22" * 20
PUBLIC = bytes.fromhex(VECTORS["env_encryption"]["computed"]["remote_public"])
NOW = 1_700_000_000
PINNED = TrustedSigners(frozenset({SIGNER}), "kms-whitelist.json")


def answer(root: bytes = ROOT, timestamp: int = NOW, app_id: bytes = APP) -> EnvKeyAnswer:
    legacy, v1 = app_keys.sign_env_public_key(k256.SigningKey(root), app_id, PUBLIC, timestamp)
    return EnvKeyAnswer(PUBLIC, legacy, timestamp, v1)


def old_answer(root: bytes = ROOT) -> EnvKeyAnswer:
    return EnvKeyAnswer(PUBLIC, answer(root).signature, 0, b"")


def verify(given: EnvKeyAnswer, **changes: Any) -> VerifiedEnvKey:
    return verify_env_key(given, **{"app_id": APP, "now": NOW, "signers": PINNED} | changes)


def wire(given: EnvKeyAnswer, **changes: Any) -> bytes:
    return json.dumps(
        {
            "public_key": given.public_key.hex(),
            "signature": given.signature.hex(),
            "timestamp": given.timestamp,
            "signature_v1": given.signature_v1.hex(),
        }
        | changes
    ).encode()


def test_accepts_a_fresh_key_of_a_pinned_signer() -> None:
    assert verify(answer()) == VerifiedEnvKey(PUBLIC, SIGNER, "v1", NOW, "kms-whitelist.json")


@pytest.mark.parametrize("age", [-60, 0, 300])
def test_takes_the_ages_at_the_edges(age: int) -> None:
    assert verify(answer(), now=NOW + age).timestamp == NOW


@pytest.mark.parametrize("age", [-61, 301, 10**9, -(10**9)])
def test_refuses_every_other_age(age: int) -> None:
    with refuses("keys.env.stale", InvalidEvidence):
        verify(answer(), now=NOW + age)


def test_refuses_a_signer_that_nobody_pinned() -> None:
    with refuses("keys.env.signer", InvalidEvidence):
        verify(answer(OTHER_ROOT))


def test_never_trusts_on_first_use() -> None:
    with refuses("env.signer.unpinned", PolicyDenied):
        verify(answer(), signers=TrustedSigners(frozenset(), "nothing"))
    with refuses("env.signer.unpinned", PolicyDenied):
        verify(old_answer(), signers=TrustedSigners(frozenset(), "nothing"), allow_legacy=True)


def test_refuses_the_key_of_another_app() -> None:
    with refuses("keys.env.signer", InvalidEvidence):
        verify(answer(app_id=b"\x23" * 20))


def test_the_timestamp_is_signed() -> None:
    old = answer(timestamp=NOW - 1000)
    moved = EnvKeyAnswer(old.public_key, old.signature, NOW, old.signature_v1)
    with refuses("keys.env.signer", InvalidEvidence):
        verify(moved)


def test_a_legacy_signature_counts_only_where_it_is_allowed_and_says_so() -> None:
    with refuses("env.key.legacy", PolicyDenied):
        verify(old_answer())
    found = verify(old_answer(), allow_legacy=True)
    assert (found.signature, found.timestamp, found.signer) == ("legacy", 0, SIGNER)
    with refuses("keys.env.signer", InvalidEvidence):
        verify(old_answer(OTHER_ROOT), allow_legacy=True)


def test_a_bad_v1_signature_is_not_made_good_by_a_legacy_one() -> None:
    good, foreign = answer(), answer(OTHER_ROOT)
    mixed = EnvKeyAnswer(PUBLIC, good.signature, NOW, foreign.signature_v1)
    with refuses("keys.env.signer", InvalidEvidence):
        verify(mixed, allow_legacy=True)
    with refuses("keys.env.stale", InvalidEvidence):
        verify(good, now=NOW + 301, allow_legacy=True)


def test_accepts_the_computed_vector() -> None:
    made = SIGNATURES["computed"]
    given = parse_env_key(json.dumps(made | {"signature": made["signature_legacy"]}).encode())
    assert given == answer()
    assert verify(given).signer.hex() == made["signer"]


def test_accepts_upstreams_fixture_as_what_it_is() -> None:
    made = SIGNATURES["upstream_fixture_legacy"]
    given = parse_env_key(json.dumps(made).encode())
    pinned = parse_trusted_signers(listed(made["signer"]), source="upstream")
    found = verify(given, app_id=bytes(20), signers=pinned, allow_legacy=True)
    assert (found.signature, found.signer.hex()) == ("legacy", made["signer"])


# ---- the answer ----


def test_reads_an_answer() -> None:
    assert parse_env_key(wire(answer(), new_field=[1])) == answer()
    assert parse_env_key(json.dumps({"public_key": "0x" + PUBLIC.hex()}).encode()) == EnvKeyAnswer(
        PUBLIC, b"", 0, b""
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"public_key": PUBLIC.hex()[:-2]},
        {"public_key": ""},
        {"public_key": None},
        {"public_key": "zz" * 32},
        {"signature_v1": "00" * 64},
        {"signature": "00" * 66},
        {"timestamp": -1},
        {"timestamp": "1700000000"},
        {"timestamp": 1.5},
    ],
)
def test_refuses_an_answer_of_another_shape(changes: dict[str, Any]) -> None:
    with refuses("env.key.malformed", ProtocolError):
        parse_env_key(wire(answer(), **changes))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "env.key.syntax"),
        (b'{"public_key":"","public_key":""}', "env.key.duplicate_key"),
        (b" " * 20_000, "env.key.size"),
        (b"[" * 100, "env.key.depth"),
        (b"[]", "env.key.malformed"),
        (rb'{"\ud800":1}', "env.key.syntax"),
    ],
)
def test_refuses_an_answer_that_is_none(raw: bytes, code: str) -> None:
    with refuses(code, ProtocolError):
        parse_env_key(raw)


@given(st.binary(max_size=65), st.integers(min_value=0, max_value=2**70))
def test_any_signature_ends_in_a_refusal(signature: bytes, timestamp: int) -> None:
    given = EnvKeyAnswer(PUBLIC, signature, timestamp, signature)
    with pytest.raises(DstackError):
        verify(given, now=timestamp)


# ---- the operator's file ----


def listed(*texts: Any) -> bytes:
    return json.dumps({"trusted_signers": list(texts)}).encode()


@pytest.mark.parametrize("prefix", ["", "0x"])
@pytest.mark.parametrize("upper", [False, True])
def test_reads_the_whitelists_of_both_of_upstreams_tools(prefix: str, *, upper: bool) -> None:
    digits = SIGNER.hex().upper() if upper else SIGNER.hex()
    found = parse_trusted_signers(listed(prefix + digits, OTHER.hex()), source="the file")
    assert found == TrustedSigners(frozenset({SIGNER, OTHER}), "the file")
    assert verify(answer(), signers=found).pinned_by == "the file"


@pytest.mark.parametrize("raw", [b"{}", listed()])
def test_an_empty_list_pins_nobody(raw: bytes) -> None:
    with refuses("env.signer.unpinned", PolicyDenied):
        verify(answer(), signers=parse_trusted_signers(raw, source="the file"))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "env.signer.file.syntax"),
        (rb'{"\ud800":1}', "env.signer.file.syntax"),
        (b'{"trusted_signers":[],"trusted_signers":[]}', "env.signer.file.duplicate_key"),
        (b"[]", "env.signer.file"),
        (b'{"trusted_signers":"any"}', "env.signer.file"),
        (listed("any"), "env.signer.file"),
        (listed("*"), "env.signer.file"),
        (listed(""), "env.signer.file"),
        (listed(None), "env.signer.file"),
        (listed(SIGNER.hex()[:-2]), "env.signer.file"),
        (listed("04" + SIGNER.hex()[2:]), "env.signer.file"),
        (listed(SIGNER.hex(), "0x0x"), "env.signer.file"),
    ],
)
def test_n59_refuses_a_file_with_anything_but_keys(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        parse_trusted_signers(raw, source="the file")
