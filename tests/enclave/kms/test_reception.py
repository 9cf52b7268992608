"""The main listener's application under load: who is refused, who is not, and what the audit log says."""

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.types import Receive, Scope, Send

from enclave.kms.audit import AuditLog, check_chain
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core, RateLimits
from enclave.kms.http import DEFAULT_LIMITS, main_app
from enclave.kms.key_store import KeyMaterial
from enclave.kms.limits import CallLimits
from enclave.kms.metrics import Calls
from enclave.kms.reception import LIMIT_LINES, KmsReception
from enclave.kms.service import KmsService
from enclave.serving.prpc import Refusal
from enclave.serving.rate_limit import RateLimited
from enclave.tee.peers import PeerVerifier
from shared.attestation.verify import VerifiedAttestation
from shared.errors import DstackError, ProtocolError
from shared.ratls.certificates import client_certificate
from shared.ratls.csr import signed_csr
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import to_json
from tests.enclave.conftest import APP_ID, NOW, Enclave
from tests.enclave.kms.test_sign_cert import CONFIG, asked

CORE = Core(aws_nitro_enclave_key_release=True)
FEW = RateLimits(
    caller_per_minute=1,
    caller_burst=2,
    method_per_minute=1,
    method_burst=3,
    evidence_per_minute=1,
    evidence_burst=4,
)


class Listener:
    """The application, asked by whoever shows a certificate, in the order of the questions."""

    def __init__(self, app: Any, lines: list[str]) -> None:
        self._app = app
        self._lines = lines

    def ask(self, *questions: tuple[str, bytes | None]) -> list[httpx.Response]:
        """Ask each method on a connection that presented this certificate (DER), or none."""

        async def run() -> list[httpx.Response]:
            return [await self._ask(path, leaf) for path, leaf in questions]

        return asyncio.run(run())

    async def _ask(self, path: str, leaf: bytes | None) -> httpx.Response:
        method, _, body = path.partition(" ")

        async def with_peer(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {"peer_chain": [] if leaf is None else [leaf], "connections": {1, 2}}
            await self._app(scope, receive, send)

        transport = httpx.ASGITransport(app=with_peer)
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            if method.startswith("/"):
                return await client.get(method)
            return await client.post(f"/prpc/{method}?json", content=body or "{}")

    def audit(self) -> list[dict[str, Any]]:
        check_chain(self._lines)
        return [json.loads(line) for line in self._lines]


@pytest.fixture
def keys(bootstrap: Callable[[], KeyMaterial]) -> KeyMaterial:
    return bootstrap()


@pytest.fixture
def listener(keys, policy, kms_enclave, anchors) -> Callable[..., Listener]:
    def make(limits: RateLimits = DEFAULT_LIMITS, core: Core = CORE) -> Listener:
        lines: list[str] = []
        audit = AuditLog(lines.append)
        service = KmsService(
            core=core,
            keys=keys,
            authorizer=policy,
            own=kms_enclave.evidence(anchors),
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: NOW,
            audit=audit,
        )
        verifier = PeerVerifier(anchors=anchors, now=lambda: NOW)
        callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
        return Listener(
            main_app(service, callers, version="1", metrics=True, limits=limits, audit=audit), lines
        )

    return make


@pytest.fixture
def leaf(app_enclave, keys) -> bytes:
    return app_enclave.certificate(keys)[0]


def _codes(answers: list[httpx.Response]) -> list[str]:
    return [
        "ok" if answer.status_code == 200 else msgspec.json.decode(answer.content)["code"]
        for answer in answers
    ]


# Limits


def test_a_caller_over_its_limit_is_told_when_to_come_back(listener, leaf) -> None:
    *_, refused = answers = listener(FEW).ask(*[("GetAppKey", leaf)] * 3)
    assert _codes(answers) == ["ok", "ok", "prpc.rate"]
    assert (refused.status_code, refused.headers["retry-after"]) == (400, "60")
    assert "retry-after" not in answers[0].headers


def test_a_caller_over_its_limit_does_not_affect_another(listener, leaf, authority, keys) -> None:
    other = Enclave(authority, seed=2, app_id=APP_ID).certificate(keys)[0]
    answers = listener(FEW).ask(*[("GetAppKey", leaf)] * 9, ("GetAppKey", other))
    assert _codes(answers)[2:] == ["prpc.rate"] * 7 + ["ok"]


def test_a_limit_is_applied_before_the_policy_is_asked(listener, leaf, policy) -> None:
    listener(FEW).ask(*[("GetAppKey", leaf)] * 9)
    assert [kind for kind, _ in policy.asked] == ["kms", "app"] * 2


@pytest.mark.parametrize(
    "method", ["GetMeta", "GetTempCaCert", "GetAppEnvEncryptPubKey", "GetAppKey", "Nothing"]
)
def test_a_flood_without_evidence_is_bounded_and_stops_no_caller_with_evidence(
    listener, leaf, method: str
) -> None:
    answers = listener(FEW).ask(
        *[(method, None)] * 20, ("GetAppKey", leaf), (method, leaf), ("GetMeta", None)
    )
    codes = _codes(answers)
    assert set(codes[3:20]) == {"prpc.rate"}
    assert "prpc.rate" not in codes[:3] + codes[20:22]
    assert codes[22] == ("prpc.rate" if method == "GetMeta" else "ok")


def test_evidence_that_is_new_is_verified_so_often_and_a_known_caller_goes_on(
    listener, leaf, app_enclave, keys
) -> None:
    strangers = [
        app_enclave.certificate(keys, over=ec.generate_private_key(ec.SECP256R1()))[0] for _ in range(9)
    ]
    answers = listener(FEW).ask(
        ("GetAppKey", leaf), *[("GetAppKey", stranger) for stranger in strangers], ("GetAppKey", leaf)
    )
    assert _codes(answers) == ["ok", *["attestation.report_data"] * 3, *["prpc.rate"] * 6, "ok"]


@pytest.mark.parametrize("attestation", [None, b"\0nonsense"])
def test_a_connection_that_shows_nobody_keeps_no_new_caller_away(listener, leaf, attestation) -> None:
    """However often it asks: it is looked at once."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = client_certificate(key, attestation=attestation, issuer=None, now=NOW).public_bytes(Encoding.DER)
    answers = listener(FEW).ask(*[("GetAppKey", nobody)] * 9, ("GetAppKey", leaf))
    code = "kms.no_attestation" if attestation is None else "envelope.variant.unknown"
    assert _codes(answers)[:3] == [code] * 3
    assert _codes(answers)[-1] == "ok"


# SignCert: the evidence is in the request


def _sign_cert(enclave: Enclave) -> str:
    return "SignCert " + to_json(asked(enclave.attestor)).decode()


def test_certificates_are_limited_by_the_evidence_in_the_request(listener, app_enclave) -> None:
    many = RateLimits(caller_per_minute=1, caller_burst=2)
    answers = listener(many).ask(*[(_sign_cert(app_enclave), None)] * 3)
    assert _codes(answers) == ["ok", "ok", "prpc.rate"]
    assert answers[2].headers["retry-after"] == "60"
    assert not msgspec.json.decode(answers[2].content)["error"].startswith("invalid quote")


@pytest.mark.parametrize("prompt", [True, False])
def test_a_new_caller_takes_a_thread_unless_its_evidence_is_verified_promptly(
    listener, leaf, monkeypatch: pytest.MonkeyPatch, *, prompt: bool
) -> None:
    verify, threads = CallerVerifier.verify, []

    def noting(callers: CallerVerifier, chain: list[bytes]) -> VerifiedAttestation | None:
        threads.append(threading.get_ident())
        return verify(callers, chain)

    monkeypatch.setattr(CallerVerifier, "verify", noting)
    if not prompt:
        monkeypatch.setattr("enclave.kms.callers.MAX_PROMPT_LEAF", len(leaf) - 1)
    assert _codes(listener().ask(("GetAppKey", leaf))) == ["ok"]
    assert [one == threading.get_ident() for one in threads] == [prompt]


def test_requests_with_new_evidence_share_the_limit_on_verifying(listener, app_enclave) -> None:
    few = RateLimits(evidence_per_minute=1, evidence_burst=2)
    assert _codes(listener(few).ask(*[(_sign_cert(app_enclave), None)] * 3)) == ["ok", "ok", "prpc.rate"]


def test_evidence_that_strangers_write_into_requests_keeps_no_new_caller_away(
    listener, leaf, app_enclave
) -> None:
    """Neither one that shows its evidence in its certificate, nor one that then asks for a certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr, signature = signed_csr(key, CONFIG, b"\0nonsense")
    request = pb.SignCertRequest(api_version=2, csr=csr, signature=signature)
    flood = ("SignCert " + to_json(request).decode(), None)
    few = msgspec.structs.replace(FEW, caller_burst=9, method_burst=99)
    answers = listener(few).ask(*[flood] * 9, ("GetAppKey", leaf), (_sign_cert(app_enclave), leaf))
    assert _codes(answers) == ["envelope.variant.unknown"] * 4 + ["prpc.rate"] * 5 + ["ok", "ok"]


def test_what_is_no_request_costs_no_verification(listener, app_enclave) -> None:
    few = RateLimits(evidence_per_minute=1, evidence_burst=1)
    answers = listener(few).ask(*[("SignCert", None)] * 5, (_sign_cert(app_enclave), None))
    assert _codes(answers)[-1] == "ok"


# The audit log


def test_a_release_is_one_line_that_tells_all(listener, leaf) -> None:
    running = listener()
    running.ask(("GetAppKey", leaf))
    (entry,) = running.audit()
    image = entry["os_image_hash"]
    assert entry["event"] == "kms.app_key.released"
    assert (entry["app_id"], entry["self_asserted"]) == (APP_ID.hex(), ["app_id"])
    assert entry["mr_aggregated"] == entry["compose_hash"] == image
    assert (entry["auth_mode"], entry["finalized_block"], entry["key_epoch"]) == ("proof", 7, 0)
    assert (entry["evidence_verified"], entry["simulated"]) == (True, True)


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ("GetAppKey", "kms.no_attestation"),
        ("GetKmsKey", "kms.no_attestation"),
        ("Nothing", "prpc.method"),
        ('GetAppKey {"api_version":', "prpc.json.syntax"),
        ('GetAppKey {"api_version":9}', "kms.api_version"),
        ('GetAppEnvEncryptPubKey {"app_id":"ab"}', "kms.app_id.length"),
        ("SignCert", "csr.version"),
        ("GetMeta " + " " * 10**6, "prpc.size"),
    ],
)
def test_a_refusal_is_one_line(listener, question: str, code: str, capsys) -> None:
    running = listener()
    assert _codes(running.ask((question, None)))[0].partition(".")[0] == code.partition(".")[0]
    (entry,) = running.audit()
    assert entry["event"] == "prpc.refused"
    assert (entry["method"], entry["evidence_verified"]) == (question.partition(" ")[0], False)
    assert capsys.readouterr().out == ""


def test_an_error_of_the_program_is_one_line_that_tells_who_asked_and_nothing_of_it(
    listener, leaf, policy, monkeypatch
) -> None:
    def fail(_kind: str, _subject: object) -> None:
        raise ValueError("what nobody planned for")

    monkeypatch.setattr(policy, "authorize", fail)
    running = listener()
    with pytest.raises(ValueError, match="nobody planned"):  # the server answers 500
        running.ask(("GetAppKey", leaf))
    (entry,) = running.audit()
    assert (entry["event"], entry["method"], entry["code"]) == ("prpc.refused", "GetAppKey", "prpc.failed")
    assert (entry["app_id"], entry["evidence_verified"]) == (APP_ID.hex(), True)
    assert "planned" not in json.dumps(entry)


def test_a_refusal_of_policy_tells_who_asked_and_by_which_block(listener, leaf, policy) -> None:
    policy.app = msgspec.structs.replace(
        policy.app, is_allowed=False, reason="no", finalized_hash=b"\x11" * 32, head_block=9
    )
    running = listener()
    running.ask(("GetAppKey", leaf))
    (entry,) = running.audit()
    assert (entry["code"], entry["message"]) == ("kms.app.denied", "App not allowed: Boot denied: no")
    assert (entry["evidence_verified"], entry["app_id"]) == (True, APP_ID.hex())
    assert (entry["finalized_block"], entry["finalized_hash"], entry["head_block"]) == (7, "11" * 32, 9)


def test_a_refusal_of_this_kms_tells_who_asked(listener, leaf, policy) -> None:
    policy.kms = msgspec.structs.replace(policy.kms, is_allowed=False, reason="gone", finalized_block=8)
    running = listener()
    running.ask(("GetAppKey", leaf))
    (entry,) = running.audit()
    assert (entry["code"], entry["app_id"], entry["finalized_block"]) == ("kms.self.denied", APP_ID.hex(), 8)


def test_a_caller_whose_evidence_does_not_hold_is_named_by_its_certificate(
    listener, app_enclave, keys
) -> None:
    forged = app_enclave.certificate(keys, over=ec.generate_private_key(ec.SECP256R1()))[0]
    running = listener()
    running.ask(("GetAppKey", forged))
    (entry,) = running.audit()
    assert (entry["code"], entry["evidence_verified"]) == ("attestation.report_data", False)
    assert entry["certificate_sha256"] == hashlib.sha256(forged).hexdigest()
    assert "app_id" not in entry


def test_a_limit_is_told_with_who_met_it(listener, leaf) -> None:
    running = listener(FEW)
    running.ask(*[("GetAppKey", leaf)] * 3)
    entry = running.audit()[-1]
    assert (entry["code"], entry["app_id"]) == ("prpc.rate", APP_ID.hex())


def test_a_flood_that_a_limit_refuses_is_counted_and_does_not_fill_the_log() -> None:
    lines: list[str] = []
    now = [0.0]
    calls = Calls()
    reception = KmsReception(
        AuditLog(lines.append),
        "proof",
        methods=frozenset({"GetMeta"}),
        limits=CallLimits(FEW),
        calls=calls,
        monotonic=lambda: now[0],
    )

    def refuse(error: DstackError) -> dict[str, Any]:
        reception.refused(Refusal("GetMeta", error, [], None))
        return json.loads(lines[-1])

    flood = [refuse(RateLimited("prpc.rate", "too many calls")) for _ in range(LIMIT_LINES.burst + 7)]
    assert len(lines) == LIMIT_LINES.burst
    assert "unlogged" not in flood[-1]
    assert refuse(ProtocolError("prpc.method", "Service not found"))["code"] == "prpc.method"
    now[0] = 60 / LIMIT_LINES.per_minute
    assert refuse(RateLimited("prpc.rate", "too many calls"))["unlogged"] == 7
    now[0] *= 2
    assert "unlogged" not in refuse(RateLimited("prpc.rate", "too many calls"))
    assert calls.counts["GetMeta", "", "prpc.rate"] == LIMIT_LINES.burst + 9
    check_chain(lines)


def test_a_certificate_is_one_line_with_its_names(listener, app_enclave) -> None:
    running = listener()
    (answer,) = running.ask((_sign_cert(app_enclave), None))
    (entry,) = running.audit()
    issued = x509.load_pem_x509_certificate(json.loads(answer.content)["certificate_chain"][0].encode())
    assert entry["event"] == "kms.app_certificate.issued"
    assert (entry["app_id"], entry["evidence_verified"]) == (APP_ID.hex(), True)
    assert entry["serial_number"] == f"{issued.serial_number:x}"
    assert isinstance(entry["names"], list)


def test_evidence_in_a_request_that_does_not_hold_is_named_by_its_hash(listener, app_enclave) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    envelope = app_enclave.attestor.attest(bytes(64))
    csr, signature = signed_csr(key, CONFIG, envelope)
    body = to_json(pb.SignCertRequest(api_version=2, csr=csr, signature=signature)).decode()
    running = listener()
    running.ask(("SignCert " + body, None))
    (entry,) = running.audit()
    assert (entry["code"], entry["evidence_verified"]) == ("attestation.report_data", False)
    assert entry["evidence_sha256"] == hashlib.sha256(envelope).hexdigest()


def test_a_callers_method_name_is_cut(listener) -> None:
    running = listener()
    running.ask(("N" * 5000, None))
    assert running.audit()[0]["method"] == "N" * 64


# Counters

SERIES = re.compile(
    r"# TYPE [a-z_]+ (?:counter|gauge)"
    r'|[a-z_]+(?:\{[a-z_]+="[A-Za-z0-9_.-]*"(?:,[a-z_]+="[A-Za-z0-9_.-]*")*\})? \d+'
)


def test_counts_calls_by_method_platform_and_code(listener, leaf) -> None:
    questions = [("GetAppKey", leaf)] * 3 + [("GetAppKey", None), ('a"}b', None), ("GetMeta", None)]
    *_, page = listener(FEW).ask(*questions, ("/metrics", None))
    lines = page.text.splitlines()
    assert page.text.endswith("\n")
    assert not [line for line in lines if not SERIES.fullmatch(line)]
    assert set(lines) >= {
        "dstack_kms_attestation_requests_total 4",
        "dstack_kms_attestation_failures_total 2",
        'dstack_kms_calls_total{method="GetAppKey",tee_variant="dstack-nitro-enclave",code="ok"} 2',
        'dstack_kms_calls_total{method="GetAppKey",tee_variant="dstack-nitro-enclave",code="prpc.rate"} 1',
        'dstack_kms_calls_total{method="GetAppKey",tee_variant="",code="kms.no_attestation"} 1',
        'dstack_kms_calls_total{method="other",tee_variant="",code="prpc.method"} 1',
        'dstack_kms_calls_total{method="GetMeta",tee_variant="",code="ok"} 1',
        'dstack_kms_rate_limited_total{limit="caller"} 1',
        'dstack_kms_rate_limited_total{limit="evidence"} 0',
        "dstack_kms_connections 2",
        "dstack_kms_audit_lines_total 5",
    }
