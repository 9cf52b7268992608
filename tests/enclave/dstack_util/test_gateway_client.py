"""Registering with a simulated gateway that does its part, and with ones that do not (spec gateway 1.2)."""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util import gateway_client
from enclave.dstack_util.gateway_cache import GatewayIdentity
from enclave.dstack_util.gateway_client import MAX_ANSWER, TOTAL, GatewayClient, read_gateway
from enclave.dstack_util.wireguard import Tunnel, new_key
from shared.compose.model import PortPolicy, PortRule
from shared.errors import (
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    UnavailableError,
)
from shared.net.dialer import DirectDialer
from shared.ratls.certificates import ROOT_CA_NAME, Issuer, self_signed_ca
from shared.ratls.csr import CsrConfig
from shared.ratls.tls_identity import TlsIdentity
from tests.enclave.dstack_util.gateway_world import (
    GATEWAY_ID,
    OTHER_ID,
    SimulatedGateway,
    assigned,
    minted,
    refusing,
    saying,
    served_gateway,
)
from tests.enclave.gcp import GUEST_APP_ID, NOW
from tests.shared.refusal import refuses

OLD_GATEWAY = "failed to verify client: no attestation provided"
CLIENT_ONLY = CsrConfig(subject="dstack-guest-agent", usage_client_auth=True)


def _root() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    return self_signed_ca(key, ROOT_CA_NAME, 1, NOW - 10, NOW + 10**6), key


class World:
    """A KMS's root, a guest that it knows, and gateways."""

    def __init__(self, stack: ExitStack) -> None:
        self.root = _root()
        self.root_pem = self.root[0].public_bytes(Encoding.PEM)
        self.stack = stack
        self.dialled: list[int] = []
        self.seconds = 0.0
        self.on_dial: Callable[[], None] = lambda: None
        guest = minted(self.root, GUEST_APP_ID, config=CLIENT_ONLY)
        self.attested = minted(self.root, GUEST_APP_ID, config=CLIENT_ONLY)
        self.identity = GatewayIdentity(plain=guest, attested=self.attested, wireguard=new_key())

    def start(self, identity: TlsIdentity | None = None) -> tuple[SimulatedGateway, str]:
        """Start a gateway; one that the guest's keys name where it shows nothing else."""
        identity = identity or minted(self.root)
        return self.stack.enter_context(served_gateway(identity, self.root_pem))

    def register(self, *urls: str, app_id: str = GATEWAY_ID.hex(), ports: PortPolicy | None = None) -> Tunnel:
        """Register as the guest."""
        gateway = read_gateway(app_id, self.root_pem.decode(), urls)
        client = GatewayClient(gateway, dialer=self, now=lambda: NOW, monotonic=lambda: self.seconds)
        return client.register(self.identity, ports or PortPolicy())

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        self.dialled.append(port)
        self.on_dial()
        return DirectDialer().dial(host, port, timeout)


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


@pytest.fixture
def silent() -> Iterator[str]:
    """A listener that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def unreachable() -> Iterator[str]:
    """A port that is taken, where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"https://127.0.0.1:{taken.getsockname()[1]}"


def test_gives_its_key_and_ports_and_gets_an_address(world: World) -> None:
    gateway, url = world.start()
    ports = PortPolicy((PortRule(8080), PortRule(443, pp=True)), restrict_mode=True)
    tunnel = world.register(url, ports=ports)
    assert gateway.asked == [
        {
            "client_public_key": world.identity.wireguard.public,
            "port_policy": {
                "ports": [{"port": 8080, "pp": False}, {"port": 443, "pp": True}],
                "restrict_mode": True,
            },
        }
    ]
    assert gateway.callers == [GUEST_APP_ID]
    assert (str(tunnel.address), len(tunnel.servers)) == ("10.0.0.2", 2)


def test_an_app_without_a_port_policy_says_that_it_is_open(world: World) -> None:
    gateway, url = world.start()
    world.register(url)
    assert gateway.asked[0]["port_policy"] == {"ports": [], "restrict_mode": False}


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/prpc/RegisterCvm"),
        ("/", "/prpc/RegisterCvm"),
        ("/prpc", "/prpc/RegisterCvm"),
        ("/prpc/", "/prpc/RegisterCvm"),
        ("/a", "/a/prpc/RegisterCvm"),
    ],
)
def test_finds_the_method_below_the_url(world: World, suffix: str, path: str) -> None:
    gateway, url = world.start()
    world.register(url + suffix)
    assert gateway.paths == [path]


def test_shows_evidence_to_a_gateway_that_knows_no_other_certificate(world: World) -> None:
    gateway, url = world.start()
    gateway.behave = lambda self, body: (
        refusing(400, OLD_GATEWAY)(self, body) if len(self.asked) == 1 else self.register(body)
    )
    world.register(url)
    assert len(gateway.asked) == 2
    assert gateway.leaves == [
        one.chain[0].public_bytes(Encoding.DER) for one in (world.identity.plain, world.attested)
    ]


def test_asks_an_old_gateway_no_more_than_twice(world: World) -> None:
    gateway, url = world.start()
    gateway.behave = refusing(400, OLD_GATEWAY)
    with refuses("gateway.refused", PolicyDenied):
        world.register(url)
    assert len(gateway.asked) == 2


# N-76: whom it takes for its gateway


def test_n76_another_app_of_the_same_kms_is_no_gateway(world: World) -> None:
    gateway, url = world.start(minted(world.root, OTHER_ID))
    with refuses("peer.app_id", InvalidEvidence):
        world.register(url)
    assert gateway.asked == []


@pytest.mark.parametrize("app_id", [GATEWAY_ID[:10], GATEWAY_ID[1:], GATEWAY_ID + OTHER_ID, b""])
def test_n76_a_part_of_the_app_id_or_more_than_it_is_another_one(world: World, app_id: bytes) -> None:
    gateway, url = world.start(minted(world.root, app_id))
    with refuses("ratls.app_id", InvalidEvidence):
        world.register(url)
    assert gateway.asked == []


def test_n76_a_leaf_that_names_another_app_than_its_ca_is_refused(world: World) -> None:
    _, url = world.start(minted(world.root, OTHER_ID, leaf_app_id=GATEWAY_ID))
    with refuses("ratls.app_id", InvalidEvidence):
        world.register(url)


def test_n76_the_right_app_id_under_another_root_is_no_gateway(world: World) -> None:
    gateway, url = world.start(minted(_root()))
    with refuses("ratls.chain", InvalidEvidence):
        world.register(url)
    assert gateway.asked == []


def test_n76_a_client_certificate_of_the_gateways_app_is_no_server(world: World) -> None:
    _, url = world.start(minted(world.root, config=CsrConfig(subject="gateway", usage_client_auth=True)))
    with refuses("ratls.extended_key_usage", InvalidEvidence):
        world.register(url)


@pytest.mark.parametrize(
    "app_id",
    [
        "",
        "Any",
        "ANY",
        " any",
        "any ",
        "*",
        GATEWAY_ID.hex()[:20],
        GATEWAY_ID.hex() + OTHER_ID.hex(),
        f"{GATEWAY_ID.hex()},{OTHER_ID.hex()}",
        f"{GATEWAY_ID.hex()}\n",
        "00" * 20,
        "gateway",
    ],
)
def test_n76_what_is_no_app_id_names_no_gateway(app_id: str) -> None:
    with refuses("gateway.app_id", ConfigError):
        read_gateway(app_id, "", ["https://g"])


def test_an_app_id_may_be_written_as_contracts_do() -> None:
    assert read_gateway("0x" + GATEWAY_ID.hex().upper(), "", ["https://g"]).app_id == GATEWAY_ID


def test_n76_any_gateway_is_taken_where_the_keys_say_any_and_that_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = world.start(minted(_root(), OTHER_ID))
    assert str(world.register(url, app_id="any").address) == "10.0.0.2"
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["gateway_checked"]) == ("gateway.registered", False)


# several URLs


def test_the_first_that_answers_is_taken(world: World) -> None:
    gateway, url = world.start()
    other, other_url = world.start()
    world.register(url, other_url)
    assert (len(gateway.asked), len(other.asked)) == (1, 0)


@pytest.mark.parametrize("behaviour", [refusing(400, "no"), saying(b"{}"), saying(b"\xff"), saying(b"", 503)])
def test_the_next_is_asked_when_one_gives_nothing_usable(world: World, behaviour: Any) -> None:
    bad, bad_url = world.start()
    bad.behave = behaviour
    gateway, url = world.start()
    world.register(bad_url, url)
    assert (len(bad.asked), len(gateway.asked)) == (1, 1)


def test_the_next_is_asked_when_one_is_another_app_or_not_there(world: World, unreachable: str) -> None:
    _, impostor = world.start(minted(world.root, OTHER_ID))
    gateway, url = world.start()
    world.register(unreachable, impostor, url)
    assert len(gateway.asked) == 1


def test_the_first_ones_error_is_told_when_all_fail(world: World, unreachable: str) -> None:
    one, one_url = world.start()
    one.behave = refusing(400, "instance id is empty")
    with refuses("gateway.refused", PolicyDenied):
        world.register(one_url, unreachable)


def test_the_next_is_asked_when_one_is_silent(
    world: World, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, url = world.start()
    patience = iter([0.05, *[10.0] * 9])  # only the silent one has no time
    monkeypatch.setattr(GatewayClient, "_left", lambda _self, _end: next(patience))
    world.register(silent, url)
    assert len(gateway.asked) == 1


def test_a_silent_gateway_is_a_matter_of_time(
    world: World, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "EXCHANGE", 0.05)
    with refuses("net.timeout", UnavailableError):
        world.register(silent)


def test_all_urls_together_have_a_limit(world: World, unreachable: str) -> None:
    def spend() -> None:
        world.seconds += TOTAL

    world.on_dial = spend
    _, url = world.start()
    with refuses("net.unreachable", UnavailableError):
        world.register(unreachable, url, url)
    assert len(world.dialled) == 1


def test_no_time_left_is_said(world: World) -> None:
    def spend() -> None:
        world.seconds += TOTAL

    world.on_dial = spend
    _, url = world.start()
    with refuses("gateway.unavailable", UnavailableError):
        world.register(url)


# what it may answer


@pytest.mark.parametrize(
    ("behaviour", "code", "kind"),
    [
        (refusing(400, "key already used"), "gateway.refused", PolicyDenied),
        (refusing(403, "x" * 100_000), "gateway.refused", PolicyDenied),
        (saying(b"<html>", 404), "gateway.malformed", ProtocolError),
        (saying(b'{"error":1}', 400), "gateway.malformed", ProtocolError),
        (saying(b"[" * 100_000, 400), "gateway.malformed", ProtocolError),
        (saying(b'{"error":"busy"}', 503), "gateway.unavailable", UnavailableError),
        (saying(b"", 429), "gateway.unavailable", UnavailableError),
        (saying(b"null"), "prpc.json.type", ProtocolError),
        (saying(b'{"wg":{"servers":1}}'), "prpc.json.type", ProtocolError),
        (saying(b'{"wg":'), "prpc.json.syntax", ProtocolError),
        (saying(b""), "gateway.answer", ProtocolError),
        (
            saying(json.dumps(assigned(client_ip="1.2.3.4\nPostUp = id")).encode()),
            "gateway.answer",
            ProtocolError,
        ),
        (saying(b" " * (MAX_ANSWER + 1)), "net.response.oversize", ProtocolError),
        (saying(b"", 302), "gateway.malformed", ProtocolError),
    ],
)
def test_an_answer_that_assigns_nothing_is_refused(
    world: World, behaviour: Any, code: str, kind: type[DstackError]
) -> None:
    gateway, url = world.start()
    gateway.behave = behaviour
    with refuses(code, kind):
        world.register(url)


def test_a_refusals_words_are_cut_short(world: World) -> None:
    gateway, url = world.start()
    gateway.behave = refusing(400, "x" * 100_000)
    with pytest.raises(PolicyDenied) as caught:
        world.register(url)
    assert len(caught.value.message) < 1000


# addresses


@pytest.mark.parametrize(
    "urls",
    [
        ["http://g"],
        ["https://"],
        ["https://g:0x1"],
        ["https://g:99999"],
        ["https://g?x=1"],
        ["https://u@g"],
        ["g:443"],
        ["https://g", "ftp://g"],
    ],
)
def test_refuses_an_address_that_is_not_https(urls: Sequence[str]) -> None:
    with refuses("gateway.url", ConfigError):
        read_gateway("any", "", urls)


def test_refuses_to_register_nowhere() -> None:
    with refuses("gateway.urls", ConfigError):
        read_gateway("any", "", [])
