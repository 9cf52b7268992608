"""A token is what its issuer signed, for us, for now; and no token decides what is fetched or how often."""

import base64
import hmac
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from functions.deploy import oidc
from functions.deploy.oidc import TokenSource, TokenVerifier, WorkerGate, bearer_token
from shared.errors import UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.response import Response
from tests.functions.deploy.issuer import Issuer, PrivateKey, ec_key, jwk, rsa_key, sign
from tests.functions.deploy.uploads import AUDIENCE, NOW
from tests.shared.refusal import refuses

RSA, OTHER_RSA, EC = rsa_key(), rsa_key(), ec_key()


@pytest.fixture(scope="module")
def running_issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.close()


@pytest.fixture
def issuer(running_issuer: Issuer) -> Issuer:
    running_issuer.reset()
    running_issuer.publish(jwk(RSA, "rsa"), jwk(EC, "ec"))
    return running_issuer


@pytest.fixture
def http(issuer: Issuer) -> Iterator[HttpClient]:
    client = HttpClient(DirectDialer(), issuer.certificate)
    yield client
    client.close()


@pytest.fixture
def verifier(issuer: Issuer, http: HttpClient) -> TokenVerifier:
    return TokenVerifier([issuer.url], AUDIENCE, http)


def claims(issuer: Issuer, **changes: Any) -> dict[str, Any]:
    made = {"iss": issuer.url, "aud": AUDIENCE, "iat": NOW - 5, "nbf": NOW - 5, "exp": NOW + 300} | changes
    return {name: value for name, value in made.items() if value is not None}


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(("key", "key_id"), [(RSA, "rsa"), (EC, "ec")])
def test_returns_the_claims_of_a_token(
    verifier: TokenVerifier, issuer: Issuer, key: PrivateKey, key_id: str
) -> None:
    made = claims(issuer, repository_id="1001")
    assert verifier.verify(sign(made, key, key_id), NOW) == made


def test_takes_an_audience_that_is_a_list_of_one(verifier: TokenVerifier, issuer: Issuer) -> None:
    assert verifier.verify(sign(claims(issuer, aud=[AUDIENCE]), RSA, "rsa"), NOW)["aud"] == [AUDIENCE]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"aud": "https://other.example.com"}, "audience"),
        ({"aud": f"{AUDIENCE}/"}, "audience"),
        ({"aud": AUDIENCE.upper()}, "audience"),
        ({"aud": [AUDIENCE, "https://other.example.com"]}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": None}, "audience"),
        ({"iss": "https://evil.example.com"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": ["https://evil.example.com"]}, "issuer"),
        ({"exp": NOW - 30}, "expired"),
        ({"exp": None}, "malformed"),
        ({"exp": "never"}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": 1e300}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"iat": None}, "malformed"),
        ({"iat": NOW + 31}, "early"),
        ({"nbf": NOW + 31}, "early"),
        ({"exp": NOW + 90_000}, "lifetime"),
    ],
)
def test_refuses_other_claims(
    verifier: TokenVerifier, issuer: Issuer, changes: dict[str, Any], code: str
) -> None:
    with refuses(f"deploy.token.{code}"):
        verifier.verify(sign(claims(issuer, **changes), RSA, "rsa"), NOW)


@pytest.mark.parametrize("changes", [{"exp": NOW - 29}, {"iat": NOW + 30}, {"nbf": NOW + 30}, {"nbf": None}])
def test_clocks_may_differ_a_little(verifier: TokenVerifier, issuer: Issuer, changes: dict[str, Any]) -> None:
    verifier.verify(sign(claims(issuer, **changes), RSA, "rsa"), NOW)


def test_refuses_a_token_without_a_signature(verifier: TokenVerifier, issuer: Issuer) -> None:
    for name in ("none", "None", "NONE"):
        with refuses("deploy.token.algorithm"):
            verifier.verify(unsigned({"alg": name, "kid": "rsa"}, claims(issuer)), NOW)
    token = sign(claims(issuer), RSA, "rsa")
    with refuses("deploy.token.signature"):
        verifier.verify(token.rpartition(".")[0] + ".", NOW)


def test_says_why_a_token_behind_cloud_runs_own_check_is_of_no_use(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    token = sign(claims(issuer), RSA, "rsa").rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
    with refuses("deploy.token.stripped"):
        verifier.verify(token, NOW)


def test_refuses_the_public_key_as_a_secret(verifier: TokenVerifier, issuer: Issuer) -> None:
    secret = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for header in ({"alg": "HS256", "kid": "rsa"}, {"alg": "RS256", "kid": "rsa"}):
        head = unsigned(header, claims(issuer)).rpartition(".")[0]
        signature = hmac.digest(secret, head.encode(), "sha256")
        with refuses(f"deploy.token.{'algorithm' if header['alg'] == 'HS256' else 'signature'}"):
            verifier.verify(unsigned(header, claims(issuer), signature), NOW)


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_refuses_other_algorithms_of_the_same_key(
    verifier: TokenVerifier, issuer: Issuer, algorithm: str
) -> None:
    token = jwt.encode(claims(issuer), RSA, algorithm, headers={"kid": "rsa"})
    with refuses("deploy.token.algorithm"):
        verifier.verify(token, NOW)


def test_a_key_is_for_one_algorithm(verifier: TokenVerifier, issuer: Issuer) -> None:
    with refuses("deploy.token.algorithm"):
        verifier.verify(sign(claims(issuer), RSA, "ec"), NOW)
    with refuses("deploy.token.algorithm"):
        verifier.verify(sign(claims(issuer), EC, "rsa"), NOW)


def test_refuses_another_key_under_a_known_name(verifier: TokenVerifier, issuer: Issuer) -> None:
    with refuses("deploy.token.signature"):
        verifier.verify(sign(claims(issuer), OTHER_RSA, "rsa"), NOW)


def test_a_key_that_the_token_brings_is_not_used(verifier: TokenVerifier, issuer: Issuer) -> None:
    brought = jwk(OTHER_RSA, "own")
    for headers in ({"jwk": brought}, {"jku": f"{issuer.url}/evil"}, {"x5u": f"{issuer.url}/evil"}):
        with refuses("deploy.token.key"):
            verifier.verify(sign(claims(issuer), OTHER_RSA, "own", **headers), NOW)
    assert "/evil" not in issuer.asked


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"crit": ["exp"]}, "malformed"),
        ({"crit": ["b64"], "b64": False}, "malformed"),
        ({"crit": ["b64"], "b64": True}, "algorithm"),
    ],
)
def test_refuses_headers_that_must_be_understood(
    verifier: TokenVerifier, issuer: Issuer, headers: dict[str, Any], code: str
) -> None:
    with refuses(f"deploy.token.{code}"):
        verifier.verify(unsigned({"alg": "RS256", "kid": "rsa"} | headers, claims(issuer), b"x"), NOW)


def test_refuses_what_was_changed(verifier: TokenVerifier, issuer: Issuer) -> None:
    head, body, signature = sign(claims(issuer), RSA, "rsa").split(".")
    _, other, _ = sign(claims(issuer, repository_id="1001"), RSA, "rsa").split(".")
    assert body != other
    with refuses("deploy.token.signature"):
        verifier.verify(f"{head}.{other}.{signature}", NOW)


@pytest.mark.parametrize(
    "token",
    [
        "a",
        "a.b",
        "a.b.c",
        "...",
        "{}.{}.{}",
        "é.b.c",
        "eyJhbGciOiJSUzI1NiJ9.W10.x",
        f"{'e30.' * 5}",
        "e30.e30.e30",
    ],
)
def test_refuses_what_is_no_token(verifier: TokenVerifier, issuer: Issuer, token: str) -> None:
    with pytest.raises(oidc.InvalidEvidence) as refused:
        verifier.verify(token, NOW)
    assert refused.value.code in {"deploy.token.malformed", "deploy.token.algorithm"}
    assert issuer.asked == []


def test_bounds_a_token_before_it_is_read(verifier: TokenVerifier) -> None:
    for token in ("", "a" * 16_385):
        with refuses("deploy.token.size"):
            verifier.verify(token, NOW)


def test_nothing_is_fetched_from_an_issuer_that_a_token_names(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    elsewhere = f"{issuer.url}/tenant"
    issuer.documents["/tenant/.well-known/openid-configuration"] = {
        "issuer": elsewhere,
        "jwks_uri": f"{issuer.url}/keys",
    }
    with refuses("deploy.token.issuer"):
        verifier.verify(sign(claims(issuer, iss=elsewhere), RSA, "rsa"), NOW)
    assert issuer.asked == []


# ---- keys ----


def test_keys_are_fetched_once_and_again_after_an_hour(verifier: TokenVerifier, issuer: Issuer) -> None:
    for later in (0, 1, 3599):
        verifier.verify(sign(claims(issuer, exp=NOW + 5000), RSA, "rsa"), NOW + later)
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]
    verifier.verify(sign(claims(issuer, exp=NOW + 5000), RSA, "rsa"), NOW + 3600)
    assert len(issuer.asked) == 4


def test_a_key_that_is_new_is_found(verifier: TokenVerifier, issuer: Issuer) -> None:
    verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW)
    issuer.publish(jwk(OTHER_RSA, "next"))
    token = sign(claims(issuer), OTHER_RSA, "next")
    with refuses("deploy.token.key"):
        verifier.verify(token, NOW + 59)
    assert verifier.verify(token, NOW + 60)["iss"] == issuer.url
    with refuses("deploy.token.key"):
        verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW + 61)


def test_unknown_keys_cause_no_flood_of_fetches(verifier: TokenVerifier, issuer: Issuer) -> None:
    for number in range(100):
        with refuses("deploy.token.key"):
            verifier.verify(sign(claims(issuer), EC, f"unknown-{number}"), NOW + number // 10)
    assert len(issuer.asked) == 2


def test_many_at_once_cause_one_fetch(verifier: TokenVerifier, issuer: Issuer) -> None:
    gate = threading.Barrier(8)
    token = sign(claims(issuer), RSA, "rsa")

    def ask(_: int) -> dict[str, Any]:
        gate.wait()
        return verifier.verify(token, NOW)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(8)))) == 8
    assert len(issuer.asked) == 2


def test_keys_serve_while_their_issuer_is_down_but_not_for_ever(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW)
    issuer.status = 503
    for later in (3600, 86_400):
        verifier.verify(sign(claims(issuer, iat=NOW + later, exp=NOW + later + 60), RSA, "rsa"), NOW + later)
    with refuses("deploy.issuer", UnavailableError):
        verifier.verify(sign(claims(issuer, iat=NOW + 86_401, exp=NOW + 90_000), RSA, "rsa"), NOW + 86_401)


def test_an_issuer_that_is_down_at_first_is_asked_again_soon(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.status = 503
    token = sign(claims(issuer), RSA, "rsa")
    for later in (0, 1, 4):
        with refuses("deploy.issuer", UnavailableError):
            verifier.verify(token, NOW + later)
    assert len(issuer.asked) == 1
    issuer.status = 200
    assert verifier.verify(token, NOW + 5)


def test_an_issuer_without_a_trusted_certificate_is_none(issuer: Issuer) -> None:
    client = HttpClient(DirectDialer())
    with refuses("deploy.issuer", UnavailableError):
        TokenVerifier([issuer.url], AUDIENCE, client).verify(sign(claims(issuer), RSA, "rsa"), NOW)
    client.close()
    assert issuer.asked == []


DISCOVERY = "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (DISCOVERY, None),
        (DISCOVERY, b"not json"),
        (DISCOVERY, []),
        (DISCOVERY, {"issuer": "https://evil.example.com", "jwks_uri": "https://localhost/keys"}),
        (DISCOVERY, {"jwks_uri": "https://localhost/keys"}),
        (DISCOVERY, "no uri"),
        (DISCOVERY, "plain http"),
        (DISCOVERY, b'{"issuer":"a","issuer":"b"}'),
        (DISCOVERY, b" " * (64 * 1024 + 1)),
        ("/keys", None),
        ("/keys", {"keys": []}),
        ("/keys", {"keys": {}}),
        ("/keys", {"keys": [jwk(EC, "ec")] * 65}),
        ("/keys", {"keys": [jwk(EC, "ec"), jwk(RSA, "ec")]}),
        ("/keys", b" " * (256 * 1024 + 1)),
        ("/keys", b"[" * 1000),
    ],
)
def test_refuses_what_an_issuer_should_not_say(
    verifier: TokenVerifier, issuer: Issuer, path: str, document: Any
) -> None:
    if document == "no uri":
        document = {"issuer": issuer.url}
    if document == "plain http":
        document = {"issuer": issuer.url, "jwks_uri": issuer.url.replace("https", "http") + "/keys"}
    issuer.documents[path] = document
    with refuses("deploy.issuer", UnavailableError):
        verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW)


@pytest.mark.parametrize("named", ["https://evil.example.com", None])
def test_good_keys_count_for_nothing_where_another_issuer_is_described(
    verifier: TokenVerifier, issuer: Issuer, named: str | None
) -> None:
    issuer.documents[DISCOVERY] = {"issuer": named, "jwks_uri": f"{issuer.url}/keys"}
    with refuses("deploy.issuer", UnavailableError):
        verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW)
    assert issuer.asked == [DISCOVERY]


def test_good_keys_count_for_nothing_over_plain_http(issuer: Issuer) -> None:
    keys = issuer.url.replace("https", "http") + "/keys"
    served = {
        issuer.url + DISCOVERY: {"issuer": issuer.url, "jwks_uri": keys},
        keys: {"keys": [jwk(RSA, "rsa")]},
    }

    class Http:
        def request(self, _: str, url: str, **__: Any) -> Response:
            return Response(200, {}, json.dumps(served[url]).encode())

    http: Any = Http()
    with refuses("deploy.issuer", UnavailableError):
        TokenVerifier([issuer.url], AUDIENCE, http).verify(sign(claims(issuer), RSA, "rsa"), NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "HS256"},
        {"alg": "RS512"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC"},
        {"d": "AQAB"},
        {"n": "AQAB"},
        {"n": 5},
        {"e": ""},
        {"kid": 5},
    ],
)
def test_passes_over_keys_that_are_of_no_use(
    verifier: TokenVerifier, issuer: Issuer, changes: dict[str, Any]
) -> None:
    issuer.publish(jwk(RSA, "rsa", **changes), jwk(EC, "ec"))
    verifier.verify(sign(claims(issuer), EC, "ec"), NOW)
    with refuses("deploy.token.key"):
        verifier.verify(sign(claims(issuer), RSA, "rsa"), NOW)


def test_passes_over_keys_that_are_weak_or_of_other_curves(verifier: TokenVerifier, issuer: Issuer) -> None:
    other: Any = ec.generate_private_key(ec.SECP384R1())
    issuer.publish(jwk(rsa_key(1024), "weak"), jwk(other, "p384", alg="ES256"), jwk(EC, "ec"))
    for key_id in ("weak", "p384"):
        with refuses("deploy.token.key"):
            verifier.verify(sign(claims(issuer), EC, key_id), NOW)


@pytest.mark.parametrize("key_id", [None, "", "k" * 257])
def test_a_token_names_its_key(verifier: TokenVerifier, issuer: Issuer, key_id: str | None) -> None:
    token = unsigned({"alg": "RS256"} | ({} if key_id is None else {"kid": key_id}), claims(issuer), b"x")
    with refuses("deploy.token.key"):
        verifier.verify(token, NOW)


# ---- from requests ----


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer abc"}, {"authorization": "bearer  abc "}])
def test_finds_the_token_of_a_request(headers: dict[str, str]) -> None:
    assert bearer_token(headers) == "abc"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "abc"}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}]
)
def test_a_request_without_a_token_is_refused(headers: dict[str, str]) -> None:
    with refuses("deploy.token.missing"):
        bearer_token(headers)


def test_keys_are_kept_while_the_grants_name_the_same(issuer: Issuer, http: HttpClient) -> None:
    source = TokenSource(http)
    first = source.verifier(frozenset({issuer.url}), AUDIENCE)
    assert source.verifier(frozenset({issuer.url}), AUDIENCE) is first
    assert source.verifier(frozenset({issuer.url}), "https://other.example.com") is not first


WORKER = "https://deploy.example.com/internal/advance"
ACCOUNT = "queue@project.iam.gserviceaccount.com"


@pytest.fixture
def gate(issuer: Issuer, http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> WorkerGate:
    monkeypatch.setattr(oidc, "GOOGLE", issuer.url)
    return WorkerGate(WORKER, ACCOUNT, http)


def worker_headers(issuer: Issuer, **changes: Any) -> dict[str, str]:
    made = claims(issuer, **({"aud": WORKER, "email": ACCOUNT, "email_verified": True} | changes))
    return {"Authorization": f"Bearer {sign(made, RSA, 'rsa')}"}


def test_the_queues_service_account_gets_in(gate: WorkerGate, issuer: Issuer) -> None:
    gate.check(worker_headers(issuer), NOW)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"email": "other@project.iam.gserviceaccount.com"}, "worker"),
        ({"email": ACCOUNT.upper()}, "worker"),
        ({"email": None}, "worker"),
        ({"email_verified": None}, "worker"),
        ({"email_verified": False}, "worker"),
        ({"email_verified": "true"}, "worker"),
        ({"aud": AUDIENCE}, "audience"),
        ({"exp": NOW - 60}, "expired"),
    ],
)
def test_nobody_else_calls_the_worker(
    gate: WorkerGate, issuer: Issuer, changes: dict[str, Any], code: str
) -> None:
    with refuses(f"deploy.token.{code}"):
        gate.check(worker_headers(issuer, **changes), NOW)
    with refuses("deploy.token.missing"):
        gate.check({"X-CloudTasks-QueueName": "deploy"}, NOW)


def test_without_an_account_nobody_does(
    issuer: Issuer, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "GOOGLE", issuer.url)
    with refuses("deploy.token.worker"):
        WorkerGate(WORKER, "", http).check(worker_headers(issuer, email=""), NOW)
