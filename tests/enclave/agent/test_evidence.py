"""POST /evidence answers a deployer's challenge with fresh evidence (DESIGN section 4)."""

import msgspec
import pytest

from enclave.agent.evidence import evidence_app
from enclave.devices.attestor import NitroAttestor
from enclave.serving.attested_tls import build_plain_server
from shared.attestation.report_data import deploy_challenge
from shared.attestation.verify import verify_attestation
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient
from shared.net.response import Response

NOW = 1_900_000_000
APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
CHALLENGE = bytes(range(32))


class BrokenAttestor:
    def __init__(self, error: DstackError) -> None:
        self._error = error

    def attest(self, _report_data: bytes) -> bytes:
        raise self._error


@pytest.fixture
def ask(app_enclave, serve):
    return _client(app_enclave.attestor, serve)


def _client(attestor: NitroAttestor, serve):
    http = HttpClient(serve(build_plain_server(evidence_app(attestor, APP_ID))), timeout=20)

    def ask(body: bytes) -> Response:
        return http.request("POST", "http://app.test/evidence", body)

    return ask


def _code(response: Response) -> str:
    return msgspec.json.decode(response.body, type=dict[str, str])["code"]


def test_answers_with_evidence_over_the_challenge_and_the_app_id(ask, anchors) -> None:
    response = ask(msgspec.json.encode({"challenge": CHALLENGE.hex()}))
    envelope = bytes.fromhex(msgspec.json.decode(response.body)["attestation"])
    expected = deploy_challenge(CHALLENGE, APP_ID)
    assert verify_attestation(envelope, now=NOW, anchors=anchors, report_data=expected).verdict.simulated


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "evidence.malformed"),
        (b"", "evidence.malformed"),
        (b'{"challenge":5}', "evidence.malformed"),
        (b'{"challenge":"\xff"}', "evidence.malformed"),
        (b'{"challenge":"00","more":1}', "evidence.malformed"),
        (msgspec.json.encode({"challenge": "00" * 31}), "hex.length"),
        (msgspec.json.encode({"challenge": "00" * 33}), "hex.length"),
        (msgspec.json.encode({"challenge": "zz" * 32}), "hex.invalid"),
        (b" " * 1025, "evidence.oversize"),
    ],
)
def test_refuses_what_is_no_challenge(ask, body: bytes, code: str) -> None:
    response = ask(body)
    assert (response.status, _code(response)) == (400, code)


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("nsm.unavailable", "the module does not answer"),
        ProtocolError("tdx_device.quote.report_data", "the quote is over something else"),
    ],
)
def test_says_when_it_cannot_attest(serve, error: DstackError) -> None:
    response = _client(BrokenAttestor(error), serve)(msgspec.json.encode({"challenge": CHALLENGE.hex()}))
    assert (response.status, _code(response)) == (503, error.code)
