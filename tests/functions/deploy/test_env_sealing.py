"""Sealing an environment against a KMS over HTTP: whom it trusts, and what leaves the deployer's machine."""

import json
import logging
import socket
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.pretty import pretty_repr

from cli.devchain.launcher import start_chain
from functions.deploy.env_sealing import (
    MAX_ANSWER,
    EnvKeySource,
    SealedEnv,
    env_key_url,
    seal_env,
    signer_on_chain,
    signers_in_file,
)
from shared.errors import (
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    UnavailableError,
)
from shared.keys.env_encryption import EnvAuthor, EnvPolicy, decrypt_env
from shared.keys.env_signature import TrustedSigners
from shared.keys.env_signer import EnvSigningKey
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.proof_source import ProofSource
from shared.net.quorum import ChainQuorum
from tests.conftest import CHAIN_ENGINE
from tests.functions.deploy.kms_stand_in import KmsStandIn, serving
from tests.shared.chain.world import World
from tests.shared.refusal import refuses

NOW = 1_700_000_000
APP = b"\x22" * 20
SECRET = "hunter2-unlikely"
ENV = {"DB_PASSWORD": SECRET, "MODE": "x"}
ALLOWED = frozenset(ENV)
SIGNING = EnvSigningKey(b"\x07" * 32)


@pytest.fixture
def kms() -> Iterator[KmsStandIn]:
    with serving(KmsStandIn(0x31, NOW)) as running:
        yield running


@pytest.fixture
def other() -> Iterator[KmsStandIn]:
    with serving(KmsStandIn(0x41, NOW)) as running:
        yield running


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[KmsStandIn]:
    with serving(KmsStandIn(0x31, NOW), tmp_path) as running:
        yield running


def seal(*servers: KmsStandIn | str, env: Mapping[str, str] = ENV, **changes: Any) -> SealedEnv:
    urls = [one if isinstance(one, str) else one.url for one in servers]
    pinned = frozenset(one.signer for one in servers[:1] if isinstance(one, KmsStandIn))
    values: dict[str, Any] = {
        "app_id": APP,
        "source": EnvKeySource(DirectDialer(), urls),
        "signers": TrustedSigners(pinned, "the test"),
        "now": NOW,
    }
    return seal_env(env, **values | changes)


def closed_port() -> str:
    with serving(KmsStandIn(0x51, NOW)) as gone:
        return gone.url


def test_only_the_guest_of_this_app_opens_it(kms: KmsStandIn) -> None:
    sealed = seal(kms)
    policy = EnvPolicy(allowed=ALLOWED)
    assert decrypt_env(sealed.ciphertext, kms.private_key(APP), policy=policy, app_id=APP).values == ENV
    with refuses("env.ciphertext.tag"):
        decrypt_env(sealed.ciphertext, kms.private_key(b"\x23" * 20), policy=policy, app_id=APP)
    assert kms.requests == [("/prpc/GetAppEnvEncryptPubKey?json", json.dumps({"app_id": APP.hex()}).encode())]


def test_the_key_is_that_of_the_apps_epoch(kms: KmsStandIn) -> None:
    sealed = seal(kms, epoch=2)
    policy = EnvPolicy(allowed=ALLOWED)
    opened = decrypt_env(sealed.ciphertext, kms.private_key(APP, 2), policy=policy, app_id=APP)
    assert opened.values == ENV
    with refuses("env.ciphertext.tag"):
        decrypt_env(sealed.ciphertext, kms.private_key(APP), policy=policy, app_id=APP)


def test_n38_refuses_the_key_of_an_epoch_that_was_left_behind(kms: KmsStandIn) -> None:
    old = kms.answer("", json.dumps({"app_id": APP.hex(), "key_epoch": 1}).encode())
    kms.answers.append(old)
    with refuses("keys.env.signer"):
        seal(kms, epoch=2)


@pytest.mark.parametrize("base", ["https://k:1", "https://k:1/", "https://k:1/prpc", "https://k:1/prpc/"])
def test_knows_every_way_to_write_the_base(base: str) -> None:
    assert env_key_url(base) == "https://k:1/prpc/GetAppEnvEncryptPubKey?json"


def test_a_report_names_what_was_trusted(kms: KmsStandIn) -> None:
    sealed = seal(kms)
    assert sealed.report() == {
        "names": ["DB_PASSWORD", "MODE"],
        "ciphertext_bytes": len(sealed.ciphertext),
        "kms_url": kms.url,
        "tls": "none",
        "signer": f"0x{kms.signer.hex()}",
        "signature": "v1",
        "pinned_by": "the test",
        "env_version": None,
        "warnings": ["tls did not say who the kms is: its signature alone did"],
    }


# ---- whom it trusts ----


def test_asks_nobody_without_a_pin(kms: KmsStandIn, tmp_path: Path) -> None:
    with refuses("env.signer.unpinned", PolicyDenied):
        seal(kms, signers=signers_in_file(tmp_path / "kms-whitelist.json"))
    assert kms.requests == []


def test_a_file_pins(kms: KmsStandIn, tmp_path: Path) -> None:
    path = tmp_path / "kms-whitelist.json"
    path.write_text(json.dumps({"trusted_signers": [f"0x{kms.signer.hex()}"]}))
    assert seal(kms, signers=signers_in_file(path)).pinned_by == str(path)


def test_refuses_a_pin_file_that_it_cannot_read(tmp_path: Path) -> None:
    with refuses("env.signer.file", ConfigError):
        signers_in_file(tmp_path)


def test_refuses_the_key_of_a_kms_that_nobody_pinned(kms: KmsStandIn, other: KmsStandIn) -> None:
    pinned = TrustedSigners(frozenset({kms.signer}), "the test")
    with refuses("keys.env.signer", InvalidEvidence):
        seal(other, signers=pinned)
    # a liar ends it: the next server is for one that does not answer
    with refuses("keys.env.signer", InvalidEvidence):
        seal(other, kms, signers=pinned)
    assert kms.requests == []


def test_refuses_an_answer_that_was_kept(kms: KmsStandIn) -> None:
    with refuses("keys.env.stale", InvalidEvidence):
        seal(kms, now=NOW + 301)


def test_a_legacy_signature_is_reported(kms: KmsStandIn) -> None:
    kms.without_v1 = True
    with refuses("env.key.legacy", PolicyDenied):
        seal(kms)
    sealed = seal(kms, allow_legacy=True)
    assert sealed.signature == "legacy"
    assert len(sealed.warnings) == 2


# ---- servers ----


def test_the_next_server_answers_for_one_that_is_down(kms: KmsStandIn) -> None:
    pinned = TrustedSigners(frozenset({kms.signer}), "the test")
    assert seal(closed_port(), kms, signers=pinned).kms_url == kms.url


def test_where_all_fail_the_first_failure_is_told(kms: KmsStandIn) -> None:
    kms.answers = [(400, json.dumps({"error": "app \x1b[31mnot allowed"}).encode())]
    with refuses("env.kms.status", UnavailableError) as caught:
        seal(kms, closed_port())
    assert "http 400" in caught.value.message
    assert "not allowed" in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("url", ["kms:12001", "https://[", "ftp://kms", "https://"])
def test_refuses_a_url_that_is_none(kms: KmsStandIn, url: str) -> None:
    with refuses("net.url.invalid", ConfigError):
        seal(url, kms, signers=TrustedSigners(frozenset({kms.signer}), "the test"))


def test_needs_a_server() -> None:
    with refuses("env.kms.none", ConfigError):
        seal(signers=TrustedSigners(frozenset({b"\x02" * 33}), "the test"))


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        (302, b"", "env.kms.status", UnavailableError),
        (500, b"\xff" * 1000, "env.kms.status", UnavailableError),
        (200, b"{}", "env.key.malformed", ProtocolError),
        (200, b"<html>", "env.key.syntax", ProtocolError),
        (200, b" " * (MAX_ANSWER + 1), "net.response.oversize", ProtocolError),
    ],
)
def test_refuses_what_is_no_answer(
    kms: KmsStandIn, status: int, body: bytes, code: str, kind: type[DstackError]
) -> None:
    kms.answers = [(status, body)]
    with refuses(code, kind):
        seal(kms)


def test_tls_with_the_kms_own_authority_is_verified(tls: KmsStandIn) -> None:
    sealed = seal(tls, source=EnvKeySource(DirectDialer(), [tls.url], tls.authority))
    assert (sealed.tls, sealed.warnings) == ("verified", ())


def test_tls_of_an_unknown_authority_is_taken_for_the_signatures_sake_and_reported(tls: KmsStandIn) -> None:
    sealed = seal(tls)
    assert (sealed.tls, len(sealed.warnings)) == ("unverified", 1)
    assert len(tls.requests) == 1


def test_a_pinned_authority_is_never_gone_around(tls: KmsStandIn, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with serving(KmsStandIn(0x41, NOW), tmp_path / "second") as stranger:
        source = EnvKeySource(DirectDialer(), [tls.url], stranger.authority)
        with refuses("net.tls.refused", UnavailableError):
            seal(tls, source=source)
    assert tls.requests == []


class NoWay:
    """A dialer that counts how often somebody tried."""

    def __init__(self) -> None:
        self.dialed = 0

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        del host, port, timeout
        self.dialed += 1
        raise UnavailableError("net.unreachable", "cannot talk to the kms")


def test_a_kms_that_is_down_is_not_asked_a_second_time() -> None:
    dialer = NoWay()
    with refuses("net.unreachable", UnavailableError):
        EnvKeySource(dialer, ["https://kms.example"]).fetch(APP)
    assert dialer.dialed == 1


# ---- env_signer ----


def author(**changes: Any) -> EnvAuthor:
    return EnvAuthor(**{"key": SIGNING, "app_id": APP, "env_version": NOW} | changes)


def test_the_authors_environment_passes_the_guest(kms: KmsStandIn) -> None:
    sealed = seal(kms, env_signer=SIGNING.public_key, author=author())
    policy = EnvPolicy(allowed=ALLOWED, env_signer=SIGNING.public_key)
    opened = decrypt_env(sealed.ciphertext, kms.private_key(APP), policy=policy, app_id=APP)
    assert (opened.values, opened.env_version) == (ENV, NOW)
    assert sealed.report()["env_version"] == NOW


@pytest.mark.parametrize(
    "changes",
    [
        {"env_signer": SIGNING.public_key},
        {"author": author()},
        {"env_signer": SIGNING.public_key, "author": author(key=EnvSigningKey(b"\x08" * 32))},
        {"env_signer": SIGNING.public_key, "author": author(app_id=b"\x23" * 20)},
    ],
)
def test_refuses_what_the_guest_would_before_anybody_is_asked(
    kms: KmsStandIn, changes: dict[str, Any]
) -> None:
    with refuses("env_signer.author", ConfigError):
        seal(kms, **changes)
    assert kms.requests == []


# ---- what leaves ----


def test_n74_no_value_leaves_or_is_shown(kms: KmsStandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sealed = seal(kms, env_signer=SIGNING.public_key, author=author())
    shown = [repr(sealed), pretty_repr(sealed), json.dumps(sealed.report()), caplog.text, repr(kms.requests)]
    assert not [text for text in shown if SECRET in text]
    assert SECRET.encode() not in sealed.ciphertext


@pytest.mark.parametrize(
    ("env", "changes", "code"),
    [
        ({"A": SECRET + "\0"}, {}, "env.encoding"),
        ({"A": SECRET + "\ud800"}, {}, "env.encoding"),
        ({"A": SECRET * 10_000}, {}, "env.size"),
        ({SECRET: "x"}, {}, "env.name"),
        ({"A": SECRET}, {"now": NOW + 1000}, "keys.env.stale"),
    ],
)
def test_n74_no_error_shows_a_value(
    kms: KmsStandIn, env: dict[str, str], changes: dict[str, Any], code: str
) -> None:
    with refuses(code, DstackError) as caught:
        seal(kms, env=env, **changes)
    error: BaseException | None = caught.value
    assert SECRET not in "".join(traceback.format_exception(error))
    while error is not None:
        assert SECRET not in f"{error!r}{vars(error)}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("size", [19, 0, 32])
def test_n60_refuses_an_app_id_of_another_length(kms: KmsStandIn, size: int) -> None:
    with refuses("env.app_id", ConfigError):
        seal(kms, app_id=bytes(size))


# ---- the pin on chain ----


def test_the_contract_pins_its_kms_and_nobody_else(other: KmsStandIn) -> None:
    with start_chain(CHAIN_ENGINE, block_time=0) as chain, serving(KmsStandIn(0x31, NOW)) as kms:
        world = World(chain)
        http = HttpClient(DirectDialer(), timeout=30)
        urls = (chain.url, chain.url.replace("127.0.0.1", "localhost"))
        quorum = ChainQuorum([JsonRpc(url, http) for url in urls], chain_id=31337, allow_plain_http=True)
        source = ProofSource(world.rpc, world.kms)

        def pin() -> TrustedSigners:
            head = world.rpc.call("eth_getBlockByNumber", ["latest", False])
            assert isinstance(head, dict)
            return signer_on_chain(quorum, source, world.policy(), int(head["timestamp"], 16))

        with refuses("proof.signer.unset", PolicyDenied):
            pin()
        world.owner.settle(world.owner.set_kms_info(k256_pubkey=kms.signer, ca_pubkey=b"c" * 91))
        world.finalize()
        pinned = pin()
        assert pinned.keys == {kms.signer}
        sealed = seal(kms, signers=pinned)
        assert f"kmsInfo of 0x{world.kms.hex()} on chain 31337, proven in blocks" in sealed.pinned_by
        with refuses("keys.env.signer", InvalidEvidence):
            seal(other, signers=pinned)
