"""The loopback server of what vendors publish: its routes, its files, its ways to serve."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from enclave.simulator.pccs import CollateralServer
from enclave.simulator.tdx import SimulatedIntel
from shared.attestation.endorsements import TdxCollateral

NOW = 1_767_225_600
FMSPC = "00" * 6
COLLATERAL = SimulatedIntel.create().collateral(NOW)


def known(fmspc: str, ca: str) -> TdxCollateral | None:
    return COLLATERAL if fmspc in {"", FMSPC} and ca in {"", "platform"} else None


@pytest.fixture
def server() -> Iterator[CollateralServer]:
    with CollateralServer(known, {"/a.crl": b"fixed", "/b.crl": lambda: b"made"}) as running:
        yield running


def get(server: CollateralServer, target: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(server.url + target) as answer:  # noqa: S310 - our own loopback server
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_signed_texts_are_served_as_they_were_signed(server: CollateralServer, kind: str) -> None:
    _, body, headers = get(server, f"/{kind}/certification/v4/tcb?fmspc={FMSPC}")
    assert (
        body
        == f'{{"tcbInfo":{COLLATERAL.tcb_info},"signature":"{COLLATERAL.tcb_info_signature.hex()}"}}'.encode()
    )
    assert unquote(headers["TCB-Info-Issuer-Chain"]) == COLLATERAL.tcb_info_issuer_chain
    _, body, headers = get(server, f"/{kind}/certification/v4/qe/identity?update=standard")
    assert COLLATERAL.qe_identity.encode() in body
    assert json.loads(body)["signature"] == COLLATERAL.qe_identity_signature.hex()
    assert unquote(headers["SGX-Enclave-Identity-Issuer-Chain"]) == COLLATERAL.qe_identity_issuer_chain


def test_revocation_lists_are_served(server: CollateralServer) -> None:
    _, body, headers = get(server, "/sgx/certification/v4/pckcrl?ca=platform&encoding=der")
    assert body == COLLATERAL.pck_crl
    assert unquote(headers["SGX-PCK-CRL-Issuer-Chain"]) == COLLATERAL.pck_crl_issuer_chain
    assert get(server, "/sgx/certification/v4/rootcacrl")[1] == COLLATERAL.root_ca_crl.hex().encode()


def test_files_are_served_fixed_or_made(server: CollateralServer) -> None:
    assert (get(server, "/a.crl")[:2], get(server, "/b.crl")[:2]) == ((200, b"fixed"), (200, b"made"))


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/c.crl",
        "/sgx/certification/v4/other",
        "/sgx/certification/v3/rootcacrl",
        "/tdx/certification/v4/tcb?fmspc=010101010101",
        "/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
    ],
)
def test_what_is_not_there_is_not_found(server: CollateralServer, target: str) -> None:
    assert get(server, target)[0] == 404


def test_requests_are_remembered(server: CollateralServer) -> None:
    get(server, "/a.crl")
    get(server, "/absent?x=1")
    assert server.requests == ["/a.crl", "/absent?x=1"]


def test_it_may_serve_in_the_calling_thread() -> None:
    server = CollateralServer(files={"/a": b"a"})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert get(server, "/a")[:2] == (200, b"a")
    finally:
        server._server.shutdown()
        thread.join()
