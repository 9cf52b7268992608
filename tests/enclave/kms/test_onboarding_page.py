"""The onboarding listener's page: what it may load and run, and what its script sends and shows."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from enclave.kms.http import onboard_app
from enclave.kms.onboarding_page import content_security_policy
from enclave.serving.attested_tls import build_plain_server
from shared.net.fetch import HttpClient
from shared.net.response import Response
from shared.rpc import kms_pb2 as pb

PAGE = files("enclave.kms").joinpath("onboarding.html").read_text(encoding="utf-8")
SCRIPT = PAGE[PAGE.index("<script>") + len("<script>") : PAGE.index("</script>")]
TOKEN = "once"
HOSTILE = '<img src=x onerror="alert(1)">'
TOLD = {"os_image_hash": "aa" * 32, "mr_aggregated": "bb" * 32, "device_id": "cc" * 32, "site_name": HOSTILE}
INPUTS = {"domain": "kms.test", "source_url": "https://a.test:8001", "source_token": "theirs"}


class Parts(HTMLParser):
    """The elements of a page, and the fields of each of its forms."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.forms: dict[str, list[str]] = {}
        self._form: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "form":
            self._form = self.forms.setdefault(values["data-method"] or "", [])
        if tag == "input" and self._form is not None:
            self._form.append(values["name"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None


PARTS = Parts(PAGE)
REQUESTS = {"Bootstrap": pb.BootstrapRequest, "Onboard": pb.OnboardRequest, "Finish": None}


@pytest.fixture
def listener(serve) -> Iterator[tuple[Callable[..., Response], list[tuple[str, ...]]]]:
    """An onboarding listener behind a token: how to ask it, and what reached its methods."""
    reached: list[tuple[str, ...]] = []

    def bootstrap(domain: str) -> pb.BootstrapResponse:
        reached.append(("Bootstrap", domain))
        return pb.BootstrapResponse()

    def onboard(source_url: str, domain: str, source_token: str) -> pb.OnboardResponse:
        reached.append(("Onboard", source_url, domain, source_token))
        return pb.OnboardResponse()

    app = onboard_app(
        bootstrap=bootstrap,
        onboard=onboard,
        finish=lambda: reached.append(("Finish",)),
        describe=pb.AttestationInfoResponse,
        token_digest=hashlib.sha256(TOKEN.encode()).digest(),
    )
    http = HttpClient(serve(build_plain_server(app)), timeout=20)

    def ask(method: str, path: str, body: str = "", **headers: str) -> Response:
        return http.request(method, f"http://kms.test{path}", body.encode(), headers=headers)

    yield ask, reached
    http.close()


def test_is_served_to_anybody_as_it_is_in_the_package(listener) -> None:
    ask, _ = listener
    answer = ask("GET", "/")
    assert (answer.status, answer.body.decode()) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_browser_is_told_to_run_nothing_else(listener) -> None:
    ask, _ = listener
    headers = ask("GET", "/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert policy["connect-src"] == "'self'"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_another_script_has_another_hash() -> None:
    other = PAGE.replace('"use strict";', '"use strict"; ')
    assert content_security_policy(other) != content_security_policy(PAGE)


def test_loads_nothing_and_has_no_inline_handlers() -> None:
    assert [tag for tag, _ in PARTS.elements if tag in {"script", "style"}] == ["style", "script"]
    loading = {"src", "href", "action", "formaction", "srcset", "data", "style"}
    for tag, attributes in PARTS.elements:
        given = {name: value for name, value in attributes.items() if name in loading}
        assert given in ({}, {"href": "data:,"}), tag
        assert not [name for name in attributes if name.startswith("on")]
    urls = re.findall(r"[a-z]+://[^\s\"'<]*", PAGE)
    assert sorted(urls) == ["https://kms.example:8000"]  # what the field is for
    assert "@import" not in PAGE
    assert "url(" not in PAGE


def test_values_are_assigned_as_text() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in SCRIPT


def test_has_a_form_for_each_method_with_the_fields_of_its_request() -> None:
    wanted = {
        method: [field.name for field in request.DESCRIPTOR.fields] if request else []
        for method, request in REQUESTS.items()
    }
    assert {method: sorted(fields) for method, fields in PARTS.forms.items()} == {
        method: sorted(fields) for method, fields in wanted.items()
    }


def test_shows_every_field_of_what_is_to_be_allowed() -> None:
    shown = [attributes["data-field"] for _, attributes in PARTS.elements if "data-field" in attributes]
    assert sorted(filter(None, shown)) == sorted(
        field.name for field in pb.AttestationInfoResponse.DESCRIPTOR.fields
    )


def test_no_token_is_kept_by_the_browser() -> None:
    secrets = [attributes for tag, attributes in PARTS.elements if attributes.get("type") == "password"]
    assert [attributes.get("name", attributes.get("id")) for attributes in secrets] == [
        "token",
        "source_token",
    ]
    assert {attributes["autocomplete"] for attributes in secrets} == {"off"}


# A browser's part, as far as the script needs one: it prints what was sent, and what the page then shows.
BROWSER = """
const {page, told, token, inputs} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const sent = [];
const element = (more) => ({textContent: "", hidden: true, dataset: {}, ...more});
const ids = {answer: element(), token: element({value: token}), simulated: element()};
const cells = page.fields.map((field) => element({dataset: {field}}));
const forms = Object.entries(page.forms).map(([method, names]) => element({
  dataset: {method}, names, button: {disabled: false},
  querySelector() { return this.button; },
  addEventListener(kind, run) { this.send = () => run({preventDefault() { this.prevented = true; }}); },
}));
globalThis.document = {
  getElementById: (id) => ids[id],
  querySelectorAll: (what) => what === "form" ? forms : cells,
};
globalThis.FormData = class {
  constructor(form) { this.names = form.names; }
  *[Symbol.iterator]() { for (const name of this.names) yield [name, inputs[name]]; }
};
globalThis.fetch = async (url, options) => {
  sent.push([url, options]);
  const {status, body} = told[url.match(/prpc\\/(\\w+)/)[1]] ?? {status: 200, body: "null"};
  return {status, ok: status === 200, text: async () => body};
};
const settled = () => new Promise((done) => setImmediate(done));
(async () => {
  new Function(page.script)();
  await settled();
  const answers = [ids.answer.textContent];
  for (const form of forms) {
    form.send();
    await settled();
    answers.push(ids.answer.textContent);
  }
  const shown = Object.fromEntries(cells.map((cell) => [cell.dataset.field, cell.textContent]));
  console.log(JSON.stringify({sent, answers, shown, isSimulated: !ids.simulated.hidden,
    busy: forms.some((form) => form.button.disabled)}));
})();
"""


def run_page(told: dict[str, tuple[int, object]], *, token: str = TOKEN) -> dict[str, Any]:
    """Run the page's script, submit each of its forms, and return what that sent and showed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: cannot run the page's script")
    fields = [attributes["data-field"] for _, attributes in PARTS.elements if "data-field" in attributes]
    given = {
        "page": {"script": SCRIPT, "forms": PARTS.forms, "fields": fields},
        "told": {
            name: {"status": status, "body": body if isinstance(body, str) else json.dumps(body)}
            for name, (status, body) in told.items()
        },
        "token": token,
        "inputs": INPUTS,
    }
    done = subprocess.run(
        [node, "-e", BROWSER], input=json.dumps(given), capture_output=True, text=True, check=True, timeout=60
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_what_the_script_sends_reaches_the_methods(listener) -> None:
    ask, reached = listener
    for url, options in run_page({"GetAttestationInfo": (200, TOLD)})["sent"]:
        assert ask(options["method"], url, options["body"], **options["headers"]).status == 200
    assert reached == [
        ("Bootstrap", INPUTS["domain"]),
        ("Onboard", INPUTS["source_url"], INPUTS["domain"], INPUTS["source_token"]),
        ("Finish",),
    ]


def test_without_the_token_nothing_but_the_page_and_the_facts_is_given(listener) -> None:
    ask, reached = listener
    statuses = [
        ask(options["method"], url, options["body"], **options["headers"]).status
        for url, options in run_page({}, token="")["sent"]
    ]
    assert statuses == [200, 401, 401, 401]
    assert reached == []


def test_the_token_goes_with_what_needs_it_alone() -> None:
    sent = run_page({"GetAttestationInfo": (200, TOLD)})["sent"]
    with_token = [url for url, options in sent if "authorization" in options["headers"]]
    assert with_token == [f"/prpc/{method}?json" for method in REQUESTS]
    # a 401 to a request with credentials would open the browser's own dialog, which then keeps the token
    assert {options["credentials"] for _, options in sent} == {"omit"}


def test_shows_the_facts_as_text() -> None:
    shown = run_page({"GetAttestationInfo": (200, TOLD)})["shown"]
    assert shown["mr_aggregated"] == "bb" * 32
    assert shown["site_name"] == HOSTILE
    assert shown["eth_rpc_url"] == "none"


@pytest.mark.parametrize("told", [{"simulated": True}, {"simulated": False}, {}])
def test_says_that_the_evidence_is_simulated(told: dict[str, bool]) -> None:
    is_shown = run_page({"GetAttestationInfo": (200, TOLD | told)})["isSimulated"]
    assert is_shown is told.get("simulated", False)
    assert "simulated:" in PAGE[PAGE.index('id="simulated"') : PAGE.index("What to allow")]


def test_shows_refusals_with_their_codes() -> None:
    result = run_page(
        {
            "GetAttestationInfo": (400, {"error": "no", "code": "evidence.gone"}),
            "Bootstrap": (401, ""),
            "Onboard": (400, {"error": HOSTILE, "code": "kms.source.denied"}),
            "Finish": (502, "<html>"),
        }
    )
    facts, bootstrap, onboard, finish = result["answers"]
    assert facts == "GetAttestationInfo: no [evidence.gone]"
    assert bootstrap.startswith("Bootstrap: the token is missing")
    assert onboard == f"Onboard: {HOSTILE} [kms.source.denied]"
    assert finish.startswith("Finish: ")
    assert result["busy"] is False
