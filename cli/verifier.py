"""`dstack-verifier`: upstream's verifier command, as a server and for one file (spec attestation 7.1 to 7.3).

Its exit codes are upstream's: 0 for valid evidence, 1 for everything else.
"""

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from cli.verifier_certificate import verify_certificate
from functions.verify.assembly import service_from
from functions.verify.service import CONTENT_TYPE, MAX_BODY, VerifyResponse, VerifyService, parse_request
from functions.verify.settings import VerifierSettings, parse_settings
from shared.errors import ConfigError, DstackError, ProtocolError

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# Requests that are judged at one time; the others wait.
THREADS = 8
_BODY_TOO_LARGE = b" " * (MAX_BODY + 1)


def main(argv: list[str] | None = None) -> int:
    """Serve, or judge one file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dstack-verifier", description="verify dstack evidence, as a server or for one file"
    )
    parser.add_argument(
        "-c", "--config", type=Path, help="settings (TOML); DSTACK_VERIFIER_* variables go first"
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--verify", type=Path, metavar="FILE", help="judge a request (JSON): 0 valid, 1 not")
    one.add_argument(
        "--verify-cert", type=Path, metavar="FILE", help="judge a self-signed RA-TLS certificate"
    )
    arguments = parser.parse_args(argv)
    try:
        settings = parse_settings(_read(arguments.config) if arguments.config else b"", os.environ)
        service = service_from(settings)
        if arguments.verify:
            return _judge_request(arguments.verify, service)
        if arguments.verify_cert:
            return _judge_certificate(arguments.verify_cert, service)
        return _serve(settings, service)
    except DstackError as error:
        sys.stderr.write(f"dstack-verifier: {error} [{error.code}]\n")
        return 1


def application(service: VerifyService) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """Return the ASGI application: the service's two paths, bodies bounded, work in a few threads."""
    import asyncio  # noqa: PLC0415 - one-shot runs need no event loop
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

    workers = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is None:
            return
        answer = await asyncio.get_running_loop().run_in_executor(
            workers, service.handle, scope["method"], scope["path"], body, int(time.time())
        )
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    return app


async def _body(receive: Receive) -> bytes | None:
    """Return the body, None when the client left; of one that is too long no more is read than shows it."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            return _BODY_TOO_LARGE
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _serve(settings: VerifierSettings, service: VerifyService) -> int:
    try:
        import uvicorn  # noqa: PLC0415 - only the server needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            "verify.server", "serving needs the verifier extra: pip install 'dstack-cloud[verifier]'"
        ) from error
    uvicorn.run(
        application(service), host=settings.address, port=settings.port, lifespan="off", log_level="info"
    )
    return 0


def _judge_request(path: Path, service: VerifyService) -> int:
    """Judge one request file; the response goes to a file beside it and, compact, to standard output."""
    try:
        response = service.verify(parse_request(_read(path)), int(time.time()))
    except (ProtocolError, ConfigError) as error:
        response = VerifyResponse(is_valid=False, reason=f"Internal error: {error.message}", code=error.code)
    answer = msgspec.json.encode(response)
    _write(path, ".verification.json", answer)
    sys.stdout.write(answer.decode() + "\n")
    return 0 if response.is_valid else 1


def _judge_certificate(path: Path, service: VerifyService) -> int:
    """Judge one certificate; a refusal goes to standard error alone, as upstream's does."""
    answer = msgspec.json.encode(verify_certificate(_read(path), service, now=int(time.time())))
    _write(path, ".ratls-verification.json", answer)
    sys.stdout.write(answer.decode() + "\n")
    return 0


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BODY + 1)
    except OSError as error:
        raise ConfigError("verify.file", f"cannot read {path}: {error.strerror}") from error


def _write(beside: Path, suffix: str, answer: bytes) -> None:
    target = beside.with_name(beside.name + suffix)
    try:
        target.write_bytes(msgspec.json.format(answer, indent=2) + b"\n")
    except OSError as error:
        raise ConfigError("verify.file", f"cannot write {target}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
