"""Both sides of an onboarding, and a bootstrap, are lines of the audit log; so are their refusals."""

import hashlib
import json
from typing import Any

import msgspec
import pytest

from enclave.kms.admin import admin_app
from enclave.kms.audit import AUDIT, AuditLog, Case, check_chain
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.http import onboard_app
from enclave.kms.image_cache import ImageCache
from enclave.kms.token_auth import TokenAuth
from enclave.serving.attested_tls import build_plain_server
from shared.errors import PolicyDenied
from shared.keys.k256 import public_key
from shared.net.fetch import HttpClient
from tests.enclave.conftest import NOW
from tests.enclave.kms.conftest import DENIED, URL
from tests.shared.refusal import refuses


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def log(lines) -> AuditLog:
    return AuditLog(lines.append)


def _entries(lines: list[str]) -> list[dict[str, Any]]:
    check_chain(lines)
    return [json.loads(line) for line in lines]


def test_both_sides_of_an_onboarding_tell_who_the_other_is(
    onboarder, running, keys, kms_enclave, new_enclave, anchors, lines, capsys
) -> None:
    onboarder(running, audit=AuditLog(lines.append)).onboard(URL, "second.test")
    (taken,) = _entries(lines)
    source = Case("proof", kms_enclave.evidence(anchors)).fields()
    assert taken["event"] == "kms.onboarded"
    assert (taken["source"], taken["domain"]) == ("kms.test", "second.test")
    assert taken["k256_pubkey"] == public_key(keys.k256).hex()
    assert taken["mr_aggregated"] == source["mr_aggregated"]
    assert (taken["evidence_verified"], taken["finalized_block"]) == (True, 7)
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (given,) = [entry for entry in out if entry["event"] == "kms.root_keys.released"]
    assert given["process"] == AUDIT.process
    new = Case("proof", new_enclave.evidence(anchors)).fields()
    assert given["mr_aggregated"] == new["mr_aggregated"] != source["mr_aggregated"]


def test_a_source_that_is_refused_is_told(
    onboarder, running, policy, kms_enclave, anchors, serve, log, lines
) -> None:
    policy.kms = DENIED
    onboard = onboarder(running, audit=log).onboard
    app = onboard_app(
        bootstrap=lambda _domain: pytest.fail("not asked for"),
        onboard=onboard,
        finish=lambda: None,
        describe=lambda: pytest.fail("not asked for"),
        audit=log,
    )
    http = HttpClient(serve(build_plain_server(app)), timeout=20)
    body = msgspec.json.encode({"source_url": URL, "domain": "second.test", "source_token": ""})
    assert http.request("POST", "http://kms.test/prpc/Onboard?json", body).status == 400
    http.close()
    (entry,) = _entries(lines)
    assert (entry["event"], entry["method"]) == ("prpc.refused", "Onboard")
    assert entry["code"] == "kms.source.denied"
    assert entry["mr_aggregated"] == Case("proof", kms_enclave.evidence(anchors)).fields()["mr_aggregated"]


def test_a_request_without_the_token_is_told_without_what_was_shown(tmp_path, serve, log, lines) -> None:
    app = admin_app(ImageCache(tmp_path), TokenAuth(hashlib.sha256(b"right").digest()), audit=log)
    http = HttpClient(serve(build_plain_server(app)), timeout=20)
    url = "http://kms.test/prpc/GetKmsKey?json"
    assert http.request("POST", url, b"{}", headers={"authorization": "Bearer wrong"}).status == 401
    http.close()
    (entry,) = _entries(lines)
    assert (entry["event"], entry["method"], entry["code"]) == ("prpc.refused", "GetKmsKey", "kms.token")
    assert "wrong" not in lines[0]


@pytest.fixture
def bootstrapper(store, kms_enclave, anchors, log) -> Bootstrapper:
    return Bootstrapper(
        store=store,
        random=kms_enclave.nsm.get_random,
        attestor=kms_enclave.attestor,
        now=lambda: NOW,
        case=Case("proof", kms_enclave.evidence(anchors)),
        audit=log,
    )


def test_a_bootstrap_tells_who_made_which_keys(bootstrapper, lines) -> None:
    record = bootstrapper.bootstrap("kms.test", check_self=lambda: None, attest=True)
    (entry,) = _entries(lines)
    assert (entry["event"], entry["domain"]) == ("kms.bootstrapped", "kms.test")
    assert (entry["ca_pubkey"], entry["k256_pubkey"]) == (record.ca_pubkey.hex(), record.k256_pubkey.hex())
    assert (entry["evidence_verified"], entry["auth_mode"]) == (True, "proof")


def test_a_bootstrap_that_is_refused_makes_no_line_of_one(bootstrapper, lines) -> None:
    def denied() -> None:
        raise PolicyDenied("kms.self.denied", "no")

    with refuses("kms.self.denied", PolicyDenied):
        bootstrapper.bootstrap("kms.test", check_self=denied, attest=True)
    assert lines == []
