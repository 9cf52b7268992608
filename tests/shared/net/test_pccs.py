"""The collateral client against services that misbehave: bounded, byte exact, never redirected."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import hypothesis.strategies as st
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave.simulator.pccs import Answer, CollateralServer
from shared.attestation.collateral import CollateralFacts
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.roots import INTEL_SGX_ROOT
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net import pccs
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.pccs import PccsClient, read_signed
from shared.net.response import Response
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.net.services import (
    CHAIN_HEADER,
    COLLATERAL,
    DAY,
    FMSPC,
    NOW,
    PEM,
    Misbehaving,
    RoutedDialer,
    certificate_of,
    changed,
    collateral,
    plain_client,
)
from tests.shared.net.test_fetch import OK, answering, certificate, drip, read_request, tls_answering

RawServer = Callable[[Callable[[socket.socket], None]], int]
OTHER_FMSPC = bytes(6)
RSA_PEM = certificate_of(rsa.generate_private_key(65537, 2048))


def good(fmspc: str, ca: str) -> TdxCollateral | None:
    return COLLATERAL if fmspc in {"", FMSPC.hex()} and ca in {"", "platform"} else None


@pytest.fixture
def http() -> Iterator[HttpClient]:
    with plain_client() as client:
        yield client


def client(http: HttpClient, *urls: str, timeout: float = 30) -> PccsClient:
    return PccsClient(urls, http, allow_plain_http=True, timeout=timeout)


def cause(fetcher: PccsClient) -> DstackError:
    """Fetch in vain; return what went wrong with the first service."""
    with pytest.raises(UnavailableError) as caught:
        fetcher.fetch(FMSPC, "platform")
    assert caught.value.code == "pccs.unavailable"
    assert isinstance(caught.value.__cause__, DstackError)
    assert caught.value.__cause__.code in caught.value.message
    return caught.value.__cause__


def test_fetches_the_four_parts(http: HttpClient) -> None:
    with CollateralServer(good) as server:
        assert client(http, server.url).fetch(FMSPC, "platform") == COLLATERAL
    assert server.requests == [
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/tdx/certification/v4/tcb?fmspc=00A06D080000",
        "/tdx/certification/v4/qe/identity?update=standard",
        "/sgx/certification/v4/rootcacrl",
    ]


@pytest.mark.parametrize("suffix", ["", "/", "/sgx/certification/v4", "/tdx/certification/v4/"])
def test_takes_the_base_url_in_each_spelling(http: HttpClient, suffix: str) -> None:
    with CollateralServer(good) as server:
        assert client(http, server.url + suffix).fetch(FMSPC, "platform") == COLLATERAL


def test_keeps_the_path_of_a_base_url(http: HttpClient) -> None:
    with CollateralServer(good) as server:
        cause(client(http, server.url + "/cache/sgx/certification/v4"))
    assert server.requests[0].startswith("/cache/sgx/certification/v4/pckcrl?")


def test_a_path_below_the_service_prefix_is_needed(http: HttpClient) -> None:
    with CollateralServer(good) as server:
        assert http.request("GET", f"{server.url}/sgx/certification/v4/other").status == 404
        assert http.request("GET", f"{server.url}/other").status == 404


def test_a_tcb_chain_may_have_its_older_header(http: HttpClient) -> None:
    spoil = changed(headers={"SGX-TCB-Info-Issuer-Chain": CHAIN_HEADER})
    with Misbehaving(good, {"/tcb?": spoil}) as server:
        assert client(http, server.url).fetch(FMSPC, "platform") == COLLATERAL


def test_n20_a_redirect_to_plain_http_is_refused(http: HttpClient) -> None:
    with CollateralServer(good) as other:
        spoil = changed(status=302, headers={"Location": f"{other.url}/"})
        with Misbehaving(good, {"/tcb?": spoil}) as server:
            error = cause(client(http, server.url))
        assert error.code == "pccs.status"
        assert "redirect" in error.message
        assert other.requests == []


@pytest.mark.parametrize("route", ["pckcrl", "tcb?", "qe/identity", "rootcacrl"])
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (changed(status=404), "pccs.status"),
        (changed(status=500), "pccs.status"),
        (changed(body=b"<html>sign in</html>"), "body"),
        (changed(body=b""), "body"),
        (changed(body=b"a" * 600_000), "net.response.oversize"),
    ],
    ids=["404", "500", "html", "empty", "oversize"],
)
def test_n20_a_wrong_answer_is_refused(
    http: HttpClient, route: str, spoil: Callable[[Answer], Answer], code: str
) -> None:
    with Misbehaving(good, {route: spoil}) as server:
        got = cause(client(http, server.url)).code
    # by route: json, a list, or a list in hex
    assert got in ({"pccs.body.syntax", "collateral.crl", "pccs.body"} if code == "body" else {code})


@pytest.mark.parametrize("route", ["pckcrl", "tcb?", "qe/identity"])
@pytest.mark.parametrize(
    "chain",
    [
        None,
        "",
        "not%20pem",
        "%zz",
        CHAIN_HEADER * 5,
        CHAIN_HEADER + "rest",
        "A" * 50_000,
        CHAIN_HEADER.replace("MII", "A" * 20_000),
        "%ff%fe",
        CHAIN_HEADER.replace("MII", "MI"),
    ],
    ids=["absent", "empty", "text", "escape", "many", "trailing", "long", "long pem", "not utf-8", "base64"],
)
def test_n20_a_missing_or_odd_chain_header_is_refused(
    http: HttpClient, route: str, chain: str | None
) -> None:
    names = ("SGX-PCK-CRL-Issuer-Chain", "TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain")
    headers = {} if chain is None else dict.fromkeys(names, chain)
    with Misbehaving(good, {route: changed(headers=headers)}) as server:
        assert cause(client(http, server.url)).code == "pccs.header"


def test_n14_collateral_for_another_fmspc_is_refused(http: HttpClient) -> None:
    with CollateralServer(lambda _fmspc, _ca: collateral(OTHER_FMSPC)) as server:
        assert cause(client(http, server.url)).code == "pccs.fmspc"


def test_n20_a_slow_body_ends_at_the_deadline(http: HttpClient, raw_server: RawServer) -> None:
    port = raw_server(drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a"))
    assert cause(client(http, f"http://127.0.0.1:{port}", timeout=0.3)).code == "net.timeout"


def test_n20_an_endless_body_is_refused(http: HttpClient, raw_server: RawServer) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"a" * 65536)

    port = raw_server(serve)
    assert cause(client(http, f"http://127.0.0.1:{port}")).code == "net.response.oversize"


def test_n20_a_bad_tls_certificate_is_refused(raw_server: RawServer, tmp_path: Path) -> None:
    file, _ = certificate(tmp_path, "127.0.0.1")
    port = raw_server(tls_answering(file, answering(OK)))
    fetcher = PccsClient([f"https://127.0.0.1:{port}"], HttpClient(DirectDialer()))
    assert cause(fetcher).code == "net.tls.refused"


def test_n20_plain_http_must_be_allowed_by_name(http: HttpClient) -> None:
    with pytest.raises(ConfigError) as caught:
        PccsClient(["https://pccs.example", "http://127.0.0.1:1"], http)
    assert caught.value.code == "pccs.config.plain_http"


@pytest.mark.parametrize(
    "url",
    [
        "pccs.example",
        "ftp://pccs.example",
        "https://",
        "https://pccs.example/?a=b",
        "https://pccs.example/#a",
        "https://pccs.example/a b",
        "https://pccs.example:99999",
        "https://pccs.exämple",
    ],
)
def test_refuses_a_base_url_of_another_shape(http: HttpClient, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PccsClient([url], http)
    assert caught.value.code == "pccs.config.url"


@pytest.mark.parametrize("count", [0, 9])
def test_refuses_none_and_too_many_services(http: HttpClient, count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        PccsClient(["https://pccs.example"] * count, http)
    assert caught.value.code == "pccs.config.count"


def test_the_next_service_is_asked_where_one_fails(http: HttpClient) -> None:
    with Misbehaving(good, {"/tcb?": changed(status=500)}) as broken, CollateralServer(good) as server:
        fetcher = client(http, broken.url, server.url)
        assert fetcher.fetch(FMSPC, "platform") == COLLATERAL


def test_parts_of_two_services_are_never_mixed(http: HttpClient) -> None:
    newer = collateral(issued=NOW)
    with (
        Misbehaving(good, {"rootcacrl": changed(status=500)}) as broken,
        CollateralServer(lambda _fmspc, _ca: newer) as server,
    ):
        assert client(http, broken.url, server.url).fetch(FMSPC, "platform") == newer


def test_the_next_service_is_asked_where_the_caller_refuses(http: HttpClient) -> None:
    """A service that is stuck at an old state does not hide a current one."""
    old, new = collateral(issued=NOW - 20 * DAY), COLLATERAL

    def refuse_old(facts: CollateralFacts) -> None:
        if facts.issued < NOW - 10 * DAY:
            raise InvalidEvidence("tdx.collateral.age", "too old")

    with (
        CollateralServer(lambda _fmspc, _ca: old) as stuck,
        CollateralServer(lambda _fmspc, _ca: new) as current,
    ):
        fetcher = client(http, stuck.url, current.url)
        assert fetcher.fetch(FMSPC, "platform") == old
        assert fetcher.fetch(FMSPC, "platform", refuse_old) == new


def test_json_that_was_spelled_anew_is_refused(http: HttpClient) -> None:
    """Same values, keys in another order: Intel did not sign that text, and another service may have it."""

    def reorder(answer: Answer) -> Answer:
        body = json.loads(answer.body)
        body["tcbInfo"] = dict(reversed(body["tcbInfo"].items()))
        return msgspec.structs.replace(answer, body=json.dumps(body).encode())

    with Misbehaving(good, {"tcb?": reorder}) as spelling:
        assert cause(client(http, spelling.url)).code == "pccs.signature"
        with CollateralServer(good) as exact:
            assert client(http, spelling.url, exact.url).fetch(FMSPC, "platform") == COLLATERAL


def test_members_around_the_signed_object_may_stand_in_any_order(http: HttpClient) -> None:
    def reorder(answer: Answer) -> Answer:
        head, text = b'{"tcbInfo":', COLLATERAL.tcb_info.encode()
        assert answer.body.startswith(head + text)
        signature = COLLATERAL.tcb_info_signature.hex().encode()
        return msgspec.structs.replace(
            answer, body=b'{ "signature" : "' + signature + b'" , "tcbInfo" :\n' + text + b" }"
        )

    with Misbehaving(good, {"tcb?": reorder}) as server:
        assert client(http, server.url).fetch(FMSPC, "platform") == COLLATERAL


@pytest.mark.parametrize(
    "certificate",
    [certificate_of(ec.generate_private_key(ec.SECP256R1())), RSA_PEM],
    ids=["another key", "no curve"],
)
def test_a_chain_whose_first_key_did_not_sign_is_refused(http: HttpClient, certificate: str) -> None:
    headers = {"TCB-Info-Issuer-Chain": quote(certificate)}
    with Misbehaving(good, {"tcb?": changed(headers=headers)}) as server:
        assert cause(client(http, server.url)).code == "pccs.signature"


def test_a_chain_in_another_spelling_of_pem_is_taken(http: HttpClient) -> None:
    headers = {"TCB-Info-Issuer-Chain": quote(PEM.replace("\n", "\r\n").rstrip())}
    with Misbehaving(good, {"tcb?": changed(headers=headers)}) as server:
        assert client(http, server.url).fetch(FMSPC, "platform") == COLLATERAL


def test_n14_the_list_of_the_other_ca_is_refused(http: HttpClient) -> None:
    other = collateral(ca="Processor")
    with CollateralServer(lambda _fmspc, _ca: other) as server:
        assert cause(client(http, server.url)).code == "pccs.ca"


def test_a_hanging_service_leaves_time_for_the_next(http: HttpClient, raw_server: RawServer) -> None:
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        done.wait(10)

    with CollateralServer(good) as server:
        fetcher = client(http, f"http://127.0.0.1:{raw_server(serve)}", server.url, timeout=3)
        assert fetcher.fetch(FMSPC, "platform") == COLLATERAL
    done.set()


def test_the_error_says_why_of_each_service(http: HttpClient) -> None:
    with (
        CollateralServer() as first,
        Misbehaving(good, {"tcb?": changed(body=b"[]")}) as second,
        pytest.raises(UnavailableError) as caught,
    ):
        client(http, first.url, second.url).fetch(FMSPC, "platform")
    assert FMSPC.hex() in caught.value.message
    assert "pccs.status" in caught.value.message
    assert "pccs.body" in caught.value.message


def test_intels_root_crl_is_where_its_root_says() -> None:
    root = x509.load_der_x509_certificate(INTEL_SGX_ROOT.der)
    [point] = root.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    assert [name.value for name in point.full_name] == [pccs.INTEL_ROOT_CRL_URL]


def test_intels_own_service_gives_the_root_crl_elsewhere() -> None:
    """By the names and schemes that it asks for; below, one loopback server stands for both hosts."""
    api, crl = "api.trustedservices.intel.com", "certificates.trustedservices.intel.com"
    answers = {urlsplit(pccs.INTEL_ROOT_CRL_URL).path: COLLATERAL.root_ca_crl}
    fetched: list[str] = []

    class Routed(HttpClient):
        def request(self, method, url, body=None, headers=None, *, timeout=None, max_bytes=None):
            parts = urlsplit(url)
            fetched.append(f"{parts.scheme}://{parts.hostname}{parts.path}")
            plain = f"http://127.0.0.1:1{parts.path}?{parts.query}"
            return super().request(method, plain, body, headers, timeout=timeout, max_bytes=max_bytes)

    with CollateralServer(good, answers) as server:
        routed = Routed(RoutedDialer(int(server.url.rpartition(":")[2])))
        assert PccsClient([pccs.INTEL_PCS], routed).fetch(FMSPC, "platform") == COLLATERAL
        routed.close()
    assert fetched == [
        f"https://{api}/sgx/certification/v4/pckcrl",
        f"https://{api}/tdx/certification/v4/tcb",
        f"https://{api}/tdx/certification/v4/qe/identity",
        f"https://{crl}/IntelSGXRootCA.der",
    ]


SIGNATURE = "ab" * 64


def test_the_signed_text_is_cut_byte_for_byte() -> None:
    text = '{"b" : 1.10 ,\n\t"a":"\\u00e9é\\/","c":{"tcbInfo":{}}}'
    for body in (
        f'{{"tcbInfo":{text},"signature":"{SIGNATURE}"}}',
        f' {{ "signature" : "{SIGNATURE}" , "more":[1,{{}}], "tcbInfo" :  {text} }} ',
    ):
        assert read_signed(body.encode(), "tcbInfo") == (text, bytes.fromhex(SIGNATURE))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "pccs.body.syntax"),
        ("[]", "pccs.body"),
        ("{}", "pccs.body"),
        (f'{{"signature":"{SIGNATURE}"}}', "pccs.body"),
        (f'{{"tcbInfo":"{{}}","signature":"{SIGNATURE}"}}', "pccs.body"),
        (f'{{"tcbInfo":null,"signature":"{SIGNATURE}"}}', "pccs.body"),
        ('{"tcbInfo":{},"signature":7}', "pccs.body"),
        ('{"tcbInfo":{},"signature":"ab"}', "pccs.signature"),
        (f'{{"tcbInfo":{{}},"signature":"{SIGNATURE[:-1]}g"}}', "pccs.signature"),
        (f'{{"tcbInfo":{{}},"tcbInfo":{{"a":1}},"signature":"{SIGNATURE}"}}', "pccs.body.duplicate_key"),
        (f'{{"tcbInfo":{{"a":1,"a":2}},"signature":"{SIGNATURE}"}}', "pccs.body.duplicate_key"),
        (f'{{"tcbInfo":{{"a":{"[" * 80}{"]" * 80}}},"signature":"{SIGNATURE}"}}', "pccs.body.depth"),
        (f'{{"tcbInfo":{{}},"signature":"{SIGNATURE}"}}x', "pccs.body.syntax"),
        (" " * 300_000, "pccs.body.size"),
    ],
)
def test_a_body_that_is_not_a_signed_object_is_refused(body: str, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_signed(body.encode(), "tcbInfo")
    assert caught.value.code == code


@pytest.mark.parametrize("tcb_info", ['{"fmspc":7}', "{}", '{"fmspc":null}'])
def test_a_tcb_info_that_names_no_platform_is_refused(http: HttpClient, tcb_info: str) -> None:
    body = f'{{"tcbInfo":{tcb_info},"signature":"{SIGNATURE}"}}'.encode()
    with Misbehaving(good, {"tcb?": changed(body=body)}) as server:
        assert cause(client(http, server.url)).code == "collateral.tcb_info"


BODY = f'{{"enclaveIdentity":{COLLATERAL.qe_identity},"signature":"{SIGNATURE}"}}'.encode()


@fuzz(st.binary(max_size=512) | mutated([BODY]))
def test_any_body_gives_an_exact_cut_or_a_refusal(body: bytes) -> None:
    if (found := outcome(read_signed, body, "enclaveIdentity")) is not None:
        text, signature = found
        assert text.encode() in body
        assert json.loads(text) == json.loads(body)["enclaveIdentity"]
        assert signature.hex() == json.loads(body)["signature"].lower()


def whole_answers() -> dict[str, Answer]:
    with CollateralServer(good) as server, plain_client() as http:
        client(http, server.url).fetch(FMSPC, "platform")
        return {target: server.answer(target) for target in server.requests}


ANSWERS = whole_answers()


class Scripted(HttpClient):
    """Answers from memory, one part of the answers spoiled."""

    def __init__(self, part: str, value: bytes) -> None:
        super().__init__(DirectDialer())
        self._part, self._value = part, value

    def request(self, _method: str, url: str, *_: object, **_limits: object) -> Response:
        answer = ANSWERS[url.removeprefix("https://pccs.example")]
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if self._part == "header":
            headers = dict.fromkeys(headers, self._value.decode("latin-1"))
        return Response(200, headers, self._value if self._part in url else answer.body)


PARTS = {
    "pckcrl": COLLATERAL.pck_crl,
    "tcb?": f'{{"tcbInfo":{COLLATERAL.tcb_info},"signature":"{SIGNATURE}"}}'.encode(),
    "qe/identity": BODY,
    "rootcacrl": COLLATERAL.root_ca_crl.hex().encode(),
    "header": CHAIN_HEADER.encode(),
}


@fuzz(st.sampled_from(sorted(PARTS)).flatmap(lambda part: st.tuples(st.just(part), mutated([PARTS[part]]))))
def test_any_answer_gives_collateral_or_a_refusal(example: tuple[str, bytes]) -> None:
    outcome(PccsClient(["https://pccs.example"], Scripted(*example)).fetch, FMSPC, "platform")
