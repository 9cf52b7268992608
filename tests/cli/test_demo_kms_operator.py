"""A KMS whose answers do not parse is an error of ours to the operator, never a traceback."""

import json
from pathlib import Path
from typing import Any, Self

import pytest

from cli.demo.guests import Measured
from cli.demo.kms_operator import KmsOperator, KmsRoots
from functions.deploy.evidence import Verifier
from shared.attestation.trust import TrustAnchors
from shared.errors import ProtocolError
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.response import Response

ROOTS = KmsRoots(ca_pubkey=b"ca", k256_pubkey=bytes(33), attestation=b"")
POLICY = {
    "auth_mode": "chain",
    "clock_source": "nsm",
    "quorum": 1,
    "simulated": True,
    "treat_nitro_as_up_to_date": True,
    "evidence_policy": [],
}
PLANNED = Measured(image=Path(), os_image_hash=bytes(32), compose_hash=bytes(32))


def operator() -> KmsOperator:
    verifier = Verifier(TrustAnchors.production(), lambda: 0)
    return KmsOperator(HttpClient(DirectDialer()), ("localhost", 1), verifier)


class Connection:
    """Stands in for an attested connection to a KMS that answers `body`."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def request(self, *_: object) -> Response:
        return Response(200, {}, self._body)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b"null", b'{"ca_pubkey":"00","k256_pubkey":"00"}', b'"\xff"']
)
def test_unreadable_answer_to_bootstrap(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpClient, "request", lambda *_, **__: Response(200, {}, body))
    with pytest.raises(ProtocolError) as caught:
        operator().bootstrap("localhost", PLANNED)
    assert caught.value.code == "demo.answer"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "demo.answer"),
        (b"{}", "demo.answer"),
        (json.dumps({"ca_cert": "no pem", "k256_pubkey": "00", "policy": POLICY}), "demo.answer"),
        (json.dumps({"ca_cert": "no pem", "k256_pubkey": "zz", "policy": POLICY}), "hex.invalid"),
        (json.dumps({"ca_cert": "no pem", "k256_pubkey": "00", "policy": {}}), "demo.answer"),
    ],
)
def test_unreadable_answer_to_get_meta(body: Any, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = body if isinstance(body, bytes) else body.encode()
    monkeypatch.setattr(AttestedConnection, "connect", classmethod(lambda *_, **__: Connection(raw)))
    with pytest.raises(ProtocolError) as caught:
        operator().audit(ROOTS, PLANNED)
    assert caught.value.code == code
