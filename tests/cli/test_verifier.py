"""`dstack-verifier`: one file, one certificate, and the server on the loopback interface."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.verifier import application, main
from enclave.simulator.evidence import Kind, write_sample
from functions.verify.service import MAX_BODY, VerifyService
from shared.attestation.trust import TrustAnchors

PLATFORMS: tuple[Kind, ...] = ("nitro", "nitro-tpm", "tdx", "gcp")
FLAG = "DSTACK_VERIFIER_ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS"
SERVED = {
    "nitro": ("aws_nitro_enclave",),
    "nitro-tpm": ("aws_nitro_tpm",),
    "tdx": ("tdx",),
    "gcp": ("tdx", "gcp_tpm"),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence of each platform, made now, in a directory of its name, with settings that trust its roots."""
    place = tmp_path_factory.mktemp("samples")
    for kind in PLATFORMS:
        write_sample(place / kind, kind, now=int(time.time()), challenge=bytes(64))
        pems = (place / kind / "root.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")
        lines = [
            "[attestation]",
            "insecure_allow_external_trust_anchors = true",
            "offline = true",
            f'endorsements = "{place}/{kind}/collateral.json"',
            "[attestation.root_ca]",
        ]
        for name, pem in zip(SERVED[kind], pems, strict=False):
            (place / kind / f"{name}.pem").write_bytes(pem + b"-----END CERTIFICATE-----\n")
            lines.append(f'{name} = "{place}/{kind}/{name}.pem"')
        (place / kind / "settings.toml").write_text("\n".join(lines))
    return place


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this shell's settings out."""
    for name in os.environ:
        if name.startswith("DSTACK_VERIFIER_"):
            monkeypatch.delenv(name)


def settings(samples: Path, kind: str) -> list[str]:
    return ["-c", str(samples / kind / "settings.toml")]


# --- one request ---


@pytest.mark.parametrize("kind", PLATFORMS)
def test_judges_one_request(kind: Kind, samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = samples / kind / "request.json"
    assert main([*settings(samples, kind), "--verify", str(request)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    answer = json.loads(shown)
    assert answer["is_valid"] is True
    written = request.with_name("request.json.verification.json").read_text()
    assert json.loads(written) == answer
    assert written.count("\n") > 10
    assert list(answer)[:3] == ["is_valid", "details", "reason"]


def test_refused_evidence_is_exit_code_1(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = samples / "tdx" / "request.json"
    assert main(["--verify", str(request)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["is_valid"], answer["code"]) == (False, "tdx.anchor")
    assert json.loads((samples / "tdx" / "request.json.verification.json").read_text()) == answer


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"{", "verify.body.syntax"), (b"[]", "verify.body.field"), (b'{"now":1}', "verify.body.override")],
)
def test_a_file_that_is_no_request_is_a_response_too(
    content: bytes, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(content)
    assert main(["--verify", str(path)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["is_valid"], answer["code"]) == (False, code)
    assert answer["reason"].startswith("Internal error: ")
    assert (tmp_path / "request.json.verification.json").exists()


def test_a_file_that_is_not_there_is_a_response_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--verify", str(tmp_path / "absent.json")]) == 1
    assert json.loads(capsys.readouterr().out)["code"] == "verify.file"


def test_n03_an_oversize_file_is_a_response_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(b" " * (MAX_BODY + 1))
    assert main(["--verify", str(path)]) == 1
    assert json.loads(capsys.readouterr().out)["code"] == "verify.body.size"


def test_an_answer_that_cannot_be_written_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--verify", str(tmp_path / "absent" / "request.json")]) == 1
    assert "[verify.file]" in capsys.readouterr().err


# --- settings ---


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("port = 0", "verify.settings.invalid"),
        ("port =", "verify.settings.syntax"),
        ('[attestation]\npolicy = "/absent"', "verify.settings.file"),
        ('[attestation.root_ca]\ntdx = "/absent"', "verify.anchors.flag"),
    ],
)
def test_bad_settings_are_exit_code_1(
    text: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert main(["-c", str(path)]) == 1
    shown = capsys.readouterr()
    assert f"[{code}]" in shown.err
    assert shown.out == ""


def test_settings_that_are_not_there_are_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "/absent.toml", "--verify", "/absent.json"]) == 1
    assert "[verify.file]" in capsys.readouterr().err


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DSTACK_VERIFIER_PORT", "0")
    assert main(["--verify", "/absent.json"]) == 1
    assert "[verify.settings.invalid]" in capsys.readouterr().err


def test_serving_without_the_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "dstack-cloud[verifier]" in said
    assert "verify.server" in said


def test_a_one_shot_run_loads_no_server() -> None:
    script = "import sys, cli.verifier; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"uvicorn", "asyncio", "dcap_qvl", "rich", "shared.net.fetch"} & set(done.stdout.split())


# --- certificates ---


@pytest.mark.parametrize("kind", PLATFORMS)
def test_judges_one_certificate(kind: Kind, samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = samples / kind / "certificate.pem"
    assert main([*settings(samples, kind), "--verify-cert", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    answer = json.loads(shown)
    assert answer["is_valid"] is True
    details = answer["details"]
    assert tuple(details) == ("tee_variant", "report_data", "public_key_der", "app_info")
    assert details["app_info"]["os_image_hash_verified"] is True
    assert "init_script_hashes" not in details["app_info"]
    written = path.with_name("certificate.pem.ratls-verification.json").read_text()
    assert json.loads(written) == answer


def test_a_refused_certificate_says_nothing_on_standard_output(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = samples / "gcp" / "certificate.pem"
    written = path.with_name("certificate.pem.ratls-verification.json")
    written.unlink(missing_ok=True)
    assert main(["--verify-cert", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dstack-verifier: ")
    assert not written.exists()


def test_a_request_and_a_certificate_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--verify", "a", "--verify-cert", "b"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


# --- the ASGI application ---


def exchange(service: VerifyService, *messages: dict[str, Any], **scope: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/verify", **scope}
    asyncio.run(application(service)(whole, receive, send))
    assert next(waiting, None) is None or scope.get("type") == "lifespan" or sent[0]["status"] == 413
    return sent


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.fixture(scope="module")
def production() -> VerifyService:
    """A service that trusts the vendors alone."""
    return VerifyService(TrustAnchors.production())


def test_a_body_may_come_in_parts(production: VerifyService) -> None:
    start, body = exchange(production, part(b'{"attest', more=True), part(b'ation":"00"}'))
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert json.loads(body["body"])["code"] == "scale.truncated"


def test_n03_of_an_endless_body_no_more_is_read_than_shows_it(production: VerifyService) -> None:
    half = b" " * (MAX_BODY // 2 + 1)
    start, _ = exchange(production, part(half, more=True), part(half, more=True), part(half, more=True))
    assert start["status"] == 413


def test_a_client_that_leaves_gets_no_answer(production: VerifyService) -> None:
    assert exchange(production, part(b"{", more=True), {"type": "http.disconnect"}) == []


def test_only_http_is_served(production: VerifyService) -> None:
    assert exchange(production, type="lifespan") == []


# --- the server ---


class Server:
    """A `dstack-verifier` process on a free port, and one connection to it."""

    def __init__(self, samples: Path, kind: str) -> None:
        self.port = _free_port()
        environment = {
            **os.environ,
            "DSTACK_VERIFIER_PORT": str(self.port),
            "DSTACK_VERIFIER_ADDRESS": "127.0.0.1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.verifier", *settings(samples, kind)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def wait(self) -> None:
        """Wait until it says that it listens."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"Uvicorn running" in line:
                return
        raise AssertionError("the server ended")

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            return response.status, answer
        finally:
            connection.close()


def _free_port() -> int:
    import socket  # noqa: PLC0415 - here alone

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(samples: Path) -> Iterator[Server]:
    """One that trusts the GCP sample's roots."""
    running = Server(samples, "gcp")
    try:
        running.wait()
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.communicate(timeout=30)


def test_the_server_is_healthy(server: Server) -> None:
    assert server.ask("GET", "/health") == (200, {"status": "ok", "service": "dstack-verifier"})


def test_the_server_verifies(server: Server, samples: Path) -> None:
    status, answer = server.ask("POST", "/verify", (samples / "gcp" / "request.json").read_bytes())
    assert (status, answer["is_valid"]) == (200, True)


def test_the_server_refuses(server: Server, samples: Path) -> None:
    status, answer = server.ask("POST", "/verify", (samples / "tdx" / "request.json").read_bytes())
    assert (status, answer["code"]) == (200, "tdx.anchor")
    assert server.ask("POST", "/verify", b"{")[0] == 400
    assert server.ask("GET", "/elsewhere")[0] == 404


def test_n03_the_server_bounds_a_body(server: Server) -> None:
    status, answer = server.ask("POST", "/verify", b" " * (MAX_BODY + 1))
    assert (status, answer["code"]) == (413, "verify.body.size")
    assert server.ask("GET", "/health")[0] == 200
