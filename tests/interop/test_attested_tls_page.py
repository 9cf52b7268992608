"""docs/attested-tls.md: its Python runs as printed, and prints what the page shows."""

import contextlib
import http.server
import io
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from enclave.agent.certificates import new_tls_key, tls_key_pem
from tests.interop.test_app_tls import CONFIG, Hello, World, world

__all__ = ["world"]

PAGE = Path(__file__).parents[2] / "docs/attested-tls.md"


def block(name: str) -> str:
    """Return the one block of the page that is marked with a name."""
    (found,) = re.findall(rf"```\w+ {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def run(name: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(block(name), name, "exec"), names)  # noqa: S102 - the page, which is ours
    return names


def test_the_page_runs_as_printed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kms-root-ca.pem").write_bytes(world.root_ca)
    key = new_tls_key()
    answer = {
        "key": tls_key_pem(key),
        "certificate_chain": list(world.apps["gcp"].issuer.issue(key, CONFIG)),
    }
    context = run("server", {"answer": answer})["context"]
    assert run("verifier", {})["verifier"].anchors
    server = http.server.HTTPServer(("127.0.0.1", 0), Hello)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=partial(server.serve_forever, 0.02))
    thread.start()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run("client", {"url": f"https://localhost:{server.server_port}", "verifier": world.verifier})
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
    assert printed.getvalue() == block("output")
